"""Batches of token ids: pairs of similar length together, as many as a budget of tokens allows.

Shapes: B rows of a batch, S and T their source and target lengths.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_attention.text.epoch_batches import Batch
from keras_attention.text.pair_batches import Epoch, PairBatches
from keras_attention.text.sentencepiece_model import BOS_ID, PAD_ID
from keras_attention.text.shape_ladder import cut as cut_into_shapes
from keras_attention.text.shape_ladder import ladder

if TYPE_CHECKING:
    import tensorflow as tf


class TokenBatches(PairBatches):
    """Sentence pairs in batches of a number of tokens instead of a number of sentences.

    Pairs are sorted by (target, source) length, so that a batch holds similar lengths and little padding, and cut
    wherever one more pair would make B · max(S, T) exceed `tokens_per_batch`. Each epoch shuffles the pairs of equal
    lengths and the order of the batches. The order follows from `(seed, epoch)` only, so that a run that stops can
    resume with the batches it has not seen.

    Args:
        source_ids: Token ids of each source sentence, without BOS and EOS.
        target_ids: Token ids of each target sentence, without BOS and EOS.
        tokens_per_batch: The most tokens of a batch on either side, padding included.
        max_length: Pairs with more tokens on a side, EOS included, are left out, as are those that exceed
            `tokens_per_batch` by themselves.
        seed: Seed of the order, together with the epoch.
        shuffle: Whether each epoch has another order. Without it, batches go from short to long.
        source_word_dropout: Probability with which a piece of a source, except its EOS, is replaced by the unknown
            piece, at least 0 and below 1. Each epoch replaces others.
        max_shapes: The most shapes of the batches, for a backend that compiles a program for each: pairs are padded on
            both sides to one of so many lengths, chosen for the least padding, and rows of padding fill up a batch. The
            loss and the metrics of this package ignore them. None for any number of shapes.

    Attributes:
        shapes: With `max_shapes`, the rows and the length of both sides of all batches, from short to long.
        num_pairs: Number of pairs in an epoch.
        num_left_out: Number of pairs that are too long.
        num_tokens: Number of source and target tokens in an epoch, EOS included, padding excluded.
        padding: Fraction of padding among the source and target ids of an epoch.
        max_length: The most tokens of a side of a pair, EOS included.

    Raises:
        ValueError: If an argument is out of range, the numbers of sentences differ, or every pair is too long.

    Example:
        >>> batches = TokenBatches([[5], [6, 7], [8], [9]], [[5], [6], [7, 8], [9]], tokens_per_batch=8)
        >>> [index.tolist() for index in batches.plan(epoch=0)] == [index.tolist() for index in batches.plan(epoch=0)]
        True
        >>> inputs, labels = batches.batch([1, 2])
        >>> inputs["source"].tolist(), inputs["target"].tolist(), labels.tolist()
        ([[6, 7, 3], [8, 3, 0]], [[2, 6, 0], [2, 7, 8]], [[6, 3, 0], [7, 8, 3]])

    Source: Vaswani et al. 2017, section 5.1 ("sentence pairs were batched together by approximate sequence length").
    Word dropout by an unknown word: Bowman et al. 2016 (arXiv 1511.06349); Xie et al. 2017, "Data Noising as Smoothing
    in Neural Network Language Models" (arXiv 1703.02573), which also applies it to translation.
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
        source_word_dropout: float = 0.0,
        max_shapes: int | None = None,
    ):
        sizes = {"max_length": max_length, "tokens_per_batch": tokens_per_batch}
        limit = min(sizes.values())
        if max_shapes is not None:
            sizes["max_shapes"] = max_shapes
        super().__init__(source_ids, target_ids, limit, seed, sizes, source_word_dropout)
        self.tokens_per_batch, self.shuffle, self.max_shapes = tokens_per_batch, shuffle, max_shapes
        self.shapes: list[tuple[int, int]] | None = None
        self._arrange()

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Assigns the pairs to the batches of an epoch.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            For each batch in order, the indices of its pairs among those given to the constructor.

        Raises:
            ValueError: If `epoch` is negative.
        """
        random = self._random_generator(epoch)
        each = self._epoch(epoch)
        if not self.shuffle:
            return np.split(self._sorted(self._kept, each.lengths), each.division)
        # A shuffle exchanges pairs of equal lengths only, so it changes neither the cuts nor the padding.
        batches = np.split(self._sorted(random.permutation(self._kept), each.lengths), each.division)
        return [batches[index] for index in random.permutation(len(batches))]

    def batch(self, index: Sequence[int] | np.ndarray, epoch: int = 0) -> Batch:
        """Makes the arrays of one batch.

        Args:
            index: Indices of pairs, such as an element of `plan`.
            epoch: The epoch, on which the ids depend if there is any dropout.

        Returns:
            `({"source": (B, S), "target": (B, T)}, labels (B, T))`, int32. Source and labels end with EOS; the target
            is BOS and the labels one position later. The rest is padding, also whole rows with `max_shapes`.
        """
        index = np.asarray(index)
        each = self._epoch(epoch)
        rows, source_length, target_length = self._shape(each.lengths, index)
        labels = each.target.padded(index, target_length)  # (B, T)
        target = np.full_like(labels, BOS_ID)
        target[:, 1:] = np.where(labels[:, 1:] != PAD_ID, labels[:, :-1], PAD_ID)
        source = self._drop_words(each.source.padded(index, source_length), index, epoch)
        padding = [(0, rows - len(index)), (0, 0)]
        source, target, labels = (np.pad(ids, padding, constant_values=PAD_ID) for ids in (source, target, labels))
        return {"source": source, "target": target}, labels

    def batch_of_each_shape(self) -> list[Batch]:
        empty = [np.full(shape, PAD_ID, np.int32) for shape in self.shapes or ()]
        return [({"source": ids, "target": ids}, ids) for ids in empty]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the batches of every epoch: see `PairBatches.fingerprint`.

        Returns:
            The arguments by name, and a checksum of the token ids.
        """
        return {**super().fingerprint(), "shuffle": self.shuffle}

    def _element_spec(self) -> "tuple[dict[str, tf.TensorSpec], tf.TensorSpec]":
        import tensorflow as tf

        spec = tf.TensorSpec((None, None), tf.int32)
        return {"source": spec, "target": spec}, spec

    def _plan_tensor(self, epoch: "tf.Tensor") -> "tf.RaggedTensor":
        import tensorflow as tf

        def flat_plan(epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            batches = self.plan(int(epoch))
            return np.concatenate(batches), np.array([len(index) for index in batches])

        return tf.RaggedTensor.from_row_lengths(*tf.numpy_function(flat_plan, [epoch], (tf.int64, tf.int64)))

    def _batch_size(self) -> str:
        shapes = "" if self.shapes is None else f" in {len(self.shapes)} shape{'s' if len(self.shapes) > 1 else ''}"
        return f"up to {self.tokens_per_batch:,} tokens a side{shapes}"

    def _longest(self, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
        if self.max_shapes is None:
            return np.full(2, self.max_length)
        self._ladder = ladder(lengths.max(axis=1), self.max_shapes, counts)
        self.shapes = [(self.tokens_per_batch // length, length) for length in self._ladder.tolist()]
        return np.full(2, self._ladder[-1])

    def _divide(self, lengths: np.ndarray) -> tuple[np.ndarray, int]:
        widths = lengths[self._sorted(self._kept, lengths)].max(axis=1)
        if self.shapes is None:
            cuts = _cut(widths, self.tokens_per_batch)
        else:
            cuts = cut_into_shapes(widths, self._ladder, self.tokens_per_batch)
        return cuts, len(cuts) + 1

    def _shape(self, lengths: np.ndarray, index: np.ndarray) -> tuple[int, int, int]:
        """The rows and the source and target length of a batch."""
        longest = lengths[index].max(axis=0)
        if self.shapes is None:
            return len(index), *longest.tolist()
        rows, length = self.shapes[int(np.searchsorted(self._ladder, longest.max()))]
        return max(rows, len(index)), length, length

    def _spread(self, division: np.ndarray) -> np.ndarray:
        bounds = [0, *division.tolist(), self.num_pairs]
        while len(bounds) <= len(self):
            sizes = np.diff(bounds)
            fullest = int(sizes.argmax())
            bounds.insert(fullest + 1, bounds[fullest] + int(sizes[fullest]) // 2)
        return np.array(bounds[1:-1], dtype=np.int64)

    def _count(self, lengths: np.ndarray, index: np.ndarray) -> tuple[int, int]:
        rows, source, target = self._shape(lengths, index)
        return int(lengths[index].sum()), rows * (source + target)

    def _num_cells(self, epoch: Epoch) -> int:
        batches = np.split(self._sorted(self._kept, epoch.lengths), epoch.division)
        return sum(self._count(epoch.lengths, index)[1] for index in batches)

    def _sorted(self, index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Sorts pairs by target, then source length; a stable sort, so a shuffle before it decides among equals."""
        if self.shapes is not None:  # both sides have the length of the longer
            return index[np.argsort(lengths[index].max(axis=1), kind="stable")]
        source, target = lengths[index].T
        # Source lengths rise and fall in turn, so that a batch with two target lengths has similar source lengths.
        return index[np.lexsort((np.where(target % 2, -source, source), target))]


def _cut(widths: np.ndarray, tokens_per_batch: int) -> np.ndarray:
    """The indices of the rows that begin a batch, so that rows times the widest is at most `tokens_per_batch`."""
    starts = [0]
    while starts[-1] < len(widths):
        candidates = widths[starts[-1] : starts[-1] + tokens_per_batch // widths[starts[-1]]]
        cells = np.maximum.accumulate(candidates) * np.arange(1, len(candidates) + 1)
        starts.append(starts[-1] + int(np.count_nonzero(cells <= tokens_per_batch)))
    return np.array(starts[1:-1], dtype=np.int64)
