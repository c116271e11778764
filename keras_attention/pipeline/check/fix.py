"""Cleaned copies of parallel files: without the pairs that have a problem, in a folder that appears complete."""

import contextlib
import dataclasses
import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_attention.files import check_folder
from keras_attention.pipeline.check.findings import leaking
from keras_attention.pipeline.check.problems import REMOVABLE, Problem
from keras_attention.pipeline.check.scan import SIDES, PairScan
from keras_attention.text.lines import is_file, is_gzip, stream_lines

PathLike = str | os.PathLike[str]
# Problems of a split that leave no pair of it to copy, or no order of its lines to rely on.
_NO_COPY = ("empty_file", "line_counts", "no_pairs", "identical_files")


@dataclasses.dataclass(frozen=True)
class Copies:
    """The cleaned copies of a pair of files.

    Attributes:
        split: "train", "valid" or "test".
        files: Paths of the copies; none if nothing was copied.
        kept: Number of pairs in the copies.
        removed: Number of pairs removed for each kind of problem; a pair with several counts for the first.
        reason: Why nothing was copied; None if it was.
    """

    split: str
    files: tuple[str, ...]
    kept: int
    removed: dict[str, int]
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"no cleaned copy of the {self.split} files: {self.reason}"
        kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in self.removed.items())
        total = sum(self.removed.values())
        return (
            f"{' and '.join(self.files)}: {self.kept:,} pairs kept, {total:,} removed{f' ({kinds})' if kinds else ''}"
        )


def check_copies(paths: Sequence[PathLike], folder: PathLike) -> None:
    """Checks that cleaned copies of files can be written into a folder, which must be new or empty."""
    for path in paths:
        if not is_file(path):
            raise ValueError(
                "Cleaned copies need a second reading, so the texts must be files: save the text to a file first. "
                f"Received: {os.fspath(path)}"
            )
    check_folder(folder)
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise ValueError(f"The folder for cleaned copies must be new or empty: name another. Received: fix={folder}")


def write_copies(scans: Sequence[PairScan], problems: Sequence[Problem], folder: PathLike) -> list[Copies]:
    """Writes the cleaned copies of all splits, which become visible together."""
    names = _names(scans)
    copies = []
    with _complete_folder(Path(folder)) as temporary:
        for scan in scans:
            mine = [problem for problem in problems if problem.split == scan.split]
            reasons = [problem.message for problem in mine if problem.kind in _NO_COPY]
            removals = {} if reasons else _removals(scan, scans, mine)
            kept = scan.num_lines[0] - len(removals)
            if not reasons and not kept:
                reasons = ["every pair has a problem"]
            if reasons:
                copies.append(Copies(scan.split, (), 0, {}, reasons[0]))
                continue
            for side, path in enumerate(scan.files):
                _copy(path, removals, temporary / names[scan.split, side])
            counts = {kind: list(removals.values()).count(kind) for kind in REMOVABLE}
            files = tuple(str(Path(folder, names[scan.split, side])) for side in (0, 1))
            copies.append(Copies(scan.split, files, kept, {kind: count for kind, count in counts.items() if count}))
    return copies


def _removals(scan: PairScan, scans: Sequence[PairScan], problems: Sequence[Problem]) -> dict[int, str]:
    """The lines to remove, each with the kind of its first problem."""
    lines = {kind: [problem.lines for problem in problems if problem.kind == kind] for kind in REMOVABLE}
    # A pair of two splits is removed from the earlier one: from the training text, not from what measures it.
    later = scans[[each.split for each in scans].index(scan.split) + 1 :]
    lines["leaks"] = [leaking(other, scan)[0] for other in later]
    removals: dict[int, str] = {}
    for kind in REMOVABLE:
        for numbers in lines[kind]:
            for line in numbers:
                removals.setdefault(int(line), kind)
    return removals


def _names(scans: Sequence[PairScan]) -> dict[tuple[str, int], str]:
    """The names of the copies: those of the files, unless two of them have the same."""
    files = {(scan.split, side): Path(path) for scan in scans for side, path in enumerate(scan.files)}
    if len({path.name for path in files.values()}) == len(files):
        return {key: path.name for key, path in files.items()}
    return {key: f"{key[0]}.{SIDES[key[1]]}{'.gz' if is_gzip(path) else ''}" for key, path in files.items()}


def _copy(path: str, removals: dict[int, Any], copy: Path) -> None:
    """Copies the lines that are not removed, with gzip if the file has it."""
    with (gzip.open if is_gzip(path) else open)(copy, "wb") as file:
        for number, line in enumerate(stream_lines(path), start=1):
            if number not in removals:
                file.write(line + b"\n")


@contextlib.contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the name of the new or empty folder when the block succeeds."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
