"""Attention for inputs so small that waking a second thread takes longer than the computation.

Shapes: B sentences, K beams, H heads, D head width, n positions of a part, N positions of all parts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_attention.ops.attention import cached_attention

Attention = Callable[[Any, Sequence[Any], Any], Any]
# Up to this number of pairs of a query and a key in one head, `small_attention` is the faster one.
MAX_SMALL_PAIRS = 512


def select_attention(beams: int) -> Attention:
    """Returns the implementation of `cached_attention` for a search with K beams."""
    if beams == 1:  # with one query for each head, `small_attention` is always faster
        return small_attention

    def attention(query: tf.Tensor, memory: Sequence[tf.Tensor], bias: tf.Tensor) -> tf.Tensor:
        pairs = tf.shape(query)[0] * tf.shape(query)[2] * tf.shape(bias)[2]
        return tf.cond(
            pairs <= MAX_SMALL_PAIRS,
            lambda: small_attention(query, memory, bias),
            lambda: cached_attention(query, memory, bias),
        )

    return attention


def memory_dtype(beams: int) -> str | None:
    """Returns the dtype of the keys and values for `select_attention`, None for that of the model.

    It is float32 for one beam, because `small_attention` would cast all of them at each step.
    """
    return "float32" if beams == 1 else None


def small_attention(query: tf.Tensor, memory: Sequence[tf.Tensor], bias: tf.Tensor) -> tf.Tensor:
    """Computes `cached_attention` in float32, with kernels that run small work in the calling thread.

    On a CPU TensorFlow runs `tf.matmul` and `tf.nn.softmax` with oneDNN, which wakes the other threads for work of any
    size. `BatchMatMulV3` and `tf.nn.log_softmax` estimate the cost first; the former is fastest on matrices of
    one row, so each query is one.
    """
    if query.shape[2] == 1:  # a matrix of one row as it is
        return _attention(query, memory, bias[:, None])
    pairs = [tf.expand_dims(pair, 3) for pair in memory]  # (2, B, H, 1, n, D)
    return _attention(query[:, :, :, None], pairs, bias[:, None, :, None])[:, :, :, 0]


def _attention(row: tf.Tensor, memory: Sequence[tf.Tensor], bias: tf.Tensor) -> tf.Tensor:
    """Computes `cached_attention` for matrices of one row (…, 1, D), pairs (2, …, n, D) and a bias (…, 1, N)."""
    keys, values = zip(*(tf.unstack(pair, 2) for pair in memory), strict=True)
    logits = [_product(tf.cast(row, tf.float32), key, adj_y=True) for key in keys]  # (…, 1, n)
    weights = tf.exp(tf.nn.log_softmax(tf.concat(logits, axis=-1) + bias))  # (…, 1, N)
    parts = tf.split(weights, [tf.shape(logits[0])[-1], -1], axis=-1) if logits[1:] else [weights]
    context = [_product(part, value) for part, value in zip(parts, values, strict=True)]  # (…, 1, D)
    return tf.cast(tf.add_n(context), row.dtype)


def _product(row: tf.Tensor, memory: tf.Tensor, adj_y: bool = False) -> tf.Tensor:
    """Multiplies a row (…, 1, ·) by the memory (…, n, D), or by its transpose."""
    return tf.raw_ops.BatchMatMulV3(x=row, y=tf.cast(memory, tf.float32), Tout=tf.float32, adj_y=adj_y)
