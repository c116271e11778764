"""Rotation of queries and keys by their positions."""

from typing import Any

import keras
import numpy as np
from keras import ops


def rotate(x: Any, positions: Any, max_wavelength: float = 10000.0) -> Any:
    """Turns each pair (x_i, x_{i+D/2}) of a vector at position p by the angle p / 10000^(2i/D).

    The product of a rotated query and a rotated key depends on their distance alone. Angles are float32
    where x has fewer bits.

    Args:
        x: Queries or keys (B, H, T, D), D even.
        positions: (T,), or (B, T) where they differ between rows.
        max_wavelength: 10000 in the paper.

    Returns:
        The rotated x, in its dtype.

    Example:
        >>> x = keras.ops.reshape(keras.ops.arange(4.0), (1, 1, 1, 4))
        >>> keras.ops.convert_to_numpy(rotate(x, keras.ops.array([0]))).ravel().tolist()  # position 0: no turn
        [0.0, 1.0, 2.0, 3.0]

    Source: Su et al. 2021 (RoFormer), section 3.2, with the pairing of the first and second half of the width.
    """
    half, dtype = x.shape[-1] // 2, keras.backend.result_type(x.dtype, "float32")
    frequencies = (max_wavelength ** (-np.arange(half) / half)).astype(dtype)
    angles = ops.multiply(ops.cast(positions, dtype)[..., None], frequencies)  # (T, D/2) or (B, T, D/2)
    if len(angles.shape) == 3:
        angles = angles[:, None]  # (B, 1, T, D/2)
    cosine, sine, wide = ops.cos(angles), ops.sin(angles), ops.cast(x, dtype)
    first, second = wide[..., :half], wide[..., half:]
    turned = ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return ops.cast(turned, x.dtype)
