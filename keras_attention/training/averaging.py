"""Averages of the weights: of several checkpoints, and of all steps of a training."""

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_attention.layers.arguments import fraction, positive_integer
from keras_attention.training.scalars import step_of

# The dtypes in which Keras stores quantized weights.
_QUANTIZED = ("int8", "uint8")


def average_checkpoints(model: Any, paths: Sequence[str | Path]) -> None:
    """Sets the model's weights to the mean of those in several checkpoints, or leaves them if one cannot be read.

    Args:
        model: A built Keras model, not quantized.
        paths: Files written by `model.save_weights`, or `.keras` files, of the same model.

    Raises:
        ValueError: If there are no paths, the model is quantized, or a file is damaged or of another model.
        FileNotFoundError: If a path does not exist.

    Example:
        >>> import tempfile
        >>> from keras_attention import Transformer
        >>> model = Transformer.from_preset("tiny", vocabulary_size=11, num_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/step.weights.h5"
        ...     model.save_weights(path)
        ...     average_checkpoints(model, [path, path])

    Source: Vaswani et al. 2017, section 6.1.
    """
    if not paths:
        raise ValueError(f"`paths` must name at least one checkpoint to average. Received: paths={paths!r}")
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(f"These checkpoints do not exist: {', '.join(missing)}")
    quantized = [weight.path for weight in model.weights if keras.backend.standardize_dtype(weight.dtype) in _QUANTIZED]
    if quantized:
        raise ValueError(
            "The mean of integers with different scales is not the mean of the weights. Average the checkpoints of the "
            "`model` before it is quantized, then call `model.quantize`. Received: a model with quantized weights such "
            f"as {quantized[0]}"
        )
    before = model.get_weights()
    try:
        mean = _mean(model, paths)
    except Exception:
        model.set_weights(before)
        raise
    model.set_weights(mean)


class ExponentialMovingAverage(keras.callbacks.Callback):
    """Averages the weights during `fit`: w̄ ← mⁿ w̄ + (1 − mⁿ) w at step t, with m = min(momentum, (1 + t) / (10 + t)).

    n is the number of steps of the optimizer since the last update. The average is over about the last
    1 / (1 − momentum) steps, and at first over the last ninth of all steps, so that the initial weights do not count.

    The validation of `fit` uses the average; training continues from the weights themselves, which other callbacks such
    as `ModelCheckpoint` see. To save the average, or to keep it after `fit`, use `applied`. `Checkpoints` saves and
    resumes it. Of weights in half precision, the average is in float32.

    Args:
        momentum: The largest share of the average that one step keeps.
        update_every: Number of steps between updates, each of which takes a few passes over all weights.

    Raises:
        ValueError: If the momentum is outside [0, 1), or `update_every` is not a positive integer.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model.compile("adam", loss="mse")
        >>> average = ExponentialMovingAverage(momentum=0.999)
        >>> history = model.fit(np.ones((4, 8)), np.ones((4, 3)), epochs=2, callbacks=[average], verbose=0)
        >>> with average.applied():
        ...     weights = model.get_weights()

    Source: Polyak and Juditsky 1992; the momentum of the first steps is that of TensorFlow and Marian.
    """

    def __init__(self, momentum: float = 0.999, update_every: int = 10):
        super().__init__()
        self.momentum = fraction(momentum, "momentum")
        self.update_every = positive_integer(update_every, "update_every")
        self.averages: list[Any] | None = None  # of the trainable variables, once training has begun
        self.last_step = 0  # of the last update
        self._weights: list[Any] | None = None  # while the average is in their place

    def load(self, model: Any, path: str | Path) -> None:
        """Reads the average of an earlier training, to resume it in the next `fit`.

        Args:
            model: The model with the weights and the optimizer to resume, which are left as they are.
            path: File that `model.save_weights` wrote while the average was applied.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged or of another model.
        """
        before = model.get_weights()
        average_checkpoints(model, [path])
        self.averages = _copies(model)
        model.set_weights(before)

    def on_train_begin(self, logs: Any = None) -> None:
        if self.averages is None:
            self.averages = _copies(self.model)
        self.last_step = step_of(self.model.optimizer)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if step_of(self.model.optimizer) - self.last_step >= self.update_every:
            self._update()

    def on_test_begin(self, logs: Any = None) -> None:
        self._apply()

    def on_test_end(self, logs: Any = None) -> None:
        self._restore()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Sets the model's weights to the average within a `with` block, and back at its end.

        Yields:
            None.

        Raises:
            ValueError: Before the first `fit`.
        """
        self._apply()
        try:
            yield
        finally:
            self._restore()

    def _update(self) -> None:
        step = step_of(self.model.optimizer)
        if step == self.last_step:
            return
        share = 1 - min(self.momentum, (1 + step) / (10 + step)) ** (step - self.last_step)
        pairs = zip(self.averages, self.model.trainable_variables, strict=True)
        self.averages = [ops.add(average, share * ops.subtract(_wide(weight), average)) for average, weight in pairs]
        self.last_step = step

    def _apply(self) -> None:
        if self.averages is None:
            raise ValueError("There is no average yet: call `fit` with this callback first. Received: averages=None")
        self._update()  # so that an evaluation or a checkpoint does not miss the last steps
        variables = self.model.trainable_variables
        self._weights = [ops.copy(variable) for variable in variables]
        for variable, average in zip(variables, self.averages, strict=True):
            variable.assign(ops.copy(average))  # JAX deletes what a compiled step takes

    def _restore(self) -> None:
        for variable, weight in zip(self.model.trainable_variables, self._weights, strict=True):
            variable.assign(weight)
        self._weights = None


def _copies(model: Any) -> list[Any]:
    return [ops.copy(_wide(variable)) for variable in model.trainable_variables]


def _wide(variable: Any) -> Any:
    """The value of a variable in float32 or wider; torch would otherwise record the average for its gradients."""
    return ops.stop_gradient(ops.cast(variable, keras.backend.result_type(variable.dtype, "float32")))


def _mean(model: Any, paths: Sequence[str | Path]) -> list[np.ndarray]:
    """The mean of each weight; the files are read into the model one after the other."""
    totals = None
    for path in paths:
        _load(model, path)
        weights = [np.asarray(weight, "float64") for weight in model.get_weights()]
        totals = weights if totals is None else [a + b for a, b in zip(totals, weights, strict=True)]
    return [total / len(paths) for total in totals]


def _load(model: Any, path: str | Path) -> None:
    try:
        model.load_weights(path)
    except PermissionError:
        raise
    except Exception as error:
        is_damaged = isinstance(error, OSError | zipfile.BadZipFile)
        reason = "is damaged; remove it" if is_damaged else f"is of another model: {error}"
        raise ValueError(
            f"`paths` must be checkpoints of the same `model`, but {path} {reason}. Received: paths with {str(path)!r}"
        ) from error
