"""One pass over a pair of files: what each line is, and a sample, in a few dozen bytes of memory per pair."""

import array
import heapq
import itertools
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_attention.pipeline.check.languages import SAMPLE
from keras_attention.text import UNK_ID, SubwordTokenizer
from keras_attention.text.lines import check_readable, stream_lines

SIDES = ("source", "target")
# A pair is suspicious if one side has more than this many times the bytes of the other; short ones vary.
MAX_RATIO, MIN_RATIO_BYTES = 4, 40
LONGEST = 3
_CHUNK = 4096  # pairs that are tokenized together
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")

Invalid = tuple[int, int, int]  # line, byte, column


class PairScan:
    """The lines of two parallel files, as one pass over them finds them.

    Args:
        split: "train", "valid" or "test".
        files: Paths of the source and the target.
        tokenizer: Tokenizer of both sides; None to count words instead.
        max_length: The most tokens of a side, EOS included; None for no limit.
        seed: Seed of the sample.

    Attributes:
        num_lines: Number of lines of each file.
        invalid: Lines of each file that are not UTF-8, with the first invalid byte and its position.
        blank: Lines of which a side is blank; True for each blank side.
        identical: Lines with equal sides.
        ratios: Lines with an unusual length ratio, and the bytes of both sides.
        too_long: Lines with more than `max_length` tokens on a side, and the tokens of both sides.
        unknown: Lines with unknown pieces, and the number of these on each side.
        unknown_characters: Number of occurrences of each character that the tokenizer does not know.
        numbers: Line numbers of the pairs with valid text on both sides (N,).
        lengths: Their tokens or words (N, 2).
        pair_hashes: Hashes of the pairs (N,).
        letter_hashes: Hashes of their letters and digits, regardless of case (N,).
        source_hashes: Hashes of the letters and digits of their sources (N,).
        longest: The longest sides, each as tokens, line, side and text.
        sample: Up to 2,000 of the pairs, a random sample.
    """

    def __init__(
        self,
        split: str,
        files: Sequence[str | os.PathLike[str]],
        tokenizer: SubwordTokenizer | None = None,
        max_length: int | None = None,
        seed: int = 1,
    ):
        self.split, self.files = split, tuple(map(os.fspath, files))
        self.num_lines = [0, 0]
        self.invalid: tuple[list[Invalid], list[Invalid]] = ([], [])
        self.blank: list[tuple[int, list[bool]]] = []
        self.identical: list[int] = []
        self.ratios: list[tuple[int, list[int]]] = []
        self.too_long: list[tuple[int, list[int]]] = []
        self.unknown: list[tuple[int, list[int]]] = []
        self.unknown_characters: Counter[str] = Counter()
        self.longest: list[tuple[int, int, int, str]] = []
        self.sample: list[tuple[str, str]] = []
        self.tokenizer, self.max_length = tokenizer, max_length
        self._random = random.Random(seed)
        self._known: dict[str, bool] = {}
        self._arrays = [array.array("q") for _ in range(4)]  # numbers, and the hashes
        self._lengths = array.array("i")

    def read(self, advance: Callable[[int], Any] | None = None) -> "PairScan":
        """Reads the files; `advance` gets numbers of stored bytes as they are read."""
        check_readable(self.files)
        pairs = self._text_pairs(advance)
        while chunk := list(itertools.islice(pairs, _CHUNK)):
            self._add(chunk)
        self.numbers, self.pair_hashes, self.letter_hashes, self.source_hashes = (
            np.frombuffer(each, np.int64) if each else np.zeros(0, np.int64) for each in self._arrays
        )
        lengths = np.frombuffer(self._lengths, np.int32) if self._lengths else np.zeros(0, np.int32)
        self.lengths = lengths.reshape(-1, 2)
        return self

    def name(self, side: int, line: int | None = None) -> str:
        """The name of a file, with the number of a line."""
        return self.files[side] if line is None else f"{self.files[side]}:{line}"

    def _text_pairs(self, advance: Callable[[int], Any] | None) -> Iterator[tuple[int, tuple[str, str]]]:
        """Yields the pairs with valid text on both sides, with their line numbers, and notes the others."""
        streams = [stream_lines(path, advance) for path in self.files]
        for number, lines in enumerate(itertools.zip_longest(*streams), start=1):
            source, target = (self._decode(side, number, line) for side, line in enumerate(lines))
            if source is None or target is None:
                continue
            blank = [not text or text.isspace() for text in (source, target)]
            if any(blank):
                self.blank.append((number, blank))
            else:
                yield number, (source, target)

    def _decode(self, side: int, number: int, line: bytes | None) -> str | None:
        if line is None:  # after the end of the shorter file
            return None
        self.num_lines[side] = number
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.invalid[side].append((number, line[error.start], error.start + 1))
            return None

    def _add(self, chunk: list[tuple[int, tuple[str, str]]]) -> None:
        lengths, unknown = zip(*(self._measure([pair[side] for _, pair in chunk]) for side in (0, 1)), strict=True)
        measures = zip(zip(*lengths, strict=True), zip(*unknown, strict=True), strict=True)
        for (number, pair), (tokens, unknowns) in zip(chunk, measures, strict=True):
            self._arrays[0].append(number)
            self._lengths.extend(tokens)
            texts = tuple(map(str.strip, pair))
            letters = tuple(_NOT_ALPHANUMERIC.sub("", text.casefold()) or text for text in texts)
            for hashes, value in zip(self._arrays[1:], (texts, letters, letters[0]), strict=True):
                hashes.append(hash(value))
            if texts[0] == texts[1]:
                self.identical.append(number)
            sizes = [len(text.encode()) for text in texts]
            if max(sizes) >= MIN_RATIO_BYTES and max(sizes) > MAX_RATIO * min(sizes):
                self.ratios.append((number, sizes))
            if self.max_length is not None and max(tokens) >= self.max_length:  # EOS is one more
                self.too_long.append((number, [each + 1 for each in tokens]))
            if any(unknowns):
                self.unknown.append((number, list(unknowns)))
                self._count_unknown_characters("".join(pair))
            for side, each in enumerate(tokens):
                if len(self.longest) < LONGEST or each > self.longest[0][0]:
                    push = heapq.heappush if len(self.longest) < LONGEST else heapq.heapreplace
                    push(self.longest, (each, -number, side, pair[side]))  # the first of equally long ones
            self._sample(pair)

    def _measure(self, texts: list[str]) -> tuple[list[int], list[int]]:
        """The tokens and the unknown pieces of each text."""
        if self.tokenizer is None:
            return [len(text.split()) for text in texts], [0] * len(texts)
        ids = self.tokenizer.encode(texts)
        return [len(each) for each in ids], [each.count(UNK_ID) for each in ids]

    def _count_unknown_characters(self, text: str) -> None:
        for character in text:
            if character not in self._known:
                self._known[character] = UNK_ID not in self.tokenizer.encode([character])[0]
            if not self._known[character]:
                self.unknown_characters[character] += 1

    def _sample(self, pair: tuple[str, str]) -> None:
        """Keeps the pair with the probability that makes the sample random (reservoir sampling)."""
        if len(self.sample) < SAMPLE:
            self.sample.append(pair)
        elif (position := self._random.randrange(len(self._arrays[0]))) < SAMPLE:
            self.sample[position] = pair
