"""The contract of layers, for each layer."""

import itertools

import keras
import numpy as np
import oracle
import pytest
from backends import dtype_of, numpy
from layer_contract import AttentionContract, ConfigContract, LayerContract
from tensors import MEMORY_WIDTH, PAST, B, D, F, H, M, S, T, V, assert_close, draw

import keras_attention as ka
from keras_attention.testing.implicit_masks import mask_of

BLOCK = {
    "intermediate_dim": F,
    "num_heads": H,
    "dropout": 0.3,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-3,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "normalize_first": True,
    "attention_dropout": 0.2,
    "activation_dropout": 0.4,
    "use_attention_bias": False,
    "normalization": "rms",
    "num_kv_heads": 1,
    "qk_norm": True,
    "position": ka.RelativePositionBias(num_buckets=8, max_distance=20),
    "key_dim": 19,
    "value_dim": 23,
}
ATTENTION = {
    "num_heads": H,
    "key_dim": D,
    "value_dim": 19,
    "dropout": 0.2,
    "use_bias": False,
    "output_shape": (23,),
    "attention_axes": (1,),
    "sliding_window": 2,
    "flash_attention": False,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l1",
    "kernel_constraint": "max_norm",
    "bias_constraint": "non_neg",
    "use_gate": True,
    "seed": 43,
    "num_kv_heads": 1,
    "qk_norm": True,
    "position": ka.AlibiBias(),
}


def filled_cache():
    return ka.KeyValueCache(draw(B, H, PAST, D), draw(B, H, PAST, D))


class TestMultiHeadAttention(AttentionContract):
    layer_class = ka.MultiHeadAttention
    inputs = {"query": (T, M), "value": (S, MEMORY_WIDTH)}
    padding_masks = {"value": "value_mask"}
    required = {"num_heads": H, "key_dim": D}
    every_argument = ATTENTION
    flags = ("return_attention_scores", "use_causal_mask")

    def oracle(self, weights, inputs, masks):
        return oracle.multi_head_attention(weights, *inputs, mask=masks["value_mask"][:, None, None])[0]


class TestMultiHeadSelfAttention(AttentionContract):
    layer_class = ka.MultiHeadSelfAttention
    inputs = {"x": (T, M)}
    padding_masks = {"x": "padding_mask"}
    required = {"num_heads": H}
    every_argument = ATTENTION
    flags = ("return_attention_scores", "use_causal_mask")

    def variants(self):
        caches = [{}, {"cache": filled_cache()}]
        return [{**flags, **cache} for flags, cache in itertools.product(super().variants(), caches)]

    def oracle(self, weights, inputs, masks):
        (x,) = inputs
        return oracle.multi_head_attention(weights, x, x, mask=masks["padding_mask"][:, None, None])[0]


class TestFeedForward(LayerContract):
    layer_class = ka.FeedForward
    inputs = {"inputs": (T, M)}
    required = {"intermediate_dim": F}
    every_argument = {
        "intermediate_dim": F,
        "activation": "swiglu",
        "dropout": 0.2,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
    }

    def oracle(self, weights, inputs, masks):
        return oracle.feed_forward(weights, *inputs)


class TestPositionalEncoding(LayerContract):
    layer_class = ka.PositionalEncoding
    inputs = {"inputs": (T, M)}
    every_argument = {"max_wavelength": 37.0, "scale": False}

    def variants(self):
        return [{}, {"start_index": 5000}]

    def oracle(self, weights, inputs, masks):
        (x,) = inputs
        return x * np.sqrt(M) + oracle.sinusoids(range(T), M)


class TestLearnedPositionalEncoding(LayerContract):
    layer_class = ka.LearnedPositionalEncoding
    inputs = {"inputs": (T, M)}
    required = {"max_length": 31}
    every_argument = {"max_length": 31, "embeddings_initializer": "he_normal", "scale": False}

    def variants(self):
        return [{}, {"start_index": 19}]

    def oracle(self, weights, inputs, masks):
        (x,) = inputs
        return x * np.sqrt(M) + weights["embeddings"][:T]


class TestAdditiveAttention(AttentionContract):
    layer_class = ka.AdditiveAttention
    inputs = {"query": (T, M), "value": (S, MEMORY_WIDTH)}
    padding_masks = {"value": "value_mask"}
    required = {"units": F}
    every_argument = {"units": F, "dropout": 0.2, "kernel_initializer": "he_normal", "seed": 43}
    flags = ("return_attention_scores", "use_causal_mask")
    depth = 1  # the output has the width of the value, not of the query

    def oracle(self, weights, inputs, masks):
        query, value = inputs
        queries, keys = query @ weights["query/kernel"], value @ weights["key/kernel"]
        output = np.zeros((B, T, MEMORY_WIDTH))
        for b, t in itertools.product(range(B), range(T)):
            logits = np.array([np.tanh(queries[b, t] + k) @ weights["score/kernel"][:, 0] for k in keys[b]])
            output[b, t] = oracle.softmax(logits, masks["value_mask"][b]) @ value[b]
        return output


class EncoderCase(AttentionContract):
    inputs = {"inputs": (T, M)}
    padding_masks = {"inputs": "padding_mask"}
    flags = ("return_attention_scores",)


class TestEncoderLayer(EncoderCase):
    layer_class = ka.EncoderLayer
    required = {"intermediate_dim": F, "num_heads": H}
    every_argument = BLOCK

    def oracle(self, weights, inputs, masks):
        return oracle.encoder_layer(weights, *inputs, mask=masks["padding_mask"][:, None, None])


class DecoderCase(AttentionContract):
    inputs = {"decoder_sequence": (T, M), "encoder_sequence": (S, MEMORY_WIDTH)}
    padding_masks = {"decoder_sequence": "decoder_padding_mask", "encoder_sequence": "encoder_padding_mask"}
    flags = ("return_attention_scores",)


class TestDecoderLayer(DecoderCase):
    layer_class = ka.DecoderLayer
    required = {"intermediate_dim": F, "num_heads": H}
    every_argument = BLOCK

    def variants(self):
        caches = [{}, {"self_attention_cache": filled_cache()}]
        return [{**flags, **cache} for flags, cache in itertools.product(super().variants(), caches)]

    def oracle(self, weights, inputs, masks):
        return oracle.decoder_layer(
            weights,
            *inputs,
            self_mask=masks["decoder_padding_mask"][:, None, None],
            cross_mask=masks["encoder_padding_mask"][:, None, None],
        )


class TestEncoder(EncoderCase):
    layer_class = ka.Encoder
    required = {"num_layers": 2, "intermediate_dim": F, "num_heads": H}
    depth = 2  # of two layers each
    every_argument = {"num_layers": 2, "remat": True, **BLOCK}

    def oracle(self, weights, inputs, masks):
        (x,) = inputs
        for i in range(2):
            x = oracle.encoder_layer(oracle.part(weights, f"layer_{i}"), x, masks["padding_mask"][:, None, None])
        return x


class TestDecoder(DecoderCase):
    layer_class = ka.Decoder
    required = {"num_layers": 2, "intermediate_dim": F, "num_heads": H}
    depth = 2  # of two layers each
    every_argument = {"num_layers": 2, "remat": True, **BLOCK}

    def variants(self):
        caches = [{}, {"self_attention_caches": (filled_cache(), filled_cache())}]
        flags = LayerContract.variants(self)
        return [{**each, **cache} for each, cache in itertools.product(flags, caches)]

    def oracle(self, weights, inputs, masks):
        x, memory = inputs
        for i in range(2):
            x = oracle.decoder_layer(
                oracle.part(weights, f"layer_{i}"),
                x,
                memory,
                self_mask=masks["decoder_padding_mask"][:, None, None],
                cross_mask=masks["encoder_padding_mask"][:, None, None],
            )
        return x


class TestTokenEmbedding(ConfigContract):
    layer_class = ka.TokenEmbedding
    required = {"vocabulary_size": V, "hidden_dim": M}
    every_argument = {"vocabulary_size": V, "hidden_dim": M, "mask_zero": True, "embeddings_initializer": "uniform"}

    def draw_inputs(self):
        return [np.random.randint(0, V, (B, T)).astype("int32")]

    def model(self, layer):
        ids = keras.Input((None,), dtype="int32")
        return keras.Model([ids], layer(ids))

    def test_looks_rows_up_and_multiplies_by_them(self):
        layer, (ids,) = self.make(), self.draw_inputs()
        (matrix,) = layer.get_weights()
        x = layer(ids)
        assert_close(x, matrix[ids], atol=0, rtol=0)
        assert_close(layer(x, reverse=True), matrix[ids] @ matrix.T, atol=1e-4)
        assert len(layer.weights) == 1

    def test_starts_so_that_scaled_embeddings_and_logits_have_unit_size(self):
        layer = ka.TokenEmbedding(997, 61)
        x = layer(np.arange(997)[None])
        assert np.isclose(np.std(numpy(x)) * 61**0.5, 1, atol=0.02)
        logits = layer(draw(1, 499, 61), reverse=True)
        assert np.isclose(np.std(numpy(logits)), 1, atol=0.05)

    def test_mask_marks_what_is_not_padding(self):
        ids = np.array([[3, 5, 0, 0], [7, 0, 2, 0]])
        np.testing.assert_array_equal(numpy(mask_of(self.make(mask_zero=True)(ids))), ids != 0)
        assert mask_of(self.make()(ids)) is None

    def test_symbolic_equals_eager(self):
        layer, (ids,) = self.make(dtype="mixed_bfloat16"), self.draw_inputs()
        for tokens in (keras.KerasTensor((B, T), "int32"), keras.KerasTensor((None, None), "int32")):
            x = layer(tokens)
            assert (x.shape, x.dtype) == ((*tokens.shape, M), dtype_of(layer(ids)))
            logits = layer(x, reverse=True)
            assert (logits.shape, logits.dtype) == ((*tokens.shape, V), dtype_of(layer(layer(ids), reverse=True)))

    def test_output_shape_needs_no_weights(self):
        layer, (ids,) = ka.TokenEmbedding(V, M), self.draw_inputs()
        for _ in range(2):  # before the layer is built, and after
            assert layer.compute_output_shape([B, T]) == (B, T, M)
            assert layer.compute_output_shape((None, None)) == (None, None, M)
            assert layer.compute_output_shape((B, None, M), reverse=True) == (B, None, V)
            with pytest.raises(ValueError, match=rf"vectors of width {M}. Received: shape \(2, 5, 29\)"):
                layer.compute_output_shape((B, T, MEMORY_WIDTH), reverse=True)
            assert layer(ids).shape == (B, T, M)

    def test_nothing_is_printed(self, capfd):
        layer = self.make(mask_zero=True)
        layer(layer(self.draw_inputs()[0]), reverse=True)
        assert capfd.readouterr() == ("", "")


# Arguments of attention, then the shapes of query, value and key.
ATTENTION_SHAPES = {
    "widths": ({"value_dim": 19, "num_kv_heads": 1}, (B, T, M), (B, S, 29), (B, S, 23)),
    "output": ({"output_shape": 23}, (B, T, M), (B, S, 29)),
    "outputs": ({"output_shape": (23, 29), "use_gate": True}, (B, T, M), (B, S, 29)),
    "images": ({}, (B, T, 3, M), (B, S, 1, 29)),
    "images, outputs": ({"output_shape": (23, 29)}, (B, T, 3, M), (B, S, 13, 29), (B, S, 13, 19)),
    "first axis": ({"attention_axes": 1}, (B, T, 3, M), (B, S, 3, 29)),
    "axes": ({"attention_axes": (-2, 1)}, (B, T, 3, 13, M), (B, S, 3, 11, 29)),
}


@pytest.mark.parametrize("case", ATTENTION_SHAPES)
def test_the_shapes_of_attention_are_those_of_a_call(case):
    options, *shapes = ATTENTION_SHAPES[case]
    layer, inputs = ka.MultiHeadAttention(H, D, **options), [draw(*shape) for shape in shapes]
    symbols = [keras.KerasTensor(shape) for shape in shapes]
    before = layer.compute_output_shape(*shapes)
    both = layer.compute_output_spec(*symbols, return_attention_scores=True)
    batch_unknown = layer.compute_output_shape(*[(None, *shape[1:]) for shape in shapes])
    assert not layer.built
    output, weights = layer(*inputs, return_attention_scores=True)
    assert before == both[0].shape == tuple(output.shape) == layer.compute_output_shape(*shapes)
    assert both[1].shape == tuple(weights.shape)
    assert batch_unknown == (None, *before[1:])


def test_output_shapes_without_the_second_sequence():
    assert ka.MultiHeadAttention(H, D, output_shape=23).compute_output_shape((B, T, M)) == (B, T, 23)
    for layer in (ka.DecoderLayer(F, H), ka.Decoder(2, F, H)):
        symbol = keras.KerasTensor((B, T, M))
        assert layer.compute_output_shape((B, T, M)) == layer.compute_output_shape((B, T, M), (B, S, 29)) == (B, T, M)
        before = layer.compute_output_spec(symbol, return_attention_scores=True)
        after = layer(symbol, return_attention_scores=True)
        keras.tree.assert_same_structure(before, after)
        shapes = [[each.shape for each in keras.tree.flatten(specs)] for specs in (before, after)]
        assert shapes[0] == shapes[1]
        assert layer.compute_output_shape((B, T, M)) == (B, T, M)


@pytest.mark.parametrize("make", [ka.PositionalEncoding, lambda: ka.LearnedPositionalEncoding(31)])
def test_positions_start_at_an_integer_of_any_kind(make):
    layer, x = make(), draw(B, T, M)
    expected = layer(x, start_index=3)
    kinds = [np.int64, np.int32, np.uint8, np.array, keras.ops.array, lambda n: keras.ops.array(n, "uint8")]
    for kind in kinds:
        assert_close(layer(x, start_index=kind(3)), expected)
        assert tuple(layer(keras.Input((T, M)), start_index=kind(3)).shape) == (None, T, M)
    with pytest.raises(ValueError, match=r"`start_index` counts from 0. Received: start_index=-1"):
        layer(x, start_index=np.int64(-1))


def test_the_mask_of_ids_is_the_same_symbolic_and_eager():
    for dtype in ("int32", "int64", "uint8", "float32", "float64"):
        layer, ids = ka.TokenEmbedding(V, M, mask_zero=True), np.array([[3, 5, 0], [7, 0, 0]], dtype)
        assert mask_of(layer(keras.Input((None,), dtype=dtype))) is not None
        np.testing.assert_array_equal(numpy(mask_of(layer(ids))), ids != 0)


def test_a_sequential_model_without_an_input_has_the_mask_of_its_ids():
    """Keras gives it an input of floats."""
    embedding = ka.TokenEmbedding(V, M, mask_zero=True)
    model = keras.Sequential([embedding, ka.EncoderLayer(F, H), keras.layers.GlobalAveragePooling1D()])
    ids = np.array([[3, 5, 0, 0], [7, 2, 9, 0]])
    assert_close(model(ids)[:1], model(ids[:1, :2]))
    assert_close(model.predict(ids, verbose=0)[1:], model.predict(ids[1:, :3], verbose=0))
