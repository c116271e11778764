"""Forecasts the next day of hourly series, against last week's same day and a linear model; draws a forecast.

Run it: python examples/forecast.py

The series are made: loads of households with a daily profile, another one on the two rest days of the week, a level
that changes slowly, and noise. A token is a day of 24 hours, a patch in the sense of Nie et al. 2022: the encoder
reads two weeks and predicts the next day.
"""

import sys

import keras
import numpy as np

import keras_attention as ka

HOURS, DAYS = 24, 14  # of a token, of a window
NOISE = 0.1
SMOKE = {"households": 50, "epochs": 4, "image": None}


def make_series(households: int, days: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Makes hourly loads (households, days, 24), and what is expected of them by the rules and the day before."""
    hours = np.arange(HOURS)
    bumps = np.exp(-(((hours - random.uniform(5, 23, (households, 2, 3, 1)) + 12) % 24 - 12) ** 2) / 8)
    profiles = 0.3 + (random.uniform(0.2, 1.5, (households, 2, 3, 1)) * bumps).sum(2)  # (households, 2, 24)
    first = random.integers(0, 7, households)[:, None]
    rests = ((np.arange(days) + first) % 7 < 2).astype(int)  # (households, days)
    level = np.zeros((households, days))
    for day in range(1, days):
        level[:, day] = 0.9 * level[:, day - 1] + random.normal(0, 0.2, households)
    profile = np.take_along_axis(profiles, rests[..., None], axis=1)
    loads = np.exp(level[..., None] + random.normal(0, NOISE, profile.shape)) * profile
    return loads, np.exp(0.9 * np.roll(level, 1, axis=1))[..., None] * profile


def windows(series: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows (N, 14, 24) of series, each divided by its mean, the day after each (N, 24), and the means (N, 1)."""
    days = np.lib.stride_tricks.sliding_window_view(series, DAYS + 1, axis=1)  # (households, days, 24, 15)
    days = days.reshape(-1, HOURS, DAYS + 1).swapaxes(1, 2)  # (N, 15, 24)
    mean = days[:, :DAYS].mean((1, 2), keepdims=True)
    days = (days / mean).astype("float32")
    return days[:, :DAYS], days[:, DAYS], mean[:, 0]


def build_model(width: int = 64) -> keras.Model:
    """Builds the embedding of days, learned positions, three encoder layers, and the next day from the last one."""
    days = keras.Input((DAYS, HOURS))
    x = keras.layers.Dense(width)(keras.ops.log(days))
    x = ka.LearnedPositionalEncoding(DAYS, scale=False)(x)
    x = ka.Encoder(3, intermediate_dim=2 * width, num_heads=4, dropout=0.05)(x)
    return keras.Model(days, keras.ops.exp(keras.layers.Dense(HOURS)(x[:, -1])))


def draw(image: str, days: np.ndarray, after: np.ndarray, forecasts: dict[str, np.ndarray]) -> None:
    """Draws the last week of one window, the day after it, and the forecasts."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.5), layout="constrained")
    axes.plot(
        np.arange(-7 * HOURS, HOURS), np.concatenate([days[-7:].ravel(), after]), color="black", label="load", lw=1
    )
    for (name, values), color in zip(forecasts.items(), ("tab:orange", "tab:green", "tab:blue"), strict=True):
        axes.plot(np.arange(HOURS), values, color=color, label=name)
    axes.axvspan(0, HOURS - 1, color="0.93")
    axes.set(xlabel="hours from the start of the forecast", ylabel="load / mean of the window")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(image, dpi=130, facecolor="white")


def main(households: int = 200, epochs: int = 15, image: str | None = "forecast.png") -> dict[str, float]:
    """Trains on some households and returns the mean absolute errors on others, in units of a window's mean."""
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    inputs, labels, _ = windows(make_series(households, 90, random)[0])
    loads, expected = make_series(50, 90, random)
    test_inputs, test_labels, scale = windows(loads)
    oracle = windows(expected)[1] * windows(expected)[2] / scale

    flat, test_flat = (days.reshape(len(days), -1) for days in (inputs, test_inputs))
    weights = np.linalg.lstsq(np.c_[flat, np.ones(len(flat))], labels, rcond=None)[0]
    model = build_model()
    rate = keras.optimizers.schedules.CosineDecay(0.002, epochs * -(-len(inputs) // 64))
    model.compile(keras.optimizers.Adam(rate), loss="mean_absolute_error")
    model.fit(inputs, labels, batch_size=64, epochs=epochs, verbose=2)

    forecasts = {
        "same day of last week": test_inputs[:, -7],
        "linear model": np.c_[test_flat, np.ones(len(test_flat))] @ weights,
        "encoder": model.predict(test_inputs, verbose=0),
    }
    errors = {name: float(np.abs(values - test_labels).mean()) for name, values in forecasts.items()}
    errors["with the rules known"] = float(np.abs(oracle - test_labels).mean())
    for name, error in errors.items():
        print(f"mean absolute error, {name}: {error:.3f}")
    if image:
        draw(image, test_inputs[30], test_labels[30], {name: values[30] for name, values in forecasts.items()})
    return errors


if __name__ == "__main__":
    main(**SMOKE if "--smoke" in sys.argv[1:] else {})
