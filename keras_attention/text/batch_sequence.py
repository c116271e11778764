"""Batches for `model.fit` without TensorFlow, one epoch after the other."""

from collections.abc import Iterator
from typing import Any

import keras


class BatchSequence(keras.utils.PyDataset):
    """The batches of a `TokenBatches` or `PackedBatches`, in their order; pass `shuffle=False` to `fit`.

    Args:
        batches: The batches.
        first_epoch: The epoch of the first iteration.
        first_batch: The batch with which the first iteration begins.

    Example:
        >>> from keras_attention.text import TokenBatches
        >>> data = BatchSequence(TokenBatches([[5], [6]], [[7], [8]], tokens_per_batch=2))
        >>> len(data), data[0][1].tolist() in ([[7, 3]], [[8, 3]])
        (2, True)
    """

    def __init__(self, batches: Any, first_epoch: int = 0, first_batch: int = 0):
        super().__init__()
        self._batches, self._epoch, self._first_batch = batches, first_epoch, first_batch
        self._plan = batches.plan(first_epoch)

    def __len__(self) -> int:
        return len(self._plan) - self._first_batch

    def __getitem__(self, index: int) -> Any:
        return self._batches.batch(self._plan[self._first_batch + index], self._epoch)

    def repeat(self) -> Iterator[Any]:
        """Yields the batches of all epochs, without end, as `ResumableRun` passes them to `fit`.

        Yields:
            A batch.
        """
        while True:
            for index in range(len(self)):
                yield self[index]
            self.on_epoch_end()

    def on_epoch_end(self) -> None:
        """Goes to the next epoch."""
        self._epoch, self._first_batch = self._epoch + 1, 0
        self._plan = self._batches.plan(self._epoch)
