"""Dense gradients of embeddings, and the norm of all gradients."""

from typing import Any

import keras
from keras import ops


class GradientNorm:
    """The norm of the gradients of the last batch, not among the variables of the optimizer, since it is no state.

    On several devices it is the sum of the norms of their parts of the gradients.
    """

    def __init__(self) -> None:
        self._value = keras.Variable(
            0.0, trainable=False, synchronization="on_read", aggregation="sum", name="gradient_norm"
        )

    def update(self, gradients: list[Any]) -> None:
        """Computes the norm with the operations by which Keras clips gradients, so that a graph contains them once."""
        squares = [ops.cast(ops.sum(ops.square(each)), "float32") for each in gradients if each is not None]
        if squares:
            self._value.assign(ops.sqrt(ops.sum(ops.stack(squares))))

    def __float__(self) -> float:
        return float(ops.convert_to_numpy(self._value))


class DenseGradients:
    """Mixin for an optimizer, before Keras' class: makes gradients dense, so that repeated rows are summed.

    TensorFlow's gradient of an embedding (`IndexedSlices`) repeats a row each time its token occurs. Keras' optimizers
    sum the squares of such rows, which is neither the norm nor the second moment of the gradient. Gradients of other
    backends are dense.

    On TensorFlow, `gradient_norm` has the norm of the gradients of the last batch, before they are clipped.
    """

    gradient_norm: GradientNorm | None = None

    def build(self, variables: list[Any]) -> None:
        """Creates the state: see `keras.optimizers.Optimizer.build`."""
        super().build(variables)
        if keras.config.backend() == "tensorflow" and self.gradient_norm is None:
            self.gradient_norm = GradientNorm()

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Updates all variables: see `keras.optimizers.Optimizer.apply`."""
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            grads = [each if each is None else tf.convert_to_tensor(each) for each in grads]
        super().apply(grads, trainable_variables)
        if self.gradient_norm is not None:
            self.gradient_norm.update(grads)
