"""Averaging of checkpoints."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def average_checkpoints(model: Any, paths: Sequence[str | Path]) -> None:
    """Sets the model's weights to the mean of those in the given files.

    Args:
        model: A built Keras model.
        paths: Files written by `model.save_weights`, or whole `.keras` files of the same model.

    Raises:
        ValueError: No paths, or a file that is damaged.
        FileNotFoundError: A path that does not exist.

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
        raise ValueError("`paths` names at least one checkpoint to average. Received: no paths")
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(f"These checkpoints do not exist: {', '.join(missing)}")
    totals = None
    for path in paths:
        _load(model, path)
        weights = [np.asarray(weight, "float64") for weight in model.get_weights()]
        totals = weights if totals is None else [a + b for a, b in zip(totals, weights, strict=True)]
    model.set_weights([total / len(paths) for total in totals])


def _load(model: Any, path: str | Path) -> None:
    try:
        model.load_weights(path)
    except PermissionError:
        raise
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: it does not hold the weights of a model. Remove it") from error
