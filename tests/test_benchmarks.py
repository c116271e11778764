"""The benchmarks: order, medians, ratios, the files, the command lines, what is counted, that sides agree."""

import importlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import gpu, shards, training
from benchmarks.__main__ import main, names
from benchmarks.harness import Case, Report, measure_in_turn
from benchmarks.peers import opennmt
from benchmarks.peers.side import STARTED, Clock, Measured, Task, measured
from benchmarks.tools import chart, scaling
from benchmarks.tools.agreement import assert_same_function, assert_same_work, attention_biases
from benchmarks.tools.flops import forward_multiply_adds, training_flops
from benchmarks.tools.rates import Rates
from benchmarks.tools.sentences import LENGTHS_PER_MILLE, Sentences
from benchmarks.tools.turns import in_turn, run_side

ROOT = Path(__file__).parent.parent
PAIRS = Sentences.of([[5], [6, 7], [8, 9, 10], [11]], [[12, 13], [14], [15], [16, 17, 18]])
TINY = Task("", vocabulary_size=97, num_layers=2, hidden_dim=12, intermediate_dim=31, num_heads=3, warmup=2, steps=3)

CASE = Case("small", {"ours": [1.0, 4.0, 3.0], "peer": [2.0, 2.0, 6.0]})


def test_sides_are_measured_in_turn_and_the_order_turns():
    calls = []
    sides = {side: lambda side=side: calls.append(side) for side in "abc"}
    seconds = measure_in_turn(sides, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {side: len(times) for side, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_ratio_is_the_median_of_the_rounds_ratios():
    assert CASE.median("ours") == 3.0
    assert CASE.median("peer") == 2.0
    assert CASE.ratio("ours", "peer") == 0.5  # of 0.5, 2.0, 0.5
    assert CASE.ratio("peer", "peer") == 1.0


def test_report_is_shown_and_saved(tmp_path):
    report = Report("toy", "peer", {"rounds": 3}, [CASE])
    text = io.StringIO()
    report.show(Console(file=text, width=100))
    assert "/ peer" in text.getvalue()
    assert "3000" in text.getvalue()
    content = json.loads(report.save(tmp_path / "new").read_text(encoding="utf-8"))
    assert content["cases"][0]["time_over_peer"] == {"ours": 0.5, "peer": 1.0}
    assert content["cases"][0]["seconds"] == CASE.seconds
    assert content["machine"]["cores"] >= 1
    assert set(content["machine"]["packages"]) >= {"keras", "tensorflow"}


def test_every_benchmark_has_a_line_in_the_list(capsys):
    assert "attention" in names()
    environment = dict(os.environ)
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(names())
    assert dict(os.environ) == environment  # a backend named by one of them would reach every later process


def test_every_listed_benchmark_can_be_run():
    assert all(callable(importlib.import_module(f"benchmarks.{name}").run) for name in names())


def test_a_run_on_a_gpu_leaves_the_backend_of_who_imports_it(monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    importlib.reload(importlib.import_module("benchmarks.gpu_run"))
    assert "KERAS_BACKEND" not in os.environ


def test_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "no benchmark is called nonsense; there are: attention" in capsys.readouterr().err


def test_batches_begin_end_and_are_padded():
    source, target, labels = PAIRS.arrays(np.array([2, 3]))
    assert source.tolist() == [[8, 9, 10, 3], [11, 3, 0, 0]]
    assert target.tolist() == [[2, 15, 0, 0], [2, 16, 17, 18]]
    assert labels.tolist() == [[15, 3, 0, 0], [16, 17, 18, 3]]
    assert [lengths.tolist() for lengths in PAIRS.lengths([np.array([2]), np.array([3])])] == [[4, 2], [2, 4]]


def test_batches_are_those_that_ours_trains_on():
    from benchmarks.peers.ours import first_batches, token_batches

    batches = token_batches(PAIRS, 9)
    inputs, labels = batches.batch([0, 2])
    source, target, expected = PAIRS.arrays(np.array([0, 2]))
    np.testing.assert_array_equal(inputs["source"], source)
    np.testing.assert_array_equal(inputs["target"], target)
    np.testing.assert_array_equal(labels, expected)
    two_epochs = first_batches(batches, 2 * len(batches))
    assert [index.tolist() for index in two_epochs[: len(batches)]] == [index.tolist() for index in batches.plan(0)]
    assert [index.tolist() for index in two_epochs[len(batches) :]] == [index.tolist() for index in batches.plan(1)]


def test_sentences_survive_their_file(tmp_path):
    PAIRS.with_batches([np.array([3, 0]), np.array([1])]).save(tmp_path / "pairs.npz")
    loaded = Sentences.load(tmp_path / "pairs.npz")
    assert [index.tolist() for index in loaded.batches] == [[3, 0], [1]]
    assert [row.tolist() for row in loaded.rows()[1]] == [[12, 13], [14], [15], [16, 17, 18]]


def test_random_batches_pass_over_the_pairs():
    batches = PAIRS.random_batches(size=2, count=5)
    assert [len(index) for index in batches] == [2] * 5
    assert sorted(np.concatenate(batches[:2])) == sorted(np.concatenate(batches[2:4])) == [0, 1, 2, 3]


def test_drawn_sentences_are_as_long_as_those_measured():
    pairs = Sentences.drawn(20_000, 8000)
    assert abs(pairs.source_lengths.mean() - 8.94) < 0.1
    assert abs(pairs.source_lengths.std() - 3.46) < 0.15
    assert abs(pairs.target_lengths.mean() - 9.18) < 0.1
    assert abs(pairs.target_lengths.std() - 3.94) < 0.2
    assert abs(np.corrcoef(pairs.source_lengths, pairs.target_lengths)[0, 1] - 0.855) < 0.03
    assert abs(sum(LENGTHS_PER_MILLE) - 1000) < 2
    assert pairs.source.min() >= 4
    assert pairs.source.max() < 8000


def test_multiply_adds_equal_a_count_by_hand():
    # One layer of width 2, inner width 3, 5 pieces; one pair of 2 source and 3 target tokens.
    encoder = 2 * (4 * 4) + 2 * (2 * 2) * 2 + 2 * (2 * 3 + 3 * 2)  # projections; scores and sums; feed-forward
    self_attention = 3 * (4 * 4) + 2 * (1 + 2 + 3) * 2
    cross_attention = 3 * (2 * 4) + 2 * (2 * 4) + 2 * (2 * 3) * 2
    expected = encoder + self_attention + cross_attention + 3 * (2 * 3 + 3 * 2) + 3 * 2 * 5
    sizes = {"num_layers": 1, "hidden_dim": 2, "intermediate_dim": 3, "vocabulary_size": 5}
    assert forward_multiply_adds(np.array([2]), np.array([3]), **sizes) == expected
    assert forward_multiply_adds(np.array([2, 2]), np.array([3, 3]), **sizes) == 2 * expected
    assert training_flops(np.array([2]), np.array([3]), **sizes) == 6 * expected


def test_rounds_of_processes_turn_their_order():
    calls = []
    sides = {side: lambda side=side: calls.append(side) or {"side": side} for side in "abc"}
    found = in_turn(sides, rounds=2, report=lambda line: None)
    assert "".join(calls) == "abc" + "bca"
    assert found["b"] == [{"side": "b"}, {"side": "b"}]


def test_side_that_fails_is_named_with_what_it_wrote():
    with pytest.raises(
        RuntimeError, match=r"benchmarks.peers.nothing failed with exit status 1:(.|\n)*No module named"
    ):
        run_side("benchmarks.peers.nothing")


def test_clock_leaves_the_warm_up_out(monkeypatch):
    monkeypatch.setenv(STARTED, repr(time.time()))
    clock = Clock(TINY)
    for _ in range(5):
        clock.step_ended()
    clock.ends = [10.0, 11.0, 13.0, 16.0, 20.0]
    assert clock.seconds == 9.0
    pairs = PAIRS.with_batches([np.array([0]), np.array([0]), np.array([1]), np.array([2]), np.array([3])])
    found = measured(TINY, pairs, clock, parameters=7, loss=None)
    assert found.tokens == (3 + 2) + (4 + 2) + (2 + 4)
    assert 0 <= found.first_step_seconds < 60
    assert found.peak_bytes > 10**7


def test_sides_with_our_weights_have_our_loss():
    assert "keras" in assert_same_function(Task("", num_layers=2, num_heads=3))


def test_sides_with_other_weights_are_noticed(monkeypatch):
    from benchmarks.peers import keras_layers

    monkeypatch.setattr(keras_layers, "set_weights", lambda model, weights: None)
    with pytest.raises(AssertionError, match=r"keras gives the loss \d\.\d+ where ours gives"):
        assert_same_function(Task("", num_layers=1, num_heads=3))


def fake(parameters: int, loss: float | None = 6.0) -> dict:
    return asdict(Measured(1000, 2.0, 3.0, 4 * 10**9, parameters, loss, 5 * 10**9))


def test_other_work_is_noticed():
    assert_same_work(TINY, {"ours": [fake(100)], "peer": [fake(100 + attention_biases(TINY), None)]})
    with pytest.raises(AssertionError, match="peer has 101 weights"):
        assert_same_work(TINY, {"ours": [fake(100)], "peer": [fake(101)]})
    with pytest.raises(AssertionError, match=r"peer ends at the loss 9\.000"):
        assert_same_work(TINY, {"ours": [fake(100)], "other": [fake(100)], "peer": [fake(100, 9.0)]})


def test_rates_are_shown_saved_and_drawn(tmp_path):
    results = {"ours": [fake(100), {**fake(100), "seconds": 4.0}], "peer": [{**fake(100), "seconds": 6.0}] * 2}
    rates = Rates("toy", "toys", "drawn", TINY, results, [{"float32": 10.0**10, "bfloat16": 2.0 * 10**10}] * 2)
    assert rates.times_as_fast("peer") == pytest.approx((3 + 1.5) / 2)
    assert rates.medians("ours")["tokens_per_second"] == (500 + 250) / 2
    assert rates.medians("ours")["share_of_matrix_rate"] == pytest.approx((0.25 + 0.125) / 2)
    text = io.StringIO()
    rates.show(Console(file=text, width=160))
    assert "2.25" in text.getvalue()
    content = json.loads(rates.save(tmp_path).read_text(encoding="utf-8"))
    assert content["sides"]["peer"]["times_as_fast"] == pytest.approx(2.25)
    assert content["machine"]["threads"]
    image = chart.draw([content], tmp_path / "images" / "chart.png")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_opennmt_log_is_read_after_the_warm_up(monkeypatch):
    monkeypatch.setenv(STARTED, "100.0")
    task = replace(TINY, warmup=5, steps=10)
    lines = [
        (107.0, "2026 INFO: Number of model parameters: 1234"),
        (110.0, "INFO: Step = 5 ; steps/s = 9.00, tokens/s = 9999 (1 source, 2 target) ; Learning rate = 0.1"),
        (115.0, "INFO: Step = 10 ; steps/s = 1.00, tokens/s = 100 (50 source, 50 target) ; Learning rate = 0.1"),
        (117.5, "INFO: Step = 15 ; steps/s = 2.00, tokens/s = 400 (200 source, 200 target) ; Learning rate = 0.1"),
    ]
    found = opennmt.read_log(task, PAIRS, lines)
    assert (found.tokens, found.seconds, found.parameters) == (5 * 100 + 2.5 * 400, 7.5, 1234)
    assert found.first_step_seconds == 7.0


@pytest.mark.parametrize(
    ("workload", "warmup", "message"),
    [("small", "8", r"`warmup` is a multiple of 5. Received: warmup=8"), ("small-bfloat16", "10", "has no bfloat16")],
)
def test_what_opennmt_cannot_do_is_said_before_any_side_runs(tmp_path, workload, warmup, message):
    arguments = [workload, "--sides", "keras_attention", "opennmt-tf", "--opennmt-python", "python", "--warmup", warmup]
    options = training.parser().parse_args(arguments)
    task = replace(TINY, warmup=options.warmup, steps=options.steps, **training.WORKLOADS[workload].changes)
    with pytest.raises(ValueError, match=message):
        training.processes(task, training.WORKLOADS[workload], PAIRS, tmp_path, options, Console())


def test_opennmt_has_the_same_vocabulary_and_sentences(tmp_path):
    opennmt.write_files(replace(TINY, tokens_per_batch=4096), PAIRS, tmp_path)
    assert (tmp_path / "source.txt").read_text().splitlines() == ["5", "6 7", "8 9 10", "11"]
    vocabulary = (tmp_path / "vocabulary.txt").read_text().splitlines()
    assert len(vocabulary) + 1 == TINY.vocabulary_size  # and one place for what is unknown
    assert "num_units=12" in (tmp_path / "model.py").read_text()


def test_training_benchmark_says_what_it_leaves_out_and_what_there_is(tmp_path):
    text = io.StringIO()
    options = training.parser().parse_args(["small", "--sides", "keras_attention", "opennmt-tf"])
    console = Console(file=text, width=160)
    sides = training.processes(
        replace(TINY, vocabulary_size=8000), training.WORKLOADS["small"], PAIRS, tmp_path, options, console
    )
    assert list(sides) == ["keras_attention", training.CEILING]
    assert "opennmt-tf is left out: name its Python with --opennmt-python" in text.getvalue()
    with pytest.raises(SystemExit, match="no workload is called huge; there are: small"):
        training.main(["huge"])


@pytest.mark.slow
def test_every_side_measures_a_small_task(tmp_path):
    pytest.importorskip("torch")
    pairs = Sentences.drawn(60, TINY.vocabulary_size)
    options = training.parser().parse_args(["--sides", "keras_attention", "kerashub", "keras", "torch"])
    workload = training.Workload("tiny", {}, (), tokens=64, sentences=5)
    sides = training.processes(TINY, workload, pairs, tmp_path, options, Console(file=io.StringIO()))
    found = in_turn(sides, rounds=1, report=lambda line: None)
    assert found.pop(training.CEILING)[0]["float32"] > 0
    assert_same_work(TINY, found)
    assert found["torch"][0]["tokens"] == found["keras_attention"][0]["tokens"]
    assert all(result["first_step_seconds"] > 0 for (result,) in found.values())


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu():
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    task = replace(gpu.TINY, options={"compile": False})  # which takes a minute on a CPU
    chip = gpu.ceiling()
    rates = gpu.measure("tiny", task, chip, rounds=1, report=lambda line: None)
    assert {"keras_attention", "keras_attention, packed", "torch"} <= set(rates.measured)
    assert all(result["tokens"] == 3 * 2 * 3 * 17 for (result,) in rates.measured.values())
    speeds = gpu.measure_decoding(gpu.TINY_DECODING, chip, rounds=1, report=lambda line: None)
    assert speeds.found["tokens a second, beam 4"]["keras_attention"] > 0


@pytest.mark.slow
def test_a_side_that_fails_on_a_gpu_is_named_and_left_out(monkeypatch):
    pytest.importorskip("jax")
    sides = gpu.training_sides(gpu.TINY)
    broken = {gpu.OURS: sides[gpu.OURS], gpu.TORCH: ("benchmarks.peers.absent", gpu.TINY, {})}
    monkeypatch.setattr(gpu, "training_sides", lambda task: broken)
    lines = []
    rates = gpu.measure("tiny", gpu.TINY, {"device": "cpu", "float32": 1e9, "bfloat16": 1e9}, 1, lines.append)
    assert list(rates.measured) == [gpu.OURS]
    assert any("torch is left out" in line and "benchmarks.peers.absent" in line for line in lines)


@pytest.mark.slow
def test_our_side_on_a_gpu_needs_no_tensorflow():
    pytest.importorskip("jax")
    code = """if True:
        import sys
        sys.modules["tensorflow"] = None
        from benchmarks import gpu
        from benchmarks.peers.jax_rows import prepare
        module, task, variables = gpu.training_sides(gpu.TINY)[gpu.OURS]
        work = prepare(task).steps(3)
        print(work.read(work.run())["tokens"])
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **gpu.JAX}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == 3 * 2 * 3 * 17


@pytest.mark.slow
def test_a_first_run_on_a_gpu_in_its_tiny_form(tmp_path):
    pytest.importorskip("jax")
    for name, words in (("source", "one two three"), ("target", "eins zwei drei")):
        lines = [" ".join(words.split()[(i + j) % 3] for j in range(1 + i % 5)) + f" {i}\n" for i in range(400)]
        (tmp_path / name).write_text("".join(lines))
    command = [sys.executable, "-m", "benchmarks.gpu_run", str(tmp_path / "source"), str(tmp_path / "target")]
    done = subprocess.run([*command, "--tiny", "--steps", "3"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "KERAS_BACKEND": "jax"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert found["steps"] == 3
    assert found["training tokens a second"] > 0
    assert found["beam 4"]["sentences"] == 128
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **gpu.JAX})
    assert "no GPU is visible to JAX" in refused.stderr


def test_the_page_about_scaling_has_the_numbers_of_its_program():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert scaling.parameters("base") == 63_045_632  # as Keras counts them
    for line in (*scaling.costs(), *scaling.table(), *scaling.corpora()):
        assert line in page


def test_text_in_shards_is_measured(tmp_path):
    for name, words in (("source", "one two three"), ("target", "eins zwei drei")):
        (tmp_path / name).write_text("".join(f"{words} {number}\n" for number in range(40)), encoding="utf-8")
    shards.write_shards(str(tmp_path / "source"), str(tmp_path / "target"), 50, tmp_path / "50")
    shards.train_tokenizer(tmp_path / "50")
    assert len(list((tmp_path / "50").glob("*.gz"))) == 2 * shards.SHARDS
    case = shards.measure("streamed, packed", tmp_path / "50", buffer_size=20, step_seconds=0)
    assert case["pairs"] == 50 and case["peak_bytes"] >= case["bytes_before"] > 0
    shards.show([{"side": "streamed, packed", **case}])
