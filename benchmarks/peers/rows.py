"""Batches of rows of one length without padding, which accelerators want, and what training on them comes to."""

import os
import time
from collections.abc import Callable

import numpy as np

from benchmarks.peers.side import STARTED, Measured, Task, useful_flops
from benchmarks.tools.sentences import FIRST_PIECE

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


def train(task: Task, steps: Callable[[int], None], peak_bytes: Callable[[], int], parameters: int) -> Measured:
    """Trains on the clock.

    Args:
        task: What is measured.
        steps: Trains for that many steps and returns when the device has done them.
        peak_bytes: The largest the device's memory was.
        parameters: Trained weights.

    Returns:
        What was found.
    """
    steps(1)
    first_step = time.time() - float(os.environ[STARTED])
    steps(task.warmup)
    start = time.perf_counter()
    steps(task.steps)
    seconds = time.perf_counter() - start
    pairs = task.options.get("pairs_per_row", 1)
    lengths = np.full(task.rows * pairs, task.row_length // pairs)
    return Measured(
        tokens=2 * task.steps * task.rows * task.row_length,
        seconds=seconds,
        first_step_seconds=first_step,
        peak_bytes=peak_bytes(),
        parameters=parameters,
        loss=None,
        flops=task.steps * useful_flops(task, lengths, lengths),
    )
