"""Packed batches: several pairs in each row, so that every batch has the same shape and hardly any padding.

Shapes: B rows of a batch, S and T their source and target length, P most pairs of a row.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_attention.text.batching import Batch, Rows
from keras_attention.text.bin_packing import pack, row_lengths
from keras_attention.text.sentencepiece_model import BOS_ID, PAD_ID
from keras_attention.text.tokenizer import SubwordTokenizer

NO_PAIR = -1


class PackedBatches:
    """Sentence pairs packed into rows of one fixed length, a fixed number of rows to a batch.

    Every batch has the same shape, so XLA compiles one program. Each token has the number of its pair within the row,
    its segment, by which `Transformer.packed` keeps the pairs apart; 0 is padding. The side that has more tokens over
    all gets rows of `row_length`, the other side rows that are shorter in proportion.

    Which lengths share a row is settled once. An epoch shuffles the pairs within equal lengths and the order of the
    rows; which it is follows from `(seed, epoch)` alone, so a run that stops can resume with what it has not seen.

    Args:
        source_ids: The pieces of each source sentence, without begin and end.
        target_ids: The pieces of each target sentence, without begin and end.
        row_length: Tokens of a row on the longer side. Pairs with a side of more, the end counted, are left out.
        rows_per_batch: B.
        seed: With the epoch's number, decides the order.

    Attributes:
        source_length: S.
        target_length: T.
        num_pairs: The pairs of an epoch.
        num_left_out: The pairs that are too long.
        num_tokens: The source and target tokens of an epoch, each end counted, padding not.
        padding: The share of padding among the source and target ids of an epoch.

    Raises:
        ValueError: If an argument is out of range, the sides differ in number, or every pair is too long.

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
    ):
        if len(source_ids) != len(target_ids):
            raise ValueError(
                "Each source sentence needs its target sentence. "
                f"Received: {len(source_ids)} in `source_ids`, {len(target_ids)} in `target_ids`"
            )
        for name, value, least in (("row_length", row_length, 1), ("rows_per_batch", rows_per_batch, 1)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative. Received: seed={seed}")
        self.row_length, self.rows_per_batch, self.seed = row_length, rows_per_batch, seed
        self._source, self._target = Rows.from_ids(source_ids), Rows.from_ids(target_ids)
        lengths = np.stack([self._source.lengths, self._target.lengths], axis=1)  # (N, 2)
        self._kept = np.flatnonzero((lengths <= row_length).all(axis=1))
        self.num_pairs = len(self._kept)
        self.num_left_out = len(lengths) - self.num_pairs
        if not self.num_pairs:
            raise ValueError(
                f"No pair to train on: of {len(lengths)} pairs none has at most {row_length} tokens a side. "
                f"Received: row_length={row_length}"
            )
        lengths = lengths[self._sorted(self._kept)]
        self.num_tokens = int(lengths.sum())
        capacity = row_lengths(lengths, row_length)
        self.source_length, self.target_length = map(int, capacity)
        row_of_pair, self._num_rows = pack(lengths, capacity, rows_per_batch)
        self.padding = 1 - self.num_tokens / int(self._num_rows * capacity.sum())
        self._row_of_pair, self._place_in_row = row_of_pair, _count_within(row_of_pair)

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[tuple[str, str]],
        tokenizer: SubwordTokenizer,
        *,
        row_length: int = 256,
        rows_per_batch: int = 16,
        seed: int = 1,
    ) -> "PackedBatches":
        """Tokenises pairs of texts and packs them.

        Args:
            pairs: `(source, target)` texts.
            tokenizer: Turns both sides into pieces.
            row_length: See the class.
            rows_per_batch: See the class.
            seed: See the class.

        Returns:
            The batches.

        Raises:
            ValueError: If an argument is out of range or every pair is too long.
        """
        source_ids, target_ids = (tokenizer.encode([pair[side] for pair in pairs]) for side in (0, 1))
        return cls(source_ids, target_ids, row_length=row_length, rows_per_batch=rows_per_batch, seed=seed)

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return self._num_rows // self.rows_per_batch

    def plan(self, epoch: int) -> np.ndarray:
        """Says which pairs stand in which row of an epoch.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            Indices (batches, B, P) of pairs among those given to the constructor; -1 where a row has fewer.

        Raises:
            ValueError: If `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"`epoch` must not be negative. Received: epoch={epoch}")
        random = np.random.default_rng((self.seed, epoch))
        pairs = self._sorted(random.permutation(self._kept))
        rows = np.full((self._num_rows, int(self._place_in_row.max()) + 1), NO_PAIR)
        rows[self._row_of_pair, self._place_in_row] = pairs
        return random.permutation(rows).reshape(len(self), self.rows_per_batch, -1)

    def batch(self, rows: np.ndarray) -> Batch:
        """Lays out the rows of one batch.

        Args:
            rows: Indices (B, P) of pairs, such as an element of `plan`.

        Returns:
            `({"source": (B, S), "target": (B, T), …}, labels (B, T))`, int32, with "source_segments" (B, S) and
            "target_segments" (B, T) among the inputs. Each pair's source and labels are pieces and end; its target is
            begin and pieces, the labels one step later; segments count the pairs of a row from 1; the rest is 0.
        """
        rows = np.asarray(rows)
        source, source_segments, _ = _lay_out(self._source, rows, self.source_length)
        labels, target_segments, firsts = _lay_out(self._target, rows, self.target_length)
        target = np.where(target_segments > 0, np.roll(labels, 1), np.int32(PAD_ID))
        target.flat[firsts] = BOS_ID
        inputs = {"source": source, "target": target}
        return {**inputs, "source_segments": source_segments, "target_segments": target_segments}, labels

    def dataset(self, first_epoch: int = 0) -> tf.data.Dataset:
        """Makes the dataset that `model.fit` takes; each iteration over it is the next epoch.

        Args:
            first_epoch: The epoch of the first iteration: pass the number of finished epochs to resume.

        Returns:
            A dataset of what `batch` returns, of known shapes and cardinality, prefetched.

        Raises:
            ValueError: If `first_epoch` is negative.

        Example:
            >>> data = PackedBatches([[5], [6]], [[7], [8]], row_length=16, rows_per_batch=2).dataset()
            >>> len(data), data.element_spec[0]["source"]
            (1, TensorSpec(shape=(2, 16), dtype=tf.int32, name=None))
        """
        if first_epoch < 0:
            raise ValueError(f"`first_epoch` must not be negative. Received: first_epoch={first_epoch}")
        epochs = itertools.count(first_epoch)
        lengths = {"source": self.source_length, "target": self.target_length}
        lengths |= {f"{side}_segments": length for side, length in lengths.items()}

        def next_plan() -> np.ndarray:
            return self.plan(next(epochs))

        def flat_batch(rows: np.ndarray) -> list[np.ndarray]:
            inputs, labels = self.batch(rows)
            return [*(inputs[name] for name in lengths), labels]

        def batches_of_rows(_: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(tf.numpy_function(next_plan, [], tf.int64))

        def lay_out(rows: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            *inputs, labels = tf.numpy_function(flat_batch, [rows], [tf.int32] * 5)
            shapes = [(self.rows_per_batch, length) for length in (*lengths.values(), self.target_length)]
            *inputs, labels = map(tf.ensure_shape, (*inputs, labels), shapes)
            return dict(zip(lengths, inputs, strict=True)), labels

        # Not `from_generator`: it sets malloc's options, against those of `training.keep_freed_memory`.
        dataset = tf.data.Dataset.from_tensors(0).flat_map(batches_of_rows).map(lay_out)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(tf.data.AUTOTUNE)

    def summary(self) -> str:
        """Describes an epoch in one line: pairs, batches, padding, pairs left out.

        Returns:
            The line.

        Example:
            >>> PackedBatches([[5], [6] * 7], [[5], [6]], row_length=8, rows_per_batch=2).summary()
            'pairs: 2, batches: 1 of 2 packed rows of 8 and 8 tokens, padding: 56.2%, left out: 0 (over 8 tokens)'
        """
        return (
            f"pairs: {self.num_pairs:,}, batches: {len(self):,} of {self.rows_per_batch} packed rows of "
            f"{self.source_length:,} and {self.target_length:,} tokens, padding: {self.padding:.1%}, "
            f"left out: {self.num_left_out:,} (over {self.row_length} tokens)"
        )

    def _sorted(self, index: np.ndarray) -> np.ndarray:
        """Sorts pairs from long to short; a stable sort, so a shuffle before it decides among equals."""
        source, target = self._source.lengths[index], self._target.lengths[index]
        return index[np.lexsort((source, target, -np.maximum(source, target)))]


def _count_within(groups: np.ndarray) -> np.ndarray:
    """How many before each element belong to its group."""
    order = np.argsort(groups, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(groups)) - np.searchsorted(groups[order], groups[order])
    return places


def _lay_out(side: Rows, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids and segments (B, length) of one side, and where in the flat array each pair begins."""
    row, _ = np.nonzero(rows != NO_PAIR)  # (pairs,)
    pairs = rows[rows != NO_PAIR]  # (pairs,)
    lengths = side.lengths[pairs]
    before = lengths.cumsum() - lengths
    first_of_row = np.searchsorted(row, row)
    firsts = row * length + before - before[first_of_row]
    tokens = np.arange(lengths.sum())
    places = np.repeat(firsts - before, lengths) + tokens
    ids, segments = (np.full((len(rows), length), PAD_ID, np.int32) for _ in range(2))
    ids.flat[places] = side.ids[np.repeat(side.starts[pairs] - before, lengths) + tokens]
    segments.flat[places] = np.repeat(np.arange(len(pairs)) - first_of_row + 1, lengths)
    return ids, segments, firsts
