"""Accuracy and perplexity over real tokens.

Shapes: B batch, T target length, V vocabulary.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import integer_or_none
from keras_attention.training.losses import exponentials_and_log_sum, first_largest, gather_labels
from keras_attention.training.tokens import tokens_of, weighted


class TokenMetric(keras.metrics.Metric):
    """Base: a sum over the tokens that are not padding, and their number.

    Args:
        name: Shown by `fit`.
        ignore_id: The label that is padding; None if there is none.
        **kwargs: `dtype`.
    """

    def __init__(self, name: str, ignore_id: int | None = 0, **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.ignore_id = integer_or_none(ignore_id, "ignore_id")
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Token ids (B, T).
            y_pred: Logits (B, T, V).
            sample_weight: A number, weights of sentences, (B,) or (B, 1), or of tokens, (B, T) or (B, T, 1).

        Raises:
            ValueError: Shapes that do not fit, or a label outside the vocabulary. Where nothing can raise, as of
                `MaskedCrossEntropy`, the result is NaN.
        """
        y_pred = ops.convert_to_tensor(y_pred)
        vocabulary_size = y_pred.shape[-1]
        tokens = tokens_of(y_true, y_pred, vocabulary_size, self.ignore_id, sample_weight)
        labels = ops.reshape(tokens.labels, (-1,))  # (N,) with N = B·T
        logits = ops.reshape(ops.cast(y_pred, "float32"), (-1, vocabulary_size))  # (N, V)
        weights = ops.reshape(tokens.weights, (-1,))  # (N,)
        self.add(ops.sum(weighted(self.of_tokens(labels, logits), weights)), ops.sum(weights))

    def add(self, total: Any, count: Any) -> None:
        """Adds tokens whose sum is known.

        Args:
            total: The sum over them.
            count: Their number.
        """
        self.total.assign_add(total)
        self.count.assign_add(count)

    def of_tokens(self, labels: Any, logits: Any) -> Any:
        """The quantity that is summed.

        Args:
            labels: (N,).
            logits: (N, V).

        Returns:
            (N,), float32.
        """
        raise TypeError(f"{type(self).__name__} must define `of_tokens(labels, logits)`")

    def result(self) -> Any:
        """The mean over all tokens so far, 0 before the first.

        Returns:
            A scalar.
        """
        return ops.divide_no_nan(self.total, self.count)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ignore_id": self.ignore_id}


@keras.saving.register_keras_serializable("keras_attention")
class MaskedAccuracy(TokenMetric):
    """Share of the tokens whose label has the largest logit, the first of several equal ones.

    Args:
        name: Shown by `fit`.
        **kwargs: `ignore_id`, `dtype`.

    Example:
        >>> metric = MaskedAccuracy()
        >>> metric.update_state(keras.ops.array([[1, 2, 0]]), keras.ops.one_hot(keras.ops.array([[1, 1, 1]]), 3))
        >>> float(metric.result())
        0.5
    """

    def __init__(self, name: str = "accuracy", **kwargs: Any):
        super().__init__(name, **kwargs)

    def of_tokens(self, labels: Any, logits: Any) -> Any:
        return ops.cast(ops.equal(first_largest(logits), labels), "float32")


@keras.saving.register_keras_serializable("keras_attention")
class Perplexity(TokenMetric):
    """exp of the mean negative log-likelihood of the tokens, without label smoothing.

    Args:
        name: Shown by `fit`.
        **kwargs: `ignore_id`, `dtype`.

    Example:
        >>> metric = Perplexity()
        >>> metric.update_state(keras.ops.array([[3, 0]]), keras.ops.zeros((1, 2, 10)))
        >>> round(float(metric.result()), 3)
        10.0
    """

    def __init__(self, name: str = "perplexity", **kwargs: Any):
        super().__init__(name, **kwargs)

    def of_tokens(self, labels: Any, logits: Any) -> Any:
        return exponentials_and_log_sum(logits)[1] - gather_labels(logits, labels)

    def result(self) -> Any:
        """The perplexity of all tokens so far, 1 before the first.

        Returns:
            A scalar.
        """
        return ops.exp(super().result())
