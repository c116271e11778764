"""`model.fit` on the clock, for every side that is a Keras model."""

import itertools
from typing import TYPE_CHECKING

import keras
import numpy as np

from benchmarks.peers.side import CHECK_SENTENCES, Clock, Measured, Task, measured
from benchmarks.tools.sentences import Sentences
from keras_attention.training import InverseSqrtSchedule

if TYPE_CHECKING:
    import tensorflow as tf


class _StepEnds(keras.callbacks.Callback):
    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.clock.step_ended()


def fit(
    task: Task,
    sentences: Sentences,
    model: keras.Model,
    dataset: "tf.data.Dataset",
    trainer: keras.Model | None = None,
) -> Measured:
    """Trains a compiled model on the clock.

    Args:
        task: What is measured.
        sentences: Of the task.
        model: Compiled; takes `{"source", "target"}`, gives logits.
        dataset: Batches in the order of `sentences.batches`.
        trainer: What `fit` is called on, if it is another model of the same weights.

    Returns:
        What was found.
    """
    clock = Clock(task)
    steps = task.warmup + task.steps
    (trainer or model).fit(dataset, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[_StepEnds(clock)])
    return measured(task, sentences, clock, model.count_params(), negative_log_likelihood(model, sentences))


def negative_log_likelihood(model: keras.Model, sentences: Sentences) -> float:
    """Mean over the target tokens of the first sentences, in NumPy, so alike for every side."""
    source, target, labels = sentences.arrays(np.arange(min(CHECK_SENTENCES, len(sentences))))
    logits = keras.ops.convert_to_numpy(model({"source": source, "target": target}, training=False))
    return numpy_loss(logits, labels)


def numpy_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels that are not padding, from logits (B, T, V)."""
    logits = logits.astype("float64")
    largest = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
    losses = log_sum - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return float(losses[labels != 0].mean())


def dataset(sentences: Sentences) -> "tf.data.Dataset":
    """The batches of each step, each padded to its longest sentence."""
    import tensorflow as tf  # here, so that models can be built where there is none

    def batches():
        for index in itertools.cycle(sentences.batches):
            source, target, labels = sentences.arrays(index)
            yield {"source": source, "target": target}, labels

    ids = tf.TensorSpec((None, None), tf.int32)
    signature = ({"source": ids, "target": ids}, ids)
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(tf.data.AUTOTUNE)


def adam(task: Task) -> keras.optimizers.Optimizer:
    """The paper's Adam and schedule, as every side has them."""
    schedule = InverseSqrtSchedule(task.hidden_dim, task.warmup_steps, task.learning_rate_scale)
    return keras.optimizers.Adam(schedule, beta_1=0.9, beta_2=0.98, epsilon=1e-9)
