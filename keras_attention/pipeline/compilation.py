"""Compiling the steps of a run before its training begins, on a backend that compiles a program for each shape."""

import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_attention.pipeline.run_data import RunData
from keras_attention.status_line import StatusLine


def compile_steps(model: keras.Model, trainer: keras.Model, data: RunData) -> None:
    """Compiles the steps of training and validation for each shape of the batches, where their shapes are few."""
    if keras.config.backend() != "jax":  # TensorFlow's graphs take any shape, and torch compiles none
        return
    of_training, of_validation = (each.batch_of_each_shape() for each in (data.batches, data.valid_batches))
    if not of_training:
        print("warning: JAX compiles a program for each shape of the batches, of which this run has many")
    count, started = len(of_training) + len(of_validation), time.monotonic()
    line, compiled = StatusLine(), itertools.count()

    def announced(batches: Sequence[Any]) -> Iterator[Any]:
        for batch in batches:
            shape = 1 + next(compiled)
            show = line.start if shape == 1 else functools.partial(line.show, at_once=True)
            show(lambda shape=shape: f"compiling {shape} of {count} shapes")
            yield batch

    variables = list({id(each): each for each in (*trainer.variables, *trainer.optimizer.variables)}.values())
    values = [keras.ops.convert_to_numpy(each) for each in variables]
    try:
        if of_training:
            trainer.fit(announced(of_training), steps_per_epoch=len(of_training), shuffle=False, verbose=0)
        if of_validation:
            model.evaluate(announced(of_validation), steps=len(of_validation), verbose=0)
    finally:  # a step changes the weights, the optimizer and the random numbers of dropout
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    print(f"compiled {count} shapes in {time.monotonic() - started:.0f} s")
