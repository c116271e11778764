"""Sampling: the frequencies are the probabilities; a seed determines the tokens, whatever the other rows."""

import math

import numpy as np
import pytest
import tensorflow as tf
from oracle import log_softmax

from keras_attention.decoding.sampling import sample

pytestmark = pytest.mark.tensorflow

NEG_INF, NAN, INFINITY = float("-inf"), float("nan"), float("inf")
SEED = [23, 5]


def draw(rows, vocabulary, seed=1):
    return np.random.default_rng(seed).normal(0, 2, (rows, vocabulary)).astype("float32")


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_tokens_come_as_often_as_their_probabilities_say(scale):
    rows, vocabulary = 20011, 7
    logits = scale * draw(1, vocabulary)[0]
    logits[2] = NEG_INF
    expected = rows * np.exp(log_softmax(logits))
    for step in range(3):
        ids, _ = sample(tf.tile(logits[None], [rows, 1]), SEED, step)
        counts = np.bincount(ids.numpy(), minlength=vocabulary)
        assert counts[2] == 0
        # Five standard deviations of a binomial count: about one in a million draws of correct code is further off.
        np.testing.assert_array_less(np.abs(counts - expected), 5 * np.sqrt(expected) + 1)


def test_steps_and_rows_are_independent():
    """Pairs of draws at once, of neighbours in row and step, fall into the four quarters equally often."""
    rows, steps = 401, 53
    ids = np.array([sample(tf.zeros([rows, 2]), SEED, step)[0] for step in range(steps)])  # (steps, rows)
    for one, other in ((ids[1:], ids[:-1]), (ids[:, 1:], ids[:, :-1])):
        quarters = np.bincount((2 * one + other).ravel(), minlength=4) / one.size
        np.testing.assert_allclose(quarters, 0.25, atol=5 * math.sqrt(0.25 * 0.75 / one.size))


def test_the_log_probability_is_that_of_the_token():
    logits = draw(11, 13)
    logits[:, 4] = NEG_INF
    ids, log_probs = sample(logits, SEED, 3)
    assert (ids.dtype, log_probs.dtype) == (tf.int32, tf.float32)
    expected = [log_softmax(row)[token] for row, token in zip(logits, ids.numpy(), strict=True)]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-6)


def test_a_seed_gives_the_same_tokens_and_another_gives_others():
    logits = draw(101, 13)
    in_graph = tf.function(
        sample,
        input_signature=[
            tf.TensorSpec([None, None], tf.float32),
            tf.TensorSpec([2], tf.int32),
            tf.TensorSpec([], tf.int32),
        ],
    )
    ids, _ = sample(logits, SEED, 3)
    np.testing.assert_array_equal(ids, in_graph(logits, SEED, 3)[0])
    for seed, step in (([23, 6], 3), ([22, 5], 3), ([23 + 2**32, 5], 3), ([-23, 5], 3), (SEED, 4)):
        assert np.mean(ids.numpy() != sample(logits, seed, step)[0].numpy()) > 0.2


def test_a_row_samples_by_its_index_in_any_order():
    logits = draw(31, 13)
    ids = sample(logits, SEED, 2)[0].numpy()
    np.testing.assert_array_equal(sample(logits[:5], SEED, 2)[0], ids[:5])
    left = np.array([29, 3, 17])
    np.testing.assert_array_equal(sample(logits[left], SEED, 2, rows=left)[0], ids[left])
    assert sample(logits[:0], SEED, 2)[0].shape == (0,)


def test_a_certain_token_is_sampled():
    logits = np.full((997, 5), NEG_INF, "float32")
    logits[:, 4] = -300.0
    ids, log_probs = sample(logits, SEED, 0)
    np.testing.assert_array_equal(ids, 4)
    np.testing.assert_array_equal(log_probs, 0)


@pytest.mark.parametrize("row", [[1, NAN, 2], [NAN] * 3, [1, INFINITY, NEG_INF], [NEG_INF] * 3], ids=str)
def test_a_broken_row_gives_a_log_probability_of_nan_and_breaks_no_other(row):
    logits = np.array([[0.5, 1.5, 1.0], row, [2.0, 0.0, 1.0]], "float32")
    ids, log_probs = sample(logits, SEED, 1)
    assert np.isnan(log_probs.numpy()).tolist() == [False, True, False]
    assert int(ids[1]) == 0
    logits[1] = 0
    healthy = sample(logits, SEED, 1)
    for found, expected in zip((ids, log_probs), healthy, strict=True):
        np.testing.assert_array_equal(found.numpy()[[0, 2]], expected.numpy()[[0, 2]])
