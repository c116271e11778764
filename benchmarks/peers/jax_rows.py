"""Ours, or KerasHub's layers, through Keras' JAX backend, on rows of one length; needs no TensorFlow.

Run with KERAS_BACKEND=jax. `task.options` says whose `layers`, "keras_attention" or "kerashub", and how many
`pairs_per_row` ours is to keep apart.
"""

import itertools
from dataclasses import replace

import keras
import numpy as np

from benchmarks.peers import rows, side
from benchmarks.peers.side import Measured, Task, main
from benchmarks.tools.sentences import PAD


def build(task: Task) -> keras.Model:
    """The model of a task, compiled."""
    if task.options["layers"] == "keras_attention":
        from benchmarks.peers import ours

        model = ours.build(replace(task, options={}))
        return ours.compiled(model.packed(), task) if "pairs_per_row" in task.options else model
    from benchmarks.peers import kerashub_layers
    from benchmarks.peers.keras_fit import adam

    model = kerashub_layers.build(task)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)
    model.compile(adam(task), loss=loss)
    return model


def segments(task: Task) -> dict[str, np.ndarray]:
    """The inputs of packed rows other than the ids."""
    if "pairs_per_row" not in task.options:
        return {}
    return dict.fromkeys(("source_segments", "target_segments"), rows.segments(task))


def run(task: Task) -> Measured:
    """Trains on the clock."""
    import jax

    keras.utils.set_random_seed(1)
    device = jax.local_devices()[0]
    model = build(task)
    inputs = [
        ({"source": source, "target": target, **segments(task)}, labels)
        for source, target, labels in rows.batches(task)
    ]

    def steps(count: int) -> None:
        # Keras takes a generator, and no other iterator.
        data = (batch for batch in itertools.islice(itertools.cycle(inputs), count))
        model.fit(data, steps_per_epoch=count, shuffle=False, verbose=0)
        jax.block_until_ready([variable.value for variable in model.trainable_variables])

    def peak_bytes() -> int:
        found = device.memory_stats()  # None on a CPU
        return found["peak_bytes_in_use"] if found else side.peak_bytes()

    return rows.train(task, steps, peak_bytes, model.count_params())


if __name__ == "__main__":
    main(run)
