"""Positions: the sinusoids of the paper, rotation of queries and keys, ALiBi slopes, T5 buckets."""

import math
from typing import Any

import keras
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


def rotate(x: Any, positions: Any, max_wavelength: float = 10000.0) -> Any:
    """Rotates each pair (x_i, x_{i+D/2}) of a vector at position p by the angle p / 10000^(2i/D).

    The product of a rotated query and a rotated key depends only on their distance. Angles are float32
    where x has fewer bits.

    Args:
        x: Queries or keys (B, H, T, D), D even.
        positions: (T,), or (B, T) where rows differ.
        max_wavelength: 10000 in the paper.

    Returns:
        The rotated x, in its dtype.

    Example:
        >>> x = keras.ops.reshape(keras.ops.arange(4.0), (1, 1, 1, 4))
        >>> keras.ops.convert_to_numpy(rotate(x, keras.ops.array([0]))).ravel().tolist()  # position 0: angle 0
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
    rotated = ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return ops.cast(rotated, x.dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head's linear bias by distance: 2^(-8/H), 2^(-16/H), …, 2^-8.

    Where H is not a power of two, the slopes of the next smaller one are followed by every other slope of the next
    larger one.

    Args:
        num_heads: H.

    Returns:
        H slopes.

    Example:
        >>> alibi_slopes(4)
        [0.25, 0.0625, 0.015625, 0.00390625]

    Source: Press et al. 2021 (ALiBi), section 3.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes if power == num_heads else slopes + alibi_slopes(2 * power)[0::2][: num_heads - power]


def distance_buckets(distance: Any, num_buckets: int, max_distance: int, bidirectional: bool) -> Any:
    """The T5 bucket of each distance: one bucket for each small distance, logarithmic ranges for larger ones.

    Args:
        distance: Key position minus query position, integers.
        num_buckets: Number of buckets.
        max_distance: Distances from here on share the last bucket.
        bidirectional: Whether keys after the query have their own buckets, the second half, or share bucket 0.

    Returns:
        Bucket numbers, int32, of the shape of `distance`.

    Example:
        >>> buckets = distance_buckets(keras.ops.array([1, 0, -1, -20, -500]), 32, 128, bidirectional=False)
        >>> keras.ops.convert_to_numpy(buckets).tolist()
        [0, 0, 1, 17, 31]

    Source: Raffel et al. 2019 (T5), section 2.1.
    """
    distance = ops.cast(distance, "int32")
    side = 0
    if bidirectional:
        num_buckets //= 2
        side = ops.where(distance > 0, num_buckets, 0)
        distance = ops.abs(distance)
    else:
        distance = ops.maximum(-distance, 0)
    exact = num_buckets // 2
    ratio = ops.log(ops.cast(ops.maximum(distance, 1), "float32") / exact) / math.log(max_distance / exact)
    far = exact + ops.cast(ratio * (num_buckets - exact), "int32")
    return side + ops.where(distance < exact, distance, ops.minimum(far, num_buckets - 1))
