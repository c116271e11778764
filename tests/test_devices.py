"""Training on several devices of a machine, with two logical devices of a processor: its gradients are those of one."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import two_devices
from click.testing import CliRunner

from keras_attention.cli import main
from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunConfig
from keras_attention.pipeline.devices import device_scope, distributed

pytestmark = pytest.mark.tensorflow


def results_of(folder, *arguments):
    """What the program has computed, by name."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), environment.get("PYTHONPATH", "")])
    program = [sys.executable, two_devices.__file__, folder / "results.npz", *arguments]
    done = subprocess.run([*map(str, program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "results.npz") as file:
        return {**file, "output": done.stdout}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of(tmp_path_factory.mktemp("trainings"))


def check_alike(results, prefix="", rtol=1e-5, atol=2e-6):
    names = [name.removeprefix(f"{prefix}one/") for name in results if name.startswith(f"{prefix}one/")]
    assert any(name.startswith("weights/") for name in names)
    for name in names:
        one, two = (results[f"{prefix}{count}/{name}"] for count in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.slow
def test_two_devices_train_a_model_as_one_does(results):
    """Muon, batches of odd numbers of rows and of one row, the losses of all batches, the metrics, the evaluation."""
    check_alike(results, "fit_with_muon/")
    assert len(results["fit_with_muon/two/losses"]) == 2 * len(two_devices.make_batches())


@pytest.mark.slow
def test_two_devices_accumulate_and_clip_as_one_does(results):
    """FusedAdam, by a ChunkedTrainer, with the norm of the gradients of all rows."""
    check_alike(results, "accumulate_with_adam/")
    assert results["accumulate_with_adam/two/steps"] == 2
    norms = results["accumulate_with_adam/two/norms"]
    assert np.all(norms[np.isfinite(norms)] > 0.5)  # so that all are clipped


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_device_skips_the_step_on_all(results):
    assert results["accumulate_with_adam/two/skipped"] == 1
    assert np.isnan(results["accumulate_with_adam/two/norms"]).tolist() == [False, False, True, False, False]
    assert not results["accumulate_with_adam/two/copies differ"]


@pytest.mark.slow
def test_each_device_drops_other_values(results):
    """By random bytes, by Keras' dropout, and by the token cutoff of SimCut."""
    assert results["masks differ"].tolist() == [True, True, True]


@pytest.fixture
def config(tmp_path):
    """The config of a small run without dropout."""
    pairs = make_pairs("de", 350)
    paths = {}
    for split, part in (("", pairs[:300]), ("valid_", pairs[300:])):
        for side, name in enumerate(("source", "target")):
            path = tmp_path / f"{split}{name}"
            path.write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
            paths[f"{split}{name}"] = str(path)
    model = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32, "dropout": 0.0}
    settings = {"vocabulary_size": 200, "evaluate_every": 5, "score_sentences": 5, "ema": 0.9, "warmup_steps": 2}
    return RunConfig.from_preset("tiny", **paths, **settings, model=model)


@pytest.mark.slow
def test_an_interrupted_run_on_two_devices_ends_with_the_weights_of_one(config, tmp_path):
    config.save(tmp_path / "config.yaml")
    results = results_of(tmp_path, tmp_path / "config.yaml")
    check_alike(results)
    assert f"resuming from step {two_devices.INTERRUPTED}" in results["output"]
    assert results["output"].count("devices: 2 CPUs, each with a part of the rows of a batch") == 2


def test_one_device_trains_as_without_the_option(capsys):
    for devices in (1, "all"):
        with device_scope(devices)() as scope:
            assert scope is None
        assert capsys.readouterr().out == "devices: 1 CPU, as without `devices`\n"
    with device_scope(None)():
        assert capsys.readouterr().out == ""


def test_devices_that_do_not_exist(config, tmp_path):
    config.save(tmp_path / "config.yaml")
    result = CliRunner().invoke(main, ["train", str(tmp_path), "--devices", "3", "--max-steps", "1"])
    assert result.exit_code == 1
    assert result.output == (
        "Error: `devices` must be at most the number of devices of this machine that TensorFlow sees, 1 CPU, or "
        '"all" of them. Received: devices=3\n'
    )
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("devices", [0, -1, True, 1.5, "both", "2"])
def test_devices_are_a_number_or_all(devices):
    with pytest.raises(ValueError, match=r'must be "all" or a number of devices above zero. Received: devices='):
        device_scope(devices)


def test_a_float16_loss_is_not_scaled_on_several_devices(monkeypatch):
    import tensorflow as tf

    devices = [SimpleNamespace(device_type="CPU", name=f"CPU:{number}") for number in range(2)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices if kind == "CPU" else [])
    with pytest.raises(ValueError, match=r"use the dtype mixed_bfloat16 .* devices='all' with dtype='mixed_float16'"):
        device_scope("all", "mixed_float16")


def test_other_backends(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    device_scope(1)
    with pytest.raises(ValueError, match=r"on torch a run trains on one device: .* Received: devices=2"):
        device_scope(2)
    pytest.importorskip("jax")
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with device_scope("all")():  # the whole training is in the scope of `distributed`
        pass
    with pytest.raises(ValueError, match=r"JAX has 1 device here: .* Received: devices=2"):
        distributed(2)
