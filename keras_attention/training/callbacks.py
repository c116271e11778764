"""Callbacks for `fit`, in addition to those of Keras."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_attention.files import write_atomically
from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.training.averaging import ExponentialMovingAverage
from keras_attention.training.data_parallel import on_one_device
from keras_attention.training.processes import is_first_process, of_first_process
from keras_attention.training.scalars import step_of


class StopAfter(keras.callbacks.Callback):
    """Ends training after a number of steps or minutes, whichever comes first.

    Args:
        steps: Number of optimizer steps, including those of earlier calls of `fit`; None for no limit.
        minutes: Minutes since training began; None for no limit.

    Raises:
        ValueError: If a limit is not above zero.

    Example:
        >>> StopAfter(minutes=30).minutes
        30
    """

    def __init__(self, steps: int | None = None, minutes: float | None = None):
        super().__init__()
        self.steps = None if steps is None else positive_integer(steps, "steps")
        self.minutes = None if minutes is None else positive_number(minutes, "minutes")

    def on_train_begin(self, logs: Any = None) -> None:
        self._started = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        late = self.minutes is not None and self._is_late(self.minutes)
        done = self.steps is not None and step_of(self.model.optimizer) >= self.steps
        if late or done:
            self.model.stop_training = True

    def _is_late(self, minutes: float) -> bool:
        """Returns True in all processes of a training at once, by the clock of the first."""
        return bool(of_first_process(time.monotonic() - self._started >= 60 * minutes))


class FailOnDivergence(keras.callbacks.Callback):
    """Ends training with an error when the loss, the validation loss or the validation perplexity is not finite.

    `keras.callbacks.TerminateOnNaN` ends `fit` without an error, after which the callbacks at the end of the epoch save
    the broken weights. Put this callback before them in the list, so that the earlier checkpoints remain.

    Raises:
        FloatingPointError: In `fit`, when training has diverged.

    Example:
        >>> FailOnDivergence().on_train_batch_end(0, {"loss": 2.5})
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._check(logs or {}, ("loss",))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check(logs or {}, ("loss", "val_loss", "val_perplexity"))

    def _check(self, logs: Mapping[str, Any], names: Iterable[str]) -> None:
        for name in names:
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"Training diverged at step {step_of(self.model.optimizer):,}. Use a lower learning rate or "
                    f"a longer warm-up. Received: {name}={value}"
                )


class EpochMetrics(keras.callbacks.Callback):
    """Adds the metrics that a function computes, such as BLEU on a sample, to the logs of each epoch.

    Put it before the callbacks that read the logs (TensorBoard, CSVLogger, ModelCheckpoint).

    Args:
        compute_metrics: Called at the end of each epoch; returns metrics by name.

    Example:
        >>> logs = {}
        >>> EpochMetrics(lambda: {"val_bleu": 31.5}).on_epoch_end(0, logs)
        >>> logs
        {'val_bleu': 31.5}
    """

    def __init__(self, compute_metrics: Callable[[], Mapping[str, float]]):
        super().__init__()
        self.compute_metrics = compute_metrics

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs.update(self.compute_metrics())


class Score(EpochMetrics):
    """The earlier name of `EpochMetrics`, with the earlier name of its argument."""

    def __init__(self, score: Callable[[], Mapping[str, float]]):
        super().__init__(score)


class Throughput(keras.callbacks.Callback):
    """Adds `tokens_per_second` to the logs of each epoch, without the time of the evaluation.

    Args:
        tokens_per_step: Source and target tokens of an average batch, without padding.

    Example:
        >>> Throughput(tokens_per_step=7000).tokens_per_step
        7000
    """

    def __init__(self, tokens_per_step: float):
        super().__init__()
        self.tokens_per_step = tokens_per_step
        self.steps, self.seconds = 0, 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._steps, self._started = 0, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps, self._seconds = self._steps + 1, time.monotonic() - self._started

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.steps += self._steps
        self.seconds += self._seconds
        logs["tokens_per_second"] = self._steps * self.tokens_per_step / self._seconds

    def summary(self) -> str:
        """Describes all epochs in one line.

        Returns:
            The line.

        Example:
            >>> Throughput(tokens_per_step=7000).summary()
            '0.0 minutes of training, 0 source and target tokens/s'
        """
        rate = self.steps * self.tokens_per_step / max(self.seconds, 1e-9)
        return f"{self.seconds / 60:.1f} minutes of training, {rate:,.0f} source and target tokens/s"


class Checkpoints(keras.callbacks.Callback):
    """Saves the model to resume from, the weights of the last epochs to average, and the best model.

    The files are `last.keras` (with the optimizer), `step-00001200.weights.h5` for each of the last epochs, and
    `best.keras`, with its value in `best.txt` for a resumed run. Each is written atomically, so that an interrupted run
    leaves complete files. Of several processes that train together, the first one writes them.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of weight files that are kept.
        monitor: Entry of the logs that the best model minimizes.
        ema: Callback of the same `fit` whose average the validation uses: `best.keras` then holds the average, and
            `ema-00001200.weights.h5` the average of the newest checkpoint, for `ExponentialMovingAverage.load`.

    Raises:
        ValueError: If `keep` is not a positive integer.

    Example:
        >>> Checkpoints("runs/en-de/checkpoints", keep=5).keep
        5
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 10,
        monitor: str = "val_loss",
        ema: ExponentialMovingAverage | None = None,
    ):
        super().__init__()
        self.folder = Path(folder)
        self.keep = positive_integer(keep, "keep")
        self.monitor = monitor
        self.ema = ema
        self.best = float("inf")

    def on_train_begin(self, logs: Any = None) -> None:
        resumes = step_of(self.model.optimizer) > 0
        if resumes and (self.folder / "best.txt").exists():
            self.best = self._read_best(self.folder / "best.txt")

    def _read_best(self, file: Path) -> float:
        """The value of the best checkpoint of an earlier `fit`."""
        text = file.read_text(errors="replace")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise ValueError(
                f"{file} must hold the `{self.monitor}` of best.keras: restore the file, or remove it, and the next "
                f"checkpoint counts as the best. Received: {text[:50]!r}"
            )
        return value

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if is_first_process():
            with on_one_device():  # saving creates variables, which several processes would have to do together
                self._save(logs or {})

    def _save(self, logs: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        step = step_of(self.model.optimizer)
        # An upper bound of the HDF5 file's size: the weights, and a few headers for each of them.
        size = sum(4 * math.prod(weight.shape) + 8192 for weight in self.model.weights)
        write_atomically(self.folder / f"step-{step:08d}.weights.h5", self.model.save_weights, size)
        for path in weight_files(self.folder)[: -self.keep]:
            path.unlink()
        if self.ema is not None:
            with self.ema.applied():
                write_atomically(ema_file(self.folder, step), self.model.save_weights, size)
        # After the weights and before the best model, so that a run interrupted at any of them can resume and average.
        write_atomically(self.folder / "last.keras", self.model.save)
        for path in self.folder.glob("ema-*.weights.h5"):
            if path != ema_file(self.folder, step):
                path.unlink()
        value = logs.get(self.monitor)
        if value is not None and value < self.best:
            self.best = float(value)
            with contextlib.nullcontext() if self.ema is None else self.ema.applied():
                write_atomically(self.folder / "best.keras", self.model.save)
            write_atomically(self.folder / "best.txt", lambda path: Path(path).write_text(repr(self.best)))


def ema_file(folder: str | Path, step: int) -> Path:
    """The file in which `Checkpoints` saves the average of the weights at a step."""
    return Path(folder) / f"ema-{step:08d}.weights.h5"


def weight_files(folder: str | Path) -> list[Path]:
    """Lists the weight files that `Checkpoints` kept, the oldest first.

    Args:
        folder: Folder of the checkpoints.

    Returns:
        The paths of the files.

    Example:
        >>> weight_files("no/such/folder")
        []
    """
    return sorted(Path(folder).glob("step-*.weights.h5"))
