"""Subword tokenizers: one SentencePiece model, run from Python for training and in the graph for serving."""

import itertools
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from keras_attention.extras import needed_by
from keras_attention.files import make_folder, write_atomically
from keras_attention.text.lines import read_each
from keras_attention.text.sentencepiece_model import (
    BOS_ID,
    EOS_ID,
    MAX_TRAINING_LINES,
    MODEL_TYPES,
    PAD_ID,
    load_processor,
    train_model,
)

if TYPE_CHECKING:
    import tensorflow_text


class SubwordTokenizer(tf.Module):
    """Splits text into the pieces of a SentencePiece vocabulary and joins pieces into text.

    The same model runs twice, with equal results: `encode` and `decode` in Python (fast over whole
    corpora), `tokenize` and `detokenize` in a TensorFlow graph (so an exported model takes text). Text
    is not normalised: typographic spaces, quotes and combining marks come back as they were. Only the
    ordinary space is SentencePiece's own: runs of it become one, and it is stripped at both ends.

    The special ids are fixed: 0 padding, 1 unknown, 2 begin, 3 end of sentence. Neither `encode` nor
    `tokenize` adds any. Going back to text, everything from the first end on is dropped, so are padding
    and begin; a piece that the vocabulary lacks shows as ``⁇``.

    Args:
        model: A serialised SentencePiece model, as `train` makes it.

    Raises:
        TypeError: If `model` is not bytes.
        ValueError: If `model` is not a SentencePiece model, or numbers its special pieces otherwise.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "train.en")
        >>> _ = file.write_text("the cat sat\\nthe cat ate\\nthe hat\\n", encoding="utf-8")
        >>> tokenizer = SubwordTokenizer.train(file, vocabulary_size=18)
        >>> tokenizer.pieces(tokenizer.encode(["the cat ate"])[0])
        ['▁the', '▁cat', '▁', 'at', 'e']
        >>> tokenizer.detokenize(tokenizer.tokenize(["the hat", ""])).numpy().tolist()
        [b'the hat', b'']

    Source: Kudo and Richardson 2018, "SentencePiece" (arXiv 1808.06226); Sennrich et al. 2016, byte
    pair encoding (arXiv 1508.07909); Kudo 2018, the unigram model (arXiv 1804.10959).
    """

    def __init__(self, model: bytes):
        super().__init__(name="subword_tokenizer")
        if not isinstance(model, bytes):
            raise TypeError(
                "`model` must be the bytes of a SentencePiece model; to read a file, call "
                f"SubwordTokenizer.load(path). Received: model={model!r}"
            )
        self._model = model
        self._processor = load_processor(model)

    @classmethod
    def train(
        cls,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        vocabulary_size: int,
        model_type: str = "bpe",
        split_digits: bool = False,
        seed: int = 1,
    ) -> "SubwordTokenizer":
        """Learns a vocabulary from text files: the same files and arguments give the same model.

        Args:
            files: One file or several, plain or gzip, UTF-8, a sentence a line; "-" is standard input. Give
                both languages for the joint vocabulary that tied embeddings need. The whole of a long line counts.
            vocabulary_size: How many pieces, the four special ones included.
            model_type: "bpe" (byte pair encoding) or "unigram".
            split_digits: Whether each digit is a piece of its own, for text full of numbers.
            seed: Seeds the sample of lines; above two million lines a sample is learnt from, with a warning.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If a file is not UTF-8 text, there is no text at all, `model_type` is unknown,
                or the text cannot give `vocabulary_size` pieces (the message says what it can give).

        Example:
            >>> import pathlib, tempfile
            >>> file = pathlib.Path(tempfile.mkdtemp(), "prices.txt")
            >>> _ = file.write_text("12 euros\\n120 euros\\n", encoding="utf-8")
            >>> tokenizer = SubwordTokenizer.train(file, vocabulary_size=18, split_digits=True)
            >>> tokenizer.pieces(tokenizer.encode(["12 euros"])[0])
            ['▁', '1', '2', '▁euros']
        """
        if model_type not in MODEL_TYPES:
            raise ValueError(f"`model_type` must be one of {MODEL_TYPES}. Received: model_type={model_type!r}")
        paths = [files] if isinstance(files, str | os.PathLike) else list(files)
        # Read before SentencePiece starts: an error raised inside its iterator would lose its text.
        texts = read_each(paths)
        if not any(map(str.strip, itertools.chain.from_iterable(texts))):
            raise ValueError(f"There is no text to train on in `files`. Received: files={paths}")
        if (number := sum(map(len, texts))) > MAX_TRAINING_LINES:
            warnings.warn(
                f"The vocabulary is learnt from a sample of {MAX_TRAINING_LINES:,} of {number:,} lines", stacklevel=2
            )
        lines = itertools.chain.from_iterable(texts)
        return cls(train_model(lines, vocabulary_size, model_type, split_digits, seed))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SubwordTokenizer":
        """Reads a model that `save` wrote, or any SentencePiece model with the same special ids.

        Args:
            path: The file.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not such a model.

        Example:
            >>> SubwordTokenizer.load("nowhere.model")
            Traceback (most recent call last):
            FileNotFoundError: No tokenizer file at nowhere.model
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"No tokenizer file at {os.fspath(path)}")
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a file, for `load` and for every other SentencePiece tool.

        Args:
            path: The file; folders on the way are made. It is replaced when the whole model has been written.

        Raises:
            OSError: If it cannot be written.

        Example:
            >>> import pathlib, tempfile
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> _ = (folder / "train.en").write_text("a cat\\n", encoding="utf-8")
            >>> tokenizer = SubwordTokenizer.train(folder / "train.en", vocabulary_size=9)
            >>> tokenizer.save(folder / "run" / "tokenizer.model")
            >>> SubwordTokenizer.load(folder / "run" / "tokenizer.model").model == tokenizer.model
            True
        """
        make_folder(path)
        write_atomically(path, lambda temporary: Path(temporary).write_bytes(self._model))

    @property
    def model(self) -> bytes:
        """The serialised SentencePiece model."""
        return self._model

    @property
    def vocabulary_size(self) -> int:
        """The number of pieces, special ones included: ids run from 0 to one less."""
        return self._processor.vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Turns texts into piece ids, in Python; no begin or end is added.

        Args:
            texts: The texts.

        Returns:
            One list of ids for each text.

        Raises:
            TypeError: If `texts` is a single string.
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"`texts` must be a list of strings. Received: texts={texts!r}")
        return self._processor.encode(list(texts), out_type=int)

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Turns piece ids into texts, in Python.

        Args:
            ids: One sequence of ids for each text; padding, begin and all from the first end on drop.

        Returns:
            One text for each sequence.

        Raises:
            IndexError: If an id is outside the vocabulary.
        """
        return [self._processor.decode(_visible(row)) for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Names the pieces behind ids; ``▁`` marks the space before a word.

        Args:
            ids: Piece ids, special ones included.

        Returns:
            One piece for each id.

        Raises:
            IndexError: If an id is outside the vocabulary.
        """
        return [self._processor.id_to_piece(int(piece)) for piece in ids]

    def tokenize(self, texts: tf.Tensor | Sequence[str]) -> tf.RaggedTensor:
        """Turns texts into piece ids, in the graph; no begin or end is added.

        Args:
            texts: Strings (B,). Bytes that are not UTF-8 are read as U+FFFD.

        Returns:
            Ids (B, None), int32.

        Raises:
            ValueError: If `texts` has another rank.
        """
        texts = tf.convert_to_tensor(texts, tf.string)
        if texts.shape.rank != 1:
            raise ValueError(f"`texts` must have shape (B,). Received: texts.shape={texts.shape}")
        return self._graph_tokenizer().tokenize(_valid_utf8(texts))

    def detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Turns piece ids into texts, in the graph.

        Args:
            ids: Ids (B, T): ragged, or dense with padding. Padding, begin and all from the first end
                on drop.

        Returns:
            Strings (B,), valid UTF-8.

        Raises:
            ValueError: If `ids` has another rank.
        """
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_tensor(PAD_ID)
        ids = tf.cast(ids, tf.int32)
        if ids.shape.rank != 2:
            raise ValueError(f"`ids` must have shape (B, T). Received: ids.shape={ids.shape}")
        before_end = tf.cumsum(tf.cast(ids == EOS_ID, tf.int32), axis=1) == 0  # (B, T)
        visible = before_end & (ids != PAD_ID) & (ids != BOS_ID)
        rows = tf.ragged.boolean_mask(ids, visible)  # (B, None)
        return _valid_utf8(self._graph_tokenizer().detokenize(rows))

    def _graph_tokenizer(self) -> "tensorflow_text.SentencepieceTokenizer":
        with needed_by("SubwordTokenizer"):
            import tensorflow_text

        # Made in each graph that uses it: an eager one would die with its kernel when a seed is set.
        return tensorflow_text.SentencepieceTokenizer(self._model, out_type=tf.int32)


def _valid_utf8(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")


def _visible(ids: Sequence[int]) -> list[int]:
    """The ids that stand for text: those before the first end, without padding and begin."""
    until_end = itertools.takewhile(lambda piece: piece != EOS_ID, map(int, ids))
    return [piece for piece in until_end if piece not in (PAD_ID, BOS_ID)]
