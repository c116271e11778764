"""The pure functions: attention, softmax under a mask, masks, sinusoids."""

import keras
import numpy as np
import oracle
import pytest
from backends import HAS_XLA, compiled, dtype_of, gradient, numpy, weighted_sum

from keras_attention import ops

B, H, T, S, D, E = 2, 3, 5, 7, 11, 13


def draw(*shape, scale=1.0):
    return (np.random.normal(size=shape) * scale).astype("float32")


def oracle_attention(query, key, value, mask):
    mask = np.broadcast_to(mask, (B, H, T, S))
    outputs, weights = np.zeros((B, H, T, E)), np.zeros((B, H, T, S))
    for b, h in np.ndindex(B, H):
        outputs[b, h], weights[b, h] = oracle.attention(query[b, h], key[b, h], value[b, h], mask[b, h])
    return outputs, weights


MASKS = {
    "none": lambda: np.ones((), bool),
    "keys": lambda: np.random.rand(B, 1, 1, S) < 0.6,
    "queries": lambda: np.random.rand(B, 1, T, 1) < 0.6,
    "pairs": lambda: np.random.rand(B, 1, T, S) < 0.6,
    "heads": lambda: np.random.rand(B, H, T, S) < 0.6,
    "nothing": lambda: np.zeros((B, H, T, S), bool),
}


@pytest.mark.parametrize("kind", MASKS)
def test_attention_equals_the_formula(kind):
    query, key, value, mask = draw(B, H, T, D), draw(B, H, S, D), draw(B, H, S, E), MASKS[kind]()
    output, weights = ops.dot_product_attention(query, key, value, None if kind == "none" else mask)
    expected_output, expected_weights = oracle_attention(query, key, value, mask)
    np.testing.assert_allclose(numpy(output), expected_output, atol=1e-5)
    np.testing.assert_allclose(numpy(weights), expected_weights, atol=1e-6)
    assert np.all(numpy(weights)[~np.broadcast_to(mask, weights.shape)] == 0), "a masked pair has a weight"


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_gradient_of_attention_equals_finite_differences(argument):
    arguments, mask = [draw(B, H, T, D), draw(B, H, S, D), draw(B, H, S, E)], MASKS["pairs"]()
    mask[0, 0, 1] = False  # a query that may see nothing
    direction = draw(B, H, T, E)

    def total_of(x):
        output, _ = ops.dot_product_attention(*arguments[:argument], x, *arguments[argument + 1 :], mask)
        return weighted_sum(output, direction)

    found = gradient(total_of, arguments[argument])

    def total_of_head(place):
        def total(part):
            parts = [array[place].astype("float64") for array in arguments]
            parts[argument] = part
            return (oracle.attention(*parts, mask[place[0], 0])[0] * direction[place]).sum()

        return total

    for place in [(0, 0), (1, 2)]:
        expected = oracle.numeric_gradient(total_of_head(place), arguments[argument][place])
        np.testing.assert_allclose(found[place], expected, atol=2e-4)


def test_dropout_touches_the_output_but_not_the_returned_weights():
    query, key, value = draw(B, H, T, D), draw(B, H, S, D), draw(B, H, S, E)
    plain_output, plain_weights = ops.dot_product_attention(query, key, value)
    output, weights = ops.dot_product_attention(query, key, value, dropout=lambda weights: weights * 3)
    np.testing.assert_array_equal(numpy(weights), numpy(plain_weights))
    np.testing.assert_allclose(numpy(output), 3 * numpy(plain_output), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_query_is_scaled_before_the_product(dtype):
    # 64 · 40 · 40 = 102400 overflows float16; with the query divided by √64 first, it is 12800.
    query, key = np.full((B, H, T, 64), 40.0), np.full((B, H, S, 64), 40.0)
    key[:, :, 3:] = -40.0  # three keys share the weight
    value = draw(B, H, S, E)
    output, weights = ops.dot_product_attention(*(keras.ops.cast(x, dtype) for x in (query, key, value)))
    assert dtype_of(output) == dtype_of(weights) == dtype
    np.testing.assert_allclose(
        numpy(weights).astype("float32"), np.full((B, H, T, S), [1 / 3] * 3 + [0] * 4), atol=2e-3
    )
    expected = np.repeat(value[:, :, None, :3].mean(3), T, axis=2)
    np.testing.assert_allclose(numpy(output).astype("float32"), expected, atol=2e-2)


def test_masked_softmax_is_the_softmax_of_what_is_allowed():
    logits, mask = draw(T, S, scale=50), np.random.rand(T, S) < 0.5
    mask[2], mask[3] = False, True
    weights = numpy(ops.masked_softmax(logits, mask))
    expected = [oracle.softmax(row.astype("float64"), allowed) for row, allowed in zip(logits, mask, strict=True)]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_array_equal(weights[2], np.zeros(S))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
def test_masked_softmax_ignores_what_is_masked(bad):
    logits, mask = draw(T, S), np.ones((T, S), bool)
    mask[:, 3] = False
    clean = ops.masked_softmax(logits, mask)
    logits[:, 3] = bad
    np.testing.assert_array_equal(numpy(ops.masked_softmax(logits, mask)), numpy(clean))


def test_masked_softmax_has_no_gradient_where_masked():
    direction, mask = draw(T, S), np.random.rand(T, S) < 0.5
    mask[2] = False
    found = gradient(lambda logits: weighted_sum(ops.masked_softmax(logits, mask), direction), draw(T, S))
    assert np.all(np.isfinite(found))
    assert np.all(found[~mask] == 0)
    assert np.any(found[mask] != 0)


def test_softmax_over_one_key():
    np.testing.assert_array_equal(numpy(ops.masked_softmax(draw(T, 1))), np.ones((T, 1)))
    mask = np.array([[True], [False], [True], [False], [True]])
    np.testing.assert_array_equal(numpy(ops.masked_softmax(draw(T, 1), mask)), mask.astype("float32"))


@pytest.mark.parametrize("offset", [0, 2, 11])
def test_causal_mask_lets_a_query_see_up_to_its_place(offset):
    mask = numpy(ops.causal_mask(T, S, offset))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[s <= offset + t for s in range(S)] for t in range(T)])


def test_causal_mask_of_lengths_known_at_run_time():
    def mask(x, y, offset):
        return ops.causal_mask(keras.ops.shape(x)[0], keras.ops.shape(y)[0], offset)

    signature = keras.KerasTensor((None,)), keras.KerasTensor((None,)), keras.KerasTensor((), "int32")
    expected = [[s <= 2 + t for s in range(S)] for t in range(T)]
    masks = compiled(mask, signature)(draw(T), draw(S), np.int32(2))
    np.testing.assert_array_equal(numpy(masks), expected)


@pytest.mark.parametrize("make", [list, np.array, keras.ops.array], ids=["list", "numpy", "tensor"])
@pytest.mark.parametrize("cast", [bool, int, float])
def test_masks_are_taken_in_any_form(make, cast):
    rows = [[cast(1), cast(0), cast(1)], [cast(0), cast(1), cast(1)]]
    mask = ops.as_mask(make(rows), "padding_mask")
    assert dtype_of(mask) == "bool"
    np.testing.assert_array_equal(numpy(mask), np.array(rows, bool))


def test_key_and_pair_masks_get_the_axes_of_the_scores():
    padding, pairs = np.random.rand(B, S) < 0.5, np.random.rand(B, T, S) < 0.5
    np.testing.assert_array_equal(numpy(ops.key_mask(padding)), padding.reshape(B, 1, 1, S))
    np.testing.assert_array_equal(numpy(ops.query_mask(padding)), padding.reshape(B, 1, S, 1))
    np.testing.assert_array_equal(numpy(ops.pair_mask(pairs)), pairs.reshape(B, 1, T, S))
    heads = np.random.rand(B, H, T, S) < 0.5
    np.testing.assert_array_equal(numpy(ops.pair_mask(heads)), heads)


@pytest.mark.parametrize(
    ("function", "shape", "dtype", "error", "message"),
    [
        (ops.key_mask, (B, S), "complex64", TypeError, r"`padding_mask` holds booleans.*padding_mask.dtype=complex64"),
        (ops.key_mask, (B, T, S), "bool", ValueError, r"`padding_mask` has shape \(batch, length\).*shape=\(2, 5, 7\)"),
        (
            ops.query_mask,
            (T,),
            "bool",
            ValueError,
            r"`query_mask` has shape \(batch, length\).*query_mask.shape=\(5,\)",
        ),
        (
            ops.pair_mask,
            (T, S),
            "bool",
            ValueError,
            r"write a \(queries, keys\) mask.* as mask\[None\].*shape=\(5, 7\)",
        ),
        (ops.pair_mask, (1, B, H, T, S), "bool", ValueError, r"attention_mask.shape=\(1, 2, 3, 5, 7\)"),
    ],
)
def test_wrong_masks_are_refused(function, shape, dtype, error, message):
    with pytest.raises(error, match=message):
        function(np.ones(shape, dtype))


@pytest.mark.parametrize(
    "function",
    [ops.key_mask, ops.combine_masks, lambda mask: ops.masked_softmax(draw(B, S), mask)],
    ids=["key_mask", "combine_masks", "masked_softmax"],
)
def test_an_additive_mask_is_never_taken_for_its_opposite(function):
    additive = np.where(np.arange(S) < 3, 0.0, -np.inf).astype("float32")[None]
    with pytest.raises(ValueError, match=r"numbers that are 0 or 1 .* go to `attention_bias` .* from -inf to 0"):
        function(additive)
    if HAS_XLA:  # values are not known there
        with pytest.raises(TypeError, match=r"cannot be seen inside a compiled function: .*mask > 0.*dtype=float32"):
            compiled(function)(keras.ops.convert_to_tensor(additive))


def test_masks_combine_to_what_all_allow():
    assert ops.combine_masks() is None
    assert ops.combine_masks(None, None) is None
    keys, pairs = np.random.rand(B, 1, 1, S) < 0.5, np.random.rand(1, H, T, S) < 0.5
    assert ops.combine_masks(None, keys) is keys
    np.testing.assert_array_equal(numpy(ops.combine_masks(keys, None, pairs)), keys & pairs)


@pytest.mark.parametrize("dim", [1, 2, 7, 16])
@pytest.mark.parametrize("max_wavelength", [10000.0, 37.0])
def test_sinusoids_equal_the_formula(dim, max_wavelength):
    positions = [0, 1, 2, 3, 511, 5000, 4999]
    table = ops.sinusoids(np.array(positions), dim, max_wavelength)
    assert dtype_of(table) == "float32"
    # At position 5000 a float32 angle is known to 5000 · 2^-24 = 3e-4.
    np.testing.assert_allclose(numpy(table), oracle.sinusoids(positions, dim, max_wavelength), atol=1e-3)


def test_sinusoids_tell_neighbours_apart_far_from_the_start():
    table = numpy(ops.sinusoids(np.arange(4990, 5010), 16))
    distances = np.abs(np.diff(table, axis=0)).max(-1)
    assert distances.min() > 0.3


def test_sinusoids_of_positions_that_differ_between_rows():
    positions = np.array([[0, 1, 2, 0, 1], [3, 4, 5, 6, 7]])
    table = numpy(ops.sinusoids(positions, 7))
    assert table.shape == (2, 5, 7)
    for row, expected in zip(table, positions, strict=True):
        np.testing.assert_allclose(row, oracle.sinusoids(expected, 7), atol=1e-5)
