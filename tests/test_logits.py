"""Logits processors against the same written with lists, one row and one token at a time."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_attention.decoding import logits_processors as processors

pytestmark = pytest.mark.tensorflow

PAD, EOS = 0, 3
NEG_INF = float("-inf")
SEEDS = st.integers(0, 2**32 - 1)
ROWS, VOCABULARIES, LENGTHS = st.integers(0, 3), st.integers(4, 11), st.integers(0, 13)
FLOATS = tf.TensorSpec([None, None], tf.float32)
INTEGERS = tf.TensorSpec([None, None], tf.int32)
NUMBER = tf.TensorSpec([], tf.int32)
NUMBERS = tf.TensorSpec([None], tf.int32)


def cases(count):
    """Settings for a number of cases, the same each time."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


@functools.cache
def in_graph(function, *signature, **options):
    """One graph for tensors of every size, as an export has it."""
    return tf.function(functools.partial(function, **options), input_signature=signature, autograph=False)


def draw(seed, rows, vocabulary, equal=False):
    """Logits (rows, vocabulary); `equal` rounds them, so that some are the same."""
    logits = np.random.default_rng(seed).normal(0, 2, (rows, vocabulary)).astype("float32")
    return np.round(logits) if equal else logits


def draw_ids(seed, rows, length, vocabulary):
    return np.random.default_rng(seed + 1).integers(0, vocabulary, (rows, length)).astype("int32")


def forbid(row, tokens):
    return [NEG_INF if token in tokens else logit for token, logit in enumerate(row)]


def assert_rows(found, expected, shape):
    assert found.shape == shape
    np.testing.assert_array_equal(found.numpy(), np.array(expected, "float32").reshape(shape))


@cases(40)
@given(SEEDS, ROWS, VOCABULARIES, st.integers(0, 5), st.integers(0, 7))
def test_no_end_before_the_fewest_tokens(seed, rows, vocabulary, length, min_length):
    logits = draw(seed, rows, vocabulary)
    found = in_graph(processors.forbid_end, FLOATS, NUMBER, NUMBER, eos_id=EOS)(logits, length, min_length)
    # The sentence would have these tokens and eos.
    too_short = length + 1 < min_length
    assert_rows(found, [forbid(row, [EOS] if too_short else []) for row in logits], logits.shape)


@cases(20)
@given(SEEDS, ROWS, VOCABULARIES)
def test_each_row_may_have_its_own_length_and_its_own_limit(seed, rows, vocabulary):
    logits = draw(seed, rows, vocabulary)
    lengths, limits = draw_ids(seed, 2, rows, 7)
    found = in_graph(processors.forbid_end, FLOATS, NUMBERS, NUMBERS, eos_id=EOS)(logits, lengths, limits)
    expected = [
        forbid(row, [EOS] if length + 1 < limit else [])
        for row, length, limit in zip(logits, lengths, limits, strict=True)
    ]
    assert_rows(found, expected, logits.shape)


def repeating(ids, n, vocabulary):
    """The tokens that would write an n-gram of `ids` again."""
    seen = {tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)}
    last = tuple(ids[len(ids) - n + 1 :]) if n > 1 else ()
    if len(last) < n - 1:
        return []
    return [token for token in range(vocabulary) if token != EOS and (*last, token) in seen]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@cases(60)
@given(SEEDS, ROWS, LENGTHS)
def test_no_ngram_comes_twice(n, seed, rows, length):
    vocabulary = 4 if n > 2 else 7  # few words, so that many n-grams are the same
    logits, ids = draw(seed, rows, vocabulary), draw_ids(seed, rows, length, vocabulary)
    found = in_graph(processors.forbid_repeats, FLOATS, INTEGERS, length_of_ngram=n, eos_id=EOS)(logits, ids)
    expected = [forbid(row, repeating(list(some), n, vocabulary)) for row, some in zip(logits, ids, strict=True)]
    assert_rows(found, expected, logits.shape)


def force_prefix(logits, position, prefix, model):
    return processors.force_prefix(logits, position, prefix, PAD, model)


@cases(60)
@given(SEEDS, ROWS, VOCABULARIES, st.integers(0, 5), st.integers(0, 6))
def test_a_prefix_leaves_only_its_next_token(seed, rows, vocabulary, width, position):
    model, logits = draw(seed, rows, vocabulary), draw(seed + 1, rows, vocabulary)
    prefix = draw_ids(seed, rows, width, vocabulary)
    lengths = np.random.default_rng(seed).integers(0, width + 1, rows)
    prefix = np.where(np.arange(width) < lengths[:, None], np.maximum(prefix, 1), PAD).astype("int32")
    found = in_graph(force_prefix, FLOATS, NUMBER, INTEGERS, FLOATS)(logits, position, prefix, model)
    expected = [
        forbid(from_model, set(range(vocabulary)) - {tokens[position]}) if position < length else row
        for row, from_model, tokens, length in zip(logits, model, prefix, lengths, strict=True)
    ]
    assert_rows(found, expected, logits.shape)


def test_no_other_rule_forbids_what_a_prefix_says():
    model = tf.constant([[1.0, 2.0, 4.0, 8.0]])
    ruled = processors.forbid_repeats(model, tf.constant([[1, 2]]), length_of_ngram=1, eos_id=EOS)
    forced = processors.force_prefix(ruled, 2, tf.constant([[1, 2, 2]]), PAD, model)
    np.testing.assert_array_equal(forced, [[NEG_INF, NEG_INF, 4.0, NEG_INF]])


@cases(40)
@given(SEEDS, ROWS, VOCABULARIES, st.integers(1, 12), st.booleans())
def test_top_k_keeps_the_k_best(seed, rows, vocabulary, k, equal):
    logits = draw(seed, rows, vocabulary, equal)
    found = in_graph(processors.keep_top_k, FLOATS, k=k)(logits)
    assert_rows(found, [forbid(row, best_first(row)[k:]) for row in logits], logits.shape)


def best_first(row):
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def probabilities(row):
    exponentials = np.exp(np.array(row, "float64") - max(row))
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("head", [3, 256], ids=["sorts_all", "sorts_the_best"])
@cases(40)
@given(SEEDS, ROWS, VOCABULARIES, st.sampled_from([1e-6, 0.3, 0.8, 0.99]), st.booleans())
def test_top_p_keeps_the_fewest_that_reach_p(head, seed, rows, vocabulary, p, equal):
    logits = draw(seed, rows, vocabulary, equal)
    expected = []
    for row in logits:
        order = best_first(row)
        sums = np.cumsum(probabilities(row)[order])
        if np.abs(sums - p).min() < 1e-5:  # rounding decides
            return
        expected.append(forbid(row, order[int((sums < p).sum()) + 1 :]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processors, "HEAD", head)
        run = (
            in_graph(processors.keep_top_p, FLOATS, p=p)
            if head == 256
            else functools.partial(processors.keep_top_p, p=p)
        )
        assert_rows(run(logits), expected, logits.shape)


def test_a_row_that_needs_all_tokens_gets_them_in_the_graph():
    logits = draw(5, 2, 701) * 0.01  # nearly the same probability for all: half of them are more than the head
    kept = np.isfinite(in_graph(processors.keep_top_p, FLOATS, p=0.5)(logits).numpy()).sum(1)
    expected = [(np.cumsum(np.sort(probabilities(row))[::-1]) < 0.5).sum() + 1 for row in logits]
    assert kept.tolist() == expected
    assert min(kept) > processors.HEAD


@cases(40)
@given(SEEDS, ROWS, VOCABULARIES, st.sampled_from([0.0, 0.01, 0.2, 1.0]), st.booleans())
def test_min_p_keeps_what_is_near_the_best(seed, rows, vocabulary, p, equal):
    logits = draw(seed, rows, vocabulary, equal)
    found = in_graph(processors.keep_min_p, FLOATS, p=p)(logits)
    expected = [
        forbid(row, [token for token, share in enumerate(probabilities(row)) if share < p * max(probabilities(row))])
        for row in logits
    ]
    assert_rows(found, expected, logits.shape)


@pytest.mark.parametrize("temperature", [0.3, 1, 1.0, 7])
def test_temperature_divides(temperature):
    logits = draw(3, 2, 5)
    found = in_graph(processors.scale_by_temperature, FLOATS, temperature=temperature)(logits)
    np.testing.assert_allclose(found, logits / temperature, rtol=1e-6)


IDS = tf.constant([[1, 2, 1]] * 5)
PREFIX = tf.constant([[4]] * 5)
EACH = {
    "forbid_end": lambda x: processors.forbid_end(x, 3, 7, EOS),
    "forbid_repeats": lambda x: processors.forbid_repeats(x, IDS[: tf.shape(x)[0]], 1, EOS),
    "force_prefix": lambda x: processors.force_prefix(x, 0, PREFIX[: tf.shape(x)[0]], PAD, x),
    "scale_by_temperature": lambda x: processors.scale_by_temperature(x, 0.5),
    "keep_top_k": lambda x: processors.keep_top_k(x, 2),
    "keep_top_p": lambda x: processors.keep_top_p(x, 0.6),
    "keep_min_p": lambda x: processors.keep_min_p(x, 0.6),
}


@pytest.mark.parametrize("name", EACH)
def test_what_the_model_broke_stays_broken_and_breaks_no_other_row(name):
    nan, infinity = float("nan"), float("inf")
    logits = draw(2, 5, 7)
    logits[0, 1] = nan  # a token that may be forbidden
    logits[1, 5] = nan  # one that is forbidden by nothing but a truncation
    logits[2, 1] = infinity
    logits[3] = NEG_INF
    found = tf.function(EACH[name])(logits).numpy()
    assert np.isnan(found[:2]).any(axis=1).all()
    np.testing.assert_array_equal(np.isnan(found[:2]), np.isnan(logits[:2]))
    assert np.isnan(found[2]).any() or (found[2] == infinity).any()
    np.testing.assert_array_equal(found[3], NEG_INF)
    np.testing.assert_array_equal(found[4:], EACH[name](logits[4:]))
    assert np.isfinite(found[4]).any()


def test_the_last_token_left_can_be_forbidden():
    logits = tf.constant([[1.0, NEG_INF, NEG_INF, NEG_INF]])
    found = processors.forbid_repeats(logits, tf.constant([[0]]), length_of_ngram=1, eos_id=EOS)
    np.testing.assert_array_equal(found, [[NEG_INF] * 4])


def test_all_of_them_in_a_loop_of_a_graph():
    """A row writes the best token that is allowed, eight times; so does a loop over lists."""
    vocabulary, steps, prefix = 6, 8, [[5, 5], [2, PAD]]
    table = draw(11, 2 * steps, vocabulary).reshape(2, steps, vocabulary)
    table[:, :, EOS] = 9  # the model would end at once

    @tf.function(autograph=False)
    def write():
        def step(t, ids):
            model = tf.constant(table)[:, t]
            logits = processors.forbid_end(model, t, 5, EOS)
            logits = processors.forbid_repeats(logits, ids, 2, EOS)
            logits = processors.force_prefix(logits, t, tf.constant(prefix), PAD, model)
            logits = processors.keep_min_p(
                processors.keep_top_p(processors.keep_top_k(processors.scale_by_temperature(logits, 0.7), 4), 0.9), 0.1
            )
            return t + 1, tf.concat([ids, tf.argmax(logits, 1, output_type=tf.int32)[:, None]], axis=1)

        shapes = tf.TensorShape([]), tf.TensorShape([2, None])
        return tf.while_loop(lambda t, ids: t < steps, step, (0, tf.zeros([2, 0], tf.int32)), shapes)[1]

    for found, logits, start in zip(write().numpy().tolist(), table, prefix, strict=True):
        ids = []
        for t, row in enumerate(logits):
            forbidden = [*repeating(ids, 2, vocabulary), *([EOS] if t + 1 < 5 else [])]
            token = max(set(range(vocabulary)) - set(forbidden), key=lambda token, row=row: row[token])
            ids.append(start[t] if t < len(start) and start[t] != PAD else token)
        assert found == ids
        assert ids[4] == EOS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: processors.forbid_repeats(x, IDS, 0, EOS),
            r"length_of_ngram must be 1 .*Received: length_of_ngram=0",
        ),
        (
            lambda x: processors.scale_by_temperature(x, 0),
            r"temperature must be a number above 0.*Received: temperature=0",
        ),
        (lambda x: processors.scale_by_temperature(x, math.nan), r"Received: temperature=nan"),
        (lambda x: processors.scale_by_temperature(x, math.inf), r"Received: temperature=inf"),
        (lambda x: processors.keep_top_k(x, 0), r"k must be 1 .*Received: k=0"),
        (lambda x: processors.keep_top_p(x, 0), r"p must be above 0 and at most 1.*Received: p=0"),
        (lambda x: processors.keep_top_p(x, 1.01), r"Received: p=1.01"),
        (lambda x: processors.keep_top_p(x, math.nan), r"Received: p=nan"),
        (lambda x: processors.keep_min_p(x, -0.1), r"p must be between 0.*Received: p=-0.1"),
        (lambda x: processors.keep_min_p(x, 1.5), r"Received: p=1.5"),
    ],
)
def test_numbers_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tf.zeros([5, 7]))


def test_what_forbids_nothing_costs_nothing():
    logits = tf.constant(draw(4, 2, 5))
    assert (
        processors.scale_by_temperature(logits, 1)
        is processors.keep_top_p(logits, 1)
        is processors.keep_min_p(logits, 0)
        is logits
    )
