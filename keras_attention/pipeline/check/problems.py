"""Problems of parallel texts: their kinds, and how they are described."""

import dataclasses
from collections.abc import Sequence
from typing import Any

ERROR, WARNING = "error", "warning"
# Problems for which training does not start, or would learn nothing of use.
ERRORS = ("empty_file", "line_counts", "no_pairs", "invalid_utf8", "identical_files", "swapped_files")
WARNINGS = (
    "same_language",
    "unrelated_lengths",
    "blank",
    "identical_sides",
    "length_ratio",
    "duplicates",
    "leaks",
    "too_long",
    "unknown_pieces",
)
# The problems of single pairs, which a cleaned copy lacks.
REMOVABLE = ("invalid_utf8", "blank", "identical_sides", "length_ratio", "duplicates", "leaks", "too_long")
EXAMPLES = 5  # of a problem, that are printed


@dataclasses.dataclass(frozen=True)
class Problem:
    """A kind of problem in one pair of files.

    Attributes:
        kind: One of `ERRORS` or `WARNINGS`.
        split: "train", "valid" or "test".
        message: Description of the problem, with the file and the number of lines.
        lines: Numbers of all its lines, from 1; none for a problem of whole files.
        examples: `file:line: description` of the first of them.
    """

    kind: str
    split: str
    message: str
    lines: Sequence[int] = ()
    examples: Sequence[str] = ()

    @property
    def level(self) -> str:
        """ "error" or "warning"."""
        return ERROR if self.kind in ERRORS else WARNING

    def __str__(self) -> str:
        more = len(self.lines) - len(self.examples)
        rest = [f"  … and {more:,} more"] if more > 0 and self.examples else []
        return "\n".join([f"{self.level}: {self.message}", *(f"  {each}" for each in self.examples), *rest])

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        lines = [int(number) for number in self.lines]
        return {**dataclasses.asdict(self), "level": self.level, "lines": lines, "examples": list(self.examples)}


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of a text, on one line."""
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return text if len(text) <= length else text[: length - 1] + "…"
