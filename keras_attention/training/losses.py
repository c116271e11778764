"""Label-smoothed cross-entropy over the tokens that are not padding.

Shapes: B batch, T target length, V vocabulary.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import fraction, integer_or_none
from keras_attention.training.labels import (
    MaskedLabels,
    masked_labels,
    mean_loss,
    multiply_no_nan,
)


@keras.saving.register_keras_serializable("keras_attention")
class MaskedCrossEntropy(keras.losses.Loss):
    """L = −1/n Σ_t w_t [(1 − ε) log p(y_t) + ε/V Σ_v log p(v)] over the n tokens that are not padding.

    log p(v) is computed as z_v − log Σ exp z, so that neither log-probabilities nor one-hot labels over the
    vocabulary are stored, forward or backward. The values are those of
    `keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore_id)` for every `reduction`.

    `sample_weight` gives w_t, 1 by default: a number, weights of sentences, (B,) or (B, 1), or weights of tokens,
    (B, T) or (B, T, 1). The mean is over the n tokens whatever their weights; with
    `reduction="mean_with_sample_weight"`, over the sum of the tokens' weights, Σ_t w_t, whatever the shape of
    `sample_weight`. A token that an implicit mask of the logits hides is ignored like padding.

    A label outside the vocabulary raises an error. In a function that XLA or JAX compiles, where nothing can raise, the
    loss is NaN.

    Args:
        label_smoothing: ε.
        ignore_id: Label of padding, inside the vocabulary or outside of it; None for no padding.
        name: Name of the loss.
        **kwargs: See `keras.losses.Loss`: `reduction`, `dtype`.

    Raises:
        ValueError: If ε is outside [0, 1), `ignore_id` is not an integer, the shape of the labels or weights does not
            match the logits, or a label is outside the vocabulary.

    Example:
        >>> loss = MaskedCrossEntropy(label_smoothing=0.1)
        >>> float(loss(keras.ops.array([[5, 0, 0]]), keras.ops.zeros((1, 3, 10))))  # log 10
        2.302585...

    Source: Vaswani et al. 2017, section 5.4; Szegedy et al. 2015, section 7.
    """

    def __init__(
        self, label_smoothing: float = 0.0, ignore_id: int | None = 0, name: str = "masked_cross_entropy", **kwargs: Any
    ):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = fraction(label_smoothing, "label_smoothing")
        self.ignore_id = integer_or_none(ignore_id, "ignore_id")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        # Keras' own would cast the labels to the dtype of the loss and count the tokens that an implicit mask hides.
        with keras.name_scope(self.name):
            losses, masked = self._weighted_losses(y_true, y_pred, sample_weight)  # (B, T)
            if self.reduction not in ("none", None):
                losses = ops.sum(losses)
            if self.reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
                counted = masked.weights if self.reduction == "mean_with_sample_weight" else masked.mask
                losses = mean_loss(losses, ops.cast(ops.sum(counted), losses.dtype))
            return ops.cast(losses, self.dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Computes the loss of each token.

        Args:
            y_true: Token ids (B, T).
            y_pred: Logits (B, T, V).

        Returns:
            (B, T), zero at padding.
        """
        return self._weighted_losses(y_true, y_pred)[0]

    def _weighted_losses(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Any, MaskedLabels]:
        y_pred = ops.convert_to_tensor(y_pred)
        masked = masked_labels(y_true, y_pred, y_pred.shape[-1], self.ignore_id, sample_weight)
        losses = token_cross_entropy(masked.labels, y_pred, self.label_smoothing)
        return multiply_no_nan(losses, masked.weights), masked

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing, "ignore_id": self.ignore_id}


def token_cross_entropy(labels: Any, logits: Any, label_smoothing: float = 0.0) -> Any:
    """Computes the cross-entropy of each token with its smoothed label.

    Args:
        labels: Token ids (B, T).
        logits: (B, T, V).
        label_smoothing: ε.

    Returns:
        (B, T), float32 or wider.

    Example:
        >>> print(token_cross_entropy(keras.ops.zeros((2, 3), dtype="int32"), keras.ops.zeros((2, 3, 7))).shape)
        (2, 3)
    """
    shape = ops.shape(labels)
    vocabulary_size = logits.shape[-1]
    labels = ops.reshape(labels, (-1,))  # (N,) with N = B·T
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    logits = ops.reshape(logits, (-1, vocabulary_size))  # (N, V)
    smooth = label_smoothing / vocabulary_size

    # The gradient is softmax(z) − target. Written out, it takes two passes over (N, V); derived automatically, the
    # gathered logit and the mean would each take another tensor of that size.
    # The labels are an argument because JAX cannot differentiate a compiled function that closes over them.
    @ops.custom_gradient
    def cross_entropy(logits: Any, labels: Any) -> Any:
        exponentials, log_sum = exp_and_logsumexp(logits)  # (N, V), (N,)
        label_logits = gather_labels(logits, labels)  # (N,)
        losses = log_sum - (1 - label_smoothing) * label_logits
        if label_smoothing:
            losses -= label_smoothing * ops.mean(logits, axis=-1)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = args[0] if upstream is None else upstream  # (N,)
            scale = upstream / ops.sum(exponentials, axis=-1)
            others = exponentials * scale[:, None] - (upstream * smooth)[:, None]  # (N, V)
            at_label = upstream * (ops.exp(label_logits - log_sum) - (1 - label_smoothing) - smooth)
            rows = ops.arange(ops.shape(labels)[0], dtype=labels.dtype)
            return ops.scatter_update(others, ops.stack([rows, labels], axis=-1), at_label), None

        return losses, gradient

    return ops.reshape(cross_entropy(logits, labels), shape)


def exp_and_logsumexp(logits: Any) -> tuple[Any, Any]:
    """Computes exp(z − max z), (N, V), and log Σ exp z, (N,), of logits (N, V)."""
    # Loss and metrics share these operations, so that a graph with both computes them once.
    is_empty = logits.shape[0] == 0  # of which Keras computes no maximum
    largest = logits[:, 0] if is_empty else ops.max(logits, axis=-1)  # (N,)
    exponentials = ops.exp(logits - largest[:, None])  # (N, V)
    return exponentials, ops.log(ops.sum(exponentials, axis=-1)) + largest


def argmax(logits: Any) -> Any:
    """The index (N,), int32, of the largest logit in each row; the first of equal ones."""
    if keras.config.backend() != "tensorflow":
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    import tensorflow as tf

    # Keras' own takes several more passes over the logits to order -0.0 and 0.0.
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def gather_labels(logits: Any, labels: Any) -> Any:
    """The logit (N,) of each label (N,) in logits (N, V)."""
    return ops.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
