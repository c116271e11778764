"""Runs of the command line on each backend: they train, resume where they were interrupted, and change the backend."""

import csv
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import one_run
import pytest
from backends import BACKEND, numpy
from click.testing import CliRunner

from keras_attention.cli import main
from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunFolder
from keras_attention.training import SkippedSteps

STEPS = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The paths of a few hundred pairs of texts."""
    folder, pairs = tmp_path_factory.mktemp("texts"), make_pairs("de", 350)
    paths = []
    for split, part in (("train", pairs[:300]), ("valid", pairs[300:])):
        for side in (0, 1):
            paths.append(folder / f"{split}.{side}")
            paths[-1].write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
    return paths


def command(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def options(files):
    """The options of a small run."""
    names = ("--source", "--target", "--valid-source", "--valid-target")
    settings = {"evaluate_every": 10, "score_sentences": 5, "ema": 0.9, "warmup_steps": 5, "learning_rate_decay": 0}
    model = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32, "dropout": 0.1}
    settings |= {f"model.{name}": value for name, value in model.items()}
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    paths = [part for name, path in zip(names, files, strict=True) for part in (name, path)]
    return [*paths, "--preset", "tiny", "--vocabulary-size", 200, *changes]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, options):
    """A run of 20 steps, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return RunFolder(folder), command("train", folder, *options, "--max-steps", STEPS)


def step_of(run):
    return int(keras.models.load_model(run.model_file("last")).optimizer.iterations)


def test_a_run_trains_and_evaluates(trained, files):
    run, output = trained
    assert step_of(run) == STEPS
    rows = list(csv.DictReader(run.history_file.read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [10, 20]
    for column in ("loss", "val_loss", "val_perplexity", "val_bleu"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert all(run.model_file(name).exists() for name in ("final", "average", "ema", "best", "last"))
    assert "No forecast for a longer training" in output
    assert re.search(r"BLEU \d", command("evaluate", run.path, *files[2:], "--beam-size", 1))
    command("translate", run.path, files[2], "-o", run.path / "translations")
    assert len((run.path / "translations").read_text().splitlines()) == 50


def test_batches_have_few_shapes_where_each_is_compiled(trained):
    run, output = trained
    config = run.config
    if BACKEND == "jax":
        assert re.search(rf"batches: \d+ of {config.packed_rows} packed rows of .* padding: 1?\d\.\d%", output)
        assert re.search(r"compiling 1 of [45] shapes", output)
        assert re.search(r"compiled [45] shapes in \d+ s", output)
        assert config.packed_rows == config.tokens_per_batch // config.row_length
    else:
        assert (config.packed_rows, config.row_length, config.max_shapes) == (None, None, None)
        assert "shapes" not in output


# Compiling the same run three times takes most of a minute.
@pytest.mark.parametrize("step", [pytest.param(13, marks=[pytest.mark.slow] if BACKEND == "jax" else [])])
def test_an_interrupted_run_resumes(step, trained, options, tmp_path, monkeypatch, steps_only):
    """Ctrl-C within an epoch: the weights at the end are those of the run without an interruption."""
    end_of_batch = SkippedSteps.on_train_batch_end

    def interrupted(callback, batch, logs=None):
        end_of_batch(callback, batch, logs)
        if int(callback.model.optimizer.iterations) == step:
            signal.raise_signal(signal.SIGINT)

    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores Ctrl-C
    with monkeypatch.context() as patch:
        patch.setattr(SkippedSteps, "on_train_batch_end", interrupted)
        result = CliRunner().invoke(main, [str(each) for each in ("train", tmp_path, *options, "--max-steps", STEPS)])
    signal.signal(signal.SIGINT, earlier)
    assert result.exit_code != 0
    assert f"Stopped at step {step}" in result.output
    output = command("train", tmp_path, "--max-steps", STEPS)
    assert f"resuming from step {step}" in output
    run = RunFolder(tmp_path)
    mine, uninterrupted = (keras.models.load_model(each.model_file("last")) for each in (run, trained[0]))
    for resumed, expected in zip(mine.weights, uninterrupted.weights, strict=True):
        np.testing.assert_array_equal(numpy(resumed), numpy(expected), err_msg=resumed.path)


@pytest.mark.parametrize("other", ["tensorflow", "jax", "torch"])
def test_a_run_resumes_on_another_backend(other, trained, files, tmp_path):
    # Each backend goes to TensorFlow, which exports, and TensorFlow to torch, which compiles nothing.
    if other == BACKEND or (BACKEND, other) not in (
        ("jax", "tensorflow"),
        ("torch", "tensorflow"),
        ("tensorflow", "torch"),
    ):
        pytest.skip("another process shows it")
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"needs {other}: install the extra `backends`")
    run = RunFolder(shutil.copytree(trained[0].path, tmp_path / "run"))
    sources, references = (path.read_text(encoding="utf-8").splitlines() for path in files[2:])
    environment = {**os.environ, "KERAS_BACKEND": other, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), environment.get("PYTHONPATH", "")])
    program = [sys.executable, one_run.__file__, run.path, *files[2:], tmp_path / "results.npz"]
    done = subprocess.run([*map(str, program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "results.npz") as file:
        found = dict(file)
    for weight in trained[0].load(trained[0].model_file("final"), compile=False).weights:
        np.testing.assert_array_equal(found[f"weights/{weight.path}"], numpy(weight), err_msg=weight.path)
    assert float(found["bleu"]) == pytest.approx(one_run.bleu(trained[0], sources, references), abs=1e-6)
    assert int(found["step"]) == 22
    if other == "tensorflow":
        assert found["served"].tolist() == found["translated"].tolist()
    if BACKEND != "jax":  # where it would compile once more
        assert one_run.resume(run, 23) == 23  # and back


@pytest.mark.skipif(BACKEND != "torch", reason="is about the optimizers that Keras saves on torch")
def test_a_run_of_torch_resumes_where_torch_is_missing(trained, tmp_path, monkeypatch):
    run = RunFolder(shutil.copytree(trained[0].path, tmp_path / "run"))
    monkeypatch.setattr("keras_attention.pipeline.run_model.is_installed", lambda module: module != "torch")
    assert one_run.resume(run, 21) == 21
    for path in run.checkpoints.glob("state-*.npz"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"has an optimizer of torch, which is not installed, and the run has no state"
    ):
        one_run.resume(run, 22)
