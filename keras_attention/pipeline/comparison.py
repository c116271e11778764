"""Comparison of two systems on one test set, with sacreBLEU's paired bootstrap test."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from keras_attention.layers.arguments import positive_integer
from keras_attention.pipeline.evaluate import bleu_tokenizer
from keras_attention.pipeline.folder import RunFolder
from keras_attention.text.lines import read_parallel

# sacreBLEU's bootstrap p-value is one-sided: of equal systems, 5% have one below 0.05 in favor of the first and 5% in
# favor of the second. Half of the usual 0.05 therefore limits wrong conclusions to 5%.
SIGNIFICANT = 0.025
# Resampling tells little about smaller test sets: with one sentence, all samples are equal and any difference is
# significant.
MIN_SENTENCES = 100
# sacreBLEU's own defaults.
SAMPLES, SEED = 1000, 12345


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two systems.

    Attributes:
        first: Score of the first system, 0 to 100.
        second: Score of the second system.
        first_interval: 95% confidence interval of `first`.
        second_interval: 95% confidence interval of `second`.
        p_value: One-sided p-value: the probability that a system of equal quality is better by so much.
        signature: sacreBLEU's version and settings, with the number and the seed of the samples.

    Example:
        >>> bleu = MetricComparison(27.0, 28.5, (26.1, 27.9), (27.6, 29.4), p_value=0.003, signature="nrefs:1")
        >>> bleu.difference, bleu.significant
        (1.5, True)
    """

    first: float
    second: float
    first_interval: tuple[float, float]
    second_interval: tuple[float, float]
    p_value: float
    signature: str

    @property
    def difference(self) -> float:
        """The score of the second system minus that of the first."""
        return self.second - self.first

    @property
    def significant(self) -> bool:
        """True if the p-value is below 0.025: of pairs of equal systems, 5% have so large a difference."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """BLEU and chrF of two systems on one test set. Printed, it is a table and a conclusion.

    Attributes:
        first: Name of the first system.
        second: Name of the second system.
        sentences: Number of sentences of the test set.
        bleu: Comparison by BLEU.
        chrf: Comparison by chrF.

    Example:
        >>> equal = MetricComparison(27.0, 27.0, (26.1, 27.9), (26.1, 27.9), p_value=1.0, signature="nrefs:1")
        >>> Comparison("runs/a", "runs/b", 2000, equal, equal).conclusion
        'No significant difference (BLEU p = 1.000, chrF p = 1.000)'
    """

    first: str
    second: str
    sentences: int
    bleu: MetricComparison
    chrf: MetricComparison

    @property
    def conclusion(self) -> str:
        """One sentence: which system is better, or that the difference is not significant."""
        if self.sentences < MIN_SENTENCES:
            return f"No conclusion: {self.sentences} sentences are too few for this test, which needs {MIN_SENTENCES}"
        by_bleu, by_chrf = (self._better(each) for each in (self.bleu, self.chrf))
        if by_bleu == by_chrf:
            sentence = "No significant difference" if by_bleu is None else f"{by_bleu} is better"
            return f"{sentence} (BLEU {_p_value(self.bleu)}, chrF {_p_value(self.chrf)})"
        clauses = [
            f"no significant difference by {name} ({_p_value(metric)})"
            if better is None
            else f"{better} is better by {name} ({_p_value(metric)})"
            for name, metric, better in (("BLEU", self.bleu, by_bleu), ("chrF", self.chrf, by_chrf))
        ]
        sentence = ", ".join(clauses)
        return sentence[0].upper() + sentence[1:] if by_bleu is None else sentence

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers and text, for JSON.

        Returns:
            The attributes, the differences and the conclusion.
        """
        values = dataclasses.asdict(self)
        for name in ("bleu", "chrf"):
            values[name]["difference"] = getattr(self, name).difference
        return {**values, "conclusion": self.conclusion}

    def __str__(self) -> str:
        metrics = (self.bleu, self.chrf)
        rows = [
            ["", "BLEU, 95% interval", "chrF, 95% interval"],
            [self.first, *(_score(each.first, each.first_interval) for each in metrics)],
            [self.second, *(_score(each.second, each.second_interval) for each in metrics)],
            ["difference", *(f"{each.difference:+.1f}" for each in metrics)],
            ["p-value", *(f"{each.p_value:.3f}" for each in metrics)],
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        signatures = [f"BLEU {self.bleu.signature}", f"chrF {self.chrf.signature}"]
        return "\n".join([*lines, f"{self.conclusion}.", *signatures])

    def _better(self, metric: MetricComparison) -> str | None:
        """The name of the significantly better system."""
        if not metric.significant:
            return None
        return self.second if metric.difference > 0 else self.first


def compare(
    first: str | Path,
    second: str | Path,
    source: str | Path,
    reference: str | Path,
    *,
    tokenize: str | None = None,
    samples: int = SAMPLES,
    seed: int = SEED,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Translates a test set with two runs, and tests whether one of them is better.

    Everything is checked before the first sentence is translated.

    Args:
        first: Folder of a run.
        second: Folder of another run.
        source: Text file to translate.
        reference: Text file of its translations, line by line.
        tokenize: See `evaluate_translations`.
        samples: Number of bootstrap samples.
        seed: Seed of the samples.
        progress: Whether to show the number of translated texts of each run on standard error.
        **options: `checkpoint`, `beam_size`, `length_penalty` and `weights` for both runs: see `RunFolder.translator`.

    Returns:
        The comparison.

    Raises:
        FileNotFoundError: If a text or a checkpoint is missing, or a folder holds no run.
        ValueError: If both folders are the same, the texts differ in their number of lines, or an option is invalid.
    """
    _check_options(samples, seed, tokenize)
    runs = [RunFolder(first), RunFolder(second)]
    _check_runs(runs, options.get("checkpoint"))
    sources, references = read_parallel(source, reference)
    tokenize = bleu_tokenizer(references, tokenize)
    translators = [run.translator(**options) for run in runs]  # both, before the work with the first
    translations = []
    for run, translator in zip(runs, translators, strict=True):
        if progress:
            print(f"{run.path}: {len(sources):,} lines", file=sys.stderr)
        translations.append(translator.translate(sources, progress=progress))
    names = (str(first), str(second))
    return compare_translations(*translations, references, names=names, tokenize=tokenize, samples=samples, seed=seed)


def compare_translations(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    *,
    names: tuple[str, str] = ("first", "second"),
    tokenize: str | None = None,
    samples: int = SAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Tests whether one of two systems is better, with sacreBLEU's paired bootstrap resampling.

    The test scores both systems on random samples of the sentences, drawn with replacement, and compares the spread of
    the differences with the difference on the test set. It computes what the command `sacrebleu --paired-bs` does,
    except that systems with equal scores have a p-value of 1.

    Args:
        first: Translations by the first system.
        second: Translations by the second system, in the same order.
        references: Reference translations, in the same order.
        names: Names of the systems.
        tokenize: See `evaluate_translations`.
        samples: Number of bootstrap samples.
        seed: Seed of the samples.

    Returns:
        The comparison.

    Raises:
        ValueError: If the numbers of sentences differ or are zero, or an option is invalid.

    Example:
        >>> references = [f"sentence number {index} of the test set" for index in range(200)]
        >>> worse = [text.replace("number", "no.") for text in references]
        >>> comparison = compare_translations(worse, references, references, names=("old", "new"), samples=100)
        >>> comparison.conclusion
        'new is better (BLEU p = 0.010, chrF p = 0.010)'

    Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".
    """
    if not len(first) == len(second) == len(references) > 0:
        raise ValueError(
            "Each reference must have a translation by both systems. "
            f"Received: {len(first)} and {len(second)} translations, {len(references)} references"
        )
    _check_options(samples, seed, tokenize)
    metrics = (BLEU(tokenize=bleu_tokenizer(references, tokenize)), CHRF())
    bleu, chrf = (_paired_test(metric, first, second, references, samples, seed) for metric in metrics)
    return Comparison(*names, len(references), bleu, chrf)


def _check_options(samples: int, seed: int, tokenize: str | None) -> None:
    positive_integer(samples, "samples")
    positive_integer(seed, "seed")  # sacreBLEU treats 0 as no seed
    if tokenize is not None:
        bleu_tokenizer([], tokenize)


def _check_runs(runs: Sequence[RunFolder], checkpoint: str | None) -> None:
    """Checks, before a model is loaded, that the folders hold different runs with this checkpoint."""
    for run in runs:
        _ = run.config  # raises if the folder holds no run
        run.checkpoint_file(checkpoint)
    first, second = (run.path for run in runs)
    if first.samefile(second):
        raise ValueError(f"Both folders are the same run: name another. Received: {first} and {second}")


def _paired_test(
    metric: Any, first: Sequence[str], second: Sequence[str], references: Sequence[str], samples: int, seed: int
) -> MetricComparison:
    """Runs sacreBLEU's test with one metric."""
    systems = [("first", list(first)), ("second", list(second))]
    with _sacrebleu_seed(seed):
        test = PairedTest(systems, {"metric": metric}, [list(references)], test_type="bs", n_samples=samples)
    signatures, results = test()
    ((name, signature),) = signatures.items()
    scores = results[name]
    # Without a difference, sacreBLEU's p-value would be the smallest possible one.
    p_value = 1.0 if scores[0].score == scores[1].score else scores[1].p_value
    intervals = [(float(each.mean - each.ci), float(each.mean + each.ci)) for each in scores]
    return MetricComparison(scores[0].score, scores[1].score, *intervals, float(p_value), str(signature))


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """Sets the environment variable from which sacreBLEU reads the seed of its samples."""
    name = "SACREBLEU_SEED"
    before = os.environ.get(name)
    os.environ[name] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _score(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1f}  {interval[0]:.1f}–{interval[1]:.1f}"


def _p_value(metric: MetricComparison) -> str:
    return f"p = {metric.p_value:.3f}" if metric.p_value >= 0.0005 else "p < 0.001"
