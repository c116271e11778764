"""Multi-head attention beyond the contract: Keras' weights, masks, caches, initializers, mistakes."""

import itertools

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from backends import BACKEND, compiled, gradients, numpy, tensors
from tensors import (
    MEMORY_WIDTH,
    B,
    D,
    F,
    H,
    M,
    S,
    T,
    assert_close,
    draw,
    influence,
    largest_difference,
    padding,
    randomize,
)

import keras_attention as ka

SEEDED = keras.initializers.GlorotUniform(seed=5)


def attention(**arguments):
    layer = ka.MultiHeadAttention(H, D, **arguments)
    layer(draw(1, T, M), draw(1, S, MEMORY_WIDTH))
    randomize(layer)
    return layer


def self_attention(**arguments):
    layer = ka.MultiHeadSelfAttention(H, **arguments)
    layer(draw(1, T, M))
    randomize(layer)
    return layer


def empty_cache(batch=B):
    return ka.KeyValueCache(np.zeros((batch, H, 0, D), "float32"), np.zeros((batch, H, 0, D), "float32"))


def kernels(layer):
    return [weight for weight in layer.weights if weight.path.endswith("kernel")]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"value_dim": 19, "output_shape": 23}], ids=["plain", "sizes"])
def test_weights_move_to_and_from_keras(use_bias, sizes):
    ours = ka.MultiHeadAttention(H, D, use_bias=use_bias, **sizes)
    theirs = keras.layers.MultiHeadAttention(H, D, use_bias=use_bias, **sizes)
    query, value, key = draw(B, T, M), draw(B, S, MEMORY_WIDTH), draw(B, S, 31)
    for layer in (ours, theirs):
        layer(query, value, key, return_attention_scores=True)  # without, Keras' layer fails on JAX if widths differ
    names = [weight.path.split("/", 1)[1] for weight in theirs.weights]
    assert [weight.path.split("/", 1)[1] for weight in ours.weights] == names
    for giver, taker in ((theirs, ours), (ours, theirs)):
        randomize(giver)
        taker.set_weights(giver.get_weights())
        pairs = np.random.rand(B, T, S) < 0.7
        pairs[:, :, 0] = True  # Keras has another rule for a query that may see nothing
        for options in ({}, {"attention_mask": pairs}, {"use_causal_mask": True}, {"value_mask": padding(S)}):
            options["return_attention_scores"] = True
            assert_close(ours(query, value, key, **options), theirs(query, value, key, **options))


@pytest.mark.parametrize("use_bias", [True, False])
def test_sizes_and_a_key_of_its_own_follow_the_formulas(use_bias):
    layer = ka.MultiHeadAttention(H, D, value_dim=19, output_shape=23, use_bias=use_bias)
    inputs = [draw(B, T, M), draw(B, S, MEMORY_WIDTH), draw(B, S, 31)]
    layer(*inputs)
    randomize(layer)
    heads = np.random.rand(B, H, T, S) < 0.6
    outputs = layer(*inputs, attention_mask=heads, return_attention_scores=True)
    expected = oracle.multi_head_attention(oracle.weights_of(layer), *inputs, mask=heads)
    assert_close(outputs, expected, atol=1e-4)


def test_every_mask_counts():
    layer, query, value = attention(), draw(B, T, M), draw(B, S, MEMORY_WIDTH)
    masks = {
        "query_mask": np.random.rand(B, T) < 0.6,
        "value_mask": np.random.rand(B, S) < 0.6,
        "key_mask": np.random.rand(B, S) < 0.8,
        "attention_mask": np.random.rand(B, T, S) < 0.6,
    }
    causal = np.tril(np.ones((T, S), bool))
    axes = {"query_mask": np.s_[:, :, None], "value_mask": np.s_[:, None], "key_mask": np.s_[:, None]}
    pairs = {name: mask[axes.get(name, np.s_[:])] for name, mask in masks.items()}
    for count in range(len(masks) + 1):
        for names in itertools.combinations(masks, count):
            allowed = causal & np.ones((B, 1, 1), bool)
            for name in names:
                allowed = allowed & pairs[name]
            outputs = layer(
                query,
                value,
                **{name: masks[name] for name in names},
                use_causal_mask=True,
                return_attention_scores=True,
            )
            assert np.all((numpy(outputs[1]) > 0) == allowed[:, None]), names
    assert_close(outputs, oracle.multi_head_attention(oracle.weights_of(layer), query, value, mask=allowed[:, None]))


@pytest.mark.parametrize("form", [np.array, keras.ops.array, np.ndarray.tolist], ids=["numpy", "tensor", "list"])
@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_masks_come_in_any_form(form, dtype):
    layer, x = self_attention(), draw(B, T, M)
    expected = layer(x, padding_mask=keras.ops.array(padding(T)))
    assert largest_difference(expected, layer(x)) > 1e-3
    assert_close(layer(x, padding_mask=form(padding(T).astype(dtype))), expected, atol=0)
    pairs = np.tril(np.ones((B, T, T), dtype))
    assert_close(layer(x, attention_mask=form(pairs)), layer(x, use_causal_mask=True), atol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("masks", [("value_mask",), ("key_mask",), ("value_mask", "key_mask")])
def test_what_padding_holds_never_leaks(bad, masks):
    layer, query, value, key = attention(), draw(B, T, M), draw(B, S, MEMORY_WIDTH), draw(B, S, MEMORY_WIDTH)
    masks = {name: padding(S) for name in masks}
    clean = layer(query, value, key, **masks)
    value[~padding(S)], key[~padding(S)] = bad, bad
    assert_close(layer(query, value, key, **masks), clean, atol=0, rtol=0)
    found = gradients(
        lambda *inputs: keras.ops.sum(layer(*inputs, **masks)), [query, value, key], layer.trainable_variables
    )
    for gradient in keras.tree.flatten(found):
        assert np.all(np.isfinite(gradient))


def test_each_token_sees_itself_and_what_is_before_it():
    layer = self_attention()
    causal = influence(lambda x: layer(x, use_causal_mask=True), draw(T, M))
    np.testing.assert_array_equal(causal, np.tril(np.ones((T, T), bool)))
    assert np.all(influence(layer, draw(T, M)))
    # After a cache of two positions the first query is at position two and still sees only itself.
    cache = layer.project(draw(1, 2, M))
    later = influence(lambda x: layer(x, use_causal_mask=True, cache=cache)[0], draw(T, M))
    np.testing.assert_array_equal(later, np.tril(np.ones((T, T), bool)))


@pytest.mark.parametrize("steps", [[1] * T, [2, 3], [3, 1, 1]], ids=str)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "compiled"])
def test_cached_steps_equal_the_full_pass(steps, graph):
    layer, x = self_attention(), draw(B, T, M)
    mask = np.random.rand(B, T) < 0.7
    mask[:, 0] = True
    full, full_weights = layer(x, padding_mask=mask, use_causal_mask=True, return_attention_scores=True)

    def step(x, mask, cache):
        return layer(x, padding_mask=mask, use_causal_mask=True, return_attention_scores=True, cache=cache)

    if graph:
        cache_signature = ka.KeyValueCache(*[keras.KerasTensor((None, H, None, D))] * 2)
        signature = keras.KerasTensor((None, None, M)), keras.KerasTensor((None, None), "bool"), cache_signature
        step = compiled(step, signature)
    cache, start = empty_cache(), 0
    for length in steps:
        end = start + length
        output, weights, cache = step(x[:, start:end], mask[:, :end], cache)
        assert cache.length == end
        assert_close(output, full[:, start:end])
        assert_close(weights, full_weights[:, :, start:end, :end])
        start = end


def test_attending_to_a_cache_alone():
    layer, query, value = attention(), draw(B, T, M), draw(B, S, MEMORY_WIDTH)
    cache = layer.project(value)
    output, same = layer(query, cache=cache, value_mask=padding(S))
    assert_close(output, layer(query, value, value_mask=padding(S)))
    assert_close(same, cache, atol=0)


def test_appending_leaves_a_cache_as_it_was():
    first, later = (ka.KeyValueCache(draw(B, H, n, D), draw(B, H, n, 19)) for n in (2, 3))
    both = first.update(*later)
    assert (int(first.length), int(later.length), int(both.length)) == (2, 3, 5)
    np.testing.assert_array_equal(numpy(both.key), np.concatenate([first.key, later.key], axis=2))
    np.testing.assert_array_equal(numpy(both.value), np.concatenate([first.value, later.value], axis=2))


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (ka.MultiHeadAttention(H, D, kernel_initializer=SEEDED), [(1, T, M), (1, S, M)]),
        (ka.FeedForward(M, kernel_initializer=SEEDED), [(1, T, M)]),
        (ka.Encoder(2, M, H, kernel_initializer=SEEDED), [(1, T, M)]),
        (ka.Decoder(2, M, H, kernel_initializer=SEEDED), [(1, T, M), (1, S, M)]),
    ],
    ids=["attention", "feed_forward", "encoder", "decoder"],
)
def test_a_seed_gives_each_projection_its_own_weights_and_the_same_next_time(layer, shapes):
    again = type(layer).from_config(layer.get_config())
    for each in (layer, again):
        each(*(draw(*shape) for shape in shapes))
    matrices = [np.sort(np.ravel(numpy(kernel))) for kernel in kernels(layer)]
    for one, other in itertools.combinations(matrices, 2):
        assert not np.allclose(one, other)
    assert_close(again.get_weights(), layer.get_weights(), atol=0, rtol=0)


@pytest.mark.parametrize("initializer", ["glorot_uniform", keras.initializers.HeNormal(keras.random.SeedGenerator(7))])
def test_without_a_fixed_seed_all_weights_differ(initializer):
    layer = ka.Encoder(2, M, H, kernel_initializer=initializer)
    layer(draw(1, T, M))
    for one, other in itertools.combinations(kernels(layer), 2):
        assert not np.allclose(np.sort(np.ravel(numpy(one))), np.sort(np.ravel(numpy(other))))


def test_an_initializer_may_be_a_function():
    layer = ka.EncoderLayer(F, H, kernel_initializer=lambda shape, dtype=None: keras.ops.full(shape, 0.5, dtype))
    layer(draw(1, T, M))
    assert all(np.all(numpy(kernel) == 0.5) for kernel in kernels(layer))


def test_regularizers_and_constraints_reach_every_projection():
    layer = ka.MultiHeadAttention(
        H, D, kernel_regularizer="l2", bias_regularizer="l1", kernel_constraint="non_neg", bias_constraint="non_neg"
    )
    layer(draw(1, T, M), draw(1, S, M))
    randomize(layer)
    weights = [numpy(weight).astype("float64") for weight in layer.weights]
    expected = sum(0.01 * (np.square(w).sum() if w.ndim == 3 else np.abs(w).sum()) for w in weights)
    # The bias of the output is the one weight of rank 1, those of the other three have rank 2: all are L1.
    np.testing.assert_allclose(sum(map(float, numpy(layer.losses))), expected, rtol=1e-5)
    assert all(weight.constraint is not None for weight in layer.weights)


def test_seeded_dropout_repeats():
    x = draw(B, T, M)
    first, second = (self_attention(dropout=0.5, seed=seed) for seed in (3, 3))
    second.set_weights(first.get_weights())
    assert_close(first(x, training=True), second(x, training=True), atol=0)
    assert largest_difference(first(x, training=True), second(x)) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, r"`num_heads` must be a positive integer. Received: num_heads=0"),
        ({"num_heads": 2.0}, r"Received: num_heads=2.0"),
        ({"num_heads": True}, r"Received: num_heads=True"),
        ({"key_dim": None}, r"`key_dim` must be a positive integer. Received: key_dim=None"),
        ({"key_dim": -1}, r"Received: key_dim=-1"),
        ({"value_dim": 0}, r"`value_dim` must be a positive integer. Received: value_dim=0"),
        ({"output_shape": "M"}, r"`output_shape` must be a positive integer. Received: output_shape='M'"),
        ({"dropout": 1.0}, r"`dropout` must be a number, at least 0 and below 1. Received: dropout=1.0"),
        ({"dropout": "0.1"}, r"Received: dropout='0.1'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ka.MultiHeadAttention(**{"num_heads": H, "key_dim": D, **arguments})


def test_heads_must_divide_the_width():
    with pytest.raises(
        ValueError, match=r"must divide the width of x; or give `key_dim`. Received: num_heads=3, width=32"
    ):
        ka.MultiHeadSelfAttention(3)(draw(B, T, 32))
    assert tuple(ka.MultiHeadSelfAttention(3, key_dim=7)(draw(B, T, 32)).shape) == (B, T, 32)
    with pytest.raises(ValueError, match=r"`key_dim` must be a positive integer. Received: key_dim=0"):
        ka.MultiHeadSelfAttention(3, key_dim=0)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ([(B, T, M)], {}, ValueError, r"Give `value`, `cache` or both"),
        ([(T, M), (S, M)], {}, ValueError, r"`query` must have .*shape \(batch, length, width\).*shape=\(5, 33\)"),
        ([(B, T, M), (S, M)], {}, ValueError, r"`value` must have .*shape .* value.shape=\(7, 33\)"),
        ([(B, T, M), (B, S, M), (S, M)], {}, ValueError, r"`key` must have .*shape .* key.shape=\(7, 33\)"),
        ([(B, T, M), (B, S, M)], {"attention_mask": np.ones((B, S), bool)}, ValueError, r"shape=\(2, 7\)"),
        (
            [(B, T, M), (B, S, M)],
            {"attention_mask": np.full((B, T, S), -1.0)},
            ValueError,
            r"`attention_mask` holds booleans",
        ),
        ([(B, T, M), (B, S, M)], {"value_mask": np.full((B, S), -1.0)}, ValueError, r"`value_mask` holds booleans"),
        ([(B, T, M), (B, S, M)], {"key_mask": np.full((B, S), -1.0)}, ValueError, r"`key_mask` holds booleans"),
        ([(B, T, M), (B, S, M)], {"query_mask": np.full((B, T), -1.0)}, ValueError, r"`query_mask` holds booleans"),
        ([(B, T, M), (B, S, M)], {"key_mask": np.ones((B, T, S), bool)}, ValueError, r"key_mask"),
    ],
)
def test_mistakes_get_a_message(inputs, options, error, message):
    with pytest.raises(error, match=message):
        ka.MultiHeadAttention(H, D)(*(draw(*shape) for shape in inputs), **options)


def test_an_implicit_mask_is_not_enough_beside_a_cache():
    layer = self_attention()
    x = keras.layers.Masking()(draw(B, T, M))
    with pytest.raises(ValueError, match=r"new positions only.*give the padding mask .*x.shape=\(2, 5, 33\)"):
        layer(x, cache=layer.project(draw(B, 2, M)))
    mask = np.ones((B, 2 + T), bool)
    output, _ = layer(x, padding_mask=mask, cache=layer.project(draw(B, 2, M)))
    assert tuple(output.shape) == (B, T, M)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no flash kernel")
def test_flash_attention_gives_the_same_and_steps_aside_for_scores(monkeypatch):
    """With Keras' plain implementation in the kernel's place, which needs an accelerator."""
    plain, calls = keras.ops.dot_product_attention, []

    def kernel(*args, flash_attention, **kwargs):
        calls.append(flash_attention)
        return plain(*args, flash_attention=False, **kwargs)

    monkeypatch.setattr(keras.ops, "dot_product_attention", kernel)
    layer, flash = ka.MultiHeadAttention(H, D), ka.MultiHeadAttention(H, D, flash_attention=True)
    query, value = draw(B, T, M), draw(B, S, M)
    expected = layer(query, value, value_mask=padding(S))
    flash.build(query.shape, value.shape)
    flash.set_weights(layer.get_weights())
    assert calls == []
    assert_close(flash(query, value, value_mask=padding(S)), expected)
    assert calls == [True]
    output, weights = flash(query, value, value_mask=padding(S), return_attention_scores=True)
    assert calls == [True]
    assert weights.shape == (B, H, T, S)
    assert_close(output, expected)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no flash kernel")
def test_a_gpu_takes_its_flash_kernel_where_nothing_is_lost(monkeypatch):
    """With Keras' plain implementation in the kernel's place, and the CPU in the GPU's."""
    plain, calls = keras.ops.dot_product_attention, []

    def kernel(*args, flash_attention, **kwargs):
        calls.append(flash_attention)
        return plain(*args, flash_attention=False, **kwargs)

    layers = {
        "plain": ka.MultiHeadAttention(H, 8, dtype="bfloat16"),
        "rotary": ka.MultiHeadAttention(H, 8, position=ka.RotaryPosition(), dtype="bfloat16"),
        "never": ka.MultiHeadAttention(H, 8, flash_attention=False, dtype="bfloat16"),
        "float32": ka.MultiHeadAttention(H, 8),
        "bias": ka.MultiHeadAttention(H, 8, position=ka.AlibiBias(), dtype="bfloat16"),
        "dropout": ka.MultiHeadAttention(H, 8, dropout=0.5, dtype="bfloat16"),
    }
    query, value, mask = draw(B, 4, M), draw(B, 6, M), np.arange(6) < np.arange(B)[:, None] + 4
    expected = {name: layer(query, value, value_mask=mask) for name, layer in layers.items()}
    monkeypatch.setattr(keras.ops, "dot_product_attention", kernel)
    monkeypatch.setattr(ka.ops.attention, "is_on_gpu", lambda x: True)
    taken = {}
    for name, layer in layers.items():
        output = layer(query, value, value_mask=mask)
        taken[name], calls[:] = list(calls), []
        assert_close(keras.ops.cast(output, "float32"), keras.ops.cast(expected[name], "float32"), atol=0.02)
    assert [name for name, found in taken.items() if found] == ["plain", "rotary", "dropout"]
    assert taken["plain"] == [None]  # no error where Keras has no such kernel after all
    layers["dropout"](query, value, training=True)
    layers["plain"](query, value, attention_bias=np.zeros((4, 6), "float32"))
    layers["plain"](query, value, return_attention_scores=True)
    assert calls == []


MASKED_CALLS = {
    "attention": (
        lambda: ka.MultiHeadAttention(H, D),
        [(T, M), (S, M)],
        {"query_mask": (T,), "value_mask": (S,), "key_mask": (S,), "attention_mask": (T, S)},
    ),
    "additive": (
        lambda: ka.AdditiveAttention(F),
        [(T, M), (S, M)],
        {"query_mask": (T,), "value_mask": (S,), "key_mask": (S,), "attention_mask": (T, S)},
    ),
    "axes": (
        lambda: ka.MultiHeadAttention(H, D, attention_axes=1),
        [(T, 3, M), (S, 3, M)],
        {"query_mask": (T, 3), "value_mask": (S, 3), "attention_mask": (3, H, T, S)},
    ),
    "encoder": (lambda: ka.Encoder(2, F, H), [(T, M)], {"padding_mask": (T,), "attention_mask": (T, T)}),
    "decoder": (
        lambda: ka.DecoderLayer(F, H),
        [(T, M), (S, M)],
        {
            "decoder_padding_mask": (T,),
            "encoder_padding_mask": (S,),
            "decoder_attention_mask": (T, T),
            "encoder_attention_mask": (T, S),
        },
    ),
}


@pytest.mark.parametrize("case", MASKED_CALLS)
def test_masks_of_zeros_and_ones_do_what_boolean_ones_do(case):
    make, shapes, masks = MASKED_CALLS[case]
    layer, inputs = make(), [draw(B, *shape) for shape in shapes]
    masks = {name: np.random.random((B, *shape)) < 0.6 for name, shape in masks.items()}
    expected = layer(*inputs, **masks)
    wide = () if BACKEND == "jax" else ("float64", "int64")
    for dtype in ("float32", "float16", "bfloat16", "int32", "uint8", *wide):
        numbers = {name: keras.ops.cast(mask, dtype) for name, mask in masks.items()}
        assert_close(layer(*inputs, **numbers), expected)
    numbers = {name: mask.astype("float32") for name, mask in masks.items()}
    run = compiled(lambda inputs, masks: layer(*inputs, **masks))
    assert_close(run(tensors(inputs), tensors(numbers)), expected)


@pytest.mark.parametrize("case", MASKED_CALLS)
def test_other_numbers_in_a_mask_never_give_a_silently_wrong_output(case):
    make, shapes, masks = MASKED_CALLS[case]
    layer, inputs = make(), [draw(B, *shape) for shape in shapes]
    layer(*inputs)
    run = compiled(lambda inputs, masks: layer(*inputs, **masks))
    for name, shape in masks.items():
        wrong = {name: np.where(np.random.random((B, *shape)) < 0.6, 0, -np.inf).astype("float32")}
        with pytest.raises(ValueError, match=r"such as 0 and -inf, go to `attention_bias`"):
            layer(*inputs, **wrong)
        if BACKEND == "jax":  # a compiled program cannot raise
            assert np.isnan(numpy(run(inputs, wrong))).all()
        elif BACKEND == "tensorflow":
            with pytest.raises(Exception, match=r"such as 0 and -inf, go to `attention_bias`"):
                run(tensors(inputs), tensors(wrong))


@pytest.mark.tensorflow
def test_other_numbers_in_a_mask_give_nan_under_xla():
    layer, x = ka.MultiHeadAttention(H, D), draw(B, T, M)
    run = tf.function(lambda x, mask: layer(x, x, attention_mask=mask, return_attention_scores=True), jit_compile=True)
    ones = np.tri(T, dtype="float32")[None].repeat(B, axis=0)
    assert_close(run(x, ones), layer(x, x, use_causal_mask=True, return_attention_scores=True))
    for each in numpy(run(x, np.where(ones, 0.0, -1e9).astype("float32"))):
        assert np.isnan(each).all()


def test_a_model_takes_a_float_mask_as_an_input():
    query, value, mask = keras.Input((T, M)), keras.Input((S, M)), keras.Input((T, S))
    layer = ka.MultiHeadAttention(H, D)
    model = keras.Model([query, value, mask], layer(query, value, attention_mask=mask))
    x, memory, pairs = draw(B, T, M), draw(B, S, M), np.random.random((B, T, S)) < 0.6
    found = model.predict([x, memory, pairs.astype("float32")], verbose=0)
    assert_close(found, numpy(layer(x, memory, attention_mask=pairs)))


def test_a_mask_of_pairs_without_a_batch_is_the_same_for_all():
    x, memory, pairs = draw(B, T, M), draw(B, S, M), np.random.random((T, S)) < 0.6
    for layer in (ka.MultiHeadAttention(H, D), ka.AdditiveAttention(F)):
        expected = layer(x, memory, attention_mask=pairs[None])
        assert_close(layer(x, memory, attention_mask=pairs), expected)
        query, value = keras.Input((T, M)), keras.Input((S, M))
        model = keras.Model([query, value], layer(query, value, attention_mask=pairs))
        assert_close(model.predict([x, memory], verbose=0), numpy(expected))


def test_a_float_implicit_mask_is_taken():
    class Masks(keras.layers.Layer):
        def call(self, x):
            return keras.ops.copy(x)

        def compute_mask(self, x, previous_mask):
            return keras.ops.convert_to_tensor(padding(T).astype("float32"))

    layer, x = ka.MultiHeadSelfAttention(H), draw(B, T, M)
    assert_close(layer(Masks()(x)), layer(x, padding_mask=padding(T)))


def test_the_former_name_of_rotate():
    assert ka.RotaryPosition.turn is ka.RotaryPosition.rotate

    class Former(ka.RotaryPosition):
        def turn(self, x, positions):
            return -x

    with pytest.raises(TypeError, match=r"`position` must define `rotate`, .* rename the method. Received: position=<"):
        ka.MultiHeadSelfAttention(2, position=Former())
