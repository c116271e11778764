"""The checks of the texts that a training has read, before it does anything else."""

from collections.abc import Iterable, Sequence

from keras_attention.pipeline.check.findings import (
    identical_message,
    same_language_message,
    swapped_message,
)
from keras_attention.pipeline.check.languages import SAMPLE, are_swapped, same_language
from keras_attention.text import ParallelCorpus, ShardedPairs

Files = tuple[str, str]


def check_before_training(
    corpus: ParallelCorpus | ShardedPairs, files: Files, valid_corpus: ParallelCorpus, valid_files: Files
) -> list[str]:
    """Raises a ValueError for files that are identical or swapped, and returns what else is suspicious."""
    # `ParallelCorpus` has checked each pair of files, and `keras-attention check` checks more than is worth its time
    # at the start of each training.
    warnings = []
    samples = []
    for each, (source, target) in ((corpus, files), (valid_corpus, valid_files)):
        if all(first == second for first, second in each.pairs):  # ends at the first that differs
            raise ValueError(f"{identical_message(source, target)}. Received: source={source!r}, target={target!r}")
        samples.append(each.sample(min(SAMPLE, len(each))))
        if similarity := same_language(samples[-1]):
            warnings.append(same_language_message(source, target, similarity))
    if are_swapped(samples[1], samples[0]):
        raise ValueError(
            f"{swapped_message(*valid_files, *files)}. Swap the two. "
            f"Received: valid_source={valid_files[0]!r}, valid_target={valid_files[1]!r}"
        )
    leaks = _num_leaks(valid_corpus.pairs, corpus.pairs)
    if leaks:
        message = f"{valid_files[0]}: {leaks:,} of {len(valid_corpus):,} pairs are also in {files[0]}"
        warnings.append(f"{message}, so that the validation looks better than it is")
    return warnings


def _num_leaks(pairs: Sequence[tuple[str, str]], training_pairs: Iterable[tuple[str, str]]) -> int:
    """The number of pairs that the training text has too."""
    shared = set(pairs).intersection(training_pairs)
    return sum(pair in shared for pair in pairs)
