"""The product with weights against NumPy, and its gradients, which it states itself on TensorFlow."""

import keras
import numpy as np
import pytest
from backends import dtype_of, gradients, numpy, weighted_sum
from keras import ops

from keras_attention import FeedForward
from keras_attention.layers.dense import product

N, M, F = 3, 5, 7


@pytest.fixture
def case():
    random = np.random.default_rng(5)
    return [random.normal(size=shape).astype("float32") for shape in ((N, M), (M, F), (N, F))]


def test_values_and_gradients_are_those_of_the_formula(case):
    x, kernel, upstream = case
    np.testing.assert_allclose(numpy(product(x, kernel)), x @ kernel, rtol=1e-5)
    found, _ = gradients(lambda x, kernel: weighted_sum(product(x, kernel), upstream), [x, kernel])
    for given, expected in zip(found, (upstream @ kernel.T, x.T @ upstream), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.tensorflow
def test_the_gradient_has_a_gradient(case):
    import tensorflow as tf

    x, kernel, upstream = map(tf.constant, case)
    with tf.GradientTape() as outer:
        outer.watch(kernel)
        with tf.GradientTape() as inner:
            inner.watch(x)
            total = weighted_sum(product(x, kernel), upstream)
        by_x = inner.gradient(total, x)  # U Wᵀ
        square = ops.sum(by_x * by_x)
    by_kernel = outer.gradient(square, kernel)
    np.testing.assert_allclose(by_kernel, 2 * case[1] @ case[2].T @ case[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", pytest.param("float64", marks=pytest.mark.tensorflow)])
def test_other_dtypes(case, dtype):
    x, kernel = (ops.cast(values, dtype) for values in case[:2])
    found = product(x, kernel)
    assert dtype_of(found) == dtype
    np.testing.assert_allclose(numpy(ops.cast(found, "float32")), case[0] @ case[1], atol=0.1)


def test_factors_of_two_dtypes_meet_in_the_wider_one(case):
    x, kernel = ops.cast(case[0], "bfloat16"), ops.convert_to_tensor(case[1])
    found = product(x, kernel)
    assert dtype_of(found) == "float32"
    np.testing.assert_allclose(numpy(found), numpy(ops.cast(x, "float32")) @ case[1], rtol=1e-4, atol=1e-5)


def test_weights_of_a_layer_have_gradients_outside_of_a_graph(case):
    network = FeedForward(F, activation="linear")
    x = case[0][None]
    network(x)
    inner, output = (numpy(dense.kernel) for dense in (network.intermediate_dense, network.output_dense))
    by_inputs, by_variables = gradients(lambda x: ops.sum(network(x)), [x], network.trainable_variables)
    ones = np.ones((N, M), "float32")
    expected = {
        (M, F): case[0].T @ (ones @ output.T),
        (F, M): (case[0] @ inner).T @ ones,
    }
    np.testing.assert_allclose(by_inputs[0][0], ones @ output.T @ inner.T, rtol=1e-4, atol=1e-5)
    for given in by_variables:
        if given.ndim == 2:
            np.testing.assert_allclose(given, expected[given.shape], rtol=1e-4, atol=1e-5)
    assert keras.tree.map_structure(np.ndim, by_variables) == [2, 1, 2, 1]
