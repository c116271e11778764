"""Figures of docs/concepts/layers.md: `python docs/figures/layers.py`, or `make figures`."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_attention as ka

IMAGES = Path(__file__).parent.parent / "images"
DEPTH = 24
BANK, MASK, WORDS_PER_TOPIC = 1, 2, 10  # then the words of the river, then those of money


def changes_by_position() -> dict[str, np.ndarray]:
    """How much each output position changes when one input position does, (S, S), for the two sub-layers."""
    keras.utils.set_random_seed(1)
    layer = ka.EncoderLayer(intermediate_dim=64, num_heads=4, kernel_initializer="glorot_uniform")
    x = keras.random.normal((1, 8, 32), seed=1)
    layer(x)
    # Row i of the batch differs from x at position i.
    changed = x + keras.ops.eye(8)[:, :, None] * keras.random.normal((1, 1, 32), seed=2)
    return {
        "feed-forward": keras.ops.norm(layer.feed_forward(changed) - layer.feed_forward(x), axis=-1),
        "self-attention": keras.ops.norm(layer.self_attention(changed) - layer.self_attention(x), axis=-1),
    }


def by_depth(step, normalize_first: bool = False, **kwargs) -> dict[str, list[float]]:
    """Measures of DEPTH untrained layers, one number for each layer.

    "queries" and "feed-forward": norm of the gradient of their first kernel. "differences": the share of the hidden
    states, by norm, that differs between positions. "size": root mean square of the hidden states.
    """
    keras.utils.set_random_seed(1)
    layers = [ka.EncoderLayer(256, 4, normalize_first=normalize_first, **kwargs) for _ in range(DEPTH)]
    x = keras.random.normal((2, 16, 64), seed=1)
    for layer in layers:
        layer.build(x.shape)
    states = [x]
    with tf.GradientTape() as tape:
        for layer in layers:
            states.append(step(layer, states[-1]))
        loss = tf.reduce_sum(states[-1] * keras.random.normal(x.shape, seed=2))
    kernels = {
        "queries": [layer.self_attention.weights[0] for layer in layers],
        "feed-forward": [layer.feed_forward.weights[0] for layer in layers],
    }
    gradients = tape.gradient(loss, kernels)
    measures = {name: [float(tf.norm(each)) for each in gradients[name]] for name in kernels}
    differing = [each - tf.reduce_mean(each, axis=1, keepdims=True) for each in states[1:]]
    norms = [float(tf.norm(each)) for each in states[1:]]
    measures["differences"] = [float(tf.norm(each)) / norm for each, norm in zip(differing, norms, strict=True)]
    measures["size"] = [norm / x.numpy().size ** 0.5 for norm in norms]
    return measures


def whole(layer: ka.EncoderLayer, x):
    return layer(x)


def without_skips(layer: ka.EncoderLayer, x):
    x = layer.self_attention_norm(layer.self_attention(x))
    return layer.feed_forward_norm(layer.feed_forward(x))


def without_norms(layer: ka.EncoderLayer, x):
    x = x + layer.self_attention(x)
    return x + layer.feed_forward(x)


def variants() -> dict[str, dict[str, list[float]]]:
    glorot = {"kernel_initializer": "glorot_uniform"}
    return {
        "post-norm": by_depth(whole, **glorot),
        "post-norm, small start": by_depth(whole),
        "pre-norm": by_depth(whole, normalize_first=True, **glorot),
        "no normalization": by_depth(without_norms, **glorot),
        "no skip connections": by_depth(without_skips, **glorot),
    }


def sentences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sentences of five words of a topic and "bank" (N, 6), and their topics (N,)."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, 2, count)
    ids = 3 + WORDS_PER_TOPIC * topics[:, None] + rng.integers(0, WORDS_PER_TOPIC, (count, 6))
    ids[np.arange(count), rng.integers(0, 6, count)] = BANK
    return ids, topics


def trained_encoder() -> tuple[keras.Model, keras.Model]:
    """Embedding and encoder, trained to predict a masked word."""
    keras.utils.set_random_seed(1)
    ids = keras.Input((None,), dtype="int32")
    embedding = ka.TokenEmbedding(3 + 2 * WORDS_PER_TOPIC, 32)
    x = ka.PositionalEncoding()(embedding(ids))
    encoder = keras.Model(ids, ka.Encoder(2, intermediate_dim=64, num_heads=4)(x))
    masked_words = keras.Model(ids, embedding(encoder.output, reverse=True))
    labels, _ = sentences(4000, seed=1)
    inputs = labels.copy()
    at = np.random.default_rng(2).integers(0, 6, len(labels))
    inputs[np.arange(len(labels)), at] = MASK
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    masked_words.compile(keras.optimizers.Adam(0.003), loss=loss)
    masked_words.fit(
        inputs, labels, sample_weight=(inputs == MASK).astype("float32"), batch_size=64, epochs=5, verbose=0
    )
    return encoder


def draw_changes(pyplot) -> Path:
    figure, all_axes = pyplot.subplots(1, 2, figsize=(6, 3.0), layout="constrained")
    for axes, (name, changes) in zip(all_axes, changes_by_position().items(), strict=True):
        axes.imshow(keras.ops.convert_to_numpy(changes), cmap="Blues", vmin=0)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("output position", fontsize=10)
        axes.set_ylabel("changed input position", fontsize=10)
    return save(pyplot, figure, "changes")


def draw_depth(pyplot) -> Path:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6, 4.0), layout="constrained")
    for (name, measures), style in zip(variants().items(), ("-", "--", "-.", ":", "-"), strict=True):
        left.semilogy(range(1, DEPTH + 1), np.maximum(measures["queries"], 1e-7), style, lw=2, label=name)
        right.semilogy(range(1, DEPTH + 1), np.maximum(measures["differences"], 1e-7), style, lw=2)
        ends = (f"{key} {values[0]:.2g} to {values[-1]:.2g}" for key, values in measures.items())
        print(f"{name}:", *ends, sep="\n    ")
    left.set_title("gradient of the query kernel", fontsize=11)
    right.set_title("share that differs by position", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("layer", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=10)
    return save(pyplot, figure, "depth")


def draw_word(pyplot) -> Path:
    encoder = trained_encoder()
    ids, topics = sentences(300, seed=3)
    ids[:, [0]], where = BANK, ids[:, [0]]
    ids = np.where(np.arange(6) == 0, BANK, np.where(ids == BANK, where, ids))
    vectors = keras.ops.convert_to_numpy(encoder(ids))[:, 0]  # of "bank", at position 0 of each sentence
    centred = vectors - vectors.mean(axis=0)
    _, _, axes_of_most_variance = np.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ axes_of_most_variance[:2].T).T
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for topic, name, marker in ((0, "among words of the river", "o"), (1, "among words of money", "x")):
        axes.scatter(x[topics == topic], y[topics == topic], marker=marker, s=25, label=f'"bank" {name}')
    axes.set_xlabel("first principal component", fontsize=10)
    axes.set_ylabel("second", fontsize=10)
    axes.legend(fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    centres = [vectors[topics == topic].mean(axis=0) for topic in (0, 1)]
    distances = np.stack([np.linalg.norm(vectors - centre, axis=1) for centre in centres])
    print(f"nearest centre is that of the topic: {np.mean(distances.argmin(axis=0) == topics):.1%}")
    return save(pyplot, figure, "word")


def save(pyplot, figure, name: str) -> Path:
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"layers-{name}.png"
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for draw in (draw_changes, draw_depth, draw_word):
        print(draw(pyplot))


if __name__ == "__main__":
    main()
