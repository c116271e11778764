"""Changes of a run, and what can go wrong around it: what the user sees, and that nothing is lost.

Other faults: a damaged state in test_resumable_run.py; damaged checkpoints, configs, tokenizers and texts, two runs in
one folder, folders that cannot be written in test_pipeline.py.
"""

import csv
import errno
import importlib
import itertools
import os
import re
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_attention import files
from keras_attention.cli import main
from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunConfig, RunFolder, run_card, train
from keras_attention.pipeline.changes import CHANGEABLE, check_settings
from keras_attention.pipeline.run_log import read_events
from keras_attention.training import state_files

# TensorFlow warns that functions of tf.data keep their graphs.
eagerly = pytest.mark.filterwarnings("ignore:Even though the .tf.config.experimental_run_functions_eagerly:UserWarning")
pytestmark = [pytest.mark.tensorflow, eagerly]
slow = pytest.mark.slow

JOBS = importlib.import_module("keras_attention.pipeline.train")  # the attribute of this name is the function
STEPS = 3  # an evaluation after two, and one at the end


class Untranslated:
    def translate(self, texts):
        return texts


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Tracing graphs would take most of the time of these tests."""
    tf.config.run_functions_eagerly(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_attention.pipeline.validation.Translator", lambda *_, **__: Untranslated())
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def without_final(monkeypatch):
    """The end of a training without the average and the final model."""
    monkeypatch.setattr(JOBS, "write_final_model", lambda model, *_: model)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    pairs = make_pairs("de", 308)
    names = {}
    for split, part in (("", pairs[:300]), ("valid_", pairs[300:])):
        for side, name in enumerate(("source", "target")):
            path = folder / f"{split}{name}.txt"
            path.write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
            names[f"{split}{name}"] = str(path)
    return RunConfig.from_preset(
        "tiny",
        **names,
        vocabulary_size=200,
        tokens_per_batch=500,
        score_sentences=5,
        evaluate_every=2,
        checkpoint_minutes=1e-9,  # a state after each batch
        model={"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "intermediate_dim": 8, "dropout": 0.1},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config, quick):
    """A run of three steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder, config, max_steps=STEPS)
    return RunFolder(folder)


@pytest.fixture
def copied(whole, tmp_path):
    return RunFolder(shutil.copytree(whole.path, tmp_path / "copied"))


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def history_of(run):
    with open(run.history_file, newline="") as file:
        return [{**row, "tokens_per_second": None} for row in csv.DictReader(file)]


def state_of(run, name="last"):
    model = keras.models.load_model(run.model_file(name))
    return [*model.get_weights(), *(keras.ops.convert_to_numpy(each) for each in model.optimizer.variables)]


def assert_same(run, whole):
    """The same weights, optimizer and history, and no file that is left over."""
    for mine, theirs in zip(state_of(run), state_of(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert history_of(run) == history_of(whole)
    assert not list(run.path.rglob(".writing-*"))
    names, others = ({path.name for path in each.checkpoints.iterdir()} for each in (run, whole))
    assert names | {"final.keras", "average.keras"} == others


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def events_of(run, name):
    return [event for event in read_events(run.events_file) if event.name == name]


# Changes

OTHER_VALUES = {
    **{name: f"other/{name}" for name in ("source", "target", "valid_source", "valid_target", "init_from")},
    **{"preset": "small", "vocabulary_size": 150, "split_digits": True, "dtype": "mixed_bfloat16", "optimizer": "muon"},
    **{"tokens_per_batch": 400, "max_length": 99, "packed_rows": 3, "gradient_accumulation": 2, "warmup_steps": 7},
    **{"row_length": 30, "max_shapes": 5, "buffer_size": 7000},
    **{"learning_rate_scale": 0.5, "learning_rate_decay": 0.1, "total_steps": 99, "label_smoothing": 0.2, "seed": 2},
    **{"subword_dropout": 0.1, "source_word_dropout": 0.1, "consistency": "rdrop", "consistency_weight": 2, "ema": 0.9},
    **{"patience": 3, "evaluate_every": 5, "checkpoint_minutes": 9, "keep_checkpoints": 3, "score_sentences": 3},
    "weight_decay": 0.3,
    "model": {"num_layers": 2},
}


@pytest.mark.parametrize("name", RunConfig.names())
def test_each_setting_may_change_or_is_refused_with_both_values(whole, name):
    config, value = whole.config, OTHER_VALUES[name]
    needed = {
        "consistency_weight": {"consistency": "rdrop"},
        "row_length": {"packed_rows": 3},
    }
    changes = {name: value, **needed.get(name, {})}
    new = config.replace(**changes)
    if name in CHANGEABLE:
        assert check_settings(whole, new) == new
        return
    with pytest.raises(ValueError, match="resume it without these settings, or train in another folder") as error:
        check_settings(whole, new)
    assert f"there with `--from {whole.path}` to begin with its weights" in str(error.value)
    old = getattr(config, name)
    assert f"{name}: {old!r} in the run, " in str(error.value)
    assert name == "model" or f" in the run, {value!r} in the new config" in str(error.value)


def test_changes_are_applied_printed_and_recorded(copied, without_final):
    """Also the steps between evaluations, which are at multiples of the new number from then on."""
    settings = {"evaluate_every": 4, "keep_checkpoints": 1, "learning_rate_scale": 0.5, "patience": 9}
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done = command("train", copied.path, *changes, "--max-steps", 9)
    assert done.exit_code == 0, done.output
    (event,) = events_of(copied, "changed")
    assert event.step == STEPS
    old = {"evaluate_every": 2, "keep_checkpoints": 5, "learning_rate_scale": 0.42, "patience": None}
    assert event.details["settings"] == {name: [old[name], settings[name]] for name in settings}
    for name, value in settings.items():
        assert f"{name} from {old[name]!r} to {value!r}" in done.output
        assert getattr(copied.config, name) == value
    assert [(row["epoch"], row["step"]) for row in history_of(copied)] == [
        ("0", "2"), ("1", "3"), ("2", "4"), ("3", "8"), ("4", "9")
    ]  # fmt: skip
    assert [path.name for path in copied.weights] == ["step-00000009.weights.h5"]
    train(copied.path, max_steps=9)
    assert len(events_of(copied, "changed")) == 1


def test_a_new_run_begins_with_the_weights_of_another(whole, config, tmp_path, without_final, monkeypatch):
    begun = []
    monkeypatch.setattr(JOBS, "make_trainer", once(lambda: None, JOBS.make_trainer, begun))
    new = RunFolder(tmp_path / "new")
    options = ["--from", whole.path, "--source", config.valid_source, "--target", config.valid_target]
    changes = ["--set", "model.dropout=0.3", "--set", "seed=7", "--dtype", "mixed_bfloat16"]
    done = command("train", new.path, *options, *changes, "--max-steps", 1)
    assert done.exit_code == 0, done.output
    for mine, theirs in zip(begun, keras.models.load_model(whole.model_file("final")).get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert new.tokenizer.model == whole.tokenizer.model
    assert int(keras.models.load_model(new.model_file("last")).optimizer.iterations) == 1
    assert (new.config.model["dropout"], new.config.seed, new.config.source) == (0.3, 7, config.valid_source)
    assert (new.config.valid_source, new.config.evaluate_every) == (config.valid_source, 1)
    (event,) = events_of(new, "initialized")
    assert event.details["run"] == str(whole.path)
    assert event.details["checkpoint"] == "final"
    assert run_card(new.path)["init_from"] == {**event.details}
    assert "init_from" not in run_card(whole.path)

    again = command("train", new.path, *options, "--max-steps", 1)
    assert again.exit_code == 0, again.output
    other = command("train", whole.path, "--from", new.path, "--max-steps", 9)
    assert f"Received: init_from: None in the run, '{new.path}' in the new config" in other.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--set", "model.num_layers=2"], r"another model: .* Received: num_layers: 1 in .*, 2 in the new config$"),
        (["--vocabulary-size", 150], r"Received: vocabulary_size: 200 in .*whole, 150 in the new config$"),
        (["--from", "missing"], r"missing is not the folder of a training run"),
        (["--from", "NEW"], r"`init_from` must be another run. Received: init_from='.*/new' for .*/new$"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(whole, tmp_path, changes, message):
    new = tmp_path / "new"
    options = ["--from", whole.path, *changes]
    if "--from" in changes:
        new.mkdir()
        shutil.copy(whole.config_file, new)
        options = [new if each == "NEW" else each for each in changes]
    before = contents(tmp_path)
    done = command("train", new, *options, "--max-steps", 1)
    assert done.exit_code == 1
    assert re.search(message, done.output.strip()), done.output
    assert contents(tmp_path) == before


def test_training_ends_early_when_the_validation_loss_no_longer_falls(copied, monkeypatch, capsys):
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(
        JOBS.Transformer, "evaluate", lambda *_, **__: {"loss": next(losses), "perplexity": 2.0, "accuracy": 0.5}
    )
    monkeypatch.setattr(JOBS, "write_final_model", lambda model, *_: model)
    train(copied.path, copied.config.replace(patience=3), max_steps=5)  # the best, then the first that is worse
    assert "stopped early" not in capsys.readouterr().out
    train(copied.path, max_steps=99)
    assert history_of(copied)[-1]["step"] == "8"
    assert (
        "stopped early: the validation loss has not improved for 3 evaluations (`patience`)" in capsys.readouterr().out
    )
    (event,) = events_of(copied, "stopped")
    assert (event.step, event.details) == (8, {"reason": "patience"})
    train(copied.path, max_steps=99)
    assert "nothing to train: the validation loss has not improved for 3 evaluations" in capsys.readouterr().out
    train(copied.path, copied.config.replace(patience=4), max_steps=99)
    assert history_of(copied)[-1]["step"] == "10"


# Numbers that go wrong


@pytest.fixture
def broken_batches(monkeypatch):
    """Training batches, by number, whose loss is NaN; a list to fill."""
    numbers, count = [], itertools.count()
    step = JOBS_TRAINER.compute_loss

    def compute_loss(self, *args, training=True, **kwargs):
        loss = step(self, *args, training=training, **kwargs)
        return loss * (float("nan") if training and next(count) in numbers else 1.0)

    monkeypatch.setattr(JOBS_TRAINER, "compute_loss", compute_loss)
    return numbers


JOBS_TRAINER = importlib.import_module("keras_attention.training.chunked_trainer").ChunkedTrainer


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, id="Adam"), pytest.param({"packed_rows": 5, "max_length": 40, "optimizer": "muon"}, marks=slow)],
)
def test_a_broken_batch_is_skipped_saved_and_reported(tmp_path, config, broken_batches, without_final, capsys, changes):
    broken_batches += [1, 3]
    run = RunFolder(tmp_path / "run")
    train(run.path, config.replace(**changes), max_steps=STEPS)
    printed = capsys.readouterr().out
    files = sorted((run.path / "skipped").iterdir())
    assert [path.name for path in files] == ["batch-00000001.npz", "batch-00000003.npz"]
    assert (
        f"The loss is nan after step 1, so the batch is skipped, and the weights are as before it. It is in {files[0]}."
        in printed
    )
    assert "skipped batches, whose loss or gradients were not finite: 2" in printed
    assert [(event.step, event.details) for event in events_of(run, "skipped")] == [
        (step, {"batch": str(path)}) for step, path in zip((1, 2), files, strict=True)
    ]
    rows = history_of(run)
    assert [row["step"] for row in rows] == ["1", "2", "3"], "evaluations are after every two batches"
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("loss", "perplexity", "val_loss"))
    data = JOBS.RunData.read(run.config, run.tokenizer)[1]
    expected = list(itertools.islice(data.batches.dataset().as_numpy_iterator(), 4))[3]
    with np.load(files[1]) as batch:
        for name, value in {**expected[0], "labels": expected[1]}.items():
            np.testing.assert_array_equal(batch[name], value)
        assert batch["source_text"].tolist() == data.tokenizer.decode(expected[0]["source"].tolist())
        assert any(len(text) > 5 for text in batch["target_text"])


def test_a_run_that_breaks_keeps_its_best_checkpoint(copied, whole, broken_batches):
    broken_batches += range(99)
    before = contents(copied.checkpoints)
    done = command("train", copied.path, "--max-steps", 9)
    assert done.exit_code == 1
    assert "resume with a lower `learning_rate_scale`" in done.output
    assert "diverged at step 3. 10 batches in a row had a loss or gradients that are not finite. One of" in done.output
    assert str(copied.path / "skipped" / "batch-00000003.npz") in done.output
    after = contents(copied.checkpoints)
    assert all(
        after[copied.checkpoints / name] == before[copied.checkpoints / name] for name in ("best.keras", "best.txt")
    )
    weights = [keras.models.load_model(run.model_file("last")).get_weights() for run in (copied, whole)]
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@slow
def test_float16_scales_its_loss_and_resumes(tmp_path, config, without_final):
    run = RunFolder(tmp_path / "run")
    changes = {"dtype": "mixed_float16", "checkpoint_minutes": 5.0, "evaluate_every": 10}
    train(run.path, config.replace(**changes), max_steps=8)
    train(run.path, max_steps=20)
    model = keras.models.load_model(run.model_file("last"))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert (int(model.optimizer.iterations), model.compute_dtype) == (20, "float16")
    assert int(model.optimizer.step_counter) == 20, "it resumes with the state of the scale"
    losses = [float(row["val_loss"]) for row in history_of(run)]
    assert losses[-1] < losses[0]
    assert run.translator(beam_size=1).model.compute_dtype == "float16"


# Interruptions


@pytest.fixture
def terminated():
    """SIGTERM ends the process, as far as the code under test can tell."""

    def end(number, frame):
        raise SystemExit(128 + number)

    earlier = signal.signal(signal.SIGTERM, end)
    yield
    assert signal.getsignal(signal.SIGTERM) is end, "the earlier handler is set again"
    signal.signal(signal.SIGTERM, earlier)


def once(action, then, weights=None):
    """A function that runs an action before its first call."""
    actions = iter([action])

    def call(*args, **kwargs):
        if weights is not None:
            weights.extend(args[0].get_weights())
        next(actions, lambda: None)()
        return then(*args, **kwargs)

    return call


PHASES = {
    "reading the texts": (JOBS.RunData, "read"),
    "before the first step": (JOBS, "make_trainer"),
    "training": (JOBS.StopAfter, "on_train_batch_end"),
    "evaluating": (JOBS.EpochMetrics, "on_epoch_end"),
    "writing a checkpoint": (JOBS._ModelCheckpoints, "on_epoch_end"),
    "writing a state": (state_files.np, "savez"),
    "averaging": (JOBS, "write_final_model"),
}


@slow
@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_in_each_phase_loses_nothing(tmp_path, config, whole, terminated, monkeypatch, capsys, phase):
    run = RunFolder(tmp_path / "run")
    owner, name = PHASES[phase]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once(lambda: signal.raise_signal(signal.SIGTERM), getattr(owner, name)))
        with pytest.raises(SystemExit) as error:
            train(run.path, config, max_steps=STEPS)
    assert error.value.code == 128 + signal.SIGTERM
    in_fit = phase in ("training", "evaluating", "writing a checkpoint", "writing a state")
    assert ("To resume, run the same again." in capsys.readouterr().out) == in_fit
    assert run.exists == (phase != "reading the texts")
    train(run.path, config, max_steps=STEPS)
    assert_same(run, whole)


@pytest.mark.parametrize(
    "name",
    ["last.keras", *(pytest.param(name, marks=slow) for name in ("state-00000003.npz", "config.yaml", "history.csv"))],
)
def test_a_full_disk_names_the_file_and_leaves_the_others(copied, whole, without_final, monkeypatch, name):
    (named,) = [path for path in copied.path.rglob("*") if path.name == name]
    before = contents(copied.path)
    to_disk, changed = files._to_disk, copied.config.replace(keep_checkpoints=4)

    def full(path, *_, **__):
        if getattr(path, "name", name).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        to_disk(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_to_disk", full)
        if name == "history.csv":
            patch.setattr(JOBS.HistoryWriter, "on_epoch_end", full)
        elif name.startswith("state"):
            name = "state-00000004.npz"
            named = named.with_name(name)
        with pytest.raises(OSError, match="No space left on device") as error:
            train(copied.path, changed, max_steps=STEPS + 1)
    assert error.value.filename == str(copied.path if name == "history.csv" else named)
    after = contents(copied.path)
    if not name.startswith("state"):  # which is written after the checkpoints
        for checkpoint in ("last", "best"):
            assert after[copied.model_file(checkpoint)] == before[copied.model_file(checkpoint)]
    assert state_files.read_newest_state(copied.checkpoints).manifest["step"] == STEPS
    train(copied.path, max_steps=STEPS + 1)
    assert [row["step"] for row in history_of(copied)] == ["2", "3", "4"]


@pytest.mark.parametrize("name", ["source", "valid_target"])
def test_a_text_that_has_vanished_is_named_and_found_elsewhere(tmp_path, config, copied, name):
    text = tmp_path / "text"
    shutil.copy(getattr(config, name), text)
    copied.config.replace(**{name: str(text)}).save(copied.config_file)
    text.rename(tmp_path / "elsewhere")
    before = contents(copied.path)
    done = command("train", copied.path, "--max-steps", STEPS + 1)
    assert (done.exit_code, done.output) == (1, f"Error: {text}: No such file or directory; check its name\n")
    assert contents(copied.path) == before
    found = copied.config.replace(**{name: str(tmp_path / "elsewhere")})
    assert JOBS.check_changes(copied, found) == found
    (tmp_path / "elsewhere").write_text("another text\n")
    with pytest.raises(ValueError, match=rf"The text has changed since .* Received: {name}="):
        JOBS.check_changes(copied, found)


def test_a_moved_folder_resumes_while_the_clock_goes_back(tmp_path, config, whole, terminated, monkeypatch):
    times = itertools.count(2e9, -3600)
    monkeypatch.setattr("time.time", lambda: float(next(times)))
    owner, name = PHASES["training"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once(lambda: signal.raise_signal(signal.SIGTERM), getattr(owner, name)))
        with pytest.raises(SystemExit):
            train(tmp_path / "run", config, max_steps=STEPS)
    (tmp_path / "other").mkdir()
    moved = RunFolder(shutil.move(tmp_path / "run", tmp_path / "other" / "moved"))
    train(moved.path, max_steps=STEPS)
    assert_same(moved, whole)


@slow
def test_a_run_that_an_earlier_version_continued_resumes_from_its_checkpoint(copied, whole, without_final, capsys):
    """That version has left the state as it was."""
    train(copied.path, max_steps=6)
    continued = copied.model_file("last").read_bytes()
    for path in state_files.state_files(copied.checkpoints):
        path.unlink()
    (*_, newest) = state_files.state_files(whole.checkpoints)
    shutil.copy(newest, copied.checkpoints)
    capsys.readouterr()
    train(copied.path, max_steps=6)
    printed = capsys.readouterr().out
    assert "last.keras is of step 6, but the newest state of step 3, as after a training with an earlier" in printed
    assert "nothing to train: the run is at step 6" in printed
    assert copied.model_file("last").read_bytes() == continued
    train(copied.path, max_steps=7)
    assert [path.name for path in state_files.state_files(copied.checkpoints)][-1] == "state-00000007.npz"
    assert history_of(copied)[-1]["step"] == "7"
