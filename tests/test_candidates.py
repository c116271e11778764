"""One step of a search against sorting everything that could come next."""

import numpy as np
import pytest
import tensorflow as tf

from keras_attention.decoding.candidates import Alive, grow

B, K, EOS = 5, 3, 3


def alive_of(log_probs):
    return Alive(tf.zeros([B, K, 2], tf.int32), tf.constant(log_probs, tf.float32))


def sorted_candidates(log_probs, logits):
    """Of one sentence (K,), (K, V): the best 2K as (log probability, beam, token); of equal ones the first."""
    logits = logits.astype("float64")
    largest = logits.max(axis=1, keepdims=True)
    worth = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)) + log_probs[:, None]
    # As float32, in which equal logits of a beam stay equal.
    pairs = [(-np.float32(worth[beam, token]), beam, token) for beam in range(K) for token in range(logits.shape[1])]
    return sorted(pairs)[: 2 * K]


# Of blocks of one column, of 8 and of 64; in the last three there are fewer and more blocks than candidates.
@pytest.mark.parametrize("vocabulary_size", [7, 101, 40, 128, 1024])
@pytest.mark.parametrize("step", [0.0, 1.0])  # whole numbers are equal to one another again and again
def test_the_best_continuations_are_found_in_order(vocabulary_size, step):
    random = np.random.default_rng(vocabulary_size)
    logits = random.normal(0, 2, (B, K, vocabulary_size)).astype("float32")
    logits = np.round(logits) if step else logits
    log_probs = -np.arange(K, dtype="float32") * 0.37 - random.random((B, K)).astype("float32")
    candidates, broken = grow(alive_of(log_probs), tf.reshape(logits, [B * K, -1]), tf.zeros([B], tf.bool), EOS)
    assert not broken.numpy().any()
    for sentence in range(B):
        expected = sorted_candidates(log_probs[sentence], logits[sentence])
        found = [x.numpy()[sentence].tolist() for x in candidates]
        np.testing.assert_allclose(found[0], [-worth for worth, _, _ in expected], rtol=1e-5)
        assert list(zip(*found[1:], strict=True)) == [(beam, token) for _, beam, token in expected]


@pytest.mark.parametrize("vocabulary_size", [7, 128])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_without_a_distribution_breaks_its_sentence_alone(vocabulary_size, value):
    random = np.random.default_rng(3)
    logits = random.normal(size=(B, K, vocabulary_size)).astype("float32")
    log_probs = -random.random((B, K)).astype("float32")
    whole, _ = grow(alive_of(log_probs), tf.reshape(logits, [B * K, -1]), tf.zeros([B], tf.bool), EOS)
    logits[2, 1, vocabulary_size // 2] = value
    candidates, broken = grow(alive_of(log_probs), tf.reshape(logits, [B * K, -1]), tf.zeros([B], tf.bool), EOS)
    assert broken.numpy().tolist() == [False, False, True, False, False]
    others = np.arange(B) != 2
    for before, after in zip(whole, candidates, strict=True):
        np.testing.assert_array_equal(after.numpy()[others], before.numpy()[others])
    assert np.all((candidates.ids.numpy() >= 0) & (candidates.ids.numpy() < vocabulary_size))


def test_a_graph_that_does_not_know_the_size_of_the_vocabulary():
    logits = np.random.default_rng(7).normal(size=(B * K, 128)).astype("float32")
    log_probs = -np.random.default_rng(8).random((B, K)).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def in_graph(logits):
        return grow(alive_of(log_probs), logits, tf.zeros([B], tf.bool), EOS)[0]

    known, _ = grow(alive_of(log_probs), tf.constant(logits), tf.zeros([B], tf.bool), EOS)
    for mine, wanted in zip(in_graph(logits), known, strict=True):
        np.testing.assert_allclose(mine.numpy(), wanted.numpy(), rtol=1e-6)


def test_one_row_stands_for_equal_beams():
    logits = np.random.default_rng(5).normal(size=(B, 40)).astype("float32")
    log_probs = np.tile(np.float32([-0.5, -np.inf, -np.inf]), (B, 1))  # as at the beginning: one beam is alive
    one, _ = grow(alive_of(log_probs), tf.constant(logits), tf.zeros([B], tf.bool), EOS)
    each, _ = grow(alive_of(log_probs), tf.repeat(logits, K, axis=0), tf.zeros([B], tf.bool), EOS)
    for mine, wanted in zip(one, each, strict=True):
        np.testing.assert_array_equal(mine.numpy(), wanted.numpy())
