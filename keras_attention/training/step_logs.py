"""The logs of steps in TensorBoard files, without those that are repeated when a training resumes."""

import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_attention.layers.arguments import positive_integer
from keras_attention.training.epoch_logs import BY_STEP, ResumableTensorBoard, learning_rate
from keras_attention.training.metrics import Perplexity
from keras_attention.training.scalars import step_of, value_of

_STEPS = "steps/"  # the beginning of the tags


class StepTensorBoard(ResumableTensorBoard):
    """Writes scalars for TensorBoard every few steps, in addition to the logs of each epoch of `ResumableTensorBoard`.

    The tags begin with `steps/`, and the number of steps of the optimizer is their horizontal axis. The event files
    are in two folders, which TensorBoard shows as two curves of one chart:

    - `train`, every few steps: the `loss` and each metric that is a mean, such as `MaskedAccuracy` and `Perplexity`,
      over the batches since the last point, not since the beginning of the epoch; `learning_rate`; with an optimizer of
      this package on TensorFlow `gradient_norm`, the mean norm of the batches' gradients before they are clipped; with
      `data`, `padding`, the fraction of padding among the ids, and `tokens_per_second`, source and target tokens
      without padding, without the time of evaluations.
    - `validation`, at the end of each epoch: the logs that begin with `val_`, without that prefix.

    Pass the callback to `ResumableRun`, too: a training that was killed and resumes then leaves the events of one that
    was not interrupted, with no duplicate and none missing.

    Args:
        log_dir: Folder of the logs, which other callbacks may share.
        every: Number of steps between two points.
        data: The `TokenBatches` or `PackedBatches` of the training; None to write neither padding nor throughput.

    Raises:
        ValueError: If `every` is not a positive integer.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model.compile(ka.training.FusedAdam(learning_rate=0.01), loss="mse")
        >>> logs = StepTensorBoard("logs", every=1)
        >>> x, y = np.ones((4, 8)), np.ones((4, 3))
        >>> history = model.fit(x, y, epochs=2, validation_data=(x, y), callbacks=[logs], verbose=0)
        >>> sorted(path.name for path in logs.log_dir.iterdir())
        ['train', 'validation']
    """

    suffix = BY_STEP

    def __init__(self, log_dir: str | Path = "logs", every: int = 10, data: Any = None):
        super().__init__(log_dir)
        self.every = positive_integer(every, "every")
        self.data = data if hasattr(data, "token_counts") else None
        # Of all calls of `fit`: `ResumableRun` saves the public attributes that are numbers or lists of arrays.
        self.batch = self.step = 0
        self.tokens = self.ids = 0  # since the last point, like the sums
        self.sums: list[np.ndarray] = []  # the total and the count of each mean, the gradient norm last
        self._counts: tuple[int, np.ndarray] | None = None  # of the batches of an epoch of the data

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._first_batch, self._before = self.batch, None
        self._marked = time.monotonic()

    def on_train_begin(self, logs: Any = None) -> None:
        self._seconds, self._timed_tokens = 0.0, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._before is None:  # the metrics of a resumed epoch continue from those of its state
            self._before = self._totals()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._measure(self._first_batch + batch + 1)
        step = self._step()
        if step // self.every > self.step // self.every:
            self._write("train", self._values(), step)
            self.tokens = self.ids = self._timed_tokens = 0
            self._seconds, self.sums = 0.0, []
        self.step = step

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        scores = {f"{_STEPS}{name[4:]}": value for name, value in (logs or {}).items() if name.startswith("val_")}
        if scores:
            self._write("validation", scores, self._step())

    def _step(self) -> int:
        return step_of(self.model.optimizer)

    def _measure(self, batch: int) -> None:
        """Adds the sums, the tokens and the time of the batches up to a batch."""
        totals, norm = self._totals(), self._gradient_norm()
        sums = [total - self._before.get(name, 0.0) for name, total in totals.items()]
        sums = np.array([*sums, (norm or 0.0, 1.0)])  # (means + 1, 2)
        self.sums = [self.sums[0] + sums] if self.sums else [sums]
        self._before = totals
        for number in range(self.batch, batch) if self.data is not None else ():
            tokens, ids = self._token_counts(number)
            self.tokens, self.ids, self._timed_tokens = (
                self.tokens + tokens,
                self.ids + ids,
                self._timed_tokens + tokens,
            )
        self.batch = batch
        now = time.monotonic()
        self._seconds, self._marked = self._seconds + now - self._marked, now

    def _values(self) -> dict[str, float]:
        """The scalars of a point."""
        *sums, (norm, batches) = self.sums[0].tolist()
        values = {}
        for (name, metric), (total, count) in zip(self._means().items(), sums, strict=True):
            if count > 0:
                values[name] = _exp(total / count) if isinstance(metric, Perplexity) else total / count
        values["learning_rate"] = learning_rate(self.model.optimizer)
        if self._gradient_norm() is not None:
            values["gradient_norm"] = norm / batches
        if self.data is not None:
            values["padding"] = 1 - self.tokens / self.ids
            values["tokens_per_second"] = self._timed_tokens / max(self._seconds, 1e-9)
        return {_STEPS + name: value for name, value in values.items()}

    def _means(self) -> dict[str, Any]:
        """The loss and the metrics that are a total divided by a count."""
        metrics = [each for metric in self.model.metrics for each in getattr(metric, "metrics", [metric])]
        return {each.name: each for each in metrics if hasattr(each, "total") and hasattr(each, "count")}

    def _totals(self) -> dict[str, np.ndarray]:
        """The total and the count of the epoch so far, in float64, by the names of the metrics."""
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()  # a step keeps the variables' values to itself
        return {
            name: np.array([value_of(each.total), value_of(each.count)], np.float64)
            for name, each in self._means().items()
        }

    def _gradient_norm(self) -> float | None:
        optimizer = self.model.optimizer
        norm = getattr(getattr(optimizer, "inner_optimizer", optimizer), "gradient_norm", None)
        return None if norm is None else float(norm)

    def _token_counts(self, batch: int) -> tuple[int, int]:
        """The tokens and the ids of a batch, counted from the first of the first epoch."""
        epoch, number = divmod(batch, len(self.data))
        if self._counts is None or self._counts[0] != epoch:
            self._counts = epoch, self.data.token_counts(epoch)
        tokens, ids = self._counts[1][number]
        return int(tokens), int(ids)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
