"""Choosing a token of each row: the likeliest, or one that is drawn with no state but a seed.

Shapes: R rows (sentences, or beams of all sentences), V vocabulary.
"""

import tensorflow as tf


def greedy(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes the likeliest token of each row.

    A row that holds NaN or +inf, or nothing but -inf, gives some token with a log probability of NaN.

    Args:
        logits: (R, V).

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
    """Draws a token of each row with the probabilities softmax(logits).

    The same seed, step and row number give the same draw, whichever rows stand beside it. A row that holds NaN or +inf,
    or nothing but -inf, gives token 0 with a log probability of NaN.

    Args:
        logits: (R, V); -inf for what must not be drawn.
        seed: Two integers (2,).
        step: Number of the step: each has draws of its own.
        rows: The number (R,) by which a row draws, 0 or more, for rows that do not stand where they stood in the
            step before; 0 … R−1 by default.

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
    weights = tf.exp(logits - largest)  # (R, V), probabilities times a number
    upto = tf.cumsum(weights, axis=-1)  # (R, V)
    total = upto[:, -1:]  # (R, 1), NaN if the row is broken
    # One uniform number a row, in [0, 1), in place of one for each token: the least sum above it is the token's.
    # The sums of forbidden tokens are left out, in case a device adds in an order of its own.
    draws = _uniforms(seed, step, rows)[:, None] * total  # (R, 1)
    above = tf.where((upto > draws) & (weights > 0), upto, float("inf"))  # (R, V)
    ids = tf.argmin(above, axis=-1, output_type=tf.int32)  # (R,)
    chosen = tf.gather(logits, ids, batch_dims=1)
    return ids, chosen - tf.squeeze(largest + tf.math.log(total), -1)


def _uniforms(seed: tf.Tensor, step: int | tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns a number in [0, 1) for each row number (R,)."""
    number = tf.maximum(tf.reduce_max(rows), -1) + 1  # of no rows, the maximum is the least integer
    key = tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), tf.cast(step, tf.int64))
    return tf.gather(tf.random.stateless_uniform([number], key), rows)
