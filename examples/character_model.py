"""Trains a language model on the characters of text files, against n-grams, and continues a prompt.

Run it: python examples/character_model.py [file ...]    (by default this library's pages and modules)

A tenth of the files, or the last tenth of a single one, is kept for testing. The measure is bits per character, the
base-2 logarithm of the perplexity: the size of the test text, compressed with the model's probabilities.
"""

import sys
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np

import keras_attention as ka
from keras_attention.decoding import DecodingOptions, generate

ROOT = Path(__file__).parent.parent
END, UNKNOWN, FIRST = (
    1,
    2,
    3,
)  # ids of the end of a file, a character that training does not have, the first character; 0 is padding
LENGTH, BATCH = 256, 16
SMOKE = {"paths": [ROOT / "docs" / "tutorial.md"], "steps": 100, "num_layers": 1, "width": 64}


def read(paths: list[Path]) -> tuple[list[str], list[str]]:
    """Reads the texts for training and those for testing."""
    texts = [path.read_text(encoding="utf-8") for path in paths]
    if len(texts) == 1:
        lines = texts[0].splitlines(keepends=True)
        cut = len(lines) * 9 // 10
        return ["".join(lines[:cut])], ["".join(lines[cut:])]
    return [text for index, text in enumerate(texts) if index % 10], texts[::10]


def n_gram_bits(train: np.ndarray, test: np.ndarray, order: int, vocabulary_size: int) -> list[float]:
    """Bits per character of interpolated n-grams of each order up to this one, with the estimate of Witten and Bell."""
    probability = np.full(len(test), 1 / vocabulary_size)  # that of order 0
    bits = []
    train_text, test_text = ("".join(map(chr, ids)) for ids in (train, test))
    for length in range(order):  # of the context
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for index in range(length, len(train_text)):
            counts[train_text[index - length : index]][train_text[index]] += 1
        totals = {context: sum(after.values()) for context, after in counts.items()}
        for index in range(length, len(test_text)):
            context = test_text[index - length : index]
            if context in totals:  # (count + kinds · shorter) / (total + kinds)
                after, total = counts[context], totals[context]
                kinds, count = len(after), after.get(test_text[index], 0)
                probability[index] = (count + kinds * probability[index]) / (total + kinds)
        bits.append(float(-np.log2(probability).mean()))
    return bits


def train_model(ids: np.ndarray, vocabulary_size: int, steps: int, num_layers: int, width: int) -> ka.CausalTransformer:
    """Trains on random windows of the text."""
    config = ka.TransformerConfig(
        vocabulary_size, num_layers, width, intermediate_dim=4 * width, num_heads=4, dropout=0.0, positions="rotary"
    )
    model = ka.CausalTransformer(config)
    optimizer = ka.training.muon_optimizer(config, warmup_steps=100, scale=1.0, total_steps=steps)
    model.compile(optimizer, loss=ka.training.MaskedCrossEntropy(), metrics=[ka.training.Perplexity()])
    starts = np.random.default_rng(1).integers(0, len(ids) - LENGTH, (steps * BATCH, 1))
    windows = ids[starts + np.arange(LENGTH + 1)]  # (steps · B, T + 1)
    model.fit(windows[:, :-1], windows[:, 1:], batch_size=BATCH, verbose=2)
    return model


def model_bits(model: ka.CausalTransformer, ids: np.ndarray) -> float:
    """Bits per character of a text, each predicted from half a window or more before it."""
    half = LENGTH // 2
    text = np.pad(ids, (half + 1, -len(ids) % half), constant_values=(END, 0))
    windows = np.lib.stride_tricks.sliding_window_view(text, LENGTH + 1)[::half]
    labels = np.where(np.arange(LENGTH) < half, 0, windows[:, 1:])  # 0 is not counted
    perplexity = model.evaluate(windows[:, :-1], labels, batch_size=BATCH, verbose=0, return_dict=True)["perplexity"]
    return float(np.log2(perplexity))


def main(
    paths: list[Path] | None = None, steps: int = 800, num_layers: int = 4, width: int = 128, prompt: str = "The "
) -> tuple[dict[str, float], str]:
    """Returns the bits per character of each model on the test text, and the text that continues the prompt."""
    keras.utils.set_random_seed(1)
    paths = paths or sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("keras_attention/**/*.py")])
    train_texts, test_texts = read(paths)
    characters = sorted(set("".join(train_texts)))
    ids_of = {character: FIRST + index for index, character in enumerate(characters)}

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([id for text in texts for id in [*(ids_of.get(each, UNKNOWN) for each in text), END]], "int32")

    train, test = encode(train_texts), encode(test_texts)
    size = FIRST + len(characters)
    print(f"{len(train):,} characters for training, {len(test):,} for testing, {size} different ones", flush=True)
    bits = {f"{n}-gram": value for n, value in enumerate(n_gram_bits(train, test, 7, size), start=1)}
    model = train_model(train, size, steps, num_layers, width)
    bits["Transformer"] = model_bits(model, test)
    for name, value in bits.items():
        print(f"bits per character, {name}: {value:.3f}")

    options = DecodingOptions(sample=True, temperature=0.7, max_length=LENGTH, seed=1)
    sample = generate(model, encode([prompt])[None, :-1], options, bos_id=END, eos_id=END).ids[0, 0].numpy()
    text = "".join(characters[id - FIRST] for id in sample if id >= FIRST)
    print(text)
    return bits, text


if __name__ == "__main__":
    files = [Path(argument) for argument in sys.argv[1:] if argument != "--smoke"]
    main(**SMOKE if "--smoke" in sys.argv[1:] else {"paths": files})
