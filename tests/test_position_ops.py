"""The pure functions behind positions, windows, segments, shared heads and flash kernels."""

import keras
import numpy as np
import oracle
import pytest
from backends import BACKEND, dtype_of, numpy

from keras_attention import ops
from keras_attention.ops.attention import has_flash_kernel

B, H, G, T, S, D = 2, 6, 3, 5, 7, 22


def draw(*shape):
    return np.random.normal(size=shape).astype("float32")


def rotated(x, positions, max_wavelength):
    """Each pair (x_i, x_{i+D/2}) as a complex number, times e^(i·angle)."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:].astype("float64")
    angles = np.array([[p / max_wavelength ** (2 * i / x.shape[-1]) for i in range(half)] for p in positions])
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("max_wavelength", [10000.0, 37.0])
def test_rotation_turns_pairs_by_their_angles(max_wavelength):
    x, positions = draw(B, H, T, D), [0, 1, 2, 511, 4999]
    turned = ops.rotate(x, np.array(positions), max_wavelength)
    assert dtype_of(turned) == "float32"
    np.testing.assert_allclose(numpy(turned), rotated(x, positions, max_wavelength), atol=2e-3)
    assert np.abs(numpy(ops.rotate(x, np.array(positions))) - numpy(turned)).max() > 0.1 or max_wavelength == 10000.0


def test_rotation_takes_positions_of_each_row():
    x, positions = draw(B, H, T, D), np.array([[0, 1, 2, 0, 1], [3, 4, 5, 6, 7]])
    turned = numpy(ops.rotate(x, positions))
    for b in range(B):
        np.testing.assert_allclose(turned[b], rotated(x[b], positions[b], 10000.0), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rotation_in_half_precision_tells_far_neighbours_apart(dtype):
    x = np.ones((1, 1, 2, D), "float32")
    turned = ops.rotate(keras.ops.cast(x, dtype), np.array([5000, 5001]))
    assert dtype_of(turned) == dtype
    turned = numpy(keras.ops.cast(turned, "float32"))
    np.testing.assert_allclose(turned, rotated(x, [5000, 5001], 10000.0), atol=0.02)
    assert np.abs(turned[0, 0, 0] - turned[0, 0, 1]).max() > 0.5


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 7, 8, 12, 16])
def test_alibi_slopes(heads):
    np.testing.assert_allclose(ops.alibi_slopes(heads), oracle.alibi_slopes(heads), rtol=1e-12)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (6, 11)])
def test_distance_buckets(num_buckets, max_distance, bidirectional):
    distances = np.array([d for d in range(-150, 151)])
    buckets = ops.distance_buckets(distances, num_buckets, max_distance, bidirectional)
    assert dtype_of(buckets) == "int32"
    expected = [oracle.relative_bucket(d, num_buckets, max_distance, bidirectional) for d in distances]
    # Where the logarithm is whole, float32 may fall on either side of it.
    differing = numpy(buckets) != expected
    assert differing.mean() < 0.02
    assert np.abs(numpy(buckets) - expected).max() <= 1
    assert set(numpy(buckets).tolist()) == set(expected)


def test_distance_buckets_of_the_published_example():
    """T5: 32 buckets, 16 a direction, 8 of them of one distance each, the rest up to 128."""
    distances = np.array([0, -1, -7, -8, -9, -11, -12, -127, -128, -4000, 1, 7, 8, 4000])
    expected = [0, 1, 7, 8, 8, 8, 9, 15, 15, 15, 17, 23, 24, 31]
    assert numpy(ops.distance_buckets(distances, 32, 128, True)).tolist() == expected


@pytest.mark.parametrize("window", [1, 2, 4, 99])
@pytest.mark.parametrize("offset", [0, 3])
def test_window_mask_lets_a_query_see_near_keys_on_both_sides(window, offset):
    mask = numpy(ops.window_mask(T, S, window, offset))
    assert mask.dtype == bool
    expected = [[abs(s - t - offset) < window for s in range(S)] for t in range(T)]
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(numpy(ops.window_mask(T, S, window)), numpy(ops.window_mask(T, S, window, 0)))


SEGMENTS = np.array([[7, 7, 7, 8, 8, 0, 0], [3, 4, 4, 4, 4, 4, 3]])


@pytest.mark.parametrize("make", [lambda ids: ids.tolist(), lambda ids: ids, lambda ids: ids.astype("int64")])
def test_segments_keep_to_themselves_and_start_again(make):
    mask = ops.segment_mask(make(SEGMENTS[:, :T]), make(SEGMENTS))
    assert (tuple(mask.shape), dtype_of(mask)) == ((B, 1, T, S), "bool")
    expected = [[[[q == k for k in row] for q in row[:T]]] for row in SEGMENTS]
    np.testing.assert_array_equal(numpy(mask), expected)
    positions = ops.segment_positions(make(SEGMENTS))
    assert dtype_of(positions) == "int32"
    np.testing.assert_array_equal(numpy(positions), [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 0]])


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (B, 0), (0, 4)])
def test_segments_of_any_size(shape):
    assert numpy(ops.segment_positions(np.ones(shape, "int32"))).tolist() == [list(range(shape[1]))] * shape[0]


def test_segments_must_be_integers_of_rank_two():
    for function in (ops.segment_positions, lambda ids: ops.segment_mask(SEGMENTS, ids)):
        with pytest.raises(TypeError, match=r"Segment ids are integers, one .* sequence. Received: dtype=float32"):
            function(np.ones((B, S), "float32"))
        with pytest.raises(ValueError, match=r"Segment ids have shape \(batch, length\). Received: shape=\(7,\)"):
            function(np.ones(S, "int32"))


@pytest.mark.parametrize(
    ("shape", "broadcast", "sizes", "fits"),
    [
        ((B, S), False, {"batch": B, "length": S}, True),
        ((B, S), False, {"batch": B, "length": None}, True),
        ((B, T), False, {"batch": B, "length": S}, False),
        ((1, S), False, {"batch": B, "length": S}, False),
        ((1, S), True, {"batch": B, "length": S}, True),
        ((S, T), True, {"batch": B, "length": T}, False),
        ((B, 1, 1, S), False, {"batch": B, "heads": 1, "queries": 1, "keys": S}, True),
        ((9, 9, T, S), True, {"queries": T, "keys": S}, True),
        ((9, 9, T, S), True, {"queries": S, "keys": T}, False),
    ],
)
def test_masks_must_fit(shape, broadcast, sizes, fits):
    mask = np.ones(shape, bool)
    if fits:
        ops.check_mask_fits(mask, "padding_mask", broadcast, **sizes)
        return
    with pytest.raises(ValueError, match=r"`padding_mask` must fit the inputs") as error:
        ops.check_mask_fits(mask, "padding_mask", broadcast, **sizes)
    message = str(error.value)
    for name, size in sizes.items():
        assert (f"{name} {size}" in message) == (size != 1)
    assert f"Received: padding_mask of {shape}, its last axes as ({', '.join(sizes)})" in message
    assert message.endswith(" with 1 where it is the same for all") == broadcast


def test_segment_ids_must_fit():
    ops.check_segments_fit(SEGMENTS, "segment ids of the query", batch=B, length=S)
    ops.check_segments_fit(SEGMENTS, "segment ids of the query", batch=B, length=None)
    message = rf"`segment ids of the query` must fit the inputs: batch {B}, length {T}. Received: .* of \({B}, {S}\)"
    with pytest.raises(ValueError, match=message):
        ops.check_segments_fit(SEGMENTS, "segment ids of the query", batch=B, length=T)
    with pytest.raises(ValueError, match=rf"batch 3, length {S}"):
        ops.check_segments_fit(SEGMENTS, "segment ids of the query", batch=3, length=S)
    with pytest.raises(TypeError, match="Segment ids are integers"):
        ops.check_segments_fit(SEGMENTS.astype("float32"), "segment ids of the query", batch=B, length=S)


def test_a_misfit_says_that_axes_of_one_are_shared():
    with pytest.raises(ValueError, match=r"\(batch, heads, keys\) with 1 where it is the same for all$"):
        ops.check_mask_fits(np.ones((B, 1, S)), "value_mask", batch=B, heads=1, keys=T)
    ops.check_mask_fits(np.ones((1, S)), "value_mask", broadcast=True, batch=B, length=S)
    with pytest.raises(ValueError, match="must fit"):
        ops.check_mask_fits(np.ones((1, S)), "value_mask", batch=B, length=S)


def test_shared_heads_are_repeated_heads():
    query, key, value = draw(B, H, T, D), draw(B, G, S, D), draw(B, G, S, 13)
    bias, mask = draw(1, H, T, S), np.random.rand(B, 1, T, S) < 0.6
    output, weights = ops.dot_product_attention(query, key, value, mask, bias)
    for b, h in np.ndindex(B, H):
        shared = key[b, h // (H // G)], value[b, h // (H // G)]
        expected = oracle.attention(query[b, h], *shared, mask[b, 0], bias[0, h])
        np.testing.assert_allclose(numpy(output)[b, h], expected[0], atol=1e-5)
        np.testing.assert_allclose(numpy(weights)[b, h], expected[1], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_bias_is_added_in_float32(dtype):
    """300 and 301 are the same number in bfloat16; their difference decides the weights."""
    query, key, value = (keras.ops.zeros((1, 1, n, 4), dtype) for n in (1, 2, 2))
    _, weights = ops.dot_product_attention(query, key, value, bias=np.array([300.0, 301.0], "float32"))
    assert dtype_of(weights) == dtype
    np.testing.assert_allclose(numpy(keras.ops.cast(weights, "float32"))[0, 0, 0], [0.2689, 0.7311], atol=3e-3)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no flash kernel")
@pytest.mark.parametrize("groups", [H, G, 1])
@pytest.mark.parametrize("options", ["plain", "mask", "bias", "mask and bias", "small"])
def test_fused_attention_is_attention(monkeypatch, groups, options):
    """With Keras' plain implementation in the kernel's place, which needs an accelerator."""
    plain = keras.ops.dot_product_attention

    def kernel(*args, flash_attention, **kwargs):
        assert flash_attention is True
        for pairs in (kwargs["mask"], kwargs["bias"]):
            assert pairs is None or tuple(pairs.shape[2:]) == (T, S)
        return plain(*args, flash_attention=False, **kwargs)

    monkeypatch.setattr(keras.ops, "dot_product_attention", kernel)
    query, key, value = (keras.ops.convert_to_tensor(draw(B, n, m, D)) for n, m in ((H, T), (groups, S), (groups, S)))
    mask = np.random.rand(B, 1, T, S) < 0.6
    mask[0, 0, 1] = False  # a query that may see nothing
    mask = keras.ops.convert_to_tensor(np.broadcast_to(mask, (B, H, T, S)).copy()) if "mask" in options else None
    bias = keras.ops.convert_to_tensor(draw(B, H, T, S)) if "bias" in options else None
    if options == "small":  # which cuDNN does not repeat for all pairs
        mask, bias = keras.ops.arange(S) != 2, keras.ops.convert_to_tensor(draw(H, 1, S))
    expected, _ = ops.dot_product_attention(query, key, value, mask, bias)
    output = numpy(ops.fused_attention(query, key, value, mask, bias))
    np.testing.assert_allclose(output, numpy(expected), atol=1e-5)
    if "mask" in options:
        assert np.all(output[0, :, 1] == 0)


@pytest.mark.parametrize(
    ("dtypes", "lengths", "widths", "expected"),
    [
        ("bfloat16", (4, 6), (64, 64), True),
        ("float16", (4, 6), (128, 128), True),
        ("float32", (4, 6), (64, 64), False),
        ("bfloat16", (5, 6), (64, 64), False),
        ("bfloat16", (1, 6), (64, 64), False),  # a step of decoding
        ("bfloat16", (4, 6), (136, 136), False),
        ("bfloat16", (4, 6), (20, 20), False),
        ("bfloat16", (4, 6), (64, 32), False),
    ],
)
def test_which_heads_have_a_flash_kernel(monkeypatch, dtypes, lengths, widths, expected):
    query, key = (keras.ops.zeros((B, H, length, widths[0]), dtypes) for length in lengths)
    value = keras.ops.zeros((B, H, lengths[1], widths[1]), dtypes)
    assert not has_flash_kernel(query, key, value)  # on a CPU
    monkeypatch.setattr(ops.attention, "is_on_gpu", lambda x: True)
    assert has_flash_kernel(query, key, value) is expected


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others have flash kernels")
def test_fused_attention_needs_a_kernel():
    x = draw(B, H, T, D)
    with pytest.raises(ValueError, match=r"give flash_attention=None, or use JAX .*Received: flash_attention=True, b"):
        ops.fused_attention(x, x, x)
