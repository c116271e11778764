"""The progress of a training in one line."""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.status_line import StatusLine, clock
from keras_attention.training.scalars import step_of
from keras_attention.training.stop_signals import in_fit

# The speed is that of the last one or two of these periods.
_PERIOD_SECONDS = 15.0
_TICK_SECONDS = 1.0
_LABELS = {"val_bleu": "BLEU", "val_chrf": "chrF"}


class ProgressLine(keras.callbacks.ProgbarLogger):
    """Shows the progress of `fit` in one line of a terminal, and every minute in a log; replaces Keras' progress bar.

    The line has the time since the training began, the step, the tokens or batches per second, the loss, the last BLEU
    and the time until the limit that ends the training first. Each epoch ends with a line of its own, with its metrics
    and the best validation loss so far. A log gets neither escape codes nor carriage returns.

    Args:
        steps: Number of optimizer steps at which another callback, such as `StopAfter`, ends training; None for no
            limit. The epochs of `fit` are known.
        minutes: Minutes after which another callback ends training; None for no limit.
        tokens_per_batch: Source and target tokens of an average batch; None to show batches per second.
        metrics: Entries of the logs to show at the end of an epoch; None for all.
        console: Console of `rich`; None for standard output.

    Attributes:
        best: The lowest `val_loss` so far.
        best_step: The step of `best`.
        bleu: The last `val_bleu`; NaN before the first.

    Raises:
        ValueError: If a limit or `tokens_per_batch` is not above zero.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(1, kernel_initializer="zeros")])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.zeros((6, 3)), np.ones((6, 1))
        >>> history = model.fit(x, y, batch_size=2, validation_data=(x, y), callbacks=[ProgressLine()])
        0:00:00  step 0  compiling
        step 3: loss 0.9609, validation loss 0.8858, best so far
    """

    def __init__(
        self,
        steps: int | None = None,
        minutes: float | None = None,
        tokens_per_batch: float | None = None,
        metrics: Sequence[str] | None = None,
        console: Any = None,
    ):
        super().__init__()
        self.steps = None if steps is None else positive_integer(steps, "steps")
        self.minutes = None if minutes is None else positive_number(minutes, "minutes")
        self.tokens_per_batch = (
            None if tokens_per_batch is None else positive_number(tokens_per_batch, "tokens_per_batch")
        )
        self.metrics = None if metrics is None else tuple(metrics)
        self.best, self.best_step, self.bleu = math.inf, 0, math.nan
        self._line = StatusLine(console=console)
        self._started = time.monotonic()
        self._phase: tuple[str, float] | None = None  # its name, and when it began
        self._ended = threading.Event()
        self._ended.set()
        self._step = 0
        self._loss = math.nan

    def set_params(self, params: Any) -> None:
        """Keeps the arguments of `fit`, and none for a progress bar.

        Args:
            params: Numbers of epochs and of batches in an epoch.
        """
        self.params = params

    def phase(self, name: str) -> None:
        """Shows what is done from now until the next batch, and for how long.

        Args:
            name: Name of the work, such as "translating".
        """
        self._read_step()
        self._phase = (name, time.monotonic())
        self._show_phase(at_once=True)

    def close(self) -> None:
        """Erases the line from a terminal, when `fit` has ended with an error or at Ctrl-C.

        Without it, the next text that is printed erases the line.
        """
        self._ended.set()
        self._phase = None
        self._line.clear()

    def on_train_begin(self, logs: Any = None) -> None:
        self._started = time.monotonic()
        self._epoch = 0
        self._batches = 0  # of this `fit`
        self._first: tuple[float, int, int] | None = None  # time, batches and step after the first batch
        self._ended = threading.Event()
        threading.Thread(target=self._watch, args=(threading.get_ident(), self._ended), daemon=True).start()
        self._phase = ("compiling", self._started)
        self._read_step()
        self._line.start(lambda: self._text_of_phase("compiling", self._started))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        self._before = self._batches  # those of earlier epochs
        self._marks = deque([(time.monotonic(), self._batches)], maxlen=2)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.monotonic()
        self._batches = self._before + batch + 1
        self._loss = (logs or {}).get("loss", math.nan)
        if self._first is None:
            self._read_step()
            self._first = (now, self._batches, self._step)
            self._marks[0] = (now, self._batches)  # the first batch takes the time of compilation
        elif now - self._marks[-1][0] >= _PERIOD_SECONDS:
            self._marks.append((now, self._batches))
        self._phase = None
        self._line.show(self._text_of_step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._read_step()
        self._phase = None
        self._line.print(self._summary(logs or {}))

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def on_test_begin(self, logs: Any = None) -> None:
        self.phase("validating")

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._show_phase()

    def on_test_end(self, logs: Any = None) -> None:
        if self._ended.is_set():  # not in `fit`
            self.close()

    def on_predict_begin(self, logs: Any = None) -> None:
        self.phase("predicting")

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self._show_phase()

    def on_predict_end(self, logs: Any = None) -> None:
        self.on_test_end()

    def _watch(self, thread: int, ended: threading.Event) -> None:
        """Repeats the line while no batch ends, from another thread, until `fit` ends in whatever way."""
        while not ended.wait(_TICK_SECONDS):
            if not in_fit(sys._current_frames().get(thread)):
                if not ended.is_set():
                    self.close()
                return
            self._show_phase()

    def _read_step(self) -> None:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None:  # unless the model is only evaluated
            self._step = step_of(optimizer)

    def _show_phase(self, at_once: bool = False) -> None:
        phase = self._phase  # which another thread may change
        if phase is not None:
            self._line.show(lambda: self._text_of_phase(*phase), at_once)

    def _text_of_phase(self, name: str, began: float) -> str:
        now = time.monotonic()
        elapsed = [clock(now - began)] if now - began >= 1 else []
        return "  ".join([clock(now - self._started), f"step {self._step:,}", name, *elapsed])

    def _text_of_step(self) -> str:
        self._read_step()
        now = time.monotonic()
        beginning = [clock(now - self._started), f"step {self._step:,}"]
        values = [*self._speed(now), f"loss {_number(self._loss)}", *self._bleu(), *self._left(now)]
        return "  ".join([*beginning, *values])

    def _speed(self, now: float) -> list[str]:
        since, batches = self._marks[0]
        if now <= since or self._batches <= batches:
            return []
        speed = (self._batches - batches) / (now - since)
        if self.tokens_per_batch is None:
            return [f"{speed:.3g} batches/s"]
        return [f"{speed * self.tokens_per_batch:,.0f} tokens/s"]

    def _bleu(self) -> list[str]:
        return [] if math.isnan(self.bleu) else [f"BLEU {self.bleu:.1f}"]

    def _left(self, now: float) -> list[str]:
        """The time until the limit that ends the training first."""
        limits = [] if self.minutes is None else [(60 * self.minutes - (now - self._started), f"{self.minutes:g} min")]
        time_of_first, batches, step = self._first
        seconds, batches, steps = now - time_of_first, self._batches - batches, self._step - step
        if self.steps is not None and steps > 0:
            limits.append((seconds / steps * (self.steps - self._step), f"{self.steps:,} steps"))
        epochs, per_epoch = self.params.get("epochs"), self.params.get("steps")
        if epochs and per_epoch and batches > 0:
            remaining = (epochs - self._epoch) * per_epoch - (self._batches - self._before)
            limits.append((seconds / batches * remaining, f"{epochs:,} epoch{'s' if epochs > 1 else ''}"))
        if not limits:
            return []
        seconds, limit = min(limits, key=lambda each: round(each[0]))  # of equal ones the first
        return [f"{clock(max(0.0, seconds))} left of {limit}"]

    def _summary(self, logs: Mapping[str, Any]) -> str:
        self.bleu = float(logs.get("val_bleu", self.bleu))
        names = [name for name in (logs if self.metrics is None else self.metrics) if name in logs]
        values = [f"{_label(name)} {_value(name, logs[name])}" for name in names]
        if "val_loss" in logs:
            if logs["val_loss"] < self.best:
                self.best, self.best_step = float(logs["val_loss"]), self._step
            values.append("best so far" if self.best_step == self._step else f"best at step {self.best_step:,}")
        return f"step {self._step:,}: {', '.join(values)}"


def _label(name: str) -> str:
    return _LABELS.get(name) or name.replace("val_", "validation ", 1).replace("_", " ")


def _value(name: str, value: Any) -> str:
    return f"{float(value):.1f}" if name in _LABELS else _number(value)


def _number(value: Any) -> str:
    """The number with four digits, or more before the point."""
    value = float(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:#.4g}"
