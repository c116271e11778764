"""Training on several devices of JAX, each with a part of every batch."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_attention.layers.arguments import check_distributes, positive_integer
from keras_attention.training.processes import num_processes


def data_parallel(devices: int | None = None) -> keras.distribution.DataParallel:
    """Returns a distribution under which each device has a copy of the weights and computes a part of each batch.

    In its `scope`, build, compile and train the model. With the same batches the loss and the gradients are those of
    one device, but for rounding: the mean is over the tokens of all devices. The number of rows of a batch must be a
    multiple of the number of devices, as in a `text.BatchShard`.

    Args:
        devices: Number of devices of this host; None for all devices of all hosts that `jax.distributed` has connected.

    Returns:
        The distribution. It takes the rows of this process, not the whole batch, from the dataset of each process.

    Raises:
        ValueError: If the backend is not JAX, JAX has fewer devices, or a number is given on several hosts.

    Example:
        >>> if keras.config.backend() == "jax":
        ...     with data_parallel().scope():
        ...         model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
    """
    check_distributes("data_parallel()")
    import jax

    # The devices of a process follow each other, and so do its rows of a batch.
    available = sorted(jax.devices(), key=lambda each: (each.process_index, each.id))
    if devices is not None:
        positive_integer(devices, "devices")
        if num_processes() > 1:
            raise ValueError(
                "Several hosts train with all of their devices: leave `devices` out, or hide devices from JAX, for "
                f"example with CUDA_VISIBLE_DEVICES. Received: devices={devices}, {num_processes()} processes"
            )
        if devices > len(available):
            raise ValueError(
                f"JAX has {len(available)} device{'s' if len(available) > 1 else ''} here: pass a smaller number, or "
                f"None for all. Received: devices={devices}"
            )
        available = available[:devices]
    names = [f"{device.platform}:{device.id}" for device in available]
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)


def num_shards() -> int:
    """Returns the number of parts into which devices divide a batch, 1 outside of a distribution."""
    distribution: Any = keras.distribution.distribution()
    return 1 if distribution is None or keras.config.backend() != "jax" else distribution.num_model_replicas


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Builds and runs models on one device within the block, each process by itself."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
