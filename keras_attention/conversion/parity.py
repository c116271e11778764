"""Comparison of a converted model with the model, on a few random sentences.

Shapes: B sentences, S source length, T target length, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from keras import ops

from keras_attention.models import Transformer
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID

# Tolerances of log probabilities and logits in float32: sums in another order, over some dozen layers.
ABSOLUTE, RELATIVE = 1e-3, 1e-4
# In int8: the root mean square of the differences over the standard deviation of the log probabilities.
INT8_SHARE_OF_SPREAD = 0.1
SOURCE_LENGTHS, TARGET_LENGTHS = (11, 2, 23, 5), (7, 17, 1, 13)

_REFUSED = "The conversion was refused, as its outputs are not those of the model:"


@dataclass(frozen=True)
class RandomPairs:
    """Pairs of random token ids of several lengths, and the logits of the model."""

    sources: list[list[int]]  # without eos
    targets: list[list[int]]  # without bos and eos
    source_ids: np.ndarray  # (B, S), with eos
    target_ids: np.ndarray  # (B, T), with bos
    labels: np.ndarray  # (B, T), with eos
    logits: np.ndarray  # (B, T, V)

    @classmethod
    def of(cls, model: Transformer) -> "RandomPairs":
        """Returns the pairs, the same at every call, with the logits of a float32 model."""
        random = np.random.default_rng(1)
        first = min(EOS_ID + 1, model.config.vocabulary_size - 1)
        sources, targets = (
            [random.integers(first, model.config.vocabulary_size, length).tolist() for length in lengths]
            for lengths in (SOURCE_LENGTHS, TARGET_LENGTHS)
        )
        source_ids = pad_rows([[*source, EOS_ID] for source in sources])
        target_ids = pad_rows([[BOS_ID, *target] for target in targets])
        labels = pad_rows([[*target, EOS_ID] for target in targets])
        return cls(sources, targets, source_ids, target_ids, labels, full_logits(model, source_ids, target_ids))

    @property
    def log_probs(self) -> list[np.ndarray]:
        """The log probabilities of the tokens of each target, eos included."""
        log_probs = token_log_probs(self.logits, self.labels)
        return [row[: len(target) + 1] for row, target in zip(log_probs, self.targets, strict=True)]


def pad_rows(rows: list[list[int]]) -> np.ndarray:
    """Returns rows of ids as one padded matrix (B, T)."""
    matrix = np.full((len(rows), max(map(len, rows))), PAD_ID, "int32")
    for index, row in enumerate(rows):
        matrix[index, : len(row)] = row
    return matrix


def full_logits(model: Transformer, source_ids: np.ndarray, target_ids: np.ndarray) -> np.ndarray:
    """Returns the logits (B, T, V) of whole targets (B, T), computed without a cache."""
    return ops.convert_to_numpy(model({"source": source_ids, "target": target_ids}, training=False))


def token_log_probs(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the log probabilities (B, T) of labels (B, T) from logits (B, T, V)."""
    logits = logits.astype("float64")
    largest = logits.max(-1, keepdims=True)
    normaliser = largest[..., 0] + np.log(np.exp(logits - largest).sum(-1))
    return np.take_along_axis(logits, labels[..., None], -1)[..., 0] - normaliser


def assert_close(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Raises if the outputs of a float32 conversion differ by more than the order of sums explains."""
    actual = np.asarray(actual)
    if actual.shape != expected.shape:
        raise ValueError(f"{_REFUSED} {name} have shape {actual.shape} where the model gives {expected.shape}")
    excess = np.abs(actual - expected) - (ABSOLUTE + RELATIVE * np.abs(expected))
    if not np.all(excess <= 0):  # also true of NaN
        largest = np.abs(actual - expected).max()
        raise ValueError(
            f"{_REFUSED} {name} differ by up to {largest:.3g}, "
            f"where {ABSOLUTE:g} + {RELATIVE:g} of the value is allowed"
        )


def assert_near(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Raises if the outputs of an int8 conversion differ by more than rounding to int8 explains."""
    share = np.sqrt(np.mean(np.square(actual - expected))) / np.std(expected)
    if not share <= INT8_SHARE_OF_SPREAD:
        raise ValueError(
            f"{_REFUSED} {name} differ by {share:.3g} of their spread, where {INT8_SHARE_OF_SPREAD:g} is allowed for "
            "int8: convert without quantization"
        )
