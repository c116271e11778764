"""Callbacks for batches with a loss or gradients that are not finite, and for a loss that jumps."""

import collections
import math
import statistics
from collections.abc import Callable
from typing import Any

import keras

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.training.scalars import step_of, value_of


class SkippedSteps(keras.callbacks.Callback):
    """Counts the batches that the optimizer skips, and ends training with an error after a number of them in a row.

    `FusedAdam` and `Muon` skip a batch with a loss or gradients that are not finite: the weights and the state of the
    optimizer remain as they were. This callback prints the first one in a row, and takes such a loss out of the metrics
    of the epoch. With another optimizer, whose weights are broken then, training ends at once.

    The optimizer that scales a float16 loss also skips a batch to find a scale that is not too large. These batches,
    whose loss is finite, are only counted.

    Put it before the callbacks that read the logs.

    Args:
        limit: Number of skipped batches in a row with which training ends.
        save_batch: Called for the first batch in a row; returns the path of the file in which it has saved the batch.

    Attributes:
        skipped: Number of skipped batches.
        in_a_row: Number of skipped batches since the last one that was not.

    Raises:
        ValueError: If `limit` is not a positive integer or, in `fit`, `steps_per_execution` is above 1.
        FloatingPointError: In `fit`, when training has diverged.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(ka.training.FusedAdam(), "mse")
        >>> x, y = np.array([[1, 2], [np.nan, 3], [4, 5]]), np.ones((3, 1))
        >>> steps = SkippedSteps()
        >>> history = model.fit(x, y, batch_size=1, shuffle=False, callbacks=[steps], verbose=0)
        The loss is nan after step 1, so the batch is skipped, and the weights are as before it.
        >>> steps.skipped, int(model.optimizer.iterations)
        (1, 2)
    """

    def __init__(self, limit: int = 10, save_batch: Callable[[], Any] | None = None):
        super().__init__()
        self.limit = positive_integer(limit, "limit")
        self.save_batch = save_batch
        self.skipped = self.in_a_row = 0

    def on_train_begin(self, logs: Any = None) -> None:
        if self.model.steps_per_execution > 1:
            raise ValueError(
                "SkippedSteps sees each batch: compile the model with `steps_per_execution=1`. "
                f"Received: steps_per_execution={self.model.steps_per_execution}"
            )
        self._iterations = self._read_iterations()
        self._file: Any = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        _sync(self.model)
        self._metrics = [keras.ops.convert_to_numpy(each) for each in self.model.metrics_variables]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        _sync(self.model)
        loss = float((logs or {}).get("loss", 0.0))
        before, self._iterations = self._iterations, self._read_iterations()
        if self._iterations > before:
            if not math.isfinite(loss):
                raise FloatingPointError(_diverged(self.model, f"loss={loss}"))
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if math.isfinite(loss):
            reason = "A gradient is not finite"
            is_scaling = hasattr(self.model.optimizer, "inner_optimizer")
        else:
            reason, is_scaling = f"The loss is {loss}", False
            self._restore_metrics(logs)
        if self.in_a_row == 1:
            self._file = None
        if self._file is None and (self.in_a_row >= self.limit or not is_scaling):
            self._file = "" if self.save_batch is None else self.save_batch()
            step = step_of(self.model.optimizer)
            saved = f" It is in {self._file}." if self._file else ""
            print(f"{reason} after step {step:,}, so the batch is skipped, and the weights are as before it.{saved}")
        if self.in_a_row >= self.limit:
            saved = f" One of them is in {self._file}." if self._file else ""
            row = f"{self.in_a_row} batches in a row had a loss or gradients that are not finite.{saved} "
            raise FloatingPointError(_diverged(self.model, f"loss={loss}", row))

    def _read_iterations(self) -> int:
        """The number of batches that the optimizer has taken, those of an accumulated gradient too."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        return value_of(next(each for each in optimizer.variables if each.name == "iteration"))

    def _restore_metrics(self, logs: Any) -> None:
        variables = self.model.metrics_variables
        if len(variables) == len(self._metrics):
            for variable, value in zip(variables, self._metrics, strict=True):
                variable.assign(value)
        else:  # TensorFlow creates them in the first step
            self.model.reset_metrics()
        logs.update({name: float(value) for name, value in self.model.get_metrics_result().items()})


# Nats per token, for a cross-entropy.
_MIN_RISE = 1.0


class LossSpikes(keras.callbacks.Callback):
    """Prints a warning when the loss of a batch is a multiple of the median of those before it, and 1 above it.

    Weights that a too large step has spoiled often predict worse than no training at all, with a finite loss. The
    warning, at most one in an epoch, is all: the loss may fall again. The losses of a model that has learned its text
    are near zero and vary by large factors, without a warning.

    Args:
        factor: Multiple of the median.
        window: Number of batches of the median.

    Raises:
        ValueError: If an argument is not above zero.

    Example:
        >>> LossSpikes(factor=3).factor
        3
    """

    def __init__(self, factor: float = 3.0, window: int = 100):
        super().__init__()
        self.factor = positive_number(factor, "factor")
        self.window = positive_integer(window, "window")
        self._losses: collections.deque[float] = collections.deque(maxlen=self.window)

    def on_train_begin(self, logs: Any = None) -> None:
        self._sums: tuple[float, float] | None = None  # those at the beginning of a resumed epoch are not known yet
        self._epochs = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._epochs > 0:
            self._sums = (0.0, 0.0)  # Keras resets the metrics
        self._epochs += 1
        self._has_warned = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        _sync(self.model)
        mean = next((each for each in self.model.metrics if each.name == "loss"), None)
        if mean is None:
            return
        before, self._sums = self._sums, (value_of(mean.total), value_of(mean.count))
        if before is None or self._sums[1] <= before[1]:  # a skipped batch
            return
        loss = (self._sums[0] - before[0]) / (self._sums[1] - before[1])
        if len(self._losses) == self.window and not self._has_warned:
            median = statistics.median(self._losses)
            if loss > max(self.factor * median, median + _MIN_RISE):
                self._has_warned = True
                print(
                    f"Warning: the loss is {loss:.3g} at step {step_of(self.model.optimizer):,}, and the median "
                    f"of the {self.window} batches before it is {median:.3g}. If it remains high, use a lower learning "
                    "rate or a longer warm-up."
                )
        self._losses.append(loss)


def _diverged(model: Any, received: str, reason: str = "") -> str:
    return (
        f"Training diverged at step {step_of(model.optimizer):,}. {reason}Use a lower learning rate or a longer "
        f"warm-up. Received: {received}"
    )


def _sync(model: Any) -> None:
    """Gives the variables their values, which a step on JAX keeps to itself."""
    if keras.config.backend() == "jax":
        model.jax_state_sync()
