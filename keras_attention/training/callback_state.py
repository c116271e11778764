"""The state of other callbacks: what they have counted and found, without the settings of their constructor."""

import inspect
import numbers
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np


def named(callbacks: Iterable[keras.callbacks.Callback]) -> dict[str, keras.callbacks.Callback]:
    """Names callbacks by their classes, and by a number the second and later ones of a class."""
    names: dict[str, keras.callbacks.Callback] = {}
    for callback in callbacks:
        name, count = type(callback).__name__, 1
        while name in names:
            count += 1
            name = f"{type(callback).__name__} {count}"
        names[name] = callback
    return names


def numbers_of(callback: keras.callbacks.Callback) -> dict[str, int | float]:
    """The public attributes that are numbers, such as `EarlyStopping.wait`."""
    return {name: _plain(value) for name, value in _attributes(callback) if _is_number(value)}


def arrays_of(callback: keras.callbacks.Callback) -> dict[str, list[np.ndarray]]:
    """The public attributes that are lists of arrays, such as `EarlyStopping.best_weights`."""
    return {
        name: [np.asarray(keras.ops.convert_to_numpy(each)) for each in value]
        for name, value in _attributes(callback)
        if isinstance(value, list | tuple) and value and all(hasattr(each, "shape") for each in value)
    }


def _attributes(callback: keras.callbacks.Callback) -> list[tuple[str, Any]]:
    settings = inspect.signature(type(callback).__init__).parameters
    return [(name, value) for name, value in vars(callback).items() if name[0] != "_" and name not in settings]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _plain(value: Any) -> int | float:
    return int(value) if isinstance(value, numbers.Integral) else float(value)
