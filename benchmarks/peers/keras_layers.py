"""Keras' own layers, put together as TensorFlow's translation tutorial does it.

Departures, so that all sides compute the same: one embedding for source, target and logits, no biases in attention,
no dropout on attention weights, and masks given explicitly, since Keras' attention loses implicit ones.
"""

import itertools
from collections.abc import Sequence

import keras
from keras import layers, ops

from benchmarks.peers.keras_fit import adam, dataset, fit
from benchmarks.peers.side import Measured, Task, main
from benchmarks.tools.sentences import PAD, Sentences

EPSILON = 1e-6


@keras.saving.register_keras_serializable("benchmarks")
class Positions(layers.Layer):
    """Embeddings times √M, plus the paper's sines and cosines."""

    def call(self, x):
        width = x.shape[-1]
        rates = ops.power(10000.0, -ops.arange(0, width, 2, dtype="float32") / width)
        angles = ops.arange(ops.shape(x)[1], dtype="float32")[:, None] * rates  # (T, M / 2)
        table = ops.reshape(ops.stack([ops.sin(angles), ops.cos(angles)], -1), (-1, width))  # (T, M)
        return x * width**0.5 + ops.cast(table, x.dtype)


def build(task: Task) -> keras.Model:
    """The model; its names tell the order in which its layers were made."""
    numbers = itertools.count()

    def made(kind: type[layers.Layer], *args, **options) -> layers.Layer:
        return kind(*args, dtype=task.dtype, name=f"{next(numbers):03d}_{kind.__name__}", **options)

    def attend(x, memory, **masks):
        key_dim = task.hidden_dim // task.num_heads
        attention = made(layers.MultiHeadAttention, task.num_heads, key_dim, use_bias=False)
        return add_and_normalize(x, attention(x, memory, **masks))

    def feed_forward(x):
        inner = made(layers.Dense, task.intermediate_dim, activation="relu")(x)  # (B, T, F)
        return add_and_normalize(x, made(layers.Dense, task.hidden_dim)(inner))

    def add_and_normalize(x, y):
        x = made(layers.Add)([x, made(layers.Dropout, task.dropout)(y)])
        return made(layers.LayerNormalization, epsilon=EPSILON)(x)

    def embedded(ids):
        return made(layers.Dropout, task.dropout)(positions(embedding(ids)))  # (B, T, M)

    initializer = keras.initializers.RandomNormal(stddev=task.hidden_dim**-0.5)
    sizes = (task.vocabulary_size, task.hidden_dim)
    embedding = made(layers.ReversibleEmbedding, *sizes, embeddings_initializer=initializer)
    positions = made(Positions)
    source, target = (keras.Input((None,), dtype="int32", name=name) for name in ("source", "target"))
    source_mask = ops.not_equal(source, PAD)[:, None, :]  # (B, 1, S)

    memory = embedded(source)  # (B, S, M)
    for _ in range(task.num_layers):
        memory = feed_forward(attend(memory, memory, attention_mask=source_mask))
    x = embedded(target)  # (B, T, M)
    for _ in range(task.num_layers):
        x = attend(x, x, use_causal_mask=True)
        x = feed_forward(attend(x, memory, attention_mask=source_mask))
    logits = ops.cast(embedding(x, reverse=True), "float32")  # (B, T, V)
    return keras.Model({"source": source, "target": target}, logits)


def set_weights(model: keras.Model, weights: Sequence) -> None:
    """Gives the model the weights of ours, which keeps them in the order of the computation."""
    ordered = sorted(model.layers, key=lambda layer: layer.name)
    variables = [variable for layer in ordered for variable in layer.trainable_weights]
    for variable, value in zip(variables, weights, strict=True):
        variable.assign(value)


def masked_loss(labels, logits):
    """Cross-entropy over the tokens that are not padding."""
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)  # (B, T)
    real = ops.cast(ops.not_equal(labels, PAD), losses.dtype)
    return ops.sum(losses * real) / ops.sum(real)


def run(task: Task) -> Measured:
    """Trains on the clock."""
    keras.utils.set_random_seed(1)
    sentences = Sentences.load(task.sentences)
    model = build(task)
    model.compile(adam(task), loss=masked_loss, **task.options)
    return fit(task, sentences, model, dataset(sentences))


if __name__ == "__main__":
    main(run)
