"""A dropout mask that is a hash of its indices, so that the backward pass computes it again."""

from typing import Any

from keras import ops

# Odd 32-bit constants of a hash; products of int32 wrap around on every backend.
_MULTIPLIERS = (0x2C1B3C6D, 0x297A2D39, 0x5BD1E995)


def keep_mask(seed: Any, row: Any, queries: Any, keys: Any, rate: float) -> Any:
    """Boolean, True with probability 1 - rate; the same at the same indices.

    `queries` and `keys` are indices that broadcast against each other; `seed` is two integers.
    """
    first, second = ops.cast(seed[0], "int32"), ops.cast(seed[1], "int32")
    row = _mix(_mix(ops.cast(row, "int32") + first) + second)
    # Both index vectors are mixed thoroughly, which leaves few operations for each pair.
    mixed = ops.bitwise_xor(_mix(_mix(queries) + row), _mix(_mix(keys + _MULTIPLIERS[2]) - row))
    return _scramble(_scramble(mixed, 15, 0), 13, 1) >= int(rate * 2**32) - 2**31


def _mix(x: Any) -> Any:
    for shift, multiplier in ((16, 2), (13, 0), (15, 1)):
        x = _scramble(x, shift, multiplier)
    return x


def _scramble(x: Any, shift: int, multiplier: int) -> Any:
    return ops.bitwise_xor(x, ops.right_shift(x, shift)) * _MULTIPLIERS[multiplier]
