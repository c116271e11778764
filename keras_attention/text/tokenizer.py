"""Subword tokenizers: a SentencePiece model that runs in Python for training and in a graph for serving."""

import itertools
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_attention.extras import needed_by
from keras_attention.files import make_folder, write_atomically
from keras_attention.layers.arguments import fraction
from keras_attention.text.lines import check_readable, is_file, read_lines, stream_text
from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.sentencepiece_model import (
    BOS_ID,
    EOS_ID,
    MAX_TRAINING_LINES,
    MODEL_TYPES,
    PAD_ID,
    load_processor,
    train_model,
)
from keras_attention.text.subword_sampling import subword_sampler

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_text


class SubwordTokenizer:
    """Splits text into the pieces of a SentencePiece vocabulary, and joins pieces into text.

    The same model runs in two ways, with equal results: `encode` and `decode` in Python (fast for whole corpora),
    `tokenize` and `detokenize` in a TensorFlow graph (so that an exported model takes text). Text is not normalised:
    typographic spaces, quotes and combining marks are kept. Only ordinary spaces change: several of them become one,
    and those at both ends are stripped.

    The special ids are 0 for padding, 1 for unknown pieces, 2 for BOS and 3 for EOS. Neither `encode` nor `tokenize`
    adds any. `decode` and `detokenize` drop padding, BOS, and everything from the first EOS on; they show an unknown
    piece as ``⁇``.

    Args:
        model: A serialised SentencePiece model, such as one from `train`.

    Raises:
        TypeError: If `model` is not bytes.
        ValueError: If `model` is not a SentencePiece model, or has other special ids.

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
        """Trains a tokenizer on text files: the same files and arguments give the same model.

        Args:
            files: One or several files, UTF-8, plain or gzip, one sentence per line; "-" is standard input. Pass the
                files of both languages for the joint vocabulary that tied embeddings need.
            vocabulary_size: Number of pieces, the four special ones included.
            model_type: "bpe" (byte pair encoding) or "unigram".
            split_digits: Whether each digit is a piece of its own, for text with many numbers.
            seed: Seed of the sample of two million lines on which a tokenizer is trained, with a warning, if there are
                more.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If a file is not UTF-8 text, there is no text, `model_type` is unknown, or the text cannot give
                `vocabulary_size` pieces (the message says how many it can give).

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
        check_readable(paths)
        texts = [None if is_file(path) else read_lines(path) for path in paths]  # a pipe can be read only once
        # Read before SentencePiece starts, which loses the message of an error raised in its iterator.
        number, has_text = 0, False
        for number, line in enumerate(_lines(paths, texts), start=1):  # noqa: B007  the last number is the count
            has_text = has_text or bool(line.strip())
        if not has_text:
            raise ValueError(f"`files` have no text to train on. Received: files={paths}")
        lines = _lines(paths, texts)
        if number > MAX_TRAINING_LINES:
            warnings.warn(
                f"The tokenizer is trained on a sample of {MAX_TRAINING_LINES:,} of {number:,} lines", stacklevel=2
            )
            # SentencePiece would sample as well, but other lines in each process.
            chosen = set(random.Random(seed).sample(range(number), MAX_TRAINING_LINES))
            lines = (line for index, line in enumerate(lines) if index in chosen)
        return cls(train_model(lines, vocabulary_size, model_type, split_digits, seed))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SubwordTokenizer":
        """Loads a file that `save` wrote, or any SentencePiece model with the same special ids.

        Args:
            path: Path of the file.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: If the file does not exist.
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
        """Writes the model to a file, for `load` and for other SentencePiece tools.

        Args:
            path: Path of the file. Missing folders are created. The file is written atomically.

        Raises:
            OSError: If the file cannot be written.

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
        """The number of pieces, special ones included. Ids are in [0, vocabulary_size)."""
        return self._processor.vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Converts texts to ids in Python, without BOS and EOS.

        Args:
            texts: List of strings.

        Returns:
            One list of ids for each text.

        Raises:
            TypeError: If `texts` is a single string.
        """
        _check_texts(texts)
        return self._processor.encode(list(texts), out_type=int)

    def sample(self, texts: Sequence[str], dropout: float, seed: int | Sequence[int]) -> list[list[int]]:
        """Converts texts to ids in Python with a random segmentation of each text, without BOS and EOS.

        A BPE tokenizer drops each possible merge with probability p = `dropout` before it chooses the next one
        (BPE-dropout). A unigram tokenizer samples each word from its 64 best segmentations x, with probabilities
        proportional to P(x)^α, where α = ln(1/p) / ln(V) for a vocabulary of V pieces: one more piece, of the average
        probability 1/V, makes a segmentation less probable by the factor p. Either way more dropout gives more and
        shorter pieces, 0.1 is a good start, and 0 gives the ids of `encode`.

        Args:
            texts: List of strings.
            dropout: p, at least 0 and below 1.
            seed: Seed of the random numbers, one or several non-negative integers.

        Returns:
            One list of ids for each text.

        Raises:
            TypeError: If `texts` is a single string.
            ValueError: If `dropout` is out of range, or the tokenizer is neither BPE nor unigram.

        Example:
            >>> import pathlib, tempfile
            >>> file = pathlib.Path(tempfile.mkdtemp(), "train.en")
            >>> _ = file.write_text("the cat sat\\nthe cat ate\\nthe hat\\n", encoding="utf-8")
            >>> tokenizer = SubwordTokenizer.train(file, vocabulary_size=18)
            >>> ids = tokenizer.sample(["the cat ate"], dropout=0.9, seed=1)
            >>> len(ids[0]) > len(tokenizer.encode(["the cat ate"])[0]), tokenizer.decode(ids)
            (True, ['the cat ate'])

        Source: Provilkov et al. 2020, "BPE-Dropout" (arXiv 1910.13267); Kudo 2018, "Subword Regularization", section
        3.3 (arXiv 1804.10959).
        """
        _check_texts(texts)
        if not fraction(dropout, "dropout"):
            return self.encode(texts)
        sampler = subword_sampler(self._model, dropout)
        return sampler.sample(RaggedIds.from_lists(self.encode(texts)), seed).to_lists()

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Converts ids to texts in Python.

        Args:
            ids: One sequence of ids for each text. Padding, BOS, and everything from the first EOS on are dropped.

        Returns:
            One text for each sequence.

        Raises:
            IndexError: If an id is outside the vocabulary.
        """
        return [self._processor.decode(_visible(row)) for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Converts ids to pieces, in which ``▁`` marks the space before a word.

        Args:
            ids: Ids of pieces, special ones included.

        Returns:
            One piece for each id.

        Raises:
            IndexError: If an id is outside the vocabulary.
        """
        return [self._processor.id_to_piece(int(piece)) for piece in ids]

    def tokenize(self, texts: "tf.Tensor | Sequence[str]") -> "tf.RaggedTensor":
        """Converts texts to ids in a graph, without BOS and EOS.

        Args:
            texts: Strings (B,). Invalid UTF-8 is replaced by U+FFFD.

        Returns:
            Ids (B, None), int32.

        Raises:
            ValueError: If `texts` has another rank.
        """
        import tensorflow as tf

        texts = tf.convert_to_tensor(texts, tf.string)
        if texts.shape.rank != 1:
            raise ValueError(f"`texts` must have shape (B,). Received: texts.shape={texts.shape}")
        return self._graph_tokenizer().tokenize(_valid_utf8(texts))

    def detokenize(self, ids: "tf.Tensor | tf.RaggedTensor") -> "tf.Tensor":
        """Converts ids to texts in a graph.

        Args:
            ids: Ids (B, T), ragged or dense with padding. Padding, BOS, and everything from the first EOS on are
                dropped.

        Returns:
            Strings (B,), valid UTF-8.

        Raises:
            ValueError: If `ids` has another rank.
        """
        import tensorflow as tf

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
        import tensorflow as tf

        with needed_by("SubwordTokenizer"):
            import tensorflow_text

        # Created in each graph that uses it: setting a seed invalidates the kernel of an eager one.
        return tensorflow_text.SentencepieceTokenizer(self._model, out_type=tf.int32)


def _lines(paths: Sequence[str | os.PathLike[str]], texts: Sequence[list[str] | None]) -> Iterator[str]:
    """The lines of files, each of which is read from its path unless its lines are given."""
    for path, text in zip(paths, texts, strict=True):
        yield from stream_text(path) if text is None else text


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str | bytes):
        raise TypeError(f"`texts` must be a list of strings. Received: texts={texts!r}")


def _valid_utf8(texts: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")


def _visible(ids: Sequence[int]) -> list[int]:
    """The ids of text: those before the first EOS, without padding and BOS."""
    before_eos = itertools.takewhile(lambda piece: piece != EOS_ID, map(int, ids))
    return [piece for piece in before_eos if piece not in (PAD_ID, BOS_ID)]
