"""The published residual branches that the learning benchmark compares, against their formulas."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import keras_attention as ka
from benchmarks.tools.residual_branches import METHODS, residual_branches

N, M, WIDTH = 2, 3, 10
CONFIG = ka.TransformerConfig(29, num_layers=N, num_decoder_layers=M, hidden_dim=WIDTH, intermediate_dim=14,
                              num_heads=2, dropout=0.5, initialization="glorot")  # fmt: skip
INPUTS = {"source": np.arange(4, 25).reshape(3, 7), "target": np.arange(5, 20).reshape(3, 5)}
GAINS = {
    "admin": {"encoder": 1, "decoder": 1, "embedding": 1},
    "deepnorm": {"encoder": 0.87 * (16 * 3) ** (-1 / 16), "decoder": 36 ** (-1 / 4), "embedding": 1},
    "rezero": {"encoder": 1, "decoder": 1, "embedding": 1},
    "t_fixup": {"encoder": 0.67 * 2 ** (-1 / 4), "decoder": 27 ** (-1 / 4), "embedding": 18 ** (-1 / 4)},
}


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + CONFIG.layer_norm_epsilon)


def branch(f, x):
    return ops.convert_to_numpy(f(ops.convert_to_tensor(x)))


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_layer_computes_the_formula(method):
    x = np.random.default_rng(1).normal(size=(2, 7, WIDTH)).astype("float32")
    with residual_branches(method, CONFIG) as start:
        model = ka.Transformer(CONFIG)
        start(model, INPUTS)
        layer = model.get_layer("encoder").layers[1]
        if method == "rezero":
            assert float(layer.feed_forward_norm.scale) == 0
            layer.feed_forward_norm.scale.assign(0.3)
        result = ops.convert_to_numpy(layer(x))
    norms = layer.self_attention_norm, layer.feed_forward_norm
    for f, norm in zip((layer.self_attention, layer.feed_forward), norms, strict=True):
        y = branch(f, x)
        if method == "admin":
            x = normalized(ops.convert_to_numpy(norm.skip_scale) * x + y)
        elif method == "deepnorm":
            x = normalized(0.81 * (N**4 * M) ** (1 / 16) * x + y)
        elif method == "rezero":
            x = x + float(norm.scale) * y
        else:
            x = x + y
    np.testing.assert_allclose(result, x, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_kernels_start_with_the_gains_of_the_method(method):
    with residual_branches(method, CONFIG) as start:
        model = ka.Transformer(CONFIG)
        before = {weight.path: ops.convert_to_numpy(weight) for weight in model.weights}
        start(model, INPUTS)
    for weight in model.weights:
        parts = weight.path.split("/")
        if parts[-1] in ("embeddings", "kernel"):
            scaled = parts[-2] in ("embedding", "value", "attention_output", "intermediate", "output")
            gain = GAINS[method][parts[0]] if scaled else 1
            np.testing.assert_allclose(ops.convert_to_numpy(weight), gain * before[weight.path], rtol=1e-5)


def test_admin_weighs_the_skip_connection_by_the_branches_before():
    with residual_branches("admin", CONFIG) as start:
        model = ka.Transformer(CONFIG)
        start(model, INPUTS)
        x = model.get_layer("positions")(model.get_layer("embedding")(INPUTS["source"]))
        squares = [1.0]
        for layer in model.get_layer("encoder").layers:
            norms = layer.self_attention_norm, layer.feed_forward_norm
            for f, norm in zip((layer.self_attention, layer.feed_forward), norms, strict=True):
                np.testing.assert_allclose(ops.convert_to_numpy(norm.skip_scale), squares[-1] ** 0.5, rtol=1e-5)
                y = f(x)
                squares.append(squares[-1] + float(ops.var(y)))
                x = norm(norm.skip_scale * x + y)
    first = model.get_layer("decoder").layers[0]
    np.testing.assert_array_equal(ops.convert_to_numpy(first.self_attention_norm.skip_scale), 1)
    assert float(first.cross_attention_norm.skip_scale[0]) > 1


def test_layers_made_later_are_unchanged():
    with residual_branches("t_fixup", CONFIG):
        pass
    layer = ka.EncoderLayer(7, num_heads=2)
    layer.build((None, None, 6))
    assert isinstance(layer.self_attention_norm, keras.layers.LayerNormalization)


def test_a_pre_norm_model_is_refused():
    config = dataclasses.replace(CONFIG, normalize_first=True)
    with pytest.raises(ValueError, match="use normalize_first=False"), residual_branches("deepnorm", config):
        pass


def test_an_unknown_method_is_named():
    with (
        pytest.raises(ValueError, match=r"one of admin, deepnorm, rezero, t_fixup\. Received: method='fixup'"),
        residual_branches("fixup", CONFIG),
    ):
        pass
