"""Callbacks that `fit` takes beside those of Keras."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_attention.files import write_whole
from keras_attention.layers.arguments import positive_integer, positive_number


class StopAfter(keras.callbacks.Callback):
    """Ends training after a number of steps or minutes, whichever comes first.

    Args:
        steps: Steps of the optimizer, those of earlier runs counted in; None sets no limit.
        minutes: Minutes since training began; None sets no limit.

    Raises:
        ValueError: A limit that is not above zero.

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
        late = self.minutes is not None and time.monotonic() - self._started >= 60 * self.minutes
        done = self.steps is not None and int(self.model.optimizer.iterations) >= self.steps
        if late or done:
            self.model.stop_training = True


class FailOnDivergence(keras.callbacks.Callback):
    """Ends training with an error when the loss, or a figure of the validation, is no longer a finite number.

    `keras.callbacks.TerminateOnNaN` ends `fit` without one, and the callbacks at the end of the epoch save the broken
    weights. With this one before them in the list, the checkpoints from before remain.

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
                    f"Training diverged at step {int(self.model.optimizer.iterations):,}. Use a lower learning rate or "
                    f"a longer warm-up. Received: {name}={value}"
                )


class Score(keras.callbacks.Callback):
    """Adds the numbers of a function, such as BLEU on a sample, to the logs of each epoch.

    Stands before the callbacks that read the logs (TensorBoard, CSVLogger, ModelCheckpoint).

    Args:
        score: Called at the end of each epoch; returns numbers by name.

    Example:
        >>> logs = {}
        >>> Score(lambda: {"val_bleu": 31.5}).on_epoch_end(0, logs)
        >>> logs
        {'val_bleu': 31.5}
    """

    def __init__(self, score: Callable[[], Mapping[str, float]]):
        super().__init__()
        self.score = score

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs.update(self.score())


class Throughput(keras.callbacks.Callback):
    """Adds `tokens_per_second` to the logs of each epoch, evaluation not counted.

    Args:
        tokens_per_step: Source and target tokens of an average batch, padding not counted.

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
    """Keeps the whole model for going on, the weights of the last epochs for averaging, and the best.

    Each file is written beside its place and renamed, so that a run that is cut off leaves whole files:
    `last.keras` (with the optimizer), `step-00001200.weights.h5`, and `best.keras`, whose value stands in
    `best.txt` for a run that goes on.

    Args:
        folder: Where they are kept.
        keep: How many of the last weights are kept.
        monitor: The entry of the logs that is smallest for the best.

    Raises:
        ValueError: `keep` is not a positive integer.

    Example:
        >>> Checkpoints("runs/en-de/checkpoints", keep=5).keep
        5
    """

    def __init__(self, folder: str | Path, keep: int = 10, monitor: str = "val_loss"):
        super().__init__()
        self.folder = Path(folder)
        self.keep = positive_integer(keep, "keep")
        self.monitor = monitor
        self.best = float("inf")

    def on_train_begin(self, logs: Any = None) -> None:
        going_on = int(self.model.optimizer.iterations) > 0
        if going_on and (self.folder / "best.txt").exists():
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
                f"{file} must hold the `{self.monitor}` of best.keras: put the file back, or remove it, and the next "
                f"checkpoint is taken for the best. Received: {text[:50]!r}"
            )
        return value

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        step = int(self.model.optimizer.iterations)
        # What HDF5 needs at most: the numbers, and a few headers for each weight.
        size = sum(4 * math.prod(weight.shape) + 8192 for weight in self.model.weights)
        write_whole(self.folder / f"step-{step:08d}.weights.h5", self.model.save_weights, size)
        for path in weight_files(self.folder)[: -self.keep]:
            path.unlink()
        # After the weights and before the best: a run that is cut off at any of them can be resumed and averaged.
        write_whole(self.folder / "last.keras", self.model.save)
        value = (logs or {}).get(self.monitor)
        if value is not None and value < self.best:
            self.best = float(value)
            write_whole(self.folder / "best.keras", self.model.save)
            write_whole(self.folder / "best.txt", lambda path: Path(path).write_text(repr(self.best)))


def weight_files(folder: str | Path) -> list[Path]:
    """The weights that `Checkpoints` kept, the oldest first.

    Args:
        folder: Where they are kept.

    Returns:
        Their paths.

    Example:
        >>> weight_files("no/such/folder")
        []
    """
    return sorted(Path(folder).glob("step-*.weights.h5"))
