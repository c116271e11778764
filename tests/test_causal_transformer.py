"""The language model: only the decoder's layers."""

import dataclasses

import keras
import numpy as np
import oracle
import pytest
from backends import compiled, dtype_of, numpy
from tensors import assert_close, draw, influence, largest_difference, randomize

import keras_attention as ka

B, T, V = 2, 7, 17
SMALL = {"num_layers": 2, "hidden_dim": 33, "intermediate_dim": 13, "num_heads": 3}
LENGTHS = [T, 4]


def make(dtype=None, **changes):
    model = ka.CausalTransformer(ka.TransformerConfig(V, **{**SMALL, **changes}), dtype=dtype)
    randomize(model)
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def ids():
    """Two rows, the second of which ends early."""
    return np.where(np.arange(T) < np.array(LENGTHS)[:, None], np.random.randint(1, V, (B, T)), 0).astype("int32")


def test_a_dictionary_is_no_config():
    with pytest.raises(TypeError, match=r"`config` is a TransformerConfig.*Received: config=.*vocabulary_size': 17"):
        ka.CausalTransformer({"vocabulary_size": V})


@pytest.mark.parametrize("changes", [{}, {"normalize_first": True}, {"use_attention_bias": True}, {"num_layers": 3}])
def test_number_of_parameters_is_counted_matrix_by_matrix(changes):
    config = ka.TransformerConfig(V, **{**SMALL, **changes})
    m, f = config.hidden_dim, config.intermediate_dim
    attention = sum(m * m + config.use_attention_bias * m for _ in ("query", "key", "value", "output"))
    layer = attention + (m + m) + (m * f + f) + (f * m + m) + (m + m)
    expected = V * m + config.num_layers * layer + config.normalize_first * (m + m)
    assert ka.CausalTransformer(config).count_params() == config.num_causal_parameters == expected


def test_presets_give_their_sizes():
    model = ka.CausalTransformer.from_preset("tiny", vocabulary_size=V, dropout=0.25)
    assert type(model) is ka.CausalTransformer
    assert model.config == ka.TransformerConfig.from_preset("tiny", V, dropout=0.25)


def whole_model_by_the_formulas(model, ids):
    weights = {weight.path: numpy(weight).astype("float64") for weight in model.weights}
    m, epsilon = model.config.hidden_dim, model.config.layer_norm_epsilon
    matrix = weights["embedding/embeddings"]
    x = matrix[ids] * np.sqrt(m) + oracle.sinusoids(range(ids.shape[1]), m)
    for i in range(model.config.num_layers):
        layer = oracle.part(weights, f"decoder/layer_{i}")
        x = oracle.decoder_layer(layer, x, memory=None, epsilon=epsilon, normalize_first=model.config.normalize_first)
    if model.config.normalize_first:
        x = oracle.layer_norm(oracle.part(weights, "decoder/final_norm"), x, epsilon)
    return x @ matrix.T


@pytest.mark.parametrize("normalize_first", [False, True])
def test_equals_the_formulas(normalize_first, ids):
    model = make(normalize_first=normalize_first, use_attention_bias=True)
    assert_close(model(ids), whole_model_by_the_formulas(model, ids), atol=5e-4)


@pytest.mark.parametrize("mode", ["eager", "function", "predict", "reloaded"])
def test_padded_batch_equals_trimmed(model, mode, ids, tmp_path):
    def reloaded(ids):
        model.save(tmp_path / "model.keras")
        return keras.models.load_model(tmp_path / "model.keras")(ids)

    run = {
        "eager": model,
        "function": compiled(model),
        "predict": lambda ids: model.predict(ids, verbose=0),
        "reloaded": reloaded,
    }[mode]
    logits = run(ids)
    for row, length in enumerate(LENGTHS):
        assert_close(logits[row : row + 1, :length], model(ids[row : row + 1, :length]), atol=5e-5)


def test_a_later_token_never_changes_an_earlier_logit(model):
    np.testing.assert_array_equal(influence(model.get_layer("decoder"), draw(T, 33)), np.tril(np.ones((T, T), bool)))
    ids = np.random.randint(1, V, (B, T))
    for t in range(1, T):
        changed = ids.copy()
        changed[:, t] = changed[:, t] % (V - 1) + 1
        difference = np.abs(numpy(model(changed)) - numpy(model(ids))).max((0, 2))
        assert np.all(difference[:t] == 0)
        assert np.all(difference[t:] > 1e-4)


@pytest.mark.parametrize("steps", [[1] * T, [3, 1, 1, 2]], ids=str)
@pytest.mark.parametrize("capacity", [None, T, T + 4])
def test_decoding_in_steps_equals_the_full_pass(model, steps, capacity):
    ids = np.random.randint(1, V, (B, T))
    full = model(ids)
    cache, start = model.init_cache(B, capacity), 0
    assert cache.cross == ()
    for length in steps:
        now = np.s_[:, start : start + length]
        logits, cache = model.decode_step(ids[now], cache)
        assert dtype_of(logits) == "float32"
        assert_close(logits, full[now], atol=5e-5)
        start += length
        assert [int(layer.length) for layer in cache.layers] == [start] * 2


def test_a_reordered_cache_continues_with_other_rows(model):
    ids = np.random.randint(1, V, (3, T))
    _, cache = model.decode_step(ids[:, :-1], model.init_cache(3))
    rows = [2, 0, 0, 1]
    cache = cache._replace(layers=tuple(layer.reorder(rows) for layer in cache.layers))
    logits, _ = model.decode_step(ids[rows, -1:], cache)
    assert_close(logits[:, 0], model(ids[rows])[:, -1], atol=5e-5)


def test_one_compiled_step_serves_every_position(model):
    step = compiled(model.decode_step)
    ids = np.random.randint(1, V, (B, T))
    cache, full = model.init_cache(B, capacity=T), model(ids)
    for t in range(T):
        logits, cache = step(ids[:, t : t + 1], cache)
        assert_close(logits[:, 0], full[:, t], atol=5e-5)


def test_one_matrix_embeds_and_makes_the_logits(model):
    assert [weight.path for weight in model.weights if weight.shape[0] == V] == ["embedding/embeddings"]
    assert not [weight.path for weight in model.weights if "cross" in weight.path]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_follows_float32_and_keeps_its_policy(dtype, ids, tmp_path):
    model, half = make(num_layers=1), make(dtype=dtype, num_layers=1)
    half.set_weights(model.get_weights())
    logits = half(ids)
    assert dtype_of(logits) == half.outputs[0].dtype == "float32"
    expected = numpy(model(ids))
    tolerance = {"mixed_bfloat16": 0.1, "mixed_float16": 0.02}[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(numpy(logits), expected, atol=tolerance)
    step, cache = half.decode_step(ids[:1], half.init_cache(1))
    assert dtype_of(step) == "float32"
    assert dtype_of(cache.layers[0].key) == dtype.removeprefix("mixed_")
    assert_close(step, logits[:1], atol=tolerance)
    half.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert {layer.dtype_policy.name for layer in again.layers if layer.weights} == {dtype}
    assert_close(again(ids), logits, atol=0, rtol=0)


def test_everything_survives_a_file(ids, tmp_path):
    changes = {
        "num_layers": 1,
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "activation_dropout": 0.4,
        "activation": "gelu",
        "normalize_first": True,
        "layer_norm_epsilon": 1e-3,
        "use_attention_bias": True,
        "remat": True,
        "key_dim": 10,
        "value_dim": 4,
        "positions": "learned",
        "max_length": 19,
        "num_kv_heads": 1,
        "normalization": "rms",
        "initialization": "glorot",
    }
    model = make(**changes)
    others = {"vocabulary_size", "num_decoder_layers"}  # the latter is not of a language model
    assert set(changes) | set(SMALL) | others == {field.name for field in dataclasses.fields(model.config)}
    decoder = model.get_layer("decoder").get_config()
    of_model = {"positions", "max_length", "initialization"}
    assert {name: decoder[name] for name in changes if name not in of_model} == {
        name: value for name, value in changes.items() if name not in of_model
    }
    assert decoder["kernel_initializer"]["class_name"] == "GlorotUniform"
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is ka.CausalTransformer
    assert again.get_config() == model.get_config()
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    assert_close(again(ids), model(ids), atol=0, rtol=0)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = make(**changes)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_close(fresh(ids), model(ids), atol=0, rtol=0)


@pytest.mark.tensorflow  # on torch Keras' own code for a quantized embedding warns
def test_adapters_and_quantization_survive_a_file(ids, tmp_path):
    model = make(num_layers=1)
    before = numpy(model(ids))
    model.enable_lora(rank=2, pattern="query|value")
    model.quantize("int8")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [weight.path for weight in again.trainable_weights] == [weight.path for weight in model.trainable_weights]
    assert len(again.trainable_weights) == 4
    assert "int8" in {dtype_of(weight) for weight in again.weights}
    assert_close(again(ids), model(ids), atol=1e-5)
    assert 0 < largest_difference(model(ids), before) < 0.1 * np.abs(before).max()


def test_dropout_acts_only_in_training(model, ids):
    dropping = make(dropout=0.5)
    dropping.set_weights(model.get_weights())
    assert_close(dropping(ids), model(ids), atol=0)
    assert largest_difference(dropping(ids, training=True), model(ids)) > 1e-2
    logits, _ = dropping.decode_step(ids[:1], dropping.init_cache(1))
    assert_close(logits, model(ids[:1]), atol=5e-5)


def test_shapes_are_known_before_anything_runs(model):
    assert model.output_shape == (None, None, V)
    assert tuple(model.input.shape) == (None, None)
    for batch, length in ((0, T), (1, 1)):
        assert tuple(model(np.ones((batch, length), "int32")).shape) == (batch, length, V)
    assert np.all(np.isfinite(numpy(model(np.zeros((B, T), "int32")))))


def test_learns_what_comes_next():
    keras.utils.set_random_seed(1)
    model = ka.CausalTransformer(ka.TransformerConfig(V, 1, 32, 37, 2, dropout=0.0))
    starts = np.random.randint(4, V, (128, 1))
    counting = 4 + (starts - 4 + np.arange(6)) % (V - 4)  # each token is one more than that before it
    model.compile(keras.optimizers.Adam(0.01), loss=ka.training.MaskedCrossEntropy())
    history = model.fit(counting[:, :-1], counting[:, 1:], epochs=10, batch_size=32, verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
