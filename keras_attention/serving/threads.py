"""The cores that each of several concurrent batches has."""

import contextlib
import os

import keras

# While one batch of a file waits for an operation too small for all cores, another keeps these busy. More gain nothing.
BATCHES_AT_ONCE = 2


def share_cores(cores: int | None = None) -> None:
    """Divides the cores among the batches that `Translator.translate` runs at the same time.

    Each batch then computes with its own threads, which do not wait for those of the other. That is faster for many
    texts and slower for a single batch, as from a call of `Translator` or an export. TensorFlow fixes its threads when
    it first computes: call this before a model is made or loaded. Later, or if the number of threads is set already,
    it changes nothing, nor does it on JAX and torch, which translate one batch at a time.

    Args:
        cores: Number of cores; by default those that this process may use.

    Example:
        >>> share_cores()  # then load the model; `keras-attention translate` does so
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    threads = tf.config.threading
    if threads.get_intra_op_parallelism_threads() or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # TensorFlow has computed already
        threads.set_intra_op_parallelism_threads(max(1, (cores or _cores()) // BATCHES_AT_ONCE))


def cores_are_shared() -> bool:
    """Returns whether an operation has fewer threads than there are cores, by `share_cores` or another setting."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return 0 < tf.config.threading.get_intra_op_parallelism_threads() < _cores()


def _cores() -> int:
    """Returns the number of cores that this process may use; macOS does not say which they are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
