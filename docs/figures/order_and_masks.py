"""Figures of docs/concepts/order_and_masks.md: `python docs/figures/order_and_masks.py`, or `make figures`."""

from pathlib import Path

import keras
import numpy as np

import keras_attention as ka

IMAGES = Path(__file__).parent.parent / "images"


def first_head_weights() -> dict[str, np.ndarray]:
    """Attention weights of an untrained model for a source of five tokens and two of padding, a target of six."""
    keras.utils.set_random_seed(1)
    model = ka.Transformer(ka.TransformerConfig(50, num_layers=1, hidden_dim=32, intermediate_dim=64, num_heads=4))
    source, target = np.array([[5, 6, 7, 8, 3, 0, 0]]), np.array([[2, 9, 10, 11, 12, 13]])
    memory, mask, (encoder_weights,) = model.encode(source, return_attention_scores=True)
    _, (self_weights,), (cross_weights,) = model.network.decode(
        target, memory, encoder_padding_mask=mask, training=False, return_attention_scores=True
    )
    names = ("encoder", "decoder", "cross-attention")
    weights = (encoder_weights, self_weights, cross_weights)
    return {name: keras.ops.convert_to_numpy(each)[0, 0] for name, each in zip(names, weights, strict=True)}


def draw_masks(pyplot) -> Path:
    figure, all_axes = pyplot.subplots(1, 3, figsize=(6, 2.7), layout="constrained")
    source, target = ["a", "b", "c", "d", "end", "·", "·"], ["start", "A", "B", "C", "D", "E"]
    labels = {"encoder": (source, source), "decoder": (target, target), "cross-attention": (target, source)}
    for axes, (name, weights) in zip(all_axes, first_head_weights().items(), strict=True):
        rows, columns = labels[name]
        axes.imshow(np.where(weights == 0, np.nan, weights), cmap="Blues", vmin=0, vmax=0.5)
        axes.set_facecolor("#f4d3d0")  # weights of exactly 0
        axes.set_title(name, fontsize=11)
        axes.set_xticks(range(len(columns)), columns, fontsize=10, rotation=90)
        axes.set_yticks(range(len(rows)), rows, fontsize=10)
    figure.supxlabel("key (red: weight 0; dots: padding)", fontsize=10)
    return save(pyplot, figure, "masks")


def draw_distances(pyplot) -> Path:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6, 3.2), layout="constrained")
    table = keras.ops.convert_to_numpy(ka.ops.sinusoids(keras.ops.arange(1100), 128))
    distances = np.arange(-50, 51)
    for start, style in ((50, "-"), (400, "--"), (1000, ":")):
        left.plot(distances, table[start + distances] @ table[start], style, lw=2, label=f"from {start}")
    left.set_title("sinusoids: dot product", fontsize=11)
    left.legend(fontsize=10)
    distances = np.arange(0, 51)
    ones = keras.ops.ones((1, 1, 51, 32)) / 32**0.5
    rotated = keras.ops.convert_to_numpy(ka.ops.rotate(ones, keras.ops.arange(51)))[0, 0]
    right.plot(distances, rotated @ rotated[0], lw=2, label="rotary: q · k, q = k")
    alibi = ka.AlibiBias()
    alibi.build((None, 4, None, 32))
    bias = keras.ops.convert_to_numpy(alibi.bias_of_distance(-keras.ops.arange(51)))
    right.plot(distances, bias[2], "--", lw=2, label="ALiBi: bias, slope 1/64")
    buckets = keras.ops.convert_to_numpy(ka.ops.distance_buckets(-keras.ops.arange(51), 32, 128, bidirectional=False))
    right.plot(distances, buckets / 32, ":", lw=2, label="T5: bucket number / 32")
    right.set_title("others, by distance", fontsize=11)
    right.set_ylim(-2.2, 1.1)
    right.legend(fontsize=10, loc="lower left")
    for axes in (left, right):
        axes.set_xlabel("distance", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    return save(pyplot, figure, "distance")


def save(pyplot, figure, name: str) -> Path:
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"order_and_masks-{name}.png"
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for draw in (draw_masks, draw_distances):
        print(draw(pyplot))


if __name__ == "__main__":
    main()
