"""Layers that are computed again in the backward pass: the same results, dropout included, from less memory."""

import keras
import numpy as np
import pytest
from backends import BACKEND, HAS_XLA, compiled, gradients, numpy, weighted_sum
from tensors import MEMORY_WIDTH, B, F, H, M, S, T, V, assert_close, draw, padding, randomize

import keras_attention as ka
from keras_attention.layers.remat import rematerialize
from keras_attention.training import MaskedCrossEntropy

N = 2
DROPOUTS = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}
STACKS = {"encoder": ka.Encoder, "decoder": ka.Decoder, "language_model": ka.Decoder}
MODEL = {"num_layers": 1, "hidden_dim": 33, "intermediate_dim": 13, "num_heads": 3, **DROPOUTS}


def inputs_of(kind):
    return [draw(B, T, M), draw(B, S, MEMORY_WIDTH)][: 1 + (kind == "decoder")]


def masks_of(kind):
    segments = np.array([[1, 1, 2, 2, 0], [1, 1, 1, 1, 2]])
    masks = {
        "encoder": {"padding_mask": padding(T), "segment_ids": segments},
        "decoder": {"decoder_padding_mask": padding(T), "encoder_padding_mask": padding(S)},
        "language_model": {"decoder_padding_mask": padding(T), "decoder_segment_ids": segments},
    }
    return masks[kind]


def twins(kind, num_layers=N, **arguments):
    """A stack that keeps its activations and one that does not, with the same weights and seeds."""
    stacks = [STACKS[kind](num_layers, F, H, remat=remat, **{**DROPOUTS, **arguments}) for remat in (False, True)]
    for stack in stacks:
        stack(*inputs_of(kind))
    randomize(stacks[0])
    same_start(*stacks)
    return stacks


def same_start(one, other):
    for mine, theirs in zip(one.variables, other.variables, strict=True):
        theirs.assign(mine)


def loss_and_gradients(layer, inputs, *, compile_it=False, **arguments):
    direction = np.random.default_rng(7).normal(size=inputs[0].shape).astype("float32")

    def total(*inputs):
        return weighted_sum(layer(*inputs, **arguments), direction)

    keras.utils.set_random_seed(5)  # torch takes the dropout of layers without a seed from its own generator
    return gradients(compiled(total) if compile_it else total, inputs, layer.trainable_variables)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masks"])
@pytest.mark.parametrize("kind", STACKS)
def test_gradients_are_the_same_with_the_same_dropout(kind, masked):
    kept, again = twins(kind)
    inputs, masks = inputs_of(kind), masks_of(kind) if masked else {}
    expected = loss_and_gradients(kept, inputs, training=True, **masks)
    assert_close(loss_and_gradients(again, inputs, training=True, **masks), expected, atol=1e-4, rtol=1e-4)
    assert all(np.abs(each).max() > 0 for each in expected[0])


@pytest.mark.tensorflow
# Compiling takes long: each layer once, and one of them stacked.
@pytest.mark.parametrize(("kind", "num_layers"), [("encoder", 2), ("decoder", 1)])
def test_gradients_are_the_same_where_xla_compiles(kind, num_layers):
    import tensorflow as tf

    kept, again = twins(kind, num_layers)
    inputs = [tf.constant(x) for x in inputs_of(kind)]

    def run(layer):
        @tf.function(jit_compile=True)
        def differentiate(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                total = tf.reduce_sum(layer(*inputs, training=True) ** 2)
            return tape.gradient(total, [list(inputs), [weight.value for weight in layer.trainable_variables]])

        return differentiate(*inputs)

    assert_close(run(again), run(kept), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", STACKS)
def test_outputs_and_seeds_go_on_in_step(kind):
    kept, again = twins(kind)
    inputs, outputs = inputs_of(kind), []
    for stack in (kept, again):
        keras.utils.set_random_seed(5)
        outputs.append([numpy(stack(*inputs, training=True)) for _ in range(3)])
    assert_close(*outputs, atol=1e-5)
    assert np.abs(outputs[0][0] - outputs[0][1]).max() > 1e-2, "each call drops others"
    for mine, theirs in zip(kept.variables, again.variables, strict=True):
        np.testing.assert_array_equal(numpy(mine), numpy(theirs))


def test_attention_scores_come_out_too():
    for kind in ("encoder", "decoder"):
        kept, again = twins(kind)
        inputs, outputs = inputs_of(kind), []
        for stack in (kept, again):
            keras.utils.set_random_seed(5)
            outputs.append(stack(*inputs, training=True, return_attention_scores=True))
        assert_close(*outputs, atol=1e-5)


class Counting(keras.layers.Layer):
    """y = w x, counting how often it is computed."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, x, training=None):
        self.calls = getattr(self, "calls", 0) + 1
        return keras.ops.sin(self.factor * x)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX runs its program again, not the function")
def test_the_layer_runs_again_in_the_backward_pass():
    layer = Counting()
    layer.build(())
    by_inputs, by_weights = gradients(lambda x: keras.ops.sum(rematerialize(layer, x)[0]), [draw(T)], [layer.factor])
    assert layer.calls == 2
    assert by_inputs[0].shape == (T,)
    assert by_weights[0].shape == ()


@pytest.mark.skipif(BACKEND != "jax", reason="looks at the program of JAX")
def test_the_program_computes_each_layer_again():
    import jax

    kept, again = twins("encoder")
    for stack, count in ((kept, 0), (again, N)):
        for training in (False, True):
            # Seeds must not keep values of the program that is only looked at.
            def outputs(x, stack=stack, training=training):
                with keras.StatelessScope():
                    return stack(x, training=training)

            program = str(jax.make_jaxpr(outputs)(*inputs_of("encoder")))
            assert program.count("prevent_cse=True") == count * training


@pytest.mark.skipif(BACKEND == "jax", reason="JAX runs its program again, not the function")
@pytest.mark.parametrize("remat", [False, True])
def test_only_training_computes_again(remat, monkeypatch):
    stack = ka.Encoder(N, F, H, remat=remat)
    stack(draw(B, T, M))
    calls = []
    for layer in stack.layers:

        def counted(*given, call=layer.feed_forward.call, **more):
            calls.append(call)
            return call(*given, **more)

        monkeypatch.setattr(layer.feed_forward, "call", counted)
    for training, expected in ((False, N), (True, 2 * N if remat else N)):
        calls.clear()
        loss_and_gradients(stack, [draw(B, T, M)], training=training)
        assert len(calls) == expected


def test_gradients_through_caches_are_kept():
    kept, again = twins("decoder", **dict.fromkeys(DROPOUTS, 0.0))
    x, memory, direction = draw(B, T, M), draw(B, S, MEMORY_WIDTH), draw(B, T, M)

    def total(stack):
        def function(x, memory):
            caches = tuple(layer.project_memory(memory) for layer in stack.layers)
            return weighted_sum(stack(x, cross_attention_caches=caches, training=True), direction)

        return gradients(function, [x, memory], stack.trainable_variables)

    assert_close(total(again), total(kept), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "adapted",
    [False, True],
)
def test_frozen_weights_and_adapters(adapted):
    kept, again = twins("encoder", **dict.fromkeys(DROPOUTS, 0.0))
    for stack in (kept, again):
        if adapted:
            stack.enable_lora(2, pattern="query|value")
        stack.layers[0].trainable = False
    for weight in kept.trainable_variables:
        weight.assign(np.random.normal(size=weight.shape))
    same_start(kept, again)
    inputs = inputs_of("encoder")
    expected = loss_and_gradients(kept, inputs, training=True)
    assert len(expected[1]) == (4 if adapted else 16) * (N - 1)
    assert_close(loss_and_gradients(again, inputs, training=True), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "jit_compile"),
    [
        ("float32", False),
        ("mixed_bfloat16", False),
        pytest.param(
            "float32",
            True,
            marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_XLA, reason="this backend compiles nothing")],
        ),
    ],
)
def test_fit_learns_the_same(dtype, jit_compile):
    ids = np.random.randint(1, V, (2 * B, T))
    losses, weights = [], []
    for remat in (False, True):
        keras.utils.set_random_seed(11)
        model = ka.Transformer(ka.TransformerConfig(V, remat=remat, **MODEL), dtype=dtype)
        model.compile(keras.optimizers.SGD(0.1), loss=MaskedCrossEntropy(), jit_compile=jit_compile)
        history = model.fit({"source": ids, "target": ids}, ids, batch_size=B, epochs=3, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
        weights.append(model.get_weights())
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    np.testing.assert_allclose(*losses, rtol=tolerance)
    assert_close(*weights, atol=tolerance, rtol=tolerance)
    assert losses[0][-1] < losses[0][0]


def test_is_an_option_of_the_config_and_no_part_of_the_weights(tmp_path):
    plain, config = (ka.TransformerConfig(V, remat=remat, **MODEL) for remat in (False, True))
    model = ka.Transformer(config)
    assert model.get_layer("encoder").remat is model.get_layer("decoder").remat is True
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.config == config
    other = ka.Transformer(plain)
    assert [weight.path for weight in other.weights] == [weight.path for weight in model.weights]
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    ids = np.random.randint(1, V, (B, T))
    inputs = {"source": ids, "target": ids}
    assert_close(other(inputs), model(inputs), atol=0, rtol=0)


def test_symbolic_equals_eager_in_training():
    for kind in STACKS:
        stack = twins(kind)[1]
        inputs = inputs_of(kind)
        outputs = stack(*(keras.KerasTensor(x.shape) for x in inputs), training=True)
        assert outputs.shape == tuple(stack(*inputs, training=True).shape)
