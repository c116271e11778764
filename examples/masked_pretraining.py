"""Pre-trains an encoder on masked words, then fine-tunes it with few labels; draws the curve with and without.

Run it: python examples/masked_pretraining.py

The reviews are in a made language: of its 80 adjectives half are praise, some are negated, and a review either
praises throughout or blames throughout. Without labels nothing says which words are praise; but a model that knows
which words occur together predicts masked words better, and such a model then needs few labels (Devlin et al. 2018).
"""

import itertools
import sys
from random import Random

import keras
import numpy as np

import keras_attention as ka

NOUNS = ["soup", "staff", "room", "view", "music", "bread", "price", "place", "coffee", "garden"]
ADJECTIVES = ["".join(parts) for parts in itertools.product("dfgkl", "aeio", ("ran", "lo", "mish", "tu"))]
VOCABULARY = ["", "[MASK]", "the", "was", "not", "and", ",", *NOUNS, *ADJECTIVES]
IDS = {word: index for index, word in enumerate(VOCABULARY)}
MASK, FIRST_NOUN = 1, 7
CLAUSES = 3
SMOKE = {"unlabelled": 8000, "epochs": 8, "numbers": (16,), "repeats": 1, "image": None}


def make_reviews(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes reviews of three clauses, ids (count, 23) padded at the end, and their labels (count,), 1 for praise."""
    words_by_label = np.random.default_rng(0).permutation(ADJECTIVES).reshape(2, -1).tolist()  # blame, praise
    random = Random(seed)
    labels = [random.randrange(2) for _ in range(count)]
    rows = []
    for label in labels:
        words: list[str] = []
        for noun in random.sample(NOUNS, CLAUSES):
            negated = random.random() < 0.25
            first, second = random.sample(words_by_label[label != negated], 2)
            words += [","] * bool(words) + ["the", noun, "was", *["not"] * negated, first, "and", second]
        rows.append([IDS[word] for word in words])
    return keras.utils.pad_sequences(rows, maxlen=8 * CLAUSES - 1, padding="post"), np.array(labels)


def build_encoder(width: int = 64) -> keras.Model:
    """Builds the encoder of both tasks: from ids (B, T) to hidden states (B, T, M)."""
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(len(VOCABULARY), width, mask_zero=True, name="embedding")(ids)
    x = ka.PositionalEncoding()(x)
    return keras.Model(ids, ka.Encoder(2, intermediate_dim=2 * width, num_heads=4, dropout=0.1)(x))


def pre_train(encoder: keras.Model, ids: np.ndarray, epochs: int) -> None:
    """Trains to predict masked nouns and adjectives, a fifth of them, others in each epoch."""
    logits = encoder.get_layer("embedding")(encoder.output, reverse=True)  # (B, T, V)
    model = keras.Model(encoder.input, logits)
    rate = keras.optimizers.schedules.CosineDecay(0.003, epochs * -(-len(ids) // 64))
    model.compile(
        keras.optimizers.Adam(rate), loss=ka.training.MaskedCrossEntropy(), metrics=[ka.training.Perplexity()]
    )
    random = np.random.default_rng(1)
    for epoch in range(1, epochs + 1):
        masked = (ids >= FIRST_NOUN) & (random.random(ids.shape) < 0.2)
        history = model.fit(np.where(masked, MASK, ids), np.where(masked, ids, 0), batch_size=64, verbose=0).history
        print(f"pre-training, epoch {epoch}: perplexity {history['perplexity'][0]:.1f} of masked words", flush=True)


class FineTuning:
    """Trains the encoder with a sigmoid on the mean of its hidden states, each time from the weights that are given."""

    def __init__(self, encoder: keras.Model, steps: int = 100):
        x = keras.layers.GlobalAveragePooling1D()(encoder.output)
        self.model = keras.Model(encoder.input, keras.layers.Dense(1, activation="sigmoid")(x))
        self.model.compile(keras.optimizers.Adam(0.001), loss="binary_crossentropy", metrics=["accuracy"])
        self.model.optimizer.build(self.model.trainable_variables)
        self.encoder, self.steps = encoder, steps
        self.start = [
            variable.numpy() for variable in (*self.model.optimizer.variables, *self.model.layers[-1].weights)
        ]

    def accuracy(self, weights: list[np.ndarray], data, test) -> float:
        """Accuracy on the test data after training on the data from these weights of the encoder."""
        self.encoder.set_weights(weights)
        for variable, value in zip(
            (*self.model.optimizer.variables, *self.model.layers[-1].weights), self.start, strict=True
        ):
            variable.assign(value)
        rows = np.random.default_rng(1).integers(0, len(data[0]), self.steps * 32)
        self.model.fit(data[0][rows], data[1][rows], batch_size=32, shuffle=False, verbose=0)
        return self.model.evaluate(*test, batch_size=250, verbose=0)[1]


def naive_bayes(data, test) -> float:
    """Accuracy on the test data of a bag of words: the odds of each word, from its counts plus one."""
    counts = [1 + np.bincount(data[0][data[1] == label].ravel(), minlength=len(VOCABULARY)) for label in (0, 1)]
    odds = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())  # (V,)
    odds[0] = 0  # padding
    return float(((odds[test[0]].sum(1) > 0) == test[1]).mean())


def draw(image: str, curves: dict[str, dict[int, list[float]]]) -> None:
    """Draws the mean accuracy of each curve, and its range."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        values = np.array(list(curve.values()))  # (numbers, repeats)
        (line,) = axes.plot(list(curve), values.mean(1), marker="o", label=name)
        axes.fill_between(list(curve), values.min(1), values.max(1), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="labelled reviews", ylabel="test accuracy", xscale="log", ylim=(0.45, 1.02))
    axes.set_xticks(list(curve), list(map(str, curve)))
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(image, dpi=130, facecolor="white")


def main(
    unlabelled: int = 10000,
    epochs: int = 10,
    numbers: tuple[int, ...] = (16, 64, 256, 1024),
    repeats: int = 3,
    image: str | None = "transfer.png",
) -> dict[str, dict[int, list[float]]]:
    """Returns the test accuracies by the number of labels, several of each, and draws them."""
    keras.utils.set_random_seed(1)
    encoder = build_encoder()
    scratch = encoder.get_weights()
    pre_train(encoder, make_reviews(unlabelled, seed=1)[0], epochs)
    pre_trained = encoder.get_weights()
    tuning, test = FineTuning(encoder), make_reviews(1000, seed=2)
    learners = {
        "pre-trained encoder": lambda data: tuning.accuracy(pre_trained, data, test),
        "encoder from scratch": lambda data: tuning.accuracy(scratch, data, test),
        "bag of words": lambda data: naive_bayes(data, test),
    }
    curves: dict[str, dict[int, list[float]]] = {name: {} for name in learners}
    print("labels", *learners, sep=" | ")
    for number in numbers:
        samples = [make_reviews(number, seed=10 + repeat) for repeat in range(repeats)]
        for name, learn in learners.items():
            curves[name][number] = [learn(data) for data in samples]
        print(number, *(f"{np.mean(curve[number]):.1%}" for curve in curves.values()), sep=" | ", flush=True)
    if image:
        draw(image, curves)
    return curves


if __name__ == "__main__":
    main(**SMOKE if "--smoke" in sys.argv[1:] else {})
