"""Attention of a few new tokens to what a decoder has cached.

Shapes: B sentences, K queries of a sentence, H heads, D head width, n places of a part, N places of all parts.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_attention.ops.attention import masked_softmax


def cached_attention(query: Any, memory: Sequence[Any], bias: Any) -> Any:
    """softmax(Q Kᵀ + bias) V over keys and values in parts, which need not be joined for it.

    Args:
        query: Q, (B, H, K, D), scaled.
        memory: Keys and values (2, B, H, n, D), in one part or in two of N places together.
        bias: (B, K or 1, N).

    Returns:
        (B, H, K, D), in the dtype of the query; the softmax is taken in float32.

    Example:
        >>> print(cached_attention(ops.ones((2, 3, 1, 7)), (ops.ones((2, 2, 3, 5, 7)),), ops.zeros((2, 1, 5))).shape)
        (2, 3, 1, 7)

    Source: Vaswani et al. 2017, section 3.2.1, equation 1.
    """
    scores = [ops.matmul(query, ops.transpose(pair[0], (0, 1, 3, 2))) for pair in memory]  # (B, H, K, n)
    scores = ops.cast(scores[0] if len(memory) == 1 else ops.concatenate(scores, axis=-1), "float32")
    weights = ops.cast(masked_softmax(scores + bias[:, None]), query.dtype)  # (B, H, K, N)
    if len(memory) == 1:
        return ops.matmul(weights, memory[0][1])
    older, newer = (pair[1] for pair in memory)
    places = ops.shape(older)[2]
    return ops.matmul(weights[..., :places], older) + ops.matmul(weights[..., places:], newer)
