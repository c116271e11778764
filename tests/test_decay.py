"""The learning rate that falls to zero at the end of a training, by steps and by the clock."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_attention.training import DecayToLimit, InverseSqrtSchedule, decay

SCHEDULE = InverseSqrtSchedule(hidden_dim=7, warmup_steps=3, scale=0.11)
WITHOUT_WARMUP = InverseSqrtSchedule(hidden_dim=7, warmup_steps=1, scale=0.11)


class Rates(keras.callbacks.Callback):
    """The learning rate of each batch."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()
        self.rates.append(float(self.model.optimizer.learning_rate))


def trained(callback, batches, optimizer=None, epochs=1):
    """The learning rates of a small model's batches, and its weights before and after."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, kernel_initializer="ones")])
    model.compile(optimizer or keras.optimizers.SGD(0.0), loss="mse")
    rates = Rates()
    model.fit(
        np.ones((batches, 2), "float32"),
        np.zeros((batches, 3), "float32"),
        batch_size=1,
        epochs=epochs,
        verbose=0,
        callbacks=[callback, rates],
    )
    return rates.rates, model


@pytest.mark.parametrize("steps", [5, 11])
def test_by_steps_it_is_the_schedule_with_these_total_steps(steps):
    rates, _ = trained(DecayToLimit(SCHEDULE, steps=steps), batches=steps)
    whole = InverseSqrtSchedule(hidden_dim=7, warmup_steps=3, scale=0.11, total_steps=steps)
    np.testing.assert_allclose(rates, [float(whole(step)) for step in range(steps)], rtol=1e-5, atol=1e-9)
    assert rates[-1] == 0


def test_the_optimizer_uses_the_rate_of_its_step():
    model = trained(DecayToLimit(SCHEDULE, steps=7), batches=4)[1]
    whole = InverseSqrtSchedule(hidden_dim=7, warmup_steps=3, scale=0.11, total_steps=7)
    kernel, bias = np.ones((2, 3)), np.zeros(3)
    for step in range(4):
        gradient = 2 / 3 * (kernel.sum(axis=0) + bias)  # of the mean square of x W + b with x = 1
        kernel, bias = kernel - float(whole(step)) * gradient, bias - float(whole(step)) * gradient
    for ours, expected in zip(model.get_weights(), (kernel, bias), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_by_minutes_it_follows_the_clock(monkeypatch):
    clock = iter([100.0, 101.0, 140.0, 145.0, 158.0, 200.0])  # 60 seconds: the last 30 are the decay
    monkeypatch.setattr(decay, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    rates, _ = trained(DecayToLimit(SCHEDULE, minutes=1), batches=5)
    factors = [rate / float(SCHEDULE(step)) for step, rate in enumerate(rates)]
    np.testing.assert_allclose(factors, [1, 20 / 30, 15 / 30, 2 / 30, 0], atol=1e-5)


def test_the_first_limit_counts(monkeypatch):
    clock = iter([0.0, 6.0, 12.0, 18.0, 57.0])
    monkeypatch.setattr(decay, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    rates, _ = trained(DecayToLimit(WITHOUT_WARMUP, steps=5, minutes=1, decay=1), batches=4)
    factors = [rate / float(WITHOUT_WARMUP(step)) for step, rate in enumerate(rates)]
    np.testing.assert_allclose(factors, [4 / 5, 3 / 5, 2 / 5, 3 / 60], atol=1e-5)


@pytest.mark.parametrize(("limits", "decay_part"), [({}, 1 / 3), ({"steps": 4}, 0), ({"minutes": 1e-9}, 0)])
def test_without_a_limit_or_a_decay_it_is_the_schedule(limits, decay_part):
    schedule = WITHOUT_WARMUP if limits else SCHEDULE
    rates, _ = trained(DecayToLimit(schedule, decay=decay_part, **limits), batches=4)
    np.testing.assert_allclose(rates, [float(schedule(step)) for step in range(4)], rtol=1e-5)


def test_a_long_warm_up_ends_after_a_quarter_of_the_steps():
    schedule = InverseSqrtSchedule(hidden_dim=7, warmup_steps=11, scale=0.11)
    rates, _ = trained(DecayToLimit(schedule, steps=20, decay=0), batches=13)
    peak = float(schedule(10))
    factors = [0.2, 0.4, 0.6, 0.8, *[1] * 7, (11 / 12) ** 0.5, (11 / 13) ** 0.5]
    np.testing.assert_allclose(rates, peak * np.array(factors), rtol=1e-5)


def test_a_long_warm_up_ends_after_a_quarter_of_the_minutes_without_the_first_step(monkeypatch):
    clock = iter([0.0, 5.0, 20.0, 25.0, 31.0, 36.0, 40.0])  # the first step takes from 5 to 20; a quarter is 15 seconds
    monkeypatch.setattr(decay, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    schedule = InverseSqrtSchedule(hidden_dim=7, warmup_steps=11, scale=0.11)
    rates, _ = trained(DecayToLimit(schedule, minutes=1, decay=0), batches=6)
    np.testing.assert_allclose(
        rates, float(schedule(10)) * np.array([1 / 11, 2 / 11, 5 / 15, 11 / 15, 1, 1]), rtol=1e-5
    )


def test_accumulated_batches_share_a_rate_and_a_step():
    optimizer = keras.optimizers.SGD(0.0, gradient_accumulation_steps=2)
    rates, model = trained(DecayToLimit(SCHEDULE, steps=3), batches=6, optimizer=optimizer)
    whole = InverseSqrtSchedule(hidden_dim=7, warmup_steps=3, scale=0.11, total_steps=3)
    np.testing.assert_allclose(rates, np.repeat([float(whole(step)) for step in range(3)], 2), rtol=1e-5, atol=1e-9)
    assert int(model.optimizer.iterations) == 3


def test_a_second_call_counts_from_the_steps_of_the_first():
    callback = DecayToLimit(SCHEDULE, steps=9)
    rates, model = trained(callback, batches=4)
    second = Rates()
    model.fit(np.ones((5, 2)), np.zeros((5, 3)), batch_size=1, verbose=0, callbacks=[callback, second])
    whole = InverseSqrtSchedule(hidden_dim=7, warmup_steps=3, scale=0.11, total_steps=9)
    np.testing.assert_allclose(rates + second.rates, [float(whole(step)) for step in range(9)], rtol=1e-5, atol=1e-9)


def test_an_optimizer_with_a_schedule_is_refused():
    with pytest.raises(ValueError, match=r"must be a number in the optimizer: pass the schedule.*InverseSqrtSchedule"):
        trained(DecayToLimit(SCHEDULE, steps=3), batches=1, optimizer=keras.optimizers.SGD(SCHEDULE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` must be a positive integer. Received: steps=0"),
        ({"minutes": -1}, "`minutes` must be a number above zero. Received: minutes=-1"),
        ({"decay": 1.5}, "`decay` must be a number between 0 and 1. Received: decay=1.5"),
        ({"decay": float("nan")}, "`decay` must be a number between 0 and 1. Received: decay=nan"),
    ],
)
def test_wrong_limits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecayToLimit(SCHEDULE, **arguments)
