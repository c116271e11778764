"""Averaging of checkpoints."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

# The dtypes in which Keras stores quantized weights.
_QUANTIZED = ("int8", "uint8")


def average_checkpoints(model: Any, paths: Sequence[str | Path]) -> None:
    """Sets the model's weights to the mean of those in several checkpoints, or leaves them if one cannot be read.

    Args:
        model: A built Keras model, not quantized.
        paths: Files written by `model.save_weights`, or `.keras` files, of the same model.

    Raises:
        ValueError: If there are no paths, the model is quantized, or a file is damaged or of another model.
        FileNotFoundError: If a path does not exist.

    Example:
        >>> import tempfile
        >>> from keras_attention import Transformer
        >>> model = Transformer.from_preset("tiny", vocabulary_size=11, num_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/step.weights.h5"
        ...     model.save_weights(path)
        ...     average_checkpoints(model, [path, path])

    Source: Vaswani et al. 2017, section 6.1.
    """
    if not paths:
        raise ValueError(f"`paths` must name at least one checkpoint to average. Received: paths={paths!r}")
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(f"These checkpoints do not exist: {', '.join(missing)}")
    quantized = [weight.path for weight in model.weights if keras.backend.standardize_dtype(weight.dtype) in _QUANTIZED]
    if quantized:
        raise ValueError(
            "The mean of integers with different scales is not the mean of the weights. Average the checkpoints of the "
            "`model` before it is quantized, then call `model.quantize`. Received: a model with quantized weights such "
            f"as {quantized[0]}"
        )
    before = model.get_weights()
    try:
        mean = _mean(model, paths)
    except Exception:
        model.set_weights(before)
        raise
    model.set_weights(mean)


def _mean(model: Any, paths: Sequence[str | Path]) -> list[np.ndarray]:
    """The mean of each weight; the files are read into the model one after the other."""
    totals = None
    for path in paths:
        _load(model, path)
        weights = [np.asarray(weight, "float64") for weight in model.get_weights()]
        totals = weights if totals is None else [a + b for a, b in zip(totals, weights, strict=True)]
    return [total / len(paths) for total in totals]


def _load(model: Any, path: str | Path) -> None:
    try:
        model.load_weights(path)
    except PermissionError:
        raise
    except Exception as error:
        is_damaged = isinstance(error, OSError | zipfile.BadZipFile)
        reason = "is damaged; remove it" if is_damaged else f"is of another model: {error}"
        raise ValueError(
            f"`paths` must be checkpoints of the same `model`, but {path} {reason}. Received: paths with {str(path)!r}"
        ) from error
