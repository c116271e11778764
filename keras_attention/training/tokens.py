"""Which tokens count, and how much: labels, the id that is padding, implicit masks and sample weights in one place.

Shapes: B batch, T target length, V vocabulary.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.arguments import concrete_integer


class Tokens(NamedTuple):
    """The labels of a batch and what each counts.

    Attributes:
        labels: Token ids (B, T), each in [0, V): 0 where a token is ignored.
        real: (B, T), 1.0 for a token that counts, 0.0 where it is ignored, NaN for a label outside the vocabulary.
        weights: (B, T), `real` times the sample weights.

    Example:
        >>> tokens = tokens_of([[3, -100]], keras.ops.zeros((1, 2, 7)), 7, ignore_id=-100, sample_weight=[0.5])
        >>> keras.ops.convert_to_numpy(tokens.weights)
        array([[0.5, 0. ]], dtype=float32)
    """

    labels: Any
    real: Any
    weights: Any


def tokens_of(
    y_true: Any, y_pred: Any, vocabulary_size: int, ignore_id: int | None, sample_weight: Any = None
) -> Tokens:
    """The tokens of a batch, checked.

    A label outside the vocabulary raises where its value is known: in eager mode, and in TensorFlow's graphs. Under
    XLA and JAX, where nothing can raise, it counts NaN, so that the loss and the metrics are NaN.

    Args:
        y_true: Token ids (B, T) or (B, T, 1).
        y_pred: Logits (B, T, V) or what they are made of (B, T, M). Where they carry an implicit mask, the tokens
            that it hides are ignored.
        vocabulary_size: V.
        ignore_id: The label that is padding; None if there is none.
        sample_weight: A number, or weights of shape (B,), (B, 1), (B, T) or (B, T, 1).

    Returns:
        The tokens.

    Raises:
        ValueError: Shapes that do not fit, or a label outside the vocabulary.
        TypeError: Labels or weights that are no numbers.
    """
    y_true = _numbers(y_true, "y_true")
    shape = tuple(y_pred.shape[:-1])  # (B, T), with None where unknown
    if not _fits(_trimmed(y_true, shape).shape, shape):
        raise ValueError(
            "`y_true` are token ids (B, T), not one-hot, with one id for each position of `y_pred`, (B, T, V). "
            f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
        )
    given = _trimmed(y_true, shape)  # (B, T)
    labels = ops.cast(given, "int32")
    whole = ops.equal(ops.cast(labels, given.dtype), given)  # False for 2.5, and for what no int32 holds
    known = ops.logical_and(whole, ops.logical_and(labels >= 0, labels < vocabulary_size))
    ignored = ops.logical_not(_implicit_mask(y_pred))
    if ignore_id is not None:
        ignored = ops.logical_or(ignored, ops.logical_and(whole, ops.equal(labels, ignore_id)))
    wrong = ops.logical_not(ops.logical_or(ignored, known))
    _refuse(given, wrong, vocabulary_size, ignore_id)
    real = ops.where(ignored, 0.0, ops.where(wrong, float("nan"), 1.0))  # (B, T)
    labels = ops.where(ops.logical_and(known, ops.logical_not(ignored)), labels, 0)
    return Tokens(labels, real, real if sample_weight is None else _weighted(real, sample_weight))


def weighted(values: Any, weights: Any) -> Any:
    """Values times weights, 0 where the weight is 0, whatever the value.

    Args:
        values: (B, T).
        weights: (B, T).

    Returns:
        (B, T), in the dtype of the values.

    Example:
        >>> keras.ops.convert_to_numpy(weighted(keras.ops.array([2.0, np.nan]), keras.ops.array([3.0, 0.0])))
        array([6., 0.], dtype=float32)
    """
    return ops.where(ops.equal(weights, 0), ops.zeros_like(values), values * ops.cast(weights, values.dtype))


def share_of_replica(loss: Any) -> Any:
    """A mean over the tokens of one replica as its share of the mean over all: TensorFlow sums their gradients.

    Args:
        loss: A scalar.

    Returns:
        The loss over the number of replicas; the loss itself on other backends.
    """
    if keras.config.backend() != "tensorflow":
        return loss
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return loss if replicas == 1 else loss / replicas


class _Ones(keras.losses.Loss):
    """1 for each prediction. Keras multiplies a loss by the implicit mask of the predictions, which shows it."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.ones(ops.shape(y_pred)[:-1], "float32")


def _implicit_mask(y_pred: Any) -> Any:
    dtype = keras.backend.standardize_dtype(y_pred.dtype)  # another would cast the predictions
    return ops.cast(_Ones("implicit_mask", reduction=None, dtype=dtype)(y_pred, y_pred), "bool")


def _numbers(x: Any, name: str) -> Any:
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not dtype.startswith(("int", "uint", "float", "bfloat", "bool")):
        raise TypeError(f"`{name}` holds numbers. Received: {name}.dtype={dtype}")
    return x


def _trimmed(x: Any, shape: tuple[int | None, ...]) -> Any:
    """Without the last axis, if that is one of size 1 too many."""
    return ops.squeeze(x, axis=-1) if len(x.shape) == len(shape) + 1 and x.shape[-1] == 1 else x


def _fits(shape: Any, wanted: Any, broadcast: bool = False) -> bool:
    """Whether all sizes that are known agree."""
    allowed = (None, 1) if broadcast else (None,)
    return len(shape) == len(wanted) and all(
        size in allowed or other is None or size == other for size, other in zip(shape, wanted, strict=True)
    )


def _weighted(real: Any, sample_weight: Any) -> Any:
    """The weights of tokens (B, T), from those of sentences or tokens."""
    weights = ops.cast(_numbers(sample_weight, "sample_weight"), "float32")
    if getattr(weights.shape, "rank", 0) is None:  # TensorFlow's, once a compiled step has seen two ranks
        raise ValueError(
            "`sample_weight` has the same number of axes in every call of a compiled step: give (B, 1) and (B, T), not "
            "(B,) and (B, T). Received: sample_weight of unknown rank"
        )
    weights = _trimmed(weights, real.shape)
    missing = len(real.shape) - len(weights.shape)
    weights = ops.reshape(weights, (*ops.shape(weights), *[1] * missing))  # (B,) becomes (B, 1)
    if missing < 0 or not _fits(weights.shape, real.shape, broadcast=True):
        raise ValueError(
            "`sample_weight` is a number, or one for each sentence, (B,) or (B, 1), or for each token, (B, T) or "
            f"(B, T, 1), of `y_true`, (B, T). Received: sample_weight.shape={tuple(ops.shape(sample_weight))}, "
            f"y_true.shape={tuple(real.shape)}"
        )
    return weighted(ops.broadcast_to(weights, ops.shape(real)), real)


def _refuse(labels: Any, wrong: Any, vocabulary_size: int, ignore_id: int | None) -> None:
    """Raises where a label is wrong and its value is known."""
    rule = (
        f"`y_true` are token ids from 0 to {vocabulary_size - 1}, as many as `y_pred` has logits, or the `ignore_id` "
        f"{ignore_id}. Received: ignore_id={ignore_id}, vocabulary_size={vocabulary_size}, a label in y_true="
    )
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():
            label = tf.reduce_max(tf.where(wrong, labels, labels.dtype.min))
            tf.debugging.Assert(tf.logical_not(tf.reduce_any(wrong)), [rule, label])  # XLA leaves it out
            return
    if concrete_integer(ops.sum(ops.cast(wrong, "int32"))):
        raise ValueError(f"{rule}{ops.convert_to_numpy(labels)[ops.convert_to_numpy(wrong)][0]}")
