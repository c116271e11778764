"""Figure of docs/concepts/decoding.md: `python docs/figures/decoding.py`, or `make figures`."""

from pathlib import Path

import keras
import numpy as np

import keras_attention as ka

IMAGE = Path(__file__).parent.parent / "images" / "decoding-steps.png"
PAD, START, END = 0, 2, 3
WORDS = [5, 9, 12, 7]


def padded(rows: list[list[int]]) -> np.ndarray:
    return np.array([row + [PAD] * (7 - len(row)) for row in rows])


def trained_model() -> ka.Transformer:
    """The model of the page, which writes its source backwards."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    sentences = [rng.integers(4, 17, rng.integers(2, 7)).tolist() for _ in range(6400)]
    inputs = {
        "source": padded([[*words, END] for words in sentences]),
        "target": padded([[START, *words[::-1]] for words in sentences]),
    }
    labels = padded([[*words[::-1], END] for words in sentences])
    config = ka.TransformerConfig(
        17, num_layers=2, num_decoder_layers=1, hidden_dim=32, intermediate_dim=64, num_heads=4, dropout=0.0
    )
    model = ka.Transformer(config)
    model.compile(keras.optimizers.Adam(0.005), loss=ka.training.MaskedCrossEntropy())
    model.fit(inputs, labels, batch_size=64, epochs=6, verbose=0)
    return model


def steps(model: ka.Transformer) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the next token (T, V) and mean cross-attention over the heads (T, S), by greedy decoding."""
    memory, mask = model.encode(np.array([[*WORDS, END]]))
    cache, ids = model.init_cache(memory, batch_size=1), np.array([[START]])
    probabilities, looks = [], []
    for _ in range(len(WORDS) + 1):
        logits, cache, (weights,) = model.decode_step(ids, cache, mask, return_attention_scores=True)
        probabilities.append(keras.ops.convert_to_numpy(keras.ops.softmax(logits[0, 0])))
        looks.append(keras.ops.convert_to_numpy(weights[0, :, 0]).mean(axis=0))
        ids = keras.ops.argmax(logits, axis=-1)
    return np.stack(probabilities), np.stack(looks)


def draw(image: Path = IMAGE) -> Path:
    """Draws the figure and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    probabilities, looks = steps(trained_model())
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(6, 2.7), width_ratios=(14, 6), layout="constrained")
    left.imshow(probabilities[:, END:], cmap="Blues", vmin=0, vmax=1)
    left.set_xticks(range(14), ["end", *map(str, range(4, 17))], fontsize=10, rotation=90)
    left.set_title("probability of the next token", fontsize=11)
    right.imshow(looks, cmap="Blues", vmin=0, vmax=1)
    right.set_xticks(range(5), [*map(str, WORDS), "end"], fontsize=10, rotation=90)
    right.set_title("cross-attention", fontsize=11)
    for axes in (left, right):
        axes.set_yticks(range(5), range(1, 6), fontsize=10)
        axes.set_ylabel("step", fontsize=10)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    pyplot.close(figure)
    return image


if __name__ == "__main__":
    print(draw())
