"""Batches with a loss or gradients that are not finite change nothing, and a loss that jumps is reported."""

import keras
import numpy as np
import pytest

from keras_attention.training import FailOnDivergence, FusedAdam, LossSpikes, Muon, SkippedSteps
from tests.backends import BACKEND, HAS_XLA

BAD = 2  # the batch that is not finite, of six


def make_model(optimizer, root=False, **options):
    """With `root`, the gradient of inputs that are zero is NaN, and the loss is not."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(7, use_bias=False)(inputs)
    hidden = keras.ops.sqrt(keras.ops.square(hidden)) if root else keras.ops.tanh(hidden)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model.compile(optimizer, "mse", **{"run_eagerly": True, **options})
    return model


def data(value=None, count=6):
    """Batches of two rows, one of them with a value in all places."""
    random = np.random.default_rng(2)
    x, y = (random.normal(size=(2 * count, width)).astype("float32") for width in (5, 3))
    if value is not None:
        x[2 * BAD : 2 * BAD + 2] = value
    return x, y


def without_bad(arrays):
    return [np.delete(each, [2 * BAD, 2 * BAD + 1], axis=0) for each in arrays]


def fit(model, arrays, *callbacks, epochs=1):
    return model.fit(*arrays, batch_size=2, epochs=epochs, shuffle=False, callbacks=list(callbacks), verbose=0)


def state_of(model):
    return [keras.ops.convert_to_numpy(each) for each in (*model.variables, *model.optimizer.variables)]


OPTIMIZERS = {
    "Adam": lambda: FusedAdam(0.01),
    "Adam, accumulated and clipped": lambda: FusedAdam(0.01, gradient_accumulation_steps=2, global_clipnorm=1.0),
    "Muon": lambda: Muon(0.01, weight_decay=0.5),
    "Muon, accumulated": lambda: Muon(0.01, weight_decay=0.5, gradient_accumulation_steps=3),
}


@pytest.mark.parametrize(
    ("optimizer", "jit_compile"),
    [*((name, False) for name in OPTIMIZERS), *([("Adam, accumulated and clipped", True)] if HAS_XLA else [])],
)
@pytest.mark.parametrize("value", [np.nan, 0.0], ids=["loss", "gradient"])
def test_a_batch_that_is_not_finite_is_as_if_it_were_not_in_the_data(optimizer, jit_compile, value, capsys):
    models, logs = [], []
    for remove in (False, True):
        model = make_model(OPTIMIZERS[optimizer](), root=value == 0, run_eagerly=False, jit_compile=jit_compile)
        arrays = data(value)
        steps = SkippedSteps()
        logs.append(fit(model, without_bad(arrays) if remove else arrays, steps).history)
        models.append(model)
        assert (steps.skipped, steps.in_a_row) == (int(not remove), 0)
    for mine, theirs in zip(*map(state_of, models), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert np.isfinite(logs[0]["loss"][0])
    if value:
        assert logs[0] == logs[1], "its loss is not in the mean"
    printed = capsys.readouterr().out
    assert printed.count("so the batch is skipped, and the weights are as before it.") == 1
    assert ("The loss is " if value else "A gradient is not finite after step ") in printed


def test_the_first_batch_may_be_the_one():
    model, steps = make_model(FusedAdam(0.01)), SkippedSteps()
    arrays = [each[2 * BAD :] for each in data(np.nan)]
    assert np.isfinite(fit(model, arrays, steps).history["loss"][0])
    assert (steps.skipped, int(model.optimizer.iterations)) == (1, 3)


def test_a_number_of_skipped_batches_in_a_row_ends_training():
    model = make_model(FusedAdam(0.01))
    files = iter(["first.npz"])
    steps = SkippedSteps(limit=3, save_batch=lambda: next(files))
    x, y = data()
    x[4:] = np.nan
    before = fit(make_model(FusedAdam(0.01)), [x[:4], y[:4]]).model
    with pytest.raises(
        FloatingPointError,
        match=r"diverged at step 2\. 3 batches in a row .* One of them is in first\.npz\. .*Received: loss=nan$",
    ):
        fit(model, [x, y], steps)
    assert (steps.skipped, steps.in_a_row) == (3, 3)
    if BACKEND == "jax":
        model.jax_state_sync()
    for mine, theirs in zip(state_of(model), state_of(before), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_optimizer_that_skips_nothing_ends_training_at_once():
    with pytest.raises(FloatingPointError, match=rf"diverged at step {BAD + 1}\. .* Received: loss="):
        fit(make_model(keras.optimizers.Adam(0.01)), data(np.nan), SkippedSteps())


def test_divergence_at_an_evaluation_still_ends_training():
    """The metrics without the skipped batch do not hide the others."""
    validation = tuple(data(np.nan))
    with pytest.raises(FloatingPointError, match="Received: val_loss=nan"):
        make_model(FusedAdam(0.01)).fit(
            *data(), validation_data=validation, callbacks=[SkippedSteps(), FailOnDivergence()], verbose=0
        )


def test_the_search_for_a_loss_scale_is_only_counted(capsys):
    scaled = keras.optimizers.LossScaleOptimizer(FusedAdam(0.01), initial_scale=2.0**127)
    model, steps = make_model(scaled), SkippedSteps()
    x, y = data(count=12)
    fit(model, [100 * x, 100 * y], steps)
    assert 1 < steps.skipped < 12
    assert int(model.optimizer.iterations) == 12 - steps.skipped
    assert capsys.readouterr().out == ""
    saved = SkippedSteps(limit=2, save_batch=lambda: "batch.npz")
    with pytest.raises(FloatingPointError, match=r"2 batches in a row .* One of them is in batch\.npz"):
        fit(make_model(keras.optimizers.LossScaleOptimizer(FusedAdam(0.01), 2.0**127)), [100 * x, 100 * y], saved)


@pytest.mark.tensorflow
def test_batches_are_seen_one_by_one():
    with pytest.raises(ValueError, match=r"`steps_per_execution=1`. Received: steps_per_execution=2"):
        fit(make_model(FusedAdam(0.01), steps_per_execution=2, run_eagerly=False), data(), SkippedSteps())
    with pytest.raises(ValueError, match=r"`limit` must be a positive integer\. Received: limit=0"):
        SkippedSteps(limit=0)


def test_a_loss_that_jumps_is_reported_once_in_an_epoch(capsys):
    x, y = data(count=11)
    y[16:20] = 1e3
    fit(make_model(FusedAdam(1e-6)), [x, y], LossSpikes(factor=20, window=5), epochs=2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Warning: the loss is ")
    assert " at step 9, and the median of the 5 batches before it is " in first
    assert " at step 20, " in second


def test_a_usual_loss_and_a_skipped_batch_are_not_reported(capsys):
    fit(make_model(FusedAdam(1e-6)), data(np.inf), SkippedSteps(), LossSpikes(factor=20, window=1), epochs=2)
    small = [0.1 * each for each in data()]  # losses of some 0.01
    fit(make_model(FusedAdam(1e-6)), small, LossSpikes(factor=0.5, window=1))
    assert "Warning" not in capsys.readouterr().out
    for name, arguments in (("factor", {"factor": 0}), ("window", {"window": 0})):
        with pytest.raises(ValueError, match=f"`{name}` must be a .* Received: {name}=0"):
            LossSpikes(**arguments)
