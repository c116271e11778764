"""Token ids that differ from epoch to epoch."""

import functools
import threading
import weakref

from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.subword_sampling import SubwordSampler

_CHUNK = 1024  # pairs that are sampled at a time, with a seed of their own
# Sets the seeds apart from those of the order of an epoch and of its word dropout.
_PURPOSE = 2
_MAX_BEGUN = 2  # epochs, one for each dataset that takes batches at the same time


class SampledIds:
    """Other segmentations of the same pairs in each epoch, which follow from the seed and the epoch only."""

    def __init__(self, source: RaggedIds, target: RaggedIds, sampler: SubwordSampler, seed: int):
        self._sides, self._sampler, self._seed = (source, target), sampler, seed
        self._num_chunks = -(-len(source) // _CHUNK)
        self._begun: dict[int, list[tuple[RaggedIds, RaggedIds]]] = {}  # the chunks of each epoch
        self._lock = threading.Lock()
        this = weakref.ref(self)  # see `PairBatches`
        self.sample = functools.lru_cache(maxsize=1)(lambda epoch: this()._sample(epoch))

    def prepare(self, epoch: int, share: float) -> None:
        """Samples a share of an epoch in advance, so that little is left to do when the epoch starts."""
        with self._lock:
            self._extend(epoch, share)

    def _sample(self, epoch: int) -> tuple[RaggedIds, RaggedIds]:
        """Samples the token ids of all sources and all targets in an epoch."""
        with self._lock:
            self._extend(epoch, share=1)
            source, target = zip(*self._begun.pop(epoch), strict=True)
        return RaggedIds.concatenate(source), RaggedIds.concatenate(target)

    def _extend(self, epoch: int, share: float) -> None:
        if epoch not in self._begun:
            # Some epochs are begun but never started, such as the one after the last.
            for oldest in list(self._begun)[: 1 - _MAX_BEGUN]:
                del self._begun[oldest]
            self._begun[epoch] = []
        chunks = self._begun[epoch]
        while len(chunks) < share * self._num_chunks:
            number = len(chunks)
            source, target = (
                self._sampler.sample(
                    each.part(number * _CHUNK, (number + 1) * _CHUNK), (self._seed, epoch, _PURPOSE, number, side)
                )
                for side, each in enumerate(self._sides)
            )
            chunks.append((source, target))
