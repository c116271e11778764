"""Where the kernels of blocks start: small residual branches, on every kind of layer, reproducible by a seed."""

import keras
import numpy as np
import pytest

import keras_attention as ka
from keras_attention.layers import ResidualBranchInitializer

M, F, H = 30, 77, 5


def built(layer_class, **arguments):
    layer = layer_class(intermediate_dim=F, num_heads=H, **arguments)
    layer.build(*[(None, None, M)] * (2 if layer_class in (ka.DecoderLayer, ka.Decoder) else 1))
    return layer


def bounds(layer):
    """The largest value of each kernel over Glorot's bound, by the end of the kernel's path."""
    ratios = {}
    for weight in layer.weights:
        if weight.name == "kernel":
            rows = M if weight.shape[0] in (M, H) else F
            columns = int(np.prod(weight.shape)) // rows
            values = np.abs(keras.ops.convert_to_numpy(weight))
            ratios["/".join(weight.path.split("/")[-3:-1])] = values.max() / np.sqrt(6 / (rows + columns))
    return ratios


@pytest.mark.parametrize("layer_class", [ka.EncoderLayer, ka.DecoderLayer])
@pytest.mark.parametrize(
    ("arguments", "gain"), [({}, 0.2), ({"kernel_initializer": ResidualBranchInitializer(0.05)}, 0.05)]
)
def test_the_last_kernel_of_each_sub_layer_starts_small(layer_class, arguments, gain):
    ratios = bounds(built(layer_class, **arguments))
    assert len(ratios) == 2 + 4 * (1 if layer_class is ka.EncoderLayer else 2)
    for path, ratio in ratios.items():
        name = path.split("/")[1]
        expected = gain if name in ("attention_output", "output") else 1
        assert 0.97 * expected < ratio <= 1.0001 * expected, path  # the largest of hundreds of uniform values


@pytest.mark.parametrize("layer_class", [ka.EncoderLayer, ka.DecoderLayer])
def test_glorot_starts_every_kernel_alike(layer_class):
    for path, ratio in bounds(built(layer_class, kernel_initializer="glorot_uniform")).items():
        assert 0.97 < ratio <= 1.0001, path


def test_layers_by_themselves_start_as_those_of_keras():
    for layer in (ka.MultiHeadAttention(H, M // H), ka.FeedForward(F)):
        assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)


def test_a_block_starts_close_to_its_normalized_input():
    x = keras.random.normal((2, 11, M), seed=3)
    expected = keras.layers.LayerNormalization(epsilon=1e-5)(x)
    small, large = (
        np.mean(np.square(keras.ops.convert_to_numpy(built(ka.EncoderLayer, kernel_initializer=each)(x) - expected)))
        for each in (ResidualBranchInitializer(0.01, seed=5), keras.initializers.GlorotUniform(seed=5))
    )
    assert small < 1e-3 < 0.1 < large


def test_a_seed_gives_the_same_values_and_others_to_each_kernel():
    first, again = (built(ka.Encoder, num_layers=2, kernel_initializer=ResidualBranchInitializer(seed=7)) for _ in "ab")
    kernels = [keras.ops.convert_to_numpy(each) for each in first.weights if each.name == "kernel"]
    for kernel, same in zip(kernels, [each for each in again.weights if each.name == "kernel"], strict=True):
        np.testing.assert_array_equal(kernel, keras.ops.convert_to_numpy(same))
    corners = [float(kernel.ravel()[0]) for kernel in kernels]
    assert len(set(corners)) == len(corners) == 12


def test_it_survives_a_config_and_a_file(tmp_path):
    layer = built(ka.EncoderLayer, kernel_initializer=ResidualBranchInitializer(gain=0.3, seed=11))
    copy = ka.EncoderLayer.from_config(layer.get_config())
    assert copy.kernel_initializer.get_config() == {"gain": 0.3, "seed": 11}
    inputs = keras.Input((None, M))
    model = keras.Model(inputs, ka.EncoderLayer(F, H)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.ones((2, 3, M), "float32")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize("model_class", [ka.Transformer, ka.CausalTransformer])
def test_a_config_names_the_initialization(model_class):
    def largest(**changes):
        config = ka.TransformerConfig(29, num_layers=1, hidden_dim=M, intermediate_dim=F, num_heads=H, **changes)
        ratios = bounds(model_class(config).get_layer("decoder"))
        return max(ratio for path, ratio in ratios.items() if path.endswith(("/attention_output", "/output")))

    assert largest() <= 0.2001
    assert 0.97 < largest(initialization="glorot") <= 1.0001
    with pytest.raises(
        ValueError,
        match=r"`initialization` is one of 'residual_branch', 'alternating_signs', 'glorot'. Received: .*'he'",
    ):
        ka.TransformerConfig(29, initialization="he")


@pytest.mark.parametrize("model_class", [ka.Transformer, ka.CausalTransformer])
@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("normalization", ["layer", "rms"])
def test_with_alternating_signs_no_model_starts_by_predicting_its_last_input(
    model_class, normalization, normalize_first
):
    ids = np.arange(1, 98, dtype="int32").reshape(1, -1)  # each token once

    def logit_of_the_input(initialization):
        sizes = {"num_layers": 2, "hidden_dim": 130, "intermediate_dim": 257, "num_heads": 5}
        arrangement = {"normalization": normalization, "normalize_first": normalize_first}
        config = ka.TransformerConfig(98, **sizes, **arrangement, initialization=initialization)
        keras.utils.set_random_seed(5)
        model = model_class(config)
        inputs = {"source": ids, "target": ids} if model_class is ka.Transformer else ids
        logits = keras.ops.convert_to_numpy(model(inputs))
        last_norm = model.get_layer("decoder").weights[-2 if config.normalization == "layer" else -1]
        return np.diagonal(logits[0][:, 1:]).mean(), keras.ops.convert_to_numpy(last_norm)

    logit, scale = logit_of_the_input("alternating_signs")
    assert abs(logit) < 1  # the other logits have a standard deviation of 1
    np.testing.assert_array_equal(scale, [1, -1] * 65)
    large, scale = logit_of_the_input("residual_branch")
    np.testing.assert_array_equal(scale, np.ones(130))
    assert large > 7  # 0.6 √M


def test_the_signs_are_only_a_start(tmp_path):
    sizes = {"num_layers": 1, "hidden_dim": M, "intermediate_dim": F, "num_heads": H}
    model = ka.CausalTransformer(ka.TransformerConfig(29, **sizes, initialization="alternating_signs"))
    scale = model.get_layer("decoder").layers[-1].feed_forward_norm.gamma
    scale.assign(np.linspace(0.5, 2, M))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    ids = np.array([[3, 5, 7]], "int32")
    np.testing.assert_allclose(loaded.predict(ids, verbose=0), model.predict(ids, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gain": 0}, "`gain` must be a number above zero. Received: gain=0"),
        ({"seed": 1.5}, "`seed` is an integer, or None. Received: seed=1.5"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResidualBranchInitializer(**arguments)
