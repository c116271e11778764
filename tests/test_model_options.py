"""Each option of a `TransformerConfig` that changes the layers: whole, in steps, packed, recomputed and saved."""

import dataclasses

import keras
import numpy as np
import pytest
from backends import gradients, numpy
from model_options import CAUSAL_OPTIONS, OPTIONS, logits_by_the_formulas
from tensors import assert_close, randomize

import keras_attention as ka
from keras_attention.training import MaskedCrossEntropy

B, T, S, V = 2, 5, 7, 17
MODELS = [(ka.Transformer, name) for name in OPTIONS] + [(ka.CausalTransformer, name) for name in CAUSAL_OPTIONS]
SIZES = {"num_layers": 2, "hidden_dim": 33, "intermediate_dim": 13, "num_heads": 3}


def make(model_class=ka.Transformer, **changes):
    model = model_class(ka.TransformerConfig(V, **{**SIZES, **changes}))
    randomize(model)
    return model


def batch():
    """Ids of two pairs, each with padding on one side."""
    source, target = np.random.randint(1, V, (B, S)), np.random.randint(1, V, (B, T))
    source[1, 4:] = target[0, 3:] = 0
    return {"source": source, "target": target}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("normalize_first", [False, True])
def test_a_transformer_equals_the_formulas(name, normalize_first):
    model, inputs = make(normalize_first=normalize_first, **OPTIONS[name]), batch()
    assert_close(model(inputs), logits_by_the_formulas(model, **inputs), atol=5e-4)


@pytest.mark.parametrize("name", CAUSAL_OPTIONS)
@pytest.mark.parametrize("normalize_first", [False, True])
def test_a_language_model_equals_the_formulas(name, normalize_first):
    model = make(ka.CausalTransformer, normalize_first=normalize_first, **CAUSAL_OPTIONS[name])
    ids = batch()["target"]
    assert_close(model(ids), logits_by_the_formulas(model, ids), atol=5e-4)


@pytest.mark.parametrize(("model_class", "name"), MODELS)
def test_the_number_of_parameters_is_that_of_the_model(model_class, name):
    for changes in ({}, {"normalize_first": True, "use_attention_bias": True}):
        model = make(model_class, **changes, **OPTIONS[name])
        formula = "num_parameters" if model_class is ka.Transformer else "num_causal_parameters"
        assert getattr(model.config, formula) == model.count_params()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("capacity", [None, T + 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_decoding_in_steps_equals_the_full_pass(name, capacity, beams):
    model = make(**OPTIONS[name])
    source, targets = batch()["source"], np.random.randint(1, V, (B * beams, T))
    full = model({"source": np.repeat(source, beams, axis=0), "target": targets})
    memory, mask = model.encode(source)
    cache, start = model.init_cache(memory, B * beams, capacity), 0
    for length in (1, 3, 1):
        now = np.s_[:, start : start + length]
        logits, cache = model.decode_step(targets[now], cache, mask)
        assert_close(logits, full[now], atol=5e-5)
        start += length


@pytest.mark.parametrize("name", CAUSAL_OPTIONS)
def test_a_language_model_in_steps_equals_the_full_pass(name):
    model, ids = make(ka.CausalTransformer, **CAUSAL_OPTIONS[name]), np.random.randint(1, V, (B, T))
    full, (logits, cache) = model(ids), model.decode_step(ids[:, :2], model.init_cache(B))
    assert_close(logits, full[:, :2], atol=5e-5)
    assert_close(model.decode_step(ids[:, 2:], cache)[0], full[:, 2:], atol=5e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_pairs_in_one_row_have_the_logits_of_their_own_rows(name):
    model = make(**OPTIONS[name])
    source, target = np.random.randint(1, V, (1, S)), np.random.randint(1, V, (1, T))
    segments = {"source_segments": [[1, 1, 1, 1, 2, 2, 2]], "target_segments": [[1, 1, 1, 2, 2]]}
    inputs = {"source": source, "target": target, **{key: np.array(ids) for key, ids in segments.items()}}
    logits = model.packed()(inputs)
    assert_close(logits[:, :3], model({"source": source[:, :4], "target": target[:, :3]}), atol=5e-5)
    assert_close(logits[:, 3:], model({"source": source[:, 4:], "target": target[:, 3:]}), atol=5e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_recomputed_layers_have_the_same_gradients(name):
    kept, again = (make(dropout=0.0, remat=remat, **OPTIONS[name]) for remat in (False, True))
    for mine, theirs in zip(kept.weights, again.weights, strict=True):
        theirs.assign(mine)
    inputs, loss = batch(), MaskedCrossEntropy()
    labels = inputs["target"]

    def differentiate(model):
        def total(scale):
            return loss(labels, scale * model(inputs, training=True))

        return numpy(gradients(total, [np.float32(1)], model.trainable_variables)[1])

    assert_close(differentiate(again), differentiate(kept), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("model_class", "name"), MODELS)
def test_a_saved_model_and_a_copy_compute_the_same(model_class, name, tmp_path):
    model, inputs = make(model_class, **OPTIONS[name]), batch()
    inputs = inputs if model_class is ka.Transformer else inputs["target"]
    model.save(tmp_path / "model.keras")
    for other in (keras.models.load_model(tmp_path / "model.keras"), model.in_dtype("float32")):
        assert other.config == model.config
        assert [weight.path for weight in other.weights] == [weight.path for weight in model.weights]
        assert_close(other(inputs), model(inputs), atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_config_is_plain_data(name):
    config = ka.TransformerConfig(V, **{**SIZES, **OPTIONS[name]})
    assert ka.TransformerConfig(**config.to_dict()) == config
    assert all(type(value) in (int, float, str, bool, type(None)) for value in config.to_dict().values())


def test_the_depth_of_the_decoder_follows_that_of_the_encoder_unless_it_is_given():
    config = ka.TransformerConfig(V, num_layers=5)
    assert (config.num_decoder_layers, config.decoder_depth) == (None, 5)
    assert dataclasses.replace(config, num_layers=3).decoder_depth == 3
    assert dataclasses.replace(config, num_decoder_layers=2).decoder_depth == 2


def test_a_language_model_has_one_depth():
    with pytest.raises(ValueError, match=r"give their number as `num_layers`. Received: num_decoder_layers=1, num_la"):
        make(ka.CausalTransformer, num_decoder_layers=1)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_sequence_longer_than_the_learned_positions_is_an_error(side):
    model, inputs = make(positions="learned", max_length=S), batch()
    assert np.isfinite(numpy(model(inputs))).all()
    inputs[side] = np.ones((B, S + 1), "int32")
    with pytest.raises(ValueError, match=r"past the last learned position.* Received: length=8, .* max_length=7"):
        model(inputs)


def test_a_step_past_the_learned_positions_is_an_error():
    model = make(ka.CausalTransformer, positions="learned", max_length=T)
    _, cache = model.decode_step(np.ones((B, T), "int32"), model.init_cache(B))
    with pytest.raises(ValueError, match=r"Received: length=1, start_index=5, max_length=5"):
        model.decode_step(np.ones((B, 1), "int32"), cache)
