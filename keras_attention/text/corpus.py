"""Parallel corpora: two text files, where line N of one translates line N of the other."""

import os
import random
from typing import TYPE_CHECKING

from keras_attention.text.batch_sequence import BatchSequence
from keras_attention.text.batching import TokenBatches
from keras_attention.text.lines import read_parallel
from keras_attention.text.tokenizer import SubwordTokenizer

if TYPE_CHECKING:
    import tensorflow as tf


class ParallelCorpus:
    """Two text files, where line N of one translates line N of the other.

    The constructor checks the whole files, before hours of training. A line that is blank on a side is left out of
    `pairs` and listed in `problems`.

    Args:
        source: File of source sentences, UTF-8, plain or gzip; "-" is standard input.
        target: File of their translations.

    Attributes:
        pairs: The usable `(source, target)` pairs, in the order of the files.
        num_lines: Number of lines in each file, blank ones included.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is empty or not UTF-8, if the numbers of lines differ, or if no line has text on both
            sides.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.en").write_text("One.\\nTwo.\\nThree.\\n", encoding="utf-8")
        >>> _ = (folder / "train.de").write_text("Eins.\\n\\nDrei.\\n", encoding="utf-8")
        >>> corpus = ParallelCorpus(folder / "train.en", folder / "train.de")
        >>> len(corpus), corpus.pairs[1]
        (2, ('Three.', 'Drei.'))
        >>> [problem.replace(f"{folder}/", "") for problem in corpus.problems()]
        ['train.de:2: blank, but train.en:2 has text']
    """

    def __init__(self, source: str | os.PathLike[str], target: str | os.PathLike[str]):
        self._names = (os.fspath(source), os.fspath(target))
        source_lines, target_lines = read_parallel(source, target)
        self.num_lines = len(source_lines)
        self.pairs: list[tuple[str, str]] = []
        self._problems: list[str] = []
        for number, pair in enumerate(zip(source_lines, target_lines, strict=True), start=1):
            blank = [not text or text.isspace() for text in pair]
            if any(blank):
                self._problems.append(self._describe_blank(number, blank))
            else:
                self.pairs.append(pair)
        if not self.pairs:
            raise ValueError(
                f"At least one line must have text in both files. Received: source={source}, target={target}"
            )

    def __len__(self) -> int:
        """The number of usable pairs."""
        return len(self.pairs)

    def problems(self) -> list[str]:
        """Lists the lines that are left out because a side is blank, as `file:line: problem`.

        Returns:
            One message for each such line, in the order of the files.
        """
        return list(self._problems)

    def summary(self) -> str:
        """Describes the files in one line: pairs, lines, lines left out.

        Returns:
            The line.

        Example:
            >>> import pathlib
            >>> for name, text in (("a.en", "One.\\nTwo.\\n"), ("a.de", "Eins.\\n\\n")):
            ...     _ = pathlib.Path(name).write_text(text, encoding="utf-8")
            >>> ParallelCorpus("a.en", "a.de").summary()
            'a.en and a.de: 1 pairs of 2 lines, left out: 1 (blank on a side)'
        """
        source, target = self._names
        return (
            f"{source} and {target}: {len(self):,} pairs of {self.num_lines:,} lines, "
            f"left out: {len(self._problems):,} (blank on a side)"
        )

    def sample(self, count: int, seed: int = 1) -> list[tuple[str, str]]:
        """Samples pairs at random, without replacement.

        Args:
            count: Number of pairs.
            seed: Seed of the sample.

        Returns:
            The sampled pairs.

        Raises:
            ValueError: If `count` is negative or above the number of pairs.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"`count` must be in 0..{len(self)}. Received: count={count}")
        return random.Random(seed).sample(self.pairs, count)

    def batches(
        self,
        tokenizer: SubwordTokenizer,
        tokens_per_batch: int = 4096,
        max_length: int = 256,
        seed: int = 1,
        shuffle: bool = True,
        subword_dropout: float = 0.0,
        source_word_dropout: float = 0.0,
    ) -> "tf.data.Dataset | BatchSequence":
        """Makes the dataset that `model.fit` takes, and prints a summary of it and of the lines left out.

        Pass `shuffle=False` to `fit`: the dataset has its own order, and Keras warns otherwise.

        Args:
            tokenizer: Tokenizer of both sides.
            tokens_per_batch: The most tokens of a batch on either side, padding included.
            max_length: Pairs with more tokens on a side, EOS included, are left out.
            seed: Seed of the order, together with the epoch.
            shuffle: Whether each epoch has another order. Without it, batches go from short to long.
            subword_dropout: Dropout of `SubwordTokenizer.sample`, which gives each epoch other segmentations of the
                texts, at least 0 and below 1. See `TokenBatches.from_pairs`.
            source_word_dropout: Probability with which a piece of a source, except its EOS, is replaced by the unknown
                piece, at least 0 and below 1.

        Returns:
            A dataset of `({"source": (B, S), "target": (B, T)}, labels (B, T))`, int32. See `TokenBatches`, which can
            also resume in a later epoch.

        Raises:
            ValueError: If an argument is out of range or every pair is too long.
        """
        batches = TokenBatches.from_pairs(
            self.pairs,
            tokenizer,
            tokens_per_batch=tokens_per_batch,
            max_length=max_length,
            seed=seed,
            shuffle=shuffle,
            subword_dropout=subword_dropout,
            source_word_dropout=source_word_dropout,
        )
        if self._problems:
            print(self.summary())
        print(batches.summary())
        return batches.dataset()

    def _describe_blank(self, number: int, blank: list[bool]) -> str:
        source, target = (f"{name}:{number}" for name in self._names)
        if all(blank):
            return f"{source}: blank, and so is {target}"
        empty, full = (source, target) if blank[0] else (target, source)
        return f"{empty}: blank, but {full} has text"
