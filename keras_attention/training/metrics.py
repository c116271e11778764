"""Accuracy and perplexity over the tokens that are not padding.

Shapes: B batch, T target length, V vocabulary.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import integer_or_none
from keras_attention.training.labels import masked_labels, multiply_no_nan
from keras_attention.training.losses import argmax, exp_and_logsumexp, gather_labels


class TokenMetric(keras.metrics.Metric):
    """Base class: the mean of a value over the tokens that are not padding."""

    def __init__(self, name: str, ignore_id: int | None = 0, **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.ignore_id = integer_or_none(ignore_id, "ignore_id")
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Accumulates a batch.

        Args:
            y_true: Token ids (B, T).
            y_pred: Logits (B, T, V).
            sample_weight: A number, weights of sentences, (B,) or (B, 1), or weights of tokens, (B, T) or (B, T, 1).

        Raises:
            ValueError: If shapes do not match, or a label is outside the vocabulary. In a function that XLA or JAX
                compiles, where nothing can raise, the result is NaN.
        """
        y_pred = ops.convert_to_tensor(y_pred)
        vocabulary_size = y_pred.shape[-1]
        masked = masked_labels(y_true, y_pred, vocabulary_size, self.ignore_id, sample_weight)
        labels = ops.reshape(masked.labels, (-1,))  # (N,) with N = B·T
        logits = ops.reshape(ops.cast(y_pred, "float32"), (-1, vocabulary_size))  # (N, V)
        weights = ops.reshape(masked.weights, (-1,))  # (N,)
        self.add(ops.sum(multiply_no_nan(self.token_values(labels, logits), weights)), ops.sum(weights))

    def add(self, total: Any, count: Any) -> None:
        """Accumulates a sum over tokens and their number."""
        self.total.assign_add(total)
        self.count.assign_add(count)

    def token_values(self, labels: Any, logits: Any) -> Any:
        """The value of each token (N,), float32, from labels (N,) and logits (N, V)."""
        raise TypeError(f"{type(self).__name__} must define `token_values(labels, logits)`")

    def result(self) -> Any:
        """Computes the mean over all tokens so far, 0 before the first.

        Returns:
            A scalar.
        """
        return ops.divide_no_nan(self.total, self.count)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ignore_id": self.ignore_id}


@keras.saving.register_keras_serializable("keras_attention")
class MaskedAccuracy(TokenMetric):
    """Fraction of the tokens whose label has the largest logit, the first of equal ones.

    Args:
        name: Name of the metric.
        **kwargs: `ignore_id` (see `MaskedCrossEntropy`) and `dtype`.

    Example:
        >>> metric = MaskedAccuracy()
        >>> metric.update_state(keras.ops.array([[1, 2, 0]]), keras.ops.one_hot(keras.ops.array([[1, 1, 1]]), 3))
        >>> float(metric.result())
        0.5
    """

    def __init__(self, name: str = "accuracy", **kwargs: Any):
        super().__init__(name, **kwargs)

    def token_values(self, labels: Any, logits: Any) -> Any:
        return ops.cast(ops.equal(argmax(logits), labels), "float32")


@keras.saving.register_keras_serializable("keras_attention")
class Perplexity(TokenMetric):
    """exp of the mean negative log-likelihood of the tokens, without label smoothing.

    Args:
        name: Name of the metric.
        **kwargs: `ignore_id` (see `MaskedCrossEntropy`) and `dtype`.

    Example:
        >>> metric = Perplexity()
        >>> metric.update_state(keras.ops.array([[3, 0]]), keras.ops.zeros((1, 2, 10)))
        >>> round(float(metric.result()), 3)
        10.0
    """

    def __init__(self, name: str = "perplexity", **kwargs: Any):
        super().__init__(name, **kwargs)

    def token_values(self, labels: Any, logits: Any) -> Any:
        return exp_and_logsumexp(logits)[1] - gather_labels(logits, labels)

    def result(self) -> Any:
        """Computes the perplexity of all tokens so far, 1 before the first.

        Returns:
            A scalar.
        """
        return ops.exp(super().result())
