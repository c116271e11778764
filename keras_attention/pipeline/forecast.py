"""What more training or more text would bring to a run: a power law through its validation losses.

Losses are in nats per token, the logarithm of the perplexity. N is the number of evaluations.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.history import Evaluations, read_evaluations

FACTOR = 2  # the longer training has twice as many steps
MIN_EVALUATIONS = 5
# The part of the steps whose evaluations are not fitted.
_BEGINNING = 0.2
# The part of the variance of the losses that the power law must explain.
_MIN_EXPLAINED = 0.9
# The least error of a forecast, as a part of the decrease, since no run follows the power law exactly; and the largest
# one of a small decrease: losses of half an hour, whose noise is large, left errors of up to 0.16.
_MIN_ERROR, _MAX_ERROR = 0.3, 0.2
_NO_POWER_LAW = "the validation perplexity is flat, or does not follow a power law"
_EXPONENTS = np.geomspace(0.05, 4, 400)
# A rate below this part of the one after warm-up and before the final decay, lr ∝ 1/√step, is a decayed one; at a rate
# below the other part, the decay is over.
_HIGH_RATE, _LOW_RATE = 0.98, 0.1
# A smaller rise of the validation loss, or one of few standard deviations of its noise, is not overfitting.
_MIN_RISE, _MIN_RISE_IN_NOISE = 0.01, 4.0
# Up to a few passes, a text that is read again is worth nearly as much as a new one (Muennighoff et al. 2023: four, for
# larger models). After many, twice the text helped much more than twice the time (docs/experiments/training.md); after
# five, a little more. The gap to the training loss says less, since dropout raises that loss.
_FEW_PASSES, _MANY_PASSES = 2, 8
# A model that predicts so well, as of a made-up task, has nothing left to learn.
_PERFECT = 1.01


@dataclass(frozen=True)
class PowerLaw:
    """loss(step) = a + b · step^−c."""

    floor: float  # a
    scale: float  # b
    exponent: float  # c

    def __call__(self, step: float) -> float:
        return self.floor + self.scale * step**-self.exponent

    def gain(self, step: float) -> float:
        """The loss at a step minus the loss at `FACTOR` times as many steps."""
        return self(step) - self(FACTOR * step)


@dataclass(frozen=True)
class Forecast:
    """The perplexities of a run, and the validation perplexity that twice as many steps would have reached.

    Printed, it is one or two sentences.

    Attributes:
        step: Step of the last evaluation.
        perplexity: Validation perplexity at that step.
        train_perplexity: Perplexity of the training text, with dropout, before that step.
        best_step: Step of the lowest validation perplexity.
        best_perplexity: Validation perplexity at that step.
        evaluations: Number of evaluations from which the forecast is computed.
        longer_perplexity: Validation perplexity expected after twice as many steps; None for no forecast.
        longer_range: Range of `longer_perplexity`; None for no forecast.
        rising: True if the validation perplexity has risen since `best_step`: the model overfits.
        reason: Why there is no forecast; None if there is one.
        passes: Number of passes over the training text before `step`; None where the history does not have it.

    Example:
        >>> longer = {"longer_perplexity": 9.1, "longer_range": (8.9, 9.3), "evaluations": 12, "passes": 5.6}
        >>> print(Forecast(1000, 9.8, 9.1, 1000, 9.8, **longer))
        Twice as long (2,000 steps): validation perplexity about 9.10 (8.90 to 9.30) instead of 9.80 at step 1,000,
        by a power law through 12 evaluations.
        Perplexity of the training text 9.10, of the validation text 9.80, after 5.6 passes over the text: more text
        would help, too.
    """

    step: int
    perplexity: float
    train_perplexity: float
    best_step: int
    best_perplexity: float
    evaluations: int = 0
    longer_perplexity: float | None = None
    longer_range: tuple[float, float] | None = None
    rising: bool = False
    reason: str | None = None
    passes: float | None = None

    def __str__(self) -> str:
        return "\n".join(filter(None, [self._about_time(), self._about_text()]))

    def _about_time(self) -> str:
        now = f"{_rounded(self.perplexity)} at step {self.step:,}"
        if self.rising:
            lowest = f"{_rounded(self.best_perplexity)} at step {self.best_step:,}"
            return f"Longer training would not help: the validation perplexity has risen from {lowest} to {now}."
        if self.longer_perplexity is None:
            return f"No forecast for a longer training: {self.reason}."
        low, high = map(_rounded, self.longer_range)
        return (
            f"Twice as long ({FACTOR * self.step:,} steps): validation perplexity about "
            f"{_rounded(self.longer_perplexity)} ({low} to {high}) instead of {now}, by a power law through "
            f"{self.evaluations} evaluations."
        )

    def _about_text(self) -> str | None:
        if self.passes is None:
            return None
        if self.rising:
            consequence = "more text or more dropout would help"
        elif self.perplexity <= _PERFECT:
            consequence = "there is nothing left to learn"
        elif self.passes <= _FEW_PASSES:
            consequence = "more text would help no more than more time"
        elif self.passes <= _MANY_PASSES:
            consequence = "more text would help, too"
        else:
            consequence = "more text would help more than more time"
        train, valid = _rounded(self.train_perplexity), _rounded(self.perplexity)
        return (
            f"Perplexity of the training text {train}, of the validation text {valid}, after {self.passes:.1f} passes "
            f"over the text: {consequence}."
        )


def forecast_run(folder: str | Path) -> Forecast:
    """Computes from the history of a run what a training of twice as many steps would have reached.

    The losses of the evaluations before the final decay of the learning rate, without the warm-up and the first fifth
    of the steps, are fitted by a + b · step^−c, and the loss of the longer training is the last one minus the decrease
    of the fit. The range extends on either side by the largest of: two standard errors by the jackknife; the error with
    which the first half of the steps forecasts the other half; 30% of the decrease. It does not go above the last
    perplexity: where the validation loss is not rising, longer training is not worse.

    Args:
        folder: Folder of a run.

    Returns:
        The forecast, or the reason why there is none.

    Raises:
        FileNotFoundError: If the run has no history.
        ValueError: If the history is damaged or of an earlier release.

    Example:
        >>> import pathlib
        >>> pathlib.Path("run").mkdir()
        >>> curve = [(step, np.exp(1.5 + 30 * step**-0.6)) for step in range(100, 1300, 100)]
        >>> rows = [f"{step},{step**-0.5},5,{perplexity}" for step, perplexity in curve]
        >>> text = "\\n".join(["step,learning_rate,perplexity,val_perplexity", *rows])
        >>> _ = pathlib.Path("run", "history.csv").write_text(text)
        >>> print(f"{forecast_run('run').longer_perplexity:.1f}, the curve {np.exp(1.5 + 30 * 2400**-0.6):.1f}")
        5.9, the curve 5.9

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 5; Efron 1982, "The Jackknife, the
    Bootstrap and Other Resampling Plans", for the range; Muennighoff et al. 2023, "Scaling Data-Constrained Language
    Models", for what is said about more text.
    """
    return forecast(read_evaluations(RunFolder(folder).history_file))


def forecast_summary(folder: str | Path) -> str:
    """Describes the forecast of a run that has just been trained; never raises."""
    try:
        return str(forecast_run(folder))
    except Exception as error:  # whatever it is, the training has succeeded
        return f"No forecast for a longer training: {error}."


def forecast(evaluations: Evaluations) -> Forecast:
    """Computes the forecast from the evaluations of a run."""
    steps, losses = evaluations.steps, evaluations.valid_losses
    best = int(np.argmin(losses))
    values = {
        "step": int(steps[-1]),
        "perplexity": math.exp(losses[-1]),
        "train_perplexity": math.exp(evaluations.train_losses[-1]),
        "best_step": int(steps[best]),
        "best_perplexity": math.exp(losses[best]),
        "passes": evaluations.passes,
    }
    rates = relative_rates(steps, evaluations.learning_rates)
    high = rates >= _HIGH_RATE
    final_decay = np.cumsum(high) == high.sum()  # not the decays after which the run was resumed
    if rises(losses[high | final_decay]):
        return Forecast(**values, rising=True)
    steps, losses = steps[high], losses[high]
    reason = _reason_against(*_late(steps, losses), rates[-1])
    if reason is not None:
        return Forecast(**values, reason=reason)
    gain, error = expected_gain(steps, losses, values["step"])
    if error > max(gain, _MAX_ERROR):
        return Forecast(**values, reason=_NO_POWER_LAW)
    last = evaluations.valid_losses[-1]
    gains = (gain, gain + error, max(0.0, gain - error))
    longer, low, high_end = (math.exp(max(0.0, last - each)) for each in gains)
    number = len(_late(steps, losses)[0])
    return Forecast(**values, evaluations=number, longer_perplexity=longer, longer_range=(low, high_end))


def relative_rates(steps: np.ndarray, learning_rates: np.ndarray) -> np.ndarray:
    """Learning rates as parts of the rate without a decay, lr ∝ 1/√step, and 0 during the warm-up, (N,)."""
    peak = int(np.argmax(learning_rates))
    if learning_rates[peak] == 0:
        return np.zeros(len(steps))
    rates = learning_rates / (learning_rates[peak] * np.sqrt(steps[peak] / steps))
    return np.where(steps < steps[peak], 0.0, rates)


def rises(losses: np.ndarray) -> bool:
    """Returns True if the losses (N,) have risen, by more than their noise, in at least two evaluations."""
    lowest = int(np.argmin(losses)) if len(losses) else 0
    if len(losses) - lowest < 3 or len(losses) < 4:
        return False
    return bool(losses[-2:].mean() - losses[lowest] > max(_MIN_RISE, _MIN_RISE_IN_NOISE * noise_of(losses)))


def noise_of(losses: np.ndarray) -> float:
    """The standard deviation of the noise in losses (N,), from their second differences."""
    # The median is not affected by the steep beginning of the curve. The factor turns it into a standard deviation.
    return float(np.median(np.abs(np.diff(losses, 2)))) / (0.6745 * math.sqrt(6))


def fit_power_law(steps: np.ndarray, losses: np.ndarray) -> PowerLaw:
    """Fits a + b · step^−c to losses (N,) by least squares: the best a, b ≥ 0 for each c of a grid."""
    x = (steps / steps[-1]) ** -_EXPONENTS[:, None]  # (C, N)
    from_mean = x - x.mean(axis=1, keepdims=True)
    scale = from_mean @ losses / (from_mean**2).sum(axis=1)  # (C,)
    floor = losses.mean() - scale * x.mean(axis=1)
    scale = np.where(floor < 0, x @ losses / (x**2).sum(axis=1), scale)
    scale, floor = np.maximum(scale, 0.0), np.where(scale < 0, losses.mean(), np.maximum(floor, 0.0))
    errors = ((floor[:, None] + scale[:, None] * x - losses) ** 2).sum(axis=1)
    best = int(np.argmin(errors))
    exponent = float(_EXPONENTS[best])
    return PowerLaw(float(floor[best]), float(scale[best] * steps[-1] ** exponent), exponent)


def expected_gain(steps: np.ndarray, losses: np.ndarray, step: int) -> tuple[float, float]:
    """The decrease of the loss from a step to `FACTOR` times as many, and its error, from losses (N,)."""
    late_steps, late_losses = _late(steps, losses)
    law, number = fit_power_law(late_steps, late_losses), len(late_steps)
    without_one = [np.delete(np.arange(number), index) for index in range(number)]
    gains = np.array([fit_power_law(late_steps[each], late_losses[each]).gain(step) for each in without_one])
    error = max(_MIN_ERROR * law.gain(step), 2 * math.sqrt((number - 1) * gains.var()))
    first = steps <= steps[-1] / FACTOR
    early_steps, early_losses = _late(steps[first], losses[first])
    if len(early_steps) >= MIN_EVALUATIONS:
        error = max(error, abs(fit_power_law(early_steps, early_losses)(steps[-1]) - law(steps[-1])))
    return law.gain(step), error


def _late(steps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The evaluations that are fitted: without the steep beginning, which often follows another law."""
    late = steps >= _BEGINNING * steps[-1:]
    return steps[late], losses[late]


def _reason_against(steps: np.ndarray, losses: np.ndarray, last_rate: float) -> str | None:
    """Why a power law through the evaluations says nothing; None if it does."""
    if len(steps) < MIN_EVALUATIONS:
        return (
            "the number of evaluations after the first fifth of the steps and the warm-up, and before the final decay, "
            f"is {len(steps)}, and {MIN_EVALUATIONS} are needed; a smaller evaluate_every gives more"
        )
    if _LOW_RATE < last_rate < _HIGH_RATE:
        return "the learning rate has not finished its decay"
    if rises(losses):
        return f"the validation perplexity rose after step {int(steps[np.argmin(losses)]):,}, before the final decay"
    law = fit_power_law(steps, losses)
    variance = (losses - np.array([law(step) for step in steps])).var()
    if law.scale == 0 or variance > (1 - _MIN_EXPLAINED) * losses.var():
        return _NO_POWER_LAW
    return None


def _rounded(perplexity: float) -> str:
    return f"{perplexity:.{max(0, 2 - int(math.log10(perplexity)))}f}"
