"""The log probabilities that a model gives to existing translations.

Shapes: B batch, T target length, S source length, H heads, V vocabulary.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding.model_steps import check_ids


class ScoringResult(NamedTuple):
    """Log probabilities and alignment of translations; zero at the padding of the targets.

    Attributes:
        token_log_probs: Log probability of each target token after those before it, (B, T) float32.
        alignment: Attention of each target token to the source, (B, T, S) float32: the cross-attention
            weights of the last layer, averaged over its heads. Each row sums to 1.
        lengths: Number of tokens of each target, the end of sentence counted, (B,) int32.

    Example:
        >>> result = ScoringResult(tf.constant([[-0.5, -0.25, 0.0]]), tf.zeros((1, 3, 5)), tf.constant([2]))
        >>> result.lengths.numpy().tolist()
        [2]
    """

    token_log_probs: tf.Tensor
    alignment: tf.Tensor
    lengths: tf.Tensor


def score(model: Any, source_ids: Any, target_ids: Any, *, bos_id: int = 2, pad_id: int = 0) -> ScoringResult:
    """Computes the log probabilities of translations in one pass, each token after the true ones (teacher forcing).

    The log probability of a translation is `tf.reduce_sum(result.token_log_probs, axis=1)`: its score in a beam search
    without a length penalty.

    Args:
        model: A `Transformer`, or a model with its `encode`, `init_cache` and `decode_step`.
        source_ids: Token ids (B, S), the end of sentence last, then padding.
        target_ids: Token ids (B, T) of one translation for each source, the end of sentence last, then padding.
        bos_id: Token before the first.
        pad_id: Token that pads shorter rows.

    Returns:
        `ScoringResult`.

    Raises:
        TypeError: Ids that are not integers.
        ValueError: Ids of another rank, or not one target for each source.
        tf.errors.InvalidArgumentError: Not one target for each source, where only a running graph shows it; an id
            outside the vocabulary.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=11)
        >>> result = score(model, source_ids=[[7, 5, 3]], target_ids=[[9, 3]])
        >>> result.token_log_probs.shape, result.alignment.shape
        (TensorShape([1, 2]), TensorShape([1, 2, 3]))
    """
    source_ids, target_ids = check_ids(source_ids, "source_ids"), check_ids(target_ids, "target_ids")
    target_ids = _check_pairs(source_ids, target_ids)
    batch_size = tf.shape(target_ids)[0]
    memory, source_mask = model.encode(source_ids)
    # The decoder input is shifted right; cut after joining, so that T may be 0.
    shifted = tf.concat([tf.fill([batch_size, 1], bos_id), target_ids], axis=1)[:, :-1]  # (B, T)
    logits, _, weights = model.decode_step(
        shifted, model.init_cache(memory, batch_size), source_mask, return_attention_scores=True
    )
    target_mask = target_ids != pad_id  # (B, T)
    # One fused operation: no second tensor (B, T, V) next to the logits.
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target_ids, logits=tf.cast(logits, tf.float32))
    alignment = tf.reduce_mean(tf.cast(weights[-1], tf.float32), axis=1)  # (B, H, T, S) -> (B, T, S)
    return ScoringResult(
        tf.where(target_mask, -losses, 0.0),
        tf.where(target_mask[:, :, None], alignment, 0.0),
        tf.reduce_sum(tf.cast(target_mask, tf.int32), axis=1),
    )


def _check_pairs(source_ids: tf.Tensor, target_ids: tf.Tensor) -> tf.Tensor:
    """Returns the targets if there are as many sources; the model does not check it, because beams are more targets."""
    message = "There must be one target for each source. "
    rows = source_ids.shape[0], target_ids.shape[0]
    if None not in rows:
        if rows[0] != rows[1]:
            raise ValueError(
                f"{message}Received: source_ids.shape={source_ids.shape}, target_ids.shape={target_ids.shape}"
            )
        return target_ids
    check = tf.debugging.assert_equal(tf.shape(source_ids)[0], tf.shape(target_ids)[0], message)
    with tf.control_dependencies([check]):  # before any operation with a less clear error
        return tf.identity(target_ids)
