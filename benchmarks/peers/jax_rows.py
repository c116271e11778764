"""Ours, or KerasHub's layers, through Keras' JAX backend, on rows of one length; needs no TensorFlow.

Run with KERAS_BACKEND=jax. `task.options` says whose `layers`, "keras_attention" or "kerashub", and how many
`pairs_per_row` ours is to keep apart.
"""

import itertools
from dataclasses import replace

import keras
import numpy as np

from benchmarks.peers import rows, side
from benchmarks.peers.side import LABEL_SMOOTHING, Task
from benchmarks.tools.sentences import PAD
from benchmarks.tools.workers import serve


def build(task: Task) -> keras.Model:
    """The model of a task, compiled."""
    if task.options["layers"] == "keras_attention":
        from benchmarks.peers import ours
        from keras_attention.training import ChunkedTrainer

        model = ours.build(replace(task, options={}))
        trainer = ChunkedTrainer(model, LABEL_SMOOTHING, model.packed().input if is_packed(task) else None)
        trainer.compile(model.optimizer)
        return trainer
    from benchmarks.peers import kerashub_layers
    from benchmarks.peers.keras_fit import adam

    model = kerashub_layers.build(task)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)
    model.compile(adam(task), loss=loss)
    return model


def is_packed(task: Task) -> bool:
    """Whether a row holds several pairs."""
    return "pairs_per_row" in task.options


def segments(task: Task) -> dict[str, np.ndarray]:
    """The inputs of packed rows other than the ids."""
    return dict.fromkeys(("source_segments", "target_segments"), rows.segments(task)) if is_packed(task) else {}


def prepare(task: Task) -> rows.Rows:
    """Builds the model; the first step compiles it."""
    import jax

    keras.utils.set_random_seed(1)
    device = jax.local_devices()[0]
    model = build(task)
    batches = itertools.cycle(
        [
            ({"source": source, "target": target, **segments(task)}, labels)
            for source, target, labels in rows.batches(task)
        ]
    )

    def train(count: int) -> None:
        # Keras takes a generator, and no other iterator.
        data = (batch for batch in itertools.islice(batches, count))
        model.fit(data, steps_per_epoch=count, shuffle=False, verbose=0)
        jax.block_until_ready([variable.value for variable in model.trainable_variables])

    def peak_bytes() -> int:
        found = device.memory_stats()  # None on a CPU
        return found["peak_bytes_in_use"] if found else side.peak_bytes()

    return rows.Rows(task, train, peak_bytes, model.count_params())


if __name__ == "__main__":
    serve(lambda task: prepare(Task(**task)))
