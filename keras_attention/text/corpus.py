"""Parallel corpora: two text files, line N of one translating line N of the other."""

import gzip
import os
import random
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from keras_attention.text.batching import TokenBatches

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_attention.text.tokenizer import SubwordTokenizer

# No UTF-8 text starts with these two bytes, so the content tells, whatever the file is called.
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    r"""Reads the lines of a UTF-8 text file, plain or gzip.

    Only a line feed (or carriage return and line feed) ends a line. `str.splitlines` and text-mode
    reading also break at characters that stand inside sentences, such as U+2028 or a lone carriage
    return, and two files would lose step.

    Args:
        path: The file; its content, not its name, tells whether it is gzip.

    Returns:
        The lines without their ends. A byte order mark at the start is dropped.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8 (the message has the line of the first bad byte), or damaged.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp(), "train.fr")
        >>> _ = file.write_bytes("Ça va ?\r\nÀ\u2028demain\n".encode())
        >>> read_lines(file)
        ['Ça va ?', 'À\u2028demain']
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No text file at {os.fspath(path)}")
    data = Path(path).read_bytes()
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{os.fspath(path)}: damaged gzip file: {error}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{os.fspath(path)}:{line}: byte {data[error.start]:#04x} is not UTF-8. Convert the file, "
            "for example with `iconv -f ISO-8859-1 -t UTF-8`"
        ) from error
    lines = text.removeprefix(_BYTE_ORDER_MARK).split("\n")
    if not lines[-1]:
        lines.pop()  # the last line feed ends a line, it does not begin one
    return [line.removesuffix("\r") for line in lines]


class ParallelCorpus:
    """Two files of sentences, line N of the one translating line N of the other.

    Everything is checked on construction, before hours of training. A line that is blank on a side
    teaches nothing and is left out of `pairs`; `problems` names it.

    Args:
        source: The file of source sentences, UTF-8, plain or gzip.
        target: The file of their translations.

    Attributes:
        pairs: The usable `(source, target)` pairs, in the files' order.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is empty or not UTF-8, if the numbers of lines differ, or if no line
            has text on both sides.

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
        source_lines, target_lines = (read_lines(name) for name in self._names)
        for name, lines in zip(self._names, (source_lines, target_lines), strict=True):
            if not lines:
                raise ValueError(f"{name}: the file is empty")
        if len(source_lines) != len(target_lines):
            raise ValueError(
                "Line N of one file must translate line N of the other, so both need as many lines. "
                f"Received: {len(source_lines)} lines in {source} and {len(target_lines)} in {target}"
            )
        self.pairs: list[tuple[str, str]] = []
        self._problems: list[str] = []
        for number, pair in enumerate(zip(source_lines, target_lines, strict=True), start=1):
            blank = [not text or text.isspace() for text in pair]
            if any(blank):
                self._problems.append(self._describe_blank(number, blank))
            else:
                self.pairs.append(pair)
        if not self.pairs:
            raise ValueError(f"No line has text both in {source} and in {target}")

    def __len__(self) -> int:
        """The number of usable pairs."""
        return len(self.pairs)

    def problems(self) -> list[str]:
        """Lists the lines left out for being blank, as `file:line: what is wrong`.

        Returns:
            One message for each such line, in the files' order; empty if there is none.
        """
        return list(self._problems)

    def sample(self, count: int, seed: int = 1) -> list[tuple[str, str]]:
        """Draws pairs at random, without repetition; the same seed draws the same pairs.

        Args:
            count: How many.
            seed: Seeds the draw.

        Returns:
            The drawn pairs.

        Raises:
            ValueError: If `count` is negative or more than there are pairs.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"`count` must be in 0..{len(self)}. Received: count={count}")
        return random.Random(seed).sample(self.pairs, count)

    def batches(
        self,
        tokenizer: "SubwordTokenizer",
        tokens_per_batch: int = 4096,
        max_length: int = 256,
        seed: int = 1,
        shuffle: bool = True,
    ) -> "tf.data.Dataset":
        """Makes the dataset that `model.fit` takes, and prints one line on what is in it.

        Give `shuffle=False` to `fit` with it: the order is the dataset's own, and Keras warns otherwise.

        Args:
            tokenizer: Turns both sides into pieces.
            tokens_per_batch: The most tokens of a batch on either side, padding counted.
            max_length: Pairs with a side of more tokens, the end counted, are left out.
            seed: With the epoch's number, decides the order.
            shuffle: Whether each epoch has another order; if not, batches go from short to long.

        Returns:
            A dataset of `({"source": (B, S), "target": (B, T)}, labels (B, T))`, all int32: see
            `TokenBatches`, which also plans, counts and resumes.

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
        )
        print(batches.summary())
        return batches.dataset()

    def _describe_blank(self, number: int, blank: list[bool]) -> str:
        source, target = (f"{name}:{number}" for name in self._names)
        if all(blank):
            return f"{source}: blank, and so is {target}"
        empty, full = (source, target) if blank[0] else (target, source)
        return f"{empty}: blank, but {full} has text"
