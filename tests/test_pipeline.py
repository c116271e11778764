"""The jobs of the command line: train a run from text files, resume, average, translate, evaluate, export."""

import csv
import dataclasses
import errno
import gzip
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import sacrebleu
import tensorflow as tf
from click.testing import CliRunner
from events import everything_of, log_every_step, scalars_of
from short_trainings import Upper, leave_out_final, leave_out_translation, run_eagerly

from keras_attention import pipeline
from keras_attention.cli import main
from keras_attention.cli.group import Command
from keras_attention.demo import make_pairs, run_demo
from keras_attention.demo.heat_map import draw_attention
from keras_attention.pipeline import (
    RunConfig,
    RunFolder,
    average,
    bleu_tokenizer,
    compare_weights,
    evaluate_translations,
    list_runs,
    train,
)
from keras_attention.pipeline import (
    evaluate as evaluation,
)
from keras_attention.pipeline.lock import training_lock
from keras_attention.pipeline.run_data import RunData
from keras_attention.text import UNK_ID, PackedBatches, ParallelCorpus, SubwordTokenizer, TokenBatches
from keras_attention.training import InverseSqrtSchedule, MaskedCrossEntropy, Muon, paper_optimizer
from keras_attention.training.presets import OPTIMIZERS

pytestmark = pytest.mark.tensorflow

JOBS = importlib.import_module("keras_attention.pipeline.train")  # the attribute of this name is the function

SETTINGS = {
    "vocabulary_size": 200,
    "dtype": "float32",
    "subword_dropout": 0.0,
    "evaluate_every": 3,
    "keep_checkpoints": 2,
    "score_sentences": 5,
}


def write_texts(folder):
    pairs = make_pairs("de", 370)
    names = {}
    for split, part in (("train", pairs[:300]), ("valid", pairs[300:])):
        for side, language in enumerate(("en", "de")):
            path = folder / f"{split}.{language}"
            path.write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
            names[f"{split}.{language}"] = str(path)
    return names


def command(*arguments, given=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=given)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def config(texts):
    files = {
        "source": texts["train.en"],
        "target": texts["train.de"],
        "valid_source": texts["valid.en"],
        "valid_target": texts["valid.de"],
    }
    return RunConfig.from_preset("tiny", **files, **SETTINGS, model={"num_layers": 1, "dropout": 0.1})


@pytest.fixture(scope="module")
def run(tmp_path_factory, config):
    """A run of seven steps: two full rounds and one step."""
    folder = tmp_path_factory.mktemp("runs") / "en-de"
    train(folder, config, max_steps=7)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The result of the command that exports that run, and the folder of the export."""
    folder = tmp_path_factory.mktemp("saved_models") / "en-de"
    return command("export", run.path, folder), folder


def history_of(run):
    return list(csv.DictReader(run.history_file.read_text().splitlines()))


def step_of(run):
    return int(keras.models.load_model(run.model_file("last")).optimizer.iterations)


def test_a_run_leaves_what_the_next_commands_need(run, config):
    assert run.config == config
    assert step_of(run) == 7
    assert [path.name for path in run.weights] == ["step-00000006.weights.h5", "step-00000007.weights.h5"]
    assert all(run.model_file(name).exists() for name in ("final", "average", "best", "last"))
    assert list(run.logs.rglob("events.out.tfevents.*"))
    rows = history_of(run)
    assert [int(row["step"]) for row in rows] == [3, 6, 7]
    *rates, last_rate = (float(row["learning_rate"]) for row in rows)
    assert min(rates) > 0 == last_rate
    for column in ("loss", "accuracy", "perplexity", "val_loss", "val_perplexity", "val_bleu", "tokens_per_second"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    assert not list(run.checkpoints.glob(".writing-*"))
    (summary,) = list_runs(run.path)
    assert (summary.state, summary.step, summary.ended) == ("finished", 7, "max_steps")


def test_the_average_is_the_mean_and_final_is_the_better_one(run):
    def weights(name):
        return keras.models.load_model(run.model_file(name), compile=False).get_weights()

    model = keras.models.load_model(run.model_file("last"), compile=False)
    kept = []
    for path in run.weights:
        model.load_weights(path)
        kept.append(model.get_weights())
    for mean, *parts in zip(weights("average"), *kept, strict=True):
        np.testing.assert_allclose(mean, np.mean(parts, axis=0), atol=1e-6)
    final = weights("final")
    assert any(
        all(np.array_equal(a, b) for a, b in zip(final, weights(name), strict=True)) for name in ("average", "best")
    )


def assert_one_step_further(before, after, rate=None):
    """Adam moves no weight by more than some learning rates where its state is that of before: nothing began anew."""
    rate = float(before.optimizer.learning_rate) if rate is None else rate
    moved = max(np.abs(a - b).max() for a, b in zip(before.get_weights(), after.get_weights(), strict=True))
    assert 0 < moved < 10 * rate


def test_a_run_goes_on_with_weights_optimizer_and_schedule(copied, config, eager):
    before = keras.models.load_model(copied.model_file("last"))
    train(copied.path, dataclasses.replace(config, learning_rate_decay=0), max_steps=8)
    after = keras.models.load_model(copied.model_file("last"))
    assert int(after.optimizer.iterations) == 8
    peak = InverseSqrtSchedule(config.transformer().hidden_dim, config.warmup_steps, config.learning_rate_scale).peak
    assert float(after.optimizer.learning_rate) == pytest.approx(peak, rel=1e-5)  # the warm-up ended after a quarter
    assert_one_step_further(before, after, rate=peak)
    assert len(history_of(copied)) == 4


def test_a_run_goes_on_with_the_optimizer_it_asked_for(tmp_path, config, eager):
    config = dataclasses.replace(config, optimizer="muon", learning_rate_decay=0)
    train(tmp_path / "run", config, max_steps=4)
    run = RunFolder(tmp_path / "run")
    before = keras.models.load_model(run.model_file("last"))
    assert type(before.optimizer) is Muon
    train(tmp_path / "run", max_steps=5)
    after = keras.models.load_model(run.model_file("last"))
    assert int(after.optimizer.iterations) == 5
    assert_one_step_further(before, after)


def test_a_run_keeps_the_optimizer_of_the_version_that_began_it(tmp_path, config, eager, monkeypatch):
    config = dataclasses.replace(config, optimizer="muon")
    with monkeypatch.context() as earlier:
        earlier.setitem(OPTIMIZERS, "muon", lambda *_, **__: Muon(0.01, momentum=0.95, steps=5))
        train(tmp_path / "run", config, max_steps=4)
    train(tmp_path / "run", max_steps=5)
    after = keras.models.load_model(RunFolder(tmp_path / "run").model_file("last"))
    assert (after.optimizer.momentum, after.optimizer.steps, int(after.optimizer.iterations)) == (0.95, 5, 5)
    assert after.optimizer.weight_decay is None


@pytest.mark.parametrize("by", ["command", "file"])
def test_a_run_resumes_with_another_learning_rate(copied, by, eager):
    settings = {"learning_rate_scale": 2.5, "warmup_steps": 11, "total_steps": 9, "learning_rate_decay": 1.0}
    if by == "command":
        changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        done = command("train", copied.path, *changes, "--max-steps", 8)
        assert done.exit_code == 0, done.output
    else:
        copied.config.replace(**settings).save(copied.config_file)
        train(copied.path, max_steps=8)
    assert copied.config == copied.config.replace(**settings)
    rate = float(keras.models.load_model(copied.model_file("last")).optimizer.learning_rate)
    schedule = InverseSqrtSchedule(copied.config.transformer().hidden_dim, 11, 2.5)
    assert rate == pytest.approx(schedule.peak * (1 - 8 / 9), rel=1e-5)  # the warm-up ended after a quarter


def test_a_limit_that_is_reached_trains_no_further(run, capsys, without_final):
    train(run.path, max_steps=7)
    assert step_of(run) == 7
    printed = capsys.readouterr().out
    assert "nothing to train: the run is at step 7, and the limit is 7 steps" in printed
    about_time, about_text = printed.splitlines()[-2:]
    assert about_time.startswith("No forecast for a longer training: the number of evaluations after")
    steps_of_a_pass = int(re.search(r"batches: (\d+) of", printed)[1])
    assert f"after {7 / steps_of_a_pass:.1f} passes over the text" in about_text


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: file.write_bytes(b"\xff\0"), lambda file: file.write_text("")]
)
def test_a_history_that_cannot_be_read_does_not_fail_a_finished_training(copied, damage, capsys, without_final):
    damage(copied.history_file)
    train(copied.path, max_steps=7)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"No forecast for a longer training: {copied.path}")


def test_a_history_of_an_earlier_release_is_continued_with_its_columns(copied, capsys, eager):
    columns = ("epoch", "loss", "val_bleu", "val_loss")
    rows = [[row[name] for name in columns] for row in history_of(copied)]
    copied.history_file.write_text("".join(",".join(row) + "\n" for row in [columns, *rows]))
    train(copied.path, max_steps=8)
    rows = history_of(copied)
    assert [set(row) for row in rows] == 4 * [set(columns)]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert "it has no column step, as in a run of an earlier release" in capsys.readouterr().out


def test_the_rate_falls_to_zero_at_the_limit_and_rises_when_training_continues(tmp_path, config, eager):
    train(tmp_path / "run", config, max_steps=2)
    run = RunFolder(tmp_path / "run")
    assert float(keras.models.load_model(run.model_file("last")).optimizer.learning_rate) == 0
    train(tmp_path / "run", max_steps=4)
    after = keras.models.load_model(run.model_file("last")).optimizer
    assert float(after.learning_rate) == 0
    assert int(after.iterations) == 4


def test_total_steps_are_those_of_all_calls(tmp_path, config, eager):
    config = dataclasses.replace(config, total_steps=4)
    run = RunFolder(tmp_path / "run")
    train(run.path, config, max_steps=3)
    rate = float(keras.models.load_model(run.model_file("last")).optimizer.learning_rate)
    sizes = config.transformer().hidden_dim, config.warmup_steps, config.learning_rate_scale
    assert rate == pytest.approx(float(InverseSqrtSchedule(*sizes, total_steps=4)(2)), rel=1e-5)
    train(run.path)
    assert step_of(run) == 4
    assert float(keras.models.load_model(run.model_file("last")).optimizer.learning_rate) == 0


@pytest.mark.slow
def test_a_run_of_an_optimizer_with_a_schedule_resumes_with_its_state(tmp_path, config, run):
    """Version 0.2 kept the schedule in the optimizer."""
    shutil.copytree(run.path, tmp_path / "old")
    old = RunFolder(tmp_path / "old")
    model = keras.models.load_model(old.model_file("last"))
    state = [each.numpy() for each in model.optimizer.variables if each.name != "learning_rate"]
    model.compile(paper_optimizer(model.config, warmup_steps=300, scale=0.42), loss=MaskedCrossEntropy())
    model.optimizer.build(model.trainable_variables)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)
    model.save(old.model_file("last"))
    for folder in (run.path, old.path):
        shutil.copytree(folder, tmp_path / "resumed" / folder.name)
        train(tmp_path / "resumed" / folder.name, max_steps=9)
    weights = [
        keras.models.load_model(RunFolder(tmp_path / "resumed" / name).model_file("last"), compile=False).get_weights()
        for name in (run.path.name, "old")
    ]
    for new, resumed in zip(*weights, strict=True):
        np.testing.assert_allclose(resumed, new, atol=1e-7)


def test_a_run_ends_at_its_total_steps_with_a_rate_of_zero(tmp_path, config, eager):
    train(tmp_path / "run", dataclasses.replace(config, total_steps=3))
    run = RunFolder(tmp_path / "run")
    assert step_of(run) == 3
    optimizer = keras.models.load_model(run.model_file("last")).optimizer
    assert float(optimizer.learning_rate) == 0


def test_mixed_bfloat16_trains_and_is_restored(tmp_path, config, steps_only):
    train(tmp_path / "run", dataclasses.replace(config, dtype="mixed_bfloat16"), max_steps=2)
    model = keras.models.load_model(RunFolder(tmp_path / "run").model_file("last"))
    assert model.compute_dtype == "bfloat16"
    assert model.get_layer("encoder").compute_dtype == "bfloat16"
    exact = RunFolder(tmp_path / "run").translator(checkpoint="last", weights="float32").model
    assert exact.compute_dtype == exact.get_layer("encoder").compute_dtype == "float32"
    for ours, theirs in zip(exact.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_packed_rows_train_the_same_model(tmp_path, config, monkeypatch):
    """Batches of one shape; the folder holds the model without segments, and it resumes."""
    shapes = set()
    lay_out = PackedBatches.batch

    def seen(batches, rows, epoch):
        inputs, labels = lay_out(batches, rows, epoch)
        shapes.update((name, each.shape) for name, each in inputs.items())
        return inputs, labels

    monkeypatch.setattr(PackedBatches, "batch", seen)
    packing = dataclasses.replace(config, packed_rows=3, max_length=40, dtype="mixed_bfloat16", learning_rate_decay=0)
    with monkeypatch.context() as patch:
        leave_out_final(patch)
        train(tmp_path / "run", packing, max_steps=4)
    assert len(shapes) == 4
    assert {shape[0] for _, shape in shapes} == {3}
    run = RunFolder(tmp_path / "run")
    before = keras.models.load_model(run.model_file("last"))
    assert sorted(before.input) == ["source", "target"]
    assert before.compute_dtype == "bfloat16"
    assert int(before.optimizer.iterations) == 4
    for column in ("loss", "val_loss", "val_perplexity", "val_bleu"):
        assert all(np.isfinite(float(row[column])) for row in history_of(run)), column

    leave_out_translation(monkeypatch)
    train(tmp_path / "run", max_steps=5)
    after = keras.models.load_model(run.model_file("last"))
    assert int(after.optimizer.iterations) == 5
    assert_one_step_further(before, after)
    assert RunFolder(tmp_path / "run").translator(beam_size=1).translate(["eins"])


@pytest.mark.slow
def test_a_run_with_a_consistency_loss_resumes(tmp_path, config):
    settings = {"consistency": "simcut", "consistency_weight": 1.5, "packed_rows": 3, "max_length": 40}
    settings["learning_rate_decay"] = 0
    train(tmp_path / "run", dataclasses.replace(config, **settings), max_steps=2)
    run = RunFolder(tmp_path / "run")
    before = keras.models.load_model(run.model_file("last"))
    trainer = JOBS.make_trainer(before, run.config)
    assert (trainer.consistency, trainer.consistency_weight) == ("simcut", 1.5)
    train(tmp_path / "run", max_steps=3)
    after = keras.models.load_model(run.model_file("last"))
    assert int(after.optimizer.iterations) == 3
    assert_one_step_further(before, after)
    assert all(float(row["loss"]) > float(np.log(float(row["perplexity"]))) for row in history_of(run))
    with pytest.raises(ValueError, match="consistency: 'simcut' in the run, 'rdrop' in the new config"):
        train(tmp_path / "run", dataclasses.replace(run.config, consistency="rdrop"), max_steps=4)


@pytest.mark.slow
def test_the_moving_average_of_a_run(tmp_path, config, untranslated, request):
    """It is evaluated, saved, resumed exactly, and may become the final model."""
    run_eagerly(request)

    def weights(name):
        return keras.models.load_model(run.model_file(name), compile=False).get_weights()

    train(tmp_path / "run", dataclasses.replace(config, ema=0.999), max_steps=4)
    run = RunFolder(tmp_path / "run")
    before = weights("ema")
    model = keras.models.load_model(run.model_file("last"))
    assert any((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))
    model.load_weights(run.checkpoints / "ema-00000004.weights.h5")
    for mine, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    data = RunData.read(run.config, run.tokenizer)[1].valid_batches.dataset()
    loss = model.evaluate(data, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(float(history_of(run)[-1]["val_loss"]), loss, rtol=1e-5)
    np.testing.assert_allclose(float((run.checkpoints / "best.txt").read_text()), loss, rtol=1e-5)
    final = weights("final")
    assert any(
        all(np.array_equal(a, b) for a, b in zip(final, weights(name), strict=True))
        for name in ("average", "best", "ema")
    )

    train(tmp_path / "run", max_steps=5)
    kept = (1 + 5) / (10 + 5)
    for mine, old, new in zip(weights("ema"), before, weights("last"), strict=True):
        np.testing.assert_allclose(mine, kept * old + (1 - kept) * new, rtol=1e-5, atol=1e-7)
    (run.checkpoints / "ema-00000005.weights.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"do not exist: .*ema-00000005\.weights\.h5"):
        train(tmp_path / "run", max_steps=6)


@pytest.mark.slow
def test_the_moving_average_is_final_where_it_is_the_best(tmp_path, config, monkeypatch):
    train(tmp_path / "run", dataclasses.replace(config, ema=0.5), max_steps=1)
    run = RunFolder(tmp_path / "run")
    values = {"best": 3.0, "average": 2.0, "ema": 1.0}
    names = iter(values)
    monkeypatch.setattr(
        JOBS.Transformer, "evaluate", lambda *_, **options: dict.fromkeys(("loss", "perplexity"), values[next(names)])
    )
    train(tmp_path / "run", max_steps=1)
    assert run.model_file("final").read_bytes() == run.model_file("ema").read_bytes()


def test_accumulated_batches_count_as_one_step(tmp_path, config, capsys, eager):
    train(tmp_path / "run", dataclasses.replace(config, gradient_accumulation=2, total_steps=5), max_steps=4)
    run = RunFolder(tmp_path / "run")
    assert step_of(run) == 4
    assert [path.name for path in run.weights] == ["step-00000003.weights.h5", "step-00000004.weights.h5"]
    assert "4 steps" in capsys.readouterr().out
    rounds = [float(row["loss"]) for row in history_of(run)]
    assert len(rounds) == 2
    train(tmp_path / "run", epochs=999)
    optimizer = keras.models.load_model(run.model_file("last")).optimizer
    assert int(optimizer.iterations) == 5
    assert optimizer.gradient_accumulation_steps == 2
    assert float(optimizer.learning_rate) == 0, "the schedule counts steps, not batches"


@pytest.fixture
def copied(run, tmp_path):
    """A folder of its own with that run of seven steps."""
    shutil.copytree(run.path, tmp_path / "copied")
    return RunFolder(tmp_path / "copied")


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary_size": 5000},  # more pieces than the text can give
        {"max_length": 1},
        {"valid_source": "no such file"},
    ],
)
def test_what_cannot_start_writes_nothing(tmp_path, config, changes):
    with pytest.raises((ValueError, OSError)):
        train(tmp_path / "new" / "run", dataclasses.replace(config, **changes), max_steps=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [{"epochs": 0}, {"max_steps": -1}, {"max_minutes": 0}, {"max_minutes": float("nan")}])
def test_limits_are_checked_before_anything_is_read(tmp_path, config, limit, monkeypatch):
    monkeypatch.setattr("keras_attention.pipeline.run_data.ParallelCorpus", lambda *_: pytest.fail("reads"))
    (name,) = limit
    with pytest.raises(ValueError, match=rf"`{name}` must be a .* Received: {name}={limit[name]}"):
        train(tmp_path / "run", config, **limit)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_checkpoint_takes_another_config(tmp_path, config, eager):
    """Also the folder of a run that diverged, or that was cut off at its first checkpoint."""
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(
        FloatingPointError, match=r"has no checkpoint, so it accepts other settings.* Training diverged"
    ):
        train(folder.path, dataclasses.replace(config, learning_rate_scale=1e30), max_steps=6)
    assert folder.exists
    assert not folder.trained
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-00000099.weights.h5").write_text("of another model")
    other = dataclasses.replace(config, vocabulary_size=150)
    train(folder.path, other, max_steps=1)
    assert folder.config == other
    assert folder.tokenizer.vocabulary_size == 150
    assert [path.name for path in folder.weights] == ["step-00000001.weights.h5"]


def test_a_run_that_diverges_later_keeps_its_checkpoints(copied, monkeypatch, eager):
    before = contents(copied.checkpoints)
    monkeypatch.setattr(
        JOBS.EpochMetrics,
        "on_epoch_end",
        lambda self, epoch, logs: logs.update(val_perplexity=np.inf),
    )
    with pytest.raises(FloatingPointError, match=r"keeps its earlier checkpoints.*Received: val_perplexity=inf"):
        train(copied.path, max_steps=9)
    assert contents(copied.checkpoints) == before
    (summary,) = list_runs(copied.path)
    assert (summary.state, summary.step) == ("diverged", 7)
    assert summary.ended.startswith("Training diverged at step 9.")


def test_final_is_never_a_model_that_diverged(copied):
    model = keras.models.load_model(copied.model_file("last"))
    model.set_weights([np.full(weight.shape, np.nan) for weight in model.get_weights()])
    model.save(copied.model_file("best"))
    train(copied.path, max_steps=7)
    assert copied.model_file("final").read_bytes() == copied.model_file("average").read_bytes()

    final = copied.model_file("final").read_bytes()
    for path in copied.weights:
        model.save_weights(path)
    done = command("train", copied.path, "--max-steps", 7)
    assert done.exit_code == 1
    assert "diverged: no checkpoint has a finite validation perplexity" in done.output
    assert "Next:" not in done.output
    assert copied.model_file("final").read_bytes() == final


def test_what_was_made_of_earlier_steps_goes_when_training_resumes(copied, monkeypatch, capsys, eager):
    answers = iter([0.0])

    def interrupted(*_):
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("keras_attention.pipeline.validation.corpus_bleu", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(copied.path, max_steps=99)
    assert step_of(copied) > 7
    assert not copied.model_file("final").exists()
    assert not copied.model_file("average").exists()
    capsys.readouterr()
    copied.translator()
    assert "has not finished training: using its checkpoint best" in capsys.readouterr().err
    done = command("translate", copied.path, "--checkpoint", "final", given="a\n")
    assert "has no checkpoint of this name, only best, last" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dtype", "mixed_bfloat16"],
        ["--preset", "small"],
        ["--vocabulary-size", 150],
        ["--set", "optimizer=muon"],
        ["--set", "label_smoothing=0.2"],
        ["--set", "subword_dropout=0.4"],
        ["--set", "model={num_layers: 2}"],
    ],
)
def test_a_setting_that_a_run_cannot_change_is_refused_by_name(copied, arguments):
    before = contents(copied.path)
    name = arguments[1].split("=")[0] if arguments[0] == "--set" else arguments[0][2:].replace("-", "_")
    done = command("train", copied.path, *arguments, "--max-steps", 8)
    assert done.exit_code == 1
    assert f"Received: {name}: " in done.output
    assert contents(copied.path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "seed=1", "--set", "seed=2"],
            "Pass each setting once: `seed` is set twice. Received: --set seed=2",
        ),
        (["--dtype", "float32", "--set", "dtype=float32"], "`dtype` is set twice"),
        (["--set", "model.num_heads=1", "--set", "model.num_heads=2"], "`model.num_heads` is set twice"),
        (["--set", "model={num_heads: 1}", "--set", "model.num_layers=2"], "`model.num_layers` is set twice"),
        (["--set", "model.num_layers=2", "--set", "model={num_heads: 1}"], "`model` is set twice"),
        (["--set", "=5"], "--set takes NAME=VALUE. Received: --set =5"),
        (["--set", "model={"], "but this is not YAML: .* Received: --set model={"),
        (["--set", "model={num_layers: 1, num_layers: 2}"], "not YAML: `num_layers` is given twice"),
    ],
)
def test_what_set_takes(arguments, message, tmp_path):
    done = command("train", tmp_path / "run", *arguments, "--max-steps", 1)
    assert done.exit_code == 2
    assert re.search(message, done.output)
    assert list(tmp_path.iterdir()) == []


def test_options_are_checked_before_weights_are_read(run, texts, monkeypatch):
    monkeypatch.setattr(RunFolder, "load", lambda *_, **__: pytest.fail("reads"))
    for name, options in (
        ("beam_size", ["--beam-size", 0]),
        ("length_penalty", ["--length-penalty", "nan"]),
        ("length_penalty", ["--length-penalty", "inf"]),
        ("tokenize", ["--bleu-tokenize", "word"]),
    ):
        done = command("evaluate", run.path, texts["valid.en"], texts["valid.de"], *options)
        assert (done.exit_code, done.output.count("Error:")) == (1, 1)
        assert f"Error: `{name}` " in done.output


def test_the_demo_refuses_the_folder_of_another_run(copied, capsys):
    before = contents(copied.path)
    with pytest.raises(ValueError, match="holds a run with another config"):
        run_demo("de", folder=copied.path)
    assert contents(copied.path) == before


def test_the_demo_refuses_the_folder_of_another_locale(copied, monkeypatch):
    monkeypatch.setattr("keras_attention.demo.run.check_settings", lambda *_: None)
    before = contents(copied.path)
    with pytest.raises(ValueError, match=r"holds a run with train\.de: choose another folder\. Received: train\.fr"):
        run_demo("fr", folder=copied.path)
    assert contents(copied.path) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoints", "must be a folder, but it is a file"),
        ("logs", "must be a folder, but it is a file"),
        ("history.csv", "must be a file, but this is a folder"),
    ],
)
def test_what_is_in_the_way_is_said_before_training(config, tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("keras_attention.pipeline.run_data.ParallelCorpus", lambda *_: pytest.fail("reads"))
    path = tmp_path / name
    path.mkdir() if name == "history.csv" else path.write_text("in the way")
    with pytest.raises(ValueError, match=rf"{message}.* Received: .*/{name}"):
        train(tmp_path, config, max_steps=1)
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["checkpoints", "logs", "history.csv"])
def test_what_may_not_be_written_is_said_before_training(copied, monkeypatch, name):
    monkeypatch.setattr("keras_attention.pipeline.run_data.ParallelCorpus", lambda *_: pytest.fail("reads"))
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != name and allowed(path, mode))
    with pytest.raises(ValueError, match="is not writable: change its permissions"):
        train(copied.path, max_steps=9)


def test_a_name_with_line_feeds_is_one_line(tmp_path):
    done = command("translate", tmp_path / "a\nb\x1b[1m", given="x\n")
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert r"a\nb\x1b[1m is not the folder of a training run" in done.output


def test_an_interruption_has_the_exit_code_of_one():
    def interrupted():
        raise KeyboardInterrupt

    done = CliRunner().invoke(Command("train", callback=interrupted))
    assert (done.exit_code, done.output.split()) == (130, ["Interrupted"])


def test_too_little_memory_is_one_line():
    def refuse():
        raise MemoryError("Unable to allocate 4 TiB")

    done = CliRunner().invoke(Command("train", callback=refuse))
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "There is not enough memory (Unable to allocate 4 TiB): use a smaller model" in done.output


def test_settings_that_change_no_weight_may_change(copied, texts, tmp_path, without_final):
    moved = tmp_path / "moved.en"
    shutil.copy(texts["train.en"], moved)
    same = ["--preset", "tiny", "--dtype", "float32", "--set", "seed=1"]
    changes = ["--set", "keep_checkpoints=1", "--set", "score_sentences=2", "--source", moved]
    done = command("train", copied.path, *same, *changes, "--max-steps", 7)
    assert done.exit_code == 0, done.output
    config = copied.config
    assert (config.keep_checkpoints, config.score_sentences, config.source) == (1, 2, str(moved))
    assert config.replace(keep_checkpoints=2, score_sentences=5, source=texts["train.en"]) == RunConfig.load(
        copied.config_file
    ).replace(keep_checkpoints=2, score_sentences=5, source=texts["train.en"])


def other_tokenizer(run):
    run.tokenizer_file.write_bytes(run.tokenizer_file.read_bytes().replace(b"e", b"f", 1))


def other_setting(old, new):
    def change(run):
        text = run.config_file.read_text()
        assert old in text
        run.config_file.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "message", "commands"),
    [
        (other_tokenizer, "tokenizer.model is not the tokenizer that the run was trained with", "train translate"),
        (lambda run: run.tokenizer_file.unlink(), "tokenizer.model is missing, and the weights", "train translate"),
        (
            other_setting("num_layers: 1", "num_layers: 2"),
            "num_layers: 1 in the checkpoint, 2 in the config",
            "train translate",
        ),
        (
            other_setting("dtype: float32", "dtype: mixed_bfloat16"),
            "dtype: 'float32' in the checkpoint, 'mixed_b",
            "train translate",
        ),
        (other_setting("optimizer: adam", "optimizer: muon"), "was not trained with the optimizer", "train"),
        (other_setting("seed: 1\n", ""), "it lacks seed", "train translate"),
        (other_setting("seed: 1\n", "seed: 1\nseed: 2\n"), "`seed` is given twice", "train translate"),
        (
            lambda run: run.config_file.unlink(),
            "config.yaml is missing, though the run has checkpoints",
            "train translate",
        ),
        (lambda run: run.fingerprints_file.write_text("[1]"), "fingerprints.json is damaged", "train translate"),
        (lambda run: run.fingerprints_file.write_text("{}"), "fingerprints.json is damaged", "train translate"),
        (lambda run: run.model_file("last").write_bytes(b""), "last.keras is damaged: it is not a zip", "train"),
        (lambda run: run.model_file("final").write_bytes(b"PK"), "final.keras is damaged: it is not", "translate"),
        (lambda run: run.model_file("last").unlink(), "last.keras, which is missing", "train"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(copied, damage, message, commands):
    damage(copied)
    before = contents(copied.path)
    for name in commands.split():
        arguments = ["--max-steps", 8] if name == "train" else ["--beam-size", 1]
        done = command(name, copied.path, *arguments, given="a\n")
        assert done.exit_code == 1, done.output
        assert message in done.output
        assert done.output.strip().count("Error:") == 1
    assert contents(copied.path) == before


def test_a_checkpoint_that_was_cut_off_names_the_others(copied):
    file = copied.model_file("final")
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(
        ValueError, match=r"final\.keras is damaged: .*Other checkpoints of the run: average, best, last"
    ):
        copied.translator()


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(copied, monkeypatch):
    def refuse(file, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"final\.keras"):
        RunFolder.load(copied, copied.model_file("final"))


def test_text_that_changed_is_not_trained_on(copied, texts, tmp_path):
    for name, split in (("target", "train.de"), ("valid_source", "valid.en")):
        other = tmp_path / split
        other.write_bytes(Path(texts[split]).read_bytes().replace(b"1", b"2"))
        with pytest.raises(ValueError, match=rf"The text has changed since the run .* Received: {name}="):
            train(copied.path, copied.config.replace(**{name: str(other)}), max_steps=8)


def test_one_training_at_a_time(copied):
    """The lock is another process's, and goes with it, however it ends."""
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, copied.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        done = command("train", copied.path, "--max-steps", 7)
        assert done.exit_code == 1
        assert "Another process trains in" in done.output
        assert copied.translator(), "reading needs no lock"
        other.kill()
        other.wait()
    with training_lock(copied.path), pytest.raises(ValueError, match="Another process"), training_lock(copied.path):
        pass


def test_a_file_system_without_locks_is_trained_on(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with training_lock(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "file").write_text("kept")
    assert (tmp_path / "a" / "run" / "file").exists()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "Read-only file system; choose a folder on a writable disk"),
        (errno.EACCES, "Permission denied; choose a file or folder that you may read and write"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(texts, tmp_path, monkeypatch, number, advice):
    def refuse(**_):
        raise OSError(number, os.strerror(number), "elsewhere")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    files = [
        f"--{side}={texts[name]}" for side, name in zip(("source", "target"), ("train.en", "train.de"), strict=True)
    ]
    files += [f"--valid-source={texts['valid.en']}", f"--valid-target={texts['valid.de']}"]
    done = command("train", tmp_path / "run", *files, "--max-steps", 1)
    assert done.exit_code == 1
    assert done.output == f"Error: {tmp_path / 'run'}: {advice}" + done.output.split(advice)[1]
    assert done.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tensorflows_errors_of_a_full_disk_are_one_line():
    def refuse():
        raise tf.errors.ResourceExhaustedError(None, None, "{{a}} x/saved_model.pb; No space left on device [Op:B]\n")

    done = CliRunner().invoke(Command("export", callback=refuse))
    assert done.exit_code == 1
    assert done.output == (
        "Error: x/saved_model.pb; No space left on device; "
        "free some space on this disk, or choose a folder on another\n"
    )


def test_a_run_that_cannot_be_written_is_evaluated(run, texts, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "scores.json")

    monkeypatch.setattr("keras_attention.pipeline.card.write_atomically", refuse)
    done = command("evaluate", run.path, texts["valid.en"], texts["valid.de"], "--beam-size", 1)
    assert done.exit_code == 0, done.output
    assert "BLEU" in done.stdout
    assert (
        f"the scores could not be saved in {run.path} for its model card: [Errno 30] Read-only file system"
        in done.stderr
    )


def test_files_and_folders_in_each_others_place_are_named(run, texts, tmp_path):
    (tmp_path / "file").write_text("")
    files = [f"--source={texts['train.en']}", f"--target={texts['train.de']}"]
    files += [f"--valid-source={texts['valid.en']}", f"--valid-target={texts['valid.de']}"]
    done = command("train", tmp_path / "file" / "run", *files, "--max-steps", 1)
    assert done.exit_code == 1
    assert "file/run: Not a directory; a file is where a folder must be" in done.output
    done = command("tokenizer", texts["train.en"], "--vocabulary-size", 150, "-o", tmp_path)
    assert done.exit_code == 1
    assert f"but this is a folder: name a file in it. Received: {tmp_path}\n" in done.output
    done = command("export", run.path, tmp_path / "file" / "served")
    assert done.exit_code == 1
    assert f"{tmp_path / 'file'} must be a folder, but it is a file: name another" in done.output


def test_wrong_calls(tmp_path, run, config):
    with pytest.raises(ValueError, match="Set a limit: `epochs`, `max_steps`, `max_minutes`, or `total_steps`"):
        train(tmp_path, config)
    with pytest.raises(FileNotFoundError, match="is not the folder of a training run"):
        train(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"another config.*seed: 1 in the run, 2 in the new config"):
        train(run.path, dataclasses.replace(config, seed=2), max_steps=1)
    with pytest.raises(ValueError, match="`preset` is one of 'tiny', 'small', 'base', 'big'"):
        RunConfig.from_preset("huge")
    with pytest.raises(ValueError, match=r"`optimizer` is one of 'adam', 'muon'. Received: optimizer='sgd'"):
        train(tmp_path, dataclasses.replace(config, optimizer="sgd"), max_steps=1)
    with pytest.raises(ValueError, match=r"`weights` is one of None, 'float32', 'bfloat16', 'int8'\. .*='int4'"):
        run.translator(weights="int4")
    with pytest.raises(ValueError, match="`checkpoint` is one of 'final'"):
        run.translator("worst")
    with pytest.raises(ValueError, match=r"`last` must be at most 2: .* kept 2 checkpoints\. Received: last=3"):
        average(run.path, last=3)
    with pytest.raises(ValueError, match="2 translations, 1 references"):
        evaluate_translations(["a", "b"], ["a"])


def test_earlier_names_still_work():
    assert pipeline.score is evaluate_translations
    assert isinstance(pipeline.score(["a"], ["a"]), pipeline.Scores)
    assert RunFolder.check_places is RunFolder.check_writable


@pytest.mark.parametrize("weights", ["bfloat16", pytest.param("int8", marks=pytest.mark.slow)])
def test_lighter_weights_are_exported_and_their_cost_is_said(run, exported, weights, tmp_path):
    options, folder = ["--beam-size", 2, "--weights", weights], tmp_path / weights
    exports = {None: exported, weights: (command("export", run.path, folder, *options), folder)}
    sizes = {}
    for chosen, (done, folder) in exports.items():
        assert done.exit_code == 0, done.output
        assert ("validation sentences" in done.output) == (chosen is not None)
        files = (folder / "1" / "variables").glob("variables.data*")
        sizes[chosen] = sum(file.stat().st_size for file in files)
    assert sizes[weights] < 0.62 * sizes[None]
    lighter = run.translator(beam_size=2, weights=weights)
    served = tf.saved_model.load(str(tmp_path / weights / "1")).signatures["serving_default"]
    texts = ["one hundred and three", "", "Friday"]
    assert [text.decode() for text in served(source=tf.constant(texts))["text"].numpy()] == lighter(texts)


@pytest.mark.slow
def test_a_shortlist_of_the_training_text_is_exported_and_its_cost_is_said(run, tmp_path):
    done = command("export", run.path, tmp_path / "listed", "--beam-size", 2, "--shortlist", "--max-bleu-loss", 100)
    assert done.exit_code == 0, done.output
    assert re.search(r"validation sentences: [\d.]+, with the trained weights and the whole vocabulary", done.output)
    card = json.loads((tmp_path / "listed" / "1" / "assets.extra" / "model_card.json").read_text())
    translator = run.translator(beam_size=2, shortlist=True)
    assert card["shortlist"] == translator.shortlist.size
    served = tf.saved_model.load(str(tmp_path / "listed" / "1")).signatures["serving_default"]
    texts = ["one hundred and three", "", "Friday"]
    assert [text.decode() for text in served(source=tf.constant(texts))["text"].numpy()] == translator(texts)
    pairs = ParallelCorpus(run.config.source, run.config.target).pairs
    source, target = (translator.tokenizer.encode([text])[0] for text in pairs[0])
    candidates = translator.shortlist.candidates(tf.constant([[*source, 3]])).numpy()
    assert set(target) <= set(candidates[0])


def test_the_cost_in_bleu_is_that_of_the_validation_sample(run):
    class Fixed:
        def __init__(self, answers):
            self.answers = answers

        def translate(self, texts):
            return [self.answers[text] for text in texts]

    pairs = list(ParallelCorpus(run.config.valid_source, run.config.valid_target).pairs)
    right, wrong = ({source: answer for source, answer in each} for each in (pairs, [(s, "x") for s, _ in pairs]))
    line = compare_weights(run.path, Fixed(wrong), Fixed(right))
    assert line == "BLEU of 5 validation sentences: 0.00, with the trained weights 100.00 (-100.00)"


def test_text_that_cannot_be_used_leaves_no_run_behind(tmp_path, config):
    short = tmp_path / "short.de"
    short.write_text("eins\n")
    with pytest.raises(ValueError, match=r"short\.de"):
        train(tmp_path / "run", dataclasses.replace(config, target=str(short)), max_steps=1)
    assert not (tmp_path / "run").exists()


def test_attention_sums_to_one_and_is_drawn(run, tmp_path):
    translator = run.translator(beam_size=2)
    weights, written, read = translator.attention("March 5, 2026")
    assert weights.shape == (len(written), len(read))
    assert read[-1] == "</s>"
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    path = draw_attention(translator, "March 5, 2026", tmp_path / "attention.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = path.with_suffix(".csv").read_text().splitlines()
    assert len(rows) == 1 + len(written)


def test_commands(run, exported, texts, tmp_path):
    result = command("check", texts["train.en"], texts["train.de"])
    assert result.exit_code == 0, result.output
    assert "300 pairs of 300 lines; 0 are left out" in result.output

    result = command(
        "tokenizer", texts["train.en"], texts["train.de"], "--vocabulary-size", 150, "-o", tmp_path / "t.model"
    )
    assert "150 pieces" in result.output
    assert (tmp_path / "t.model").exists()

    result = command("average", run.path, "--last", 2)
    assert result.output.strip().endswith("average.keras")

    result = command("translate", run.path, "--beam-size", 2, given="March 5, 2026\n\n12:30\n")
    assert result.exit_code == 0, result.output
    lines = result.stdout.split("\n")
    assert len(lines) == 4
    assert lines[:3] == run.translator(beam_size=2).translate(["March 5, 2026", "", "12:30"])

    result = command("evaluate", run.path, texts["valid.en"], texts["valid.de"], "--beam-size", 1)
    assert re.search(r"BLEU \d+\.\d  nrefs:1.*version:", result.output), result.output
    assert re.search(r"chrF \d+\.\d  nrefs:1", result.output)

    result, folder = exported
    assert result.exit_code == 0, result.output
    assert (folder / "1" / "saved_model.pb").exists()


def test_commands_read_text_by_one_rule(run, upper, tmp_path, monkeypatch):
    """Gzip by its content, a byte order mark, lines that end in CR LF: from files and from standard input."""
    data = b"\xef\xbb\xbfMarch 5, 2026\r\n12:30"
    expected = run.translator(beam_size=1).translate(["March 5, 2026", "12:30"])
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "packed").write_bytes(gzip.compress(data))
    for file, given in (("plain", None), ("packed", None), ("-", data), ("-", gzip.compress(data))):
        name = file if file == "-" else tmp_path / file
        result = command("translate", run.path, name, "--beam-size", 1, given=given)
        assert result.stdout.splitlines() == expected, result.output

    asked = []
    monkeypatch.setattr("keras_attention.client.connect", lambda url: Asked(asked))
    assert command("ask", "http://localhost/v1/models/m", given=gzip.compress(data)).exit_code == 0
    assert asked == [["March 5, 2026", "12:30"]]

    for arguments in (["translate", run.path], ["evaluate", run.path, "-", tmp_path / "plain"]):
        result = command(*arguments, given="eins\nzwei\n".encode("utf-16"))
        assert "the text is UTF-16. Convert the file with `iconv -f UTF-16 -t UTF-8`" in result.output
        result = command(*arguments, given=b"one\ncaf\xe9\n")
        assert "standard input:2: byte 0xe9 is not UTF-8" in result.output


class Asked:
    """Stands in for a client; keeps what it is asked."""

    def __init__(self, asked):
        self.asked = asked

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def translate(self, texts):
        self.asked.append(texts)
        return texts


def test_a_run_is_not_trained_on_what_cannot_be_read_again(tmp_path, config):
    os.mkfifo(tmp_path / "pipe")
    for path in ("-", str(tmp_path / "pipe")):
        with pytest.raises(ValueError, match=rf"so they must be files: .* Received: valid_target='{path}'"):
            train(tmp_path / "run", dataclasses.replace(config, valid_target=path), max_steps=1)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def upper(monkeypatch):
    loaded = []
    monkeypatch.setattr(RunFolder, "translator", lambda run, **_: loaded.append(run) or Upper())
    return loaded


def test_translations_are_written_where_they_can_be(tmp_path, upper):
    source, output = tmp_path / "a.en", tmp_path / "a.de"
    source.write_text("one\ntwo\n")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "a.de")
    for wrong, message in (
        (tmp_path / "missing" / "a.de", "The folder of the output does not exist: make it first"),
        (tmp_path / "nowhere", "The folder of the output does not exist: make it first"),
        (tmp_path, "this is a folder: name a file in it"),
        (source, f"would replace the input {source}: name another"),
        (source / "a.de", "The folder of the output does not exist"),
    ):
        result = command("translate", tmp_path, source, "-o", wrong)
        assert result.exit_code == 1
        assert message in result.output
    assert not upper, "these are said before the model is loaded"
    assert source.read_text() == "one\ntwo\n"

    (tmp_path / "link.de").symlink_to(output)
    assert command("translate", tmp_path, source, "-o", tmp_path / "link.de").stdout == ""
    assert output.read_text() == "ONE\nTWO\n"
    assert (tmp_path / "link.de").is_symlink()
    assert command("translate", tmp_path, source, "-o", "-").stdout == "ONE\nTWO\n"

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        assert command("translate", tmp_path, source, "-o", pipe).exit_code == 0
        assert read.result() == "ONE\nTWO\n"
    assert pipe.is_fifo()


def test_translations_that_cannot_be_written_in_the_end_are_not_lost(tmp_path, upper, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a.de")

    monkeypatch.setattr("keras_attention.files.os.replace", full)
    result = command("translate", tmp_path, "-o", tmp_path / "a.de", given="one\ntwo\n")
    assert result.exit_code == 1
    assert result.stdout == "ONE\nTWO\n"
    assert "could not be written, so the translations are on standard output: [Errno 28] No space" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_a_tokenizer_goes_to_standard_output(texts, tmp_path, output):
    with open(tmp_path / "de.model", "wb") as file:
        arguments = ["tokenizer", texts["train.de"], "-o", output, "--vocabulary-size", "99"]
        done = subprocess.run(
            [sys.executable, "-m", "keras_attention", *arguments], stdout=file, stderr=subprocess.PIPE, text=True
        )
    assert done.stderr == "/dev/stdout: 99 pieces\n"
    assert SubwordTokenizer.load(tmp_path / "de.model").vocabulary_size == 99


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", ""],
        ["average", ""],
        ["demo", "--folder", ""],
        ["export", "R", ""],
        ["convert", "R", ""],
        ["serve", ""],
    ],
)
def test_a_folder_without_a_name_is_refused(arguments):
    """It would be the current one."""
    assert "The path is empty: pass the path of a folder." in command(*arguments).output


def test_the_demo_looks_at_its_folders_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_models").write_text("")
    for folder, message in (("new", r"saved_models is a file; give another"), ("saved_models/x", "must be a folder")):
        result = command("demo", "--folder", folder)
        assert re.search(message, result.output)
        assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_models"]


@pytest.mark.parametrize("name", ["tokenizer", "export", "convert"])
def test_outputs_are_checked_before_the_work(name, tmp_path, texts, upper):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    arguments = {
        "tokenizer": [texts["train.en"], "-o", taken / "t.model"],
        "export": [tmp_path, taken / "en-de"],
        "convert": [tmp_path, taken / "en-de", "--to", "onnx"],
    }[name]
    assert f"{taken} must be a folder, but it is a file" in command(name, *arguments).output
    assert not upper
    if name == "tokenizer":
        assert "would replace the input" in command(name, texts["train.en"], "-o", texts["train.en"]).output


def test_evaluation_scores_every_line(tmp_path, upper, monkeypatch):
    scores = []
    monkeypatch.setattr("keras_attention.pipeline.record_scores", lambda run, found, **_: scores.append(found))
    source, target = tmp_path / "a.en", tmp_path / "a.de"
    source.write_text("one two three four\n\nfive six seven eight\nnine ten eleven twelve\n\n")
    target.write_text("ONE TWO THREE FOUR\nX Y\n\nNINE TEN ELEVEN TWELVE\n\n")
    result = command("evaluate", tmp_path, source, target)
    assert result.exit_code == 0, result.output
    assert f"Note: 2 of 5 lines of {source} are blank; they count too" in result.stderr
    assert f"Note: 2 of 5 lines of {target} are blank; they count too" in result.stderr
    translations = [line.upper() for line in source.read_text().split("\n")[:5]]
    expected = sacrebleu.corpus_bleu(translations, [target.read_text().split("\n")[:5]]).score
    assert scores[0].bleu == pytest.approx(expected)
    assert scores[0].bleu < 90

    target.write_text("ONE\n")
    assert f"5 lines in {source} and 1 in {target}" in command("evaluate", tmp_path, source, target).output


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["这是一只猫。", "这是一只可爱的狗。"], "zh"),
        (["我喜欢用TensorFlow和Keras。"], "zh"),
        (["吾輩は猫である。名前はまだない。"], "char"),
        (["コンピュータ"], "char"),
        (["나는 학교에 간다."], "char"),
        (["ฉันรักแมวของฉัน"], "char"),
        (["ຂ້ອຍຮັກແມວ"], "char"),
        (["ကျွန်တော်ကြောင်ကိုချစ်တယ်"], "char"),
        (["ខ្ញុំស្រលាញ់ឆ្មា"], "char"),
        (["ང་ཞི་མི་ལ་དགའ།"], "char"),
        (["ᦎᦷᦑ ᦺᦑ"], "char"),
        (["ꦱꦸꦒꦼꦁ"], "char"),
        (["ꆈꌠꉙ"], "char"),
        (["ㄅㄆㄇ"], "zh"),
        (["The cat 猫 sat on the mat."], "13a"),
        (["मुझे बिल्ली पसंद है।", "кот", "قطة"], "13a"),
        (["12.5", "１２３", "!?", "๑๒๓", "៤៥", "꧑꧒"], "13a"),
        (["", " "], "13a"),
        ([], "13a"),
    ],
)
def test_bleu_is_of_words_or_of_characters_by_the_script(references, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluation, "_is_installed", lambda name: "mecab" not in name)
    assert bleu_tokenizer(references) == tokenizer
    if any(len(reference) > 4 and tokenizer != "13a" for reference in references):
        found = evaluate_translations(references, references)
        assert found.bleu == pytest.approx(100)
        assert f"tok:{tokenizer}|" in found.bleu_signature
        assert evaluation.corpus_bleu(references, references) == pytest.approx(100)
    monkeypatch.setattr(evaluation, "_is_installed", lambda name: True)
    mecab = {"吾": "ja-mecab", "コ": "ja-mecab", "나": "ko-mecab"}
    assert bleu_tokenizer(references) == mecab.get("".join(references)[:1], tokenizer)


def test_the_tokenizer_of_bleu_is_an_option(tmp_path, upper, monkeypatch):
    monkeypatch.setattr("keras_attention.pipeline.record_scores", lambda *_, **__: None)
    text = tmp_path / "a"
    text.write_text("the cat sat on the mat\n")
    for tokenize in ("char", "intl", "13a"):
        result = command("evaluate", tmp_path, text, text, "--bleu-tokenize", tokenize)
        assert f"tok:{tokenize}|" in result.stdout
    assert "must be one of none, zh, 13a" in command("evaluate", "R", text, text, "--bleu-tokenize", "word").output
    assert "tok:char|" in evaluate_translations(["a"], ["a"], tokenize="char").bleu_signature

    def fails(self, **_):
        raise OSError("no network")

    monkeypatch.setattr(evaluation, "BLEU", type("BLEU", (), {"TOKENIZERS": ["spm"], "__init__": fails}))
    result = command("evaluate", tmp_path, text, text, "--bleu-tokenize", "spm")
    assert "must be able to download this tokenizer's model (no network)" in result.output
    assert "Received: tokenize='spm'" in result.output
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "_is_installed", lambda name: False)
    with pytest.raises(ValueError, match=r"pip install 'sacrebleu\[ja\]'. Received: tokenize='ja-mecab'"):
        evaluate_translations(["a"], ["a"], tokenize="ja-mecab")


def test_train_command_starts_a_run_and_resumes_it(texts, tmp_path, monkeypatch):
    run = tmp_path / "run"
    files = ["--source", texts["train.en"], "--target", texts["train.de"]]
    files += ["--valid-source", texts["valid.en"], "--valid-target", texts["valid.de"]]
    settings = [
        word for name in SETTINGS if name != "vocabulary_size" for word in ("--set", f"{name}={SETTINGS[name]}")
    ]
    sizes = ["--preset", "tiny", "--vocabulary-size", 200, "--set", "model={num_layers: 1}"]
    result = command("train", run, *files, *sizes, *settings, "--max-steps", 2)
    assert result.exit_code == 0, result.output
    assert "padding:" in result.output
    assert not set("\x1b\r\b") & set(result.output), "a log has neither escape codes nor carriage returns"
    assert re.search(r"^step 2: validation perplexity \S+, BLEU \S+, best so far$", result.output, re.MULTILINE)
    assert f"{texts['train.en']} and {texts['train.de']}: 300 pairs of 300 lines, left out: 0" in result.output
    assert f"{texts['valid.en']} and {texts['valid.de']}: 70 pairs of 70 lines, left out: 0" in result.output
    assert "validation: pairs: 70," in result.output
    leave_out_translation(monkeypatch)
    leave_out_final(monkeypatch)
    result = command("train", run, "--max-steps", 3)
    assert result.exit_code == 0, result.output
    assert "resuming from step 2" in result.output
    assert step_of(RunFolder(run)) == 3


def test_a_run_that_is_none_is_named_before_a_text_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("keras_attention.text.read_lines", lambda path: read.append(path) or [])
    assert "is not the folder of a training run" in command("translate", tmp_path, given="a\n").output
    assert not read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "RUN", "--source", "FILE", "--max-steps", 1], "Missing: --target, --valid-source, --valid-target"),
        (["train", "RUN", "--max-steps", 1], "is not the folder of a training run"),
        (["translate", "RUN"], "is not the folder of a training run"),
        (["check", "FILE", "missing.de"], "does not exist"),
        (["demo", "--locale", "xx_nowhere"], "xx_nowhere"),
    ],
)
def test_mistakes_get_one_line_and_no_traceback(arguments, message, texts, tmp_path):
    places = {"RUN": tmp_path / "nothing", "FILE": texts["train.en"]}
    result = command(*[places.get(argument, argument) for argument in arguments], given="")
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", sorted(main.commands))
def test_each_help_has_an_example(name):
    assert "keras-attention" in command(name, "--help").output.split("Example:")[1]


@pytest.mark.parametrize(
    "changes",
    [{"tokens_per_batch": 2000}, {"packed_rows": 29, "max_length": 40, "gradient_accumulation": 2}],
    ids=["by tokens", "packed"],
)
def test_a_run_that_resumes_takes_the_next_epoch(tmp_path, config, monkeypatch, changes, eager):
    """Not the first again: the seed and the number of the epoch decide which pairs a batch holds."""
    kind = PackedBatches if "packed_rows" in changes else TokenBatches
    # For time: a small model, few large batches, one evaluation.
    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "intermediate_dim": 8}
    config = dataclasses.replace(config, evaluate_every=97, model=sizes, **changes)
    epochs, plan = [], kind.plan

    def watched(batches, epoch):
        if getattr(batches, "shuffle", True):  # not those that validate
            epochs.append(epoch)
        return plan(batches, epoch)

    monkeypatch.setattr(kind, "plan", watched)
    passes = config.gradient_accumulation  # passes with as many steps as there are batches
    train(tmp_path / "run", config, epochs=passes)
    assert epochs[0] == 0
    epochs.clear()
    train(tmp_path / "run", max_steps=step_of(RunFolder(tmp_path / "run")) + 1)
    assert epochs[0] == passes


NOISE = {"subword_dropout": 0.3, "source_word_dropout": 0.1}


@pytest.fixture
def small(config):
    """For time: a small model, few large batches, one evaluation."""
    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "intermediate_dim": 8}
    return dataclasses.replace(config, evaluate_every=97, tokens_per_batch=2000, model=sizes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"packed_rows": 29, "max_length": 40}], ids=["by tokens", "packed"])
def test_a_run_with_dropout_of_pieces_resumes_in_the_same_batches(tmp_path, small, monkeypatch, changes, eager):
    """The training text only is sampled, other pieces in each epoch, the same in a run that resumes."""
    kind = PackedBatches if changes else TokenBatches
    config = dataclasses.replace(small, **changes, **NOISE)
    made, make = {}, kind.batch

    def watched(batches, index, epoch):
        inputs, labels = make(batches, index, epoch)
        if getattr(batches, "shuffle", True):  # not those that validate
            made.setdefault(epoch, []).append((inputs["source"].tolist(), labels.tolist()))
        else:
            assert not (batches.source_word_dropout or UNK_ID in inputs["source"])
        return inputs, labels

    monkeypatch.setattr(kind, "batch", watched)
    train(tmp_path / "whole", config, epochs=2)
    whole = dict(made)
    assert len(whole[0]) == len(whole[1]) > 1
    assert any(UNK_ID in row for source, _ in whole[0] for row in source)
    made.clear()
    train(tmp_path / "halves", config, epochs=1)
    halves = {0: made[0]}
    made.clear()
    train(tmp_path / "halves", max_steps=2 * len(whole[0]))
    assert {**halves, 1: made[1]} == {0: whole[0], 1: whole[1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"gradient_accumulation": 2, "ema": 0.9}, {"packed_rows": 5, "max_length": 40, "optimizer": "muon"}],
    ids=["accumulated batches, a moving average", "packed rows, Muon"],
)
def test_a_killed_run_ends_as_one_that_is_not(tmp_path, small, monkeypatch, untranslated, changes):
    """Killed before the first evaluation, between two of them, and while it writes the last checkpoint."""
    times = {"evaluate_every": 2, "checkpoint_minutes": 1e-9, "tokens_per_batch": 500}
    config = dataclasses.replace(small, **times, **NOISE, **changes)
    config = config.replace(model={**config.model, "dropout": 0.2})
    log_every_step(monkeypatch)
    train(tmp_path / "whole", config, max_steps=5)
    after_batch, save = JOBS.StopAfter.on_train_batch_end, JOBS._ModelCheckpoints.on_epoch_end

    def killed_after(count):
        remaining = iter(range(count))

        def on_train_batch_end(self, batch, logs=None):
            if next(remaining, None) is None:
                raise RuntimeError("killed")
            after_batch(self, batch, logs)

        return on_train_batch_end

    for count in (1, 3):
        monkeypatch.setattr(JOBS.StopAfter, "on_train_batch_end", killed_after(count))
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "parts", config, max_steps=5)
    monkeypatch.setattr(JOBS.StopAfter, "on_train_batch_end", after_batch)

    def killed_after_the_checkpoint(self, epoch, logs=None):
        save(self, epoch, logs)
        if int(self.model.optimizer.iterations) == 5:
            raise RuntimeError("killed")

    monkeypatch.setattr(JOBS._ModelCheckpoints, "on_epoch_end", killed_after_the_checkpoint)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "parts", max_steps=5)
    monkeypatch.setattr(JOBS._ModelCheckpoints, "on_epoch_end", save)
    (tmp_path / "parts" / "checkpoints" / ".writing-01234567-last.keras").write_text("half a file")
    train(tmp_path / "parts", max_steps=5)

    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    rows, others = ([{**row, "tokens_per_second": None} for row in history_of(run)] for run in (whole, parts))
    assert others == rows
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "2"), ("1", "4"), ("2", "5")]
    assert everything_of(parts.logs) == everything_of(whole.logs)
    curves = {tag: [] for tag in ("epoch_perplexity", "steps/perplexity", "steps/gradient_norm")}
    for _, tag, step, _ in scalars_of(whole.logs):
        curves.get(tag, []).append(step)
    assert curves["epoch_perplexity"] == [0, 1, 2, 0, 1, 2]
    assert curves["steps/perplexity"] == [*range(1, 6), 2, 4, 5]
    assert curves["steps/gradient_norm"] == [*range(1, 6)]
    for name in ("last", "best", "average", "final", *(["ema"] if config.ema else [])):
        models = [keras.models.load_model(run.model_file(name)) for run in (whole, parts)]
        states = [
            [*model.get_weights(), *(keras.ops.convert_to_numpy(each) for each in optimizer.variables)]
            for model, optimizer in ((model, getattr(model, "optimizer", keras.optimizers.SGD())) for model in models)
        ]
        for mine, theirs in zip(*states, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    names = [sorted(path.name for path in run.checkpoints.iterdir()) for run in (whole, parts)]
    assert names[0] == names[1]
    assert (parts.checkpoints / "best.txt").read_text() == (whole.checkpoints / "best.txt").read_text()


def test_validation_and_translation_are_not_sampled(small, capsys):
    _, noisy = RunData.read(dataclasses.replace(small, **NOISE), None)
    _, usual = RunData.read(small, None)
    for index, expected in zip(noisy.valid_batches.plan(0), usual.valid_batches.plan(0), strict=True):
        tf.nest.map_structure(
            np.testing.assert_array_equal, noisy.valid_batches.batch(index, 3), usual.valid_batches.batch(expected)
        )
    assert noisy.sample == usual.sample
    assert noisy.tokenizer.model == usual.tokenizer.model
    assert noisy.batches.num_tokens > 1.1 * usual.batches.num_tokens
    assert noisy.batches.num_pairs == usual.batches.num_pairs == 300


def test_the_command_sets_the_dropout_of_pieces(tmp_path, texts, eager):
    words = [word for name, value in NOISE.items() for word in ("--set", f"{name}={value}")]
    files = ["--source", texts["train.en"], "--target", texts["train.de"]]
    files += ["--valid-source", texts["valid.en"], "--valid-target", texts["valid.de"]]
    sizes = ["--preset", "tiny", "--vocabulary-size", 200, "--set", "model={num_layers: 1}"]
    sizes += ["--set", "score_sentences=2", "--max-steps", 1]
    done = command("train", tmp_path / "run", *files, *sizes, *words)
    assert done.exit_code == 0, done.output
    config = RunFolder(tmp_path / "run").config
    assert {name: getattr(config, name) for name in NOISE} == NOISE
    refused = command("train", tmp_path / "run", "--set", "subword_dropout=0.2", "--max-steps", 2)
    assert refused.exit_code == 1
    assert "subword_dropout: 0.3 in the run, 0.2 in the new config" in refused.output


def test_a_run_of_version_0_2_resumes(copied, eager):
    """Its config lacks the settings that were added since."""
    lines = [line for line in copied.config_file.read_text().splitlines() if not line.startswith(tuple(NOISE))]
    copied.config_file.write_text("\n".join(lines) + "\n")
    train(copied.path, max_steps=8)
    assert step_of(copied) == 8
    assert not any(getattr(copied.config, name) for name in NOISE)
