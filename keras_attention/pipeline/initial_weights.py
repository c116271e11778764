"""The beginning of a run with the tokenizer and the weights of another one."""

from pathlib import Path
from typing import Any

from keras_attention.layers.arguments import Errors
from keras_attention.models import Transformer
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.folder import RunFolder, sha256

# Attributes of a model on which its weights do not depend.
_ANY_VALUE = ("dropout", "attention_dropout", "activation_dropout", "remat")


def config_from(folder: str | Path, **changes: Any) -> RunConfig:
    """Returns the config of a new run that begins with the weights of another, with its settings except the changes."""
    config = RunFolder(folder).config
    # `evaluate_every` and `weight_decay` were chosen by the length of that training, and `total_steps` are its end.
    of_training = ["evaluate_every", "weight_decay", "total_steps"]
    if config.row_length is not None:  # chosen by the longest pair of that text
        of_training += ["packed_rows", "row_length"]
    return config.replace(**{**dict.fromkeys(of_training), **changes, "init_from": str(folder)})


def adopt_tokenizer(run: RunFolder, config: RunConfig) -> RunConfig:
    """Checks that a new run can begin with the weights of `init_from`, and returns the config with that tokenizer's."""
    other = RunFolder(config.init_from)
    if other.path.resolve() == run.path.resolve():
        raise ValueError(f"`init_from` must be another run. Received: init_from={config.init_from!r} for {run.path}")
    other_config = other.config
    other.checkpoint_file()
    config = config.replace(
        vocabulary_size=config.vocabulary_size or other_config.vocabulary_size, split_digits=other_config.split_digits
    )
    old, new = other_config.transformer().to_dict(), config.transformer().to_dict()
    errors = Errors()
    for name, value in new.items():
        if value != old[name] and name not in _ANY_VALUE:
            errors.add(f"{name}: {old[name]!r} in {other.path}, {value!r} in the new config")
    if errors.messages:
        raise ValueError(
            f"The weights of {other.path} are those of another model: begin without these settings, or without "
            f"`init_from`. Received: {'; '.join(errors.messages)}"
        )
    return config


def load_initial_weights(model: Transformer, config: RunConfig) -> None:
    """Sets the weights of a new model to those of the run `init_from`."""
    other = RunFolder(config.init_from)
    model.set_weights(other.load(other.checkpoint_file(), compile=False).get_weights())


def describe_initial_weights(config: RunConfig) -> dict[str, Any]:
    """The entries of the run's log for a run that begins with other weights."""
    file = RunFolder(config.init_from).checkpoint_file()
    return {"run": config.init_from, "checkpoint": file.stem, "sha256": sha256(file)}
