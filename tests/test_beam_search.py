"""Beam search against enumeration, and against a search written with plain lists."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from keras_attention.decoding import beam_search, length_penalty

pytestmark = pytest.mark.tensorflow

PAD, BOS, EOS = 0, 2, 3
V = 5
DEPTH = 5  # prefixes of at most this many tokens have logits
NODES = sum(V**depth for depth in range(DEPTH + 1))  # 3906 prefixes


def make_table(sentences, seed=19, scale=2.0):
    """Logits (sentences, NODES, V) for every prefix; node c has children c·V + 1 to c·V + V."""
    return np.random.default_rng(seed).normal(0, scale, (sentences, NODES, V)).astype("float32")


def node(tokens):
    code = 0
    for token in tokens:
        code = code * V + token + 1
    return code


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def log_prob(table, tokens):
    return sum(log_softmax(table[node(tokens[:index])])[token] for index, token in enumerate(tokens))


def penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def table_step(table):
    """A model that looks its logits up by the prefix, which is its state and grows as a cache."""
    table = tf.constant(table)

    def step(ids, state):
        prefix = tf.concat([state["prefix"], ids[:, None]], axis=1)
        code = tf.zeros_like(ids)
        for index in range(1, DEPTH + 1):  # index 0 holds bos
            exists = index < tf.shape(prefix)[1]
            token = prefix[:, tf.minimum(index, tf.shape(prefix)[1] - 1)]
            code = tf.where(exists, code * V + token + 1, code)
        logits = tf.gather_nd(table, tf.stack([state["sentence"], code], axis=1))
        return logits, {"sentence": state["sentence"], "prefix": prefix}

    return step


def search(table, beams, max_length, **options):
    batch = len(table)
    state = {
        "sentence": tf.repeat(tf.range(batch), beams),
        "prefix": tf.zeros([batch * beams, 0], tf.int32),
    }
    return beam_search(
        table_step(table),
        state,
        batch_size=batch,
        beam_size=beams,
        max_length=max_length,
        **options,
    )


def as_lists(found, sentence):
    """The hypotheses of one sentence as (score, tokens), without empty slots."""
    rows = zip(*(x.numpy()[sentence] for x in (found.scores, found.ids, found.lengths)), strict=True)
    return [(score, ids[:length].tolist()) for score, ids, length in rows if length]


def assert_same(found, expected):
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=1e-5)


def enumerate_all(table, max_length, alpha):
    """Every sentence of at most `max_length` tokens, best first."""
    words = [token for token in range(V) if token != EOS]
    sentences = [[*tokens, EOS] for length in range(max_length) for tokens in itertools.product(words, repeat=length)]
    scored = [(log_prob(table, s) / penalty(len(s), alpha), s) for s in sentences]
    return sorted(scored, key=lambda pair: -pair[0])


def list_search(table, beams, max_length, alpha, num_return):
    """The rules of `beam_search` for one sentence, with lists."""
    live, finished = [(0.0, [])], []
    for length in range(1, max_length + 1):
        tokens = [EOS] if length == max_length else range(V)
        candidates = [
            (total + log_softmax(table[node(prefix)])[token], [*prefix, token])
            for total, prefix in live
            for token in tokens
        ]
        candidates = sorted(candidates, key=lambda pair: -pair[0])[: 2 * beams]
        finished += [
            (total / penalty(length, alpha), tokens) for total, tokens in candidates[:beams] if tokens[-1] == EOS
        ]
        finished = sorted(finished, key=lambda pair: -pair[0])[:beams]
        live = [pair for pair in candidates if pair[1][-1] != EOS][:beams]
        if not live or (len(finished) == beams and finished[-1][0] >= live[0][0] / penalty(length, alpha)):
            break
        bound = live[0][0] / penalty(max_length, alpha)
        if len(finished) >= num_return and finished[num_return - 1][0] >= bound:
            break
    return finished[:num_return]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.5])
@pytest.mark.parametrize("max_length", [1, 3, 5])
def test_wide_beams_find_the_best_of_all_sentences(alpha, max_length):
    table = make_table(2)
    beams = 5 * 4 ** max(max_length - 2, 0)  # room for every continuation of every live prefix
    number = min(beams, 7)
    found = search(table, beams, max_length, length_penalty=alpha, num_return=number)
    for sentence in range(2):
        expected = enumerate_all(table[sentence], max_length, alpha)[:number]
        assert_same(as_lists(found, sentence), expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize(("beams", "number"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (7, 2)])
def test_narrow_beams_follow_the_rules_written_with_lists(alpha, beams, number):
    table = make_table(11, seed=23, scale=1.0)
    found = search(table, beams, DEPTH, length_penalty=alpha, num_return=number)
    for sentence in range(11):
        expected = list_search(table[sentence], beams, DEPTH, alpha, number)
        assert_same(as_lists(found, sentence), expected)


@pytest.mark.parametrize("beams", [2, 3, 4])
def test_a_sure_hypothesis_is_not_given_up_for_ends_that_come_too_early(beams):
    """The model is sure of five tokens, and its second choice is to end at once, at each step."""
    wanted = [1, 4, 1, 4, EOS]

    def step(ids, state):
        index = tf.shape(state)[1]
        logits = tf.fill([tf.size(ids), V], -12.0)
        second = tf.one_hot(EOS, V) * 4.0
        first = tf.one_hot(tf.constant(wanted)[index], V) * 24.0
        return logits + second + first, tf.concat([state, ids[:, None]], axis=1)

    found = beam_search(
        step, tf.zeros([beams, 0], tf.int32), batch_size=1, beam_size=beams, max_length=9, length_penalty=0.6
    )
    assert found.ids.numpy()[0, 0, :5].tolist() == wanted
    assert found.scores.numpy()[0, 0] > -0.01


def test_one_beam_is_greedy_decoding():
    table = make_table(7, seed=3)
    found = search(table, 1, DEPTH)
    for sentence in range(7):
        tokens = []
        while not tokens or tokens[-1] != EOS:
            best = int(np.argmax(table[sentence, node(tokens)]))
            tokens.append(EOS if len(tokens) == DEPTH - 1 else best)
        ((score, found_tokens),) = as_lists(found, sentence)
        assert found_tokens == tokens
        expected = log_prob(table[sentence], tokens) / penalty(len(tokens), 0.6)
        np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_a_sentence_that_finishes_early_wins():
    table = make_table(1, scale=0.0)  # all tokens alike, but for a likely eos after token 4
    table[0, node([]), 4] = 3.0
    table[0, node([4]), EOS] = 6.0
    found = search(table, 3, DEPTH)
    assert as_lists(found, 0)[0][1] == [4, EOS]
    assert found.ids.shape[2] < DEPTH  # nothing live could overtake it: the search stopped


def test_a_later_sentence_overtakes_an_earlier_one():
    table = make_table(1, scale=0.0)
    table[0, node([]), [EOS, 4]] = 4.0, 3.9
    table[0, node([4]), 1] = table[0, node([4, 1]), 1] = table[0, node([4, 1, 1]), EOS] = 12.0
    best = as_lists(search(table, 2, DEPTH, length_penalty=1.0), 0)
    assert best[0][1] == [4, 1, 1, EOS]
    best = as_lists(search(table, 2, DEPTH, length_penalty=0.0), 0)
    assert best[0][1] == [EOS]


def test_an_eos_below_the_best_beams_is_not_finished():
    table = make_table(1, scale=0.0)
    table[0, node([])] = [5.0, 4.0, 0.0, 3.0, 0.0]  # eos third: beyond two beams, within three
    assert [EOS] not in [s for _, s in as_lists(search(table, 2, 2, num_return=2), 0)]
    assert [EOS] in [s for _, s in as_lists(search(table, 3, 2, num_return=3), 0)]


def test_scores_are_those_of_the_tokens_and_fall():
    table = make_table(5, seed=13, scale=1.0)
    found = search(table, 4, DEPTH, num_return=4)
    for sentence in range(5):
        hypotheses = as_lists(found, sentence)
        assert len({tuple(tokens) for _, tokens in hypotheses}) == 4
        for score, tokens in hypotheses:
            expected = log_prob(table[sentence], tokens) / penalty(len(tokens), 0.6)
            np.testing.assert_allclose(score, expected, rtol=1e-5)
    assert (np.diff(found.scores) <= 0).all()


def test_padding_fills_up_after_the_end():
    found = search(make_table(5, seed=13, scale=1.0), 4, DEPTH, num_return=4)
    beyond = np.arange(found.ids.shape[2]) >= found.lengths.numpy()[..., None]
    assert beyond.any()
    assert (found.ids.numpy()[beyond] == PAD).all()


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_a_single_sentence_gives_what_it_gives_in_a_batch(beams):
    table = make_table(6, seed=29, scale=1.0)
    limits = [5, 1, 3, 2, 5, 4]
    found = search(table, beams, tf.constant(limits), num_return=beams)
    for sentence, limit in enumerate(limits):
        single = search(table[sentence : sentence + 1], beams, limit, num_return=beams)
        assert_same(as_lists(found, sentence), as_lists(single, 0))
        assert all(len(tokens) <= limit for _, tokens in as_lists(single, 0))


@pytest.mark.parametrize("batch", [2, 5])
def test_a_done_sentence_leaves_the_batch_when_a_quarter_is_done_and_is_fed_pads_until_then(batch):
    table = make_table(batch, scale=0.0)
    table[0, node([]), EOS] = 30.0
    table[1:, :, 1] = 30.0
    fed = []
    step = table_step(table)

    def watched(ids, state):
        fed.append(ids.numpy().reshape(-1, 2))
        return step(ids, state)

    state = {"sentence": tf.repeat(tf.range(batch), 2), "prefix": tf.zeros([2 * batch, 0], tf.int32)}
    found = beam_search(watched, state, batch_size=batch, beam_size=2, max_length=DEPTH)
    assert len(fed) == DEPTH
    assert (fed[0] == BOS).all()
    for ids in fed[1:]:
        assert len(ids) == (batch - 1 if batch == 2 else batch)
        assert (ids[-(batch - 1) :, 0] == 1).all()
        assert batch == 2 or (ids[0] == PAD).all()
    assert as_lists(found, 0)[0][1] == [EOS]
    assert [as_lists(found, sentence)[0][1] for sentence in range(1, batch)] == [[1] * (DEPTH - 1) + [EOS]] * (
        batch - 1
    )


def test_slots_without_a_hypothesis_are_empty():
    found = search(make_table(1), 4, 1, num_return=4)  # one token: only [eos] is possible
    assert found.lengths.numpy().tolist() == [[1, 0, 0, 0]]
    assert found.ids.numpy().tolist() == [[[EOS], [PAD], [PAD], [PAD]]]
    assert np.isneginf(found.scores[0, 1:]).all()


def test_more_beams_than_tokens():
    table = make_table(2)
    found = search(table, 13, 3, num_return=13)
    for sentence in range(2):
        expected = list_search(table[sentence], 13, 3, 0.6, 13)
        assert_same(as_lists(found, sentence), expected)


def test_an_empty_batch():
    for max_length in (DEPTH, tf.zeros([0], tf.int32)):
        found = search(make_table(0), 3, max_length, num_return=2)
        assert found.ids.shape[:2] == (0, 2)
        assert found.scores.shape == found.lengths.shape == (0, 2)


def test_in_a_graph_with_an_unknown_batch():
    table = make_table(3, seed=31, scale=1.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int32)])
    def run(sentence, limits):
        batch = tf.size(sentence)
        state = {
            "sentence": tf.repeat(sentence, 3),
            "prefix": tf.zeros([batch * 3, 0], tf.int32),
        }
        return beam_search(
            table_step(table),
            state,
            batch_size=batch,
            beam_size=3,
            max_length=limits,
            num_return=3,
        )

    found = run([0, 1, 2], [5, 2, 4])
    expected = search(table, 3, tf.constant([5, 2, 4]), num_return=3)
    for sentence in range(3):
        assert_same(as_lists(found, sentence), as_lists(expected, sentence))
    assert run([], []).ids.shape == (0, 3, 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_length must be 1 or more"):
        run([0, 1], [5, 0])


class KeyAndValue(NamedTuple):
    key: tf.Tensor
    value: tf.Tensor


def test_a_growing_state_of_named_tuples_is_reordered_with_the_beams():
    """What a hypothesis left in the state at each step must be its own tokens."""
    table = make_table(3, seed=37, scale=0.5)
    step = table_step(table)
    seen = []

    def watched(ids, state):
        logits, inner = step(ids, state["table"])
        token = tf.cast(ids, tf.float32)[:, None, None, None] * tf.ones([1, 1, 2, 3])
        ((key, value),) = state["cache"]  # one grows on axis 1, the other on axis 2
        key = tf.concat([key, token], 1)
        value = tf.concat([value, -tf.transpose(token, [0, 2, 1, 3])], 2)
        seen.append((inner["prefix"], key, tf.transpose(value, [0, 2, 1, 3])))
        return logits, {"table": inner, "cache": (KeyAndValue(key, value),)}

    state = {
        "table": {
            "sentence": tf.repeat(tf.range(3), 4),
            "prefix": tf.zeros([12, 0], tf.int32),
        },
        "cache": (KeyAndValue(tf.zeros([12, 0, 2, 3]), tf.zeros([12, 2, 0, 3])),),
    }
    options = {"batch_size": 3, "beam_size": 4, "max_length": DEPTH, "num_return": 4}
    eager = beam_search(watched, state, **options)
    assert len(seen) == DEPTH
    for prefix, key, value in seen:
        expected = np.broadcast_to(prefix.numpy()[:, :, None, None], key.shape)
        assert (key == expected).numpy().all()
        assert (value == -expected).numpy().all()
    in_graph = tf.function(lambda: beam_search(watched, state, **options))()
    for sentence in range(3):
        assert_same(as_lists(in_graph, sentence), as_lists(eager, sentence))


def test_forbidden_tokens_never_come():
    table = make_table(2, scale=1.0)
    table[:, :, 1] = -np.inf
    found = search(table, 3, DEPTH, num_return=3)
    assert np.isfinite(found.scores).all()
    assert 1 not in found.ids.numpy()
    table[:, :, EOS] = -np.inf  # no sentence can end
    found = search(table, 3, DEPTH, num_return=3)
    assert np.isneginf(found.scores).all()
    assert (found.lengths.numpy() == 0).all()


@pytest.mark.parametrize("logits", [[np.nan] * V, [0, np.nan, 1, 2, 3], [np.inf] + [0] * 4])
@pytest.mark.parametrize("beams", [1, 3])
def test_unusable_logits_end_their_sentence_with_a_score_of_nan(logits, beams):
    table = make_table(3, seed=41, scale=0.1)
    table[:, :, EOS] = -3.0
    clean = search(table, beams, DEPTH, num_return=beams)
    table[1, node([0] * 2 + [1]) : node([4] * 3) + 1] = logits  # from the fourth step on
    table[1, node([]), [EOS, 4]] = 0.5, 1.0  # with more beams, one finishes before: it is gone too
    found = search(table, beams, DEPTH, num_return=beams)
    assert np.isnan(found.scores[1]).all()
    assert (found.lengths.numpy()[1] == 0).all()
    assert (found.ids.numpy()[1] == PAD).all()
    for sentence in (0, 2):
        assert_same(as_lists(found, sentence), as_lists(clean, sentence))


def test_unusable_logits_of_a_done_sentence_change_nothing():
    table = make_table(2, seed=43, scale=0.1)
    table[0, node([]), EOS] = 30.0
    clean = search(table, 2, DEPTH)
    table[0, 1:] = np.nan
    found = search(table, 2, DEPTH)
    assert_same(as_lists(found, 0), as_lists(clean, 0))
    assert as_lists(found, 0)[0][1] == [EOS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, r"beam_size must be 1 .* or more. Received: beam_size=0"),
        ({"beam_size": 2, "num_return": 3}, "fewer hypotheses .* num_return=3, beam_size=2"),
        ({"num_return": 0}, "num_return must be between 1 and beam_size"),
        ({"max_length": 0}, "max_length must be 1 or more .* Received: max_length=0"),
        ({"max_length": [3, -1]}, r"Received: max_length=\[3, -1\]"),
        (
            {"max_length": [[3]]},
            r"one for each sentence \(B,\). Received: max_length\.shape=\(1, 1\)",
        ),
        ({"length_penalty": -0.5}, "0 .none. or more; .* length_penalty=-0.5"),
        ({"length_penalty": float("nan")}, "length_penalty=nan"),
        ({"eos_id": 5}, "eos_id must be a token of the vocabulary of 5. Received: eos_id=5"),
        (
            {"state": tf.zeros([2, 3])},
            r"keras.ops.repeat\(x, beam_size, axis=0\). Received: shape=\(2, 3\), batch_size=2",
        ),
        ({"state": tf.constant(1.0)}, r"one row for each beam"),
    ],
)
def test_bad_options(options, message):
    def step(ids, state):
        return tf.zeros([tf.size(ids), V]), state

    options = {"state": (), "batch_size": 2, "max_length": 3} | options
    with pytest.raises(ValueError, match=message):
        beam_search(step, **options)


def test_logits_of_a_wrong_rank():
    def step(ids, state):
        return tf.zeros([tf.size(ids), 1, V]), state

    with pytest.raises(ValueError, match=r"must return the logits .* Received: logits\.shape=\(8, 1, 5\)"):
        beam_search(step, (), batch_size=2, max_length=3)


def test_length_penalty():
    lengths = tf.constant([1, 7, 19])
    np.testing.assert_allclose(length_penalty(lengths, 0.6), ((5 + lengths.numpy()) / 6) ** 0.6)
    assert length_penalty(lengths, 0.0).numpy().tolist() == [1.0, 1.0, 1.0]


def test_defaults_are_the_papers():
    """Four beams, an exponent of 0.6, one hypothesis, and the ids of the tokenizer's special tokens."""
    table = make_table(7, seed=47, scale=1.0)
    state = {"sentence": tf.repeat(tf.range(7), 4), "prefix": tf.zeros([28, 0], tf.int32)}
    first = []

    def step(ids, state):
        first.append(ids.numpy())
        return table_step(table)(ids, state)

    found = beam_search(step, state, batch_size=7, max_length=DEPTH)
    assert (first[0] == BOS).all()
    for sentence in range(7):
        assert_same(as_lists(found, sentence), list_search(table[sentence], 4, DEPTH, 0.6, 1))
    beyond = np.arange(found.ids.shape[2]) >= found.lengths.numpy()[..., None]
    assert beyond.any() and (found.ids.numpy()[beyond] == PAD).all()


def test_other_special_ids():
    """The same table with the tokens renamed gives the same hypotheses, renamed."""
    table = make_table(7, seed=53, scale=1.0)
    expected = search(table, 3, DEPTH, num_return=3)
    # Token 1 ends, 3 is a word, and 4 fills up.
    swapped = np.zeros_like(table)
    rename = {0: 0, 1: 3, 2: 2, 3: 1, 4: 4}
    for code in range(sum(V**depth for depth in range(DEPTH))):
        tokens, rest = [], code
        while rest:
            tokens.append((rest - 1) % V)
            rest = (rest - 1) // V
        swapped[:, node([rename[token] for token in tokens[::-1]])] = table[:, code][:, list(rename.values())]
    found = search(swapped, 3, DEPTH, num_return=3, eos_id=1, pad_id=4, bos_id=0)
    for sentence in range(7):
        mine, wanted = as_lists(found, sentence), as_lists(expected, sentence)
        assert_same(mine, [(score, [rename[token] for token in tokens]) for score, tokens in wanted])
    beyond = np.arange(found.ids.shape[2]) >= found.lengths.numpy()[..., None]
    assert beyond.any() and (found.ids.numpy()[beyond] == 4).all()


def test_an_empty_slot_whose_logits_are_broken_spoils_no_sentence():
    """At the first step all beams but one are empty."""
    table = make_table(2, seed=59, scale=1.0)
    expected = search(table, 3, 3, num_return=3)
    step = table_step(table)

    def broken(ids, state):
        logits, after = step(ids, state)
        empty = (tf.range(tf.size(ids)) % 3 > 0) & (tf.shape(after["prefix"])[1] == 1)
        return tf.where(empty[:, None], np.nan, logits), after

    state = {"sentence": tf.repeat(tf.range(2), 3), "prefix": tf.zeros([6, 0], tf.int32)}
    found = beam_search(broken, state, batch_size=2, beam_size=3, max_length=3, num_return=3)
    for sentence in range(2):
        assert_same(as_lists(found, sentence), as_lists(expected, sentence))


@pytest.mark.parametrize(("batch", "rows"), [(3, 2), (4, 3), (5, 5)])
def test_sentences_leave_the_batch_once_a_quarter_is_done(batch, rows):
    table = make_table(batch, scale=0.0)
    table[0, node([]), EOS] = 30.0
    table[1:, :, 1] = 30.0
    fed = []
    step = table_step(table)

    def watched(ids, state):
        fed.append(len(ids))
        return step(ids, state)

    state = {"sentence": tf.range(batch), "prefix": tf.zeros([batch, 0], tf.int32)}
    beam_search(watched, state, batch_size=batch, beam_size=1, max_length=DEPTH)
    assert fed == [batch] + [rows] * (DEPTH - 1)


def test_a_search_stops_where_nothing_live_can_win():
    """With an exponent of 0 a live hypothesis that is worth what the finished one is worth cannot overtake it."""
    for likely, steps in ((0.0, 1), (np.log(2.0), DEPTH)):
        table = np.full((1, NODES, V), -np.inf, "float32")
        table[0, :, 1] = 0.0
        table[0, node([]), EOS] = -likely
        found = search(table, 2, DEPTH, length_penalty=0.0)
        assert found.ids.shape[2] == steps
        assert as_lists(found, 0)[0][1] == [EOS]


def test_the_first_and_the_last_token_of_the_vocabulary_may_be_the_end():
    for eos in (0, V - 1):
        table = make_table(1, scale=0.0)
        table[0, :, eos] = 9.0
        assert search(table, 2, 3, eos_id=eos, pad_id=1).ids.numpy()[0, 0, 0] == eos
    with pytest.raises(ValueError, match="Received: eos_id=-1"):
        search(make_table(1), 2, 3, eos_id=-1)


@pytest.mark.parametrize("rows", [3, 5])
def test_a_state_of_a_row_too_few_or_too_many_is_refused(rows):
    with pytest.raises(
        ValueError, match=rf"one row for each beam.*Received: shape=\({rows}, 1\), batch_size=2, beam_size=2"
    ):
        beam_search(
            lambda ids, state: (tf.zeros([tf.size(ids), V]), state),
            tf.zeros([rows, 1]),
            batch_size=2,
            beam_size=2,
            max_length=2,
        )


def test_former_names_of_arguments():
    table = make_table(2, seed=61)

    def only_token_4(logits, ids, step):
        return tf.where(tf.range(V) == 4, logits, -1e30)

    expected = search(table, 3, 3, logits_processor=only_token_4)
    result = search(table, 3, 3, rules=only_token_4)
    np.testing.assert_array_equal(result.ids, expected.ids)
    assert (result.ids.numpy()[:, 0, 0] == 4).all()
