"""The optimizer that makes the singular values of an update alike."""

import keras
import numpy as np
import pytest

from keras_attention import EncoderLayer, TransformerConfig
from keras_attention.training import Muon, muon_optimizer, paper_optimizer
from keras_attention.training.muon import is_matrix, matrix_shape, orthogonalize


def random(*shape, seed=5):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("shape", [(7, 19), (19, 7), (13, 13)])
def test_singular_values_become_alike_and_vectors_stay(shape):
    matrix = random(*shape)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    same = keras.ops.convert_to_numpy(orthogonalize(keras.ops.array(matrix), steps=5))
    values = np.linalg.svd(same, compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.3
    # In the basis of the singular vectors it is diagonal: these are the matrix's own.
    diagonal = left.T @ same @ right.T
    np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-3)


def test_in_bfloat16_singular_values_become_alike_too():
    matrix = random(7, 19)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    rounded = orthogonalize(keras.ops.array(matrix), 5, "bfloat16")
    assert keras.backend.standardize_dtype(rounded.dtype) == "float32"
    diagonal = left.T @ keras.ops.convert_to_numpy(rounded) @ right.T
    assert np.diag(diagonal).min() > 0.5 and np.diag(diagonal).max() < 1.3
    np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=0.05)


def test_muon_iterates_in_its_dtype():
    updates = []
    for dtype in ("float32", "bfloat16"):
        kernel = keras.Variable(np.zeros((7, 19)), name="kernel")
        optimizer = Muon(learning_rate=1.0, iteration_dtype=dtype)
        optimizer.apply([keras.ops.array(random(7, 19, seed=3))], [kernel])
        updates.append(keras.ops.convert_to_numpy(kernel))
    assert np.abs(updates[0] - updates[1]).max() > 1e-5
    assert np.linalg.norm(updates[0] - updates[1]) < 0.2 * np.linalg.norm(updates[0])
    assert Muon.from_config(optimizer.get_config()).iteration_dtype == "bfloat16"


def test_another_iteration_dtype_is_refused():
    with pytest.raises(ValueError, match=r"`iteration_dtype` is one of 'float32', 'bfloat16'. Received: .*'float16'"):
        Muon(iteration_dtype="float16")


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [((256, 4, 64), (256, 256)), ((4, 64, 256), (256, 256)), ((256, 2, 64), (256, 128)), ((5, 7), (5, 7))],
)
def test_kernels_of_attention_are_parted_into_inputs_and_outputs(shape, matrix):
    assert matrix_shape(shape) == matrix


def oracle_step(weights, gradients, moments, second, step, rate):
    """One step in NumPy, for a kernel and a bias."""
    moments[0] = 0.95 * moments[0] + gradients[0]
    x = gradients[0] + 0.95 * moments[0]
    rows = x.reshape(matrix_shape(x.shape))
    transposed = rows.shape[0] > rows.shape[1]
    rows = rows.T if transposed else rows
    rows = rows / np.linalg.norm(rows)
    for _ in range(5):
        square = rows @ rows.T
        rows = 3.4445 * rows + (-4.7750 * square + 2.0315 * square @ square) @ rows
    rows = rows.T if transposed else rows
    kernel = weights[0] - rate * 0.2 * np.sqrt(max(rows.shape)) * rows.reshape(x.shape)
    moments[1] = 0.9 * moments[1] + 0.1 * gradients[1]
    second[1] = 0.98 * second[1] + 0.02 * gradients[1] ** 2
    mean, spread = moments[1] / (1 - 0.9**step), np.sqrt(second[1] / (1 - 0.98**step))
    return [kernel, weights[1] - rate * mean / (spread + 1e-9)]


def test_steps_are_those_of_the_formula():
    kernel = keras.Variable(random(6, 2, 5, seed=1), name="kernel")
    bias = keras.Variable(random(2, 5, seed=2), name="bias")
    expected = [random(6, 2, 5, seed=1), random(2, 5, seed=2)]
    moments, second = [0.0, 0.0], [0.0, 0.0]
    optimizer = Muon(learning_rate=0.03)
    for step in (1, 2, 3):
        gradients = [random(6, 2, 5, seed=10 * step), random(2, 5, seed=20 * step)]
        optimizer.apply([keras.ops.array(gradient) for gradient in gradients], [kernel, bias])
        expected = oracle_step(expected, gradients, moments, second, step, 0.03)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(kernel), expected[0], atol=1e-4)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(bias), expected[1], atol=1e-5)


def test_which_variables_are_matrices():
    layer = EncoderLayer(intermediate_dim=11, num_heads=2)
    layer(keras.ops.ones((1, 3, 6)))
    assert sum(map(is_matrix, layer.weights)) == 6  # four of attention, two of the feed-forward network
    assert not is_matrix(keras.Variable(random(5, 3), name="embeddings"))


def fitted(model, optimizer, epochs):
    model.compile(optimizer, loss="mse")
    x = random(24, 6)
    return model.fit(x, x[:, ::-1] * 0.5, epochs=epochs, batch_size=8, shuffle=False, verbose=0).history["loss"]


def small_model():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(13, "relu"), keras.layers.Dense(6)])


def test_fit_learns_and_a_saved_model_goes_on_where_it_was(tmp_path):
    whole = small_model()
    losses = fitted(whole, Muon(learning_rate=0.02), epochs=6)
    assert losses[-1] < 0.5 * losses[0]

    first = small_model()
    fitted(first, Muon(learning_rate=0.02), epochs=3)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    x = random(24, 6)
    history = second.fit(x, x[:, ::-1] * 0.5, epochs=3, batch_size=8, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(history, losses[3:], rtol=1e-4)


def test_the_config_comes_back():
    optimizer = Muon(learning_rate=0.1, momentum=0.8, beta_1=0.7, beta_2=0.6, epsilon=1e-7, steps=3)
    again = Muon.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert (again.momentum, again.beta_1, again.beta_2, again.steps) == (0.8, 0.7, 0.6, 3)


def test_the_schedule_and_accumulation_are_those_of_the_paper_optimizer():
    optimizer = muon_optimizer(TransformerConfig(100, hidden_dim=16, num_heads=2), 10, 2.0, 50, 3)
    assert optimizer.gradient_accumulation_steps == 3
    # Keras counts batches: the 30th is the last of the tenth step.
    schedule = keras.optimizers.schedules.deserialize(optimizer.get_config()["learning_rate"])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(schedule(29)), 2.0 * 16**-0.5 * 10**-0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"momentum": 1.0}, "`momentum`.*1.0"), ({"steps": 0}, "`steps`.*0"), ({"epsilon": 0.0}, "`epsilon`.*0")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Muon(**arguments)


def test_defaults_and_the_betas_are_checked():
    optimizer = Muon()
    assert float(optimizer.learning_rate) == pytest.approx(0.002)
    assert (optimizer.momentum, optimizer.beta_1, optimizer.beta_2) == (0.95, 0.9, 0.98)
    assert (optimizer.epsilon, optimizer.steps, optimizer.name) == (1e-9, 5, "muon")
    assert Muon(name="other").name == "other"
    assert Muon(momentum=0.0, beta_1=0.0, beta_2=0.0).momentum == 0
    for name in ("beta_1", "beta_2"):
        with pytest.raises(ValueError, match=f"`{name}`.*1.5"):
            Muon(**{name: 1.5})


def test_nothing_but_zeros_stays_so():
    assert not keras.ops.convert_to_numpy(orthogonalize(keras.ops.zeros((5, 3)), steps=5)).any()


@pytest.mark.parametrize("arguments", [(), (7,), (7, 3.0), (7, 3.0, 90), (7, 3.0, 90, 2)], ids=str)
def test_a_run_with_muon_has_the_schedule_of_a_run_with_adam(arguments):
    names = ("warmup_steps", "scale", "total_steps", "gradient_accumulation_steps")
    config, given = TransformerConfig(100, hidden_dim=16, num_heads=2), dict(zip(names, arguments, strict=False))
    muon, adam = muon_optimizer(config, *arguments), paper_optimizer(config, **given)
    assert muon.get_config()["learning_rate"] == adam.get_config()["learning_rate"]
    assert muon.gradient_accumulation_steps == adam.gradient_accumulation_steps
    assert (muon.gradient_accumulation_steps is None) == (len(arguments) < 4)


def test_a_kernel_of_one_axis_is_no_matrix():
    assert not is_matrix(keras.Variable(random(5), name="kernel"))
    assert is_matrix(keras.Variable(random(1, 5), name="kernel"))
