"""A learning rate that falls to zero at the end of training, whether that end is a step or a time."""

import time
from typing import Any

import keras

from keras_attention.layers.arguments import fraction_or_one, positive_integer, positive_number
from keras_attention.training.processes import of_first_process
from keras_attention.training.scalars import step_of
from keras_attention.training.schedules import DECAY, MAX_WARMUP, InverseSqrtSchedule


class DecayToLimit(keras.callbacks.Callback):
    """lr(step) = schedule(step) · min(1, (1 − progress) / decay), where progress is 1 at the first limit.

    A schedule needs to know the number of steps in advance. This callback also decays the learning rate of a training
    that ends after some minutes: progress is the part of the steps or of the minutes that is over, whichever is larger.
    A warm-up that would take more than a quarter of the training ends there, at the same peak. The optimizer's
    `learning_rate` must be a number, which the callback replaces before each step.

    Args:
        schedule: The learning rate without a decay, such as an `InverseSqrtSchedule`.
        steps: Number of optimizer steps, including those of earlier calls of `fit`; None for no limit.
        minutes: Minutes since training began; None for no limit.
        decay: Part of the training over which the learning rate falls; 0 for none, 1 for all of it.

    Raises:
        ValueError: If a limit is not above zero, or `decay` is outside [0, 1].

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
        >>> model.compile(keras.optimizers.Adam(0.0), loss=ka.training.MaskedCrossEntropy())
        >>> schedule = ka.training.InverseSqrtSchedule(hidden_dim=64, warmup_steps=1)
        >>> ids = keras.ops.ones((2, 5), dtype="int32")
        >>> history = model.fit({"source": ids, "target": ids}, ids, verbose=0, epochs=2,
        ...                     callbacks=[DecayToLimit(schedule, steps=4)])
        >>> float(model.optimizer.learning_rate), float(schedule(1))
        (0.0883..., 0.0883...)

    Source: Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", section 3.
    """

    def __init__(
        self,
        schedule: InverseSqrtSchedule,
        steps: int | None = None,
        minutes: float | None = None,
        decay: float = DECAY,
    ):
        super().__init__()
        self.schedule = schedule
        self.steps = None if steps is None else positive_integer(steps, "steps")
        self.minutes = None if minutes is None else positive_number(minutes, "minutes")
        self.decay = fraction_or_one(decay, "decay")

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        schedule = getattr(optimizer, "inner_optimizer", optimizer).get_config()["learning_rate"]
        if isinstance(schedule, dict):
            raise ValueError(
                "DecayToLimit sets the learning rate, which must be a number in the optimizer: pass the schedule to "
                f"the callback instead. Received: an optimizer with the schedule {schedule['class_name']}"
            )
        self._batches = 0  # of this `fit`
        self._started, self._compiled = time.monotonic(), 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        seconds = self._seconds()
        if self._batches <= 1:
            self._compiled = seconds  # the first batch takes the time of compilation, in which nothing warms up
        self._batches += 1
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()  # the step keeps the optimizer's variables to itself
        # The batches of a step that accumulates their gradients have the rate of that step.
        self.model.optimizer.learning_rate = self._rate(step_of(self.model.optimizer), seconds)

    def _seconds(self) -> float:
        """The seconds since training began, the same in all processes of a training."""
        seconds = time.monotonic() - self._started
        return seconds if self.minutes is None else float(of_first_process(seconds))

    def _rate(self, step: int, seconds: float) -> float:
        """The learning rate of a step, counted from zero."""
        rate, warmup = float(self.schedule(step)), self.schedule.warmup_steps
        if step < warmup:
            rate = max(rate, self.schedule.peak * min(1.0, self._progress(step, seconds - self._compiled) / MAX_WARMUP))
        remaining = max(0.0, 1 - self._progress(step, seconds))
        return rate * min(1.0, remaining / self.decay) if self.decay else rate

    def _progress(self, step: int, seconds: float) -> float:
        """The part of the training that is over."""
        by_steps = 0.0 if self.steps is None else (step + 1) / self.steps
        return by_steps if self.minutes is None else max(by_steps, seconds / (60 * self.minutes))
