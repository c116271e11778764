"""The position vectors of the paper."""

from typing import Any

import numpy as np
from keras import ops


def sinusoids(positions: Any, dim: int, max_wavelength: float = 10000.0) -> Any:
    """PE(pos, 2i) = sin(pos / 10000^(2i/M)), PE(pos, 2i+1) = cos(pos / 10000^(2i/M)).

    Sine and cosine are interleaved, and the table is float32 whatever the compute dtype: in bfloat16
    neighbouring positions above 256 would be the same.

    Args:
        positions: Integer or float tensor (T,) or (B, T), 0 for the first token.
        dim: M, the width of the model.
        max_wavelength: 10000 in the paper.

    Returns:
        A float32 table (T, M) or (B, T, M).

    Example:
        >>> table = sinusoids(keras.ops.arange(3), 4)
        >>> keras.ops.convert_to_numpy(table[0]).tolist()  # sin(0), cos(0), sin(0), cos(0)
        [0.0, 1.0, 0.0, 1.0]

    Source: Vaswani et al. 2017, section 3.5.
    """
    pairs = (dim + 1) // 2
    frequencies = max_wavelength ** (-2 * np.arange(pairs) / dim)
    angles = ops.multiply(ops.cast(positions, "float32")[..., None], frequencies.astype("float32"))  # (T, M/2)
    table = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (T, M/2, 2)
    return ops.reshape(table, (*ops.shape(angles)[:-1], 2 * pairs))[..., :dim]  # (T, M)
