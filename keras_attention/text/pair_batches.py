"""The common base of token batches and packed batches: pairs of token ids, their length limit, their dataset.

Shapes: N pairs, B rows of a batch, S and T their source and target lengths.
"""

import abc
import dataclasses
import functools
import weakref
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from keras_attention.layers.arguments import fraction
from keras_attention.text.epoch_batches import EpochBatches
from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.sampled_ids import SampledIds
from keras_attention.text.sentencepiece_model import EOS_ID, PAD_ID, UNK_ID
from keras_attention.text.subword_sampling import subword_sampler
from keras_attention.text.tokenizer import SubwordTokenizer

# Sets the random numbers of word dropout apart from those of the order of an epoch.
_WORD_DROPOUT = 1


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The token ids of the pairs in an epoch, and how the pairs, sorted by these lengths, fill the batches."""

    source: RaggedIds
    target: RaggedIds
    division: np.ndarray

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The source and the target length of each pair (N, 2)."""
        return pair_lengths(self.source, self.target)


class PairBatches(EpochBatches):
    """Base class: batches of the pairs within a length, in an order that follows from the seed and the epoch only."""

    padding: float
    _min_rows = 1  # of a batch

    def __init__(
        self,
        source_ids: Sequence[Sequence[int]] | RaggedIds,
        target_ids: Sequence[Sequence[int]] | RaggedIds,
        max_length: int,
        seed: int,
        sizes: Mapping[str, int],  # the arguments of the subclass that must be positive
        source_word_dropout: float,
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
        self.source_word_dropout = fraction(source_word_dropout, "source_word_dropout")
        self.max_length, self.seed = max_length, seed
        self._sizes = dict(sizes)
        self._subword_dropout = 0.0
        self._source, self._target = (
            ids if isinstance(ids, RaggedIds) else RaggedIds.from_lists(ids) for ids in (source_ids, target_ids)
        )
        self._lengths = pair_lengths(self._source, self._target)  # (N, 2)
        self._kept = np.flatnonzero((self._lengths <= max_length).all(axis=1))
        self.num_pairs = len(self._kept)
        self.num_left_out = len(self._lengths) - self.num_pairs
        if not self.num_pairs:
            received = ", ".join(f"{name}={value}" for name, value in sizes.items())
            raise ValueError(
                f"No pair to train on: of {len(self._lengths)} pairs none has at most {max_length} tokens a side. "
                f"Received: {received}"
            )
        self._sampled: SampledIds | None = None
        # Without a cycle of references, so that the arrays are freed as soon as nothing uses these batches.
        this = weakref.ref(self)
        self._sampled_epoch = functools.lru_cache(maxsize=2)(lambda number: this()._sample_epoch(number))

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[tuple[str, str]],
        tokenizer: SubwordTokenizer,
        *,
        subword_dropout: float = 0.0,
        **options: Any,
    ) -> Self:
        """Tokenises pairs of texts and makes their batches.

        With `subword_dropout`, each epoch has other segmentations, which follow from the seed and the epoch only. Those
        of the next epoch are sampled little by little while the batches of an epoch are made. All epochs have the same
        pairs, and as many batches as the first needs and a few more. A pair that becomes too long for the batches keeps
        its usual segmentation in that epoch. `num_tokens` and `padding` are those of the first epoch.

        Args:
            pairs: `(source, target)` texts.
            tokenizer: Tokenizer of both sides.
            subword_dropout: Dropout of `SubwordTokenizer.sample`, at least 0 and below 1. 0.0 gives each epoch the ids
                of `SubwordTokenizer.encode`.
            **options: Keyword arguments of the class.

        Returns:
            The batches.

        Raises:
            ValueError: If an argument is out of range, every pair is too long, or the tokenizer cannot sample.
        """
        fraction(subword_dropout, "subword_dropout")
        source_ids, target_ids = (tokenizer.encode([pair[side] for pair in pairs]) for side in (0, 1))
        batches = cls(source_ids, target_ids, **options)
        if subword_dropout:
            batches._subword_dropout = subword_dropout
            sampler = subword_sampler(tokenizer.model, subword_dropout)
            batches._sampled = SampledIds(batches._source, batches._target, sampler, batches.seed)
            batches._arrange()
        return batches

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return self._num_batches

    def token_counts(self, epoch: int) -> np.ndarray:
        """Counts the tokens and the ids of each batch, on both sides together.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            Integers (batches, 2): the tokens, EOS included and padding excluded, and the ids, padding included.

        Example:
            >>> from keras_attention.text import PackedBatches, TokenBatches
            >>> TokenBatches([[5], [6, 7]], [[5], [6]]).token_counts(epoch=0).tolist()  # 2 rows of 3 and 2 ids
            [[9, 10]]
            >>> PackedBatches([[5], [6, 7]], [[5], [6]], row_length=8, rows_per_batch=1).token_counts(0).tolist()
            [[9, 16]]
        """
        lengths = self._epoch(epoch).lengths
        return np.array([self._count(lengths, index) for index in self.plan(epoch)])

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the batches of every epoch, so that a run does not resume with others.

        Returns:
            The arguments by name, and a checksum of the token ids.

        Example:
            >>> from keras_attention.text import TokenBatches
            >>> first, second = TokenBatches([[5]], [[7]]), TokenBatches([[5]], [[8]])
            >>> sorted(name for name, value in first.fingerprint().items() if second.fingerprint()[name] != value)
            ['token_ids']
        """
        checksum = 0
        for side in (self._source, self._target):
            for array in (side.lengths, side.ids):
                checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
        return {
            "class": type(self).__name__,
            **self._sizes,
            "seed": self.seed,
            "source_word_dropout": self.source_word_dropout,
            "subword_dropout": self._subword_dropout,
            "token_ids": f"{len(self._lengths)} pairs, checksum {checksum:08x}",
        }

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

    def _prepare(self, epoch: int, number: int) -> None:
        if self._sampled is not None:
            self._sampled.prepare(epoch + 1, share=(number + 1) / len(self))

    @abc.abstractmethod
    def _batch_size(self) -> str:
        """Describes the size of a batch, for the summary."""

    @abc.abstractmethod
    def _longest(self, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Returns the most tokens of a source and of a target (2,), for these lengths (K, 2) of `counts` pairs (K,)."""

    @abc.abstractmethod
    def _divide(self, lengths: np.ndarray) -> tuple[np.ndarray, int]:
        """Divides the pairs into batches by their lengths (N, 2); also returns the number of batches."""

    @abc.abstractmethod
    def _spread(self, division: np.ndarray) -> np.ndarray:
        """Divides the fullest batches of an epoch, so that it has as many as the other epochs."""

    @abc.abstractmethod
    def _count(self, lengths: np.ndarray, index: np.ndarray) -> tuple[int, int]:
        """The number of tokens, and of ids with padding, of a batch of `plan` with pairs of these lengths (N, 2)."""

    @abc.abstractmethod
    def _num_cells(self, epoch: Epoch) -> int:
        """The number of source and target ids in the batches of an epoch, padding included."""

    def _arrange(self) -> None:
        """Sets what all epochs share, such as the number of batches, by the lengths of the first epoch."""
        lengths = self._first_lengths()
        longest = np.maximum(lengths, self._lengths)[self._kept]
        self._limits = self._longest(longest, np.ones(len(longest), np.int64))
        self._count_batches(lengths)

    def _arrange_part(self, lengths: np.ndarray, counts: np.ndarray, num_batches: int | None) -> None:
        """Sets the same for a part of a text with these lengths (K, 2), each of a number of pairs (K,)."""
        self._limits = self._longest(lengths, counts)
        if self._sampled is None or num_batches is None:
            self._count_batches(self._first_lengths())
        else:
            self._num_batches = num_batches

    def _first_lengths(self) -> np.ndarray:
        """The lengths of the pairs (N, 2) in the first epoch."""
        if self._sampled is None:
            return self._lengths
        sampled = pair_lengths(*self._sampled.sample(0))
        return np.where((sampled <= self.max_length).all(axis=1, keepdims=True), sampled, self._lengths)

    def _count_batches(self, lengths: np.ndarray) -> None:
        """Sets the number of batches, and of the tokens and the padding in them, for these lengths (N, 2)."""
        division, self._num_batches = self._divide(lengths)
        if self._sampled is None:
            self._unsampled = Epoch(self._source, self._target, division)
        else:
            # Other epochs need some batches more or less. Enough batches for all pairs as they are without sampling
            # make sure that every epoch can fit; each row of a batch has at least one pair.
            spare = min(1 + self._num_batches // 200, self.num_pairs // self._min_rows - self._num_batches)
            self._num_batches = max(self._num_batches + max(spare, 0), self._divide(self._lengths)[1])
        first = self._epoch(0)
        self.num_tokens = int(first.lengths[self._kept].sum())
        self.padding = 1 - self.num_tokens / self._num_cells(first)

    def _epoch(self, number: int) -> Epoch:
        """The ids of an epoch and their division into batches."""
        return self._unsampled if self._sampled is None else self._sampled_epoch(number)

    def _sample_epoch(self, number: int) -> Epoch:
        """Samples the ids of an epoch, except those of pairs that would not fit."""
        source, target = self._sampled.sample(number)
        sampled = pair_lengths(source, target)
        growth = (sampled - self._lengths).max(axis=1)
        fits = (sampled <= self._limits).all(axis=1)
        while True:
            division, needed = self._divide(np.where(fits[:, None], sampled, self._lengths))
            if needed <= len(self):
                break
            # The pairs that grow most keep their usual ids.
            fits &= growth < growth[fits].max()
        if not fits.all():
            source, target = source.where(fits, self._source), target.where(fits, self._target)
        return Epoch(source, target, self._spread(division))

    def _drop_words(self, source: np.ndarray, index: np.ndarray, epoch: int) -> np.ndarray:
        """Replaces random pieces of the sources of a batch (B, S) by the unknown piece."""
        if not self.source_word_dropout:
            return source
        # The largest index of a pair is in one batch only, so it seeds the random numbers of that batch.
        random = np.random.default_rng((self.seed, epoch, _WORD_DROPOUT, int(index.max())))
        dropped = random.random(source.shape) < self.source_word_dropout
        return np.where(dropped & (source != EOS_ID) & (source != PAD_ID), np.int32(UNK_ID), source)

    def _random_generator(self, epoch: int) -> np.random.Generator:
        """The random numbers of an epoch, from its number and the seed only, so that a resumed run repeats them."""
        if epoch < 0:
            raise ValueError(f"`epoch` must not be negative. Received: epoch={epoch}")
        return np.random.default_rng((self.seed, epoch))


def pair_lengths(source: RaggedIds, target: RaggedIds) -> np.ndarray:
    """The source and the target length of each pair (N, 2)."""
    return np.stack([source.lengths, target.lengths], axis=1)  # (N, 2)
