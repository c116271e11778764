"""The problems that scans of parallel files show, of single pairs, of whole files, and of several splits."""

from collections.abc import Callable, Sequence

import numpy as np

from keras_attention.pipeline.check.duplicates import common, repeated
from keras_attention.pipeline.check.languages import are_swapped, same_language
from keras_attention.pipeline.check.problems import EXAMPLES, Problem
from keras_attention.pipeline.check.scan import MAX_RATIO, MIN_RATIO_BYTES, PairScan

# Fewer pairs, or a higher correlation of their lengths, do not show that the lines do not match.
_MIN_PAIRS, _MIN_CORRELATION = 100, 0.2


def find_problems(scans: Sequence[PairScan]) -> list[Problem]:
    """Returns the problems of the scanned files, the training files first: errors before warnings."""
    problems = [problem for scan in scans for problem in _of_files(scan)]
    usable = [scan for scan in scans if len(scan.numbers)]
    for scan in usable:
        if scan is not scans[0] and are_swapped(scan.sample, scans[0].sample):
            problems.append(Problem("swapped_files", scan.split, swapped_message(*scan.files, *scans[0].files)))
    for scan in scans:
        problems += _of_pairs(scan)
    for position, scan in enumerate(usable):
        for other in usable[position + 1 :]:
            problems += _leaks(scan, other)
    return sorted(problems, key=lambda problem: problem.level)


def identical_message(source: str, target: str) -> str:
    """Describes files with the same text."""
    return f"{source} and {target} have the same text: pass the source sentences and their translations"


def same_language_message(source: str, target: str, similarity: float) -> str:
    """Describes files that seem to be in one language."""
    return f"{source} and {target} seem to be in the same language: similarity of their trigrams {similarity:.2f}"


def swapped_message(source: str, target: str, training_source: str, training_target: str) -> str:
    """Describes files that are swapped relative to the training files."""
    return (
        f"{source} and {target} seem to be swapped: {source} is in the language of {training_target}, and {target} in "
        f"that of {training_source}"
    )


def leak_message(name: str, count: int, total: int, other: str) -> str:
    """Describes pairs of a split that the training text, or another split, also has."""
    return f"{name}: {count:,} of {total:,} pairs are also in {other}, apart from case and punctuation"


def _of_files(scan: PairScan) -> list[Problem]:
    """The problems of whole files, and lines that make them unreadable."""
    source, target = scan.files
    problems = [
        Problem("empty_file", scan.split, f"{path}: the file is empty")
        for path, lines in zip(scan.files, scan.num_lines, strict=True)
        if not lines
    ]
    if problems:
        return problems
    if scan.num_lines[0] != scan.num_lines[1]:
        counts = " and ".join(f"{lines:,} in {path}" for path, lines in zip(scan.files, scan.num_lines, strict=True))
        message = f"the numbers of lines differ: {counts}; line N of one file must translate line N of the other"
        problems.append(Problem("line_counts", scan.split, message))
    for side, invalid in enumerate(scan.invalid):
        if invalid:
            message = f"{scan.files[side]}: {len(invalid):,} lines are not UTF-8"
            describe = [
                f"{scan.name(side, line)}: byte {byte:#04x} at position {column} is not UTF-8"
                for line, byte, column in invalid[:EXAMPLES]
            ]
            problems.append(Problem("invalid_utf8", scan.split, message, [line for line, *_ in invalid], describe))
    if not len(scan.numbers):
        problems.append(Problem("no_pairs", scan.split, f"{source} and {target}: no line has text in both files"))
    elif len(scan.identical) == len(scan.numbers):
        problems.append(Problem("identical_files", scan.split, identical_message(source, target)))
    elif similarity := same_language(scan.sample):
        problems.append(Problem("same_language", scan.split, same_language_message(source, target, similarity)))
    if (correlation := _length_correlation(scan.lengths)) is not None and correlation < _MIN_CORRELATION:
        message = (
            f"{source} and {target}: the lengths of the sides hardly correlate ({correlation:.2f}), as if the lines of "
            "one were shifted"
        )
        problems.append(Problem("unrelated_lengths", scan.split, message))
    return problems


def _length_correlation(lengths: np.ndarray) -> float | None:
    """The correlation of the source and target lengths (N, 2); None if it says nothing."""
    if len(lengths) < _MIN_PAIRS or not lengths.std(axis=0).all():
        return None
    return float(np.corrcoef(np.log1p(lengths), rowvar=False)[0, 1])


def _of_pairs(scan: PairScan) -> list[Problem]:
    """The problems of single pairs."""
    both = " and ".join(scan.files)

    def problem(kind: str, what: str, lines: Sequence[int], describe: Callable[[int, int], str]) -> list[Problem]:
        """A problem, if it has lines; `describe` gets the index of a line among them, and its number."""
        if not len(lines):
            return []
        examples = [describe(index, int(line)) for index, line in enumerate(lines[:EXAMPLES])]
        return [Problem(kind, scan.split, f"{both}: {len(lines):,} {what}", lines, examples)]

    def values(entries: Sequence[tuple[int, list[int]]], unit: str) -> Callable[[int, int], str]:
        def describe(index: int, line: int) -> str:
            source, target = entries[index][1]
            return f"{scan.name(0, line)}: {source:,} {unit}, and {target:,} in {scan.name(1, line)}"

        return describe

    later, firsts = repeated(scan.pair_hashes)
    identical = [] if len(scan.identical) == len(scan.numbers) else scan.identical  # else a problem of the files
    characters = ", ".join(f"{each!r} ({count:,})" for each, count in scan.unknown_characters.most_common(8))
    return [
        *problem(
            "blank",
            "lines that are blank on a side",
            [line for line, _ in scan.blank],
            lambda index, line: describe_blank(scan, *scan.blank[index]),
        ),
        *problem(
            "identical_sides",
            "pairs with the same text on both sides",
            identical,
            lambda _, line: f"{scan.name(0, line)}: the same text as {scan.name(1, line)}",
        ),
        *problem(
            "length_ratio",
            f"pairs with more than {MAX_RATIO} times the bytes on one side, and at least {MIN_RATIO_BYTES}",
            [line for line, _ in scan.ratios],
            values(scan.ratios, "bytes"),
        ),
        *problem(
            "duplicates",
            "pairs that are the same as an earlier one",
            scan.numbers[later].tolist(),
            lambda index, line: f"{scan.name(0, line)}: the same pair as line {scan.numbers[firsts[index]]}",
        ),
        *problem(
            "too_long",
            f"pairs with more than {scan.max_length} tokens on a side, which training leaves out",
            [line for line, _ in scan.too_long],
            values(scan.too_long, "tokens"),
        ),
        *problem(
            "unknown_pieces",
            f"pairs with pieces that the tokenizer does not know: {characters}",
            [line for line, _ in scan.unknown],
            values(scan.unknown, "unknown pieces"),
        ),
    ]


def describe_blank(scan: PairScan, line: int, blank: Sequence[bool]) -> str:
    """Describes a line that is blank on a side, or on both."""
    source, target = (scan.name(side, line) for side in (0, 1))
    if all(blank):
        return f"{source}: blank, and so is {target}"
    empty, full = (source, target) if blank[0] else (target, source)
    return f"{empty}: blank, but {full} has text"


def leaking(scan: PairScan, other: PairScan) -> tuple[np.ndarray, np.ndarray]:
    """The lines of a split whose pairs another one has, apart from case and punctuation, and those of the other."""
    indices, firsts = common(other.letter_hashes, scan.letter_hashes)
    return other.numbers[indices], scan.numbers[firsts]


def _leaks(scan: PairScan, other: PairScan) -> list[Problem]:
    """The pairs of the later of two splits that the earlier one also has."""
    lines, earlier = leaking(scan, other)
    if not len(lines):
        return []
    message = leak_message(other.files[0], len(lines), len(other.numbers), scan.files[0])
    examples = [
        f"{other.name(0, line)}: also in {scan.name(0, first)}"
        for line, first in zip(lines[:EXAMPLES].tolist(), earlier[:EXAMPLES].tolist(), strict=True)
    ]
    return [Problem("leaks", other.split, message, lines.tolist(), examples)]
