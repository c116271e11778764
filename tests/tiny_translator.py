"""A small translator for tests: made-up words, untrained weights, outputs that differ from text to text."""

import functools
import random
import tempfile
from pathlib import Path

import keras

from keras_attention import Transformer, TransformerConfig
from keras_attention.serving import Translator
from keras_attention.text import SubwordTokenizer


def words(number=60, seed=7):
    choose = random.Random(seed)
    letters = "abdegiklmnorstu"
    return ["".join(choose.choices(letters, k=choose.randint(2, 6))) for _ in range(number)]


def lines(number=400, seed=8):
    choose = random.Random(seed)
    return [" ".join(choose.choices(words(), k=choose.randint(2, 9))) for _ in range(number)]


# One output for each: also for what no corpus holds.
ODD_TEXTS = [
    "",
    words()[0],
    " ".join(random.Random(9).choices(words(), k=300)),
    f"😀 {words()[3]} 👩‍👩‍👧",
    b"\xff\xfe " + words()[4].encode() + b" \xc3",
    f"{words()[5]}\0{words()[6]}",
    " \t\n ",
    *lines()[:3],
]


@functools.cache
def tiny_tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text"
        file.write_text("\n".join([*lines(), "zählt – „größer“ 😀"]) + "\n", encoding="utf-8")
        return SubwordTokenizer.train(file, vocabulary_size=151)


@functools.cache
def tiny_model(seed=12, scale=2.1):
    keras.utils.set_random_seed(seed)
    config = TransformerConfig(
        vocabulary_size=tiny_tokenizer().vocabulary_size,
        num_layers=2,
        hidden_dim=24,
        intermediate_dim=46,
        num_heads=3,
        initialization="glorot",  # with small residual branches, an untrained model repeats its last token
    )
    model = Transformer(config)
    for weight in model.weights:  # larger weights: the outputs depend more on the source
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(weight * scale)
    return model


@functools.cache
def tiny_translator():
    return Translator(tiny_model(), tiny_tokenizer(), beam_size=3, max_source_length=61)
