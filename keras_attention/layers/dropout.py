"""Dropout with a quarter of the random numbers."""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.replicas import ReplicaSeeds

# A random byte decides about each value; a random number of 32 bits holds four of them.
STEPS = 256


class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with random bytes, where generating random numbers takes most of its time.

    Each value is dropped with probability `rate`: the threshold, a multiple of 1/256, is rounded up or down at random
    in each call. Rates below 1/256 or above 255/256, and the torch backend, use Keras' implementation.

    Source: Srivastava et al. 2014.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Sets a share `rate` of the inputs, of any shape, to zero in training."""
        if not training or not self.rate or keras.config.backend() == "torch":
            return super().call(inputs, training=training)
        seeds = ReplicaSeeds(self.seed_generator)
        if self.noise_shape is not None or not 1 <= self.rate * STEPS <= STEPS - 1:
            return keras.random.dropout(inputs, self.rate, self.noise_shape, seeds)
        draw = _draw_on_jax if keras.config.backend() == "jax" else _draw_on_tensorflow
        numbers, number = draw(inputs, seeds)
        steps, share_above = divmod(self.rate * STEPS, 1)
        dropped = ops.cast(steps, "uint8") + ops.cast(number < share_above, "uint8")  # of 256 bytes
        kept = ops.greater_equal(numbers, dropped)
        return inputs * (ops.cast(kept, inputs.dtype) * ops.cast(1 / (1 - self.rate), inputs.dtype))


def _draw_on_tensorflow(x: Any, seed: keras.random.SeedGenerator) -> tuple[Any, Any]:
    """Random bytes of the shape of x, and one number in [0, 1)."""
    size = ops.size(x)
    draws = keras.random.randint((size // 4 + 2, 1), -(2**31), 2**31 - 1, seed=seed)
    numbers = ops.reshape(ops.view(draws, "uint8"), (-1,))[:size]
    return ops.reshape(numbers, ops.shape(x)), ops.cast(draws[-1, 0], "float32") * 2**-32 + 0.5


def _draw_on_jax(x: Any, seed: keras.random.SeedGenerator) -> tuple[Any, Any]:
    """Random bytes of the shape of x, and one number in [0, 1)."""
    import jax

    *rows, width = x.shape or (1,)
    words = width // 4 + 1
    # Rows stay rows, so that each part of a sharded batch draws its own. Without the barrier, each byte of a word would
    # compute that word anew.
    draws = jax.lax.optimization_barrier(jax.random.bits(seed.next(), (*rows, words), "uint32"))
    numbers = ops.reshape(ops.view(draws, "uint8"), (*rows, 4 * words))[..., :width]
    return ops.reshape(numbers, x.shape), keras.random.uniform((), seed=seed)
