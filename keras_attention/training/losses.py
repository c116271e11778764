"""Label-smoothed cross-entropy over real tokens.

Shapes: B batch, T target length, V vocabulary.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import fraction, integer_or_none
from keras_attention.training.tokens import Tokens, share_of_replica, tokens_of, weighted


@keras.saving.register_keras_serializable("keras_attention")
class MaskedCrossEntropy(keras.losses.Loss):
    """L = −1/n Σ_t w_t [(1 − ε) log p(y_t) + ε/V Σ_v log p(v)] over the n tokens that are not padding.

    With log p(v) = z_v − log Σ exp z, so neither the probabilities' logarithms nor a one-hot of the
    vocabulary is ever stored, forward or backward. The numbers are those of
    `keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore_id)` for every `reduction`.

    `sample_weight` gives w_t, 1 by default: a number, or weights of sentences, (B,) or (B, 1), or of tokens, (B, T) or
    (B, T, 1). The mean is over the n tokens whatever their weights, and with `reduction="mean_with_sample_weight"` over
    the sum of the weights of the tokens, Σ_t w_t, whatever the shape they are given in. A token that an implicit mask
    of the logits hides is ignored like padding.

    A label outside the vocabulary raises an error. Where nothing can raise, in a function that XLA or JAX compiles,
    the loss is NaN.

    Args:
        label_smoothing: ε.
        ignore_id: The label that is padding, inside the vocabulary or outside of it; None if there is none.
        name: Shown by `summary` and in logs.
        **kwargs: `reduction`, `dtype`.

    Raises:
        ValueError: An ε outside [0, 1); an `ignore_id` that is no integer; labels or weights whose shapes do not fit
            the logits; a label outside the vocabulary.

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
        # Not Keras' own, which would keep labels in the dtype of the loss and divide by what an implicit mask hides.
        with keras.name_scope(self.name):
            losses, tokens = self._weighted_losses(y_true, y_pred, sample_weight)  # (B, T)
            if self.reduction not in ("none", None):
                losses = ops.sum(losses)
            if self.reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
                counted = tokens.weights if self.reduction == "mean_with_sample_weight" else tokens.real
                losses = share_of_replica(ops.divide_no_nan(losses, ops.cast(ops.sum(counted), losses.dtype)))
            return ops.cast(losses, self.dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each token.

        Args:
            y_true: Token ids (B, T).
            y_pred: Logits (B, T, V).

        Returns:
            (B, T), zero at padding.
        """
        return self._weighted_losses(y_true, y_pred)[0]

    def _weighted_losses(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Any, Tokens]:
        y_pred = ops.convert_to_tensor(y_pred)
        tokens = tokens_of(y_true, y_pred, y_pred.shape[-1], self.ignore_id, sample_weight)
        return weighted(token_cross_entropy(tokens.labels, y_pred, self.label_smoothing), tokens.weights), tokens

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing, "ignore_id": self.ignore_id}


def token_cross_entropy(labels: Any, logits: Any, label_smoothing: float = 0.0) -> Any:
    """Cross-entropy of each token against its smoothed label.

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

    # The gradient is softmax(z) − target. Written out, it costs two passes over (N, V); derived from the
    # forward pass, the gathered logit and the mean would each cost a tensor of that size more.
    # The labels are an argument because JAX could not differentiate a compiled function that closes over them.
    @ops.custom_gradient
    def cross_entropy(logits: Any, labels: Any) -> Any:
        exponentials, log_sum = exponentials_and_log_sum(logits)  # (N, V), (N,)
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


def exponentials_and_log_sum(logits: Any) -> tuple[Any, Any]:
    """exp(z − max z) and log Σ exp z, in the same operations for loss and metrics.

    A graph that holds both computes them once.

    Args:
        logits: (N, V).

    Returns:
        (N, V) and (N,).

    Example:
        >>> _, log_sum = exponentials_and_log_sum(keras.ops.zeros((1, 10)))
        >>> float(log_sum[0])
        2.302585...
    """
    largest = (
        logits[:, 0] if logits.shape[0] == 0 else ops.max(logits, axis=-1)
    )  # (N,); Keras has no maximum of nothing
    exponentials = ops.exp(logits - largest[:, None])  # (N, V)
    return exponentials, ops.log(ops.sum(exponentials, axis=-1)) + largest


def first_largest(logits: Any) -> Any:
    """The index of the largest logit of each row (N,), int32; the first of equal ones."""
    if keras.config.backend() != "tensorflow":
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    import tensorflow as tf

    # Keras' own takes several more passes over the logits, to order -0.0 and 0.0.
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def gather_labels(logits: Any, labels: Any) -> Any:
    """The logit of each row's label.

    Args:
        logits: (N, V).
        labels: (N,).

    Returns:
        (N,).

    Example:
        >>> logits = keras.ops.array([[1.0, 2.0], [3.0, 4.0]])
        >>> keras.ops.convert_to_numpy(gather_labels(logits, keras.ops.array([1, 0])))
        array([2., 3.], dtype=float32)
    """
    return ops.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
