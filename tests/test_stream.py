"""Tokens as they are decoded, against whole passes of the models over all that is written so far."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import log_softmax

import keras_attention as ka
from keras_attention.decoding.logits_processors import forbid_repeats, force_prefix
from keras_attention.decoding.sampling import greedy, sample
from keras_attention.decoding.streaming import compiled_step, stream_tokens

pytestmark = pytest.mark.tensorflow

PAD, BOS, EOS = 0, 2, 3
B, S, V, LONGEST = 3, 7, 13, 11
CONFIG = ka.TransformerConfig(V, num_layers=2, hidden_dim=24, intermediate_dim=29, num_heads=3, initialization="glorot")
NAN, NEG_INF = float("nan"), float("-inf")


def best(logits, ids):
    return greedy(logits)


def varied(logits, ids):
    return greedy(forbid_repeats(logits, ids, 2, EOS))


def sampled(logits, ids):
    return sample(logits, [7, 11], tf.shape(ids)[1])


def stream(step, state, last_ids, choose=best, max_length=LONGEST):
    return stream_tokens(step, state, last_ids, max_length=max_length, eos_id=EOS, choose=choose, pad_id=PAD)


def collect(tokens):
    """Ids, log probabilities and what is done (B, t) of a whole stream."""
    return tuple(np.stack(each, axis=1) for each in zip(*tokens, strict=True))


def write(next_logits, batch, choose=best):
    """The same with nothing kept from step to step: `next_logits` reads all that is written."""
    ids, log_probs, done = np.zeros((batch, 0), "int32"), [], np.zeros(batch, bool)
    while not done.all():
        logits = np.array(next_logits(ids))
        chosen = np.array(choose(logits, ids)[0]) if ids.shape[1] + 1 < LONGEST else np.full(batch, EOS)
        chosen = np.where(done, PAD, chosen)
        each = [log_softmax(row)[token] for row, token in zip(logits, chosen, strict=True)]
        log_probs.append(np.where(done, 0, each))
        done |= chosen == EOS
        ids = np.concatenate([ids, chosen[:, None].astype("int32")], axis=1)
    return ids, np.stack(log_probs, axis=1)


def assert_same(found, expected):
    ids, log_probs, done = found
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(log_probs, expected[1], atol=1e-4)
    np.testing.assert_array_equal(done, np.cumsum(expected[0] == EOS, axis=1) > 0)
    assert len({tuple(row) for row in ids.tolist()}) == len(ids), "rows that differ"


def made(model_class, seed):
    """A model whose weights are large enough that rows differ."""
    keras.utils.set_random_seed(seed)
    model = model_class(CONFIG)
    for weight in model.weights:
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(weight * 2)
    return model


@pytest.fixture(scope="module")
def translator():
    """A model, and a step whose state holds all that changes from batch to batch."""
    model = made(ka.Transformer, seed=1)

    def start(source):
        memory, mask = model.encode(source)
        return {"cache": model.init_cache(memory, len(source)), "mask": mask}

    def step(ids, state):
        logits, cache = model.decode_step(ids[:, None], state["cache"], state["mask"])
        return logits[:, 0], {"cache": cache, "mask": state["mask"]}

    return model, start, compiled_step(step, start(np.ones((1, 2), "int32")))


@pytest.mark.parametrize("choose", [varied, sampled])
def test_translations_come_token_by_token(translator, choose):
    model, start, step = translator
    for batch, length in ((B, S), (2, 5)):
        source = np.random.randint(4, V, (batch, length)).astype("int32")
        source[0, 4:] = PAD

        def next_logits(ids, source=source):
            target = np.concatenate([np.full((len(ids), 1), BOS), ids], axis=1)
            return model({"source": source, "target": target})[:, -1]

        found = collect(stream(step, start(source), [BOS] * batch, choose))
        assert_same(found, write(next_logits, batch, choose))
    assert step.experimental_get_tracing_count() == 1


@pytest.fixture(scope="module")
def language_model():
    model = made(ka.CausalTransformer, seed=1)

    def step(ids, cache):
        logits, cache = model.decode_step(ids[:, None], cache)
        return logits[:, 0], cache

    return model, compiled_step(step, model.init_cache(1))


@pytest.mark.parametrize("choose", [varied, sampled])
def test_prompts_are_continued(language_model, choose):
    model, step = language_model
    prompt = np.random.randint(4, V, (B, 5)).astype("int32")
    _, cache = model.decode_step(prompt[:, :-1], model.init_cache(B))
    found = collect(stream(step, cache, prompt[:, -1], choose))
    expected = write(lambda ids: model(np.concatenate([prompt, ids], axis=1))[:, -1], B, choose)
    assert_same(found, expected)


def test_prompts_of_different_lengths_share_a_batch(language_model):
    model, step = language_model
    prompts = np.random.randint(4, V, (2, 5)).astype("int32")
    prompts[1, 3:] = PAD
    # As far as the shortest goes they are read at once; the others' tokens are forced.
    _, cache = model.decode_step(prompts[:, :2], model.init_cache(2))

    def choose(logits, ids):
        return greedy(force_prefix(logits, tf.shape(ids)[1], prompts[:, 3:], PAD, logits))

    found = [row[: row.index(EOS)] for row in collect(stream(step, cache, prompts[:, 2], choose))[0].tolist()]
    for row, length in enumerate((5, 3)):
        prompt = prompts[row : row + 1, :length]
        single = write(lambda ids, prompt=prompt: model(np.concatenate([prompt, ids], axis=1))[:, -1], 1)[0][0].tolist()
        written = found[row][length - 3 :]
        assert written == single[: len(written)]
        assert found[row][: length - 3] == prompt[0, 3:].tolist()


def table_step(table):
    """A model whose logits at each step (B, steps, V) are known."""

    def step(ids, state):
        return tf.constant(table, tf.float32)[:, state], state + 1

    return step


def test_a_token_is_there_before_the_next_one_is_computed():
    steps = []

    def step(ids, state):
        steps.append(ids.numpy().tolist())
        return tf.one_hot(ids + 1, V) * 9, state

    tokens = stream(step, (), [4, 6])
    assert steps == []
    assert next(tokens).ids.tolist() == [5, 7]
    assert steps == [[4, 6]]
    assert next(tokens).ids.tolist() == [6, 8]
    tokens.close()
    assert steps == [[4, 6], [5, 7]]


def test_what_has_ended_waits_for_the_others_and_all_end_at_the_longest():
    table = np.zeros((3, 4, V))
    table[0, :, EOS] = table[1, :2, 5] = table[1, 2:, EOS] = table[2, :, 6] = 20
    found = collect(stream(table_step(table), 0, [BOS] * 3, max_length=4))
    assert found[0].tolist() == [[EOS, PAD, PAD, PAD], [5, 5, EOS, PAD], [6, 6, 6, EOS]]
    np.testing.assert_allclose(found[1], [[0] * 4, [0] * 4, [0, 0, 0, -20]], atol=1e-4)
    assert found[2].tolist() == [[True] * 4, [False, False, True, True], [False, False, False, True]]
    assert len(found[0][0]) == 4


def test_ends_with_the_last_sequence():
    table = np.zeros((2, 5, V))
    table[0, 1, EOS] = table[1, 2, EOS] = table[:, :, 7] = 5
    table[0, 1, EOS] = table[1, 2, EOS] = 9
    assert len(list(stream(table_step(table), 0, [BOS] * 2))) == 3


@pytest.mark.parametrize("row", [[NAN] + [1.0] * (V - 1), [float("inf")] + [0.0] * (V - 1), [NEG_INF] * V])
@pytest.mark.parametrize("choose", [best, sampled])
def test_a_broken_sequence_ends_and_the_others_continue(row, choose):
    table = np.random.default_rng(5).normal(size=(2, 4, V))
    table[:, :, EOS] = -30
    table[0, 1] = row
    ids, log_probs, done = collect(stream(table_step(table), 0, [BOS] * 2, choose, max_length=4))
    assert ids[0, 1:].tolist() == [PAD] * 3
    assert np.isnan(log_probs).tolist() == [[False, True, False, False], [False] * 4]
    assert done.tolist() == [[False, True, True, True], [False, False, False, True]]
    single = collect(stream(table_step(table[1:]), 0, [BOS], max_length=4))
    if choose is best:
        np.testing.assert_array_equal(ids[1:], single[0])


def test_a_sequence_that_nothing_may_follow_is_broken():
    def choose(logits, ids):
        return greedy(tf.where(tf.constant([[True], [False]]), logits, NEG_INF))

    (token,) = list(stream(table_step(np.eye(V)[None, [EOS]].repeat(2, 0)), 0, [BOS] * 2, choose))
    assert token.ids.tolist() == [EOS, PAD]
    assert np.isnan(token.log_probs).tolist() == [False, True]


def test_no_sequence_gives_no_token():
    assert list(stream(table_step(np.zeros((0, 3, V))), 0, tf.zeros([0], tf.int32))) == []


def test_mistakes_are_told_before_the_first_token():
    step = table_step(np.zeros((1, 1, V)))
    with pytest.raises(ValueError, match=r"max_length must be 1 or more.*Received: max_length=0"):
        stream(step, 0, [BOS], max_length=0)
    with pytest.raises(ValueError, match=r"last_ids must be one token for each.*Received: last_ids\.shape=\(1, 2\)"):
        stream(step, 0, [[BOS, 5]])
    with pytest.raises(ValueError, match=r"step must return the logits.*Received: logits\.shape=\(1, 1, 13\)"):
        next(stream(lambda ids, state: (tf.zeros([1, 1, V]), state), 0, [BOS]))
