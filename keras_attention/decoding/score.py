"""The log probabilities that a model gives to existing translations.

Shapes: B batch, T target length, S source length, H heads, V vocabulary.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_attention.decoding.model_steps import check_ids, known_ids
from keras_attention.decoding.programs import compiled, pad_to_few_shapes
from keras_attention.decoding.tensors import is_tensorflow


class ScoringResult(NamedTuple):
    """Log probabilities and alignment of translations; zero at the padding of the targets.

    Attributes:
        token_log_probs: Log probability of each target token after those before it, (B, T) float32.
        alignment: Attention of each target token to the source, (B, T, S) float32: the cross-attention
            weights of the last layer, averaged over its heads. Each row sums to 1.
        lengths: Number of tokens of each target, the end of sentence counted, (B,) int32.

    Example:
        >>> result = ScoringResult(
        ...     keras.ops.array([[-0.5, -0.25, 0.0]]), keras.ops.zeros((1, 3, 5)), keras.ops.array([2])
        ... )
        >>> int(result.lengths[0])
        2
    """

    token_log_probs: Any
    alignment: Any
    lengths: Any


def score(model: Any, source_ids: Any, target_ids: Any, *, bos_id: int = 2, pad_id: int = 0) -> ScoringResult:
    """Computes the log probabilities of translations in one pass, each token after the true ones (teacher forcing).

    The log probability of a translation is `keras.ops.sum(result.token_log_probs, axis=1)`: its score in a beam search
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
        ValueError: Ids of another rank, or not one target for each source; on JAX and torch also an id outside the
            vocabulary.
        tf.errors.InvalidArgumentError: Not one target for each source, where only a running graph shows it; on
            TensorFlow also an id outside the vocabulary.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=11)
        >>> result = score(model, source_ids=[[7, 5, 3]], target_ids=[[9, 3]])
        >>> tuple(result.token_log_probs.shape), tuple(result.alignment.shape)
        ((1, 2), (1, 2, 3))
    """
    source_ids, target_ids = check_ids(source_ids, "source_ids"), check_ids(target_ids, "target_ids")
    target_ids = _check_pairs(source_ids, target_ids)
    if is_tensorflow():
        return _score(model, source_ids, target_ids, bos_id=bos_id, pad_id=pad_id)
    sources, targets = known_ids(source_ids, "source_ids", model), known_ids(target_ids, "target_ids", model)
    # The padding of a source is 0 for every model.
    arrays = pad_to_few_shapes(sources, 0, model), pad_to_few_shapes(targets, pad_id, model)
    result = compiled(_score, model, bos_id=bos_id, pad_id=pad_id)(*arrays)
    rows, length = targets.shape
    return ScoringResult(
        result.token_log_probs[:rows, :length],
        result.alignment[:rows, :length, : sources.shape[1]],
        result.lengths[:rows],
    )


def _score(model: Any, source_ids: Any, target_ids: Any, bos_id: int, pad_id: int) -> ScoringResult:
    """Computes `score` for ids that are checked."""
    batch_size = ops.shape(target_ids)[0]
    memory, source_mask = model.encode(source_ids)
    # The decoder input is shifted right; cut after joining, so that T may be 0.
    shifted = ops.concatenate([ops.full((batch_size, 1), bos_id, "int32"), target_ids], axis=1)[:, :-1]  # (B, T)
    logits, _, weights = model.decode_step(
        shifted, model.init_cache(memory, batch_size), source_mask, return_attention_scores=True
    )
    target_mask = ops.not_equal(target_ids, pad_id)  # (B, T)
    # On TensorFlow one fused operation: no second tensor (B, T, V) next to the logits.
    losses = ops.sparse_categorical_crossentropy(target_ids, ops.cast(logits, "float32"), from_logits=True)
    alignment = ops.mean(ops.cast(weights[-1], "float32"), axis=1)  # (B, H, T, S) -> (B, T, S)
    return ScoringResult(
        ops.where(target_mask, -losses, 0.0),
        ops.where(target_mask[:, :, None], alignment, 0.0),
        ops.sum(ops.cast(target_mask, "int32"), axis=1),
    )


def _check_pairs(source_ids: Any, target_ids: Any) -> Any:
    """Returns the targets if there are as many sources; the model does not check it, because beams are more targets."""
    message = "There must be one target for each source. "
    rows = source_ids.shape[0], target_ids.shape[0]
    if None not in rows:
        if rows[0] != rows[1]:
            raise ValueError(
                f"{message}Received: source_ids.shape={tuple(source_ids.shape)}, "
                f"target_ids.shape={tuple(target_ids.shape)}"
            )
        return target_ids
    import tensorflow as tf  # the only backend with unknown numbers of rows

    check = tf.debugging.assert_equal(tf.shape(source_ids)[0], tf.shape(target_ids)[0], message)
    with tf.control_dependencies([check]):  # before any operation with a less clear error
        return tf.identity(target_ids)
