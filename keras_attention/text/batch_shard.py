"""The rows of each batch that one of several processes feeds to its devices."""

from typing import Any

import numpy as np

from keras_attention.layers.arguments import positive_integer
from keras_attention.text.batch_sequence import BatchSequence
from keras_attention.text.epoch_batches import Batch, EpochBatches
from keras_attention.text.packing import NO_PAIR, PackedBatches
from keras_attention.text.sentencepiece_model import PAD_ID


class BatchShard:
    """A share of the rows of every batch, for one of the processes that train a model together.

    Rows of padding, which the loss and the metrics of this package ignore, fill each batch up to a multiple of the
    number of devices. All processes have the same number of batches, and together the rows of the whole batches in
    their order.

    Args:
        batches: `TokenBatches`, `PackedBatches` or `StreamedBatches`.
        index: Index of the process.
        num_shards: Number of processes.
        num_devices: Number of devices of each process.

    Raises:
        ValueError: If a number is not positive, or `index` is not below `num_shards`.

    Example:
        >>> from keras_attention.text import BatchShard, TokenBatches
        >>> batches = TokenBatches([[5], [6], [7]], [[8], [9], [5]], tokens_per_batch=6)
        >>> shard = BatchShard(batches, index=1, num_shards=2)
        >>> shard.batch(batches.plan(0)[0])[0]["source"].shape, len(shard) == len(batches)
        ((2, 2), True)
    """

    def __init__(self, batches: EpochBatches, index: int = 0, num_shards: int = 1, num_devices: int = 1):
        self.batches = batches
        self.index = index
        self.num_shards = positive_integer(num_shards, "num_shards")
        self.num_devices = positive_integer(num_devices, "num_devices")
        if not 0 <= index < num_shards:
            raise ValueError(
                f"`index` counts the processes from 0, so it is below `num_shards`. Received: index={index}, "
                f"num_shards={num_shards}"
            )

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return len(self.batches)

    def plan(self, epoch: int) -> Any:
        """Returns the indices of the pairs of each whole batch: see `EpochBatches.plan`.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            The indices of each batch.
        """
        return self.batches.plan(epoch)

    def batch(self, index: np.ndarray, epoch: int = 0) -> Batch:
        """Makes the rows of this process of one batch.

        Args:
            index: An element of `plan`.
            epoch: The epoch of the plan.

        Returns:
            Inputs and labels: see `EpochBatches.batch`.
        """
        # The noise of word dropout is that of the whole batch.
        if isinstance(self.batches, PackedBatches) and not self.batches.source_word_dropout:
            return self.batches.batch(self._rows(np.asarray(index), NO_PAIR), epoch)
        return self._rows_of(self.batches.batch(index, epoch))

    def batch_of_each_shape(self) -> list[Batch]:
        """Returns the rows of a batch of padding of each shape: see `EpochBatches.batch_of_each_shape`.

        Returns:
            The batches.
        """
        return [self._rows_of(batch) for batch in self.batches.batch_of_each_shape()]

    def dataset(self, first_epoch: int = 0, first_batch: int = 0) -> BatchSequence:
        """Makes the dataset that `fit` takes: see `EpochBatches.dataset`.

        Args:
            first_epoch: The epoch of the first iteration.
            first_batch: The batch with which the first iteration begins.

        Returns:
            The batches.
        """
        return BatchSequence(self, first_epoch, first_batch)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the whole batches, so that a run may resume with another number of processes.

        Returns:
            See `EpochBatches.fingerprint`.
        """
        return self.batches.fingerprint()

    def _rows_of(self, batch: Batch) -> Batch:
        inputs, labels = batch
        return {name: self._rows(ids, PAD_ID) for name, ids in inputs.items()}, self._rows(labels, PAD_ID)

    def _rows(self, values: np.ndarray, fill: int) -> np.ndarray:
        """The rows (b, n) of this process of (B, n), filled up with rows of a number."""
        multiple = self.num_shards * self.num_devices
        size = -(-len(values) // multiple) * self.num_devices
        part = values[self.index * size : (self.index + 1) * size]
        return np.pad(part, [(0, size - len(part)), (0, 0)], constant_values=fill)
