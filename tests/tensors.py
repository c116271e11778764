"""Sizes, random tensors and comparisons that tests of layers share.

All axes have different sizes, primes where they can be, so that a swapped axis cannot pass.
"""

from typing import Any

import keras
import numpy as np
from backends import gradient, numpy, weighted_sum

B, T, S, H, D, F, V = 2, 5, 7, 3, 11, 13, 17
M = H * D
MEMORY_WIDTH = 29
PAST = 18  # positions in a cache
LENGTHS = {T: [T, 3], S: [4, S]}  # real tokens of each of the two sentences


def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.normal(size=shape) * scale).astype("float32")


def padding(length: int) -> np.ndarray:
    """The padding mask (B, length) of a batch of sentences of different lengths."""
    return np.arange(length) < np.array(LENGTHS[length])[:, None]


def randomize(layer: Any) -> None:
    """Weights that are neither 0 nor 1, so that no bias and no scale may be forgotten."""
    for weight in layer.weights:
        values = np.random.normal(size=weight.shape) * 0.3
        weight.assign(values + 1 if weight.path.endswith("gamma") else values)


def float32(structure: Any) -> Any:
    return numpy(keras.tree.map_structure(lambda x: keras.ops.cast(x, "float32"), structure))


def assert_close(actual: Any, expected: Any, **tolerance: float) -> None:
    """Compares tensors, or structures of them, at float32 rounding unless told otherwise."""
    keras.tree.assert_same_structure(actual, expected)
    pairs = zip(keras.tree.flatten(float32(actual)), keras.tree.flatten(float32(expected)), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, **{"atol": 2e-5, "rtol": 1e-5, **tolerance})


def largest_difference(one: Any, other: Any) -> float:
    """How far two tensors are apart at most."""
    return np.abs(float32(one) - float32(other)).max()


def influence(function: Any, x: np.ndarray) -> np.ndarray:
    """Which input position (column) changes which output position (row), of one sentence (T, M)."""
    x = x[None]
    direction = draw(*function(keras.ops.convert_to_tensor(x)).shape)  # (1, T, M)
    rows = []
    for t in range(direction.shape[1]):
        row = np.zeros_like(direction)
        row[:, t] = direction[:, t]
        rows.append(gradient(lambda x, row=row: weighted_sum(function(x), row), x)[0])  # (T, M)
    return np.abs(rows).max(-1) > 0
