"""The sentence pairs that every side trains on, as piece ids, and the batches made of them.

Ids are those of `keras_attention.text`: 0 padding, 1 unknown, 2 begin, 3 end. A batch counts what every side computes
with: the pieces of the source and an end, and as many target positions as there are labels, the end among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PAD, BEGIN, END, FIRST_PIECE = 0, 2, 3, 4
# Of 1,000 English sentences of Tatoeba, how many have 0, 1, 2, … pieces of a joint vocabulary of 8,000.
LENGTHS_PER_MILLE = (
    0, 0, 0, 4.2, 28.8, 75.2, 125.0, 148.4, 148.8, 125.0, 97.9, 71.7, 50.6, 35.4, 25.1, 17.0, 12.5, 9.0, 6.7, 4.6, 3.6,
    2.4, 2.1, 1.4, 1.1, 0.8, 0.6, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1,
)  # fmt: skip
# Pieces of the German sentence for an English one of s pieces: mean a·s + b, standard deviation c·√s. The 160,419
# pairs have 8.94 ± 3.46 and 9.18 ± 3.94 pieces, their lengths a correlation of 0.85.
TARGET_SLOPE, TARGET_OFFSET, TARGET_SPREAD = 0.973, 0.485, 0.662


@dataclass(frozen=True)
class Sentences:
    """Pairs as flat ids, without begin and end of sentence, and the pairs of each batch.

    Attributes:
        source: All source pieces, one sentence after the other.
        source_lengths: (N,).
        target: All target pieces.
        target_lengths: (N,).
        batches: Indices of pairs, one array for each step.
    """

    source: np.ndarray
    source_lengths: np.ndarray
    target: np.ndarray
    target_lengths: np.ndarray
    batches: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, source: Sequence[Sequence[int]], target: Sequence[Sequence[int]]) -> "Sentences":
        """Lays out lists of ids."""
        flat = [np.concatenate([np.asarray(row, "int32") for row in rows]) for rows in (source, target)]
        lengths = [np.array([len(row) for row in rows], "int64") for rows in (source, target)]
        return cls(flat[0], lengths[0], flat[1], lengths[1])

    @classmethod
    def drawn(cls, count: int, vocabulary_size: int, seed: int = 1) -> "Sentences":
        """Random pairs as long as Tatoeba's, their pieces as unequally frequent as words are (Zipf 1949)."""
        random = np.random.default_rng(seed)
        shares = np.array(LENGTHS_PER_MILLE)
        source_lengths = random.choice(len(shares), count, p=shares / shares.sum())
        means = TARGET_SLOPE * source_lengths + TARGET_OFFSET
        target_lengths = random.normal(means, TARGET_SPREAD * np.sqrt(source_lengths))
        target_lengths = np.maximum(target_lengths.round().astype("int64"), 1)
        frequencies = 1 / np.arange(1, vocabulary_size - FIRST_PIECE + 1)
        frequencies /= frequencies.sum()
        source, target = (
            FIRST_PIECE + random.choice(len(frequencies), lengths.sum(), p=frequencies).astype("int32")
            for lengths in (source_lengths, target_lengths)
        )
        return cls(source, source_lengths, target, target_lengths)

    def with_batches(self, batches: Sequence[np.ndarray]) -> "Sentences":
        """The same pairs with other batches."""
        return Sentences(self.source, self.source_lengths, self.target, self.target_lengths, tuple(batches))

    def save(self, path: Path) -> None:
        """Writes one file."""
        cuts = np.cumsum([len(batch) for batch in self.batches])[:-1]
        flat = np.concatenate(self.batches) if self.batches else np.zeros(0, "int64")
        np.savez(
            path, source=self.source, source_lengths=self.source_lengths, target=self.target,
            target_lengths=self.target_lengths, batches=flat, cuts=cuts,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> "Sentences":
        """Reads what `save` wrote."""
        with np.load(path) as file:
            batches = np.split(file["batches"], file["cuts"].astype("int64"))
            names = ("source", "source_lengths", "target", "target_lengths")
            return cls(*(file[name] for name in names), tuple(batches))

    def __len__(self) -> int:
        return len(self.source_lengths)

    def rows(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The ids of each sentence, source and target."""
        return _split(self.source, self.source_lengths), _split(self.target, self.target_lengths)

    def random_batches(self, size: int, count: int, seed: int = 1) -> list[np.ndarray]:
        """`count` batches of `size` pairs, shuffled, passing over the pairs as often as needed."""
        random = np.random.default_rng(seed)
        passes = -(-size * count // (len(self) // size * size))
        order = [random.permutation(len(self))[: len(self) // size * size] for _ in range(passes)]
        return np.split(np.concatenate(order), len(self) // size * passes)[:count]

    def arrays(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One batch as int32: source (B, S) with ends; target (B, T) from the begin; labels (B, T) to the end."""
        source = _padded(self.source, self.source_lengths, index)
        labels = _padded(self.target, self.target_lengths, index)
        target = np.full_like(labels, BEGIN)
        target[:, 1:] = np.where(labels[:, 1:] == PAD, PAD, labels[:, :-1])
        return source, target, labels

    def lengths(self, batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Source and target lengths of all pairs of some batches, ends counted."""
        index = np.concatenate(batches)
        return self.source_lengths[index] + 1, self.target_lengths[index] + 1


def _split(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, lengths.cumsum()[:-1])


def _padded(flat: np.ndarray, lengths: np.ndarray, index: np.ndarray) -> np.ndarray:
    starts = (lengths.cumsum() - lengths)[index, None]
    lengths = lengths[index, None]
    columns = np.arange(lengths.max() + 1)
    ids = np.where(columns < lengths, flat.take(starts + columns, mode="clip"), PAD)
    return np.where(columns == lengths, END, ids).astype("int32")
