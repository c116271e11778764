"""Comparison of the languages of texts by their character trigrams, which finds swapped files.

Source: Cavnar and Trenkle 1994, "N-Gram-Based Text Categorization".
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

# A sample of this size identifies a language with certainty, and takes a fraction of a second.
SAMPLE = 2000
# Two samples of one language differ little, and those of two languages much, even if these are related.
SAME, MARGIN = 0.9, 0.1
_MIN_TRIGRAMS = 200


def profile(texts: Iterable[str]) -> Counter[str]:
    """Counts the character trigrams of texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        padded = f" {text.strip().lower()} "
        counts.update(padded[start : start + 3] for start in range(len(padded) - 2))
    return counts


def similarity(first: Counter[str], second: Counter[str]) -> float:
    """The cosine of the angle between two profiles: 1 for equal distributions of trigrams, 0 for none in common."""
    product = sum(count * second[trigram] for trigram, count in first.items())
    norms = (sum(count**2 for count in each.values()) for each in (first, second))
    return product / max(math.sqrt(math.prod(norms)), 1.0)


def same_language(pairs: Sequence[tuple[str, str]]) -> float | None:
    """The similarity of both sides if it is so high that their language seems to be the same; None otherwise."""
    sides = _profiles(pairs)
    return close if min(map(Counter.total, sides)) >= _MIN_TRIGRAMS and (close := similarity(*sides)) > SAME else None


def are_swapped(pairs: Sequence[tuple[str, str]], training_pairs: Sequence[tuple[str, str]]) -> bool:
    """Returns True if the source is in the language of the training target, and the target in that of its source."""
    source, target = _profiles(pairs)
    training_source, training_target = _profiles(training_pairs)
    return (
        similarity(source, training_target) > similarity(source, training_source) + MARGIN
        and similarity(target, training_source) > similarity(target, training_target) + MARGIN
    )


def _profiles(pairs: Sequence[tuple[str, str]]) -> tuple[Counter[str], Counter[str]]:
    return profile(source for source, _ in pairs), profile(target for _, target in pairs)
