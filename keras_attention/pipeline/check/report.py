"""The result of a check: numbers of each split, problems, and their presentation as text and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_attention.pipeline.check.fix import Copies
from keras_attention.pipeline.check.problems import ERROR, WARNING, Problem, excerpt
from keras_attention.pipeline.check.scan import SIDES, PairScan

TITLES = {"train": "training", "valid": "validation", "test": "test"}
_BARS = 20  # characters of the longest bar


@dataclasses.dataclass(frozen=True)
class SideSummary:
    """The lengths of one side of a split, in tokens without EOS, or in words where there is no tokenizer.

    Attributes:
        total: Number of tokens.
        mean: Mean length.
        median: Median length.
        p99: Length that 99% of the texts do not exceed.
        longest: Largest length.
        histogram: Number of texts for each range of lengths, by the largest length of the range: 1, 2, 4, 8, …
    """

    total: int
    mean: float
    median: float
    p99: float
    longest: int
    histogram: dict[int, int]

    @classmethod
    def of(cls, lengths: np.ndarray) -> "SideSummary":
        """Summarizes lengths (N,)."""
        if not len(lengths):
            return cls(0, 0.0, 0.0, 0.0, 0, {})
        median, p99 = np.percentile(lengths, [50, 99])
        ranges = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
        counts = {2**power: int(count) for power, count in enumerate(np.bincount(ranges))}
        longest = int(lengths.max())
        return cls(int(lengths.sum(dtype=np.int64)), float(lengths.mean()), float(median), float(p99), longest, counts)


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """The numbers of a pair of files.

    Attributes:
        split: "train", "valid" or "test".
        files: Paths of the source and the target.
        num_lines: Number of lines of each file.
        num_pairs: Number of pairs with valid text on both sides.
        lengths: Lengths of the source and of the target.
        ratio: Target tokens per source token.
        distinct_sources: Number of source sentences that differ in their letters and digits.
        unknown_pieces: Number of unknown pieces on both sides; None without a tokenizer.
        longest: The longest texts: tokens, line, side and text.
    """

    split: str
    files: tuple[str, str]
    num_lines: tuple[int, int]
    num_pairs: int
    lengths: tuple[SideSummary, SideSummary]
    ratio: float
    distinct_sources: int
    unknown_pieces: int | None
    longest: list[dict[str, Any]]

    @classmethod
    def of(cls, scan: PairScan) -> "SplitSummary":
        """Summarizes a scan."""
        sides = SideSummary.of(scan.lengths[:, 0]), SideSummary.of(scan.lengths[:, 1])
        longest = [
            {"tokens": tokens, "file": scan.files[side], "line": -negative, "text": excerpt(text)}
            for tokens, negative, side, text in sorted(scan.longest, reverse=True)
        ]
        unknown = None if scan.tokenizer is None else sum(sum(each) for _, each in scan.unknown)
        ratio = sides[1].total / max(sides[0].total, 1)
        distinct = len(np.unique(scan.source_hashes))
        lines = (scan.num_lines[0], scan.num_lines[1])
        return cls(scan.split, scan.files, lines, len(scan.numbers), sides, ratio, distinct, unknown, longest)


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """The result of `check_texts`; printed, it is a table, the problems and some pairs.

    Attributes:
        unit: "tokens", or "words" without a tokenizer.
        splits: The numbers of each split.
        problems: The problems, errors first.
        samples: Pairs of the training text, sampled at random.
        copies: The cleaned copies, if any were written.
        length_counts: For each split, the number of pairs with each source and target length: (lengths (M, 2),
            counts (M,)).
    """

    unit: str
    splits: Sequence[SplitSummary]
    problems: Sequence[Problem]
    samples: Sequence[tuple[str, str]]
    copies: Sequence[Copies] = ()
    length_counts: Sequence[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default=(), repr=False)

    @property
    def errors(self) -> list[Problem]:
        """The problems for which training does not start."""
        return [problem for problem in self.problems if problem.level == ERROR]

    @property
    def warnings(self) -> list[Problem]:
        """The other problems."""
        return [problem for problem in self.problems if problem.level == WARNING]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report for JSON, with all line numbers.

        Returns:
            A dictionary of dictionaries, lists, strings and numbers.
        """
        return {
            "ok": not self.errors,
            "unit": self.unit,
            "splits": [dataclasses.asdict(each) for each in self.splits],
            "problems": [each.to_dict() for each in self.problems],
            "samples": [list(pair) for pair in self.samples],
            "copies": [dataclasses.asdict(each) for each in self.copies],
        }

    def __str__(self) -> str:
        parts = [_columns(self._rows()), _columns(self._histogram())]
        longest = [
            f"  {each['file']}:{each['line']}: {each['tokens']:,} {self.unit}: {each['text']}"
            for each in (self.splits[0].longest if self.splits else [])
        ]
        parts.append("\n".join(["longest lines", *longest]))
        if self.samples:
            pairs = (f"  {excerpt(source)} | {excerpt(target)}" for source, target in self.samples)
            parts.append("\n".join(["sample pairs", *pairs]))
        parts += map(str, self.problems)
        parts += ["\n".join(map(str, self.copies))] if self.copies else []
        return "\n\n".join(parts)

    def count(self, kind: str, split: str) -> int:
        """Returns the number of lines with a problem.

        Args:
            kind: Kind of the problem, such as "duplicates".
            split: "train", "valid" or "test".

        Returns:
            The number of lines, in both files and in comparison with all other splits.
        """
        return sum(len(each.lines) for each in self.problems if (each.kind, each.split) == (kind, split))

    def _rows(self) -> list[list[str]]:
        """The table of numbers, with a column for each split."""
        unit, splits = self.unit, self.splits
        rows = [["", *(TITLES[each.split] for each in splits)]]
        rows.append(["lines", *(f"{max(each.num_lines):,}" for each in splits)])
        rows.append(["pairs with text", *(f"{each.num_pairs:,}" for each in splits)])
        for side, name in enumerate(SIDES):
            lengths = [each.lengths[side] for each in splits]
            rows.append([f"{name} {unit}", *(f"{each.total:,}" for each in lengths)])
            statistics = ((f"{each.mean:.1f}", f"{each.p99:.0f}", f"{each.longest:,}") for each in lengths)
            rows.append(["  mean, 99%, longest", *map(", ".join, statistics)])
        rows.append([f"target {unit} per source {unit[:-1]}", *(f"{each.ratio:.2f}" for each in splits)])
        rows.append(["different sources", *(f"{each.distinct_sources:,}" for each in splits)])
        if unit == "tokens":
            rows.append(["unknown pieces", *(f"{each.unknown_pieces:,}" for each in splits)])
        for kind, title in (
            ("invalid_utf8", "lines that are not UTF-8"),
            ("blank", "lines blank on a side"),
            ("identical_sides", "identical sides"),
            ("length_ratio", "unusual length ratio"),
            ("duplicates", "duplicate pairs"),
            ("too_long", "pairs over max_length"),
            ("leaks", "pairs of an earlier column"),
        ):
            rows.append([title, *(f"{self.count(kind, each.split):,}" for each in splits)])
        return rows

    def _histogram(self) -> list[list[str]]:
        """The lengths of the training texts, with a bar for each range."""
        sides = self.splits[0].lengths
        most = max((count for side in sides for count in side.histogram.values()), default=1)
        rows = [[self.unit, *(f"{name} lines" for name in SIDES)]]
        for largest in sorted(set(sides[0].histogram) | set(sides[1].histogram)):
            smallest = largest // 2 + 1 if largest > 1 else 0
            counts = [side.histogram.get(largest, 0) for side in sides]
            bars = (f"{count:>11,} {'█' * round(_BARS * count / most):<{_BARS}}" for count in counts)
            rows.append([f"{smallest}–{largest}" if smallest < largest else f"{largest}", *bars])
        return rows


def _columns(rows: list[list[str]]) -> str:
    """Aligns the columns of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
