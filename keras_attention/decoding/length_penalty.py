"""What makes hypotheses of different lengths comparable."""

import tensorflow as tf


def length_penalty(length: tf.Tensor | int, alpha: float) -> tf.Tensor:
    """Returns what a hypothesis' log probability is divided by to give its score.

    `((5 + n) / 6) ** alpha` for a hypothesis of n tokens. A sum of log probabilities falls with
    each token, so without a penalty (`alpha=0`) short ones win; `alpha=1` is close to a mean.

    Args:
        length: Number of tokens n, the end of sentence counted.
        alpha: Strength of the penalty; the Transformer paper uses 0.6.

    Returns:
        The penalty, in float32, of the shape of `length`.

    Example:
        >>> float(length_penalty(1, 0.6))
        1.0
        >>> float(length_penalty(7, 1.0))
        2.0

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", equation 14.
    """
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha


def average_length(length: tf.Tensor | int, alpha: float) -> tf.Tensor:
    """Returns n ** alpha for n tokens: with `alpha=1` a score is the mean log probability of a token.

    Args:
        length: Number of tokens n, the end of sentence counted.
        alpha: Strength of the penalty.

    Returns:
        The penalty, in float32, of the shape of `length`.

    Example:
        >>> float(average_length(9, 0.5))
        3.0
    """
    return tf.cast(length, tf.float32) ** alpha
