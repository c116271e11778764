"""Token ids of sentences of different lengths."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from keras_attention.text.sentencepiece_model import EOS_ID, PAD_ID


@dataclasses.dataclass(frozen=True)
class RaggedIds:
    """Token ids of N sentences in one flat array, each sentence with EOS at its end."""

    ids: np.ndarray  # (sum of lengths,)
    starts: np.ndarray  # (N,)
    lengths: np.ndarray  # (N,)

    @classmethod
    def from_lists(cls, sentences: Sequence[Sequence[int]]) -> "RaggedIds":
        ids = itertools.chain.from_iterable(itertools.chain(sentence, (EOS_ID,)) for sentence in sentences)
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences)) + 1
        return cls(np.fromiter(ids, np.int32, int(lengths.sum())), lengths.cumsum() - lengths, lengths)

    @classmethod
    def from_flat(cls, ids: np.ndarray) -> "RaggedIds":
        ends = np.flatnonzero(ids == EOS_ID)
        lengths = np.diff(ends, prepend=-1)
        return cls(ids, ends + 1 - lengths, lengths)

    @classmethod
    def concatenate(cls, parts: Sequence["RaggedIds"]) -> "RaggedIds":
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.ids for part in parts]), lengths.cumsum() - lengths, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, start: int, stop: int) -> "RaggedIds":
        """The sentences from one index to another, in an array of their own."""
        starts, lengths = self.starts[start:stop], self.lengths[start:stop]
        return RaggedIds(self.ids[gather(starts, lengths)], lengths.cumsum() - lengths, lengths)

    def to_lists(self) -> list[list[int]]:
        """The ids of each sentence, without EOS."""
        ends = self.starts + self.lengths - 1
        return [self.ids[start:end].tolist() for start, end in zip(self.starts, ends, strict=True)]

    def where(self, condition: np.ndarray, other: "RaggedIds") -> "RaggedIds":
        """The sentences where the condition (N,) holds, and those of `other` elsewhere."""
        return RaggedIds(
            np.concatenate([self.ids, other.ids]),
            np.where(condition, self.starts, len(self.ids) + other.starts),
            np.where(condition, self.lengths, other.lengths),
        )

    def padded(self, index: np.ndarray, width: int | None = None) -> np.ndarray:
        """The sentences of these indices as a padded array (B, width), as wide as the longest without a width."""
        lengths = self.lengths[index, None]
        columns = np.arange(lengths.max() if width is None else width)
        # Positions past a sentence's end read the next sentence, or past the array: padding replaces both.
        ids = self.ids.take(self.starts[index, None] + columns, mode="clip")
        return np.where(columns < lengths, ids, np.int32(PAD_ID))


def gather(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices of the elements of ranges (N,), one range after the other."""
    return np.repeat(starts - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
