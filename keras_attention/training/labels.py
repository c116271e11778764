"""Checked labels and the weight of each token, from padding ids, implicit masks and sample weights.

Shapes: B batch, T target length, V vocabulary.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.arguments import concrete_integer
from keras_attention.layers.replicas import split_over_replicas, sum_over_replicas


class MaskedLabels(NamedTuple):
    """The labels of a batch, the mask of those that count and the weight of each."""

    labels: Any  # (B, T), each in [0, V); 0 for an ignored token
    mask: Any  # (B, T), 1.0 for a token that counts, 0.0 for an ignored one, NaN for a label outside the vocabulary
    weights: Any  # (B, T), the mask times the sample weights


def masked_labels(
    y_true: Any, y_pred: Any, vocabulary_size: int, ignore_id: int | None, sample_weight: Any = None
) -> MaskedLabels:
    """Checks labels (B, T) or (B, T, 1) against logits (B, T, V) or hidden states (B, T, M), whose mask they obey."""
    # A label outside the vocabulary raises where its value is known: eagerly, and in TensorFlow's graphs. Under XLA and
    # on JAX, where nothing can raise, its mask is NaN, and so are the loss and the metrics.
    y_true = _check_numeric(y_true, "y_true")
    shape = tuple(y_pred.shape[:-1])  # (B, T), with None where unknown
    if not _compatible(_squeeze_last(y_true, shape).shape, shape):
        raise ValueError(
            "`y_true` are token ids (B, T), not one-hot, with one id for each position of `y_pred`, (B, T, V). "
            f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
        )
    y_true = _squeeze_last(y_true, shape)  # (B, T)
    labels = ops.cast(y_true, "int32")
    exact = ops.equal(ops.cast(labels, y_true.dtype), y_true)  # False for 2.5, and for values beyond int32
    valid = ops.logical_and(exact, ops.logical_and(labels >= 0, labels < vocabulary_size))
    ignored = ops.logical_not(_implicit_mask(y_pred))
    if ignore_id is not None:
        ignored = ops.logical_or(ignored, ops.logical_and(exact, ops.equal(labels, ignore_id)))
    invalid = ops.logical_not(ops.logical_or(ignored, valid))
    _raise_if_invalid(y_true, invalid, vocabulary_size, ignore_id)
    mask = ops.where(ignored, 0.0, ops.where(invalid, float("nan"), 1.0))  # (B, T)
    labels = ops.where(ops.logical_and(valid, ops.logical_not(ignored)), labels, 0)
    return MaskedLabels(labels, mask, mask if sample_weight is None else _token_weights(mask, sample_weight))


def multiply_no_nan(values: Any, weights: Any) -> Any:
    """Values times weights of the same shape, in the values' dtype; 0 where the weight is 0, whatever the value."""
    return ops.where(ops.equal(weights, 0), ops.zeros_like(values), values * ops.cast(weights, values.dtype))


def mean_loss(total: Any, count: Any) -> Any:
    """The mean loss of all tokens from its sum and their number, those of all replicas together.

    Each replica of a TensorFlow strategy returns its part of the sum that TensorFlow and Keras take over them.
    """
    total, count = sum_over_replicas([total, count])
    return split_over_replicas(ops.divide_no_nan(total, count))


class _Ones(keras.losses.Loss):
    """1 for each prediction. Keras multiplies a loss by the implicit mask of the predictions, which reveals it."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.ones(ops.shape(y_pred)[:-1], "float32")


def _implicit_mask(y_pred: Any) -> Any:
    dtype = keras.backend.standardize_dtype(y_pred.dtype)  # another would cast the predictions
    return ops.cast(_Ones("implicit_mask", reduction=None, dtype=dtype)(y_pred, y_pred), "bool")


def _check_numeric(x: Any, name: str) -> Any:
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not dtype.startswith(("int", "uint", "float", "bfloat", "bool")):
        raise TypeError(f"`{name}` must have a numeric dtype. Received: {name}.dtype={dtype}")
    return x


def _squeeze_last(x: Any, shape: tuple[int | None, ...]) -> Any:
    """Removes a last axis of size 1 if `x` has one axis more than `shape`."""
    return ops.squeeze(x, axis=-1) if len(x.shape) == len(shape) + 1 and x.shape[-1] == 1 else x


def _compatible(shape: Any, expected: Any, broadcast: bool = False) -> bool:
    """Returns True if all known sizes agree."""
    allowed = (None, 1) if broadcast else (None,)
    return len(shape) == len(expected) and all(
        size in allowed or other is None or size == other for size, other in zip(shape, expected, strict=True)
    )


def _token_weights(mask: Any, sample_weight: Any) -> Any:
    """The weights (B, T) of tokens, from weights of sentences or tokens."""
    weights = ops.cast(_check_numeric(sample_weight, "sample_weight"), "float32")
    if getattr(weights.shape, "rank", 0) is None:  # TensorFlow's, once a compiled step has seen two ranks
        raise ValueError(
            "`sample_weight` must have the same number of axes in every call of a compiled step: pass (B, 1) and "
            "(B, T), not (B,) and (B, T). Received: sample_weight of unknown rank"
        )
    weights = _squeeze_last(weights, mask.shape)
    missing = len(mask.shape) - len(weights.shape)
    weights = ops.reshape(weights, (*ops.shape(weights), *[1] * missing))  # (B,) becomes (B, 1)
    if missing < 0 or not _compatible(weights.shape, mask.shape, broadcast=True):
        raise ValueError(
            "`sample_weight` is a number, or one for each sentence, (B,) or (B, 1), or for each token, (B, T) or "
            f"(B, T, 1), of `y_true`, (B, T). Received: sample_weight.shape={tuple(ops.shape(sample_weight))}, "
            f"y_true.shape={tuple(mask.shape)}"
        )
    return multiply_no_nan(ops.broadcast_to(weights, ops.shape(mask)), mask)


def _raise_if_invalid(labels: Any, invalid: Any, vocabulary_size: int, ignore_id: int | None) -> None:
    """Raises an error if a label is invalid, where its value is known."""
    rule = (
        f"`y_true` are token ids from 0 to {vocabulary_size - 1}, one for each logit of `y_pred`, or the `ignore_id` "
        f"{ignore_id}. Received: ignore_id={ignore_id}, vocabulary_size={vocabulary_size}, a label in y_true="
    )
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():
            label = tf.reduce_max(tf.where(invalid, labels, labels.dtype.min))
            tf.debugging.Assert(tf.logical_not(tf.reduce_any(invalid)), [rule, label])  # XLA leaves it out
            return
    if concrete_integer(ops.sum(ops.cast(invalid, "int32"))):
        raise ValueError(f"{rule}{ops.convert_to_numpy(labels)[ops.convert_to_numpy(invalid)][0]}")
