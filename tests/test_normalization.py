"""Layer normalisation with a gradient of its own against Keras' layer, whose gradient the backend derives."""

import keras
import numpy as np
import pytest
from backends import BACKEND, gradients, numpy, tensors, weighted_sum
from keras import ops

from keras_attention.layers.normalization import make_normalization
from keras_attention.ops.normalization import layer_norm

B, T, M, EPSILON = 2, 7, 13, 1e-3


@pytest.fixture
def case():
    random = np.random.default_rng(5)
    shapes = {"x": (B, T, M), "gamma": (M,), "beta": (M,), "upstream": (B, T, M)}
    return {name: random.normal(1.5, 2.0, shape).astype("float32") for name, shape in shapes.items()}


def derived(x, gamma, beta):
    """The formula, differentiated step by step."""
    centered = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(centered * centered, axis=-1, keepdims=True)
    return centered / ops.sqrt(variance + EPSILON) * gamma + beta


def written(x, gamma, beta):
    return layer_norm(x, gamma, beta, EPSILON)


def test_values_and_gradients_are_those_of_the_formula(case):
    arguments = tensors([case[name] for name in ("x", "gamma", "beta")])
    np.testing.assert_allclose(numpy(written(*arguments)), numpy(derived(*arguments)), atol=1e-5)
    given, expected = (
        gradients(lambda *inputs, f=f: weighted_sum(f(*inputs), case["upstream"]), arguments)[0]
        for f in (written, derived)
    )
    for ours, theirs in zip(given, expected, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_layer_is_keras_layer(case, dtype):
    ours = make_normalization("layer", epsilon=EPSILON, dtype=dtype)
    theirs = keras.layers.LayerNormalization(epsilon=EPSILON, dtype=dtype)
    for layer in (ours, theirs):
        layer.build((None, None, M))
        layer.set_weights([case["gamma"], case["beta"]])
    x = ops.cast(case["x"], theirs.compute_dtype)
    result, expected = ours(x), theirs(x)
    assert result.dtype == expected.dtype
    tolerance = {"bfloat16": 0.06, "float16": 0.01}.get(theirs.compute_dtype, 1e-5)
    np.testing.assert_allclose(*(numpy(ops.cast(y, "float32")) for y in (result, expected)), atol=tolerance)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only used on TensorFlow; torch differentiates it only once")
def test_the_gradient_has_a_gradient(case):
    import tensorflow as tf

    def second(f):
        x, gamma, beta = (tf.constant(case[name]) for name in ("x", "gamma", "beta"))
        with tf.GradientTape() as outer:
            outer.watch([x, gamma])
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(f(x, gamma, beta) * case["upstream"])
            penalty = tf.reduce_sum(inner.gradient(total, x) ** 2)
        return outer.gradient(penalty, [x, gamma])

    for compile_ in (lambda f: f, tf.function):
        for ours, theirs in zip(compile_(second)(written), compile_(second)(derived), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
