"""The model of a run, with its optimizer: built from the config, or loaded from the last checkpoint."""

import zipfile
from pathlib import Path

import keras

from keras_attention.extras import is_installed
from keras_attention.models import Transformer
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.initial_weights import load_initial_weights
from keras_attention.training import ChunkedTrainer, MaskedAccuracy, MaskedCrossEntropy, Perplexity
from keras_attention.training.presets import OPTIMIZERS
from keras_attention.training.state_files import state_files


def load_model(run: RunFolder, config: RunConfig) -> Transformer:
    """Loads the model of the last checkpoint, with its optimizer, or builds a new one before there is a checkpoint."""
    file = run.model_file("last")
    if not file.exists():
        model = build_model(config)
        if config.init_from is not None and not run.trained:  # otherwise the state of the run has its weights
            load_initial_weights(model, config)
        return model
    if not _can_load_optimizer(file):
        return _without_saved_optimizer(run, config, file)
    model = run.load(file)
    # The optimizer that scales a float16 loss holds the run's own.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    loaded, expected = optimizer.get_config(), _optimizer(config).get_config()
    # Versions differ in the last four, and a run keeps the values of the one that began it.
    ignored = ("name", "learning_rate", "iteration_dtype", "steps", "momentum", "weight_decay")
    differing = [name for name in expected if name not in ignored and loaded.get(name) != expected[name]]
    if differing:
        raise ValueError(
            f"{file} was not trained with the optimizer of {run.config_file}: restore the earlier config. "
            f"Received: other values of {', '.join(differing)}"
        )
    # An optimizer of version 0.2 has a schedule, and each backend has its own class of Adam.
    if isinstance(loaded["learning_rate"], dict) or type(optimizer) is not type(_optimizer(config)):
        _replace_optimizer(model, optimizer, config)
    return model


def _can_load_optimizer(file: Path) -> bool:
    """Returns False for an optimizer that Keras saved on torch, as a class that needs torch, where that is missing."""
    if is_installed("torch") or not zipfile.is_zipfile(file):  # `RunFolder.load` raises the error of a damaged file
        return True
    with zipfile.ZipFile(file) as archive:
        return b"keras.src.backend.torch" not in archive.read("config.json")


def _without_saved_optimizer(run: RunFolder, config: RunConfig, file: Path) -> Transformer:
    """Loads a model and compiles it with a new optimizer, which gets its values from the state of the run."""
    if not state_files(run.checkpoints):
        raise ValueError(
            f"{file} has an optimizer of torch, which is not installed, and the run has no state-*.npz with its "
            f"values: resume the run where torch is installed, or begin another one with `--from {run.path}`. "
            f"Received: KERAS_BACKEND={keras.config.backend()}"
        )
    model = run.load(file, compile=False)
    _compile(model, config)
    return model


def _replace_optimizer(model: Transformer, optimizer: keras.optimizers.Optimizer, config: RunConfig) -> None:
    """Compiles a model with the optimizer of the config, in the same state."""
    _compile(model, config)
    new = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    new.build(model.trainable_variables)
    states = ([each for each in of.variables if each.name != "learning_rate"] for of in (new, optimizer))
    for variable, value in zip(*states, strict=True):
        variable.assign(value)


def build_model(config: RunConfig) -> Transformer:
    """Builds and compiles a new model."""
    model = Transformer(config.transformer(), dtype=config.dtype)
    _compile(model, config)
    return model


def _compile(model: Transformer, config: RunConfig) -> None:
    model.compile(
        _optimizer(config),
        loss=MaskedCrossEntropy(label_smoothing=config.label_smoothing),
        metrics=[MaskedAccuracy(), Perplexity()],
    )


def _optimizer(config: RunConfig) -> keras.optimizers.Optimizer:
    optimizer = OPTIMIZERS[config.optimizer](
        config.transformer(),
        gradient_accumulation_steps=config.gradient_accumulation,
        weight_decay=config.weight_decay or None,
    )
    # A number instead of the schedule: `DecayToLimit` sets it before each step.
    changes = {"learning_rate": 0.0}
    if config.optimizer == "muon" and config.dtype == "mixed_bfloat16":
        changes["iteration_dtype"] = "bfloat16"
    return type(optimizer).from_config({**optimizer.get_config(), **changes})


def make_trainer(model: Transformer, config: RunConfig) -> ChunkedTrainer:
    """The model for `fit`: it trains the same weights with the same optimizer, without the logits of a whole batch."""
    inputs = None if config.packed_rows is None else model.packed().input
    trainer = ChunkedTrainer(
        model,
        config.label_smoothing,
        inputs,
        consistency=config.consistency,
        consistency_weight=config.consistency_weight,
    )
    trainer.compile(model.optimizer)
    return trainer
