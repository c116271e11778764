"""The processes of a training on several hosts, which JAX connects. Elsewhere there is one process."""

from typing import Any

import keras
import numpy as np


def num_processes() -> int:
    """Returns the number of processes that train together."""
    if keras.config.backend() != "jax":
        return 1
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Returns the index of this process among those that train together."""
    if num_processes() == 1:
        return 0
    import jax

    return jax.process_index()


def is_first_process() -> bool:
    """Returns True in the process that writes files and prints."""
    return process_index() == 0


def of_first_process(values: Any) -> np.ndarray:
    """Returns the numbers of the first process in all of them, where they call this together with equal shapes."""
    if num_processes() == 1:
        return np.asarray(values)
    from jax.experimental import multihost_utils

    values = np.asarray(values)
    values = values.astype(np.float32) if values.dtype == np.float64 else values  # JAX has no other floats
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def of_all_processes(values: Any) -> np.ndarray:
    """Returns the numbers of each process, stacked, in all of them."""
    if num_processes() == 1:
        return np.asarray(values)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(values)))


def stops_now(batch: int) -> bool:
    """Returns True in all processes after the same batch, soon after one of them has received SIGTERM."""
    if num_processes() == 1:
        return False
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(batch))
