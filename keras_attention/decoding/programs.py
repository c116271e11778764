"""Programs for few shapes: how a function of a model and arrays runs on JAX, which compiles each shape, and on torch.

Shapes: B rows, n their length.
"""

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_attention.decoding.model_steps import learned_positions

SHORTEST = 16  # a row is padded to this length at least
# The compiled functions of each model, by what makes them differ other than shapes.
_PROGRAMS: weakref.WeakKeyDictionary[Any, dict[Hashable, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def compiled(function: Callable[..., Any], model: Any, **static: Any) -> Callable[..., Any]:
    """Returns `function(model, *arrays, **static)` as a function of the arrays, nests of tensors and arrays.

    JAX compiles it, once for each shape, torch computes it without gradients. The other arguments are hashable. JAX
    keeps the program, but one with a function among the arguments, or for a model that is not of Keras, only here.
    """
    if keras.backend.backend() == "torch":
        return functools.partial(_without_gradients, functools.partial(function, model, **static))
    if keras.backend.backend() != "jax":
        return functools.partial(function, model, **static)
    # A caller's function or model may use numbers that change between calls, which a program would keep.
    kept = hasattr(model, "variables") and not any(callable(value) for value in static.values())
    programs = _PROGRAMS.setdefault(model, {}) if kept else {}
    key = (function, tuple(sorted(static.items())))
    if key not in programs:
        programs[key] = _jitted(function, model, static)
    # The values of the variables are arguments, so that a program follows a training.
    return lambda *arrays: programs[key]([variable.value for variable in _variables(model)], *arrays)


def _without_gradients(function: Callable[..., Any], *arrays: Any) -> Any:
    """Computes a function of arrays on torch."""
    import torch

    with torch.no_grad():
        return function(*keras.tree.map_structure(_as_tensor, arrays))


def _jitted(function: Callable[..., Any], model: Any, static: dict[str, Any]) -> Callable[..., Any]:
    """Returns the function, compiled by JAX, of the values of the model's variables and the arrays."""
    import jax

    reference = weakref.ref(model)  # or the programs of a model would keep it in memory

    def program(values: list[Any], *arrays: Any) -> Any:
        model = reference()
        with keras.StatelessScope(state_mapping=list(zip(_variables(model), values, strict=True))):
            return function(model, *arrays, **static)

    return jax.jit(program)


def _as_tensor(x: Any) -> Any:
    """Returns an array as a tensor; None stays None."""
    return None if x is None else ops.convert_to_tensor(x)


def _variables(model: Any) -> list[Any]:
    """Returns the variables of a model; one that is not of Keras has none that can change."""
    return list(getattr(model, "variables", ()))


def padded_lengths(lengths: np.ndarray) -> np.ndarray:
    """Returns the lengths that rows have after `pad_to_few_shapes`."""
    if keras.backend.backend() != "jax":
        return lengths
    return np.array([_power_of_two(max(int(length), SHORTEST)) for length in lengths], lengths.dtype)


def pad_to_few_shapes(ids: np.ndarray, pad_id: int, model: Any) -> np.ndarray:
    """Pads ids (B, n) on JAX to few shapes: B and n to the next power of two, n to the learned positions at most."""
    if keras.backend.backend() != "jax" or not hasattr(model, "variables"):  # then `compiled` keeps no program
        return ids
    longest = learned_positions(model)
    rows, length = ids.shape
    padded_length = _power_of_two(max(length, SHORTEST))
    padded_length = padded_length if longest is None else max(length, min(padded_length, longest))
    padding = [(0, _power_of_two(rows) - rows), (0, padded_length - length)]
    return np.pad(ids, padding, constant_values=pad_id)


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()
