"""Ours, decoding ids through Keras' JAX backend; needs no TensorFlow. Run with KERAS_BACKEND=jax."""

import keras
import numpy as np

from benchmarks.peers.rows import DecodedRows
from benchmarks.tools.workers import Work, serve
from keras_attention import Transformer, TransformerConfig
from keras_attention.decoding import DecodingOptions, generate


class Ours:
    """The side."""

    def __init__(self, task: DecodedRows):
        keras.utils.set_random_seed(1)
        sizes = ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim", "num_heads")
        config = TransformerConfig(**{name: getattr(task, name) for name in sizes})
        self.task, self.model = task, Transformer(config, dtype="bfloat16")

    def search(self, beam: int) -> Work:
        """Exactly as many tokens as the task says, the end the last of them."""
        options = DecodingOptions(beam, min_length=self.task.tokens_out, max_length=self.task.tokens_out)
        sources = self.task.sources()
        return Work(lambda: np.asarray(generate(self.model, sources, options).ids[:, 0]), lambda ids: list(ids.shape))


if __name__ == "__main__":
    serve(lambda task: Ours(DecodedRows(**task)))
