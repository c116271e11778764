"""Batches that epochs have in an order of their own, and the dataset of them that `model.fit` takes.

Shapes: B rows of a batch, S and T their source and target lengths.
"""

import abc
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_attention.extras import is_installed
from keras_attention.text.batch_sequence import BatchSequence

if TYPE_CHECKING:
    import tensorflow as tf

Batch = tuple[dict[str, np.ndarray], np.ndarray]


class EpochBatches(abc.ABC):
    """Base class: the batches of an epoch follow from its number, so that a dataset begins with any of them."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of batches of an epoch."""

    @abc.abstractmethod
    def plan(self, epoch: int) -> Sequence[np.ndarray] | np.ndarray:
        """Returns the indices of the pairs of each batch."""

    @abc.abstractmethod
    def batch(self, index: np.ndarray, epoch: int = 0) -> Batch:
        """Returns the inputs and labels of one batch."""

    @abc.abstractmethod
    def batch_of_each_shape(self) -> list[Batch]:
        """Returns a batch of padding of each shape, to compile a step before training; none for any number of shapes.

        Returns:
            The batches.

        Example:
            >>> from keras_attention.text import TokenBatches
            >>> batches = TokenBatches([[5], [6] * 7], [[7], [8]], tokens_per_batch=16, max_shapes=2)
            >>> batches.shapes, [labels.shape for _, labels in batches.batch_of_each_shape()]
            ([(8, 2), (2, 8)], [(8, 2), (2, 8)])
        """

    def dataset(self, first_epoch: int = 0, first_batch: int = 0) -> "tf.data.Dataset | BatchSequence":
        """Makes the dataset that `model.fit` takes; each iteration over it is the next epoch.

        Args:
            first_epoch: The epoch of the first iteration; to resume, the number of finished epochs.
            first_batch: The batch with which the first iteration begins; to resume within an epoch, the number of its
                batches that are done. They are not made again.

        Returns:
            A dataset of the batches, with their static shapes, prefetched. Its cardinality is known unless the first
            iteration is shorter than the others. Where TensorFlow is not installed, a `BatchSequence`.

        Raises:
            ValueError: If `first_epoch` is negative, or an epoch has no such `first_batch`.

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
        if not 0 <= first_batch < len(self):
            raise ValueError(
                f"`first_batch` must be at least 0 and below {len(self)}, the number of batches of an epoch. "
                f"Received: first_batch={first_batch}"
            )
        starts = itertools.chain(
            [(first_epoch, first_batch)], zip(itertools.count(first_epoch + 1), itertools.repeat(0))
        )
        if not is_installed("tensorflow"):
            return BatchSequence(self, first_epoch, first_batch)
        import tensorflow as tf

        spec = self._element_spec()

        def next_plan(_: "tf.Tensor") -> "tf.data.Dataset":
            epoch, first = tf.numpy_function(lambda: next(starts), [], (tf.int64, tf.int64))
            plan = tf.data.Dataset.from_tensor_slices(self._plan_tensor(epoch)[first:])
            return plan.enumerate(first).map(lambda number, index: (epoch, number, index))

        def arrays_of(epoch: np.ndarray, number: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
            self._prepare(int(epoch), int(number))
            return tf.nest.flatten(self.batch(index, int(epoch)))

        def make_batch(*position: "tf.Tensor") -> Any:
            dtypes = [each.dtype for each in tf.nest.flatten(spec)]
            arrays = tf.numpy_function(arrays_of, position, dtypes)
            batch = tf.nest.pack_sequence_as(spec, arrays)
            return tf.nest.map_structure(lambda array, each: tf.ensure_shape(array, each.shape), batch, spec)

        # Not `from_generator`: it sets malloc's options, against those of `training.keep_freed_memory`.
        dataset = tf.data.Dataset.from_tensors(0).flat_map(next_plan).map(make_batch)
        if first_batch == 0:
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(self)))
        return dataset.prefetch(tf.data.AUTOTUNE)

    def _prepare(self, epoch: int, number: int) -> None:  # noqa: B027  most batches need no preparation
        """Does a part of the work of later batches, before the batch of this number is made."""

    @abc.abstractmethod
    def _element_spec(self) -> "tuple[dict[str, tf.TensorSpec], tf.TensorSpec]":
        """The specification of a batch in the dataset."""

    @abc.abstractmethod
    def _plan_tensor(self, epoch: "tf.Tensor") -> "tf.Tensor | tf.RaggedTensor":
        """The plan of an epoch in a graph, with a row for each batch."""
