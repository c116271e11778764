"""Dropout with a quarter of the random numbers."""

from typing import Any

import keras
from keras import ops

# A random byte decides about each value; a random number of 32 bits holds four of them.
STEPS = 256


class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with random bytes on TensorFlow, where generating random numbers takes most of its time.

    Each value is dropped with probability `rate`: the threshold, a multiple of 1/256, is rounded up or down at random
    in each call. Rates below 1/256 or above 255/256, and the JAX and torch backends, use Keras' implementation.

    Source: Srivastava et al. 2014.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Sets a share `rate` of the inputs, of any shape, to zero in training."""
        is_keras = self.noise_shape is not None or not 1 <= self.rate * STEPS <= STEPS - 1
        if is_keras or not training or keras.config.backend() != "tensorflow":
            return super().call(inputs, training=training)
        size = ops.size(inputs)
        draws = keras.random.randint((size // 4 + 2, 1), -(2**31), 2**31 - 1, seed=self.seed_generator)
        steps, share_above = divmod(self.rate * STEPS, 1)
        above = draws[-1, 0] < int(share_above * 2**32) - 2**31
        dropped = ops.cast(steps, "uint8") + ops.cast(above, "uint8")  # of 256 bytes
        numbers = ops.reshape(ops.view(draws, "uint8"), (-1,))[:size]
        kept = ops.reshape(ops.greater_equal(numbers, dropped), ops.shape(inputs))
        return inputs * (ops.cast(kept, inputs.dtype) * ops.cast(1 / (1 - self.rate), inputs.dtype))
