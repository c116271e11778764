"""Batches of rows of one length without padding, which accelerators want, and a side that trains on them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.side import Task, useful_flops
from benchmarks.tools.sentences import FIRST_PIECE
from benchmarks.tools.workers import Work

# Batches that take turns; they wait in the machine's own memory.
BATCHES = 8


def batches(task: Task) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Source, target and labels, each (rows, row_length) of random ids."""
    random = np.random.default_rng(1)
    shape = (3, task.rows, task.row_length)
    return [tuple(random.integers(FIRST_PIECE, task.vocabulary_size, shape, dtype="int32")) for _ in range(BATCHES)]


def segments(task: Task) -> np.ndarray:
    """Which of the pairs in its row each token belongs to, (rows, row_length), from 1."""
    pairs = task.options["pairs_per_row"]
    return np.tile(np.arange(task.row_length, dtype="int32") * pairs // task.row_length + 1, (task.rows, 1))


@dataclass(frozen=True)
class DecodedRows:
    """What is decoded: random ids of one length, with random weights.

    Attributes:
        vocabulary_size: V.
        num_layers: N.
        hidden_dim: M.
        intermediate_dim: F.
        num_heads: H.
        sentences: Number of sources.
        tokens_in: Tokens of a source.
        tokens_out: Tokens of a hypothesis.
    """

    vocabulary_size: int = 37_000
    num_layers: int = 6
    hidden_dim: int = 512
    intermediate_dim: int = 2048
    num_heads: int = 8
    sentences: int = 128
    tokens_in: int = 32
    tokens_out: int = 64

    def sources(self) -> np.ndarray:
        """Ids (sentences, tokens_in)."""
        shape = (self.sentences, self.tokens_in)
        return np.random.default_rng(1).integers(FIRST_PIECE, self.vocabulary_size, shape, dtype="int32")


class Rows:
    """A side that stays, for `Worker`.

    Args:
        task: What is trained.
        train: Trains for a number of steps and returns when the device has done them.
        peak_bytes: The largest the device's memory was.
        parameters: Trained weights.
    """

    def __init__(self, task: Task, train: Callable[[int], None], peak_bytes: Callable[[], int], parameters: int):
        self.task, self.train, self.peak_bytes, self.parameters = task, train, peak_bytes, parameters

    def steps(self, count: int) -> Work:
        """Trains for `count` steps; the answer holds what they came to."""
        pairs = self.task.options.get("pairs_per_row", 1)
        lengths = np.full(self.task.rows * pairs, self.task.row_length // pairs)

        def found(_: None) -> dict:
            return {
                "tokens": 2 * count * self.task.rows * self.task.row_length,
                "flops": count * useful_flops(self.task, lengths, lengths),
                "peak_bytes": self.peak_bytes(),
                "parameters": self.parameters,
            }

        return Work(lambda: self.train(count), found)
