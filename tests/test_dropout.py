"""Dropout against what it is: what is dropped, how often, and what its gradient is."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_attention.layers.dropout import Dropout
from tests.backends import HAS_XLA, gradients, numpy


@pytest.fixture
def x():
    return np.random.default_rng(3).normal(size=(67, 3, 501)).astype("float32") + 10


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.73])
def test_what_is_kept_is_scaled_and_the_rest_is_zero(x, rate):
    y = numpy(Dropout(rate, seed=1)(x, training=True))
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-4)
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(np.mean(kept) - (1 - rate)) < 4 * deviation
    # No axis has a pattern: the shares of its rows differ as those of independent draws do.
    for axis in range(x.ndim):
        others = tuple(each for each in range(x.ndim) if each != axis)
        shares = kept.mean(axis=others)
        spread = np.sqrt(rate * (1 - rate) / (x.size / x.shape[axis]))
        assert np.all(np.abs(shares - (1 - rate)) < 5 * spread)
    # Nor have neighbours, of which four share a random number.
    kept = kept.reshape(-1)
    for distance in (1, 2, 3):
        both = np.mean(kept[distance:] & kept[:-distance])
        assert abs(both - (1 - rate) ** 2) < 5 * np.sqrt((1 - rate) ** 2 / kept.size)


# Between multiples of 1/256, at one, and below the smallest.
# Enough numbers to tell the rate from the next multiple.
@pytest.mark.parametrize(("rate", "size"), [(0.1, 3989), (1.4 / 256, 997), (4 / 256, 997), (0.001, 997), (0.9985, 997)])
def test_over_many_calls_the_rate_is_the_one_that_was_given(rate, size):
    layer, ones = Dropout(rate, seed=11), np.ones((size,), "float32")
    dropped = [np.mean(numpy(layer(ones, training=True)) == 0) for _ in range(300)]
    assert abs(np.mean(dropped) - rate) < 4 * np.std(dropped) / np.sqrt(len(dropped))
    assert np.std(dropped) < 1.5 * np.sqrt(rate * (1 - rate) / ones.size)


def test_the_gradient_passes_where_the_input_did(x):
    (gradient,), _ = gradients(lambda x: ops.sum(Dropout(0.3, seed=5)(x, training=True)), [x])
    np.testing.assert_allclose(gradient, numpy(Dropout(0.3, seed=5)(x, training=True)) / x, rtol=1e-4)


def test_each_call_draws_anew_and_a_seed_draws_the_same(x):
    layer, other = Dropout(0.5, seed=7), Dropout(0.5, seed=7)
    first, second = (numpy(layer(x, training=True)) for _ in range(2))
    assert np.mean((first == 0) != (second == 0)) > 0.4
    np.testing.assert_array_equal(numpy(other(x, training=True)), first)
    assert np.mean((numpy(Dropout(0.5, seed=8)(x, training=True)) == 0) != (first == 0)) > 0.4


def test_nothing_is_dropped_at_inference_or_at_a_rate_of_zero(x):
    np.testing.assert_array_equal(numpy(Dropout(0.5)(x)), x)
    np.testing.assert_array_equal(numpy(Dropout(0.0)(x, training=True)), x)
    np.testing.assert_array_equal(numpy(Dropout(1.0)(x, training=True)), 0 * x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", pytest.param("float64", marks=pytest.mark.tensorflow)])
def test_other_dtypes(x, dtype):
    y = Dropout(0.25, seed=1, dtype=dtype)(ops.cast(x, dtype), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    y = np.asarray(numpy(ops.cast(y, "float32")))
    np.testing.assert_allclose(y[y != 0], x[y != 0] / 0.75, rtol=0.02)
    assert 0.24 < np.mean(y == 0) < 0.26


def test_noise_shared_along_an_axis(x):
    y = numpy(Dropout(0.5, noise_shape=(67, 1, 501), seed=3)(x, training=True))
    assert np.all((y == 0).all(axis=1) == (y == 0).any(axis=1))


@pytest.mark.parametrize("jit_compile", [False, True] if HAS_XLA else [False])
def test_in_a_model_of_unknown_length(jit_compile):
    inputs = keras.Input((None, 5))
    y = Dropout(0.5, seed=2)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5, kernel_initializer="identity")(y))
    model.compile("sgd", loss="mse", jit_compile=jit_compile)
    ones = np.ones((3, 7, 5), "float32")
    # Of ones, those that are kept are 2: the error is 1 at every place, whatever was dropped.
    assert model.fit(ones, ones, verbose=0).history["loss"][0] == pytest.approx(1.0)
