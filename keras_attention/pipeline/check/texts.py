"""The check of all text files of a training, each read once."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_attention.pipeline.check.findings import find_problems
from keras_attention.pipeline.check.fix import check_copies, write_copies
from keras_attention.pipeline.check.report import CheckReport, SplitSummary
from keras_attention.pipeline.check.scan import PairScan
from keras_attention.text import SubwordTokenizer
from keras_attention.text.lines import check_readable, is_file

PathLike = str | os.PathLike[str]
Pair = tuple[PathLike, PathLike]


def check_texts(
    source: PathLike,
    target: PathLike,
    *,
    valid: Pair | None = None,
    test: Pair | None = None,
    tokenizer: SubwordTokenizer | None = None,
    max_length: int | None = None,
    samples: int = 3,
    seed: int = 1,
    fix: PathLike | None = None,
    progress: bool = False,
) -> CheckReport:
    """Checks the text files of a training: reads each once, and reports numbers and problems.

    Memory grows by a few dozen bytes per pair, since equal pairs are recognized by hashes.

    Args:
        source: File of source sentences, UTF-8, plain or gzip; "-" is standard input.
        target: File of their translations.
        valid: Files of validation sentences and their translations.
        test: Files of test sentences and their translations.
        tokenizer: Tokenizer, for lengths in tokens and unknown pieces; None for lengths in words.
        max_length: The most tokens of a side, EOS included, with which a pair is trained; None for no limit.
        samples: Number of training pairs to show.
        seed: Seed of the sample.
        fix: Folder for copies of the files without the pairs that have a problem, under the same names; None for no
            copies. The files are read a second time. Of equal pairs, the first remains. A pair that leaks is removed
            from the training text, so that the scores of the other texts stay comparable.
        progress: Whether to show a progress bar on standard error, if that is a terminal.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is damaged or in another encoding, a pipe is used twice, or `fix` would replace a file.

    Example:
        >>> import pathlib
        >>> _ = pathlib.Path("a.en").write_text("One.\\nTwo.\\nTwo.\\n\\n", encoding="utf-8")
        >>> _ = pathlib.Path("a.de").write_text("Eins.\\nZwei.\\nZwei.\\nVier.\\n", encoding="utf-8")
        >>> report = check_texts("a.en", "a.de", fix="clean")
        >>> [(problem.kind, list(problem.lines)) for problem in report.problems]
        [('blank', [4]), ('duplicates', [3])]
        >>> pathlib.Path("clean/a.de").read_text(encoding="utf-8")
        'Eins.\\nZwei.\\n'
    """
    files = {"train": (source, target), "valid": valid, "test": test}
    splits = {name: pair for name, pair in files.items() if pair is not None}
    paths = [path for pair in splits.values() for path in pair]
    check_readable(paths)
    if fix is not None:
        check_copies(paths, fix)
    with _progress_bar(paths, progress) as advance:
        scans = [PairScan(name, pair, tokenizer, max_length, seed).read(advance) for name, pair in splits.items()]
    problems = find_problems(scans)
    return CheckReport(
        unit="words" if tokenizer is None else "tokens",
        splits=[SplitSummary.of(scan) for scan in scans],
        problems=problems,
        copies=[] if fix is None else write_copies(scans, problems, fix),
        samples=random.Random(seed).sample(scans[0].sample, min(samples, len(scans[0].sample))),
        length_counts=[np.unique(scan.lengths, axis=0, return_counts=True) for scan in scans],
    )


@contextlib.contextmanager
def _progress_bar(paths: Sequence[PathLike], shown: bool) -> Iterator[Callable[[int], Any] | None]:
    """Shows a progress bar of the bytes of files."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)  # standard output is for the report
    if not shown or not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading", total=sum(Path(path).stat().st_size for path in paths if is_file(path)))
        yield lambda count: bar.advance(task, count)
