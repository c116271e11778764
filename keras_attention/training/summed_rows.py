"""Gradients of embeddings that have each row once."""

from typing import Any

import keras


class SummedRows:
    """For an optimizer, before Keras' class: sums the rows of an embedding's gradient that came more than once.

    TensorFlow's gradient of an embedding holds a row as often as its token came. Keras' optimizers sum the squares of
    such rows, which is neither the norm nor the second moment of the gradient. Other backends' gradients are dense.
    """

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Changes all variables.

        Args:
            grads: Of the loss; None where there is none.
            trainable_variables: What is changed; by default what was given to `build`.
        """
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            grads = [each if each is None else tf.convert_to_tensor(each) for each in grads]
        super().apply(grads, trainable_variables)
