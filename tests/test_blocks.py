"""Encoder and decoder layers and their stacks beyond the contract: order, caches, beams, mistakes, a plain model."""

import keras
import numpy as np
import oracle
import pytest
from backends import gradients, numpy, weighted_sum
from tensors import MEMORY_WIDTH, B, D, F, H, M, S, T, assert_close, draw, influence, padding, randomize

import keras_attention as ka

N, K = 2, 3


def built(layer_class, *sizes, **arguments):
    layer = layer_class(*sizes, F, H, **arguments)
    layer(*[draw(1, T, M), draw(1, S, MEMORY_WIDTH)][: 1 + ("Decoder" in layer_class.__name__)])
    randomize(layer)
    return layer


def language_model_layer(**arguments):
    layer = ka.DecoderLayer(F, H, **arguments)
    layer(draw(1, T, M))
    randomize(layer)
    return layer


def empty_cache(batch=B):
    return ka.KeyValueCache(np.zeros((batch, H, 0, D), "float32"), np.zeros((batch, H, 0, D), "float32"))


@pytest.mark.parametrize("normalize_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("use_attention_bias", [False, True], ids=["no_bias", "bias"])
def test_both_orders_follow_the_formulas(normalize_first, use_attention_bias):
    options = {"normalize_first": normalize_first, "layer_norm_epsilon": 0.1}
    for activation in ("relu", "tanh"):
        layer = ka.FeedForward(F, activation=activation)
        x = draw(B, T, M)
        layer(x)
        randomize(layer)
        expected = oracle.feed_forward(oracle.weights_of(layer), x, None if activation == "relu" else np.tanh)
        assert_close(layer(x), expected, atol=1e-4)
    reference = {"normalize_first": normalize_first, "epsilon": 0.1}
    layer = built(ka.EncoderLayer, use_attention_bias=use_attention_bias, **options)
    assert_close(layer(x), oracle.encoder_layer(oracle.weights_of(layer), x, **reference), atol=1e-4)
    layer, memory = built(ka.DecoderLayer, use_attention_bias=use_attention_bias, **options), draw(B, S, MEMORY_WIDTH)
    assert_close(layer(x, memory), oracle.decoder_layer(oracle.weights_of(layer), x, memory, **reference), atol=1e-4)
    layer = language_model_layer(use_attention_bias=use_attention_bias, **options)
    assert_close(layer(x), oracle.decoder_layer(oracle.weights_of(layer), x, None, **reference), atol=1e-4)


@pytest.mark.parametrize(
    ("layer_class", "reference"), [(ka.Encoder, oracle.encoder_layer), (ka.Decoder, oracle.decoder_layer)]
)
def test_pre_norm_stack_ends_with_a_normalisation(layer_class, reference):
    stack = built(layer_class, N, normalize_first=True)
    inputs = [draw(B, T, M), draw(B, S, MEMORY_WIDTH)][: 1 + (layer_class is ka.Decoder)]
    weights, (x, *rest) = oracle.weights_of(stack), inputs
    for i in range(N):
        x = reference(oracle.part(weights, f"layer_{i}"), x, *rest, normalize_first=True)
    assert_close(stack(*inputs), oracle.layer_norm(oracle.part(weights, "final_norm"), x, 1e-5), atol=1e-4)
    assert built(layer_class, N).final_norm is None


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_gradients_equal_finite_differences(kind):
    x, memory, direction = draw(1, T, M), draw(1, S, MEMORY_WIDTH), draw(1, T, M)
    layer = built(ka.EncoderLayer if kind == "encoder" else ka.DecoderLayer)
    reference = oracle.encoder_layer if kind == "encoder" else oracle.decoder_layer
    others = [] if kind == "encoder" else [memory]
    weights = oracle.weights_of(layer)
    chosen = layer.self_attention.key_dense.kernel
    (by_input,), (by_weight,) = gradients(lambda x: weighted_sum(layer(x, *others), direction), [x], [chosen])

    def total_of(path=None):
        def total(value):
            if path is None:
                return (reference(weights, value, *others) * direction).sum()
            return (reference({**weights, path: value}, x, *others) * direction).sum()

        return total

    rows = np.s_[:, 1:3, :7]  # a part suffices, and is quicker
    full = x.astype("float64")

    def total_of_rows(value):
        changed = full.copy()
        changed[rows] = value
        return total_of()(changed)

    np.testing.assert_allclose(by_input[rows], oracle.numeric_gradient(total_of_rows, full[rows]), atol=2e-3)
    path, kernel = "self_attention/key/kernel", weights["self_attention/key/kernel"]
    part = np.s_[:5, 1, 2:5]

    def total_of_part(value):
        changed = kernel.copy()
        changed[part] = value
        return total_of(path)(changed)

    np.testing.assert_allclose(by_weight[part], oracle.numeric_gradient(total_of_part, kernel[part]), atol=2e-3)


def test_a_later_token_never_changes_an_earlier_output():
    causal, everything = np.tril(np.ones((T, T), bool)), np.ones((T, T), bool)
    memory = draw(1, S, MEMORY_WIDTH)
    for decoder in (built(ka.DecoderLayer), built(ka.Decoder, N)):
        np.testing.assert_array_equal(influence(lambda x, each=decoder: each(x, memory), draw(T, M)), causal)
        free = influence(lambda x, each=decoder: each(x, memory, use_causal_mask=False), draw(T, M))
        np.testing.assert_array_equal(free, everything)
        x = draw(1, T, M)
        assert np.all(influence(lambda memory, x=x, each=decoder: each(x, memory), memory[0]))
    np.testing.assert_array_equal(influence(language_model_layer(), draw(T, M)), causal)
    np.testing.assert_array_equal(influence(built(ka.EncoderLayer), draw(T, M)), everything)


def test_attention_masks_restrict_who_sees_whom():
    x, memory = draw(T, M), draw(1, S, MEMORY_WIDTH)
    pairs = np.eye(T, dtype=bool)
    pairs[3, 1] = pairs[1, 4] = True
    encoder, decoder = built(ka.EncoderLayer), built(ka.DecoderLayer)
    np.testing.assert_array_equal(influence(lambda x: encoder(x, attention_mask=pairs[None]), x), pairs)
    seen = influence(lambda x: decoder(x, memory, decoder_attention_mask=pairs[None]), x)
    np.testing.assert_array_equal(seen, pairs & np.tril(pairs))
    cross = np.random.rand(1, T, S) < 0.5
    _, _, weights = decoder(x[None], memory, encoder_attention_mask=cross, return_attention_scores=True)
    assert np.all((numpy(weights) > 0) == cross[:, None])


@pytest.mark.parametrize("steps", [[1] * T, [2, 3]], ids=str)
def test_cached_layer_equals_the_full_pass(steps):
    for layer, memory in ((built(ka.DecoderLayer), [draw(B, S, MEMORY_WIDTH)]), (language_model_layer(), [])):
        x, mask = draw(B, T, M), padding(T)
        full = layer(x, *memory, decoder_padding_mask=mask)
        cache, start = empty_cache(), 0
        for length in steps:
            now = np.s_[:, start : start + length]
            output, cache = layer(
                x[now], *memory, decoder_padding_mask=mask[:, : start + length], self_attention_cache=cache
            )
            assert_close(output, full[now])
            start += length


@pytest.mark.parametrize("normalize_first", [False, True])
def test_beams_share_the_memory_of_their_sentence(normalize_first):
    decoder = built(ka.Decoder, N, normalize_first=normalize_first)
    x, memory, mask = draw(B * K, T, M), draw(B, S, MEMORY_WIDTH), padding(S)
    full, self_weights, cross_weights = decoder(
        x,
        np.repeat(memory, K, axis=0),
        encoder_padding_mask=np.repeat(mask, K, axis=0),
        return_attention_scores=True,
    )
    cross = tuple(layer.project_memory(memory) for layer in decoder.layers)
    caches, start = (empty_cache(B * K),) * N, 0
    for length in (1, 3, 1):
        end = start + length
        output, now_self, now_cross, caches = decoder(
            x[:, start:end],
            encoder_padding_mask=mask,
            self_attention_caches=caches,
            cross_attention_caches=cross,
            return_attention_scores=True,
        )
        assert_close(output, full[:, start:end])
        for i in range(N):
            assert_close(now_self[i], self_weights[i][:, :, start:end, :end])
            assert_close(now_cross[i], cross_weights[i][:, :, start:end])
        start = end


def test_reordered_beams_go_on_from_the_rows_they_took():
    layer, x, memory = built(ka.DecoderLayer), draw(B * K, T, M), draw(B, S, MEMORY_WIDTH)
    order = np.array([2, 0, 0, 4, 3, 3])  # within each sentence
    cross = layer.project_memory(memory)
    _, cache = layer(x[:, :2], self_attention_cache=empty_cache(B * K), cross_attention_cache=cross)
    taken = ka.KeyValueCache(*(numpy(part)[order] for part in cache))
    output, _ = layer(x[:, 2:], self_attention_cache=taken, cross_attention_cache=cross)
    whole = np.concatenate([x[order, :2], x[:, 2:]], axis=1)
    assert_close(output, layer(whole, np.repeat(memory, K, axis=0))[:, 2:])


def test_nothing_to_decode():
    layer = built(ka.DecoderLayer)
    cross = layer.project_memory(draw(0, S, MEMORY_WIDTH))
    output, cache = layer(draw(0, 1, M), self_attention_cache=empty_cache(0), cross_attention_cache=cross)
    assert tuple(output.shape) == (0, 1, M)
    assert tuple(cache.key.shape) == (0, H, 1, D)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"intermediate_dim": 0}, r"`intermediate_dim` must be a positive integer. Received: intermediate_dim=0"),
        ({"num_heads": 1.5}, r"`num_heads` must be a positive integer. Received: num_heads=1.5"),
        ({"dropout": 1}, r"`dropout` must be a number, at least 0 and below 1. Received: dropout=1"),
        ({"attention_dropout": -0.1}, r"Received: attention_dropout=-0.1"),
        ({"activation_dropout": None}, r"Received: activation_dropout=None"),
        ({"layer_norm_epsilon": 0}, r"`layer_norm_epsilon` must be a number above zero. Received"),
    ],
)
@pytest.mark.parametrize("layer_class", [ka.EncoderLayer, ka.DecoderLayer])
def test_wrong_arguments_are_refused(layer_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_class(**{"intermediate_dim": F, "num_heads": H, **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ka.Encoder(0, F, H), r"`num_layers` must be a positive integer. Received: num_layers=0"),
        (lambda: ka.EncoderLayer(F, 4)(draw(B, T, M)), r"`num_heads` must divide the width of the inputs.*width=33"),
        (lambda: ka.DecoderLayer(F, 4)(draw(B, T, M)), r"Received: num_heads=4, width=33"),
        (lambda: built(ka.DecoderLayer)(draw(B, T, M)), r"needs `encoder_sequence` or `cross_attention_cache`"),
        (lambda: ka.FeedForward(-3), r"`intermediate_dim` must be a positive integer. Received: intermediate_dim=-3"),
        (
            lambda: ka.FeedForward(F, dropout=2),
            r"`dropout` must be a number, at least 0 and below 1. Received: dropout=2",
        ),
        (lambda: ka.TokenEmbedding(0, M), r"`vocabulary_size` must be a positive integer"),
        (lambda: ka.TokenEmbedding(17, "M"), r"`hidden_dim` must be a positive integer. Received: hidden_dim='M'"),
        (lambda: ka.PositionalEncoding(0.0), r"`max_wavelength` must be a number above zero"),
        (lambda: ka.PositionalEncoding()(draw(T, M)), r"shape \(batch, length, width\). Received: .*\(5, 33\)"),
    ],
)
def test_mistakes_get_a_message(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_additive_masks_are_refused():
    x, memory, mask = draw(B, T, M), draw(B, S, M), np.where(np.arange(S) < 3, 0.0, -1e9)[None].repeat(B, axis=0)
    with pytest.raises(ValueError, match=r"holds booleans, or numbers that are 0 or 1.*`attention_bias`"):
        ka.EncoderLayer(F, H)(memory, padding_mask=mask)
    with pytest.raises(ValueError, match=r"holds booleans, or numbers that are 0 or 1.*`attention_bias`"):
        ka.DecoderLayer(F, H)(x, memory, encoder_padding_mask=mask)


@pytest.mark.parametrize("layer_class", [ka.DecoderLayer, ka.Decoder])
def test_an_implicit_mask_is_not_enough_beside_a_cache(layer_class):
    sizes = [] if layer_class is ka.DecoderLayer else [1]
    name = "self_attention_caches" if sizes else "self_attention_cache"
    cache = {name: (empty_cache(),) if sizes else empty_cache()}
    layer, x = layer_class(*sizes, F, H), keras.layers.Masking()(draw(B, T, M))
    with pytest.raises(ValueError, match=r"covers the new positions only"):
        layer(x, **cache)
    assert tuple(layer(x, decoder_padding_mask=np.ones((B, T), bool), **cache)[0].shape) == (B, T, M)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_positions_go_on_from_the_start_index(policy):
    layer, x = ka.PositionalEncoding(dtype=policy), draw(B, T, M, scale=0.1)
    for start in (3, 5000, keras.ops.array(5000)):
        expected = x * M**0.5 + oracle.sinusoids(range(int(start), int(start) + T), M)
        tolerance = {"float32": 1e-3, "mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}[policy]
        assert_close(layer(x, start_index=start), expected, atol=tolerance)
    whole = layer(x)
    parts = [layer(x[:, :2]), layer(x[:, 2:], start_index=2)]
    assert_close(np.concatenate(numpy(parts), axis=1), whole, atol=1e-6)


@pytest.fixture(scope="module")
def classifier():
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(17, M, mask_zero=True)(ids)
    x = ka.PositionalEncoding()(x)
    for _ in range(3):
        x = ka.EncoderLayer(intermediate_dim=F, num_heads=H, dropout=0.1)(x)
    y = keras.layers.Dense(1, activation="sigmoid")(keras.layers.GlobalAveragePooling1D()(x))
    model = keras.Model(ids, y)
    model.compile("adam", "binary_crossentropy")
    return model


def test_padding_never_changes_what_a_plain_model_predicts(classifier, tmp_path):
    np.random.seed(3)
    lengths = np.array([7, 1, 3, 6])
    ids = np.where(np.arange(7) < lengths[:, None], np.random.randint(1, 17, (4, 7)), 0)
    classifier.fit(ids, ids[:, 0] % 2, epochs=1, batch_size=4, verbose=0)
    padded = classifier.predict(ids, verbose=0)
    assert np.ptp(padded) > 1e-3, "the predictions are all the same"
    wider = np.pad(ids, ((0, 0), (0, 7)))
    assert_close(classifier.predict(wider, verbose=0), padded)
    for row, length, expected in zip(ids, lengths, padded, strict=True):
        assert_close(classifier(row[None, :length]), expected[None])
    classifier.save(tmp_path / "model.keras")
    assert_close(keras.models.load_model(tmp_path / "model.keras")(ids), padded)


def test_packed_sequences_in_a_functional_model_of_unknown_lengths():
    x, segments = keras.Input((None, M)), keras.Input((None,), dtype="int32")
    y = ka.PositionalEncoding()(x, segment_ids=segments)
    y = ka.EncoderLayer(F, H, position=ka.AlibiBias())(y, segment_ids=segments)
    model = keras.Model([x, segments], y)
    assert y.shape == (None, None, M)
    inputs, ids = draw(B, T, M), np.array([[1, 1, 2, 2, 2], [3, 3, 3, 3, 4]], "int32")
    packed = numpy(model([inputs, ids]))
    alone = model([inputs[:1, 2:], ids[:1, 2:]])
    assert_close(packed[:1, 2:], numpy(alone))
    assert np.abs(packed[:1, :2] - numpy(model([inputs[:1, :2], ids[:1, :2]]))).max() < 1e-4
