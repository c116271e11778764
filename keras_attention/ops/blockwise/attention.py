"""Attention whose memory grows with the length, not with its square as the scores of all pairs do.

Shapes: B batch, T query length, S key length, H heads, G heads of keys and values, D and E widths of a head, N = B·H
rows, R positions of a block, C columns of a tile.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.ops.attention import MASKED_SCORE
from keras_attention.ops.blockwise.passes import BlockPasses, StaticArguments
from keras_attention.ops.blockwise.tiles import known_integer
from keras_attention.ops.visible_pairs import VisiblePairs

# Pairs of a sentence and head from which blocks are used: 64 MiB of float32, of which several copies would be needed.
LONG = 2**24
_MASKS = ("pairs", "query_segments", "key_segments", "offset")


def blockwise_attention(
    query: Any,
    key: Any,
    value: Any,
    visible: VisiblePairs | None = None,
    key_bias: Any = None,
    distance_bias: Any = None,
    dropout: float = 0.0,
    seed: Any = None,
    block_size: int | None = None,
) -> Any:
    """The output of `dot_product_attention`, computed block by block without the scores of all pairs.

    A block of queries attends to the keys that it may see; what causality or a window hides is not computed. The
    forward pass keeps the output and log Σ exp(score) of each query, from which the backward pass computes the
    weights again, a block of keys at a time. Computed in float32 or wider.

    Args:
        query: Q, (B, H, T, D).
        key: K, (B, G, S, D); G divides H, and H/G query heads in a row share a head of keys and values.
        value: V, (B, G, S, E).
        visible: The pairs that may attend; all by default.
        key_bias: Added to the scaled scores with a key, broadcastable to (B, H, 1, S).
        distance_bias: Added to the scaled scores by distance j - i from query to key, (H, T + S - 1): first
            j - i = 1 - T, last S - 1.
        dropout: Dropout rate of the weights.
        seed: Two integers that seed the dropout.
        block_size: R; chosen by the size of a tile by default.

    Returns:
        The output (B, H, T, E).

    Example:
        >>> q, k, v = ops.ones((2, 3, 5, 7)), ops.ones((2, 3, 11, 7)), ops.ones((2, 3, 11, 13))
        >>> print(blockwise_attention(q, k, v, VisiblePairs(is_causal=True), block_size=2).shape)
        (2, 3, 5, 13)

    Source: Rabe and Staats 2021; Dao et al. 2022 (FlashAttention), section 3 and appendix B.
    """
    visible = visible or VisiblePairs()
    visible = visible._replace(offset=known_integer(visible.offset))
    batch, heads, queries, _ = ops.shape(query)
    dtype = keras.backend.result_type(query.dtype, "float32")
    tensors = {
        "query": _rows(query, dtype) * key.shape[-1] ** -0.5,
        "key": _rows(key, dtype),
        "value": _rows(value, dtype),
        "column": _column(visible.keys, key_bias, batch, heads, ops.shape(key)[2], dtype),
        "distances": None if distance_bias is None else ops.cast(distance_bias, dtype),
        "seed": seed if dropout else None,
        **{name: x for name, x in visible._asdict().items() if name in _MASKS and ops.is_tensor(x)},
    }
    given = {name: x for name, x in tensors.items() if x is not None}
    static = StaticArguments(visible, heads, heads // key.shape[1], key_bias is not None, dropout, block_size)

    # All tensors are arguments: JAX could not differentiate a compiled function that closes over them.
    @ops.custom_gradient
    def attend(*arguments: Any) -> Any:
        call = BlockPasses(static, dict(zip(given, arguments, strict=True)))
        output, log_sums = call.forward()  # (N, T, E), (N, T)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            found = call.backward(output, log_sums, args[0] if upstream is None else upstream)
            return tuple(found.get(name) for name in given)

        return output, gradient

    output = ops.reshape(attend(*given.values()), (batch, heads, queries, value.shape[-1]))
    if visible.queries is not None:
        output = ops.where(visible.queries[:, None, :, None], output, ops.zeros_like(output))
    return ops.cast(output, value.dtype)  # (B, H, T, E)


def is_long(query_length: Any, key_length: Any) -> bool:
    """Whether the lengths are known and large enough for blocks; a single query never is."""
    known = isinstance(query_length, int) and isinstance(key_length, int)
    return known and query_length > 1 and query_length * key_length >= LONG


def _rows(x: Any, dtype: str) -> Any:
    """(B, H, L, D) as (N, L, D)."""
    return ops.reshape(ops.cast(x, dtype), (-1, *ops.shape(x)[2:]))


def _column(visible: Any, bias: Any, batch: Any, heads: int, keys: Any, dtype: str) -> Any:
    """The term that each key adds to its scores, (B, S), or (N, S) where heads differ."""
    if bias is None:
        column = ops.zeros((batch, keys), dtype)
    else:
        bias = ops.cast(bias, dtype)
        bias = ops.reshape(bias, (*(1,) * (4 - len(bias.shape)), *ops.shape(bias)))
        column = ops.broadcast_to(bias[:, :, 0], (batch, heads, keys))
        visible = visible if visible is None or len(visible.shape) == 1 else visible[:, None]
    if visible is not None:
        column = ops.where(visible, column, ops.cast(MASKED_SCORE, dtype))
    return ops.reshape(column, (-1, keys))
