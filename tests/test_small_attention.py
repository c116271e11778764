"""Small attention gives what `cached_attention` gives, and each is used where it should be."""

import numpy as np
import pytest
import tensorflow as tf

import keras_attention as ka
from keras_attention.decoding.model_steps import language_model, with_source
from keras_attention.decoding.small_attention import MAX_SMALL_PAIRS, select_attention, small_attention
from keras_attention.ops.attention import MASKED_SCORE, cached_attention

MODULE = "keras_attention.decoding.small_attention"
B, K, H, D = 3, 5, 2, 7


def inputs(lengths, dtype="float32", sentences=B, beams=K):
    """Queries, keys and values in as many parts as `lengths` has, and a bias that hides some pairs."""
    generator = np.random.default_rng(3)

    def normal(*shape):
        return tf.cast(generator.normal(size=shape), dtype)

    memory = [normal(2, sentences, H, n, D) for n in lengths]
    hidden = generator.random((sentences, beams, sum(lengths))) < 0.3
    hidden[..., 0] = False
    return normal(sentences, H, beams, D), memory, tf.constant(np.where(hidden, MASKED_SCORE, 0.0).astype("float32"))


def by_hand(query, memory, bias):
    """One query of one head at a time."""
    query, bias = query.numpy().astype("float64"), bias.numpy().astype("float64")
    keys, values = (np.concatenate([part[i].numpy() for part in memory], axis=2).astype("float64") for i in (0, 1))
    output = np.zeros(query.shape)
    for b, h, k in np.ndindex(*query.shape[:3]):
        scores = keys[b, h] @ query[b, h, k] + bias[b, min(k, bias.shape[1] - 1)]
        weights = np.exp(scores - scores.max())
        output[b, h, k] = weights / weights.sum() @ values[b, h]
    return output


@pytest.mark.parametrize("attention", [small_attention, cached_attention])
@pytest.mark.parametrize("lengths", [(11,), (13, 4), (0, 3), (6, 0)])
@pytest.mark.parametrize("beams", [1, K])
def test_each_equals_the_formula(attention, lengths, beams):
    query, memory, bias = inputs(lengths, beams=beams)
    np.testing.assert_allclose(attention(query, memory, bias), by_hand(query, memory, bias), atol=1e-6)


@pytest.mark.parametrize("attention", [small_attention, cached_attention])
def test_a_bias_may_be_the_same_for_all_beams(attention):
    query, memory, bias = inputs((11,))
    np.testing.assert_allclose(attention(query, memory, bias[:, :1]), by_hand(query, memory, bias[:, :1]), atol=1e-6)


def test_small_attention_loses_no_more_in_bfloat16_than_the_other():
    query, memory, bias = inputs((13, 4), "bfloat16")
    exact = by_hand(query, memory, bias)
    errors = [
        np.abs(attention(query, memory, bias).numpy().astype("float64") - exact).max()
        for attention in (small_attention, cached_attention)
    ]
    assert small_attention(query, memory, bias).dtype == tf.bfloat16
    assert 0 < errors[0] <= errors[1] < 0.05


def used(monkeypatch, beams, sentences, length):
    """Which of the two a compiled function computes with."""
    monkeypatch.setattr(f"{MODULE}.small_attention", lambda query, *_: tf.zeros_like(query))
    monkeypatch.setattr(f"{MODULE}.cached_attention", lambda query, *_: tf.ones_like(query))
    specs = [tf.TensorSpec([None, H, None, D]), tf.TensorSpec([2, None, H, None, D]), tf.TensorSpec([None, None, None])]
    attention = select_attention(beams)
    compiled = tf.function(lambda query, pair, bias: attention(query, [pair], bias), input_signature=specs)
    query, (pair,), bias = inputs((length,), sentences=sentences, beams=beams)
    return "cached" if tf.reduce_any(compiled(query, pair, bias) > 0) else "small"


@pytest.mark.parametrize("length, expected", [(MAX_SMALL_PAIRS // 4, "small"), (MAX_SMALL_PAIRS // 4 + 1, "cached")])
def test_the_number_of_pairs_decides(monkeypatch, length, expected):
    assert used(monkeypatch, 4, 1, length) == expected


def test_a_single_beam_always_takes_small_attention(monkeypatch):
    assert used(monkeypatch, 1, 3, 2 * MAX_SMALL_PAIRS) == "small"


def test_an_empty_batch_has_an_empty_answer():
    query, memory, bias = inputs((11,), sentences=0)
    assert select_attention(K)(query, memory, bias).shape == (0, H, K, D)
    assert select_attention(1)(query, memory, bias).shape == (0, H, K, D)


@pytest.mark.parametrize(("beams", "dtype"), [(1, tf.float32), (2, tf.bfloat16)])
def test_one_beam_is_given_the_keys_as_it_computes_with_them(beams, dtype):
    config = ka.TransformerConfig(vocabulary_size=13, num_layers=1, hidden_dim=6, num_heads=2, intermediate_dim=5)
    ids = tf.constant([[5, 6, 3]])
    _, state = with_source(ka.Transformer(config, dtype="bfloat16"), ids, beams)
    assert {x.dtype for x in (*state.older, *state.newer, *state.memory)} == {dtype}
    _, state = language_model(ka.CausalTransformer(config, dtype="bfloat16"), ids, beams)
    assert {x.dtype for x in (*state.older, *state.newer)} == {dtype}
