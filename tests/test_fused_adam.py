"""Adam in one pass against the formula and against Keras' optimizer."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_attention import TransformerConfig
from keras_attention.training import FusedAdam, Muon, paper_optimizer
from tests.backends import numpy

ROWS, COLUMNS = 5, 3


def random(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_steps_are_those_of_the_formula():
    variables = [keras.Variable(random(ROWS, COLUMNS, seed=1)), keras.Variable(random(7, seed=2))]
    expected = [numpy(each) for each in variables]
    first, second = [0.0, 0.0], [0.0, 0.0]
    optimizer = FusedAdam(0.03, beta_1=0.8, beta_2=0.95, epsilon=1e-3)
    for step in (1, 2, 3):
        gradients = [random(*each.shape, seed=10 * step + len(each.shape)) for each in variables]
        optimizer.apply([keras.ops.array(gradient) for gradient in gradients], variables)
        for index, gradient in enumerate(gradients):
            first[index] = 0.8 * first[index] + 0.2 * gradient
            second[index] = 0.95 * second[index] + 0.05 * gradient**2
            # ε is added to the root of the uncorrected moment, as in Keras and in section 2 of the paper
            rate = 0.03 * np.sqrt(1 - 0.95**step) / (1 - 0.8**step)
            expected[index] = expected[index] - rate * first[index] / (np.sqrt(second[index]) + 1e-3)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(numpy(variable), value, atol=1e-5)


def fitted(optimizer, **settings):
    """What is left of a model and its optimizer after a few steps."""
    keras.utils.set_random_seed(3)
    layers = keras.layers.Dense(13, "relu", name="one"), keras.layers.Dense(ROWS, name="other")
    model = keras.Sequential([keras.Input((6,)), *layers], name="model")
    model.compile(optimizer, "mse", **settings)
    model.fit(random(11, 6, seed=4), random(11, ROWS, seed=5), batch_size=4, epochs=3, shuffle=False, verbose=0)
    return {each.path: numpy(each) for each in optimizer.variables}, model.get_weights()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amsgrad": True},
        {"use_ema": True, "ema_overwrite_frequency": 3},
        {"weight_decay": 0.1, "global_clipnorm": 0.2},
        {"gradient_accumulation_steps": 2},
        {"learning_rate": keras.optimizers.schedules.InverseTimeDecay(0.01, 2, 0.5)},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_state_and_results_are_those_of_keras(options):
    (state, weights), (wanted_state, wanted) = (
        fitted(cls(**{"learning_rate": 0.01, "name": "adam", **options})) for cls in (FusedAdam, keras.optimizers.Adam)
    )
    assert list(state) == list(wanted_state)  # a checkpoint keeps them by their order
    for name, value in wanted_state.items():
        np.testing.assert_allclose(state[name], value, atol=1e-5, err_msg=name)
    for value, expected in zip(weights, wanted, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"])
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
def test_scales_of_float8_layers_have_no_moments(options):
    def trained(cls):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(16)])
        model.quantize("float8")
        model.compile(cls(0.01, **options), "mse")
        model.fit(random(8, 16, seed=4), random(8, 16, seed=5), batch_size=4, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    for value, expected in zip(trained(FusedAdam), trained(keras.optimizers.Adam), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.tensorflow
def test_a_compiled_step_is_the_same():
    (state, _), (wanted, _) = (fitted(FusedAdam(0.01, name="adam"), jit_compile=jit) for jit in (True, False))
    for name, value in wanted.items():
        np.testing.assert_allclose(state[name], value, atol=1e-5, err_msg=name)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (FusedAdam, {}),
        (FusedAdam, {"amsgrad": True}),
        (FusedAdam, {"global_clipnorm": 2.0}),
        (Muon, {}),
        (keras.optimizers.Adam, {}),
        (keras.optimizers.Adam, {"global_clipnorm": 2.0}),
    ],
)
def test_rows_of_an_embedding_that_came_twice_are_summed(cls, options):
    """As they are not by Keras, whose second moment and norm are those of a longer gradient."""
    import tensorflow as tf

    ids, values = [1, 1, 0], random(3, COLUMNS, seed=6)
    sparse = tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([ROWS, COLUMNS]))
    dense = np.zeros((ROWS, COLUMNS), "float32")
    np.add.at(dense, ids, values)
    results = []
    for gradient in (sparse, tf.constant(dense)):
        variable, optimizer = keras.Variable(random(ROWS, COLUMNS, seed=7)), cls(0.1, epsilon=1.0, **options)
        for _ in range(3):
            optimizer.apply([gradient], [variable])
        results.append(numpy(variable))
    assert (np.abs(results[0] - results[1]).max() < 1e-6) == (cls is not keras.optimizers.Adam)


TWO_REPLICAS = """
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
from keras_attention.training import FusedAdam

def weights(strategy):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = keras.layers.Embedding(11, 7), keras.layers.Flatten(), keras.layers.Dense(3)
        model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
        model.compile(FusedAdam(0.01), "mse")
    before = model.get_weights()
    ids, y = np.random.default_rng(2).integers(0, 11, (8, 5)), np.random.default_rng(3).normal(size=(8, 3))
    model.fit(ids, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    assert all((x != y).any() for x, y in zip(before, model.get_weights(), strict=True))
    return model.get_weights()

for one, two in zip(weights(tf.distribute.get_strategy()), weights(tf.distribute.MirroredStrategy()), strict=True):
    np.testing.assert_allclose(two, one, atol=1e-5)
print("alike")
"""


@pytest.mark.tensorflow
def test_two_devices_train_as_one_does():
    """In a process of its own, since devices are parted before TensorFlow has used them."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    found = subprocess.run([sys.executable, "-c", TWO_REPLICAS], env=quiet, capture_output=True, text=True)
    assert found.stdout == "alike\n", found.stderr


def test_a_saved_model_goes_on_where_it_was(tmp_path):
    def model_and_data():
        keras.utils.set_random_seed(3)
        return (
            keras.Sequential([keras.Input((6,)), keras.layers.Dense(ROWS)]),
            random(8, 6, seed=4),
            random(8, ROWS, seed=5),
        )

    whole, x, y = model_and_data()
    whole.compile(FusedAdam(0.02), "mse")
    losses = whole.fit(x, y, epochs=6, verbose=0, shuffle=False).history["loss"]
    first, x, y = model_and_data()
    first.compile(FusedAdam(0.02), "mse")
    first.fit(x, y, epochs=3, verbose=0, shuffle=False)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(second.optimizer, FusedAdam)
    np.testing.assert_allclose(
        second.fit(x, y, epochs=3, verbose=0, shuffle=False).history["loss"], losses[3:], rtol=1e-4
    )


def test_the_paper_optimizer_has_it_on_tensorflow_only():
    optimizer = paper_optimizer(TransformerConfig(100, hidden_dim=16, num_heads=2))
    assert isinstance(optimizer, FusedAdam) == (keras.config.backend() == "tensorflow")
