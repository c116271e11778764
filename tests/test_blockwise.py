"""Attention in blocks against attention over all pairs: the same output and gradients, and the same dropout twice."""

import keras
import numpy as np
import pytest
from backends import BACKEND, compiled, dtype_of, gradients, numpy, weighted_sum
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import assert_close, draw

import keras_attention as ka
from keras_attention import ops
from keras_attention.layers import attention as attention_layer
from keras_attention.ops.blockwise import attention, blockwise_attention, tiles
from keras_attention.ops.blockwise.dropout_mask import keep_mask
from keras_attention.ops.visible_pairs import VisiblePairs

B, H, G, T, S, D, E = 2, 2, 1, 13, 17, 7, 5
SEGMENTS = {T: [[1] * 6 + [4] * 7, [2] * 2 + [1] * 9 + [0] * 2], S: [[1] * 4 + [4] * 13, [2] * 7 + [1] * 8 + [7] * 2]}
WITHOUT_LOOPS = pytest.mark.skipif(BACKEND == "torch", reason="torch runs each block on its own")
VISIBLE = {
    "all": {},
    "causal": {"is_causal": True},
    "causal after a cache": {"is_causal": True, "offset": S - T},
    "queries before the keys": {"is_causal": True, "offset": -3},
    "window": {"window": 3},
    "causal window": {"is_causal": True, "window": 4, "offset": 2},
    "window past the keys": {"window": 2, "offset": 30},
    "segments": {"query_segments": np.array(SEGMENTS[T]), "key_segments": np.array(SEGMENTS[S])},
    "causal segments": {
        "is_causal": True,
        "query_segments": np.array(SEGMENTS[T]),
        "key_segments": np.array(SEGMENTS[S]),
    },
}


def inputs(groups=G, heads=H):
    return [draw(B, heads, T, D), draw(B, groups, S, D), draw(B, groups, S, E)]


def tensors(options):
    return {name: keras.ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


def by_pairs(distances):
    """A bias of distances (H, T + S - 1) as a bias of pairs (1, H, T, S)."""
    return keras.ops.take(distances, np.arange(S) - np.arange(T)[:, None] + T - 1, axis=1)[None]


def assert_same(visible, arrays, key_bias=False, distance_bias=False, block_size=5):
    """Output and gradients by query, key, value and the biases."""
    visible = VisiblePairs(**tensors(visible))
    given = [*arrays, *([draw(B, H, 1, S)] if key_bias else []), *([draw(H, T + S - 1)] if distance_bias else [])]

    def split(biases):
        biases = list(biases)
        return biases.pop(0) if key_bias else None, biases.pop(0) if distance_bias else None

    def whole(query, key, value, *biases):
        of_keys, of_distances = split(biases)
        bias = 0.0 if of_keys is None else of_keys
        bias = bias if of_distances is None else bias + by_pairs(of_distances)
        mask = visible.mask(T, S)
        return ops.dot_product_attention(query, key, value, mask, bias if biases else None)[0]

    def in_blocks(query, key, value, *biases):
        return blockwise_attention(query, key, value, visible, *split(biases), block_size=block_size)

    expected = whole(*map(keras.ops.convert_to_tensor, given))
    assert_close(in_blocks(*map(keras.ops.convert_to_tensor, given)), expected)
    weights = draw(*expected.shape)
    found = [gradients(lambda *x, f=f: weighted_sum(f(*x), weights), given)[0] for f in (whole, in_blocks)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("biases", ["no bias", "biases"])
@pytest.mark.parametrize("name", VISIBLE)
def test_blocks_are_the_whole(name, biases):
    assert_same(VISIBLE[name], inputs(), *([True, True] if biases == "biases" else []))


@pytest.mark.parametrize("most_written_out", [64, pytest.param(0, marks=WITHOUT_LOOPS)])
@pytest.mark.parametrize("name", VISIBLE)
def test_blocks_that_share_slices(name, most_written_out, monkeypatch):
    """7 blocks of queries and 9 of keys in groups of three, written out or in loops."""
    monkeypatch.setitem(tiles.UNROLLED, BACKEND, most_written_out)
    monkeypatch.setattr(tiles, "GROUPS", 3)
    monkeypatch.setattr(tiles, "LOOPS", 3)
    assert_same(VISIBLE[name], inputs(), True, True, block_size=2)


@pytest.mark.parametrize("block_size", [1, 13, 40, None])
def test_blocks_of_any_size(block_size):
    assert_same({"is_causal": True, "offset": 1}, inputs(H), True, True, block_size)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_heads_that_share_keys_and_values(groups):
    assert_same({"is_causal": True}, inputs(groups, heads=6))


@pytest.mark.parametrize("shape", [(B, 1, T, S), (1, H, T, S), (B, H, 1, S), (1, 1, T, 1)])
def test_masks_of_pairs(shape):
    assert_same({"pairs": np.random.rand(*shape) < 0.6, "window": 9}, inputs())


def test_padding_of_keys_and_queries():
    keys, queries = np.random.rand(B, S) < 0.7, np.random.rand(B, T) < 0.7
    keys[0, :3] = False  # queries that see nothing
    assert_same({"keys": keys, "queries": queries, "is_causal": True}, inputs(), True, True)
    assert_same({"keys": keys[0], "window": 2}, inputs())


@settings(max_examples=8, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_blocks_are_the_whole_whatever_is_combined(data):
    visible = {
        "is_causal": data.draw(st.booleans()),
        "window": data.draw(st.sampled_from([None, 1, 6])),
        "offset": data.draw(st.integers(-2, 6)),
        "keys": np.random.rand(B, S) < 0.5 if data.draw(st.booleans()) else None,
        "pairs": np.random.rand(B, 1, T, S) < 0.5 if data.draw(st.booleans()) else None,
        **(VISIBLE["segments"] if data.draw(st.booleans()) else {}),
    }
    biases = data.draw(st.booleans()), data.draw(st.booleans())
    assert_same(visible, inputs(data.draw(st.sampled_from([1, H]))), *biases, data.draw(st.integers(1, 18)))


def test_a_query_that_sees_nothing_gets_zeros_and_gives_none():
    query, key, value = inputs()
    visible = VisiblePairs(keys=keras.ops.convert_to_tensor(np.zeros((B, S), bool)))
    assert np.all(numpy(blockwise_attention(query, key, value, visible, block_size=5)) == 0)

    def total(*arrays):
        return keras.ops.sum(blockwise_attention(*arrays, visible, block_size=5))

    assert all(np.all(x == 0) for x in gradients(total, [query, key, value])[0])


def test_an_offset_that_the_program_does_not_know():
    arrays = inputs()
    expected = blockwise_attention(*arrays, VisiblePairs(is_causal=True, offset=3), block_size=5)
    run = compiled(
        lambda offset: blockwise_attention(*arrays, VisiblePairs(is_causal=True, offset=offset), block_size=5)
    )
    assert_close(run(keras.ops.convert_to_tensor(3, "int32")), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision(dtype):
    arrays = [keras.ops.cast(x, dtype) for x in inputs()]
    output = blockwise_attention(*arrays, VisiblePairs(is_causal=True), block_size=5)
    assert dtype_of(output) == dtype
    whole = [keras.ops.cast(x, "float32") for x in arrays]
    expected, _ = ops.dot_product_attention(*whole, VisiblePairs(is_causal=True).mask(T, S))
    assert_close(output, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_those_of_finite_differences(dropout):
    """The dropout of the backward pass is that of the forward pass: with another one the slopes would differ."""
    arrays, biases = inputs(), [draw(B, H, 1, S), draw(H, T + S - 1)]
    given, weights = [*arrays, *biases], draw(B, H, T, E)
    seed = keras.ops.convert_to_tensor(np.array([5, 7], "int32"))

    def total(query, key, value, *biases):
        visible = VisiblePairs(is_causal=True, offset=2)
        output = blockwise_attention(query, key, value, visible, *biases, dropout, seed, block_size=5)
        return weighted_sum(output, weights)

    found = gradients(total, given)[0]
    step = 1e-2
    for i, gradient in enumerate(found):
        direction = draw(*gradient.shape)
        direction /= np.linalg.norm(direction)
        ends = [
            float(total(*(x + sign * step * direction if i == j else x for j, x in enumerate(given))))
            for sign in (1, -1)
        ]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), np.sum(gradient * direction), atol=5e-3, rtol=5e-3)


def test_dropout_leaves_the_mean_and_depends_on_the_seed():
    query, key, value = inputs()
    seeds = [keras.ops.convert_to_tensor(np.array([n, 1], "int32")) for n in range(300)]
    run = compiled(lambda seed: blockwise_attention(query, key, value, dropout=0.3, seed=seed, block_size=5))
    outputs = np.stack([numpy(run(seed)) for seed in seeds])
    expected = numpy(blockwise_attention(query, key, value, block_size=5))
    error = (outputs.mean(axis=0) - expected) / (outputs.std(axis=0) / np.sqrt(len(seeds)))
    assert np.abs(error).max() < 5
    assert 0.9 < error.std() < 1.1
    assert np.array_equal(outputs[7], numpy(run(seeds[7])))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_is_kept_looks_drawn(rate):
    """The share, that of each query and key, and no correlation of neighbours, of heads or of four corners."""
    places = np.arange(512, dtype="int32")
    seed = keras.ops.convert_to_tensor(np.array([2, 3], "int32"))
    found = [numpy(keep_mask(seed, row, places[:, None], places[None, :], rate)) for row in (0, 1)]
    centred = [(x - (1 - rate)) / np.sqrt(rate * (1 - rate)) for x in found]
    size = 512
    one, other = centred
    assert abs(one.mean()) < 4 / size
    assert np.abs(one.mean(axis=0)).max() < 5 / np.sqrt(size)
    assert np.abs(one.mean(axis=1)).max() < 5 / np.sqrt(size)
    for a, b in (
        (one, other),
        (one[1:], one[:-1]),
        (one[:, 1:], one[:, :-1]),
        (one[:256], one[256:]),
        (one[:, :256], one[:, 256:]),
        (one, one.T),
    ):
        assert abs((a * b).mean()) < 5 / np.sqrt(a.size)
    for step in (1, 2, 16, 256):
        corners = one[step:, step:] * one[:-step, :-step] * one[step:, :-step] * one[:-step, step:]
        assert abs(corners.mean()) < 5 / np.sqrt(corners.size)


@pytest.fixture
def short_is_long(monkeypatch):
    """Takes blocks for lengths that a test has time for, and says how often."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return blockwise_attention(*args, **kwargs, block_size=5)

    monkeypatch.setattr(attention, "LONG", 100)
    monkeypatch.setattr(attention_layer, "blockwise_attention", counted)
    return calls


POSITIONS = {
    "none": lambda: None,
    "rotary": ka.RotaryPosition,
    "ALiBi": ka.AlibiBias,
    "T5": lambda: ka.RelativePositionBias(num_buckets=8, max_distance=20, embeddings_initializer="normal"),
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mask", ["padding", "segments", "window", "pairs", "cache", "bias"])
def test_layers_take_blocks_for_long_sequences(short_is_long, position, mask):
    x = draw(B, S, 24)
    layer = ka.MultiHeadSelfAttention(
        H, 4, num_kv_heads=1, position=POSITIONS[position](), sliding_window=6 if mask == "window" else None
    )
    layer(x)
    short_is_long.clear()
    # On torch a cached graph would serve only one backward pass.
    past = keras.tree.map_structure(keras.ops.stop_gradient, layer.project(draw(B, 4, 24)))
    options = {
        "padding": {"padding_mask": np.random.rand(B, S) < 0.7},
        "segments": {"segment_ids": np.array(SEGMENTS[S]), "use_causal_mask": True},
        "window": {"use_causal_mask": True},
        "pairs": {"attention_mask": np.random.rand(B, S, S) < 0.7},
        "cache": {"cache": past, "use_causal_mask": True},
        "bias": {"attention_bias": draw(H, 1, S)},
    }[mask]
    weights = draw(B, S, 24)

    def output(x, **more):
        found = layer(x, **options, **more)
        return found[0] if isinstance(found, tuple) else found

    found = output(x)
    assert len(short_is_long) == 1
    assert_close(found, output(x, return_attention_scores=True))
    assert len(short_is_long) == 1
    blocks, whole = (
        gradients(lambda x, more=more: weighted_sum(output(x, **more), weights), [x], layer.trainable_variables)
        for more in ({}, {"return_attention_scores": True})
    )
    for one, other in zip(keras.tree.flatten(blocks), keras.tree.flatten(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-3)


def test_layers_take_the_whole_where_pairs_are_given_or_wanted(short_is_long):
    x = draw(B, S, 24)
    layer = ka.MultiHeadSelfAttention(H, 4)
    layer(x, attention_bias=draw(H, S, S))
    layer(x, return_attention_scores=True)
    layer(x[:, :9])
    assert short_is_long == []

    class OfPairs(ka.AlibiBias):
        def bias(self, query_positions, key_positions):
            return 2 * super().bias(query_positions, key_positions)

    ka.MultiHeadSelfAttention(H, 4, position=OfPairs())(x)
    assert short_is_long == []
    y = draw(B, T, 24)
    cross = ka.MultiHeadAttention(H, 4, position=ka.AlibiBias())
    segments = {"query_segment_ids": np.array(SEGMENTS[T]), "value_segment_ids": np.array(SEGMENTS[S])}
    expected = cross(y, x, **segments, return_attention_scores=True)[0]
    assert_close(cross(y, x, **segments), expected)
    assert short_is_long == []


def test_dropout_of_layers(short_is_long):
    x = draw(B, S, 24)
    layer = ka.MultiHeadSelfAttention(H, 4, dropout=0.5, seed=3)
    plain = layer(x)
    assert_close(layer(x, training=False), plain)
    one, other = numpy(layer(x, training=True)), numpy(layer(x, training=True))
    assert len(short_is_long) == 4
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - numpy(plain)).max() > 1e-3


def test_a_long_sequence_of_a_compiled_model(short_is_long):
    x = draw(B, S, 24)
    layer = ka.MultiHeadSelfAttention(H, 4, position=ka.AlibiBias())
    expected = layer(x, use_causal_mask=True, return_attention_scores=True)[0]
    model_input = keras.Input((S, 24))
    model = keras.Model(model_input, layer(model_input, use_causal_mask=True))
    assert tuple(model.output_shape) == (None, S, 24)
    assert_close(model.predict(x, verbose=0), numpy(expected))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others know the lengths whenever a program is made")
def test_unknown_lengths_take_the_whole(short_is_long):
    layer = ka.MultiHeadSelfAttention(H, 4)
    x = draw(B, S, 24)
    run = compiled(lambda x: layer(x, use_causal_mask=True), [keras.KerasTensor((None, None, 24))])
    assert_close(run(x), layer(x, use_causal_mask=True))
    assert len(short_is_long) == 1
