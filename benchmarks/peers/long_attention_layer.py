"""Long attention in Keras' form: our layer, or Keras' own."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import keras_attention as ka
from benchmarks.peers.decoding import use_threads
from benchmarks.peers.long_attention import LongAttention, LongAttentionTask
from benchmarks.tools.workers import serve

LAYERS = {"keras_attention": ka.MultiHeadAttention, "keras": keras.layers.MultiHeadAttention}


def prepare(task: LongAttentionTask) -> LongAttention:
    """Builds the layer."""
    use_threads(task.threads)
    layer = LAYERS[task.side](num_heads=task.heads, key_dim=task.key_dim)
    layer.build((None, None, task.width), (None, None, task.width))
    layer.set_weights(task.weights())

    def step_of(sequence: np.ndarray) -> Callable[[], list[np.ndarray]]:
        x = tf.constant(sequence)

        @tf.function
        def step() -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, x, use_causal_mask=True)
                loss = tf.reduce_mean(tf.square(y))
            variables = [variable.value for variable in layer.trainable_variables]
            return [y, *tape.gradient(loss, [x, *variables])]

        return lambda: [tensor.numpy() for tensor in step()]

    return LongAttention(task, step_of)


if __name__ == "__main__":
    serve(lambda task: prepare(LongAttentionTask(**task)))
