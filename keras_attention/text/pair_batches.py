"""The common base of token batches and packed batches: pairs of token ids, their length limit, their dataset.

Shapes: N pairs, B rows of a batch, S and T their source and target lengths.
"""

import abc
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from keras_attention.text.sentencepiece_model import EOS_ID, PAD_ID
from keras_attention.text.tokenizer import SubwordTokenizer

Batch = tuple[dict[str, np.ndarray], np.ndarray]


class PairBatches(abc.ABC):
    """Base class: batches of the pairs within a length, in an order that follows from the seed and the epoch only."""

    padding: float

    def __init__(
        self,
        source_ids: Sequence[Sequence[int]],
        target_ids: Sequence[Sequence[int]],
        max_length: int,
        seed: int,
        sizes: Mapping[str, int],  # the arguments of the subclass that must be positive
    ):
        if len(source_ids) != len(target_ids):
            raise ValueError(
                "Each source sentence needs its target sentence. "
                f"Received: {len(source_ids)} in `source_ids`, {len(target_ids)} in `target_ids`"
            )
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative. Received: seed={seed}")
        self.max_length, self.seed = max_length, seed
        self._source, self._target = RaggedIds.from_lists(source_ids), RaggedIds.from_lists(target_ids)
        self._lengths = np.stack([self._source.lengths, self._target.lengths], axis=1)  # (N, 2)
        self._kept = np.flatnonzero((self._lengths <= max_length).all(axis=1))
        self.num_pairs = len(self._kept)
        self.num_left_out = len(self._lengths) - self.num_pairs
        if not self.num_pairs:
            received = ", ".join(f"{name}={value}" for name, value in sizes.items())
            raise ValueError(
                f"No pair to train on: of {len(self._lengths)} pairs none has at most {max_length} tokens a side. "
                f"Received: {received}"
            )
        self.num_tokens = int(self._lengths[self._kept].sum())

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[str, str]], tokenizer: SubwordTokenizer, **options: Any) -> Self:
        """Tokenises pairs of texts and makes their batches.

        Args:
            pairs: `(source, target)` texts.
            tokenizer: Tokenizer of both sides.
            **options: Keyword arguments of the class.

        Returns:
            The batches.

        Raises:
            ValueError: If an argument is out of range or every pair is too long.
        """
        source_ids, target_ids = (tokenizer.encode([pair[side] for pair in pairs]) for side in (0, 1))
        return cls(source_ids, target_ids, **options)

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of batches of an epoch."""

    @abc.abstractmethod
    def plan(self, epoch: int) -> Sequence[np.ndarray] | np.ndarray:
        """Returns the indices of the pairs of each batch."""

    @abc.abstractmethod
    def batch(self, index: np.ndarray) -> Batch:
        """Returns the inputs and labels of one batch."""

    def dataset(self, first_epoch: int = 0) -> tf.data.Dataset:
        """Makes the dataset that `model.fit` takes; each iteration over it is the next epoch.

        Args:
            first_epoch: The epoch of the first iteration; to resume, the number of finished epochs.

        Returns:
            A dataset of the batches, with their static shapes and a known cardinality, prefetched.

        Raises:
            ValueError: If `first_epoch` is negative.

        Example:
            >>> from keras_attention.text import PackedBatches, TokenBatches
            >>> data = TokenBatches([[5], [6]], [[7], [8]]).dataset()
            >>> len(data), data.element_spec[0]["source"]
            (1, TensorSpec(shape=(None, None), dtype=tf.int32, name=None))
            >>> data = PackedBatches([[5], [6]], [[7], [8]], row_length=16, rows_per_batch=2).dataset()
            >>> len(data), data.element_spec[0]["source"]
            (1, TensorSpec(shape=(2, 16), dtype=tf.int32, name=None))
        """
        if first_epoch < 0:
            raise ValueError(f"`first_epoch` must not be negative. Received: first_epoch={first_epoch}")
        epochs = itertools.count(first_epoch)
        spec = self._element_spec()

        def next_plan(_: tf.Tensor) -> tf.data.Dataset:
            epoch = tf.numpy_function(lambda: next(epochs), [], tf.int64)
            return tf.data.Dataset.from_tensor_slices(self._plan_tensor(epoch))

        def make_batch(index: tf.Tensor) -> Any:
            dtypes = [each.dtype for each in tf.nest.flatten(spec)]
            arrays = tf.numpy_function(lambda index: tf.nest.flatten(self.batch(index)), [index], dtypes)
            batch = tf.nest.pack_sequence_as(spec, arrays)
            return tf.nest.map_structure(lambda array, each: tf.ensure_shape(array, each.shape), batch, spec)

        # Not `from_generator`: it sets malloc's options, against those of `training.keep_freed_memory`.
        dataset = tf.data.Dataset.from_tensors(0).flat_map(next_plan).map(make_batch)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(tf.data.AUTOTUNE)

    def summary(self) -> str:
        """Describes an epoch in one line: pairs, batches, padding, pairs left out.

        Returns:
            The line.

        Example:
            >>> from keras_attention.text import PackedBatches, TokenBatches
            >>> TokenBatches([[5], [6, 7], [8] * 9], [[5], [6], [7]], max_length=9).summary()
            'pairs: 2, batches: 1 of up to 4,096 tokens a side, padding: 10.0%, left out: 1 (over 9 tokens)'
            >>> PackedBatches([[5], [6] * 7], [[5], [6]], row_length=8, rows_per_batch=2).summary()
            'pairs: 2, batches: 1 of 2 packed rows of 8 and 8 tokens, padding: 56.2%, left out: 0 (over 8 tokens)'
        """
        return (
            f"pairs: {self.num_pairs:,}, batches: {len(self):,} of {self._batch_size()}, "
            f"padding: {self.padding:.1%}, left out: {self.num_left_out:,} (over {self.max_length} tokens)"
        )

    @abc.abstractmethod
    def _element_spec(self) -> tuple[dict[str, tf.TensorSpec], tf.TensorSpec]:
        """The specification of a batch in the dataset."""

    @abc.abstractmethod
    def _plan_tensor(self, epoch: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """The plan of an epoch in a graph, with a row for each batch."""

    @abc.abstractmethod
    def _batch_size(self) -> str:
        """Describes the size of a batch, for the summary."""

    def _random_generator(self, epoch: int) -> np.random.Generator:
        """The random numbers of an epoch, from its number and the seed only, so that a resumed run repeats them."""
        if epoch < 0:
            raise ValueError(f"`epoch` must not be negative. Received: epoch={epoch}")
        return np.random.default_rng((self.seed, epoch))


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

    def padded(self, index: np.ndarray) -> np.ndarray:
        """The sentences of these indices as a padded array (B, longest)."""
        lengths = self.lengths[index, None]
        columns = np.arange(lengths.max())
        # Positions past a sentence's end read the next sentence, or past the array: padding replaces both.
        ids = self.ids.take(self.starts[index, None] + columns, mode="clip")
        return np.where(columns < lengths, ids, np.int32(PAD_ID))
