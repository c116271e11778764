"""The benchmark of parallelism: stacks of equal size, decoding that equals scoring, threads, the command."""

import json
import subprocess

import pytest
import tensorflow as tf

from benchmarks import parallelism
from benchmarks.parallelism import GRU, JOBS, SMOKE, STACKS, TRANSFORMER, Setting

pytestmark = pytest.mark.tensorflow


def test_stacks_have_about_as_many_weights():
    counts = parallelism.parameters(Setting())
    assert counts[TRANSFORMER] == pytest.approx(counts[GRU], rel=0.1)
    assert counts[TRANSFORMER] > 24 * 256**2


@pytest.mark.parametrize("name", STACKS)
def test_decoding_computes_what_scoring_does(name):
    stack = STACKS[name](SMOKE)
    x = tf.random.stateless_normal((3, 5, SMOKE.width), seed=(1, 2))
    parallelism.assert_correct(stack, x)
    step, calls = stack.step, []

    def forgetful(x, state):
        calls.append(x)
        return step(x, state if len(calls) != 4 else stack.start(3, 5))

    stack.step = forgetful
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        parallelism.assert_correct(stack, x)


def test_threads_are_set_before_tensorflow_starts(monkeypatch):
    calls = []

    def run(command, **options):
        calls.append((command, options))
        return subprocess.CompletedProcess(command, 0, stdout='a line of a library\n{"training": {}}\n', stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert parallelism.in_process(SMOKE, 8, threads=2) == {"training": {}}
    ((command, options),) = calls
    assert options["env"]["TF_NUM_INTRAOP_THREADS"] == options["env"]["TF_NUM_INTEROP_THREADS"] == "2"
    assert Setting(**json.loads(command[-2])).width == SMOKE.width and command[-1] == "8"


def test_a_failed_process_is_shown(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="the reason")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="length 8 with 1 threads failed:\nthe reason"):
        parallelism.in_process(SMOKE, 8, threads=1)


def test_the_command_measures_once_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        parallelism, "in_process", lambda setting, length, threads: parallelism.measure(setting, length)
    )
    files = {"--results": tmp_path / "new" / "small.json", "--image": tmp_path / "new" / "small.png"}
    arguments = ["--smoke", *(str(each) for pair in files.items() for each in pair)]
    parallelism.main(arguments)
    first = capsys.readouterr().out
    times = json.loads(files["--results"].read_text(encoding="utf-8"))["microseconds"]["1"]
    assert list(times) == ["4", "8"]
    assert all(times[n][job][name] > 0 for n in times for job in JOBS for name in STACKS)
    assert files["--image"].stat().st_size > 10_000

    monkeypatch.setattr(parallelism, "in_process", None)  # a second run measures nothing
    parallelism.main(arguments)
    assert capsys.readouterr().out in first


def test_tables_divide_the_right_way_round():
    def times(training, scoring, decoding):
        values = {"training": training, "scoring": scoring, "decoding": decoding}
        return {"16": {job: {TRANSFORMER: value, GRU: 3 * value} for job, value in values.items()}}

    content = {"parameters": {TRANSFORMER: 10, GRU: 11}, "microseconds": {"1": times(6, 3, 9), "2": times(4, 2, 8)}}
    text = parallelism.tables(content)
    assert "| 16 | 1.50 | 1.50 | 1.50 | 1.50 | 1.12 | 1.12 |" in text
    assert text.endswith("| 16 | 4.00 | 4.00 |")
