"""Faults that Keras' and KerasHub's attention has: each is shown on them where that is cheap, and then not here."""

import importlib
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensors import MEMORY_WIDTH, B, D, F, H, M, S, T, V, assert_close, draw, float32, padding

import keras_attention as ka
from keras_attention.decoding import beam_search
from keras_attention.testing.implicit_masks import mask_of, with_mask

KerasAttention = keras.layers.MultiHeadAttention
KERAS_AND_OURS = pytest.mark.parametrize("attention", [KerasAttention, ka.MultiHeadAttention], ids=["keras", "ours"])


def keras_hub():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        return pytest.importorskip("keras_hub")


def masked(x):
    return with_mask(x, padding(x.shape[1]))


def difference(one, other):
    return np.abs(float32(one) - float32(other)).max()


def stack_of_three(attention):
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(V, M, mask_zero=True)(ids)
    for _ in range(3):
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attention(H, D)(x, x)]))
    return keras.Model(ids, x)


@KERAS_AND_OURS
def test_1_attention_erases_the_mask_of_its_inputs(attention):
    model, ids = stack_of_three(attention), np.array([[3, 1, 4, 1, 5]], "int32")
    changes = difference(model(np.pad(ids, ((0, 0), (0, 6))))[:, :5], model(ids))
    assert changes > 0.3 if attention is KerasAttention else changes < 1e-5
    x = masked(draw(B, T, M))
    attention(H, D)(x, x)
    assert (mask_of(x) is None) == (attention is KerasAttention)


@KERAS_AND_OURS
def test_2_an_explicit_mask_is_overwritten_by_the_implicit_one(attention):
    layer, x, memory = attention(H, D), draw(B, T, M), draw(B, S, M)
    explicit = np.arange(T)[None] < np.array([[1], [2]])
    both = layer(masked(x), memory, query_mask=explicit)
    ignored = difference(both, layer(masked(x), memory)) == 0
    assert ignored == (attention is KerasAttention)
    if attention is ka.MultiHeadAttention:
        assert_close(both, layer(x, memory, query_mask=explicit), atol=0)


@KERAS_AND_OURS
def test_3_asking_for_weights_changes_the_output_of_a_fully_masked_row(attention):
    layer, x, memory, mask = attention(H, D), draw(B, T, M), draw(B, S, M), np.ones((B, T, S), bool)
    mask[0] = False
    output = layer(x, memory, attention_mask=mask)
    again, weights = layer(x, memory, attention_mask=mask, return_attention_scores=True)
    assert (difference(output, again) > 0.1) == (attention is KerasAttention)
    if attention is ka.MultiHeadAttention:
        assert not np.any(output[0]) and not np.any(weights[0])


@KERAS_AND_OURS
def test_4_symbolic_shapes_are_not_those_of_a_call(attention):
    layer = attention(H, D)
    _, weights = layer(draw(B, T, M), draw(B, S, M), return_attention_scores=True)
    symbols = keras.KerasTensor((B, T, M)), keras.KerasTensor((B, S, M))
    _, symbol = layer(*symbols, return_attention_scores=True)
    assert weights.shape == (B, H, T, S)
    assert tuple(symbol.shape) == ((B, H, T, T) if attention is KerasAttention else (B, H, T, S))


def test_4_the_number_of_symbolic_outputs_is_not_that_of_a_call():
    x = keras.KerasTensor((B, T, M))
    assert isinstance(keras_hub().layers.TransformerEncoder(F, H)(x, return_attention_scores=True), keras.KerasTensor)
    assert len(ka.EncoderLayer(F, H)(x, return_attention_scores=True)) == 2


def test_5_float16_overflows_before_the_scores_are_scaled():
    x = np.full((1, 2, 1, 64), 60, "float16")  # 60² · 64 is above 65504, an eighth of it is not
    assert not np.all(np.isfinite(keras.ops.dot_product_attention(x, x, x)))
    output, weights = ka.ops.dot_product_attention(*[keras.ops.convert_to_tensor(x.swapaxes(1, 2))] * 3)
    assert_close(output, x.swapaxes(1, 2))
    assert_close(weights, np.full((1, 1, 2, 2), 0.5))


def test_6_an_additive_mask_is_taken_for_its_opposite():
    x, memory, real = draw(B, T, M), draw(B, S, M), np.repeat(padding(S)[:, None], T, axis=1)
    additive = np.where(real, 0.0, -1e9).astype("float32")
    theirs, ours = KerasAttention(H, D), ka.MultiHeadAttention(H, D)
    assert_close(theirs(x, memory, attention_mask=additive), theirs(x, memory, attention_mask=~real))
    with pytest.raises(ValueError, match=r"numbers that are 0 or 1 .* go to `attention_bias`"):
        ours(x, memory, attention_mask=additive)
    assert_close(ours(x, memory, attention_bias=additive[:, None]), ours(x, memory, attention_mask=real))


def test_7_a_padding_mask_is_read_as_pairs():
    x, real = draw(3, 3, M), np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    theirs = KerasAttention(H, D)
    assert_close(theirs(x, x, attention_mask=real), theirs(x, x, attention_mask=real[None]))
    assert difference(theirs(x, x, attention_mask=real), theirs(x, x, value_mask=real)) > 0.1
    with pytest.raises(ValueError, match=r"give a \(batch, keys\) mask as the padding mask"):
        ka.MultiHeadAttention(H, D)(x, x, attention_mask=real)


def test_8_the_last_query_of_a_causal_mask_sees_the_first_key_alone():
    x = draw(1, S, M)
    theirs = KerasAttention(H, D)
    _, weights = theirs(x[:, -1:], x, use_causal_mask=True, return_attention_scores=True)
    assert_close(weights[0, :, 0], np.eye(S)[:1].repeat(H, 0))
    ours = ka.MultiHeadSelfAttention(H)
    full = ours(x, use_causal_mask=True)
    last, _ = ours(x[:, -1:], use_causal_mask=True, cache=ours.project(x[:, :-1]))
    assert_close(last, full[:, -1:])


@pytest.mark.filterwarnings("ignore:Layer 'sine_position_encoding.* does not support masking:UserWarning")
def test_9_arithmetic_drops_the_mask():
    x = masked(draw(B, T, M))
    sine = keras_hub().layers.SinePositionEncoding()
    dropping = [lambda: x * 2, lambda: x + x, lambda: keras.layers.Add()([x, draw(B, T, M)]), lambda: x + sine(x)]
    assert [mask_of(drop()) for drop in dropping] == [None] * 4
    np.testing.assert_array_equal(mask_of(ka.PositionalEncoding()(x)), padding(T))


@pytest.mark.parametrize(
    "layer", [ka.EncoderLayer(F, H), ka.FeedForward(F), ka.PositionalEncoding(), ka.MultiHeadSelfAttention(H)], ids=str
)
def test_9_what_arithmetic_makes_in_a_functional_model_is_taken(layer):
    ids = keras.Input((None,), dtype="int32")
    doubled = keras.layers.Embedding(V, M, mask_zero=True)(ids) * 2  # for Keras a sparse tensor
    assert keras.Model(ids, layer(doubled))(np.ones((B, T), "int32")).shape == (B, T, M)


def test_10_neighbouring_positions_are_the_same_in_bfloat16():
    x = np.zeros((1, 302, M), "float32")
    theirs = float32(keras_hub().layers.SinePositionEncoding(dtype="bfloat16")(x))
    ours = float32(ka.PositionalEncoding(dtype="bfloat16")(x))
    assert difference(theirs[:, 300], theirs[:, 301]) == 0
    assert difference(ours[:, 300], ours[:, 301]) > 0.5


# The end with probability 0.49, a word with 0.5, at every step.
STEP_LOGITS = np.log([[0.01, 0.49, 0.5]]).astype("float32")


def test_11_a_finished_hypothesis_is_charged_for_what_follows():
    def next_logits(prompt, cache, index):
        return keras.ops.convert_to_tensor(np.repeat(STEP_LOGITS, prompt.shape[0], axis=0)), None, cache

    sampler = keras_hub().samplers.BeamSampler(num_beams=2, return_all_beams=True)
    prompt = np.zeros((1, 6), "int32")
    ids, scores = sampler(next_logits, prompt, mask=prompt > 0, stop_token_ids=(1,))
    ended = int(np.argmax(np.asarray(ids)[0, :, 0] == 1))
    np.testing.assert_allclose(np.asarray(scores)[0, ended], np.log(0.49) + 5 * np.log(0.5), atol=1e-4)

    def step(ids, state):
        return tf.repeat(tf.constant(STEP_LOGITS), tf.shape(ids)[0], axis=0), state

    found = beam_search(
        step, (), batch_size=1, beam_size=2, max_length=6, length_penalty=0.0, num_return=1, bos_id=2, eos_id=1
    )
    assert np.asarray(found.ids)[0, 0, 0] == 1
    np.testing.assert_allclose(np.asarray(found.scores)[0, 0], np.log(0.49), atol=1e-4)


def test_12_heads_that_do_not_divide_the_width_are_accepted():
    x = draw(B, T, 8)
    theirs = keras_hub().layers.TransformerEncoder(F, 3)
    assert theirs(x).shape == (B, T, 8)
    assert {weight.shape for weight in theirs.weights if weight.path.endswith("query/kernel")} == {(8, 3, 2)}
    with pytest.raises(ValueError, match=r"`num_heads` must divide .* num_heads=3, width=8"):
        ka.EncoderLayer(F, 3)(x)


def graph_size(layer):
    function = tf.function(lambda x: layer(x, x, training=False)).get_concrete_function(tf.TensorSpec((B, T, M)))
    return len(function.graph.get_operations())


def test_13_an_argument_is_lost_and_inference_pays_for_dropout():
    assert "flash_attention" not in KerasAttention(H, D, flash_attention=False).get_config()
    assert ka.MultiHeadAttention(H, D, flash_attention=False).get_config()["flash_attention"] is False
    with_dropout, without = (ka.MultiHeadAttention(H, D, dropout=rate) for rate in (0.5, 0.0))
    for layer in (with_dropout, without):
        layer(draw(B, T, M), draw(B, T, M))
    assert graph_size(with_dropout) == graph_size(without)


@KERAS_AND_OURS
def test_14_what_a_masked_value_holds_leaks(attention):
    memory = draw(B, S, MEMORY_WIDTH)
    memory[~padding(S)] = np.nan
    output = attention(H, D)(draw(B, T, M), memory, value_mask=padding(S))
    assert np.any(np.isnan(output)) == (attention is KerasAttention)


def test_15_a_projection_inside_a_layer_warns_of_the_mask():
    x = masked(draw(B, T, M))
    with pytest.warns(UserWarning, match="does not support masking and will therefore destroy the mask"):
        keras.layers.EinsumDense("btm,mf->btf", (None, F))(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layer in (ka.MultiHeadAttention(H, D, use_gate=True, qk_norm=True), ka.DecoderLayer(F, H)):
            layer(x, x)


def test_16_a_release_of_tensorflow_text_does_not_import():
    metadata = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    lower, upper = re.search(r"tensorflow-text>=([\d.]+),<([\d.]+)", metadata).groups()
    assert (lower, upper) == ("2.21.1", "2.22")
    assert importlib.import_module("tensorflow_text").__version__ >= lower


@pytest.mark.filterwarnings(r"ignore:Layer \w+ does not have a `quantize` method implemented")
@pytest.mark.parametrize("whose", ["keras_hub", "ours"])
def test_17_a_quantized_layer_does_not_come_back_from_its_file(whose, tmp_path):
    layer = keras_hub().layers.TransformerEncoder(F, H) if whose == "keras_hub" else ka.EncoderLayer(F, H)
    inputs, path = keras.Input((None, M)), tmp_path / "model.keras"
    model = keras.Model(inputs, layer(inputs))
    model.quantize("int8")
    model.save(path)
    if whose == "keras_hub":
        with pytest.raises(ValueError, match="objects could not be loaded"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keras.models.load_model(path)
    else:
        x = draw(B, T, M)
        assert_close(keras.models.load_model(path)(x), model(x))


@KERAS_AND_OURS
def test_18_a_seed_gives_all_projections_the_same_weights(attention):
    layer = attention(H, D, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    layer(draw(B, T, M), draw(B, T, M))
    query, key, value = (
        np.ravel(float32(weight.value))
        for name in ("query", "key", "value")
        for weight in layer.weights
        if weight.path.endswith(f"{name}/kernel")
    )
    for one, other in ((query, key), (query, value), (key, value)):
        assert np.array_equal(one, other) == (attention is KerasAttention)
