"""The decoding benchmark: sides that wait, what their rounds come to, that they decode the same."""

import gzip
import io
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from benchmarks import decoding
from benchmarks.harness import Case
from benchmarks.peers.decoding import END, DecodingTask, until_end
from benchmarks.tools import translating
from benchmarks.tools.decoding_files import write_random
from benchmarks.tools.serving_c import time_lines
from benchmarks.tools.speeds import Speeds, share_of_equal, time_over
from benchmarks.tools.translating import Translation
from benchmarks.tools.workers import Worker, lines_of, plain_copy

pytestmark = pytest.mark.tensorflow

SIDE = """
from benchmarks.tools.workers import Work, serve


class Side:
    def __init__(self, task):
        self.task, self.prepared = task, 0

    def double(self, number):
        print("some library says hello")
        self.prepared += 1
        return Work(lambda: 2 * number, lambda found: [found, self.prepared, self.task["name"]])

    def fail(self):
        raise ValueError("no such weights")


serve(Side)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(SIDE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("benchmarks.tools.workers.PAUSE", 0)
    worker = Worker("stand_in", {"name": "toy"}, threads=2)
    yield worker
    worker.close()


def test_a_side_waits_and_prepares_once(worker):
    first, again, other = (worker.ask("double", number=number) for number in (3, 3, 5))
    assert [each["found"] for each in (first, again, other)] == [[6, 1, "toy"], [6, 1, "toy"], [10, 2, "toy"]]
    assert all(0 <= each["seconds"] < 5 for each in (first, again, other))
    assert worker.peak_bytes > 10**6


def test_a_side_that_fails_is_named_with_what_it_wrote(worker):
    for _ in range(2):  # also when it has ended before
        with pytest.raises(RuntimeError, match=r"stand_in ended at fail:(.|\n)*ValueError: no such weights"):
            worker.ask("fail")


CASES = [
    Case("5 sentences, greedy", {"keras_attention": [1.0, 2.0], "ctranslate2": [2.0, 3.0]}),
    Case("5 sentences, beam 4", {"keras_attention": [3.0, 4.0], "ctranslate2": [3.0, 12.0]}),
]


def test_speeds_are_shown_and_saved(tmp_path):
    assert time_over(CASES[1], CASES[0]) == {"keras_attention": 2.5, "ctranslate2": 2.75}
    found = {"BLEU": {"keras_attention": 31.4159}}
    speeds = Speeds("toy", {"threads": 2}, CASES, ["keras_attention"], found)
    text = io.StringIO()
    speeds.show(Console(file=text, width=60))
    assert "1.75" in text.getvalue()  # of 2 / 1 and 3 / 2
    assert "BLEU: keras_attention 31.42" in text.getvalue()
    content = json.loads(speeds.save(tmp_path / "new").read_text(encoding="utf-8"))
    assert content["rows"][1]["times_as_fast"]["keras_attention"] == {"keras_attention": 1.0, "ctranslate2": 2.0}
    assert content["rows"][0]["median_seconds"]["ctranslate2"] == 2.5
    assert content["machine"]["packages"]["ctranslate2"]
    assert content["found"] == found


def test_small_things():
    assert share_of_equal([[1, 2], [3], [4]], [[1, 2], [5], [4]]) == 2 / 3
    assert until_end([[7, 8, END, 9, 0], [5, 0, 0], [END]]) == [[7, 8], [5], []]


class FakeSide:
    """Translates by turning lines round; half of its answers are what a tenth of a second gives, half one second."""

    def __init__(self, wrong=()):
        self.wrong, self.asked = wrong, []

    def ask(self, name, **arguments):
        assert name == "translate"
        self.asked.append(arguments)
        lines = lines_of(arguments["file"])[:: arguments.get("every", 1)]
        texts = ["wrong" if place in self.wrong else line[::-1] for place, line in enumerate(lines)]
        found = {"lines": lines, "texts": texts} if "every" in arguments else texts
        seconds = abs(arguments.get("tokens_per_batch", 4096) - 4096) / 1000 + 0.5
        return {"seconds": seconds + abs(arguments.get("batches_at_once", 2) - 2), "found": found}


def test_a_file_is_translated_by_all_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(translating, "KERASHUB_LINES", 2)
    monkeypatch.setattr(Translation, "_longest", lambda self, texts: 7)
    lines = ["one two three four", "five six seven eight", "nine ten eleven twelve", "more of the same words"]
    (tmp_path / "source").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "target").write_text("".join(f"{line[::-1]}\n" for line in lines))
    sides = {"keras_attention": FakeSide(wrong=[2]), "ctranslate2": FakeSide(), "kerashub": FakeSide()}
    text = Translation(tmp_path / "source", tmp_path / "target", tmp_path, beam=4, length_penalty=1.0)
    case, found = text.measure(sides, rounds=3)
    assert case.name == "4 lines, beam 4"
    assert case.seconds == {"keras_attention": [0.5] * 3, "ctranslate2": [0.5] * 3, "kerashub": [1.0] * 3}
    assert found["kerashub's time is scaled"] == {"from lines": 2, "to lines": 4}
    assert found["same translations as ctranslate2"] == {"keras_attention": 0.75, "ctranslate2": 1.0}
    assert found["tokens per batch"] == {"ctranslate2": 4096}
    assert found["batches at once"] == {"ctranslate2": 2}
    assert found["lines a second"]["kerashub"] == 4
    assert found["BLEU"]["ctranslate2"] == pytest.approx(100) == found["BLEU"]["kerashub"]
    assert found["BLEU"]["keras_attention"] < 90
    assert sides["kerashub"].asked[-1] == {"file": str(tmp_path / "source"), "beam": 4, "every": 2, "length": 7}


def test_texts_are_read_as_the_commands_read_them(tmp_path):
    (tmp_path / "source").write_bytes(gzip.compress("\ufeffone\u2028two\r\n\nthree".encode()))
    assert lines_of(plain_copy(tmp_path / "source", tmp_path / "plain")) == ["one\u2028two", "", "three"]


def test_a_program_is_asked_line_by_line():
    code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    times, peak = time_lines([sys.executable, "-c", code], ["one", "two", "three"])
    assert len(times) == 3
    assert all(seconds > 0 for seconds in times)
    assert peak > 10**6
    with pytest.raises(RuntimeError, match="gave no answer to: one"):
        time_lines([sys.executable, "-c", "input()"], ["one"])


def test_a_run_needs_text_of_its_language():
    with pytest.raises(SystemExit, match="--run and --source go together"):
        decoding.main(["--run", "runs/en-de"])


@pytest.mark.parametrize("arguments", [["--at-once", "0"], ["--at-once", "2", "--run", "run", "--source", "text"]])
def test_parts_at_a_time_are_of_random_ids(arguments):
    with pytest.raises(SystemExit, match="--at-once is for random ids, 1 part or more"):
        decoding.main(arguments)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    pytest.importorskip("ctranslate2")
    folder = tmp_path_factory.mktemp("task")
    write_random(folder, decoding.SMALL.sizes, sentences=3, source_length=7)
    return DecodingTask(str(folder), options={"weights": "float32"})


def test_random_weights_never_end_a_sentence(task):
    model = keras.models.load_model(task.path("model.keras"))
    sources = task.sources(3)
    assert sources.shape == (3, 7)
    assert set(sources[:, -1]) == {END}
    logits = keras.ops.convert_to_numpy(model({"source": sources, "target": sources}))
    assert np.all(logits[..., END] == 0)
    assert logits.argmax(-1).min() >= 0
    assert not np.any(logits.argmax(-1) == END)


def test_ctranslate2_gives_the_best_hypothesis_that_ends(task):
    """One token and the end: of the likeliest first tokens the one with the best end, by our model."""
    from benchmarks.peers.decoding_ctranslate2 import CTranslate2

    work = CTranslate2(task).ending(sentences=3, beam=4, length=2)
    found = work.read(work.run())
    model = keras.models.load_model(task.path("model.keras"))
    for source, hypothesis in zip(task.sources(3), found, strict=True):

        def log_probs(target, source=source):
            inputs = {"source": source[None], "target": np.array([target], "int32")}
            return keras.ops.convert_to_numpy(keras.ops.log_softmax(model(inputs)))[0, -1]

        first = log_probs([2])
        first[END] = -np.inf
        likeliest = np.argsort(-first)[:4]
        worth = [first[token] + log_probs([2, token])[END] for token in likeliest]
        assert hypothesis == [likeliest[np.argmax(worth)]]


def test_kerashub_with_our_weights_is_our_model(task):
    from benchmarks.peers.decoding_kerashub import build

    ours = keras.models.load_model(task.path("model.keras"))
    for weight in ours.weights:
        weight.assign(weight + np.random.default_rng(4).normal(0, 0.1, weight.shape))
    backbone = build(ours)
    source, target = np.array([[5, 6, 7, 3], [8, 3, 0, 0]], "int32"), np.array([[2, 9, 4], [2, 11, 12]], "int32")
    inputs = {"encoder_token_ids": source, "encoder_padding_mask": source != 0}
    inputs |= {"decoder_token_ids": target, "decoder_padding_mask": target != 0}
    hidden = backbone({name: np.asarray(value, "int32") for name, value in inputs.items()})["decoder_sequence_output"]
    logits = backbone.token_embedding(hidden, reverse=True)
    expected = ours({"source": source, "target": target})
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (logits, expected)), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "name", "sides"),
    [
        ([], "decoding-small", list(decoding.SIDES)),
        (["--at-once", "2"], "decoding-small-at-once", ["keras_attention", "ctranslate2"]),
    ],
)
def test_every_side_decodes_the_same(arguments, name, sides, tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    decoding.main(["--small", "--rounds", "1", "--results", str(tmp_path), "--sides", *sides, *arguments])
    content = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in content["rows"]] == [
        "5 sentences, greedy", "5 sentences, beam 4", "1 sentence, greedy", "1 sentence, beam 4",
    ]  # fmt: skip
    assert all(set(row["seconds"]) == set(sides) for row in content["rows"])
    same = {name: shares for name, shares in content["found"].items() if name.startswith("same hypotheses")}
    assert len(same) == 4
    assert all(share == 1 for shares in same.values() for share in shares.values())
    assert set(content["found"]["peak GB of the process"]) == set(sides)
    assert Path(content["benchmark"]).name in capsys.readouterr().out
