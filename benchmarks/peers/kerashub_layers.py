"""KerasHub's encoder and decoder layers as a functional model.

Departures from ours that its layers leave no choice about: biases in attention, dropout on attention weights wherever
there is any, positions as a half of sines and a half of cosines.
"""

import keras
import keras_hub
from keras import ops

from benchmarks.peers.keras_fit import adam, dataset, fit
from benchmarks.peers.side import Measured, Task, main
from benchmarks.tools.sentences import PAD, Sentences

EPSILON = 1e-6


def build(task: Task) -> keras.Model:
    """The model."""
    policy = {"dtype": task.dtype}
    sizes = {
        "intermediate_dim": task.intermediate_dim,
        "num_heads": task.num_heads,
        "dropout": task.dropout,
        "layer_norm_epsilon": EPSILON,
    }
    source, target = (keras.Input((None,), dtype="int32", name=name) for name in ("source", "target"))
    embedding = keras_hub.layers.ReversibleEmbedding(
        task.vocabulary_size,
        task.hidden_dim,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=task.hidden_dim**-0.5),
        **policy,
    )

    def embedded(ids):
        x = embedding(ids) * task.hidden_dim**0.5  # (B, T, M)
        x = x + keras_hub.layers.SinePositionEncoding(**policy)(x)
        return keras.layers.Dropout(task.dropout, **policy)(x)

    source_mask = ops.not_equal(source, PAD)  # (B, S)
    memory = embedded(source)
    for _ in range(task.num_layers):
        memory = keras_hub.layers.TransformerEncoder(**sizes, **policy)(memory, padding_mask=source_mask)
    x = embedded(target)
    for _ in range(task.num_layers):
        x = keras_hub.layers.TransformerDecoder(**sizes, **policy)(x, memory, encoder_padding_mask=source_mask)
    logits = ops.cast(embedding(x, reverse=True), "float32")  # (B, T, V)
    return keras.Model({"source": source, "target": target}, logits)


def run(task: Task) -> Measured:
    """Trains on the clock."""
    keras.utils.set_random_seed(1)
    sentences = Sentences.load(task.sentences)
    model = build(task)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)
    model.compile(adam(task), loss=loss, **task.options)
    return fit(task, sentences, model, dataset(sentences))


if __name__ == "__main__":
    main(run)
