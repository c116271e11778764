"""TensorFlow's products with packed weights: each operation has a test, which a TensorFlow without it fails."""

import platform

import numpy as np
import pytest
import tensorflow as tf

from keras_attention.serving.packed_products import packed_bfloat16, packed_int8, quantized

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the operations are those of x86-64")

M, F = 67, 43
RANDOM = np.random.default_rng(3)
KERNEL = RANDOM.normal(size=(M, F)).astype("float32") / M**0.5
BIAS = RANDOM.normal(size=F).astype("float32")


class Products(tf.Module):
    """Two products one after the other in a loop, from variables."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.bias = weights, tf.Variable(tf.cast(BIAS, "bfloat16"))
        kernel, scales = quantized(tf.constant(KERNEL))
        self.kernel = tf.Variable(kernel if weights == "int8" else tf.cast(KERNEL, "bfloat16"))
        self.scales, self.negative_scales = tf.Variable(scales), tf.Variable(-scales)

    @tf.function(input_signature=[tf.TensorSpec([None, M], tf.float32, name="x")], autograph=False)
    def serve(self, x):
        def product():
            if self.weights == "int8":
                scales = self.scales.read_value(), self.negative_scales.read_value()
                return packed_int8(x, self.kernel.read_value(), *scales)
            y = packed_bfloat16(tf.cast(x, "bfloat16"), self.kernel.read_value(), self.bias.read_value())
            return tf.cast(y, "float32")

        start = [0, tf.zeros([tf.shape(x)[0], F])]
        return {"y": tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y + product()), start)[1] / 2.0}


@pytest.fixture(params=["bfloat16", "int8"])
def in_session(request, tmp_path):
    """The products of a SavedModel in a session, as servers have it."""
    products = Products(request.param)
    tf.saved_model.save(products, str(tmp_path), signatures=products.serve)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path)).signature_def["serving_default"]
        name, output = signature.inputs["x"].name, signature.outputs["y"].name
        yield request.param, lambda x: session.run(output, {name: x})


@pytest.mark.filterwarnings("ignore")
def test_an_exported_operation_multiplies(in_session):
    weights, product = in_session
    for rows in (1, 5, 32, 7, 1):  # the packed weights serve each number of rows
        x = RANDOM.normal(size=(rows, M)).astype("float32") * 10.0 ** RANDOM.integers(-3, 3, (rows, 1))
        expected = x @ KERNEL + (0 if weights == "int8" else BIAS)
        error = np.abs(product(x) - expected).max(-1) / np.abs(expected).max(-1)
        assert error.max() < 0.02, (weights, rows)


def test_each_column_has_a_scale_of_its_own():
    kernel = KERNEL * 10.0 ** np.arange(F)[None] / 10.0**20
    packed, scales = quantized(tf.constant(kernel.astype("float32")))
    numbers, scales = tf.bitcast(packed, tf.int8).numpy(), scales.numpy()
    large = scales > 1e-8
    assert np.abs(numbers).max(0)[large].tolist() == [127] * large.sum()
    error = np.abs(numbers * scales / 127 - kernel)[:, large].max(0)
    assert np.all(error <= scales[large] / 254 * 1.001)
    assert not np.all(large) and np.all(np.isfinite(scales))


def test_rows_of_zeros_stay_zero():
    kernel, scales = quantized(tf.constant(KERNEL))
    assert not np.any(packed_int8(tf.zeros((3, M)), kernel, scales, -scales).numpy())
