"""Attention for so few queries that waking a second thread would take longer than computing it.

Shapes: B sentences, K beams, H heads, D head width, n places of a part, N places of all parts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_attention.ops.cached_attention import cached_attention

Attention = Callable[[Any, Sequence[Any], Any], Any]
# Pairs of a query and a key, of one head. With more of them, the kernels for many have the better of it.
MOST_PAIRS = 512


def attention_for(beams: int) -> Attention:
    """The attention of a step of a search: for few queries or for many, whichever it finds.

    Args:
        beams: K.

    Returns:
        What computes `cached_attention`.
    """
    if beams == 1:  # a vector for each head, at which the kernels for few are the better ones however many there are
        return attention_of_few

    def attention(query: tf.Tensor, memory: Sequence[tf.Tensor], bias: tf.Tensor) -> tf.Tensor:
        pairs = tf.shape(query)[0] * tf.shape(query)[2] * tf.shape(bias)[2]
        few = pairs <= MOST_PAIRS
        return tf.cond(
            few, lambda: attention_of_few(query, memory, bias), lambda: cached_attention(query, memory, bias)
        )

    return attention


def memory_dtype(beams: int) -> str | None:
    """The dtype of the keys and values that `attention_for` is given.

    Args:
        beams: K.

    Returns:
        float32 for one beam, whose attention would turn all of them into that at each step; None for that of the model.
    """
    return "float32" if beams == 1 else None


def attention_of_few(query: tf.Tensor, memory: Sequence[tf.Tensor], bias: tf.Tensor) -> tf.Tensor:
    """`cached_attention` by kernels that run in the calling thread when there is little to do.

    On a CPU TensorFlow gives `tf.matmul` and `tf.nn.softmax` to oneDNN, which wakes the other threads for 10 numbers as
    for 10 million: 30 to 60 µs each time. `BatchMatMulV3` and `tf.nn.log_softmax` weigh the work first. Each query is a
    matrix of one row, the form for which the former is quick.

    Args:
        query: Q, (B, H, K, D), scaled.
        memory: Keys and values (2, B, H, n, D), in one part or in two of N places together.
        bias: (B, K or 1, N).

    Returns:
        (B, H, K, D), in the dtype of the query; everything inside is float32.

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
    """Rows (B, H, K, 1, ·) times what all queries of a sentence share, (B, H, n, D) or its transpose."""
    shared = tf.cast(memory, tf.float32)[:, :, None]  # (B, H, 1, n, D)
    return tf.raw_ops.BatchMatMulV3(x=rows, y=shared, Tout=tf.float32, adj_y=adj_y)
