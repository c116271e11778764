"""The optimizer that makes the singular values of an update alike."""

import keras
import numpy as np
import pytest

from keras_attention import EncoderLayer, TransformerConfig
from keras_attention.training import Muon, muon_optimizer, paper_optimizer
from keras_attention.training.muon import POLYNOMIALS, is_matrix, matrix_shape, orthogonalize


def random(*shape, seed=5):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def with_singular_values(values, columns, seed=5):
    """A matrix with these singular values, and its singular vectors."""
    left, right = (np.linalg.qr(random(size, len(values), seed=seed))[0] for size in (len(values), columns))
    return ((left * np.asarray(values)) @ right.T).astype("float32"), left, right


SPECTRA = {
    "alike": np.ones(13),
    "one large": np.array([1.0] + 12 * [0.1]),
    "from 1 to 1/8": np.geomspace(1, 1 / 8, 13),
    "large": 1e4 * np.geomspace(1, 1 / 8, 13),
    "small": 1e-4 * np.geomspace(1, 1 / 8, 13),
    "from 1 to 1/50": np.geomspace(1, 1 / 50, 13),
}


@pytest.mark.parametrize("columns", [13, 29])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_singular_values_become_alike_and_vectors_stay(spectrum, columns):
    check_orthogonalized(SPECTRA[spectrum], columns, "float32", 0.25, 1e-3)
    if spectrum != "from 1 to 1/50":  # too wide for the 8 bits of a bfloat16
        check_orthogonalized(SPECTRA[spectrum], columns, "bfloat16", 0.3, 0.15)


def check_orthogonalized(spectrum, columns, dtype, most, most_mixed):
    """Asserts that singular values end within `most` of 1, and vectors mix with others by `most_mixed` at most."""
    matrix, left, right = with_singular_values(spectrum, columns)
    for transpose in (False, True):
        same = orthogonalize(keras.ops.array(matrix.T if transpose else matrix), 3, dtype)
        assert keras.backend.standardize_dtype(same.dtype) == "float32"
        same = keras.ops.convert_to_numpy(same)
        diagonal = left.T @ (same.T if transpose else same) @ right
        np.testing.assert_allclose(np.diag(diagonal), 1, atol=most)
        np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=most_mixed)


def test_directions_without_gradient_are_not_amplified_to_noise():
    matrix, _, _ = with_singular_values([1.0] + 12 * [0.0], 29)
    for dtype, atol in (("float32", 1e-3), ("bfloat16", 0.1)):
        same = keras.ops.convert_to_numpy(orthogonalize(keras.ops.array(matrix), 3, dtype))
        values = np.linalg.svd(same, compute_uv=False)
        assert 0.8 < values[0] < 1.25
        np.testing.assert_allclose(values[1:], 0, atol=atol)


@pytest.mark.parametrize("steps", [5, 7])
def test_further_steps_bring_singular_values_nearer_to_one(steps):
    matrix, _, _ = with_singular_values(np.geomspace(1, 0.02, 13), 29)
    same = keras.ops.convert_to_numpy(orthogonalize(keras.ops.array(matrix), steps))
    np.testing.assert_allclose(np.linalg.svd(same, compute_uv=False), 1, atol=0.01)


def test_each_polynomial_brings_what_the_one_before_leaves_nearer_to_one():
    low, high = 0.02, 1.02
    for polynomial, left in zip(POLYNOMIALS, [(0.15, 1.85), (0.42, 1.58), (0.81, 1.19)], strict=True):
        values = np.linspace(low, high, 1001)
        values = sum(factor * values**power for factor, power in zip(polynomial, (1, 3, 5), strict=True))
        np.testing.assert_allclose([values.min(), values.max()], left, atol=0.02)
        low, high = values.min() / 1.1, values.max() * 1.1


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
    moments[0] = 0.9 * moments[0] + gradients[0]
    x = gradients[0] + 0.9 * moments[0]
    rows = x.reshape(matrix_shape(x.shape))
    transposed = rows.shape[0] > rows.shape[1]
    rows = rows.T if transposed else rows
    rows = rows / np.linalg.norm(rows @ rows.T) ** 0.5
    for a, b, c in [(7.5738, -20.8915, 14.7576), (3.0951, -1.9694, 0.3407), (2.3324, -1.5278, 0.3254)]:
        square = rows @ rows.T
        rows = a * rows + (b * square + c * square @ square) @ rows
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
    optimizer = Muon(0.1, momentum=0.8, beta_1=0.7, beta_2=0.6, epsilon=1e-7, steps=4)
    again = Muon.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert (again.momentum, again.beta_1, again.beta_2, again.steps) == (0.8, 0.7, 0.6, 4)


def test_the_schedule_and_accumulation_are_those_of_the_paper_optimizer():
    optimizer = muon_optimizer(TransformerConfig(100, hidden_dim=16, num_heads=2), 10, 2.0, 50, 3)
    assert optimizer.gradient_accumulation_steps == 3
    # Keras counts batches: the 30th is the last of the tenth step.
    schedule = keras.optimizers.schedules.deserialize(optimizer.get_config()["learning_rate"])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(schedule(29)), 2.0 * 16**-0.5 * 10**-0.5, rtol=1e-5)


def test_weight_decay_takes_its_part_of_matrices_and_embeddings_that_are_not_excluded():
    names = ("kernel", "bias", "embeddings", "kernel")
    shapes = ((7, 5), (5,), (11, 7), (3, 2))
    start, gradients = ([random(*shape, seed=seed + index) for index, shape in enumerate(shapes)] for seed in (5, 15))

    def after_a_step(weight_decay, excludes=lambda variables: {}):
        config = TransformerConfig(100, hidden_dim=16, num_heads=2)
        optimizer = muon_optimizer(config, 10, 2.0, weight_decay=weight_decay)
        variables = [keras.Variable(value, name=name) for value, name in zip(start, names, strict=True)]
        optimizer.exclude_from_weight_decay(**excludes(variables))
        optimizer.apply([keras.ops.array(each) for each in gradients], variables)
        return [keras.ops.convert_to_numpy(each) for each in variables]

    def check(decaying, **options):
        rate = 2.0 * 16**-0.5 * 10**-1.5  # of the first step
        pairs = zip(after_a_step(None), after_a_step(0.3, **options), strict=True)
        for index, (plain, decayed) in enumerate(pairs):
            expected = rate * 0.3 * start[index] if index in decaying else 0.0
            np.testing.assert_allclose(plain - decayed, expected, atol=1e-6)

    check({0, 2, 3})
    check({0, 3}, excludes=lambda variables: {"var_names": ["embed"]})
    check({0, 2}, excludes=lambda variables: {"var_list": variables[3:]})
    check({2}, excludes=lambda variables: {"var_names": ["kern"]})
    assert muon_optimizer(TransformerConfig(100)).weight_decay is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "`momentum`.*1.0"),
        ({"steps": 0}, "`steps`.*0"),
        ({"epsilon": 0.0}, "`epsilon`.*0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Muon(**arguments)


def test_defaults_and_the_betas_are_checked():
    optimizer = Muon()
    assert float(optimizer.learning_rate) == pytest.approx(0.002)
    assert (optimizer.momentum, optimizer.beta_1, optimizer.beta_2) == (0.9, 0.9, 0.98)
    assert (optimizer.epsilon, optimizer.steps, optimizer.name) == (1e-9, 3, "muon")
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
