"""Dropout for a quarter of the random numbers."""

from typing import Any

import keras
from keras import ops

# One of these numbers is a byte: four of them fit into one random number of 32 bits.
STEPS = 256


class Dropout(keras.layers.Dropout):
    """Keras' layer, with random bytes on TensorFlow, where drawing random numbers is most of its work.

    Each value is dropped with the probability `rate`: its multiple of 1/256 is rounded up or down at random, anew in
    each call. Rates below 1/256 or above 255/256 are Keras' own, and so is the whole layer on JAX and torch.

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
        plain = self.noise_shape is not None or not 1 <= self.rate * STEPS <= STEPS - 1
        if plain or not training or keras.config.backend() != "tensorflow":
            return super().call(inputs, training=training)
        size = ops.size(inputs)
        draws = keras.random.randint((size // 4 + 2, 1), -(2**31), 2**31 - 1, seed=self.seed_generator)
        steps, share_above = divmod(self.rate * STEPS, 1)
        above = draws[-1, 0] < int(share_above * 2**32) - 2**31
        dropped = ops.cast(steps, "uint8") + ops.cast(above, "uint8")  # of 256 bytes
        numbers = ops.reshape(ops.view(draws, "uint8"), (-1,))[:size]
        kept = ops.reshape(ops.greater_equal(numbers, dropped), ops.shape(inputs))
        return inputs * (ops.cast(kept, inputs.dtype) * ops.cast(1 / (1 - self.rate), inputs.dtype))
