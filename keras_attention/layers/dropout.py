"""Dropout for half of the random numbers."""

from typing import Any

import keras
from keras import ops

# Two of these numbers fit into one random number of 32 bits.
STEPS = 2**16


class Dropout(keras.layers.Dropout):
    """Keras' layer, with random numbers of 16 bits on TensorFlow, where drawing them is most of its work.

    The rate is rounded to a multiple of 2⁻¹⁶; what is kept is divided by the share that is kept, exactly. On JAX and
    torch the layer is Keras'.

    Example:
        >>> y = Dropout(0.25, seed=1)(keras.ops.ones((1000, 7)), training=True)
        >>> sorted({round(float(value), 3) for value in keras.ops.convert_to_numpy(y).flat})
        [0.0, 1.333]

    Source: Srivastava et al. 2014.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drops.

        Args:
            inputs: Any shape.
            training: Whether to drop at all.

        Returns:
            Of the same shape.
        """
        plain = self.noise_shape is not None or not 0 < self.rate < 1
        if plain or not training or keras.config.backend() != "tensorflow":
            return super().call(inputs, training=training)
        dropped = min(round(self.rate * STEPS), STEPS - 1)  # of so many values
        size = ops.size(inputs)
        bits = keras.random.randint(((size + 1) // 2, 1), -(2**31), 2**31 - 1, seed=self.seed_generator)
        numbers = ops.reshape(ops.view(bits, "uint16"), (-1,))[:size]
        kept = ops.reshape(ops.greater_equal(numbers, ops.cast(dropped, "uint16")), ops.shape(inputs))
        return inputs * (ops.cast(kept, inputs.dtype) * ops.cast(STEPS / (STEPS - dropped), inputs.dtype))
