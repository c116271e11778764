"""The choice of a token from the logits of each row: the likeliest, or a sample that depends only on a seed.

Shapes: R rows (sentences, or beams of all sentences), V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_attention.decoding.tensors import argmax, argmin, gather, is_tensorflow


def greedy(logits: Any) -> tuple[Any, Any]:
    """Returns the likeliest token of each row.

    The log probability is NaN, and the token arbitrary, for a row that contains NaN or +inf or only -inf.

    Args:
        logits: Logits (R, V).

    Returns:
        Ids (R,) int32 and their log probabilities under these logits (R,).

    Example:
        >>> ids, log_probs = greedy(keras.ops.log([[0.25, 0.75]]))
        >>> int(ids[0]), float(log_probs[0])
        (1, -0.287682...)
    """
    largest = ops.max(logits, axis=-1, keepdims=True, initial=float("-inf"))  # (R, 1), also without rows
    total = ops.sum(ops.exp(logits - largest), axis=-1)  # (R,), NaN if the row is broken
    return argmax(logits), -ops.log(total)


def sample(logits: Any, seed: Any, step: Any, rows: Any = None) -> tuple[Any, Any]:
    """Samples a token of each row with the probabilities softmax(logits).

    The token depends only on the row, the seed, the step and the row's index, not on the other rows; TensorFlow has
    other random numbers than JAX and torch. A row that
    contains NaN or +inf or only -inf gives token 0 with a log probability of NaN.

    Args:
        logits: Logits (R, V), -inf for forbidden tokens.
        seed: Two integers (2,).
        step: Index of the step; each step has its own random numbers.
        rows: Indices (R,), 0 or more, that select the random number of each row; by default 0 … R−1. Give them where
            the order of the rows changes between steps.

    Returns:
        Ids (R,) int32 and their log probabilities under these logits (R,).

    Example:
        >>> ids, log_probs = sample(keras.ops.log([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]), seed=[7, 1], step=0)
        >>> int(ids[1]), float(log_probs[1])
        (1, 0.0)
        >>> float(log_probs[0])
        -0.693147...
    """
    if rows is None:
        rows = ops.arange(ops.shape(logits)[0])
    if is_tensorflow():
        return sample_at(logits, _uniforms(seed, step, rows))
    numbers = uniform_numbers(seed, ops.convert_to_numpy(rows), int(step), 1)
    return sample_at(logits, ops.convert_to_tensor(numbers[:, 0]))


def sample_at(logits: Any, uniforms: Any) -> tuple[Any, Any]:
    """Computes `sample` from a random number in [0, 1) for each row (R,)."""
    largest = ops.max(logits, axis=-1, keepdims=True, initial=float("-inf"))  # (R, 1), also without rows
    weights = ops.exp(logits - largest)  # (R, V), unnormalized probabilities
    sums = ops.cumsum(weights, axis=-1)  # (R, V)
    total = sums[:, -1:]  # (R, 1), NaN if the row is broken
    # Inverse transform sampling: the first cumulative sum above one uniform number in [0, 1) is the token's.
    # The sums of forbidden tokens are excluded, in case a device adds in another order.
    threshold = uniforms[:, None] * total  # (R, 1)
    above = ops.where((sums > threshold) & (weights > 0), sums, float("inf"))  # (R, V)
    ids = argmin(above)  # (R,)
    logit = gather(logits, ids[:, None])
    return ids, (logit - (largest + ops.log(total)))[:, 0]


def uniform_numbers(seed: Sequence[int], rows: Sequence[int], first_step: int, steps: int) -> np.ndarray:
    """Returns random numbers in [0, 1) of steps of rows (R, n), each from the seed, its row and its step only."""
    per_block = 4  # numbers of Philox for each value of its counter
    first, skipped = divmod(int(first_step), per_block)
    key = [int(number) % 2**64 for number in seed]
    numbers = np.zeros((len(rows), steps), "float32")
    for number, row in enumerate(rows):
        raw = np.random.Philox(key=key, counter=[first, int(row), 0, 0]).random_raw(skipped + steps)
        numbers[number] = (raw[skipped:] >> 40) * 2.0**-24  # as many bits as float32 has
    return numbers


def _uniforms(seed: Any, step: Any, rows: Any) -> Any:
    """Returns a random number in [0, 1) for each row index (R,), in a graph of TensorFlow."""
    import tensorflow as tf

    number = tf.maximum(tf.reduce_max(rows), -1) + 1  # the maximum of no rows is the least integer
    key = tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), tf.cast(step, tf.int64))
    return tf.gather(tf.random.stateless_uniform([number], key), rows)
