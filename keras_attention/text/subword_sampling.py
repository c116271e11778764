"""Subword sampling: other token ids of the same sentences in each epoch."""

import functools
import threading
from collections.abc import Sequence

from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.tokenizer import SubwordTokenizer

_CHUNK = 1024  # pairs that are tokenized at a time, with a seed of their own
# Sets the seeds apart from those of the order of an epoch and of its word dropout.
_PURPOSE = 2


class SubwordSampler:
    """Samples token ids of pairs of texts, which follow from the seed and the epoch only, chunk by chunk."""

    def __init__(self, pairs: Sequence[tuple[str, str]], tokenizer: SubwordTokenizer, dropout: float, seed: int):
        self._pairs, self._tokenizer, self._dropout, self._seed = list(pairs), tokenizer, dropout, seed
        self._num_chunks = -(-len(self._pairs) // _CHUNK)
        self._begun: dict[int, list[tuple[RaggedIds, RaggedIds]]] = {}  # the chunks of each epoch
        self._lock = threading.Lock()
        self.sample = functools.lru_cache(maxsize=1)(self._sample)

    def prepare(self, epoch: int, share: float) -> None:
        """Samples a share of an epoch in advance, so that little is left to do when the epoch starts."""
        with self._lock:
            # Of epochs that were begun and never started, such as the one after the last, only one stays in memory.
            for other in list(self._begun)[:-1]:
                if other != epoch:
                    del self._begun[other]
            chunks = self._begun.setdefault(epoch, [])
            while len(chunks) < share * self._num_chunks:
                chunks.append(self._sample_chunk(epoch, len(chunks)))

    def _sample(self, epoch: int) -> tuple[RaggedIds, RaggedIds]:
        """The token ids of all sources and all targets in an epoch."""
        self.prepare(epoch, share=1)
        with self._lock:
            source, target = zip(*self._begun.pop(epoch), strict=True)
        return RaggedIds.concatenate(source), RaggedIds.concatenate(target)

    def _sample_chunk(self, epoch: int, number: int) -> tuple[RaggedIds, RaggedIds]:
        sides = zip(*self._pairs[number * _CHUNK : (number + 1) * _CHUNK], strict=True)
        source, target = (
            RaggedIds.from_lists(
                self._tokenizer.sample(texts, self._dropout, seed=(self._seed, epoch, _PURPOSE, number, side))
            )
            for side, texts in enumerate(sides)
        )
        return source, target
