"""Cores for each of the batches that are translated at a time."""

import contextlib
import os

import tensorflow as tf

# While one batch of a file waits for an operation too small for all cores, another keeps these busy. More gain nothing.
BATCHES_AT_ONCE = 2


def share_cores(cores: int | None = None) -> None:
    """Gives each of the batches that `Translator.translate` works on at a time its own share of the cores.

    Threads of one product wait for each other; those of two batches do not. On two cores, the only number
    measured, texts take 0.64 to 0.97 of the time; a batch that is alone, as from `Translator` called or an export, may
    take twice as long. TensorFlow settles its threads when it first computes: call this before a model is made or
    loaded. After that, or where somebody has settled them, it changes nothing.

    Args:
        cores: How many there are; by default those that this process may use.

    Example:
        >>> share_cores()  # then load the model; `keras-attention translate` does so
    """
    threads = tf.config.threading
    if threads.get_intra_op_parallelism_threads() or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # TensorFlow has computed already
        threads.set_intra_op_parallelism_threads(max(1, (cores or _cores()) // BATCHES_AT_ONCE))


def cores_are_shared() -> bool:
    """Whether one batch leaves cores to another, by `share_cores` or by a number of threads set in Python.

    Returns:
        Whether a product has fewer threads than there are cores.
    """
    return 0 < tf.config.threading.get_intra_op_parallelism_threads() < _cores()


def _cores() -> int:
    """Those that this process may use; macOS does not say which they are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
