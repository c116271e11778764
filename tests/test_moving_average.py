"""The exponential moving average of the weights, in `fit` and in checkpoints."""

import keras
import numpy as np
import pytest

from keras_attention.training import Checkpoints, ExponentialMovingAverage, FusedAdam, Muon
from tests.backends import numpy

STEPS = 7  # in an epoch


def make_model(optimizer=None, dtype="float32"):
    keras.utils.set_random_seed(3)
    layers = [keras.Input((2,)), keras.layers.Dense(3, dtype=dtype), keras.layers.Dense(1, dtype=dtype)]
    model = keras.Sequential(layers)
    model.compile(optimizer or keras.optimizers.Adam(0.1), "mse")
    return model


def fit(model, *callbacks, epochs=1, **options):
    random = np.random.default_rng(5)
    x, y = random.random((STEPS, 2)), random.random((STEPS, 1))
    return model.fit(x, y, batch_size=1, epochs=epochs, shuffle=False, callbacks=list(callbacks), verbose=0, **options)


class Recorder(keras.callbacks.Callback):
    """Keeps the weights before the first step and after each batch."""

    def on_train_begin(self, logs=None):
        self.weights = [self.model.get_weights()]

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


def expected(weights, momentum, every):
    """The average after all steps, of weights before and after each step, in float64."""
    average, last = [np.float64(each) for each in weights[0]], 0
    for step in range(1, len(weights)):
        if step - last == every or step == len(weights) - 1:
            kept = min(momentum, (1 + step) / (10 + step)) ** (step - last)
            average = [kept * a + (1 - kept) * w for a, w in zip(average, weights[step], strict=True)]
            last = step
    return average


def averages(callback):
    with callback.applied():
        return callback.model.get_weights()


def assert_equal(weights, wanted, **tolerance):
    for mine, other in zip(weights, wanted, strict=True):
        np.testing.assert_allclose(mine, other, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


@pytest.mark.parametrize("momentum", [0.0, 0.4, 0.999])  # below and above that of the first steps
@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_average_is_that_of_the_equation(momentum, every):
    model, recorder = make_model(), Recorder()
    callback = ExponentialMovingAverage(momentum, update_every=every)
    fit(model, recorder, callback, epochs=2)
    weights = recorder.weights
    assert len(weights) == 2 * STEPS + 1
    assert_equal(averages(callback), expected(weights, momentum, every))
    assert_equal(model.get_weights(), weights[-1], rtol=0, atol=0)


def test_the_initial_weights_do_not_count():
    model, callback = make_model(keras.optimizers.SGD(0.0)), ExponentialMovingAverage(0.9999, update_every=1)
    jump = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: model.set_weights([np.ones_like(w) for w in model.get_weights()])
    )
    model.set_weights([100 * np.ones_like(weight) for weight in model.get_weights()])
    fit(model, jump, callback, epochs=5)
    assert all(np.abs(weight - 1).max() < 1e-3 for weight in averages(callback))


@pytest.mark.parametrize("make", [FusedAdam, Muon])
def test_training_is_the_same_with_and_without(make):
    plain, averaged = make_model(make(0.1)), make_model(make(0.1))
    data = np.ones((2, 2)), np.ones((2, 1))
    history = fit(plain, epochs=2, validation_data=data).history
    other = fit(averaged, ExponentialMovingAverage(0.9), epochs=2, validation_data=data).history
    assert_equal(averaged.get_weights(), plain.get_weights(), rtol=0, atol=0)
    assert other["loss"] == history["loss"]
    assert other["val_loss"] != history["val_loss"]


def test_the_validation_of_fit_is_that_of_the_average():
    model, callback, data = (
        make_model(),
        ExponentialMovingAverage(0.9, update_every=3),
        (np.ones((2, 2)), np.ones((2, 1))),
    )
    history = fit(model, callback, validation_data=data).history
    with callback.applied():
        value = model.evaluate(*data, verbose=0)
    np.testing.assert_allclose(history["val_loss"], [value], rtol=1e-6)
    assert abs(model.evaluate(*data, verbose=0) - value) > 1e-6


def test_accumulated_batches_count_as_one_step():
    model, recorder = make_model(keras.optimizers.Adam(0.1, gradient_accumulation_steps=2)), Recorder()
    callback = ExponentialMovingAverage(0.999, update_every=1)
    fit(model, recorder, callback, epochs=2)
    assert_equal(averages(callback), expected(recorder.weights[::2], 0.999, every=1))


def test_a_second_fit_continues_the_average():
    model, recorder, callback = make_model(), Recorder(), ExponentialMovingAverage(0.999, update_every=1)
    fit(model, recorder, callback)
    first = recorder.weights
    fit(model, recorder, callback)
    assert_equal(averages(callback), expected([*first, *recorder.weights[1:]], 0.999, every=1))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_half_precision(dtype):
    model, recorder = make_model(dtype=dtype), Recorder()
    callback = ExponentialMovingAverage(0.999, update_every=1)
    fit(model, recorder, callback, epochs=2)
    assert all(keras.backend.standardize_dtype(each.dtype) == "float32" for each in callback.averages)
    weights = [[np.float32(each) for each in step] for step in recorder.weights]
    skipped = len(weights) - 1 - int(model.optimizer.iterations)  # by the scaling of a float16 loss
    assert_equal(numpy(callback.averages), expected(weights[skipped:], 0.999, every=1), rtol=1e-3, atol=1e-4)


def test_weights_come_back_after_an_error():
    model, callback = make_model(), ExponentialMovingAverage()
    fit(model, callback)
    before = model.get_weights()
    with pytest.raises(RuntimeError), callback.applied():
        raise RuntimeError
    assert_equal(model.get_weights(), before, rtol=0, atol=0)


def test_checkpoints_hold_the_average_and_resume_it(tmp_path):
    whole, recorder = make_model(), Recorder()
    callback = ExponentialMovingAverage(0.999, update_every=4)
    data = {"validation_data": (np.ones((2, 2)), np.ones((2, 1)))}
    fit(whole, recorder, callback, Checkpoints(tmp_path / "whole", ema=callback), epochs=3, **data)

    model, folder = make_model(), tmp_path / "parts"
    callback = ExponentialMovingAverage(0.999, update_every=4)
    checkpoints = Checkpoints(folder, ema=callback)
    fit(model, callback, checkpoints, **data)
    assert [path.name for path in folder.glob("ema-*")] == ["ema-00000007.weights.h5"]
    best = keras.models.load_model(folder / "best.keras")
    assert_equal(best.get_weights(), averages(callback), rtol=0, atol=0)
    np.testing.assert_allclose(best.evaluate(*data["validation_data"], verbose=0), checkpoints.best, rtol=1e-6)

    model = keras.models.load_model(folder / "last.keras")
    assert_equal(model.get_weights(), recorder.weights[STEPS], rtol=0, atol=0)
    callback = ExponentialMovingAverage(0.999, update_every=4)
    callback.load(model, folder / "ema-00000007.weights.h5")
    assert_equal(model.get_weights(), recorder.weights[STEPS], rtol=0, atol=0)
    fit(model, callback, Checkpoints(folder, ema=callback), epochs=2, **data)
    names = sorted(path.name for path in folder.glob("*.weights.h5"))
    assert names == sorted(path.name for path in (tmp_path / "whole").glob("*.weights.h5"))
    for name in names:
        for each in (whole, model):
            each.load_weights((tmp_path / "whole" if each is whole else folder) / name)
        assert_equal(model.get_weights(), whole.get_weights(), rtol=0, atol=0)


def test_an_interrupted_checkpoint_leaves_the_average_of_the_last_one(tmp_path):
    model, callback = make_model(), ExponentialMovingAverage()
    checkpoints = Checkpoints(tmp_path, ema=callback)
    fit(model, callback, checkpoints)
    model.save = None  # as if interrupted before `last.keras`
    with pytest.raises(TypeError):
        fit(model, callback, checkpoints)
    assert int(keras.models.load_model(tmp_path / "last.keras").optimizer.iterations) == STEPS
    assert (tmp_path / "ema-00000007.weights.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, r"`momentum` must be a number, at least 0 and below 1. Received: momentum=1.0"),
        ({"update_every": 0}, r"`update_every` must be a positive integer. Received: update_every=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExponentialMovingAverage(**arguments)


def test_an_average_that_does_not_exist_is_named(tmp_path):
    callback = ExponentialMovingAverage()
    with pytest.raises(ValueError, match=r"There is no average yet: call `fit` with this callback first"):
        callback.on_test_begin()
    with pytest.raises(FileNotFoundError, match=r"These checkpoints do not exist: .*ema\.weights\.h5"):
        callback.load(make_model(), tmp_path / "ema.weights.h5")
