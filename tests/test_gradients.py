"""Gradients against central differences in float64, and float64 kept from end to end.

A layer's derivative along a random direction of all inputs and weights equals the difference of two outputs.
On TensorFlow only: Keras turns 64 bits into 32 on the other backends.
"""

import keras
import numpy as np
import oracle
import pytest
from backends import dtype_of, gradients, numpy
from tensors import MEMORY_WIDTH, B, F, H, M, S, T, V, padding, randomize

import keras_attention as ka

STEP = 1e-5
D = 12  # of even width, so that pairs can be rotated
ATTENTION = {
    "plain": {},
    "sizes": {"value_dim": 19, "output_shape": (2, 23)},
    "no_bias": {"use_bias": False},
    "grouped": {"num_kv_heads": 1},
    "gate": {"use_gate": True},
    "qk_norm": {"qk_norm": True},
    "window": {"sliding_window": 2},
    "rotary": {"position": ka.RotaryPosition()},
    "alibi": {"position": ka.AlibiBias()},
    "relative": {"position": ka.RelativePositionBias(8, 20)},
    "all": {"num_kv_heads": 1, "use_gate": True, "qk_norm": True, "position": ka.RelativePositionBias(4, 9, False)},
}
REFERENCES = {
    "relative": oracle.Relative(8, 20),
    "all": oracle.Relative(4, 9, False),
    "alibi": oracle.Alibi(),
    "rotary": oracle.Rotary(),
}
BLOCKS = {
    "post_norm": {},
    "pre_norm": {"normalize_first": True},
    "modern": {
        "normalize_first": True,
        "normalization": "rms",
        "activation": "swiglu",
        "num_kv_heads": 1,
        "qk_norm": True,
        "position": ka.RotaryPosition(),
    },
}
WIDTH = H * D


def draw(*shape):
    return np.random.normal(size=shape)


def made(layer, *shapes):
    """The layer with random weights."""
    layer.build(*shapes)
    randomize(layer)
    return layer


def check_gradients(function, inputs, variables=()):
    """Compares the derivative along a random direction, which holds every number of the inputs and variables."""
    direction = draw(*function(*inputs).shape)

    def total(*inputs):
        output = function(*inputs)
        assert dtype_of(output) == "float64"
        return keras.ops.sum(keras.ops.multiply(output, direction))

    found = [gradient for part in gradients(total, inputs, variables) for gradient in part]
    assert {gradient.dtype for gradient in found} == {np.dtype("float64")}
    weights = [numpy(variable) for variable in variables]
    steps = [draw(*x.shape) for x in (*inputs, *weights)]
    sides = []
    for size in (STEP, -STEP):
        moved = [start + size * step for start, step in zip([*inputs, *weights], steps, strict=True)]
        for variable, value in zip(variables, moved[len(inputs) :], strict=True):
            variable.assign(value)
        sides.append(float(numpy(total(*moved[: len(inputs)]))))
    expected = (sides[0] - sides[1]) / (2 * STEP)
    parts = [(gradient * step).sum() for gradient, step in zip(found, steps, strict=True)]
    np.testing.assert_allclose(sum(parts), expected, rtol=1e-6, atol=1e-6)
    for variable, value in zip(variables, weights, strict=True):
        variable.assign(value)


def some_pairs(*shape):
    """A mask in which one query may see nothing and the others at least one key."""
    mask = np.random.rand(*shape) < 0.6
    mask[..., 0] = True
    mask[0, 1] = False
    return mask


@pytest.mark.parametrize("option", ATTENTION)
def test_attention(option):
    arguments = ATTENTION[option]
    layer = made(ka.MultiHeadAttention(H, D, dtype="float64", **arguments), (None, None, M), (None, None, MEMORY_WIDTH))
    query, value, key = draw(B, T, M), draw(B, S, MEMORY_WIDTH), draw(B, S, MEMORY_WIDTH)
    pairs, bias = some_pairs(B, T, S), draw(B, H, T, S)

    def attend(query, value, key, bias):
        return layer(query, value, key, attention_mask=pairs, value_mask=padding(S), attention_bias=bias)

    check_gradients(attend, [query, value, key, bias], layer.trainable_variables)
    window = oracle.visible(T, S, window=arguments.get("sliding_window"))
    expected, _ = oracle.multi_head_attention(
        oracle.weights_of(layer),
        query,
        value,
        key,
        mask=(pairs & padding(S)[:, None] & window)[:, None],
        bias=bias,
        position=REFERENCES.get(option),
    )
    np.testing.assert_allclose(numpy(attend(query, value, key, bias)), expected, atol=1e-10)


@pytest.mark.parametrize("option", ["plain", "rotary", "alibi", "relative"])
def test_self_attention_to_packed_sequences(option):
    layer = made(ka.MultiHeadSelfAttention(H, dtype="float64", **ATTENTION[option]), (None, None, WIDTH))
    segments = np.array([[1, 1, 1, 2, 2], [5, 3, 3, 3, 3]])
    check_gradients(
        lambda x: layer(x, segment_ids=segments, use_causal_mask=True), [draw(B, T, WIDTH)], layer.trainable_variables
    )


def test_attention_over_one_axis_of_two():
    layer = ka.MultiHeadAttention(H, D, attention_axes=2, dtype="float64")
    made(layer, (None, None, None, M), (None, None, None, MEMORY_WIDTH))
    inputs = [draw(B, 3, T, M), draw(B, 3, S, MEMORY_WIDTH)]
    check_gradients(layer, inputs, layer.trainable_variables)
    expected = oracle.attention_over_axes(oracle.weights_of(layer), *inputs, (2,))
    np.testing.assert_allclose(numpy(layer(*inputs)), expected, atol=1e-10)


@pytest.mark.parametrize("option", ["plain", "rotary", "relative"])
def test_attention_behind_a_cache(option):
    layer = made(ka.MultiHeadSelfAttention(H, dtype="float64", **ATTENTION[option]), (None, None, WIDTH))

    def two_steps(before, x):
        first, cache = layer(before, use_causal_mask=True, cache=layer.init_cache(B))
        return keras.ops.concatenate([first, layer(x, use_causal_mask=True, cache=cache)[0]], axis=1)

    check_gradients(two_steps, [draw(B, 2, WIDTH), draw(B, T, WIDTH)], layer.trainable_variables)


def test_additive_attention():
    layer = made(ka.AdditiveAttention(F, dtype="float64"), (None, None, M), (None, None, MEMORY_WIDTH))
    pairs, inputs = some_pairs(B, T, S), [draw(B, T, M), draw(B, S, MEMORY_WIDTH), draw(B, S, MEMORY_WIDTH)]
    check_gradients(lambda *inputs: layer(*inputs, attention_mask=pairs), inputs, layer.trainable_variables)
    expected, _ = oracle.additive_attention(oracle.weights_of(layer), *inputs, mask=pairs)
    np.testing.assert_allclose(numpy(layer(*inputs, attention_mask=pairs)), expected, atol=1e-10)


@pytest.mark.parametrize("activation", sorted(oracle.ACTIVATIONS))
def test_feed_forward(activation):
    layer = made(ka.FeedForward(F, activation=activation, dtype="float64"), (None, None, M))
    x = draw(B, T, M)
    check_gradients(layer, [x], layer.trainable_variables)
    # TensorFlow's gelu holds √2 in float32.
    tolerance = 1e-7 if activation in ("gelu", "geglu") else 1e-10
    expected = oracle.feed_forward(oracle.weights_of(layer), x, activation)
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=tolerance)


@pytest.mark.parametrize("options", BLOCKS.values(), ids=BLOCKS)
def test_encoder_layer(options):
    layer = made(ka.EncoderLayer(F, H, dtype="float64", **options), (None, None, WIDTH))
    check_gradients(lambda x: layer(x, padding_mask=padding(T)), [draw(B, T, WIDTH)], layer.trainable_variables)


@pytest.mark.parametrize("options", BLOCKS.values(), ids=BLOCKS)
def test_decoder_layer(options):
    layer = ka.DecoderLayer(F, H, dtype="float64", **options)
    made(layer, (None, None, WIDTH), (None, None, MEMORY_WIDTH))
    masks = {"decoder_padding_mask": padding(T), "encoder_padding_mask": padding(S)}
    inputs = [draw(B, T, WIDTH), draw(B, S, MEMORY_WIDTH)]
    check_gradients(lambda *inputs: layer(*inputs, **masks), inputs, layer.trainable_variables)


@pytest.mark.parametrize("normalize_first", [False, True], ids=["post_norm", "pre_norm"])
def test_blocks_keep_float64(normalize_first):
    options = {"normalize_first": normalize_first}
    encoder = made(ka.EncoderLayer(F, H, dtype="float64", **options), (None, None, WIDTH))
    decoder = ka.DecoderLayer(F, H, dtype="float64", **options)
    made(decoder, (None, None, WIDTH), (None, None, MEMORY_WIDTH))
    x, memory = draw(B, T, WIDTH), draw(B, S, MEMORY_WIDTH)
    expected = oracle.encoder_layer(oracle.weights_of(encoder), x, **options)
    np.testing.assert_allclose(numpy(encoder(x)), expected, atol=1e-10)
    expected = oracle.decoder_layer(oracle.weights_of(decoder), x, memory, **options)
    np.testing.assert_allclose(numpy(decoder(x, memory)), expected, atol=1e-10)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("layer_class", [ka.PositionalEncoding, ka.LearnedPositionalEncoding])
def test_added_positions(layer_class, scale):
    sizes = [T + 2] if layer_class is ka.LearnedPositionalEncoding else []
    layer = made(layer_class(*sizes, scale=scale, dtype="float64"), (None, None, M))
    check_gradients(lambda x: layer(x, start_index=2), [draw(B, T, M)], layer.trainable_variables)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_masked_cross_entropy(label_smoothing, weighted):
    loss = ka.training.MaskedCrossEntropy(label_smoothing, dtype="float64")
    labels, logits = np.where(padding(T), np.random.randint(1, V, (B, T)), 0), draw(B, T, V)
    weight = np.array([2.0, 0.5]) if weighted else None
    check_gradients(lambda logits: loss(labels, logits, sample_weight=weight), [logits])
    given = weight[:, None] if weighted else 1.0
    expected = oracle.smoothed_cross_entropy(labels, logits, label_smoothing, given)
    np.testing.assert_allclose(numpy(loss(labels, logits, sample_weight=weight)), expected, atol=1e-12)
