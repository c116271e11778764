"""The forecast at the end of a training: the fit, what it refuses, its sentences, and the history that it reads."""

import csv
import math

import keras
import numpy as np
import pytest

from keras_attention.pipeline import Forecast, forecast_run
from keras_attention.pipeline.forecast import (
    expected_gain,
    fit_power_law,
    forecast,
    forecast_summary,
    relative_rates,
    rises,
)
from keras_attention.pipeline.history import Evaluations, HistoryWriter, read_evaluations
from keras_attention.training.schedules import InverseSqrtSchedule

pytestmark = pytest.mark.tensorflow

WARMUP = 150
CURVES = [(1.5, 30.0, 0.6), (1.0, 12.0, 0.3), (1.8, 400.0, 1.0), (0.0, 8.0, 0.2)]


def rates_of(steps, total_steps=None):
    schedule = InverseSqrtSchedule(hidden_dim=64, warmup_steps=WARMUP, total_steps=total_steps)
    return keras.ops.convert_to_numpy(schedule(np.asarray(steps) - 1)).astype("float64")


def evaluations_of(losses, steps=None, gap=0.1, total_steps=None, passes=None):
    losses = np.asarray(losses, dtype=float)
    steps = np.arange(1, len(losses) + 1) * 200.0 if steps is None else np.asarray(steps, dtype=float)
    return Evaluations(steps, rates_of(steps, total_steps), losses - gap, losses, passes)


def curve(floor, scale, exponent, number=12, noise=0.0, seed=0):
    steps = np.arange(1, number + 1) * 200.0
    return floor + scale * steps**-exponent + noise * np.random.default_rng(seed).standard_normal(number)


# ---- the fit


@pytest.mark.parametrize(("floor", "scale", "exponent"), CURVES)
def test_the_fit_finds_the_curve(floor, scale, exponent):
    steps = np.arange(1, 31) * 100.0
    law = fit_power_law(steps, floor + scale * steps**-exponent)
    assert law.exponent == pytest.approx(exponent, rel=0.02)
    assert law.floor == pytest.approx(floor, abs=0.06)
    for step in (100.0, 3000.0, 6000.0, 12000.0):
        assert law(step) == pytest.approx(floor + scale * step**-exponent, abs=0.02)


def test_the_fit_has_no_negative_floor_and_no_rise():
    steps = np.arange(1, 13) * 200.0
    assert fit_power_law(steps, 6 - 0.7 * np.log(steps)).floor == 0
    rising = fit_power_law(steps, 2 + steps / 1000)
    assert rising.scale == 0
    assert rising.gain(2400) == 0


@pytest.mark.parametrize(("floor", "scale", "exponent"), CURVES)
def test_the_range_holds_the_true_gain(floor, scale, exponent):
    gain = scale * 2400**-exponent * (1 - 2**-exponent)
    within = 0
    for seed in range(20):
        result = forecast(evaluations_of(curve(floor, scale, exponent, noise=0.005, seed=seed)))
        now, longer = math.log(result.perplexity), math.log(result.longer_perplexity)
        low, high = map(math.log, result.longer_range)
        assert low < longer < high
        assert now - longer == pytest.approx(gain, abs=0.05)
        within += low <= now - gain <= high
    assert within >= 17


def test_a_forecast_has_the_numbers_of_the_last_evaluation():
    losses = curve(1.5, 30.0, 0.6)
    result = forecast(evaluations_of(losses, gap=0.2))
    assert (result.step, result.best_step, result.evaluations) == (2400, 2400, 10)
    assert result.perplexity == result.best_perplexity == pytest.approx(math.exp(losses[-1]))
    assert result.train_perplexity == pytest.approx(math.exp(losses[-1] - 0.2))
    assert result.longer_perplexity == pytest.approx(math.exp(1.5 + 30 * 4800**-0.6), rel=0.01)
    assert not result.rising
    assert result.reason is None


def test_a_perplexity_is_at_least_one():
    losses = curve(0.0, 100.0, 1.0)
    losses[-1] = 0.001  # the forecast decreases the loss by more
    result = forecast(evaluations_of(losses, gap=0.0))
    assert result.longer_perplexity == result.longer_range[0] == 1


def test_the_range_of_noisy_losses_ends_at_the_last_perplexity():
    """The losses of a training of half an hour: their fit is too uncertain to exclude that nothing is gained."""
    steps = np.arange(1, 17) * 228.0
    before = [3.727, 3.044, 2.823, 2.653, 2.630, 2.551, 2.521, 2.486]
    decaying = [2.454, 2.397, 2.360, 2.345, 2.306, 2.274, 2.250, 2.232]
    result = forecast(evaluations_of([*before, *decaying], steps, total_steps=3650))
    assert result.evaluations == 7
    low, high = result.longer_range
    assert low < result.longer_perplexity < high == result.perplexity


# ---- the warm-up and the decay


def test_rates_relative_to_the_schedule_without_a_decay():
    steps = np.array([50.0, 100, 200, 1000, 1400, 1650, 2550, 3000])
    rates = relative_rates(steps, rates_of(steps, total_steps=3000))
    np.testing.assert_allclose(rates, [0, 0, 1, 1, 1, 0.9, 0.3, 0], atol=1e-5)
    np.testing.assert_array_equal(relative_rates(steps, np.zeros(8)), np.zeros(8))
    constant = np.minimum(steps / 200, 1.0)
    assert list(relative_rates(steps, constant) >= 0.98) == [False, False, *6 * [True]]


def test_losses_of_the_warm_up_are_left_out():
    steps = np.array([30, 60, 90, 120, *np.arange(1, 13) * 200.0])
    losses = np.array([9.0, 8.9, 7.0, 6.9, *curve(1.5, 30.0, 0.6)])
    rates = np.minimum(steps**-0.5, steps * 1200**-1.5)
    result = forecast(Evaluations(steps, rates, losses, losses))
    assert result.evaluations == 7
    assert result.longer_perplexity == pytest.approx(math.exp(1.5 + 30 * 4800**-0.6), rel=0.01)


def test_losses_of_the_final_decay_are_left_out():
    losses = curve(1.5, 30.0, 0.6, number=12)
    losses[6:] -= [0.05, 0.1, 0.15, 0.2, 0.3, 0.35]
    result = forecast(evaluations_of(losses, total_steps=2400))
    assert result.evaluations == 5
    gain = 30 * (2400**-0.6 - 4800**-0.6)
    assert math.log(result.perplexity / result.longer_perplexity) == pytest.approx(gain, abs=0.01)


def test_the_decay_before_a_run_was_resumed_is_no_rise():
    losses = curve(1.5, 30.0, 0.6, number=12)
    losses[3:6] -= [0.15, 0.3, 0.45]
    evaluations = evaluations_of(losses)
    evaluations.learning_rates[3:6] *= [0.7, 0.3, 0.01]
    result = forecast(evaluations)
    assert not result.rising
    assert result.evaluations == 7
    assert result.longer_perplexity == pytest.approx(math.exp(1.5 + 30 * 4800**-0.6), rel=0.02)
    assert result.best_step == 1200


def test_the_steep_beginning_is_left_out():
    steps = np.arange(1, 41) * 50.0
    losses = 1.5 + 30 * steps**-0.6
    losses[:3] += [3.0, 1.5, 0.5]
    result = forecast(evaluations_of(losses, steps))
    assert result.evaluations == 33
    assert result.longer_perplexity == pytest.approx(math.exp(1.5 + 30 * 4000**-0.6), rel=0.01)


def test_the_range_has_the_error_of_a_forecast_from_half_of_the_steps():
    """The curve bends after half of the steps, so an earlier forecast would have been wrong."""
    steps = np.arange(1, 41) * 100.0
    losses = np.where(steps <= 2000, 1.0 + 30 * steps**-0.5, 1.0 + 30 * 2000**-0.5 - (steps - 2000) / 20000)
    gain, error = expected_gain(steps, losses, 4000)
    assert error > 0.5 * gain
    assert error == pytest.approx(abs(1.0 + 30 * 4000**-0.5 - losses[-1]), rel=0.2)


# ---- what has no forecast


@pytest.mark.parametrize("number", [1, 2, 4])
def test_too_few_evaluations(number):
    result = forecast(evaluations_of(curve(1.5, 30.0, 0.6, number=number)))
    assert result.longer_perplexity is None
    assert str(result) == (
        "No forecast for a longer training: the number of evaluations after the first fifth of the steps and the "
        f"warm-up, and before the final decay, is {number}, and 5 are needed; a smaller evaluate_every gives more."
    )


def test_a_run_whose_rate_was_always_zero_has_too_few():
    evaluations = Evaluations(np.array([3.0]), np.array([0.0]), np.array([4.0]), np.array([4.1]))
    assert "is 0, and 5 are needed" in forecast(evaluations).reason


@pytest.mark.parametrize(
    "losses",
    [
        2.0 + 0.01 * np.random.default_rng(3).standard_normal(12),
        np.full(12, 2.0),
        2 + 4 / (1 + np.exp((np.arange(1, 13) - 5) / 1.2)),
        3 + np.random.default_rng(3).standard_normal(12),
    ],
    ids=["noise", "constant", "a late fall", "large noise"],
)
def test_a_curve_that_is_no_power_law(losses):
    result = forecast(evaluations_of(losses))
    assert result.longer_perplexity is None
    assert not result.rising
    assert result.reason == "the validation perplexity is flat, or does not follow a power law"


def test_a_decay_that_is_not_over():
    result = forecast(evaluations_of(curve(1.5, 30.0, 0.6, number=10), total_steps=2400))
    assert result.reason == "the learning rate has not finished its decay"


def test_a_rise_before_the_decay():
    losses = np.array([4.0, 3.0, 2.6, 2.5, 2.55, 2.65, 2.75, 2.85, 2.7, 2.6, 2.5, 2.4, 2.35, 2.3, 2.27, 2.25])
    result = forecast(evaluations_of(losses, total_steps=3200))
    assert not result.rising
    assert result.reason == "the validation perplexity rose after step 800, before the final decay"


def test_overfitting():
    losses = np.array([4.0, 3.0, 2.6, 2.4, 2.35, 2.4, 2.5, 2.6, 2.7])
    result = forecast(evaluations_of(losses, gap=1.5, passes=31.0))
    assert result.rising
    assert (result.best_step, result.best_perplexity) == (1000, pytest.approx(math.exp(2.35)))
    assert str(result).splitlines() == [
        "Longer training would not help: the validation perplexity has risen from 10.5 at step 1,000 to 14.9 at step "
        "1,800.",
        "Perplexity of the training text 3.32, of the validation text 14.9, after 31.0 passes over the text: more text "
        "or more dropout would help.",
    ]


@pytest.mark.parametrize("noise", [0.002, 0.02])
def test_noise_is_seldom_a_rise(noise):
    falling = [rises(curve(1.5, 30.0, 0.6, noise=noise, seed=seed)) for seed in range(50)]
    rising = [rises(curve(1.5, 200.0, 0.8, noise=noise, seed=seed) + np.linspace(0, 1, 12) ** 2) for seed in range(50)]
    assert sum(falling) <= 1
    assert sum(rising) >= 45


# ---- what it says


def test_the_sentences():
    numbers = {"step": 2400, "perplexity": 9.8, "best_step": 2400, "best_perplexity": 9.8, "evaluations": 12}
    longer = {"longer_perplexity": 9.1, "longer_range": (8.86, 9.35)}
    time, text = str(Forecast(train_perplexity=9.0, passes=7.0, **numbers, **longer)).splitlines()
    assert time == (
        "Twice as long (4,800 steps): validation perplexity about 9.10 (8.86 to 9.35) instead of 9.80 at step 2,400, "
        "by a power law through 12 evaluations."
    )
    assert text == (
        "Perplexity of the training text 9.00, of the validation text 9.80, after 7.0 passes over the text: more text "
        "would help, too."
    )
    assert str(Forecast(train_perplexity=12.0, **numbers, reason="it is flat")) == (
        "No forecast for a longer training: it is flat."
    )


@pytest.mark.parametrize(
    ("passes", "consequence"),
    [
        (1.43, "after 1.4 passes over the text: more text would help no more than more time."),
        (2.3, "after 2.3 passes over the text: more text would help, too."),
        (11.0, "after 11.0 passes over the text: more text would help more than more time."),
    ],
)
def test_more_text_helps_by_the_passes_and_not_by_a_gap_that_dropout_hides(passes, consequence):
    for train_perplexity in (4.7, 2.0):
        for longer in ({"reason": "it is flat"}, {"longer_perplexity": 4.3, "longer_range": (3.8, 4.7)}):
            text = str(Forecast(2400, 4.7, train_perplexity, 2400, 4.7, passes=passes, **longer)).splitlines()[1]
            assert text.endswith(consequence)
    perfect = Forecast(2400, 1.001, 1.002, 2400, 1.001, passes=passes, reason="it is flat")
    assert str(perfect).endswith("passes over the text: there is nothing left to learn.")


@pytest.mark.parametrize(
    ("perplexity", "text"), [(1.0, "1.00"), (9.804, "9.80"), (12.34, "12.3"), (123.4, "123"), (8000.4, "8000")]
)
def test_perplexities_have_three_digits(perplexity, text):
    assert f" {text} at step 1," in str(Forecast(1, perplexity, 1.0, 1, 1.0, 5, 1.0, (1.0, 1.0)))


# ---- the history


COLUMNS = ["epoch", "learning_rate", "perplexity", "step", "val_perplexity"]


def write_history(folder, rows, columns=COLUMNS):
    folder.mkdir(exist_ok=True)
    text = "\n".join(",".join(map(str, row)) for row in [columns, *rows])
    (folder / "history.csv").write_text(text + "\n", encoding="utf-8")
    return folder


def test_a_history_is_read(tmp_path):
    rows = [[0, 0.5, 20.0, 100, 30.0], [1, 0.25, 10.0, 200, 15.0]]
    evaluations = read_evaluations(write_history(tmp_path, rows) / "history.csv")
    np.testing.assert_array_equal(evaluations.steps, [100, 200])
    np.testing.assert_array_equal(evaluations.learning_rates, [0.5, 0.25])
    np.testing.assert_allclose(evaluations.train_losses, np.log([20, 10]))
    np.testing.assert_allclose(evaluations.valid_losses, np.log([30, 15]))
    assert evaluations.passes is None  # as in a run of an earlier version
    rows = [[*rows[0], 1.5], [*rows[1], 3.0]]
    assert read_evaluations(write_history(tmp_path, rows, [*COLUMNS, "passes"]) / "history.csv").passes == 3.0


def test_evaluations_that_were_repeated_count_once(tmp_path):
    steps = [100, 200, 300, 350, 300, 400, 400]
    rows = [[0, 0.5, 20.0, step, 30.0 + index] for index, step in enumerate(steps)]
    evaluations = read_evaluations(write_history(tmp_path, rows) / "history.csv")
    np.testing.assert_array_equal(evaluations.steps, [100, 200, 300, 400])
    np.testing.assert_allclose(np.exp(evaluations.valid_losses), [30, 31, 34, 36])


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], COLUMNS, "holds no evaluation"),
        ([[0, 0.5, 20.0, 30.0]], ["epoch", "learning_rate", "perplexity", "val_perplexity"], "it has no column step"),
        ([[0, 0.5, 20.0, 100]], COLUMNS, "line 2 is incomplete, or holds a number that is not positive"),
        ([[0, 0.5, 20.0, 100, ""]], COLUMNS, "line 2 is incomplete"),
        ([[0, 0.5, 20.0, 100, 30.0], [0, 0.5, 20.0, 100, "inf"]], COLUMNS, "line 3 is incomplete"),
        ([[0, 0.5, 20.0, 0, 30.0]], COLUMNS, "line 2 is incomplete"),
        ([[0, 0.5, 20.0, 100, "NA"]], COLUMNS, "could not convert string to float"),
    ],
)
def test_a_history_that_cannot_be_used(tmp_path, rows, columns, message):
    folder = write_history(tmp_path, rows, columns)
    with pytest.raises(ValueError, match=rf"history\.csv .*{message}"):
        forecast_run(folder)
    summary = forecast_summary(folder)
    assert summary.startswith("No forecast for a longer training: ")
    assert message in summary
    assert summary.count("\n") == 0


def test_a_summary_never_raises(tmp_path, monkeypatch):
    assert "history.csv does not exist: no evaluation has been made." in forecast_summary(tmp_path)
    (tmp_path / "history.csv").write_bytes(b"\xff\xfe\0")
    assert "cannot be used: 'utf-8' codec" in forecast_summary(tmp_path)
    (tmp_path / "history.csv").unlink()
    (tmp_path / "history.csv").mkdir()
    assert "Is a directory" in forecast_summary(tmp_path)
    monkeypatch.setattr("keras_attention.pipeline.forecast.read_evaluations", lambda _: 1 / 0)
    assert forecast_summary(tmp_path) == "No forecast for a longer training: division by zero."


def test_a_forecast_of_a_run(tmp_path):
    steps, losses = np.arange(1, 13) * 200, curve(1.5, 30.0, 0.6)
    rows = zip(range(12), rates_of(steps), np.exp(losses - 0.1), steps, np.exp(losses), strict=True)
    folder = write_history(tmp_path / "run", rows)
    assert forecast_run(folder).longer_perplexity == pytest.approx(math.exp(1.5 + 30 * 4800**-0.6), rel=0.01)
    assert forecast_summary(folder) == str(forecast_run(folder))


def test_the_history_has_the_step_the_passes_and_the_learning_rate(tmp_path):
    file = tmp_path / "history.csv"

    def fit(epochs, first):
        writer = HistoryWriter(str(file), steps_per_pass=3.5, append=first > 0)
        model.fit(np.ones((7, 3)), np.ones((7, 1)), 1, epochs, verbose=0, initial_epoch=first, callbacks=[writer])

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    schedule = InverseSqrtSchedule(hidden_dim=64, warmup_steps=5)
    model.compile(keras.optimizers.SGD(schedule), loss="mse")
    fit(2, first=0)
    fit(3, first=2)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [7, 14, 21]
    assert [float(row["passes"]) for row in rows] == [2, 4, 6]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([float(schedule(n)) for n in (7, 14, 21)])
    assert all(float(row["loss"]) >= 0 for row in rows)
