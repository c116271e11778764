"""Trainings on one device and on two, which `test_devices.py` compares.

A processor is divided into devices before TensorFlow has used it, so this file is a program:
`python two_devices.py RESULTS` for trainings with `fit`, `python two_devices.py RESULTS CONFIG` for a run.
"""

import contextlib
import signal
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_attention as ka
from keras_attention.layers.dropout import Dropout
from keras_attention.pipeline import RunConfig, RunFolder, train
from keras_attention.pipeline.devices import device_scope
from keras_attention.text import TokenBatches
from keras_attention.training import (
    ChunkedTrainer,
    FusedAdam,
    MaskedAccuracy,
    MaskedCrossEntropy,
    Muon,
    Perplexity,
    SkippedSteps,
)
from keras_attention.training.consistency import TokenCutoff

V = 23
STEPS, INTERRUPTED = 5, 3


def divide_processor():
    """Makes two logical devices of the processor."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def make_model():
    keras.utils.set_random_seed(1)
    sizes = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 24, "num_heads": 2, "dropout": 0.0}
    return ka.Transformer(ka.TransformerConfig(V, **sizes))


def make_batches():
    """Batches of 1 to 7 rows of different lengths, so that the devices get different numbers of rows and tokens."""
    random = np.random.default_rng(1)
    sides = [[random.integers(4, V, length).tolist() for length in random.integers(1, 9, 40)] for _ in range(2)]
    return TokenBatches(*sides, tokens_per_batch=24, seed=1)


def weights_of(model):
    return {f"weights/{weight.path}": keras.ops.convert_to_numpy(weight) for weight in model.weights}


def fit_with_muon(strategy):
    """Keras' `fit` of the model itself."""
    with strategy.scope():
        model = make_model()
        metrics = [MaskedAccuracy(), Perplexity()]
        model.compile(Muon(0.01, epsilon=1e-3, steps=2), MaskedCrossEntropy(label_smoothing=0.1), metrics=metrics)
    batches = make_batches()
    rows = [len(index) for index in batches.plan(0)]
    assert 1 in rows and any(count % 2 and count > 1 for count in rows), rows
    losses = BatchLosses()
    history = model.fit(batches.dataset(), epochs=2, shuffle=False, verbose=0, callbacks=[losses]).history
    evaluated = model.evaluate(batches.dataset(), verbose=0, return_dict=True)
    return {
        **weights_of(model),
        "losses": losses.values,
        **{f"fit/{name}": each for name, each in history.items()},
        **{f"evaluate/{name}": each for name, each in evaluated.items()},
    }


class BatchLosses(keras.callbacks.Callback):
    """The loss of each batch times its rows, from the sum so far."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_epoch_begin(self, epoch, logs=None):
        self._total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        mean = next(each for each in self.model.metrics if each.name == "loss")
        before, self._total = self._total, keras.ops.convert_to_numpy(mean.total)
        self.values.append(self._total - before)


def accumulate_with_adam(strategy):
    """A `ChunkedTrainer` that accumulates and clips; a NaN on the second device is in the third of its batches."""
    with strategy.scope():
        model = make_model()
        trainer = ChunkedTrainer(model, label_smoothing=0.1)
        optimizer = FusedAdam(0.01, epsilon=1e-3, global_clipnorm=0.5, gradient_accumulation_steps=2)
        trainer.compile(optimizer)
    ids = np.random.default_rng(2).integers(1, V, (25, 7)).astype("int32")
    ids[::3, 4:] = 0
    weights = np.ones(len(ids), "float32")
    weights[13] = np.nan
    data = tf.data.Dataset.from_tensor_slices(({"source": ids, "target": ids}, ids, weights)).batch(5)
    skipped, norms = SkippedSteps(), []

    def keep_norm(batch, logs):
        norms.append(float(optimizer.gradient_norm))

    callbacks = [skipped, keras.callbacks.LambdaCallback(on_train_batch_end=keep_norm)]
    history = trainer.fit(data, shuffle=False, verbose=0, callbacks=callbacks).history
    copies = [strategy.experimental_local_results(each.value) for each in model.weights]
    return weights_of(model) | {
        "norms": norms,
        "skipped": skipped.skipped,
        "steps": keras.ops.convert_to_numpy(optimizer.iterations),
        "copies differ": any((copy.numpy() != each[0].numpy()).any() for each in copies for copy in each),
        **{f"fit/{name}": each for name, each in history.items()},
    }


def run_in(folder, config, devices):
    """A run of a few steps; that on several devices is interrupted, and resumes."""
    end_of_batch = SkippedSteps.on_train_batch_end

    def interrupted(callback, batch, logs=None):
        end_of_batch(callback, batch, logs)
        if keras.ops.convert_to_numpy(callback.model.optimizer.iterations) == INTERRUPTED:
            signal.raise_signal(signal.SIGINT)

    if devices is not None:
        SkippedSteps.on_train_batch_end = interrupted
        with contextlib.suppress(KeyboardInterrupt):
            train(folder, config, max_steps=STEPS, devices=devices)
        SkippedSteps.on_train_batch_end = end_of_batch
        assert (folder / "checkpoints" / f"state-{INTERRUPTED:08d}.npz").exists()
    model = train(folder, config, max_steps=STEPS, devices=devices)
    run = RunFolder(folder)
    last = run.load(run.model_file("last"))
    moments = {f"optimizer/{index}": each for index, each in enumerate(last.optimizer.variables)}
    return weights_of(last) | {f"final/{name}": each for name, each in weights_of(model).items()} | moments


def dropout_masks(strategy):
    with strategy.scope():
        layers = [Dropout(0.5), Dropout(0.5, noise_shape=(None, 64, 1)), TokenCutoff(0.5)]
    x = tf.ones((64, 64, 1))
    results = [strategy.run(layer, args=(x,), kwargs={"training": True}) for layer in layers]
    return [strategy.experimental_local_results(each) for each in results]


def trainings():
    one = tf.distribute.get_strategy()
    with device_scope("all")():  # TensorFlow confuses the sums of two strategies on the same devices
        two = tf.distribute.get_strategy()
    results = {}
    for name, strategy in (("one", one), ("two", two)):
        for function in (fit_with_muon, accumulate_with_adam):
            values = function(strategy)
            results |= {f"{function.__name__}/{name}/{key}": value for key, value in values.items()}
    results["masks differ"] = [bool((a.numpy() != b.numpy()).any()) for a, b in dropout_masks(two)]
    return results


def runs(config):
    results = {}
    for name, devices in (("one", None), ("two", "all")):
        with tempfile.TemporaryDirectory() as folder:
            values = run_in(Path(folder), RunConfig.load(config), devices)
        results |= {f"{name}/{key}": value for key, value in values.items()}
    return results


def main(path, *config):
    divide_processor()
    np.savez(path, **(runs(*config) if config else trainings()))


if __name__ == "__main__":
    main(*sys.argv[1:])
