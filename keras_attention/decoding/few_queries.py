"""Attention for so few queries that waking a second thread takes longer than the computation.

Shapes: B sentences, K beams, H heads, D head width, n positions of a part, N positions of all parts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_attention.ops.attention import cached_attention

Attention = Callable[[Any, Sequence[Any], Any], Any]
# Pairs of a query and a key of one head up to which these kernels are faster.
MOST_PAIRS = 512


def attention_for(beams: int) -> Attention:
    """The implementation of `cached_attention` for a search with K beams, which chooses by the number of queries."""
    if beams == 1:  # one vector for each head: always faster with the kernels for few queries
        return attention_of_few

    def attention(query: tf.Tensor, memory: Sequence[tf.Tensor], bias: tf.Tensor) -> tf.Tensor:
        pairs = tf.shape(query)[0] * tf.shape(query)[2] * tf.shape(bias)[2]
        few = pairs <= MOST_PAIRS
        return tf.cond(
            few, lambda: attention_of_few(query, memory, bias), lambda: cached_attention(query, memory, bias)
        )

    return attention


def memory_dtype(beams: int) -> str | None:
    """The dtype of the keys and values for `attention_for`: None for that of the model.

    float32 for one beam, whose attention would cast all of them at each step.
    """
    return "float32" if beams == 1 else None


def attention_of_few(query: tf.Tensor, memory: Sequence[tf.Tensor], bias: tf.Tensor) -> tf.Tensor:
    """`cached_attention` by kernels that run small work in the calling thread.

    On a CPU TensorFlow runs `tf.matmul` and `tf.nn.softmax` with oneDNN, which wakes the other threads for work of any
    size. `BatchMatMulV3` and `tf.nn.log_softmax` estimate the cost first; the former is fastest on matrices of
    one row, so each query is one.

    Args:
        query: Q, (B, H, K, D), scaled.
        memory: Keys and values (2, B, H, n, D), in one part or in two of N positions together.
        bias: (B, K or 1, N).

    Returns:
        (B, H, K, D), in the dtype of the query; computed in float32.

    Example:
        >>> print(attention_of_few(tf.ones((2, 3, 1, 7)), (tf.ones((2, 2, 3, 5, 7)),), tf.zeros((2, 1, 5))).shape)
        (2, 3, 1, 7)
    """
    row = tf.cast(query[:, :, :, None], tf.float32)  # (B, H, K, 1, D)
    scores = [_product(row, pair[0], adj_y=True) for pair in memory]  # (B, H, K, 1, n)
    weights = tf.exp(tf.nn.log_softmax(tf.concat(scores, axis=-1) + bias[:, None, :, None]))  # (B, H, K, 1, N)
    parts = tf.split(weights, [tf.shape(x)[-1] for x in scores], axis=-1, num=len(scores)) if scores[1:] else [weights]
    context = [_product(part, pair[1]) for part, pair in zip(parts, memory, strict=True)]  # (B, H, K, 1, D)
    return tf.cast(tf.add_n(context)[:, :, :, 0], query.dtype)


def _product(rows: tf.Tensor, memory: tf.Tensor, adj_y: bool = False) -> tf.Tensor:
    """Rows (B, H, K, 1, ·) times the memory (B, H, n, D) of their sentence, or its transpose."""
    shared = tf.cast(memory, tf.float32)[:, :, None]  # (B, H, 1, n, D)
    return tf.raw_ops.BatchMatMulV3(x=rows, y=shared, Tout=tf.float32, adj_y=adj_y)
