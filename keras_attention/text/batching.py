"""Batches of token ids: pairs of similar length together, as many as a budget of tokens allows."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_attention.text.sentencepiece_model import BOS_ID, EOS_ID, PAD_ID
from keras_attention.text.tokenizer import SubwordTokenizer

Batch = tuple[dict[str, np.ndarray], np.ndarray]


class TokenBatches:
    """Sentence pairs cut into batches by tokens instead of by sentences.

    Pairs are sorted by (target, source) length, so that a batch holds similar lengths and little padding, and cut
    wherever one pair more would make B · max(S, T) exceed `tokens_per_batch`. An epoch shuffles the pairs within
    equal lengths and the order of the batches; which it is follows from `(seed, epoch)` alone, so a run that stops
    can resume with what it has not seen. The tokens are laid out once, in flat arrays.

    Args:
        source_ids: The pieces of each source sentence, without begin and end.
        target_ids: The pieces of each target sentence, without begin and end.
        tokens_per_batch: The most tokens of a batch on either side, padding counted.
        max_length: Pairs with a side of more tokens, the end counted, are left out; so are those that exceed
            `tokens_per_batch` alone.
        seed: With the epoch's number, decides the order.
        shuffle: Whether each epoch has another order; if not, batches go from short to long.

    Attributes:
        num_pairs: The pairs of an epoch.
        num_left_out: The pairs that are too long.
        num_tokens: The source and target tokens of an epoch, each end counted, padding not.
        padding: The share of padding among the source and target ids of an epoch.
        max_length: The longest side a pair may have.

    Raises:
        ValueError: If an argument is out of range, the sides differ in number, or every pair is too long.

    Example:
        >>> batches = TokenBatches([[5], [6, 7], [8], [9]], [[5], [6], [7, 8], [9]], tokens_per_batch=8)
        >>> [index.tolist() for index in batches.plan(epoch=0)] == [index.tolist() for index in batches.plan(epoch=0)]
        True
        >>> inputs, labels = batches.batch([1, 2])
        >>> inputs["source"].tolist(), inputs["target"].tolist(), labels.tolist()
        ([[6, 7, 3], [8, 3, 0]], [[2, 6, 0], [2, 7, 8]], [[6, 3, 0], [7, 8, 3]])

    Source: Vaswani et al. 2017, section 5.1 ("sentence pairs were batched together by approximate sequence length").
    """

    def __init__(
        self,
        source_ids: Sequence[Sequence[int]],
        target_ids: Sequence[Sequence[int]],
        *,
        tokens_per_batch: int = 4096,
        max_length: int = 256,
        seed: int = 1,
        shuffle: bool = True,
    ):
        if len(source_ids) != len(target_ids):
            raise ValueError(
                "Each source sentence needs its target sentence. "
                f"Received: {len(source_ids)} in `source_ids`, {len(target_ids)} in `target_ids`"
            )
        for name, value, least in (("tokens_per_batch", tokens_per_batch, 1), ("max_length", max_length, 1)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative. Received: seed={seed}")
        self.tokens_per_batch, self.seed, self.shuffle = tokens_per_batch, seed, shuffle
        self.max_length = min(max_length, tokens_per_batch)
        self._source, self._target = Rows.from_ids(source_ids), Rows.from_ids(target_ids)
        widths = np.maximum(self._source.lengths, self._target.lengths)
        self._kept = np.flatnonzero(widths <= self.max_length)
        self.num_pairs = len(self._kept)
        self.num_left_out = len(widths) - self.num_pairs
        if not self.num_pairs:
            raise ValueError(
                f"No pair to train on: of {len(widths)} pairs none has at most {self.max_length} tokens a side. "
                f"Received: max_length={max_length}, tokens_per_batch={tokens_per_batch}"
            )
        # A shuffle exchanges pairs of equal lengths only, so every epoch has the same cuts and the same padding.
        order = self._sorted(self._kept)
        self._cuts = _cut(widths[order], tokens_per_batch)
        self.num_tokens = int(self._source.lengths[self._kept].sum() + self._target.lengths[self._kept].sum())
        cells = sum(
            len(index) * int(rows.lengths[index].max())
            for index in np.split(order, self._cuts)
            for rows in (self._source, self._target)
        )
        self.padding = 1 - self.num_tokens / cells

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[tuple[str, str]],
        tokenizer: SubwordTokenizer,
        *,
        tokens_per_batch: int = 4096,
        max_length: int = 256,
        seed: int = 1,
        shuffle: bool = True,
    ) -> "TokenBatches":
        """Tokenises pairs of texts and makes their batches.

        Args:
            pairs: `(source, target)` texts.
            tokenizer: Turns both sides into pieces.
            tokens_per_batch: See the class.
            max_length: See the class.
            seed: See the class.
            shuffle: See the class.

        Returns:
            The batches.

        Raises:
            ValueError: If an argument is out of range or every pair is too long.
        """
        source_ids, target_ids = (tokenizer.encode([pair[side] for pair in pairs]) for side in (0, 1))
        return cls(
            source_ids,
            target_ids,
            tokens_per_batch=tokens_per_batch,
            max_length=max_length,
            seed=seed,
            shuffle=shuffle,
        )

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return len(self._cuts) + 1

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Says which pairs stand in which batch of an epoch.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            For each batch in order, the indices of its pairs among those given to the constructor.

        Raises:
            ValueError: If `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"`epoch` must not be negative. Received: epoch={epoch}")
        if not self.shuffle:
            return np.split(self._sorted(self._kept), self._cuts)
        random = np.random.default_rng((self.seed, epoch))
        batches = np.split(self._sorted(random.permutation(self._kept)), self._cuts)
        return [batches[index] for index in random.permutation(len(batches))]

    def batch(self, index: Sequence[int] | np.ndarray) -> Batch:
        """Lays out the pairs of one batch.

        Args:
            index: Indices of pairs, such as an element of `plan`.

        Returns:
            `({"source": (B, S), "target": (B, T)}, labels (B, T))`, int32. Source and labels are pieces and end;
            target is begin and pieces, the labels one step later; the rest is padding.
        """
        index = np.asarray(index)
        labels = self._target.padded(index)  # (B, T)
        target = np.full_like(labels, BOS_ID)
        target[:, 1:] = np.where(labels[:, 1:] != PAD_ID, labels[:, :-1], PAD_ID)
        return {"source": self._source.padded(index), "target": target}, labels

    def dataset(self, first_epoch: int = 0) -> tf.data.Dataset:
        """Makes the dataset that `model.fit` takes; each iteration over it is the next epoch.

        Args:
            first_epoch: The epoch of the first iteration: pass the number of finished epochs to resume.

        Returns:
            A dataset of what `batch` returns, of known cardinality, prefetched.

        Raises:
            ValueError: If `first_epoch` is negative.

        Example:
            >>> data = TokenBatches([[5], [6]], [[7], [8]]).dataset()
            >>> len(data), data.element_spec[0]["source"].dtype
            (1, tf.int32)
        """
        if first_epoch < 0:
            raise ValueError(f"`first_epoch` must not be negative. Received: first_epoch={first_epoch}")
        epochs = itertools.count(first_epoch)

        def plan() -> tuple[np.ndarray, np.ndarray]:
            batches = self.plan(next(epochs))
            return np.concatenate(batches), np.array([len(index) for index in batches])

        def indices(_: tf.Tensor) -> tf.data.Dataset:
            index, sizes = tf.numpy_function(plan, [], (tf.int64, tf.int64))
            return tf.data.Dataset.from_tensor_slices(tf.RaggedTensor.from_row_lengths(index, sizes))

        def lay_out(index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            source, target, labels = tf.numpy_function(self._flat_batch, [index], 3 * [tf.int32])
            for ids in (source, target, labels):
                ids.set_shape((None, None))
            return {"source": source, "target": target}, labels

        # Not `from_generator`: it sets malloc's options, against those of `training.keep_freed_memory`.
        dataset = tf.data.Dataset.from_tensors(0).flat_map(indices).map(lay_out)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(tf.data.AUTOTUNE)

    def summary(self) -> str:
        """Describes an epoch in one line: pairs, batches, padding, pairs left out.

        Returns:
            The line.

        Example:
            >>> TokenBatches([[5], [6, 7], [8] * 9], [[5], [6], [7]], max_length=9).summary()
            'pairs: 2, batches: 1 of up to 4,096 tokens a side, padding: 10.0%, left out: 1 (over 9 tokens)'
        """
        return (
            f"pairs: {self.num_pairs:,}, batches: {len(self):,} of up to {self.tokens_per_batch:,} tokens a side, "
            f"padding: {self.padding:.1%}, left out: {self.num_left_out:,} (over {self.max_length} tokens)"
        )

    def _flat_batch(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs, labels = self.batch(index)
        return inputs["source"], inputs["target"], labels

    def _sorted(self, index: np.ndarray) -> np.ndarray:
        """Sorts pairs by target, then source length; a stable sort, so a shuffle before it decides among equals."""
        source, target = self._source.lengths[index], self._target.lengths[index]
        # Source lengths go up and down in turn: a batch that reaches into the next target length finds its like.
        return index[np.lexsort((np.where(target % 2, -source, source), target))]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of ids of different lengths, one after the other in one array; each ends with the end's id."""

    ids: np.ndarray  # (sum of lengths,)
    starts: np.ndarray  # (N,)
    lengths: np.ndarray  # (N,)

    @classmethod
    def from_ids(cls, rows: Sequence[Sequence[int]]) -> "Rows":
        ended = itertools.chain.from_iterable(itertools.chain(row, (EOS_ID,)) for row in rows)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + 1
        return cls(np.fromiter(ended, np.int32, int(lengths.sum())), lengths.cumsum() - lengths, lengths)

    def padded(self, index: np.ndarray) -> np.ndarray:
        lengths = self.lengths[index, None]
        columns = np.arange(lengths.max())
        # Positions past a row's end read its neighbour, or past the array: both give way to padding.
        ids = self.ids.take(self.starts[index, None] + columns, mode="clip")
        return np.where(columns < lengths, ids, np.int32(PAD_ID))


def _cut(widths: np.ndarray, tokens_per_batch: int) -> np.ndarray:
    """Says before which rows to cut, so that no batch has more than `tokens_per_batch` of rows times widest."""
    starts = [0]
    while starts[-1] < len(widths):
        candidates = widths[starts[-1] : starts[-1] + tokens_per_batch // widths[starts[-1]]]
        cells = np.maximum.accumulate(candidates) * np.arange(1, len(candidates) + 1)
        starts.append(starts[-1] + int(np.count_nonzero(cells <= tokens_per_batch)))
    return np.array(starts[1:-1], dtype=np.int64)
