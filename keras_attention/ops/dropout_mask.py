"""Dropout that need not be stored: what was dropped can be computed again."""

from typing import Any

from keras import ops

# Odd numbers of 32 bits without pattern, as int32: products wrap around on every backend.
_MULTIPLIERS = (0x2C1B3C6D, 0x297A2D39, 0x5BD1E995)


def kept(seed: Any, row: Any, queries: Any, keys: Any, rate: float) -> Any:
    """Which weights of a head are kept, a hash of their place.

    Args:
        seed: Two integers.
        row: Number of the sentence and head, a scalar.
        queries: Indices of queries.
        keys: Indices of keys, to be broadcast with those of the queries.
        rate: The share to drop.

    Returns:
        Boolean, True with probability 1 - rate; the same for the same place.

    Example:
        >>> indices = ops.arange(1000, dtype="int32")
        >>> places = kept(ops.array([1, 2]), 3, indices[:, None], indices[None, :], rate=0.25)
        >>> print(places.shape, round(float(ops.mean(ops.cast(places, "float32"))), 2))
        (1000, 1000) 0.75
    """
    first, second = ops.cast(seed[0], "int32"), ops.cast(seed[1], "int32")
    row = _mix(_mix(ops.cast(row, "int32") + first) + second)
    # Two vectors, thoroughly mixed and each in its own way, and few operations for each pair.
    places = ops.bitwise_xor(_mix(_mix(queries) + row), _mix(_mix(keys + _MULTIPLIERS[2]) - row))
    return _scramble(_scramble(places, 15, 0), 13, 1) >= int(rate * 2**32) - 2**31


def _mix(x: Any) -> Any:
    for shift, multiplier in ((16, 2), (13, 0), (15, 1)):
        x = _scramble(x, shift, multiplier)
    return x


def _scramble(x: Any, shift: int, multiplier: int) -> Any:
    return ops.bitwise_xor(x, ops.right_shift(x, shift)) * _MULTIPLIERS[multiplier]
