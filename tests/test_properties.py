"""Properties of the operations and layers over sampled shapes, masks and options, most of them against the oracle.

Each test samples sizes, options and a seed for the numbers; layers come from small pools, since building them takes
longer than calling them. The same cases are sampled each time.
"""

import functools
from typing import Any

import keras
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import randomize

import keras_attention as ka
from keras_attention import ops

HEADS, HEAD_DIM = 6, 4
WIDTH = HEADS * HEAD_DIM
MEMORY_WIDTH, INNER = 11, 13

SEEDS = st.integers(0, 2**32 - 1)
BATCHES = st.integers(0, 3)
LENGTHS = st.integers(1, 5)
DENSITIES = st.sampled_from([None, 0.0, 0.5, 0.9])  # of a mask; None for no mask
POSITIONS = {
    "rotary": (ka.RotaryPosition(100.0), oracle.Rotary(100.0)),
    "alibi": (ka.AlibiBias(), oracle.Alibi()),
    "relative": (ka.RelativePositionBias(8, 20), oracle.Relative(8, 20)),
    "one_way": (ka.RelativePositionBias(5, 17, bidirectional=False), oracle.Relative(5, 17, bidirectional=False)),
}
COUNTS: list[int] = []


def cases(count: int) -> Any:
    """Runs a test on a number of cases, the same ones each time."""
    COUNTS.append(count)
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


def test_there_are_enough_cases():
    assert sum(COUNTS) >= 2000


class Numbers:
    """Random arrays of a case."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def floats(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.rng.normal(size=shape) * scale).astype("float32")

    def mask(self, density: float | None, *shape: int) -> np.ndarray | None:
        return None if density is None else self.rng.random(shape) < density

    def segments(self, *shape: int) -> np.ndarray:
        """Ids of packed sequences, those of one standing together."""
        return np.sort(self.rng.integers(0, 3, shape), axis=-1).astype("int32")


def numpy(tensors: Any) -> Any:
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tensors)


def assert_equal(actual: Any, expected: Any, atol: float = 2e-5) -> None:
    actual = numpy(actual)
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=1e-4)


def options_of(choice: int, **choices: list[Any]) -> dict[str, Any]:
    """One combination of the options; small numbers change only one option, each in its turn."""
    singles = [(name, value) for name, values in choices.items() for value in values[1:]]
    if choice == 0:
        return {}
    if choice <= len(singles):
        return dict([singles[choice - 1]])
    rng = np.random.default_rng(choice)
    drawn = {name: values[rng.integers(len(values))] for name, values in choices.items()}
    return {name: value for name, value in drawn.items() if value is not choices[name][0]}


def attention_options(choice: int) -> dict[str, Any]:
    return options_of(
        choice,
        value_dim=[None, 5],
        num_kv_heads=[None, 1, 2, 3],
        use_gate=[False, True],
        qk_norm=[False, True],
        use_bias=[True, False],
        sliding_window=[None, 2],
        position=[None, *POSITIONS],
    )


def block_options(choice: int) -> dict[str, Any]:
    return options_of(
        choice,
        normalize_first=[False, True],
        normalization=["layer", "rms"],
        activation=["relu", "swiglu", "gelu"],
        num_kv_heads=[None, 2],
        qk_norm=[False, True],
        use_attention_bias=[True, False],
        layer_norm_epsilon=[1e-5, 0.1],
        position=[None, *POSITIONS],
    )


ATTENTIONS, BLOCKS = st.integers(0, 29), st.integers(0, 23)
KINDS = st.sampled_from(["attention", "encoder", "decoder"])


@functools.cache
def built(layer_class: type, sizes: tuple[Any, ...], options: tuple[Any, ...], *shapes: tuple[int, ...]) -> Any:
    """A layer with random weights, made once."""
    arguments = dict(options)
    if "position" in arguments:
        arguments["position"] = POSITIONS[arguments["position"]][0]
    layer = layer_class(*sizes, **arguments)
    layer.build(*shapes)
    state = np.random.get_state()
    np.random.seed(len(str(options)))
    randomize(layer)
    np.random.set_state(state)
    return layer


def cross_attention(options: dict[str, Any]) -> Any:
    shapes = (None, None, WIDTH), (None, None, MEMORY_WIDTH)
    return built(ka.MultiHeadAttention, (HEADS, HEAD_DIM), tuple(options.items()), *shapes)


def self_attention(options: dict[str, Any]) -> Any:
    return built(ka.MultiHeadSelfAttention, (HEADS,), tuple(options.items()), (None, None, WIDTH))


def encoder_layer(options: dict[str, Any]) -> Any:
    return built(ka.EncoderLayer, (INNER, HEADS), tuple(options.items()), (None, None, WIDTH))


def decoder_layer(options: dict[str, Any], memory: bool = True) -> Any:
    shapes = [(None, None, WIDTH), (None, None, MEMORY_WIDTH)][: 1 + memory]
    return built(ka.DecoderLayer, (INNER, HEADS), tuple(options.items()), *shapes)


def oracle_position(options: dict[str, Any]) -> Any:
    return POSITIONS[options["position"]][1] if "position" in options else None


def oracle_block(options: dict[str, Any]) -> dict[str, Any]:
    named = {"normalize_first": "normalize_first", "activation": "activation", "layer_norm_epsilon": "epsilon"}
    found = {ours: options[name] for name, ours in named.items() if name in options}
    return {**found, "position": oracle_position(options)}


# Operations.


@cases(800)
@given(
    seed=SEEDS,
    batch=BATCHES,
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (6, 2), (6, 3)]),
    lengths=st.tuples(LENGTHS, LENGTHS),
    widths=st.tuples(LENGTHS, LENGTHS),
    density=DENSITIES,
    axes=st.tuples(*[st.booleans()] * 4),  # which axes of mask and bias have their size, and not 1
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 20.0]),
)
def test_attention_equals_the_formula(seed, batch, heads, lengths, widths, density, axes, biased, scale):
    numbers, (head_count, groups) = Numbers(seed), heads
    query = numbers.floats(batch, head_count, lengths[0], widths[0], scale=scale)
    key = numbers.floats(batch, groups, lengths[1], widths[0])
    value = numbers.floats(batch, groups, lengths[1], widths[1])
    full = (batch, head_count, *lengths)
    shape = [size if kept else 1 for size, kept in zip(full, axes, strict=True)]
    mask = numbers.mask(density, *shape)
    bias = numbers.floats(*shape) if biased else None
    output, weights = ops.dot_product_attention(query, key, value, mask, bias)
    expected, expected_weights = np.zeros((*full[:3], widths[1])), np.zeros(full)
    masks = np.broadcast_to(True if mask is None else mask, full)
    biases = np.broadcast_to(0.0 if bias is None else bias, full)
    for b, h in np.ndindex(batch, head_count):
        group = h * groups // head_count
        parts = [x.astype("float64") for x in (query[b, h], key[b, group], value[b, group])]
        expected[b, h], expected_weights[b, h] = oracle.attention(*parts, masks[b, h], biases[b, h])
    assert_equal(output, expected, atol=1e-4 if scale > 1 else 1e-5)
    assert_equal(weights, expected_weights, atol=1e-4 if scale > 1 else 1e-5)
    assert np.all(numpy(weights)[~masks] == 0), "a masked pair has a weight"


@cases(350)
@given(
    seed=SEEDS,
    batch=BATCHES,
    lengths=st.tuples(LENGTHS, LENGTHS),
    offset=st.integers(0, 4),
    window=st.integers(1, 6),
)
def test_masks_allow_the_pairs_that_they_say(seed, batch, lengths, offset, window):
    causal = oracle.visible(*lengths, causal=True, offset=offset)
    np.testing.assert_array_equal(numpy(ops.causal_mask(*lengths, offset)), causal)
    near = oracle.visible(*lengths, window=window, offset=offset)
    np.testing.assert_array_equal(numpy(ops.window_mask(*lengths, window, offset)), near)
    numbers = Numbers(seed)
    queries, keys = (numbers.segments(batch, length) for length in lengths)
    mask, places = numpy(ops.segment_mask(queries, keys)), numpy(ops.segment_positions(queries))
    assert (mask.shape, places.shape) == ((batch, 1, *lengths), queries.shape)
    for b in range(batch):
        apart = oracle.visible(*lengths, query_segments=queries[b], key_segments=keys[b])
        np.testing.assert_array_equal(mask[b, 0], apart)
        np.testing.assert_array_equal(places[b], oracle.segment_positions(queries[b]))


@cases(350)
@given(
    seed=SEEDS,
    start=st.integers(0, 5000),
    length=LENGTHS,
    half=st.integers(1, 4),
    wavelength=st.sampled_from([100.0, 10000.0]),
    heads=st.integers(1, 33),
    buckets=st.integers(4, 40),
    farther=st.integers(1, 200),
    bidirectional=st.booleans(),
)
def test_positions_equal_the_formulas(seed, start, length, half, wavelength, heads, buckets, farther, bidirectional):
    places = start + np.arange(length)
    x, rotary = Numbers(seed).floats(1, 1, length, 2 * half), oracle.Rotary(wavelength)
    expected = [rotary.turn(vector, place) for vector, place in zip(x[0, 0], places, strict=True)]
    # At position 5000 a float32 angle is known to 5000 · 2^-24 = 3e-4.
    assert_equal(ops.rotate(x, places, wavelength)[0, 0], expected, atol=5e-3)
    assert_equal(ops.sinusoids(places, half, wavelength), oracle.sinusoids(places, half, wavelength), atol=2e-3)
    np.testing.assert_allclose(ops.alibi_slopes(heads), oracle.alibi_slopes(heads), rtol=1e-12)
    farthest = buckets // (4 if bidirectional else 2) + farther
    distances = np.concatenate([np.arange(-30, 31), places - start - 2500, [-start, start]])
    found = numpy(ops.distance_buckets(distances, buckets, farthest, bidirectional))
    sizes = buckets, farthest, bidirectional
    np.testing.assert_array_equal(found, [oracle.relative_bucket(int(each), *sizes) for each in distances])


# Layers against the oracle.


@cases(150)
@given(
    seed=SEEDS,
    choice=ATTENTIONS,
    batch=BATCHES,
    lengths=st.tuples(LENGTHS, LENGTHS),
    own_key=st.booleans(),
    densities=st.tuples(DENSITIES, DENSITIES, DENSITIES, DENSITIES),
    mask_axes=st.sampled_from([(0, 2, 3), (2, 3), (0, 1, 2, 3), (1, 2), (3,)]),
    bias_axes=st.sampled_from([None, (), (1,), (2, 3), (0, 1, 2, 3)]),
    segmented=st.booleans(),
    causal=st.booleans(),
)
def test_multi_head_attention_equals_the_formulas(
    seed, choice, batch, lengths, own_key, densities, mask_axes, bias_axes, segmented, causal
):
    numbers, options = Numbers(seed), attention_options(choice)
    layer, (queries, keys) = cross_attention(options), lengths
    full = (batch, HEADS, queries, keys)
    query, value = numbers.floats(batch, queries, WIDTH), numbers.floats(batch, keys, MEMORY_WIDTH)
    key = numbers.floats(batch, keys, MEMORY_WIDTH) if own_key else None
    masks = {
        "query_mask": numbers.mask(densities[0], batch, queries),
        "value_mask": numbers.mask(densities[1], batch, keys),
        "key_mask": numbers.mask(densities[2], batch, keys),
        "attention_mask": numbers.mask(densities[3], *(size if i in mask_axes else 1 for i, size in enumerate(full))),
    }
    allowed = np.ones(full, bool)
    axes = {"query_mask": np.s_[:, None, :, None], "value_mask": np.s_[:, None, None], "key_mask": np.s_[:, None, None]}
    for name, mask in masks.items():
        allowed &= True if mask is None else mask[axes.get(name, ...)]
    arguments, reference = {}, {"position": oracle_position(options)}
    if bias_axes is not None:
        shape = [size if i in bias_axes else 1 for i, size in enumerate(full)]
        arguments["attention_bias"] = reference["bias"] = numbers.floats(*shape)
    segments: tuple[Any, Any] = ((None,) * batch,) * 2
    if segmented:
        segments = numbers.segments(batch, queries), numbers.segments(batch, keys)
        arguments["query_segment_ids"], arguments["value_segment_ids"] = segments
        for name, ids in zip(("query_positions", "key_positions"), segments, strict=True):
            reference[name] = [oracle.segment_positions(row) for row in ids]
    for b in range(batch):
        pair = {"query_segments": segments[0][b], "key_segments": segments[1][b]}
        allowed[b] &= oracle.visible(queries, keys, causal, options.get("sliding_window"), **pair)
    masks = {name: mask for name, mask in masks.items() if mask is not None}
    found = layer(query, value, key, use_causal_mask=causal, return_attention_scores=True, **masks, **arguments)
    inputs = [None if x is None else x.astype("float64") for x in (query, value, key)]
    expected = oracle.multi_head_attention(oracle.weights_of(layer), *inputs, mask=allowed, **reference)
    assert_equal(found[0], expected[0], atol=1e-4)
    assert_equal(found[1], expected[1], atol=1e-4)
    assert np.all(numpy(found[1])[~allowed] == 0), "a masked pair has a weight"
    without = layer(query, value, key, use_causal_mask=causal, **masks, **arguments)
    np.testing.assert_array_equal(numpy(without), numpy(found[0]))


AXES = [
    (4, (1,)),
    (4, (2,)),
    (4, (-2, 1)),
    (4, None),
    (5, (1,)),
    (5, (2,)),
    (5, (3,)),
    (5, (1, 3)),
    (5, (2, 3)),
    (5, None),
]


@cases(60)
@given(
    seed=SEEDS,
    kind=st.sampled_from(AXES),
    sizes=st.tuples(BATCHES, *[st.integers(1, 3)] * 6),
    density=DENSITIES,
    pair_density=DENSITIES,
)
def test_attention_over_some_axes_equals_the_formulas(seed, kind, sizes, density, pair_density):
    numbers, (rank, axes) = Numbers(seed), kind
    layer = built(
        ka.MultiHeadAttention,
        (HEADS, HEAD_DIM),
        (("attention_axes", axes),),
        (None,) * (rank - 1) + (WIDTH,),
        (None,) * (rank - 1) + (MEMORY_WIDTH,),
    )
    attended = tuple(range(1, rank - 1)) if axes is None else tuple(sorted(axis % rank for axis in axes))
    query_sizes = sizes[: rank - 1]
    value_sizes = [sizes[3 + i] if i in attended else size for i, size in enumerate(query_sizes)]
    query, value = numbers.floats(*query_sizes, WIDTH), numbers.floats(*value_sizes, MEMORY_WIDTH)
    mask = numbers.mask(density, *value_sizes)
    order = attended if axes is None else tuple(axis % rank for axis in axes)
    pairs = numbers.mask(pair_density, *(query_sizes[i] for i in attended), *(value_sizes[i] for i in attended))
    given_pairs = pairs
    if pairs is not None and order != attended:  # the layer takes the axes in the order of its argument
        places = [attended.index(i) for i in order]
        given_pairs = pairs.transpose(*places, *(len(order) + place for place in places))
    arguments = {} if mask is None else {"value_mask": mask}
    if pairs is not None:
        arguments["attention_mask"] = given_pairs[(None,) * (rank - 1 - len(attended))]
    expected = oracle.attention_over_axes(
        oracle.weights_of(layer), query.astype("float64"), value.astype("float64"), attended, mask, pairs
    )
    assert_equal(layer(query, value, **arguments), np.zeros(query.shape) if expected is None else expected, atol=1e-4)


@cases(60)
@given(
    seed=SEEDS,
    batch=BATCHES,
    lengths=st.tuples(LENGTHS, LENGTHS),
    own_key=st.booleans(),
    densities=st.tuples(DENSITIES, DENSITIES, DENSITIES, DENSITIES),
    causal=st.booleans(),
)
def test_additive_attention_equals_the_formulas(seed, batch, lengths, own_key, densities, causal):
    numbers, (queries, keys) = Numbers(seed), lengths
    shapes = (None, None, WIDTH), (None, None, MEMORY_WIDTH)
    layer = built(ka.AdditiveAttention, (INNER,), (), *shapes)
    query, value = numbers.floats(batch, queries, WIDTH), numbers.floats(batch, keys, MEMORY_WIDTH)
    key = numbers.floats(batch, keys, MEMORY_WIDTH) if own_key else None
    masks = {
        "query_mask": numbers.mask(densities[0], batch, queries),
        "value_mask": numbers.mask(densities[1], batch, keys),
        "key_mask": numbers.mask(densities[2], batch, keys),
        "attention_mask": numbers.mask(densities[3], batch, queries, keys),
    }
    allowed = np.ones((batch, queries, keys), bool) & oracle.visible(queries, keys, causal)
    axes = {"query_mask": np.s_[:, :, None], "value_mask": np.s_[:, None], "key_mask": np.s_[:, None]}
    for name, mask in masks.items():
        allowed &= True if mask is None else mask[axes.get(name, ...)]
    inputs = [None if x is None else x.astype("float64") for x in (query, value, key)]
    expected = oracle.additive_attention(oracle.weights_of(layer), *inputs, mask=allowed)
    found = layer(query, value, key, **masks, use_causal_mask=causal, return_attention_scores=True)
    assert_equal(found[0], expected[0], atol=1e-4)
    assert_equal(found[1], expected[1], atol=1e-4)


@cases(50)
@given(
    seed=SEEDS, activation=st.sampled_from(sorted(oracle.ACTIVATIONS)), sizes=st.lists(BATCHES, min_size=2, max_size=4)
)
def test_feed_forward_equals_the_formulas(seed, activation, sizes):
    layer = built(ka.FeedForward, (INNER,), (("activation", activation),), (None, None, WIDTH))
    x = Numbers(seed).floats(*sizes, WIDTH)
    assert_equal(layer(x), oracle.feed_forward(oracle.weights_of(layer), x, activation), atol=1e-4)


@cases(50)
@given(
    seed=SEEDS,
    scale=st.booleans(),
    batch=BATCHES,
    length=LENGTHS,
    start=st.integers(0, 6),
    segmented=st.booleans(),
)
def test_added_positions_equal_the_formulas(seed, scale, batch, length, start, segmented):
    numbers, shape = Numbers(seed), (None, None, WIDTH)
    x, segments = numbers.floats(batch, length, WIDTH), numbers.segments(batch, length)
    places = np.tile(np.arange(length), (batch, 1))
    if segmented:
        places = np.array([oracle.segment_positions(row) for row in segments], int).reshape(batch, length)
    arguments = {"start_index": start, **({"segment_ids": segments} if segmented else {})}
    learned = built(ka.LearnedPositionalEncoding, (11,), (("scale", scale),), shape)
    expected = oracle.learned_positions(oracle.weights_of(learned), x, places + start, scale)
    assert_equal(learned(x, **arguments), expected)
    sinusoid = built(ka.PositionalEncoding, (), (("scale", scale),), shape)
    table = [oracle.sinusoids(row + start, WIDTH) for row in places]
    expected = x * (WIDTH**0.5 if scale else 1) + np.reshape(table, x.shape)
    assert_equal(sinusoid(x, **arguments), expected)


@cases(60)
@given(
    seed=SEEDS,
    choice=BLOCKS,
    kind=st.sampled_from(["encoder", "decoder", "language_model"]),
    batch=st.integers(1, 2),
    lengths=st.tuples(LENGTHS, LENGTHS),
    densities=st.tuples(DENSITIES, DENSITIES, DENSITIES),
)
def test_encoder_and_decoder_layers_equal_the_formulas(seed, choice, kind, batch, lengths, densities):
    numbers, options = Numbers(seed), block_options(choice)
    length, keys = lengths
    x, memory = numbers.floats(batch, length, WIDTH), numbers.floats(batch, keys, MEMORY_WIDTH)
    padding, pairs = numbers.mask(densities[0], batch, length), numbers.mask(densities[1], batch, length, length)
    source = numbers.mask(densities[2], batch, keys)
    allowed = np.ones((batch, 1, length, length), bool)
    allowed &= True if padding is None else padding[:, None, None]
    allowed &= True if pairs is None else pairs[:, None]
    reference = oracle_block(options)
    inputs = [x, memory][: 1 + (kind == "decoder")]
    if kind == "encoder":
        layer, masks = encoder_layer(options), {"padding_mask": padding, "attention_mask": pairs}
        expected = oracle.encoder_layer(oracle.weights_of(layer), x.astype("float64"), allowed, **reference)
    else:
        layer = decoder_layer(options, kind == "decoder")
        masks = {"decoder_padding_mask": padding, "decoder_attention_mask": pairs}
        reference["cross_mask"] = None if source is None else source[:, None, None]
        if kind == "decoder":
            masks["encoder_padding_mask"] = source
        wide = [each.astype("float64") for each in inputs]
        expected = oracle.decoder_layer(oracle.weights_of(layer), *wide, *[None][len(wide) - 1 :], allowed, **reference)
    assert_equal(layer(*inputs, **masks), expected, atol=5e-4)


# What must hold whatever the numbers are.


def layer_of(kind: str, choice: int) -> Any:
    """A layer with one of the combinations of its options."""
    if kind == "attention":
        return self_attention(attention_options(choice))
    return (encoder_layer if kind == "encoder" else decoder_layer)(block_options(choice))


@cases(60)
@given(
    seed=SEEDS,
    kind=KINDS,
    choice=ATTENTIONS,
    lengths=st.tuples(LENGTHS, LENGTHS),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    content=st.sampled_from([0.0, 1e4, np.nan]),
)
def test_padding_never_changes_the_output(seed, kind, choice, lengths, extra, content):
    numbers, layer = Numbers(seed), layer_of(kind, choice)
    inputs = [numbers.floats(2, lengths[0], WIDTH), numbers.floats(2, lengths[1], MEMORY_WIDTH)][
        : 1 + (kind == "decoder")
    ]
    wide, masks = [], []
    for x, more in zip(inputs, extra, strict=False):
        wide.append(np.pad(x, ((0, 0), (0, more), (0, 0)), constant_values=content))
        masks.append(np.tile(np.arange(x.shape[1] + more) < x.shape[1], (2, 1)))
    names = ["decoder_padding_mask", "encoder_padding_mask"] if kind == "decoder" else ["padding_mask"]
    output = layer(*wide, **dict(zip(names, masks, strict=True)))
    assert_equal(output[:, : lengths[0]], numpy(layer(*inputs)), atol=1e-4)


@cases(40)
@given(seed=SEEDS, kind=KINDS, choice=ATTENTIONS, length=st.integers(2, 5), kept=st.integers(1, 4))
def test_a_later_token_never_changes_an_earlier_output(seed, kind, choice, length, kept):
    numbers, layer, kept = Numbers(seed), layer_of(kind, choice), min(kept, length - 1)
    x, memory = numbers.floats(2, length, WIDTH), numbers.floats(2, 3, MEMORY_WIDTH)
    other = np.concatenate([x[:, :kept], numbers.floats(2, length - kept, WIDTH)], axis=1)
    causal = {
        "attention": lambda x: layer(x, use_causal_mask=True),
        "encoder": lambda x: layer(x, attention_mask=oracle.visible(length, length, causal=True)[None]),
        "decoder": lambda x: layer(x, memory),
    }[kind]
    one, another = numpy(causal(x)), numpy(causal(other))
    np.testing.assert_allclose(one[:, :kept], another[:, :kept], atol=2e-5)
    assert np.abs(one[:, kept:] - another[:, kept:]).max() > 1e-3, "the change changes nothing"


@cases(50)
@given(
    seed=SEEDS,
    choice=ATTENTIONS,
    batch=BATCHES,
    steps=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    spare=st.sampled_from([None, 0, 2]),
    density=st.sampled_from([None, 0.7]),
)
def test_decoding_in_steps_equals_the_full_pass(seed, choice, batch, steps, spare, density):
    numbers, layer = Numbers(seed), self_attention(attention_options(choice))
    length = sum(steps)
    x, mask = numbers.floats(batch, length, WIDTH), numbers.mask(density, batch, length)
    full = numpy(layer(x, padding_mask=mask, use_causal_mask=True))
    cache, start = layer.init_cache(batch, None if spare is None else length + spare), 0
    for step in steps:
        end = start + step
        held = end if spare is None else length + spare
        covered = None if mask is None else np.pad(mask[:, :end], ((0, 0), (0, held - end)))
        output, cache = layer(x[:, start:end], padding_mask=covered, use_causal_mask=True, cache=cache)
        assert_equal(output, full[:, start:end])
        assert int(cache.length) == end
        start = end


@cases(30)
@given(
    seed=SEEDS,
    kind=st.sampled_from(["attention", "language_model"]),
    choice=ATTENTIONS,
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    first=LENGTHS,
    second=LENGTHS,
    fixed=st.booleans(),
)
def test_reordered_caches_go_on_from_the_rows_that_they_took(seed, kind, choice, rows, first, second, fixed):
    numbers = Numbers(seed)
    x, more = numbers.floats(3, first, WIDTH), numbers.floats(len(rows), second, WIDTH)
    whole = np.concatenate([x[rows], more], axis=1)
    if kind == "attention":
        layer, name = self_attention(attention_options(choice)), "cache"
    else:
        layer, name = decoder_layer(block_options(choice), memory=False), "self_attention_cache"
    cache = layer.init_cache(3, first + second if fixed else None)
    _, cache = layer(x, use_causal_mask=True, **{name: cache})
    output, _ = layer(more, use_causal_mask=True, **{name: cache.reorder(np.array(rows))})
    assert_equal(output, numpy(layer(whole, use_causal_mask=True))[:, first:], atol=1e-4)


@cases(40)
@given(
    seed=SEEDS,
    position=st.sampled_from([None, *POSITIONS]),
    length=LENGTHS,
    shift=st.integers(1, 40),
    causal=st.booleans(),
    spare=st.sampled_from([None, 0, 2]),
)
def test_relative_positions_do_not_feel_a_shift(seed, position, length, shift, causal, spare):
    numbers = Numbers(seed)
    layer = self_attention({} if position is None else {"position": position})
    x, before = numbers.floats(2, length, WIDTH), numbers.floats(2, shift, WIDTH)
    held = shift + length + (spare or 0)
    _, cache = layer(before, cache=layer.init_cache(2, None if spare is None else held))
    # What stands before is only there to be counted; of places that hold nothing yet the cache itself knows.
    hidden = np.tile(np.arange(held) >= shift, (2, 1))
    output, _ = layer(x, padding_mask=hidden, use_causal_mask=causal, cache=cache)
    assert_equal(output, numpy(layer(x, use_causal_mask=causal)), atol=1e-4)


@cases(45)
@given(
    seed=SEEDS,
    kind=KINDS,
    choice=ATTENTIONS,
    lengths=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    names=st.permutations([0, 3, 7]),
)
def test_packed_sequences_equal_separate_ones(seed, kind, choice, lengths, names):
    numbers, layer = Numbers(seed), layer_of(kind, choice)
    sides = 1 + (kind == "decoder")
    widths = (WIDTH, MEMORY_WIDTH)[:sides]
    alone = [[numbers.floats(2, pair[i], width) for i, width in enumerate(widths)] for pair in lengths]
    packed = [np.concatenate(each, axis=1) for each in zip(*alone, strict=True)]
    ids = [np.tile(np.repeat(names[: len(lengths)], [pair[i] for pair in lengths]), (2, 1)) for i in range(sides)]
    arguments = ["decoder_segment_ids", "encoder_segment_ids"] if kind == "decoder" else ["segment_ids"]
    output, start = layer(*packed, **dict(zip(arguments, ids, strict=True))), 0
    for inputs in alone:
        end = start + inputs[0].shape[1]
        assert_equal(output[:, start:end], numpy(layer(*inputs)), atol=1e-4)
        start = end


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_change_the_output(position):
    x = Numbers(1).floats(2, 5, WIDTH)
    plain, placed = self_attention({}), self_attention({"position": position})
    backwards = numpy(placed(x[:, ::-1]))[:, ::-1]
    same = position == "alibi"  # it sees how far, not on which side
    assert np.allclose(numpy(placed(x)), backwards, atol=1e-4) == same
    assert np.allclose(numpy(plain(x)), numpy(plain(x[:, ::-1]))[:, ::-1], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_bias_of_any_dtype_joins_that_of_the_position(position, dtype):
    """A given bias has the layer's dtype, a position's at least float32."""
    plain = self_attention({"position": position})
    other = ka.MultiHeadSelfAttention(HEADS, position=POSITIONS[position][0], dtype=dtype)
    other.build((None, None, WIDTH))
    other.set_weights(plain.get_weights())
    numbers = Numbers(1)
    x, bias = numbers.floats(2, 5, WIDTH), numbers.floats(2, HEADS, 5, 5)
    expected = numpy(plain(x, attention_bias=bias))
    output = keras.ops.cast(other(x, attention_bias=bias), "float32")
    np.testing.assert_allclose(numpy(output), expected, atol=0.05 * np.abs(expected).max())
    assert np.abs(numpy(plain(x)) - expected).max() > 0.1 * np.abs(expected).max()
