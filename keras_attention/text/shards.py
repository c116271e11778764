"""Parallel text in many files, the shards, which is read a part at a time because it does not fit into memory."""

import glob
import itertools
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from keras_attention.text.lines import PathLike, check_readable, stream_lines, stream_text


class Piece(NamedTuple):
    """Lines of a shard that follow one another."""

    shard: int
    first_line: int
    num_lines: int


class ShardedPairs:
    """Parallel text in shards: line N of a source file is translated by line N of the target file with its number.

    The constructor reads the files once to check and count their lines, and keeps none of them: memory does not depend
    on their size. A line that is blank on a side is left out of the pairs.

    Args:
        source: Source files: a pattern such as "corpus/train-*.en.gz", a folder, whose files are all shards, or one
            file. UTF-8, plain or gzip. Sorted by name, the N-th source file belongs to the N-th target file.
        target: Target files.
        shard: The part to read, as `(index, count)`: every `count`-th file from number `index` on, so that each of
            `count` hosts reads its own part.

    Attributes:
        shard: The part that is read.
        files: The `(source, target)` files of each shard.
        num_lines: Number of lines of each shard, blank ones included.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source and the target have different numbers of shards, numbers in the names or numbers of
            lines, a file is empty or not UTF-8, no line has text on both sides, or `shard` is out of range.

    Example:
        >>> import pathlib
        >>> for name, text in (("a-0.en", "One.\\nTwo.\\n"), ("a-0.de", "Eins.\\nZwei.\\n"),
        ...                    ("a-1.en", "Three.\\n\\n"), ("a-1.de", "Drei.\\nVier.\\n")):
        ...     _ = pathlib.Path(name).write_text(text, encoding="utf-8")
        >>> pairs = ShardedPairs("a-*.en", "a-*.de")
        >>> len(pairs), list(pairs)[-1]
        (3, ('Three.', 'Drei.'))
        >>> list(ShardedPairs("a-*.en", "a-*.de", shard=(1, 2)))
        [('Three.', 'Drei.')]
    """

    def __init__(self, source: PathLike, target: PathLike, shard: tuple[int, int] = (0, 1)):
        self._names = (os.fspath(source), os.fspath(target))
        self.shard = shard
        self.files = _part(_matching(source, target), shard)
        check_readable([path for pair in self.files for path in pair])
        self._blank: list[int] = []
        self.num_lines: list[int] = []
        for source_file, target_file in self.files:
            lines, blank = _count(source_file, target_file)
            self.num_lines.append(lines)
            self._blank.append(blank)
        if not len(self):
            raise ValueError(
                f"At least one line must have text in both files. Received: source={source}, target={target}"
            )

    def __len__(self) -> int:
        """The number of usable pairs."""
        return sum(self.num_lines) - sum(self._blank)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Reads the usable pairs, in the order of the files."""
        return filter(is_usable, self.lines(self.shards()))

    @property
    def pairs(self) -> "ShardedPairs":
        """The usable `(source, target)` pairs, which each iteration reads from the files."""
        return self

    def shards(self) -> list[Piece]:
        """Returns the lines of each shard, as one piece.

        Returns:
            The pieces.
        """
        return [Piece(shard, 0, num_lines) for shard, num_lines in enumerate(self.num_lines)]

    def lines(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, str]]:
        """Reads pieces of the shards, a line at a time.

        Args:
            pieces: The pieces, sorted by shard and first line.

        Yields:
            A source and a target line, also where a side is blank.
        """
        for shard, group in itertools.groupby(pieces, key=lambda piece: piece.shard):
            ranges = [(piece.first_line, piece.num_lines) for piece in group]
            yield from zip(*(_read_ranges(path, ranges) for path in self.files[shard]), strict=True)

    def sample(self, count: int, seed: int = 1) -> list[tuple[str, str]]:
        """Samples pairs at random, without replacement, in one reading of the files.

        Args:
            count: Number of pairs.
            seed: Seed of the sample.

        Returns:
            The sampled pairs, in the order of the files.

        Raises:
            ValueError: If `count` is negative or above the number of pairs.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"`count` must be in 0..{len(self)}. Received: count={count}")
        pairs, position, sample = iter(self), 0, []
        for index in sorted(random.Random(seed).sample(range(len(self)), count)):
            sample += itertools.islice(pairs, index - position, index - position + 1)
            position = index + 1
        return sample

    def summary(self) -> str:
        """Describes the files in one line: shards, pairs, lines, lines left out.

        Returns:
            The line.

        Example:
            >>> import pathlib
            >>> for name, text in (("b-0.en", "One.\\nTwo.\\n"), ("b-0.de", "Eins.\\n\\n")):
            ...     _ = pathlib.Path(name).write_text(text, encoding="utf-8")
            >>> ShardedPairs("b-*.en", "b-*.de").summary()
            'b-*.en and b-*.de: 1 pairs of 2 lines in 1 shard, left out: 1 (blank on a side)'
        """
        source, target = self._names
        shards = f"{len(self.files):,} shard{'s' if len(self.files) > 1 else ''}"
        return (
            f"{source} and {target}: {len(self):,} pairs of {sum(self.num_lines):,} lines in {shards}, "
            f"left out: {sum(self._blank):,} (blank on a side)"
        )


def is_sharded(path: PathLike) -> bool:
    """Returns True for a folder, and for a pattern that is not the name of a file."""
    return Path(path).is_dir() or (glob.has_magic(os.fspath(path)) and not Path(path).exists())


def shard_files(path: PathLike) -> list[str]:
    """Lists the files of a pattern or a folder, sorted by name; a file is the only one of itself."""
    if not is_sharded(path):
        check_readable([path])
        return [os.fspath(path)]
    paths = Path(path).iterdir() if Path(path).is_dir() else map(Path, glob.glob(os.fspath(path)))
    files = sorted(os.fspath(each) for each in paths if each.is_file() and not each.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"No text file at {os.fspath(path)}")
    return files


def _matching(source: PathLike, target: PathLike) -> list[tuple[str, str]]:
    """The source and the target file of each shard."""
    sources, targets = shard_files(source), shard_files(target)
    pairs = list(itertools.zip_longest(sources, targets))
    number, pair = next(((number, pair) for number, pair in enumerate(pairs, 1) if not _belong(*pair)), (0, ()))
    if len(sources) != len(targets):
        first = min((each for each in pair if each is not None), key=_numbers)
        raise ValueError(
            f"Each source shard needs its target shard, with the same numbers in its name, but {first} has none. "
            f"Received: {len(sources)} files for source={os.fspath(source)!r} and {len(targets)} for "
            f"target={os.fspath(target)!r}"
        )
    if pair:
        raise ValueError(
            "Sorted by name, the N-th source shard belongs to the N-th target shard, but the names of number "
            f"{number} have different numbers in them: rename the files. Received: {pair[0]} and {pair[1]}"
        )
    return pairs


def _belong(source: str | None, target: str | None) -> bool:
    """Returns True for the names of two files of one shard."""
    return source is not None and target is not None and _numbers(source) == _numbers(target)


def _numbers(path: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", Path(path).name)]


def _part(files: Sequence[tuple[str, str]], shard: tuple[int, int]) -> list[tuple[str, str]]:
    index, count = shard
    if not 0 <= index < count <= len(files):
        raise ValueError(
            "`shard` must be (index, count) with an index from 0 to count - 1, and a count of at most the number of "
            f"shards, {len(files)}: split the text into more files. Received: shard={shard}"
        )
    return list(files[index::count])


def _count(source: str, target: str) -> tuple[int, int]:
    """The number of lines of a shard, and the number of those that are blank on a side."""
    numbers, blank = [0, 0], 0
    for pair in itertools.zip_longest(stream_text(source), stream_text(target)):
        for side, text in enumerate(pair):
            numbers[side] += text is not None
        blank += None in pair or not is_usable(pair)
    if not all(numbers):
        raise ValueError(f"{target if numbers[0] else source}: the file is empty")
    if numbers[0] != numbers[1]:
        raise ValueError(
            "Line N of a source shard must be translated by line N of its target shard, so both must have the same "
            f"number of lines. Received: {numbers[0]:,} lines in {source} and {numbers[1]:,} in {target}"
        )
    return numbers[0], blank


def is_usable(pair: tuple[str, str]) -> bool:
    """Returns True for a pair with text on both sides."""
    return not any(not text or text.isspace() for text in pair)


def _read_ranges(path: str, ranges: Iterable[tuple[int, int]]) -> Iterator[str]:
    """The lines of ranges (first, number) of a file, which follow one another."""
    lines, position = stream_lines(path), 0
    for first, number in ranges:
        for line in itertools.islice(lines, first - position, first - position + number):
            yield line.decode("utf-8")
        position = first + number
