"""The matrices of a decoding step: whole or in parts, as they are or turned, they give the same product."""

import numpy as np
import pytest
from keras import ops

from keras_attention.models import matrix
from keras_attention.models.matrix import Kernel, Matrix

N = 3
PART = 23


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(matrix, "PART", PART)


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(5, 31), (31, 5), (7, 7)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.2)])
def test_the_product_is_numpys(small_parts, shape, turned, divided, dtype, tolerance):
    x, weights, bias = numbers(N, shape[0]), numbers(*shape), numbers(shape[1])
    given = ops.array(weights.T if turned else weights)
    made = Matrix.of(given, ops.array(bias), dtype, turned, divided)
    assert made.dtype == dtype
    assert len(made.parts) == (-(-weights.size // PART) if divided else 1)
    np.testing.assert_allclose(numpy(made(ops.array(x))), x @ weights + bias, atol=tolerance)


def test_the_longer_side_is_divided_into_parts_alike(small_parts):
    wide, tall = Matrix.of(ops.ones((5, 31)), None, "float32", divided=True), Kernel(ops.ones((5, 31)), turned=True)
    assert [part.shape for part in wide.parts] == [(5, 4), (5, 4), (5, 5), (5, 4), (5, 5), (5, 4), (5, 5)]
    assert [part.shape for part in tall.divided(tall.longer_axis, 2)] == [(15, 5), (16, 5)]


def test_a_small_matrix_is_kept_whole():
    made = Matrix.of(ops.ones((5, 31)), None, "float32", divided=True)
    assert [part.shape for part in made.parts] == [(5, 31)]


def test_the_result_has_the_dtype_that_is_asked_for():
    made = Matrix.of(ops.ones((5, 7)), ops.ones(7), "float32")
    assert "bfloat16" in str(made(ops.ones((N, 5)), "bfloat16").dtype)
