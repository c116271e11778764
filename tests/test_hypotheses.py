"""One step of a search against sorting everything that could come next."""

import numpy as np
import pytest
import tensorflow as tf

from keras_attention.decoding.hypotheses import Alive, Candidates, grow, keep_alive

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
def test_a_row_without_a_distribution_breaks_only_its_sentence(vocabulary_size, value):
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


def test_one_row_may_represent_equal_beams():
    logits = np.random.default_rng(5).normal(size=(B, 40)).astype("float32")
    log_probs = np.tile(np.float32([-0.5, -np.inf, -np.inf]), (B, 1))  # as at the first step: one beam is alive
    one, _ = grow(alive_of(log_probs), tf.constant(logits), tf.zeros([B], tf.bool), EOS)
    each, _ = grow(alive_of(log_probs), tf.repeat(logits, K, axis=0), tf.zeros([B], tf.bool), EOS)
    for mine, wanted in zip(one, each, strict=True):
        np.testing.assert_array_equal(mine.numpy(), wanted.numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_of_an_empty_slot_break_nothing(value):
    """The model also computes logits for a slot without a hypothesis, which nothing uses."""
    random = np.random.default_rng(13)
    logits = random.normal(size=(B, K, 7)).astype("float32")
    log_probs = -random.random((B, K)).astype("float32")
    log_probs[2, 1] = -np.inf
    clean, _ = grow(alive_of(log_probs), tf.reshape(logits, [B * K, -1]), tf.zeros([B], tf.bool), EOS)
    logits[2, 1] = value
    candidates, broken = grow(alive_of(log_probs), tf.reshape(logits, [B * K, -1]), tf.zeros([B], tf.bool), EOS)
    assert not broken.numpy().any()
    for mine, wanted in zip(candidates, clean, strict=True):
        np.testing.assert_array_equal(mine.numpy(), wanted.numpy())
    assert 1 not in candidates.parents.numpy()[2, np.isfinite(candidates.log_probs.numpy()[2])]


@pytest.mark.parametrize("vocabulary_size", [7, 128])
def test_a_broken_row_breaks_its_sentence_at_any_token(vocabulary_size):
    log_probs = -np.random.default_rng(17).random((B, K)).astype("float32")
    for index in (0, vocabulary_size - 1):
        logits = np.zeros((B, K, vocabulary_size), "float32")
        logits[3, 0, index] = np.nan
        logits[1, 2] = -np.inf
        _, broken = grow(alive_of(log_probs), tf.reshape(logits, [B * K, -1]), tf.zeros([B], tf.bool), EOS)
        assert broken.numpy().tolist() == [False, True, False, True, False]


def test_a_forced_token_is_the_only_one():
    """The last step leaves eos at what the model gives it; a prefix costs nothing, also where it is the last step."""
    random = np.random.default_rng(19)
    logits = random.normal(size=(B, K, 11)).astype("float32")
    log_probs = -np.sort(random.random((B, K)).astype("float32"))
    final = tf.constant([True, False, True, False, False])
    prefix = tf.constant([-1, 4, 0, -1, EOS])
    candidates, broken = grow(alive_of(log_probs), tf.reshape(logits, [B * K, -1]), final, EOS, prefix)
    assert not broken.numpy().any()
    worth = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for sentence, token in ((0, EOS), (1, 4), (2, 0), (4, EOS)):
        expected = log_probs[sentence] + (worth[sentence, :, EOS] if sentence == 0 else 0)
        order = np.argsort(-expected)
        np.testing.assert_allclose(candidates.log_probs.numpy()[sentence, :K], expected[order], rtol=1e-5)
        assert candidates.parents.numpy()[sentence, :K].tolist() == order.tolist()
        assert candidates.ids.numpy()[sentence, :K].tolist() == [token] * K
        assert np.isneginf(candidates.log_probs.numpy()[sentence, K:]).all()
    free = [x.numpy()[3].tolist() for x in candidates]
    expected = sorted_candidates(log_probs[3], logits[3])
    assert list(zip(*free[1:], strict=True)) == [(beam, token) for _, beam, token in expected]


def test_a_sampled_token_is_taken_at_the_cost_that_the_model_gives_it():
    logits = np.random.default_rng(23).normal(size=(B, 11)).astype("float32")
    sampled = tf.constant([0, 10, 5, 3, 7])
    alive = Alive(tf.zeros([B, 1, 2], tf.int32), tf.fill([B, 1], -0.25))
    final = tf.constant([False, False, True, False, False])
    candidates, _ = grow(alive, tf.constant(logits), final, EOS, None, sampled)
    expected = [0, 10, EOS, 3, 7]  # the last step ends, whatever was sampled
    assert candidates.ids.numpy()[:, 0].tolist() == expected
    worth = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(candidates.log_probs.numpy()[:, 0], worth[range(B), expected] - 0.25, rtol=1e-5)
    assert np.isneginf(candidates.log_probs.numpy()[:, 1:]).all()


def test_the_best_that_do_not_end_stay_alive():
    ids = tf.constant([[[5, 6], [7, 8], [9, 9]]])  # (1, K, t)
    candidates = Candidates(
        tf.constant([[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]]),
        tf.constant([[2, 0, 1, 2, 1, 0]]),
        tf.constant([[EOS, 4, EOS, 4, 5, 1]]),
    )
    alive, parents = keep_alive(Alive(ids, tf.zeros([1, K])), candidates, EOS)
    assert alive.log_probs.numpy().tolist() == [[-2.0, -4.0, -5.0]]
    assert parents.numpy().tolist() == [[0, 2, 1]]
    assert alive.ids.numpy().tolist() == [[[5, 6, 4], [9, 9, 4], [7, 8, 5]]]
