"""A training that is interrupted at any moment ends with the weights of one that is not."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_attention as ka
from keras_attention.text import PackedBatches, TokenBatches
from keras_attention.training import (
    ChunkedTrainer,
    ExponentialMovingAverage,
    Muon,
    ResumableRun,
    ResumableTensorBoard,
    resumable_run,
    state_files,
)
from keras_attention.training.state_files import read_newest_state

pytestmark = pytest.mark.tensorflow

VOCABULARY = 23
EVERY_BATCH = 1e-9  # minutes
EPOCHS = 2


def make_ids(count=37, seed=5):
    random = np.random.default_rng(seed)
    return [random.integers(4, VOCABULARY, random.integers(1, 11)).tolist() for _ in range(count)]


def token_batches(**changes):
    options = {"tokens_per_batch": 61, "source_word_dropout": 0.1, **changes}
    return TokenBatches(make_ids(seed=5), make_ids(seed=6), **options)


def packed_batches(**changes):
    return PackedBatches(make_ids(seed=5), make_ids(seed=6), **{"row_length": 31, "rows_per_batch": 3, **changes})


def make_model(**changes):
    keras.utils.set_random_seed(3)
    sizes = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 7, "num_heads": 2, "dropout": 0.2, **changes}
    return ka.Transformer.from_preset("tiny", vocabulary_size=VOCABULARY, **sizes)


def make_trainer(optimizer, packed=False):
    """Eager, which needs no time to trace."""
    model = make_model()
    trainer = ChunkedTrainer(model, label_smoothing=0.1, inputs=model.packed().input if packed else None)
    trainer.compile(optimizer, run_eagerly=True)
    return trainer


class Killed(Exception):
    """Ends the process of a test, as far as the training can tell."""


class KillAfter(keras.callbacks.Callback):
    """Ends a training after a number of batches of this `fit`, which begin at one."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches == 0:
            raise Killed


def fit(model, run, *others, epochs=EPOCHS, **options):
    return model.fit(
        run.dataset(),
        epochs=epochs,
        initial_epoch=run.initial_epoch,
        steps_per_epoch=run.steps_per_epoch,
        callbacks=[*run.callbacks, run, *others],
        shuffle=False,
        verbose=0,
        **options,
    )


def state_of(model):
    variables = {id(each): each for each in (*model.variables, *model.optimizer.variables)}
    return [np.array(each) for each in variables.values()]


def assert_same(one, other):
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam, accumulated": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "muon": lambda: Muon(0.01),
    "muon, accumulated": lambda: Muon(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make_data", [token_batches, packed_batches])
def test_interrupted_after_every_other_batch_it_ends_as_without(tmp_path, make_data, optimizer):
    """Also within the batches of a step, and between the last batch of an epoch and its end."""

    def parts(folder):
        ema = ExponentialMovingAverage(0.9, update_every=2)
        run = ResumableRun(folder, make_data(), minutes=EVERY_BATCH, callbacks=[ema])
        return make_trainer(OPTIMIZERS[optimizer](), packed=make_data is packed_batches), run, ema

    model, run, ema = parts(tmp_path / "whole")
    fit(model, run)
    interruptions = []
    while True:
        other, resumed, others_ema = parts(tmp_path / "parts")
        try:
            fit(other, resumed, KillAfter(2))
            break
        except Killed:
            interruptions.append(resumed.batch)
    batches = EPOCHS * run.steps_per_epoch
    assert len(interruptions) >= batches // 2
    assert batches - 1 in interruptions or batches in interruptions
    assert_same(state_of(other), state_of(model))
    assert resumed.history == run.history
    assert len(run.history["loss"]) == EPOCHS
    with ema.applied(), others_ema.applied():
        assert_same(other.get_weights(), model.get_weights())
