"""Whether a converted model computes what the model computes, on a few random sentences.

Shapes: B sentences, S source length, T target length, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from keras import ops

from keras_attention.models import Transformer
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID

# Differences of log-probabilities and logits in float32: sums in another order, over some dozen layers.
ABSOLUTE, RELATIVE = 1e-3, 1e-4
# In int8: the root mean square of the differences over the spread of the log-probabilities.
INT8_SHARE_OF_SPREAD = 0.1
SOURCE_LENGTHS, TARGET_LENGTHS = (11, 2, 23, 5), (7, 17, 1, 13)

_REFUSED = "The conversion was refused, since it does not compute what the model computes:"


@dataclass(frozen=True)
class RandomPairs:
    """Random ids of several lengths, and what the model gives them.

    Attributes:
        sources: The ids of each source, without an end.
        targets: The ids of each target, without begin and end.
        source_ids: The sources with their ends, padded (B, S).
        target_ids: Begins, then the targets, padded (B, T).
        labels: The targets with their ends, padded (B, T).
        logits: What the model gives (B, T, V).
    """

    sources: list[list[int]]
    targets: list[list[int]]
    source_ids: np.ndarray
    target_ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, model: Transformer) -> "RandomPairs":
        """Draws pairs and runs the model on them.

        Args:
            model: In float32.

        Returns:
            The same pairs at every call.
        """
        random = np.random.default_rng(1)
        first = min(EOS_ID + 1, model.config.vocabulary_size - 1)
        sources, targets = (
            [random.integers(first, model.config.vocabulary_size, length).tolist() for length in lengths]
            for lengths in (SOURCE_LENGTHS, TARGET_LENGTHS)
        )
        source_ids = padded([[*source, EOS_ID] for source in sources])
        target_ids = padded([[BOS_ID, *target] for target in targets])
        labels = padded([[*target, EOS_ID] for target in targets])
        return cls(sources, targets, source_ids, target_ids, labels, full_logits(model, source_ids, target_ids))

    @property
    def log_probs(self) -> list[np.ndarray]:
        """The log-probabilities of each target's labels, the end's among them."""
        found = token_log_probs(self.logits, self.labels)
        return [row[: len(target) + 1] for row, target in zip(found, self.targets, strict=True)]


def padded(rows: list[list[int]]) -> np.ndarray:
    """Rows of ids as one matrix.

    Args:
        rows: Of any lengths.

    Returns:
        Int32 (B, T).

    Example:
        >>> padded([[5, 6], [7]]).tolist()
        [[5, 6], [7, 0]]
    """
    matrix = np.full((len(rows), max(map(len, rows))), PAD_ID, "int32")
    for place, row in enumerate(rows):
        matrix[place, : len(row)] = row
    return matrix


def full_logits(model: Transformer, source_ids: np.ndarray, target_ids: np.ndarray) -> np.ndarray:
    """What the model gives for whole targets, without a cache.

    Args:
        model: In float32.
        source_ids: (B, S).
        target_ids: (B, T), from the begin on.

    Returns:
        Logits (B, T, V).
    """
    return ops.convert_to_numpy(model({"source": source_ids, "target": target_ids}, training=False))


def token_log_probs(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log-probability of each label.

    Args:
        logits: (B, T, V).
        labels: (B, T).

    Returns:
        (B, T).
    """
    logits = logits.astype("float64")
    largest = logits.max(-1, keepdims=True)
    normaliser = largest[..., 0] + np.log(np.exp(logits - largest).sum(-1))
    return np.take_along_axis(logits, labels[..., None], -1)[..., 0] - normaliser


def assert_close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Refuses a conversion whose float32 numbers differ by more than the order of sums explains.

    Args:
        found: The converted model's.
        expected: The model's.
        what: What they are, for the message.

    Raises:
        ValueError: They differ.
    """
    found = np.asarray(found)
    if found.shape != expected.shape:
        raise ValueError(f"{_REFUSED} {what} have shape {found.shape} where the model gives {expected.shape}")
    excess = np.abs(found - expected) - (ABSOLUTE + RELATIVE * np.abs(expected))
    if not np.all(excess <= 0):  # also true of NaN
        largest = np.abs(found - expected).max()
        raise ValueError(
            f"{_REFUSED} {what} differ by up to {largest:.3g}, "
            f"where {ABSOLUTE:g} + {RELATIVE:g} of the value is allowed"
        )


def assert_near(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Refuses an int8 conversion whose numbers differ by more than rounding to int8 explains.

    Args:
        found: The converted model's.
        expected: The model's.
        what: What they are, for the message.

    Raises:
        ValueError: They differ.
    """
    share = np.sqrt(np.mean(np.square(found - expected))) / np.std(expected)
    if not share <= INT8_SHARE_OF_SPREAD:
        raise ValueError(
            f"{_REFUSED} {what} differ by {share:.3g} of their spread, where {INT8_SHARE_OF_SPREAD:g} is allowed for "
            "int8: convert without quantization"
        )
