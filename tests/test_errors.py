"""What people give by mistake, and the message that each mistake gets.

Every message names the argument, says the rule or the remedy, and ends in what was received.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensors import MEMORY_WIDTH, B, D, F, H, M, S, T, V, draw

import keras_attention as ka

NAN = float("nan")


def attention(**options):
    return ka.MultiHeadAttention(H, D, **options)


def self_attention(**options):
    return ka.MultiHeadSelfAttention(H, **options)


def built(layer, *inputs):
    layer(*(inputs or [draw(B, T, M)]))
    return layer


def x():
    return draw(B, T, M)


def memory():
    return draw(B, S, MEMORY_WIDTH)


def ones(*shape):
    return np.ones(shape, bool)


ARGUMENTS = {
    "no heads": (lambda: attention().__class__(0, D), ValueError, r"`num_heads` must be a positive .*num_heads=0$"),
    "heads not a number": (lambda: ka.EncoderLayer(F, NAN), ValueError, r"positive integer. Received: num_heads=nan$"),
    "heads as float": (lambda: ka.EncoderLayer(F, 2.0), ValueError, r"positive integer. Received: num_heads=2.0$"),
    "heads as text": (lambda: ka.EncoderLayer(F, "3"), ValueError, r"Received: num_heads='3'$"),
    "heads as bool": (lambda: ka.EncoderLayer(F, True), ValueError, r"Received: num_heads=True$"),
    "no key width": (lambda: ka.MultiHeadAttention(H, None), ValueError, r"`key_dim` must be .*key_dim=None$"),
    "shared heads": (lambda: attention(num_kv_heads=2), ValueError, r"must divide `num_heads`. .*num_kv_heads=2$"),
    "more shared heads": (lambda: attention(num_kv_heads=6), ValueError, r"num_heads=3, num_kv_heads=6$"),
    "no units": (lambda: ka.AdditiveAttention(0), ValueError, r"`units` must be a positive integer.*units=0$"),
    "inner width": (lambda: ka.FeedForward(-1), ValueError, r"`intermediate_dim` must be .*intermediate_dim=-1$"),
    "no layers": (lambda: ka.Encoder(0, F, H), ValueError, r"`num_layers` must be a positive .*num_layers=0$"),
    "output shape": (lambda: attention(output_shape=(2, 0)), ValueError, r"`output_shape` must be .*output_shape=0$"),
    "window": (lambda: attention(sliding_window=2.5), ValueError, r"`sliding_window` must be .*sliding_window=2.5$"),
    "axes as text": (
        lambda: attention(attention_axes="time"),
        ValueError,
        r"several of them. .*attention_axes='time'$",
    ),
    "axes as float": (lambda: attention(attention_axes=1.5), ValueError, r"is an integer, .*attention_axes=1.5$"),
    "dropout below 0": (lambda: ka.Encoder(2, F, H, attention_dropout=-0.1), ValueError, r"attention_dropout=-0.1$"),
    "dropout of 1": (lambda: ka.FeedForward(F, dropout=1), ValueError, r"at least 0 and below 1. .*dropout=1$"),
    "dropout not a number": (lambda: attention(dropout=NAN), ValueError, r"at least 0 and below 1. .*dropout=nan$"),
    "epsilon not a number": (lambda: ka.EncoderLayer(F, H, layer_norm_epsilon=NAN), ValueError, r"epsilon=nan$"),
    "epsilon infinite": (lambda: ka.EncoderLayer(F, H, layer_norm_epsilon=float("inf")), ValueError, r"epsilon=inf$"),
    "wavelength": (lambda: ka.PositionalEncoding(NAN), ValueError, r"number above zero. .*max_wavelength=nan$"),
    "activation": (
        lambda: ka.FeedForward(F, activation="geluu"),
        ValueError,
        r"`activation` is a function, a name of Keras' .* 'geglu', 'swiglu'. Received: activation='geluu'$",
    ),
    "activation of a block": (lambda: ka.EncoderLayer(F, H, activation="swish_glu"), ValueError, r"='swish_glu'$"),
    "normalization": (
        lambda: ka.EncoderLayer(F, H, normalization="batch"),
        ValueError,
        r"`normalization` is one of 'layer', 'rms'. Received: normalization='batch'$",
    ),
    "position as text": (
        lambda: self_attention(position="rotary"),
        TypeError,
        r"such as RotaryPosition\(\), AlibiBias\(\) or RelativePositionBias\(\). Received: position='rotary'$",
    ),
    "position as class": (lambda: self_attention(position=ka.AlibiBias), TypeError, r"position=<class .*AlibiBias'>$"),
    "position of a block": (lambda: ka.DecoderLayer(F, H, position="alibi"), TypeError, r"position='alibi'$"),
    "another layer as position": (
        lambda: self_attention(position=keras.layers.Dense(2, name="dense")),
        TypeError,
        r"position=<Dense name=dense, built=False>$",
    ),
    "buckets": (lambda: ka.RelativePositionBias(2), ValueError, r"give at least 4 buckets .*num_buckets=2, max_dis"),
    "flash with dropout": (
        lambda: attention(flash_attention=True, dropout=0.1),
        ValueError,
        r"give dropout=0 or flash_attention=None. Received: flash_attention=True, dropout=0.1$",
    ),
    "vocabulary": (lambda: ka.TokenEmbedding(0, M), ValueError, r"`vocabulary_size` must be .*vocabulary_size=0$"),
    "learned positions": (lambda: ka.LearnedPositionalEncoding(0), ValueError, r"`max_length` must .*max_length=0$"),
    "dictionary as config": (lambda: ka.Transformer({"num_layers": 2}), TypeError, r"config=\{'num_layers': 2\}$"),
    "preset": (lambda: ka.Transformer.from_preset("huge", 9), ValueError, r"one of tiny, small, .*preset='huge'$"),
    "misspelt argument": (lambda: ka.EncoderLayer(F, H, rate=0.1), ValueError, r"EncoderLayer: \{'rate': 0.1\}$"),
    "cache before build": (
        lambda: self_attention().init_cache(B),
        ValueError,
        r"must be built before `init_cache`: call it once. Received: \w+, not built$",
    ),
    "block's cache before build": (lambda: ka.DecoderLayer(F, H).init_cache(B), ValueError, r"before `init_cache`"),
    "projection before build": (lambda: attention().project(x()), ValueError, r"before `project`: call it once"),
    "memory before build": (lambda: ka.DecoderLayer(F, H).project_memory(x()), ValueError, r"before `project_memory`"),
    "capacity": (lambda: built(self_attention()).init_cache(B, 0), ValueError, r"`capacity` must be .*capacity=0$"),
    "memory of a language model": (
        lambda: built(ka.DecoderLayer(F, H)).project_memory(x()),
        ValueError,
        r"built without an encoder sequence.*with `encoder_sequence` from the first time on. Received",
    ),
    "adapters before build": (lambda: ka.EncoderLayer(F, H).enable_lora(2), ValueError, r"must be built: call it once"),
    "quantized before build": (lambda: ka.EncoderLayer(F, H).quantize("int8"), ValueError, r"isn't yet built"),
}


@pytest.mark.parametrize("mistake", ARGUMENTS)
def test_a_wrong_argument(mistake):
    make, error, message = ARGUMENTS[mistake]
    with pytest.raises(error, match=message):
        make()


# What is called, with what, the error and its message. Tensors are NumPy arrays: in a functional model they become
# symbolic tensors of the same shape.
FLOATS = r"must hold floats, such as the vectors that a TokenEmbedding makes of ids. Received: {}.dtype={}"
CALLS = {
    "heads and width": (lambda: ka.EncoderLayer(F, 4), [x()], {}, ValueError, r"`num_heads` must divide .*width=33"),
    "heads and width of attention": (
        lambda: ka.MultiHeadSelfAttention(4),
        [x()],
        {},
        ValueError,
        r"must divide the width of x; or give `key_dim`. Received: num_heads=4, width=33",
    ),
    "shared heads of a block": (
        lambda: ka.EncoderLayer(F, H, num_kv_heads=2),
        [x()],
        {},
        ValueError,
        r"num_kv_heads=2",
    ),
    "odd width to rotate": (
        lambda: self_attention(position=ka.RotaryPosition()),
        [x()],
        {},
        ValueError,
        r"RotaryPosition rotates pairs, so `key_dim` must be even. Received: key_dim=11",
    ),
    "no batch": (
        lambda: ka.EncoderLayer(F, H),
        [draw(T, M)],
        {},
        ValueError,
        r"`inputs` must have .*shape \(batch, length, width\). Received: inputs.shape=\(5, 33\)",
    ),
    "one axis too many": (
        lambda: ka.Encoder(1, F, H),
        [draw(1, B, T, M)],
        {},
        ValueError,
        r"inputs.shape=\(1, 2, 5, 33\)",
    ),
    "no batch for attention": (self_attention, [draw(T, M)], {}, ValueError, r"Received: query.shape=\(5, 33\)"),
    "ids for vectors": (
        lambda: ka.EncoderLayer(F, H),
        [np.ones((B, T), "int32")],
        {},
        ValueError,
        r"vectors, such as a TokenEmbedding makes of ids, in shape \(batch, length, width\). .*shape=\(2, 5\)",
    ),
    "ids for positions": (ka.PositionalEncoding, [np.ones((B, T), "int32")], {}, ValueError, r"inputs.shape=\(2, 5\)"),
    "integers": (
        lambda: ka.EncoderLayer(F, H),
        [np.ones((B, T, M), "int32")],
        {},
        TypeError,
        FLOATS.format("inputs", "int32"),
    ),
    "integers for a query": (
        attention,
        [np.ones((B, T, M), "int32"), memory()],
        {},
        TypeError,
        FLOATS.format("query", "int32"),
    ),
    "booleans": (lambda: ka.FeedForward(F), [ones(B, T, M)], {}, TypeError, FLOATS.format("inputs", "bool")),
    "padding mask without batch": (
        self_attention,
        [x()],
        {"padding_mask": ones(T)},
        ValueError,
        r"a mask over pairs of positions goes to `attention_mask`. Received: padding_mask.shape=\(5,\)|1 of them",
    ),
    "pairs as padding mask": (
        self_attention,
        [x()],
        {"padding_mask": ones(B, T, T)},
        ValueError,
        r"goes to `attention_mask`. Received: padding_mask.shape=\(2, 5, 5\)",
    ),
    "padding mask of another length": (
        lambda: ka.EncoderLayer(F, H),
        [x()],
        {"padding_mask": ones(B, 3)},
        ValueError,
        r"`padding_mask` must fit the inputs: batch 2, length 5. Received: padding_mask of \(2, 3\)",
    ),
    "padding mask of another batch": (self_attention, [x()], {"padding_mask": ones(7, T)}, ValueError, r"of \(7, 5\)"),
    "the target's mask for the memory": (
        lambda: ka.DecoderLayer(F, H),
        [x(), memory()],
        {"encoder_padding_mask": ones(B, T)},
        ValueError,
        r"must fit the inputs: batch 2, length 7. Received: .* of \(2, 5\)",
    ),
    "query mask of another length": (
        attention,
        [x(), memory()],
        {"query_mask": ones(B, S)},
        ValueError,
        r"`query_mask` must fit the inputs: batch 2, length 5. Received",
    ),
    "mask of additive attention": (
        lambda: ka.AdditiveAttention(F),
        [x(), memory()],
        {"value_mask": ones(B, T)},
        ValueError,
        r"`value_mask` must fit the inputs: batch 2, length 7",
    ),
    "attention mask without batch, as large as the batch": (
        self_attention,
        [draw(T, T, M)],
        {"attention_mask": ones(T, T)},
        ValueError,
        r"write a \(queries, keys\) mask, .* as mask\[None\], and give a \(batch, keys\) mask as the padding mask. ",
    ),
    "attention mask of other keys": (
        self_attention,
        [x()],
        {"attention_mask": ones(B, T, S)},
        ValueError,
        r"`attention_mask` must fit the inputs: batch 2, heads 3, queries 5, keys 5. Received: .*\(2, 1, 5, 7\)",
    ),
    "attention mask of other heads": (
        self_attention,
        [x()],
        {"attention_mask": ones(B, 2, T, T)},
        ValueError,
        r"heads 3, queries 5, keys 5. Received: attention_mask of \(2, 2, 5, 5\)",
    ),
    "attention mask of another batch": (
        self_attention,
        [x()],
        {"attention_mask": ones(7, T, T)},
        ValueError,
        r"batch 2, heads 3, .* attention_mask of \(7, 1, 5, 5\)",
    ),
    "bias of other keys": (
        self_attention,
        [x()],
        {"attention_bias": draw(T, S)},
        ValueError,
        r"`attention_bias` must fit the inputs: queries 5, keys 5. Received: attention_bias of \(5, 7\)",
    ),
    "mask as bias": (
        self_attention,
        [x()],
        {"attention_bias": ones(T, T)},
        TypeError,
        r"a mask, True = attend, goes to `attention_mask`. Received: attention_bias.dtype=bool",
    ),
    "value longer than key": (
        attention,
        [x(), memory(), draw(B, 3, M)],
        {},
        ValueError,
        r"`key` and `value` must have the same batch and length, a key for each value. .*\(2, 3\) of key, \(2, 7\)",
    ),
    "value longer than key, additive": (
        lambda: ka.AdditiveAttention(F),
        [x(), memory(), draw(B, 3, M)],
        {},
        ValueError,
        r"`key` and `value` must have the same batch and length",
    ),
    "memory of another batch": (
        lambda: ka.DecoderLayer(F, H),
        [x(), draw(1, S, M)],
        {},
        ValueError,
        r"`query` and `value` must have the same batch. Received: \(2,\) of query, \(1,\) of value",
    ),
    "neither value nor cache": (attention, [x()], {}, ValueError, r"Give `value`, `cache` or both. Received"),
    "too long for learned positions": (
        lambda: ka.LearnedPositionalEncoding(3),
        [x()],
        {},
        ValueError,
        r"give `max_length` 5 or more, or use PositionalEncoding. Received: length=5, start_index=0, max_length=3",
    ),
    "start below zero": (ka.PositionalEncoding, [x()], {"start_index": -1}, ValueError, r"counts from 0. .*index=-1"),
    "learned start below zero": (
        lambda: ka.LearnedPositionalEncoding(31),
        [x()],
        {"start_index": -1},
        ValueError,
        r"`start_index` counts from 0. Received: start_index=-1",
    ),
    "start as NumPy's boolean": (
        ka.PositionalEncoding,
        [x()],
        {"start_index": np.bool_(True)},
        TypeError,
        r"`start_index` is an integer",
    ),
    "a start for each row": (
        lambda: ka.LearnedPositionalEncoding(31),
        [x()],
        {"start_index": np.array([3, 4])},
        ValueError,
        r"one position for all rows, a scalar. Received: start_index.shape=\(2,\)",
    ),
    "floats for ids": (
        lambda: ka.TokenEmbedding(V, M, mask_zero=True),
        [np.ones((B, M), "float32")],  # as wide as vectors
        {},
        TypeError,
        r"`inputs` are token ids: .* keras.Input, dtype=\"int32\". Received: inputs.dtype=float32",
    ),
    "booleans for ids": (
        lambda: ka.TokenEmbedding(V, M),
        [np.ones((B, T), "bool")],
        {},
        TypeError,
        r"`inputs` are token ids: .* Received: inputs.dtype=bool",
    ),
    "half-precision floats for ids": (
        lambda: ka.TokenEmbedding(V, M),
        [np.ones((B, T), "float16")],
        {},
        TypeError,
        r"`inputs` are token ids: .* Received: inputs.dtype=float16",
    ),
    "start as float": (ka.PositionalEncoding, [x()], {"start_index": 1.5}, TypeError, r"is an integer. .*index=1.5"),
    "start as text": (ka.PositionalEncoding, [x()], {"start_index": "a"}, TypeError, r"Received: start_index='a'"),
    "segments as floats": (
        self_attention,
        [x()],
        {"segment_ids": np.ones((B, T), "float32")},
        TypeError,
        r"Segment ids are integers, one number for each packed sequence. Received: dtype=float32",
    ),
    "segments of one side": (
        attention,
        [x(), memory()],
        {"query_segment_ids": np.ones((B, T), "int32")},
        ValueError,
        r"go together. Received: query_segment_ids=ids of shape \(2, 5\), value_segment_ids=None",
    ),
    "segments of another length": (
        self_attention,
        [x()],
        {"segment_ids": np.ones((B, 3), "int32")},
        ValueError,
        r"segment ids of the query.* must fit the inputs: batch 2, length 5. Received: .*\(2, 3\)",
    ),
    "segments of positions": (
        ka.PositionalEncoding,
        [x()],
        {"segment_ids": np.ones((B, 3), "int32")},
        ValueError,
        r"`segment_ids` must fit the inputs: batch 2, length 5",
    ),
    "segments of rank 3": (
        self_attention,
        [x()],
        {"segment_ids": np.ones((B, T, 1), "int32")},
        ValueError,
        r"Segment ids have shape \(batch, length\). Received: shape=\(2, 5, 1\)",
    ),
    "axis of the batch": (
        lambda: attention(attention_axes=0),
        [x(), x()],
        {},
        ValueError,
        r"axes between the batch \(0\) and the width \(2\), each once. Received: attention_axes=\(0,\)",
    ),
    "another width later": (
        lambda: built(self_attention()),
        [draw(B, T, 7)],
        {},
        ValueError,
        r"The key has another width than when the layer was built. Received: shape \(2, 5, 7\), .*\(33,\)",
    ),
    "another width of positions": (
        lambda: built(ka.LearnedPositionalEncoding(9)),
        [draw(B, T, 7)],
        {},
        ValueError,
        r"built for inputs of width 33. Received: inputs.shape=\(2, 5, 7\)",
    ),
    "another width of logits": (
        lambda: built(ka.TokenEmbedding(3, M), np.ones((B, T), "int32")),
        [draw(B, T, 7)],
        {"reverse": True},
        ValueError,
        r"In reverse, `inputs` are vectors of width 33. Received: shape \(2, 5, 7\)",
    ),
    "an encoder sequence too late": (
        lambda: built(ka.DecoderLayer(F, H)),
        [x(), memory()],
        {},
        ValueError,
        r"built without an encoder sequence, so it has no cross-attention: call it with `encoder_sequence` from",
    ),
    "no encoder sequence": (
        lambda: built(ka.DecoderLayer(F, H), x(), memory()),
        [x()],
        {},
        ValueError,
        r"needs `encoder_sequence` or `cross_attention_cache`. Received: neither",
    ),
}


def symbol(value):
    """The symbolic tensor of an array in a functional model."""
    return keras.KerasTensor(value.shape, dtype=value.dtype.name) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("symbolic", [False, True], ids=["eager", "functional"])
@pytest.mark.parametrize("mistake", CALLS)
def test_a_wrong_input(mistake, symbolic):
    make, inputs, options, error, message = CALLS[mistake]
    layer = make()
    if symbolic:
        inputs, options = [symbol(each) for each in inputs], {name: symbol(each) for name, each in options.items()}
    with pytest.raises(error, match=message) as raised:
        layer(*inputs, **options)
    assert "Op:" not in str(raised.value) and "function_node" not in str(raised.value)


MASK_VALUES = {
    "fractions as padding mask": (
        self_attention,
        [x()],
        {"padding_mask": np.full((B, T), 0.5, "float32")},
        ValueError,
        r"`padding_mask` holds booleans, or numbers that are 0 or 1 .*padding_mask with numbers from 0.5 to 0.5",
    ),
    "additive attention mask": (
        self_attention,
        [x()],
        {"attention_mask": np.triu(np.full((B, T, T), -np.inf, "float32"), 1)},
        ValueError,
        r"such as 0 and -inf, go to `attention_bias` .*Received: attention_mask with numbers from -inf to 0",
    ),
    "additive mask of a memory": (
        lambda: ka.DecoderLayer(F, H),
        [x(), memory()],
        {"encoder_padding_mask": np.full((B, S), -1e9, "float32")},
        ValueError,
        r"go to `attention_bias` .* with numbers from -1e\+09 to -1e\+09",
    ),
    "NaN in a mask": (
        lambda: ka.AdditiveAttention(F),
        [x(), memory()],
        {"value_mask": np.full((B, S), np.nan, "float32")},
        ValueError,
        r"`value_mask` holds booleans, .* with numbers from nan to nan",
    ),
    "ids as padding mask": (
        lambda: ka.EncoderLayer(F, H),
        [x()],
        {"padding_mask": np.full((B, T), 3, "int32")},
        ValueError,
        r"`padding_mask` holds booleans, .* with numbers from 3 to 3",
    ),
}


@pytest.mark.parametrize("mistake", MASK_VALUES)
def test_a_mask_with_other_numbers_than_0_and_1(mistake):
    make, inputs, options, error, message = MASK_VALUES[mistake]
    with pytest.raises(error, match=message):
        make()(*inputs, **options)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("decoder_padding_mask", (B, T)),
        ("decoder_attention_mask", (B, T, T)),
        ("encoder_padding_mask", (B, S)),
        ("encoder_attention_mask", (B, T, S)),
    ],
)
def test_a_wrong_mask_has_the_name_that_the_caller_knows(name, shape):
    layer, additive = ka.DecoderLayer(F, H), np.full(shape, -1e9, "float32")
    with pytest.raises(ValueError, match=rf"`{name}` holds booleans, .* go to `attention_bias`"):
        layer(draw(B, T, M), draw(B, S, M), **{name: additive})


def filled(layer, batch=B, **options):
    return built(layer).init_cache(batch, **options)


CACHES = {
    "too small": (
        lambda layer: filled(layer, capacity=3),
        ValueError,
        r"larger `capacity`. .*capacity=3, positions.*=5",
    ),
    "of another batch": (
        lambda layer: filled(layer, 7),
        ValueError,
        r"same batch. Received: \(2,\) of query, \(7,\) of",
    ),
    "a dictionary": (lambda layer: {"key": 1}, TypeError, r"`cache` is a KeyValueCache or .*cache of type dict"),
    "a bare tuple": (
        lambda layer: tuple(filled(layer)),
        TypeError,
        r"from `init_cache`, .*Received: cache of type tuple",
    ),
}


@pytest.mark.parametrize("mistake", CACHES)
def test_a_wrong_cache(mistake):
    make, error, message = CACHES[mistake]
    layer = built(self_attention())
    with pytest.raises(error, match=message):
        layer(x(), cache=make(layer))


def test_a_cache_beside_segments():
    layer = built(self_attention())
    with pytest.raises(
        ValueError, match=r"without segment ids. Received: cache with query.shape=\(2, 5, 33\), .*ids of"
    ):
        layer(x(), cache=layer.init_cache(B), segment_ids=np.ones((B, T), "int32"))


def test_caches_of_a_stack():
    stack = built(ka.Decoder(2, F, H))
    one, _ = stack.init_cache(B)
    for wrong, received in ((one, "KeyValueCache, 1 of them"), ((one,), "tuple, 1 of them"), (7, "int, 1 of them")):
        with pytest.raises(ValueError, match=rf"a cache for each of the 2 layers. Received: {received}"):
            stack(x(), self_attention_caches=wrong)


@pytest.mark.parametrize("layer", [self_attention(), ka.EncoderLayer(F, H), ka.PositionalEncoding()], ids=str)
def test_none_for_a_tensor(layer):
    with pytest.raises(TypeError, match=r"must be a tensor \(batch, length, width\). Received: \w+=None"):
        layer(None)


# What is asked for the shape of its output, for which shapes. Building it for them says the same.
SHAPES = {
    "heads and width": (lambda: ka.EncoderLayer(F, 4), [(B, T, M)], r"`num_heads` must divide .*width=33"),
    "heads and width in a stack": (lambda: ka.Decoder(2, F, 4), [(B, T, M)], r"`num_heads` must divide .*width=33"),
    "heads and width of attention": (
        lambda: ka.MultiHeadSelfAttention(4),
        [(None, None, M)],
        r"must divide the width of x; .* Received: num_heads=4, width=33",
    ),
    "shared heads": (lambda: ka.Encoder(2, F, H, num_kv_heads=2), [(B, T, M)], r"num_heads=3, num_kv_heads=2"),
    "odd width to rotate": (
        lambda: ka.EncoderLayer(F, H, position=ka.RotaryPosition()),
        [(B, T, M)],
        r"`key_dim` must be even. Received: key_dim=11",
    ),
    "odd width to rotate in attention": (
        lambda: attention(position=ka.RotaryPosition()),
        [(B, T, M)],
        r"`key_dim` must be even. Received: key_dim=11",
    ),
    "rank": (self_attention, [(B, M)], r"must have vectors, .*shape=\(2, 33\)"),
    "rank of a position": (ka.PositionalEncoding, [(B, T, 3, M)], r"`inputs` must have shape .*shape=\(2, 5, 3, 33\)"),
    "rank of a network": (lambda: ka.FeedForward(F), [(B, M)], r"`inputs` must have vectors, .*shape=\(2, 33\)"),
    "rank of a block": (lambda: ka.EncoderLayer(F, H), [(B, T, 3, M)], r"`inputs` must have shape .*\(2, 5, 3, 33\)"),
    "rank of the memory": (
        lambda: ka.DecoderLayer(F, H),
        [(B, T, M), (B, M)],
        r"`encoder_sequence` must have vectors, .*shape=\(2, 33\)",
    ),
    "no width": (lambda: ka.FeedForward(F), [(B, T, None)], r"its width, must be known. .*shape=\(2, 5, None\)"),
    "axes": (lambda: attention(attention_axes=3), [(B, T, 3, M)], r"`attention_axes` names axes .*\(3,\) for inputs"),
    "batches": (lambda: attention(), [(B, T, M), (7, S, M)], r"same batch. Received: \(2,\) of query, \(7,\) of value"),
    "batches of a decoder": (lambda: ka.Decoder(2, F, H), [(B, T, M), (7, S, M)], r"same batch. Received: \(2,\) of"),
    "value longer than key": (
        lambda: attention(),
        [(B, T, M), (B, S, M), (B, 3, M)],
        r"`key` and `value` .* all sizes but the last must be equal. Received: \(2, 3\) of key, \(2, 7\) of value",
    ),
    "rank of the key": (
        lambda: attention(),
        [(B, T, 3, M), (B, S, 3, M), (B, S, M)],
        r"`key` must have shape of 4 axes: the ranks of `query` and `key` must be equal. .*key.shape=\(2, 7, 33\)",
    ),
    "rank of the key, additive": (
        lambda: ka.AdditiveAttention(F),
        [(B, T, M), (B, S, M), (B, M)],
        r"`key` must have vectors, .*key.shape=\(2, 33\)",
    ),
}


@pytest.mark.parametrize("mistake", SHAPES)
def test_a_wrong_shape(mistake):
    make, shapes, message = SHAPES[mistake]
    with pytest.raises(ValueError, match=message):
        make().compute_output_shape(*shapes)
    with pytest.raises(ValueError, match=message):
        make().build(*shapes)


def test_shapes_that_need_what_a_layer_was_built_without():
    layer = built(ka.DecoderLayer(F, H))
    with pytest.raises(ValueError, match=r"built without an encoder sequence, so it has no cross-attention"):
        layer.compute_output_shape((B, T, M), (B, S, M))
    cache = layer.init_cache(B)
    with pytest.raises(ValueError, match=r"must be built before `compute_output_spec`"):
        ka.DecoderLayer(F, H).compute_output_spec(keras.KerasTensor((B, T, M)), self_attention_cache=cache)
    with pytest.raises(TypeError, match=r"`value` must be a tensor .*value=None"):
        ka.AdditiveAttention(F).compute_output_shape((B, T, M), None)


def test_text():
    text = tf.constant([["a", "b"]])
    with pytest.raises(
        TypeError, match=r"token ids, to which a tokenizer converts text. Received: inputs.dtype=string"
    ):
        ka.TokenEmbedding(7, M)(text)
    with pytest.raises(TypeError, match=FLOATS.format("inputs", "string")):
        built(ka.FeedForward(F))(tf.fill((B, T, M), "a"))
    with pytest.raises(TypeError, match=r"`padding_mask` holds booleans, .* Received: padding_mask.dtype=string"):
        self_attention()(x(), padding_mask=tf.fill((B, T), "yes"))


@pytest.mark.parametrize("layer", [self_attention(), ka.EncoderLayer(F, H), ka.PositionalEncoding()], ids=str)
def test_ragged_tensors(layer):
    ragged = tf.RaggedTensor.from_tensor(x(), lengths=[3, T])
    with pytest.raises(
        TypeError, match=r"must be a padded tensor: give \w+.to_tensor\(\) with its padding mask. Received"
    ):
        layer(ragged)


def test_flash_attention_on_tensorflow():
    for query in (x(), keras.KerasTensor((None, None, M))):
        with pytest.raises(
            ValueError, match=r"give flash_attention=None, or use JAX.*Received: flash_attention=True, bac"
        ):
            attention(flash_attention=True)(query, query)


def test_numbers_of_numpy_are_numbers():
    layer = ka.EncoderLayer(np.int64(F), np.int32(H), dropout=np.float32(0.25), layer_norm_epsilon=np.float64(1e-3))
    config = layer.get_config()
    assert [config[name] for name in ("intermediate_dim", "num_heads", "dropout")] == [F, H, 0.25]
    assert {type(config[name]) for name in ("intermediate_dim", "num_heads")} == {int}
    assert {type(config[name]) for name in ("dropout", "layer_norm_epsilon")} == {float}


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_sizes_of_numpy_make_layers_that_a_file_holds(integer):
    layers = [
        ka.MultiHeadAttention(integer(H), integer(D), output_shape=(integer(F), integer(2)), seed=integer(5)),
        ka.AdditiveAttention(integer(F), seed=integer(5)),
        ka.TokenEmbedding(integer(V), integer(M)),
        ka.Encoder(integer(2), integer(F), integer(H)),
        ka.LearnedPositionalEncoding(integer(31)),
        ka.RelativePositionBias(integer(8), integer(20)),
    ]
    for layer in layers:
        config = json.loads(json.dumps(layer.get_config()))
        assert json.dumps(type(layer).from_config(config).get_config()) == json.dumps(layer.get_config())
    sizes = {
        "num_layers": integer(1),
        "hidden_dim": integer(F),
        "intermediate_dim": integer(V),
        "num_heads": integer(1),
    }
    config = ka.TransformerConfig(vocabulary_size=integer(V), **sizes)
    assert {type(getattr(config, name)) for name in ("vocabulary_size", *sizes)} == {int}
    ka.CausalTransformer(config)


def test_a_seed_is_an_integer():
    for make in (lambda seed: ka.MultiHeadAttention(H, D, seed=seed), lambda seed: ka.AdditiveAttention(F, seed=seed)):
        for wrong in (True, 1.5, "a"):
            with pytest.raises(ValueError, match=r"`seed` is an integer, or None. Received: seed="):
                make(wrong)
