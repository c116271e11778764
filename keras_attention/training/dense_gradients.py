"""Dense gradients of embeddings."""

from typing import Any

import keras


class DenseGradients:
    """Mixin for an optimizer, before Keras' class: makes gradients dense, so that repeated rows are summed.

    TensorFlow's gradient of an embedding (`IndexedSlices`) repeats a row each time its token occurs. Keras' optimizers
    sum the squares of such rows, which is neither the norm nor the second moment of the gradient. Gradients of other
    backends are dense.
    """

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Updates all variables: see `keras.optimizers.Optimizer.apply`."""
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            grads = [each if each is None else tf.convert_to_tensor(each) for each in grads]
        super().apply(grads, trainable_variables)
