"""The choice of a token from the logits of each row: the likeliest, or a sample that depends only on a seed.

Shapes: R rows (sentences, or beams of all sentences), V vocabulary.
"""

import tensorflow as tf


def greedy(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the likeliest token of each row.

    The log probability is NaN, and the token arbitrary, for a row that contains NaN or +inf or only -inf.

    Args:
        logits: Logits (R, V).

    Returns:
        Ids (R,) int32 and their log probabilities under these logits (R,).

    Example:
        >>> ids, log_probs = greedy(tf.math.log([[0.25, 0.75]]))
        >>> int(ids[0]), float(log_probs[0])
        (1, -0.287682...)
    """
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)  # (R, 1)
    total = tf.reduce_sum(tf.exp(logits - largest), axis=-1)  # (R,), NaN if the row is broken
    return tf.argmax(logits, axis=-1, output_type=tf.int32), -tf.math.log(total)


def sample(
    logits: tf.Tensor, seed: tf.Tensor, step: int | tf.Tensor, rows: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Samples a token of each row with the probabilities softmax(logits).

    The token depends only on the row, the seed, the step and the row's index, not on the other rows. A row that
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
        >>> ids, log_probs = sample(tf.math.log([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]), seed=[7, 1], step=0)
        >>> int(ids[1]), float(log_probs[1])
        (1, 0.0)
        >>> float(log_probs[0])
        -0.693147...
    """
    if rows is None:
        rows = tf.range(tf.shape(logits)[0])
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)  # (R, 1)
    weights = tf.exp(logits - largest)  # (R, V), unnormalized probabilities
    sums = tf.cumsum(weights, axis=-1)  # (R, V)
    total = sums[:, -1:]  # (R, 1), NaN if the row is broken
    # Inverse transform sampling: the first cumulative sum above one uniform number in [0, 1) is the token's.
    # The sums of forbidden tokens are excluded, in case a device adds in another order.
    threshold = _uniforms(seed, step, rows)[:, None] * total  # (R, 1)
    above = tf.where((sums > threshold) & (weights > 0), sums, float("inf"))  # (R, V)
    ids = tf.argmin(above, axis=-1, output_type=tf.int32)  # (R,)
    logit = tf.gather(logits, ids, batch_dims=1)
    return ids, logit - tf.squeeze(largest + tf.math.log(total), -1)


def _uniforms(seed: tf.Tensor, step: int | tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns a random number in [0, 1) for each row index (R,)."""
    number = tf.maximum(tf.reduce_max(rows), -1) + 1  # the maximum of no rows is the least integer
    key = tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), tf.cast(step, tf.int64))
    return tf.gather(tf.random.stateless_uniform([number], key), rows)
