"""The devices of this machine on which a run trains."""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_attention.training.data_parallel import data_parallel
from keras_attention.training.processes import num_processes

ALL = "all"
# Makes the context in which a model is built and trained.
Scope = Callable[[], AbstractContextManager[Any]]


def device_scope(devices: int | str | None, dtype: str | None = None) -> Scope:
    """Checks `devices` and returns the scope of a training on that number of them; prints what it uses."""
    if devices is None:
        return contextlib.nullcontext
    is_number = isinstance(devices, int) and not isinstance(devices, bool)
    if devices != ALL and not (is_number and devices >= 1):
        raise ValueError(f'`devices` must be "{ALL}" or a number of devices above zero. Received: devices={devices!r}')
    backend = keras.config.backend()
    if backend == "jax":
        return contextlib.nullcontext  # see `distributed`
    if backend != "tensorflow":
        if devices == 1:
            return contextlib.nullcontext
        raise ValueError(
            f"`devices` is for TensorFlow and JAX, and on {backend} a run trains on one device: leave `devices` out, "
            f"or set KERAS_BACKEND=tensorflow. Received: devices={devices!r}"
        )
    return _mirrored(devices, dtype)


def distributed(devices: int | str | None) -> AbstractContextManager[Any]:
    """The scope of a training by JAX on several devices of this host; nothing else, nor where hosts are connected."""
    if devices is None or keras.config.backend() != "jax" or (num_processes() > 1 and devices == ALL):
        return contextlib.nullcontext()
    return data_parallel(None if devices == ALL else devices).scope()


def _mirrored(devices: int | str, dtype: str | None) -> Scope:
    """The scope of TensorFlow's `MirroredStrategy`, on GPUs where there are any, and else on logical CPU devices."""
    import tensorflow as tf

    existing = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    kind = existing[0].device_type
    count = len(existing) if devices == ALL else devices
    if count > len(existing):
        raise ValueError(
            f"`devices` must be at most the number of devices of this machine that TensorFlow sees, {len(existing)} "
            f'{kind}{"s" if len(existing) > 1 else ""}, or "{ALL}" of them. Received: devices={devices!r}'
        )
    if count == 1:
        print(f"devices: 1 {kind}, as without `devices`")
        return contextlib.nullcontext
    if dtype == "mixed_float16":
        # The optimizer that scales the loss goes by the gradients of the first device only.
        raise ValueError(
            "Training on several devices scales no float16 loss: use the dtype mixed_bfloat16 or float32, or one "
            f"device. Received: devices={devices!r} with dtype={dtype!r}"
        )
    print(f"devices: {count} {kind}s, each with a part of the rows of a batch")
    return _strategy(tuple(each.name for each in existing[:count])).scope


@functools.cache
def _strategy(names: tuple[str, ...]) -> Any:
    """One strategy for all trainings of a process: two on the same devices would mistake each other's sums."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names)
