"""What relative position biases make of the distance between a query and a key."""

import math
from typing import Any

from keras import ops


def alibi_slopes(num_heads: int) -> list[float]:
    """How fast each head's attention falls with distance: 2^(-8/H), 2^(-16/H), …, 2^-8.

    Where H is no power of two, the slopes of the next smaller one are completed by every other slope of the next
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
    """Numbers the distances: small ones each for themselves, larger ones by their logarithm.

    Args:
        distance: Key position minus query position, integers.
        num_buckets: How many numbers there are.
        max_distance: From here on all distances share a bucket.
        bidirectional: Whether keys after the query have buckets of their own (the second half) or share bucket 0.

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
