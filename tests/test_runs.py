"""What shows a run: its log of starts and ends, the table of runs, and pictures."""

import fcntl
import json
import os
import sys
import zipfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from keras_attention.cli import main
from keras_attention.demo import make_pairs
from keras_attention.extras import MissingExtraError
from keras_attention.models import Transformer
from keras_attention.pipeline import RunConfig, RunFolder, list_runs, lock, plot, plot_runs
from keras_attention.pipeline.lock import is_training, training_lock
from keras_attention.pipeline.recorded import recorded
from keras_attention.pipeline.run_log import add_event, read_events
from keras_attention.text import SubwordTokenizer

pytestmark = pytest.mark.tensorflow

HISTORY = """epoch,accuracy,learning_rate,loss,perplexity,step,tokens_per_second,val_bleu,val_loss,val_perplexity
0,0.2,0.003,4.0,54.0,100,7000.0,11.5,3.0,20.1
1,0.3,0.002,3.0,20.0,200,8000.0,29.5,2.0,7.4
2,0.4,0.001,2.0,7.0,300,9000.0,23.5,2.1,8.2
"""


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ---- the start and the end of a training


def train_in(events, inside=lambda: None, reached=7, minutes=None):
    """Records a training from step 2 on."""
    model = keras.Sequential()
    model.optimizer = keras.optimizers.SGD()
    with recorded(events, model, 2, {"max_steps": 7, "total_steps": None, "epochs": 50}, minutes):
        model.optimizer.iterations.assign(reached)
        inside()


@pytest.mark.parametrize(
    ("error", "how", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (SystemExit(143), "interrupted", "SIGTERM"),
        (FloatingPointError("Training diverged\nat step 7"), "diverged", "Training diverged at step 7"),
        (OSError(28, "No space left on device", "x"), "failed", "[Errno 28] No space left on device: 'x'"),
        (MemoryError(), "failed", "MemoryError"),
    ],
)
def test_an_error_that_ends_a_training_is_recorded(tmp_path, error, how, reason):
    def fail():
        raise error

    events = tmp_path / "events.jsonl"
    with pytest.raises(type(error)):
        train_in(events, fail)
    started, ended = read_events(events)
    assert (started.name, started.step, started.details) == ("started", 2, {"limits": {"max_steps": 7, "epochs": 50}})
    assert (ended.name, ended.step, ended.details) == ("ended", 7, {"how": how, "reason": reason})


@pytest.mark.parametrize(
    ("reached", "minutes", "stopped", "reason"),
    [(7, 0.5, False, "max_steps"), (6, 0.5, False, "max_minutes"), (6, 0.5, True, "patience")],
)
def test_the_limit_that_ends_a_training_is_recorded(tmp_path, reached, minutes, stopped, reason):
    events = tmp_path / "events.jsonl"
    add_event(events, "stopped", 1, reason="that of an earlier training")
    train_in(events, lambda: stopped and add_event(events, "stopped", 6, reason="patience"), reached, minutes)
    assert read_events(events)[1].details == {"limits": {"max_steps": 7, "epochs": 50, "max_minutes": 0.5}}
    assert read_events(events)[-1].details == {"how": "finished", "reason": reason}


def test_a_full_disk_keeps_its_own_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "the log")

    def fail():
        monkeypatch.setattr("keras_attention.pipeline.recorded.add_event", full)
        raise OSError(28, "the checkpoint")

    with pytest.raises(OSError, match="the checkpoint"):
        train_in(tmp_path / "events.jsonl", fail)


# ---- the table


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for side, text in zip(("en", "de"), zip(*make_pairs("de", 100), strict=True), strict=True):
        (folder / f"text.{side}").write_text("\n".join(text) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(texts):
    return SubwordTokenizer.train([texts / "text.en", texts / "text.de"], vocabulary_size=150)


@pytest.fixture
def make_run(tmp_path, texts, tokenizer):
    """Writes the files of a run, with checkpoints that hold no weights."""

    def make(name, events=(), checkpoints=("last", "final"), history=HISTORY):
        run = RunFolder(tmp_path / "runs" / name)
        run.checkpoints.mkdir(parents=True)
        source, target = texts / "text.en", texts / "text.de"
        files = {"source": source, "target": target, "valid_source": source, "valid_target": target}
        model = {"num_layers": 1, "hidden_dim": 24, "intermediate_dim": 17, "num_heads": 3}
        RunConfig.from_preset("tiny", **files, model=model, vocabulary_size=150).save(run.config_file)
        tokenizer.save(run.tokenizer_file)
        run.history_file.write_text(history)
        for checkpoint in checkpoints:
            zipfile.ZipFile(run.model_file(checkpoint), "w").close()
        for event, details in events:
            add_event(run.events_file, event, 300, **details)
        return run

    return make


def ended(how, reason):
    return [("started", {"limits": {}}), ("ended", {"how": how, "reason": reason})]


STATES = [
    ("finished", "max_steps", {"events": ended("finished", "max_steps")}),
    ("interrupted", "Ctrl-C", {"events": ended("interrupted", "Ctrl-C"), "checkpoints": ["last"]}),
    ("interrupted", "the process was killed", {"events": [*ended("finished", "x"), ("started", {})]}),
    ("diverged", "nan", {"events": ended("diverged", "nan"), "checkpoints": []}),
    ("failed", "[Errno 28]", {"events": [*ended("failed", "[Errno 28]"), ("changed", {})]}),
    ("not started", None, {"checkpoints": [], "history": ""}),
    ("finished", None, {}),  # by an earlier release, as the next
    ("interrupted", None, {"checkpoints": ["last", "best"]}),
]


@pytest.mark.parametrize(("state", "reason", "files"), STATES)
def test_the_state_of_a_run(make_run, state, reason, files):
    (summary,) = list_runs(make_run("a", **files).path)
    assert (summary.state, summary.ended) == (state, reason)
    numbers = (summary.step, summary.bleu, summary.perplexity, summary.tokens_per_second)
    assert numbers == ((None,) * 4 if state == "not started" else (300, 29.5, 7.4, 9000.0))


def test_a_run_that_trains_now(make_run):
    run = make_run("a", ended("finished", "max_steps"))
    assert not is_training(run.path)
    with training_lock(run.path):
        assert is_training(run.path)
        (summary,) = list_runs(run.path)
    assert (summary.state, summary.ended) == ("training", None)


def test_the_table_does_not_keep_a_training_from_starting(tmp_path, monkeypatch):
    """The shared lock that it holds for a moment is waited for."""
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.close(held))
    with training_lock(tmp_path):
        assert is_training(tmp_path)


def test_the_step_between_two_evaluations_is_that_of_the_newest_state(make_run):
    run = make_run("a")
    for step in (250, 350):
        (run.checkpoints / f"state-{step:08d}.npz").write_bytes(b"")
    assert list_runs(run.path)[0].step == 350


def test_a_history_of_an_earlier_release_or_a_row_in_the_making_is_no_damage(make_run):
    old = make_run("old", history="epoch,val_bleu\n0,11.5\n")
    written = make_run("new", history=f"{HISTORY}3,0.5,0.00")
    begun = make_run("begun", history=HISTORY.partition("\n")[0])
    assert [each.state for each in list_runs(old.path.parent)] == ["finished"] * 3
    assert [list_runs(run.path)[0].step for run in (old, written, begun)] == [None, 300, None]


def remove(name):
    return lambda run: (run.path / name).unlink()


def write(name, content):
    return lambda run: (run.path / name).write_text(content)


DAMAGES = [
    (remove("config.yaml"), "config.yaml is missing"),
    (write("config.yaml", "preset: [tiny"), "config.yaml is not the config of a training run: not YAML"),
    (remove("tokenizer.model"), "tokenizer.model is missing, and the weights of the run are useless"),
    (write("fingerprints.json", "{"), "fingerprints.json is damaged"),
    (remove("checkpoints/last.keras"), "Training resumes from checkpoints/last.keras, which is missing"),
    (write("checkpoints/best.keras", "PK"), "checkpoints/best.keras is incomplete"),
    (write("history.csv", HISTORY.replace("7.4", "seven")), "history.csv cannot be used: could not convert"),
    (write("history.csv", HISTORY.replace(",20.0,200", ",200")), "history.csv cannot be used: line 3 does not have"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_run_is_listed_as_such(make_run, damage, message):
    run, other = make_run("a"), make_run("b")
    damage(run)
    damaged, whole = list_runs(run.path.parent)
    assert (damaged.state, whole.state) == ("damaged", "finished")
    assert damaged.ended.startswith(message)
    assert whole.path == str(other.path)


def test_the_command_prints_a_table_or_json(make_run, tmp_path, capfd):
    first = make_run("a/en-de", ended("finished", "max_steps"))
    make_run("a/[b]", checkpoints=[], history="")
    (first.path / "data").mkdir()
    (tmp_path / "runs" / "notes").mkdir()
    result = command("runs", tmp_path / "runs")
    assert (result.exit_code, result.stderr) == (0, "")
    heading, empty, full = [line.split("  ") for line in result.stdout.splitlines()]
    assert [word.strip() for word in heading if word] == [
        "run", "state", "step", "BLEU", "perplexity", "tokens/s", "changed", "ended",
    ]  # fmt: skip
    assert [word.strip() for word in empty if word.strip()][:2] == ["a/[b]", "not started"]
    words = [word.strip() for word in full if word.strip()]
    assert words[:6] == ["a/en-de", "finished", "300", "29.5", "7.40", "9,000"] and words[7] == "max_steps"
    assert command("runs", tmp_path / "runs", "--json", "-").stdout == ""
    runs = json.loads(capfd.readouterr().out)["runs"]  # written to the descriptor
    assert [run["state"] for run in runs] == ["not started", "finished"]
    assert runs[1] == list_runs(first.path)[0].to_dict()
    assert command("runs", tmp_path / "runs", "--json", tmp_path / "r.json").stdout.startswith("run ")
    assert json.loads((tmp_path / "r.json").read_text())["runs"] == runs


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "is not a folder: name the folder of your runs"), ("", "holds no run, nor does a folder below it")],
)
def test_a_folder_without_runs_is_one_line(tmp_path, name, message):
    result = command("runs", tmp_path / name)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr


# ---- pictures


@pytest.fixture
def trained(make_run):
    """A run with a model, though of random weights."""
    run = make_run("en-de", checkpoints=["last"])
    keras.utils.set_random_seed(3)
    Transformer(run.config.transformer()).save(run.model_file("final"))
    return run


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_the_curves_are_those_of_the_history(make_run):
    run = make_run("a")
    figure = plot._curves({"a": plot.read_columns(run.history_file)})
    perplexity, bleu, rate, speed = figure.axes
    curves = [[line.get_xydata().tolist() for line in axes.lines] for axes in (perplexity, bleu, rate, speed)]
    assert curves == [
        [[[100, 20.1], [200, 7.4], [300, 8.2]], [[100, 54], [200, 20], [300, 7]]],
        [[[100, 11.5], [200, 29.5], [300, 23.5]]],
        [[[100, 0.003], [200, 0.002], [300, 0.001]]],
        [[[100, 7000], [200, 8000], [300, 9000]]],
    ]
    assert perplexity.get_yscale() == "log"
    figure.canvas.draw()
    assert "20" in [label.get_text() for label in perplexity.get_yticklabels()]


def test_a_history_without_a_column_says_so(make_run):
    run = make_run("a", history="step,val_perplexity\n100,7.5\n200,7.4\n")
    perplexity, bleu, *_ = plot._curves({"a": plot.read_columns(run.history_file)}).axes
    assert perplexity.get_yscale() == "linear" and not perplexity.texts
    assert [text.get_text() for text in bleu.texts] == ["not in the history"]


def test_repeated_evaluations_are_drawn_once(make_run):
    run = make_run("a", history="step,val_bleu\n100,1\n200,2\n300,3\n200,4\n300,\n")
    history = plot.read_columns(run.history_file)
    np.testing.assert_array_equal(history["step"], [100, 200, 300])
    np.testing.assert_array_equal(history["val_bleu"], [1, 4, np.nan])


def test_the_pictures_of_a_run(trained, tmp_path):
    pictures = plot_runs([trained.path])
    names = ["curves.png", "attention-1.png", "attention-2.png", "attention-3.png"]
    assert pictures == [trained.path / "plots" / name for name in names]
    assert all(map(is_png, pictures))
    result = command("plot", trained.path, "-o", tmp_path / "p", "--sentence", "$5 and $6 猫")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [str(tmp_path / "p" / name) for name in names[:2]]
    assert list_runs(trained.path)[0].state == "finished"


def test_several_runs_are_in_one_picture(make_run, tmp_path):
    first, second = make_run("$a$"), make_run("b")
    figure = plot._curves({str(run.path): plot.read_columns(run.history_file) for run in (first, second)})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(first.path), str(second.path)]
    result = command("plot", first.path, second.path, "--output", tmp_path / "p")
    assert result.stdout.splitlines() == [str(tmp_path / "p" / "curves.png")]
    assert is_png(tmp_path / "p" / "curves.png")


def test_a_run_without_a_checkpoint_or_its_validation_text_has_curves_only(make_run, texts, tmp_path):
    run = make_run("a", checkpoints=[])
    result = command("plot", run.path)
    assert result.stdout.splitlines() == [str(run.path / "plots" / "curves.png")]
    assert result.stderr.startswith(f"Note: no attention is drawn: {run.path} has no checkpoint yet")
    moved = make_run("b")
    moved.config.replace(valid_source=str(tmp_path / "moved.en")).save(moved.config_file)
    with pytest.warns(UserWarning, match=r"moved\.en does not exist; pass sentences"):
        assert len(plot_runs([moved.path])) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.yaml"), "config.yaml is missing, though the run has checkpoints"),
        (remove("history.csv"), "history.csv does not exist: no evaluation has been made"),
        (write("history.csv", HISTORY.partition("\n")[0]), "history.csv holds no evaluation"),
        (write("history.csv", ""), "history.csv cannot be used: it has no column step"),
        (write("history.csv", HISTORY.replace("7.4", "seven")), "history.csv cannot be used: could not convert"),
        (write("history.csv", "epoch,loss\n0,1"), "it has no column step, as in a run of an earlier release"),
    ],
)
def test_a_run_that_cannot_be_drawn_is_one_line_and_leaves_no_folder(make_run, damage, message):
    run = make_run("a")
    damage(run)
    result = command("plot", run.path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert not (run.path / "plots").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["RUN", "RUN"], 2, "Several runs need a folder for their picture: pass --output."),
        (["RUN", "RUN", "-o", "x", "--sentence", "a"], 2, "--sentence is for one run. Received: nowhere, nowhere"),
        (["RUN"], 1, "nowhere is not the folder of a training run"),
        (["RUN", "RUN", "-o", "x"], 1, "nowhere is not the folder of a training run"),
    ],
)
def test_wrong_arguments_of_plot(arguments, code, message):
    result = command("plot", *["nowhere" if each == "RUN" else each for each in arguments])
    assert result.exit_code == code
    assert message in result.stderr


def test_several_runs_need_a_folder():
    with pytest.raises(
        ValueError, match=r"several runs and an output folder. Received: runs=\['a', 'b'\], output=None"
    ):
        plot_runs(["a", "b"])


class WithoutMatplotlib:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name=name)


def test_pictures_need_matplotlib(make_run, monkeypatch):
    run = make_run("a")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutMatplotlib, *sys.meta_path])
    result = command("plot", run.path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Drawing a run needs matplotlib, which is not installed: pip install")
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[cli\]'"):
        plot_runs([run.path])
    assert not (run.path / "plots").exists()
