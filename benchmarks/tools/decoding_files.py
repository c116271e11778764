"""What the sides of the decoding benchmark read: a model, CTranslate2's conversions of it, source ids."""

from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np

from benchmarks.peers.decoding import END, MODEL, SOURCES, TOKENIZER
from keras_attention import Transformer, TransformerConfig
from keras_attention.conversion import to_ctranslate2


@dataclass(frozen=True)
class Sizes:
    """Of a model of random weights; as of `TransformerConfig`."""

    num_layers: int
    hidden_dim: int
    intermediate_dim: int
    num_heads: int
    vocabulary_size: int


@dataclass(frozen=True)
class Numbers:
    """A substitute for a tokenizer, whose pieces are numbers."""

    vocabulary_size: int

    def pieces(self, ids) -> list[str]:
        """Names of ids."""
        return [str(each) for each in ids]

    def save(self, path: Path) -> None:
        """Nothing to save."""


def write_random(folder: Path, sizes: Sizes, sentences: int, source_length: int) -> None:
    """A model of random weights and source ids.

    Args:
        folder: Of the task.
        sizes: Of the model.
        sentences: How many sources.
        source_length: Tokens of each, the end counted.
    """
    keras.utils.set_random_seed(1)
    model = Transformer(TransformerConfig(**asdict(sizes)))
    # An end that is never likely: no side ends a sentence by itself, whether or not it can be forbidden to.
    embeddings = model.get_layer("embedding").embeddings
    embeddings.assign(keras.ops.where(keras.ops.arange(sizes.vocabulary_size)[:, None] == END, 0.0, embeddings))
    random = np.random.default_rng(1)
    sources = random.integers(END + 1, sizes.vocabulary_size, (sentences, source_length), dtype="int32")
    sources[:, -1] = END
    np.save(folder / SOURCES, sources)
    _write(folder, model, Numbers(sizes.vocabulary_size))


def write_run(folder: Path, run: str) -> None:
    """The model of a training run.

    Args:
        folder: Of the task.
        run: The run's folder.
    """
    from keras_attention.pipeline import RunFolder

    translator = RunFolder(run).translator()
    translator.tokenizer.save(folder / TOKENIZER)
    _write(folder, translator.model, translator.tokenizer)


def _write(folder: Path, model: Transformer, tokenizer: object) -> None:
    model.save(folder / MODEL)
    to_ctranslate2(model, tokenizer, folder / "float32")
    to_ctranslate2(model, tokenizer, folder / "int8", quantization="int8")
