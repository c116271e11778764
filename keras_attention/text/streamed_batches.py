"""Batches of text that does not fit into memory: a buffer of pairs at a time, tokenized while it is read.

Shapes: N pairs of a buffer, P pieces, B rows of a batch, S and T their source and target lengths.
"""

import dataclasses
import itertools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_attention.layers.arguments import fraction, positive_integer
from keras_attention.text.batching import TokenBatches
from keras_attention.text.epoch_batches import Batch, EpochBatches
from keras_attention.text.packing import PackedBatches
from keras_attention.text.pair_batches import PairBatches
from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.sampled_ids import SampledIds
from keras_attention.text.shards import Piece, ShardedPairs, is_usable
from keras_attention.text.subword_sampling import subword_sampler
from keras_attention.text.token_lengths import SLICE, TokenLengths, encode, first_lengths, is_within
from keras_attention.text.tokenizer import SubwordTokenizer

if TYPE_CHECKING:
    import tensorflow as tf

BUFFER_SIZE = 100_000
# Pieces of a buffer, each from another position of the text.
_PIECES = 8
# Sets the random numbers of the composition of the buffers apart from those of the epochs.
_COMPOSITION = 4


@dataclasses.dataclass(frozen=True)
class _Buffer:
    """The pieces of a buffer, sorted, and the counts of its batches."""

    pieces: list[Piece]
    num_pairs: int
    num_batches: int
    num_tokens: int
    num_cells: int


@dataclasses.dataclass(frozen=True)
class _FixedSample:
    """The interface of `SampledIds` for sentences of which only the lengths in the first epoch are known."""

    source: RaggedIds
    target: RaggedIds

    def sample(self, epoch: int) -> tuple[RaggedIds, RaggedIds]:
        """The same ids in each epoch."""
        return self.source, self.target


class StreamedBatches(EpochBatches):
    """The batches of `TokenBatches` or `PackedBatches` from text in shards, of which memory holds a part at a time.

    The shards are cut into pieces, and each buffer has pieces from random positions of the text. Its pairs are sorted
    by length and cut into batches as in `TokenBatches`, or packed as in `PackedBatches`. Each epoch has the buffers in
    another order, in each buffer other pairs of the same lengths together, and the batches of a buffer in another
    order. All of it follows from `(seed, epoch)` only. While the batches of a buffer are used, a thread reads and
    tokenizes the next one: two buffers are in memory.

    The constructor tokenizes the text once, for the number of batches and their lengths, and keeps the numbers of
    tokens of each line in a file of 8 bytes a pair (16 with `subword_dropout`). An epoch can then begin with any of its
    batches: only the buffer of that batch is read. Where buffers need lines from the middle of a file, the lines before
    them are read too, so files of some 100,000 lines are better than one large file.

    Args:
        pairs: The text.
        tokenizer: Tokenizer of both sides.
        batches: Class of the batches, `TokenBatches` or `PackedBatches`.
        buffer_size: Number of lines of a buffer. A larger one has less padding, and mixes the text better.
        folder: Folder for the file of the numbers of tokens, so that the next process need not tokenize the text for
            them; None for a temporary file.
        subword_dropout: Dropout of `SubwordTokenizer.sample`, at least 0 and below 1. See `PairBatches.from_pairs`.
        seed: Seed of the order, together with the epoch.
        **options: Other keyword arguments of the class of the batches.

    Attributes:
        num_pairs: Number of pairs in an epoch.
        num_left_out: Number of pairs that are too long.
        num_tokens: Number of source and target tokens in an epoch, EOS included, padding excluded.
        padding: Fraction of padding among the source and target ids of an epoch.
        max_length: The most tokens of a side of a pair, EOS included.

    Raises:
        TypeError: If `batches` is another class.
        ValueError: If an argument is out of range, or every pair is too long.

    Example:
        >>> import pathlib
        >>> from keras_attention.text import ShardedPairs, SubwordTokenizer
        >>> for name in ("c-0.en", "c-1.en", "c-0.de", "c-1.de"):
        ...     _ = pathlib.Path(name).write_text("one two\\nthree\\n", encoding="utf-8")
        >>> tokenizer = SubwordTokenizer.train(["c-0.en", "c-1.en"], vocabulary_size=14)
        >>> batches = StreamedBatches(ShardedPairs("c-*.en", "c-*.de"), tokenizer, tokens_per_batch=32, buffer_size=2)
        >>> batches.num_pairs, len(batches), len(batches.dataset())
        (4, 2, 2)

    Source: sorting within a buffer, Junczys-Dowmunt et al. 2018, "Marian" (arXiv 1804.00344), there "maxi-batches".
    """

    def __init__(
        self,
        pairs: ShardedPairs,
        tokenizer: SubwordTokenizer,
        batches: type[PairBatches] = TokenBatches,
        *,
        buffer_size: int = BUFFER_SIZE,
        folder: str | os.PathLike[str] | None = None,
        subword_dropout: float = 0.0,
        seed: int = 1,
        **options: Any,
    ):
        if batches not in (TokenBatches, PackedBatches):
            raise TypeError(f"`batches` must be TokenBatches or PackedBatches. Received: batches={batches!r}")
        self.buffer_size = positive_integer(buffer_size, "buffer_size")
        self._pairs, self._tokenizer, self._class, self._options = pairs, tokenizer, batches, options
        self._subword_dropout = fraction(subword_dropout, "subword_dropout")
        self.seed = seed
        self._template = batches([[]], [[]], seed=seed, **options)  # also checks the options
        self.max_length = self._template.max_length
        self._lengths = TokenLengths(pairs, tokenizer, folder, subword_dropout, seed)
        self._counts = self._lengths.counts(self.max_length)
        if not len(self._counts[0]):
            raise ValueError(
                f"No pair to train on: of {len(pairs)} pairs none has at most {self.max_length} tokens a side. "
                f"Received: {', '.join(f'{name}={value}' for name, value in options.items())}"
            )
        self._template._arrange_part(*self._counts, None)
        self._buffers = [self._count(number, pieces) for number, pieces in enumerate(self._compose())]
        self._num_batches = sum(each.num_batches for each in self._buffers)
        self.num_pairs = sum(each.num_pairs for each in self._buffers)
        self.num_left_out = len(pairs) - self.num_pairs
        self.num_tokens = sum(each.num_tokens for each in self._buffers)
        self.padding = 1 - self.num_tokens / sum(each.num_cells for each in self._buffers)
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, "keras_attention text")
        self._loaded: dict[tuple[int, int], Future] = {}  # by epoch and buffer
        self._last: tuple[int, PairBatches] | None = None  # the buffer that was read last

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        return self._num_batches

    def plan(self, epoch: int) -> np.ndarray:
        """Orders the batches of an epoch.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            Integers (batches, 2): the buffer of each batch, and the number of the batch in the buffer.

        Raises:
            ValueError: If `epoch` is negative.
        """
        order = self._order(epoch)
        counts = [self._buffers[number].num_batches for number in order]
        return np.stack([np.repeat(order, counts), np.concatenate([np.arange(count) for count in counts])], axis=1)

    def batch(self, position: Sequence[int] | np.ndarray, epoch: int = 0) -> Batch:
        """Makes the arrays of one batch, and has the next buffer read.

        Args:
            position: The buffer and the number of the batch, an element of `plan`.
            epoch: The epoch of the plan.

        Returns:
            The inputs and the labels: see the class of the batches.

        Raises:
            ValueError: If the text has changed since it was counted.
        """
        buffer, number = map(int, position)
        part, plan = self._buffer(buffer, epoch)
        return part.batch(plan[number], epoch)

    def buffer(self, number: int) -> PairBatches:
        """Reads a buffer.

        Args:
            number: The number of the buffer.

        Returns:
            Its batches.

        Raises:
            ValueError: If the text has changed since it was counted.
        """
        sides = []
        usable = filter(is_usable, self._pairs.lines(self._buffers[number].pieces))
        while part := list(itertools.islice(usable, SLICE)):
            sides.append(encode(self._tokenizer, part))
        source, target = (RaggedIds.concatenate(parts) for parts in zip(*sides, strict=True))
        sampled = None
        if self._subword_dropout:
            sampler = subword_sampler(self._tokenizer.model, self._subword_dropout)
            sampled = SampledIds(source, target, sampler, self._seed_of(number))
        batches = self._part(number, source, target, sampled, self._buffers[number].num_batches)
        self._check(number, batches)
        return batches

    def batch_of_each_shape(self) -> list[Batch]:
        return self._template.batch_of_each_shape()

    def token_counts(self, epoch: int) -> np.ndarray:
        """Counts the tokens and the ids of each batch, on both sides together: the averages over its buffer.

        Args:
            epoch: The epoch's number, from 0.

        Returns:
            Numbers (batches, 2): the tokens, EOS included and padding excluded, and the ids, padding included.
        """
        buffers = [self._buffers[number] for number in self._order(epoch)]
        means = [(each.num_tokens / each.num_batches, each.num_cells / each.num_batches) for each in buffers]
        return np.repeat(np.array(means), [each.num_batches for each in buffers], axis=0)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the batches of every epoch, so that a run does not resume with others.

        Returns:
            The arguments by name, and a checksum of the token ids.
        """
        return {
            **self._template.fingerprint(),
            "class": type(self).__name__,
            "batches": self._class.__name__,
            "buffer_size": self.buffer_size,
            "subword_dropout": self._subword_dropout,
            "token_ids": f"{len(self._pairs)} pairs, checksum {self._lengths.checksum}",
        }

    def summary(self) -> str:
        """Describes an epoch in one line: pairs, batches, padding, pairs left out, buffers.

        Returns:
            The line.
        """
        buffers = f"{len(self._buffers):,} buffer{'s' if len(self._buffers) > 1 else ''}"
        return (
            f"pairs: {self.num_pairs:,}, batches: {len(self):,} of {self._template._batch_size()}, "
            f"padding: {self.padding:.1%}, left out: {self.num_left_out:,} (over {self.max_length} tokens), "
            f"read in {buffers} of up to {self.buffer_size:,} lines"
        )

    def _element_spec(self) -> "tuple[dict[str, tf.TensorSpec], tf.TensorSpec]":
        return self._template._element_spec()

    def _plan_tensor(self, epoch: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        return tf.ensure_shape(tf.numpy_function(lambda epoch: self.plan(int(epoch)), [epoch], tf.int64), (None, 2))

    def _compose(self) -> list[list[Piece]]:
        """Cuts the shards into pieces, and puts them into buffers at random; the same in each epoch."""
        most = max(1, self.buffer_size // _PIECES)
        pieces = []
        for shard, num_lines in enumerate(self._pairs.num_lines):
            cuts = np.linspace(0, num_lines, -(-num_lines // most) + 1).round().astype(int).tolist()
            pieces += [Piece(shard, start, end - start) for start, end in itertools.pairwise(cuts)]
        order = np.random.default_rng((self.seed, 0, _COMPOSITION)).permutation(len(pieces))
        lines = np.array([pieces[index].num_lines for index in order])
        total = int(lines.sum())
        count = -(-total // self.buffer_size)
        middles = lines.cumsum() - lines / 2
        numbers = (middles * count / total).astype(int)  # ascending
        parts = np.split(order, np.searchsorted(numbers, range(1, count)))
        buffers = [sorted(pieces[index] for index in part) for part in parts if len(part)]
        return [part for part in buffers if is_within(self._lengths.read(part)[:, :2], self.max_length).any()]

    def _count(self, number: int, pieces: list[Piece]) -> _Buffer:
        """Counts the batches of a buffer by the lengths of its pairs."""
        rows = self._lengths.read(pieces)
        rows = rows[rows[:, 0] > 0]
        usual, first = first_lengths(rows, self.max_length)
        source, target, *sampled = (
            RaggedIds(np.empty(0, np.int32), np.zeros(len(rows), np.int64), each) for each in (*usual.T, *first.T)
        )
        sample = _FixedSample(*sampled) if self._subword_dropout else None
        part = self._part(number, source, target, sample, None)
        cells = round(part.num_tokens / (1 - part.padding))
        return _Buffer(pieces, part.num_pairs, len(part), part.num_tokens, cells)

    def _part(
        self, number: int, source: RaggedIds, target: RaggedIds, sampled: Any, num_batches: int | None
    ) -> PairBatches:
        """The batches of a buffer, with the shapes of all text."""
        part = self._class(source, target, seed=self._seed_of(number), **self._options)
        part._sampled = sampled
        part._arrange_part(*self._counts, num_batches)
        return part

    def _check(self, number: int, batches: PairBatches) -> None:
        """Raises an error if a buffer is not what was counted."""
        counted = self._buffers[number]
        if batches.num_pairs != counted.num_pairs or len(batches) != counted.num_batches:
            files = sorted({self._pairs.files[piece.shard][0] for piece in counted.pieces})
            raise ValueError(
                "The text has changed since its tokens were counted: restore the files, or begin anew. Received: "
                f"{batches.num_pairs} pairs in {len(batches)} batches instead of {counted.num_pairs} in "
                f"{counted.num_batches}, from {', '.join(files)}"
            )

    def _seed_of(self, number: int) -> int:
        """The seed of a buffer's order, so that buffers are not shuffled alike."""
        return int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])

    def _order(self, epoch: int) -> list[int]:
        """The order of the buffers in an epoch."""
        if epoch < 0:
            raise ValueError(f"`epoch` must not be negative. Received: epoch={epoch}")
        return np.random.default_rng((self.seed, epoch)).permutation(len(self._buffers)).tolist()

    def _buffer(self, number: int, epoch: int) -> tuple[PairBatches, Any]:
        """The batches of a buffer and their order; also begins to read the next buffer."""
        with self._lock:
            order = self._order(epoch)
            index = order.index(number) + 1
            following = (epoch, order[index]) if index < len(order) else (epoch + 1, self._order(epoch + 1)[0])
            wanted = [(epoch, number), following]
            self._loaded = {key: self._loaded.get(key) or self._reader.submit(self._load, *key) for key in wanted}
            future = self._loaded[wanted[0]]
        return future.result()

    def _load(self, epoch: int, number: int) -> tuple[PairBatches, Any]:
        if self._last is None or self._last[0] != number:
            self._last = None  # frees its memory first
            self._last = (number, self.buffer(number))
        batches = self._last[1]
        return batches, batches.plan(epoch)
