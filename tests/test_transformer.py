"""The whole model."""

import dataclasses

import keras
import numpy as np
import oracle
import pytest
from backends import compiled, dtype_of, gradients, numpy, weighted_sum
from tensors import assert_close, draw, influence, largest_difference, randomize

import keras_attention as ka

B, T, S, V = 2, 5, 7, 17
SMALL = {"num_layers": 2, "hidden_dim": 33, "intermediate_dim": 13, "num_heads": 3}
LENGTHS = {"source": [S, 4], "target": [3, T]}


def make(dtype=None, **changes):
    model = ka.Transformer(ka.TransformerConfig(V, **{**SMALL, **changes}), dtype=dtype)
    randomize(model)
    return model


@pytest.fixture(scope="module")
def model():
    return make()


def padded_batch():
    np.random.seed(2)
    return {
        name: np.where(np.arange(max(lengths)) < np.array(lengths)[:, None], np.random.randint(1, V, (B, n)), 0)
        for n, (name, lengths) in zip((S, T), LENGTHS.items(), strict=True)
    }


def trimmed(batch, row):
    return {name: ids[row : row + 1, : LENGTHS[name][row]] for name, ids in batch.items()}


def test_a_dictionary_is_no_config():
    with pytest.raises(TypeError, match=r"`config` is a TransformerConfig.*Received: config=.*vocabulary_size': 17"):
        ka.Transformer({"vocabulary_size": V})


@pytest.mark.parametrize("model_class", [ka.Transformer, ka.CausalTransformer])
def test_the_network_has_the_layers_of_the_graph_also_in_a_copy(model_class):
    original = model_class(ka.TransformerConfig(V, **SMALL))
    for model in (original, original.in_dtype("float16")):
        layers = [layer for layer in vars(model.network).values() if layer is not None]
        assert all(model.get_layer(layer.name) is layer for layer in layers)
        assert sum(len(layer.weights) for layer in layers) == len(model.weights)


def whole_model_by_the_formulas(model, source, target):
    weights = {weight.path: numpy(weight).astype("float64") for weight in model.weights}
    m = model.config.hidden_dim
    matrix = weights["embedding/embeddings"]

    def embed(ids):
        return matrix[ids] * np.sqrt(m) + oracle.sinusoids(range(ids.shape[1]), m)

    options = {"epsilon": model.config.layer_norm_epsilon, "normalize_first": model.config.normalize_first}
    mask = (source != 0)[:, None, None]
    memory, x = embed(source), embed(target)
    for i in range(model.config.num_layers):
        memory = oracle.encoder_layer(oracle.part(weights, f"encoder/layer_{i}"), memory, mask, **options)
    if model.config.normalize_first:
        memory = oracle.layer_norm(oracle.part(weights, "encoder/final_norm"), memory, options["epsilon"])
    for i in range(model.config.num_layers):
        layer = oracle.part(weights, f"decoder/layer_{i}")
        x = oracle.decoder_layer(layer, x, memory, cross_mask=mask, **options)
    if model.config.normalize_first:
        x = oracle.layer_norm(oracle.part(weights, "decoder/final_norm"), x, options["epsilon"])
    return x @ matrix.T


@pytest.mark.parametrize("normalize_first", [False, True])
def test_equals_the_formulas(normalize_first):
    model, batch = make(normalize_first=normalize_first, use_attention_bias=True), padded_batch()
    assert_close(model(batch), whole_model_by_the_formulas(model, **batch), atol=5e-4)


@pytest.mark.parametrize("mode", ["eager", "function", "predict", "reloaded"])
def test_padded_batch_equals_trimmed(model, mode, tmp_path):
    def reloaded(ids):
        model.save(tmp_path / "model.keras")
        return keras.models.load_model(tmp_path / "model.keras")(ids)

    batch = padded_batch()
    run = {
        "eager": model,
        "function": compiled(model),
        "predict": lambda ids: model.predict(ids, verbose=0),
        "reloaded": reloaded,
    }[mode]
    logits = run(batch)
    for row in range(B):
        single = model(trimmed(batch, row))
        assert_close(logits[row : row + 1, : single.shape[1]], single, atol=5e-5)


def test_what_the_target_pads_with_changes_no_logit_before_it(model):
    batch = padded_batch()
    logits = model(batch)
    batch["target"][0, 3:] = 11
    assert_close(model(batch)[0, :3], logits[0, :3], atol=0)


def test_a_later_target_token_never_changes_an_earlier_logit(model):
    memory, mask = model.encode(padded_batch()["source"][:1])

    def decode(x):
        return model.get_layer("decoder")(x, memory, encoder_padding_mask=mask)

    np.testing.assert_array_equal(influence(decode, draw(T, 33)), np.tril(np.ones((T, T), bool)))
    batch = padded_batch()
    for t in range(1, T):
        changed = {**batch, "target": batch["target"].copy()}
        changed["target"][:, t] = (changed["target"][:, t] + 5) % V
        difference = np.abs(numpy(model(changed)) - numpy(model(batch))).max((0, 2))
        assert np.all(difference[:t] == 0)
        assert np.all(difference[t:] > 1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("steps", [[1] * T, [2, 3]], ids=str)
def test_decoding_in_steps_equals_the_full_pass(model, beams, steps):
    source, targets = padded_batch()["source"], np.random.randint(1, V, (B * beams, T))
    full = model({"source": np.repeat(source, beams, axis=0), "target": targets})
    memory, mask = model.encode(source)
    cache, start = model.init_cache(memory, B * beams), 0
    for length in steps:
        now = np.s_[:, start : start + length]
        logits, cache, weights = model.decode_step(targets[now], cache, mask, return_attention_scores=True)
        assert_close(logits, full[now], atol=5e-5)
        assert [tuple(each.shape) for each in weights] == [(B * beams, 3, length, S)] * 2
        for each in numpy(weights):
            np.testing.assert_allclose(each.sum(-1), 1, atol=1e-5)
            assert np.all(each[np.repeat(~numpy(mask), beams, axis=0).nonzero()[0], :, :, -1] == 0)
        start += length
    assert [int(layer.length) for layer in cache.layers] == [T] * 2
    assert [layer.key.shape[0] for layer in cache.cross] == [B] * 2


def test_encoder_returns_what_it_attends_to(model):
    source = padded_batch()["source"]
    memory, mask, weights = model.encode(source, return_attention_scores=True)
    assert_close(memory, model.encode(source)[0], atol=0)
    np.testing.assert_array_equal(numpy(mask), source != 0)
    assert [tuple(each.shape) for each in weights] == [(B, 3, S, S)] * 2
    for each in numpy(weights):
        np.testing.assert_array_equal(each[1, :, :, 4:], 0)


def test_one_matrix_embeds_both_sides_and_makes_the_logits(model):
    assert [weight.path for weight in model.weights if weight.shape[0] == V] == ["embedding/embeddings"]
    before = model.get_weights()
    sentence = {"source": np.array([[3, 4]]), "target": np.array([[5, 6]])}
    embeddings = model.get_layer("embedding").embeddings
    direction = draw(1, 2, V)
    _, (gradient,) = gradients(lambda: weighted_sum(model(sentence), direction), [], [embeddings])
    assert np.all(np.abs(gradient).max(-1) > 0), "each row makes a logit"
    logits = numpy(model(sentence))
    for token, changes_all in ((3, True), (5, True), (9, False)):
        matrix = np.array(before[0])
        matrix[token] += 0.1
        embeddings.assign(matrix)
        others = np.delete(np.arange(V), token)
        changed = np.abs(numpy(model(sentence)) - logits)[..., others].max() > 1e-4
        assert changed == changes_all, token
    model.set_weights(before)  # other tests share it


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_follows_float32_and_keeps_its_policy(dtype, tmp_path):
    model, half, batch = make(num_layers=1), make(dtype=dtype, num_layers=1), padded_batch()
    half.set_weights(model.get_weights())
    logits = half(batch)
    assert dtype_of(logits) == "float32"
    assert half.outputs[0].dtype == "float32"
    expected = numpy(model(batch))
    tolerance = {"mixed_bfloat16": 0.1, "mixed_float16": 0.02}[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(numpy(logits), expected, atol=tolerance)
    assert all(weight.dtype == "float32" for weight in half.weights)
    half.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float64")
    try:
        again = keras.models.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.dtype_policy.name for layer in again.layers if layer.weights} == {dtype}
    assert_close(again(batch), logits, atol=0, rtol=0)


def test_everything_survives_a_file(tmp_path):
    changes = {
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "activation_dropout": 0.4,
        "activation": "gelu",
        "normalize_first": True,
        "layer_norm_epsilon": 1e-3,
        "use_attention_bias": True,
        "remat": True,
        "num_decoder_layers": 2,
        "key_dim": 10,
        "value_dim": 4,
        "positions": "learned",
        "max_length": 19,
        "num_kv_heads": 1,
        "normalization": "rms",
        "initialization": "glorot",
    }
    changes["num_layers"] = 1
    model, batch = make(**changes), padded_batch()
    assert set(changes) | set(SMALL) | {"vocabulary_size"} == {field.name for field in dataclasses.fields(model.config)}
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is ka.Transformer
    assert again.config == model.config
    assert again.get_config() == model.get_config()
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    assert_close(again(batch), model(batch), atol=0, rtol=0)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = make(**changes)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_close(fresh(batch), model(batch), atol=0, rtol=0)


def test_frozen_model_stays_frozen(tmp_path):
    frozen = make(num_layers=1)
    frozen.trainable = False
    frozen.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").trainable_weights == []


def test_dropout_acts_only_in_training(model):
    dropping, batch = make(dropout=0.5), padded_batch()
    dropping.set_weights(model.get_weights())
    assert_close(dropping(batch), model(batch), atol=0)
    assert largest_difference(dropping(batch, training=True), model(batch)) > 1e-2
    memory, _ = dropping.encode(batch["source"])
    assert_close(memory, model.encode(batch["source"])[0], atol=0)


def test_sums_of_embeddings_and_positions_are_dropped():
    model, batch = make(dropout=0.5), padded_batch()
    network = model.network
    for layer in (*network.encoder.layers, *network.decoder.layers):
        layer.residual_dropout.rate = 0.0  # what is left is the dropout before the layers
    memory = network.encode(batch["source"], training=False)
    assert largest_difference(network.encode(batch["source"], training=True), memory) > 1e-2
    output = network.decode(batch["target"], memory, training=False)
    assert largest_difference(network.decode(batch["target"], memory, training=True), output) > 1e-2
    for layer in (network.source_dropout, network.target_dropout):
        layer.rate = 0.0
    assert_close(network.encode(batch["source"], training=True), memory, atol=0)
    assert_close(network.decode(batch["target"], memory, training=True), output, atol=0)


def test_shapes_are_known_before_anything_runs(model):
    assert model.output_shape == (None, None, V)
    assert {name: tuple(each.shape) for name, each in model.input.items()} == {
        "source": (None, None),
        "target": (None, None),
    }
    for batch, source, target in ((0, S, T), (1, 1, 1)):
        ids = {"source": np.ones((batch, source), "int32"), "target": np.ones((batch, target), "int32")}
        assert tuple(model(ids).shape) == (batch, target, V)
    nothing = model({"source": np.zeros((B, S), "int32"), "target": np.zeros((B, T), "int32")})
    assert np.all(np.isfinite(numpy(nothing)))


def test_summary_names_the_parts(model, capsys):
    model.summary()
    printed = capsys.readouterr().out
    for name in ("embedding", "positions", "encoder", "decoder", f"{model.count_params():,}"):
        assert name in printed


def test_learns_to_copy():
    keras.utils.set_random_seed(1)
    model = ka.Transformer(ka.TransformerConfig(V, 1, 32, 37, 2, dropout=0.0))
    words = np.random.randint(4, V, (256, 3)).astype("int32")
    ends = np.full((256, 1), 2)
    inputs = {"source": np.hstack([words, ends]), "target": np.hstack([ends - 1, words])}
    model.compile(keras.optimizers.Adam(0.01), loss=ka.training.MaskedCrossEntropy())
    history = model.fit(inputs, np.hstack([words, ends]), epochs=15, batch_size=64, verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]


def test_another_dtype_has_the_same_weights():
    model = ka.Transformer.from_preset("tiny", vocabulary_size=31)
    half = model.in_dtype("bfloat16")
    assert half.config == model.config
    for weight, lighter in zip(model.weights, half.weights, strict=True):
        assert keras.backend.standardize_dtype(lighter.dtype) == "bfloat16"
        rounded = keras.ops.cast(keras.ops.cast(weight, "bfloat16"), "float32")
        same = keras.ops.cast(lighter, "float32")
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(same), keras.ops.convert_to_numpy(rounded))
