"""The decoder with joined matrices gives what the layers give, whatever the beams do."""

import keras
import numpy as np
import pytest

from keras_attention import CausalTransformer, Transformer, TransformerConfig
from keras_attention.models.fused_decoder import NEWER_TOKENS

V, B, K, S = 97, 5, 3, 7
SIZES = {"vocabulary_size": V, "num_layers": 2, "hidden_dim": 24, "intermediate_dim": 46, "num_heads": 3}
VARIANTS = {
    "paper": {},
    "pre-norm": {"normalize_first": True},
    "biases": {"use_attention_bias": True},
    "gated": {"activation": "swiglu"},
    "shallow decoder": {"num_layers": 3, "num_decoder_layers": 1},
    "narrow keys": {"key_dim": 3, "value_dim": 7, "use_attention_bias": True},
    "wide keys": {"key_dim": 7, "value_dim": 3, "num_heads": 5},
    "learned positions": {"positions": "learned", "max_length": 29},
    "grouped heads": {"num_heads": 6, "num_kv_heads": 2, "use_attention_bias": True},
    "rms": {"normalization": "rms", "normalize_first": True},
    "rotary": {"positions": "rotary"},
    "together": {"num_heads": 6, "num_kv_heads": 2, "key_dim": 4, "value_dim": 7, "positions": "rotary"},
}


def random_model(kind, **changes):
    keras.utils.set_random_seed(3)
    model = kind(TransformerConfig(**{**SIZES, **changes}))
    generator = np.random.default_rng(5)
    for weight in model.weights:  # biases and scales, too, are not what they start as
        weight.assign(weight + generator.normal(0, 0.1, weight.shape).astype("float32"))
    return model


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def sources():
    ids = np.random.default_rng(7).integers(4, V, (B, S))
    ids[1, 4:] = ids[3, 2:] = 0
    return keras.ops.array(ids.astype("int32"))


def walk(model, state, cache, plain_step, read=0, steps=2 * NEWER_TOKENS + 3):
    """Takes both through the same tokens, while beams continue one another, keys grow old and sentences leave."""
    generator, decoder = np.random.default_rng(11), model.fused_decoder()
    left = np.arange(B)
    ids = np.full(B * K, 2)
    for step in range(steps):
        if step in (3, NEWER_TOKENS + 2):  # a sentence is done, or two are; the second time some keys are old
            kept = np.arange(0, len(left), 2)
            rows = (kept[:, None] * K + np.arange(K)).ravel()
            state = state.selected(keras.ops.array(kept))
            cache = cache._replace(
                layers=tuple(each.reorder(rows) for each in cache.layers),
                cross=tuple(each.reorder(kept) for each in cache.cross),
            )
            left, ids = left[kept], ids[rows]
            plain_step.keywords["kept"] = left
        ids = keras.ops.array(ids.astype("int32"))
        logits, state = decoder.step(ids, state)
        expected, cache = plain_step(ids[:, None], cache)
        np.testing.assert_allclose(numpy(logits), numpy(expected)[:, 0], atol=2e-5)
        parents = generator.integers(0, K, (len(left), K)).astype("int32")
        rows = (np.arange(len(left))[:, None] * K + parents).ravel()
        state = state.reordered(keras.ops.array(parents))
        cache = cache._replace(layers=tuple(each.reorder(rows) for each in cache.layers))
        ids = generator.integers(4, V, len(left) * K)
    assert state.visible.shape[1] == read + steps * K
    assert state.older[0].shape[3] == read + 2 * NEWER_TOKENS * K
    assert state.newer[0].shape[3] == (steps - 2 * NEWER_TOKENS) * K
    assert (numpy(state.lengths) == read + steps).all()


class PlainStep:
    """`decode_step` of a model, for the sentences that are left."""

    def __init__(self, model, mask=None):
        self.model, self.mask, self.keywords = model, mask, {}

    def __call__(self, ids, cache):
        if self.mask is None:
            return self.model.decode_step(ids, cache)
        kept = self.keywords.get("kept", np.arange(B))
        return self.model.decode_step(ids, cache, keras.ops.take(self.mask, kept, axis=0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_translator_step_equals_the_layers(variant):
    model = random_model(Transformer, **VARIANTS[variant])
    memory, mask = model.encode(sources())
    state = model.fused_decoder().read(sources(), K)
    walk(model, state, model.init_cache(memory, B * K), PlainStep(model, mask))


@pytest.mark.parametrize("length", [0, 4])
@pytest.mark.parametrize("variant", ["paper", "pre-norm", "narrow keys", "together"])
def test_a_language_model_step_equals_the_layers(variant, length):
    model = random_model(CausalTransformer, **VARIANTS[variant])
    prompts = np.random.default_rng(13).integers(4, V, (B, length)).astype("int32")
    state = model.fused_decoder().start(keras.ops.array(prompts), K)
    _, cache = model.decode_step(keras.ops.array(prompts.repeat(K, axis=0)), model.init_cache(B * K))
    walk(model, state, cache, PlainStep(model), length)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_row_stands_for_equal_beams_in_the_first_step(variant):
    decoder = random_model(Transformer, **VARIANTS[variant]).fused_decoder()
    first, generator = np.full(B, 2, "int32"), np.random.default_rng(17)
    one, one_state = decoder.step(keras.ops.array(first), decoder.read(sources(), K))
    all_of_them, state = decoder.step(keras.ops.array(first.repeat(K)), decoder.read(sources(), K))
    np.testing.assert_allclose(numpy(one).repeat(K, axis=0), numpy(all_of_them), atol=1e-5)
    for _ in range(2):  # afterwards the beams go ways of their own
        ids = keras.ops.array(generator.integers(4, V, B * K).astype("int32"))
        parents = keras.ops.array(generator.integers(0, K, (B, K)).astype("int32"))
        one, one_state = decoder.step(ids, one_state.reordered(parents))
        all_of_them, state = decoder.step(ids, state.reordered(parents))
        np.testing.assert_allclose(numpy(one), numpy(all_of_them), atol=2e-5)
    assert one_state.visible.shape[1] == 1 + 2 * K


def test_a_source_of_only_padding_gives_what_the_layers_give():
    model = random_model(Transformer)
    source = keras.ops.array(np.array([[5, 6, 3], [0, 0, 0]], "int32"))
    memory, mask = model.encode(source)
    ids = keras.ops.array(np.array([2, 2], "int32"))
    logits, _ = model.fused_decoder().step(ids, model.fused_decoder().read(source, 1))
    expected, _ = model.decode_step(ids[:, None], model.init_cache(memory, 2), mask)
    np.testing.assert_allclose(numpy(logits), numpy(expected)[:, 0], atol=2e-5)


def test_what_stands_at_padding_changes_nothing():
    model = random_model(Transformer)
    ids = keras.ops.array(np.array([2, 2, 2], "int32"))
    state = model.fused_decoder().read(sources()[1:2], 3)
    trimmed = model.fused_decoder().read(sources()[1:2, :4], 3)
    logits = [numpy(model.fused_decoder().step(ids, each)[0]) for each in (state, trimmed)]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_adapters_are_in_the_joined_matrices():
    model = random_model(Transformer)
    model.enable_lora(2)
    for weight in model.trainable_weights:
        weight.assign(weight + 0.2)
    memory, mask = model.encode(sources())
    ids = keras.ops.array(np.full(B, 2, "int32"))
    logits, _ = model.fused_decoder().step(ids, model.fused_decoder().read(sources(), 1))
    expected, _ = model.decode_step(ids[:, None], model.init_cache(memory, B), mask)
    np.testing.assert_allclose(numpy(logits), numpy(expected)[:, 0], atol=2e-5)


def test_a_quantized_model_cannot_be_fused():
    model = random_model(Transformer)
    assert model.can_fuse
    model.quantize("int8")
    assert not model.can_fuse


@pytest.mark.parametrize("model_class", [Transformer, CausalTransformer])
@pytest.mark.parametrize("positions", ["alibi", "relative"])
def test_a_bias_of_positions_cannot_be_fused(positions, model_class):
    assert not random_model(model_class, positions=positions).can_fuse


def test_bfloat16_follows_float32():
    model = random_model(Transformer)
    half = Transformer(model.config, dtype="mixed_bfloat16")
    half.set_weights(model.get_weights())
    ids = keras.ops.array(np.full(B, 2, "int32"))
    logits = [
        numpy(each.fused_decoder().step(ids, each.fused_decoder().read(sources(), 1))[0]) for each in (model, half)
    ]
    assert keras.backend.standardize_dtype(logits[1].dtype) == "float32"
    np.testing.assert_allclose(*logits, atol=0.1)
    assert np.abs(logits[0] - logits[1]).max() > 0  # it is not float32 in disguise


@pytest.mark.parametrize("model_class", [Transformer, CausalTransformer])
def test_keys_may_be_kept_in_another_dtype(model_class):
    model = random_model(model_class)
    half = model_class(model.config, dtype="mixed_bfloat16")
    half.set_weights(model.get_weights())
    ids, prompts = (keras.ops.array(np.full(shape, 2, "int32")) for shape in ((B,), (B, 3)))
    logits = []
    for each, dtype in ((model, None), (half, None), (half, "float32")):
        decoder = each.fused_decoder(memory_dtype=dtype)
        state = decoder.read(sources(), 1) if model_class is Transformer else decoder.start(prompts, 1)
        for _ in range(3):
            values, state = decoder.step(ids, state)
        kept = {keras.backend.standardize_dtype(x.dtype) for x in (*state.older, *state.newer, *state.memory)}
        assert kept == {"bfloat16" if each is half and dtype is None else "float32"}
        logits.append(numpy(values))
    np.testing.assert_allclose(logits[2], logits[0], atol=0.1)
    assert np.abs(logits[2] - logits[1]).max() > 0


@pytest.mark.tensorflow
def test_a_step_in_mixed_precision_casts_only_the_vectors_of_its_tokens():
    import tensorflow as tf

    decoder = Transformer(TransformerConfig(**SIZES), dtype="mixed_bfloat16").fused_decoder()
    state, ids = decoder.read(sources(), K), keras.ops.full((B * K,), 2, "int32")
    graph = tf.function(lambda: decoder.step(ids, state), autograph=False).get_concrete_function().graph
    casts = [tuple(each.outputs[0].shape) for each in graph.get_operations() if each.type == "Cast"]
    assert (B * K, SIZES["hidden_dim"]) in casts
    assert (V, SIZES["hidden_dim"]) not in casts
