"""Packed batches: several pairs in each row, so that every batch has the same shape and hardly any padding.

Shapes: B rows of a batch, S and T their source and target lengths, P the most pairs of a row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_attention.text.bin_packing import pack, row_lengths
from keras_attention.text.epoch_batches import Batch
from keras_attention.text.pair_batches import Epoch, PairBatches
from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.sentencepiece_model import BOS_ID, PAD_ID

if TYPE_CHECKING:
    import tensorflow as tf

NO_PAIR = -1


class PackedBatches(PairBatches):
    """Sentence pairs packed into rows of a fixed length, a fixed number of rows in each batch.

    Every batch has the same shape, so XLA compiles one program. Each token has a segment, the number of its pair
    within the row, by which `Transformer.packed` keeps the pairs apart; 0 is padding. The side with more tokens in
    total has rows of `row_length`, the other side rows that are shorter in proportion.

    The lengths that share a row are the same in every epoch, unless `from_pairs` samples them. An epoch shuffles the
    pairs of equal lengths and the order of the rows. The order follows from `(seed, epoch)` only, so that a run that
    stops can resume with the batches it has not seen.

    Args:
        source_ids: Token ids of each source sentence, without BOS and EOS.
        target_ids: Token ids of each target sentence, without BOS and EOS.
        row_length: Tokens of a row on the longer side. Pairs with more on a side, EOS included, are left out.
        rows_per_batch: B.
        seed: Seed of the order, together with the epoch.
        source_word_dropout: Probability with which a piece of a source, except its EOS, is replaced by the unknown
            piece, at least 0 and below 1. Each epoch replaces others. See `TokenBatches`.

    Attributes:
        source_length: S.
        target_length: T.
        num_pairs: Number of pairs in an epoch.
        num_left_out: Number of pairs that are too long.
        num_tokens: Number of source and target tokens in an epoch, EOS included, padding excluded.
        padding: Fraction of padding among the source and target ids of an epoch.

    Raises:
        ValueError: If an argument is out of range, the numbers of sentences differ, or every pair is too long.

    Example:
        >>> batches = PackedBatches([[5], [6, 7], [8]], [[5], [6], [7, 8]], row_length=8, rows_per_batch=1)
        >>> inputs, labels = batches.batch(batches.plan(epoch=0)[0])
        >>> inputs["source"].tolist(), inputs["source_segments"].tolist()
        ([[6, 7, 3, 8, 3, 5, 3, 0]], [[1, 1, 1, 2, 2, 3, 3, 0]])
        >>> inputs["target"].tolist(), labels.tolist()
        ([[2, 6, 2, 7, 8, 2, 5, 0]], [[6, 3, 7, 8, 3, 5, 3, 0]])

    Source: Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination".
    """

    def __init__(
        self,
        source_ids: Sequence[Sequence[int]],
        target_ids: Sequence[Sequence[int]],
        *,
        row_length: int = 256,
        rows_per_batch: int = 16,
        seed: int = 1,
        source_word_dropout: float = 0.0,
    ):
        sizes = {"row_length": row_length, "rows_per_batch": rows_per_batch}
        super().__init__(source_ids, target_ids, row_length, seed, sizes, source_word_dropout)
        self.row_length, self.rows_per_batch = row_length, rows_per_batch
        self._min_rows = rows_per_batch
        self._arrange()

    def plan(self, epoch: int) -> np.ndarray:
        """Assigns the pairs to the rows of an epoch.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            Indices (batches, B, P) of pairs among those given to the constructor; -1 where a row has fewer.

        Raises:
            ValueError: If `epoch` is negative.
        """
        random = self._random_generator(epoch)
        each = self._epoch(epoch)
        pairs = self._sorted(random.permutation(self._kept), each.lengths)
        position_in_row = _count_before(each.division)
        rows = np.full((len(self) * self.rows_per_batch, int(position_in_row.max()) + 1), NO_PAIR)
        rows[each.division, position_in_row] = pairs
        return random.permutation(rows).reshape(len(self), self.rows_per_batch, -1)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        """Makes the arrays of one batch.

        Args:
            rows: Indices (B, P) of pairs, such as an element of `plan`.
            epoch: The epoch of the plan, on which the ids depend if there is any dropout.

        Returns:
            `({"source": (B, S), "target": (B, T), …}, labels (B, T))`, int32, with "source_segments" (B, S) and
            "target_segments" (B, T) among the inputs. The source and the labels of each pair end with EOS; its target
            is BOS and the labels one position later. Segments count the pairs of a row from 1. The rest is 0.

        Raises:
            ValueError: If the pairs of a row have more tokens than a row.
        """
        rows = np.asarray(rows)
        each = self._epoch(epoch)
        source, source_segments, _ = _lay_out(each.source, rows, self.source_length)
        labels, target_segments, starts = _lay_out(each.target, rows, self.target_length)
        source = self._drop_words(source, rows, epoch)
        target = np.where(target_segments > 0, np.roll(labels, 1), np.int32(PAD_ID))
        target.flat[starts] = BOS_ID
        inputs = {"source": source, "target": target}
        return {**inputs, "source_segments": source_segments, "target_segments": target_segments}, labels

    def batch_of_each_shape(self) -> list[Batch]:
        source, target = (
            np.full((self.rows_per_batch, length), PAD_ID, np.int32)
            for length in (self.source_length, self.target_length)
        )
        return [({"source": source, "target": target, "source_segments": source, "target_segments": target}, target)]

    def _element_spec(self) -> "tuple[dict[str, tf.TensorSpec], tf.TensorSpec]":
        import tensorflow as tf

        source, target = (
            tf.TensorSpec((self.rows_per_batch, length), tf.int32)
            for length in (self.source_length, self.target_length)
        )
        return {"source": source, "target": target, "source_segments": source, "target_segments": target}, target

    def _plan_tensor(self, epoch: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        return tf.numpy_function(lambda epoch: self.plan(int(epoch)), [epoch], tf.int64)

    def _batch_size(self) -> str:
        return f"{self.rows_per_batch} packed rows of {self.source_length:,} and {self.target_length:,} tokens"

    def _longest(self, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
        capacity = row_lengths(lengths, self.row_length, counts)
        self.source_length, self.target_length = map(int, capacity)
        return capacity

    def _divide(self, lengths: np.ndarray) -> tuple[np.ndarray, int]:
        row_of_pair, num_rows = pack(lengths[self._sorted(self._kept, lengths)], self._limits, self.rows_per_batch)
        return row_of_pair, num_rows // self.rows_per_batch

    def _spread(self, division: np.ndarray) -> np.ndarray:
        rows = division.copy()
        sizes = np.bincount(rows, minlength=len(self) * self.rows_per_batch)
        for empty in np.flatnonzero(sizes == 0):
            fullest = sizes.argmax()
            moved = np.flatnonzero(rows == fullest)[: sizes[fullest] // 2]
            rows[moved] = empty
            sizes[fullest] -= len(moved)
            sizes[empty] = len(moved)
        return rows

    def _count(self, lengths: np.ndarray, index: np.ndarray) -> tuple[int, int]:
        return int(lengths[index[index != NO_PAIR]].sum()), self._num_ids

    def _num_cells(self, epoch: Epoch) -> int:
        return len(self) * self._num_ids

    @property
    def _num_ids(self) -> int:
        """The number of source and target ids of a batch, padding included."""
        return self.rows_per_batch * (self.source_length + self.target_length)

    def _sorted(self, index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Sorts pairs from long to short; a stable sort, so a shuffle before it decides among equals."""
        source, target = lengths[index].T
        return index[np.lexsort((source, target, -np.maximum(source, target)))]


def _count_before(groups: np.ndarray) -> np.ndarray:
    """The number of earlier elements in the same group, for each element."""
    order = np.argsort(groups, kind="stable")
    counts = np.empty_like(order)
    counts[order] = np.arange(len(groups)) - np.searchsorted(groups[order], groups[order])
    return counts


def _lay_out(side: RaggedIds, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids and segments (B, length) of one side, and the flat index at which each pair starts."""
    row, _ = np.nonzero(rows != NO_PAIR)  # (pairs,)
    pairs = rows[rows != NO_PAIR]  # (pairs,)
    lengths = side.lengths[pairs]
    before = lengths.cumsum() - lengths
    first_of_row = np.searchsorted(row, row)
    starts = row * length + before - before[first_of_row]
    tokens = np.arange(lengths.sum())
    if np.any(starts + lengths > (row + 1) * length):
        raise ValueError(
            f"The pairs of a row must have at most {length} tokens a side: pass rows of `plan(epoch)`, and with "
            f"`subword_dropout` the same `epoch`. Received: rows={rows.tolist()}"
        )
    positions = np.repeat(starts - before, lengths) + tokens
    ids, segments = (np.full((len(rows), length), PAD_ID, np.int32) for _ in range(2))
    ids.flat[positions] = side.ids[np.repeat(side.starts[pairs] - before, lengths) + tokens]
    segments.flat[positions] = np.repeat(np.arange(len(pairs)) - first_of_row + 1, lengths)
    return ids, segments, starts
