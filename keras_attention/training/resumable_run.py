"""A training that resumes exactly where it was interrupted."""

import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.training.callback_state import arrays_of, named, numbers_of
from keras_attention.training.epoch_logs import remove_later_logs
from keras_attention.training.processes import is_first_process, num_processes, stops_now
from keras_attention.training.random_state import random_state, restore_random_state
from keras_attention.training.scalars import step_of
from keras_attention.training.state_files import (
    State,
    read_newest_state,
    remove_unreadable,
    state_file,
    write_state,
)
from keras_attention.training.stop_signals import StopSignals
from keras_attention.training.variables import check_variables, describe_variables, differences, restore_variables

# The value of `model.stop_training` that ends an epoch but not the training.
_END_OF_EPOCH = "end of the epoch"
_RATE = "learning_rate"


class ResumableRun(keras.callbacks.Callback):
    """Saves the whole state of a training, and resumes it as if it had never been interrupted.

    The state is that of the model, the optimizer, the dropout, the metrics of the running epoch, the other callbacks
    and the position in the data. The same script, run again, resumes from the newest state; on a CPU in float32 the
    weights at the end are, bit for bit, those of a training without an interruption. A state of one backend is resumed
    by another, where rounding and the random numbers of dropout differ.

    A state is written every few minutes, at the end of each epoch, and at Ctrl-C and SIGTERM, which end the training
    after the current batch. Files are written atomically and have checksums. A damaged one is skipped with a warning.
    Of several processes that train together, the first one writes them, and SIGTERM to one of them stops all.

    Put it last in the list of callbacks. Set the seeds with `keras.utils.set_random_seed`, so that a training that is
    interrupted before its first state begins again with the same weights.

    Resumed with another `steps_per_epoch`, the running epoch and all later ones end at multiples of that number.

    Args:
        folder: Folder of the states, `state-00001200.npz` for step 1200.
        data: `TokenBatches` or `PackedBatches`, or any object with a length and their `dataset`.
        minutes: Minutes between two states, within an epoch.
        keep: Number of states that are kept.
        steps_per_epoch: Number of batches in an epoch of `fit`; None for those of an epoch of the data.
        callbacks: Callbacks of the same `fit` whose state is saved: their public attributes that are numbers or lists
            of arrays, except arguments of the constructor. From the files of a `CSVLogger` (with `append=True`) and a
            `TensorBoard`, the logs of epochs that are trained again are removed. See `ResumableTensorBoard`.

    Attributes:
        batch: Number of batches that the model was trained on, in all calls.
        step: Number of steps of the optimizer, in all calls.
        epoch: Number of finished epochs, in all calls.
        history: Logs of the finished epochs of all calls, as in `keras.callbacks.History`.

    Raises:
        ValueError: If an argument is not above zero, all states are damaged, or the state is one of other data.

    Example:
        >>> data = ka.text.TokenBatches([[5], [6], [7, 8]], [[7], [8], [9, 5]], tokens_per_batch=4)
        >>> for epochs in (1, 3):  # as in a first process, and in a second
        ...     model = ka.Transformer.from_preset("tiny", vocabulary_size=11, num_layers=1)
        ...     model.compile("adam", loss=ka.training.MaskedCrossEntropy())
        ...     run = ResumableRun("states", data)
        ...     history = model.fit(run.dataset(), epochs=epochs, initial_epoch=run.initial_epoch,
        ...                         steps_per_epoch=run.steps_per_epoch, callbacks=[run], shuffle=False,
        ...                         verbose=0)
        >>> len(history.history["loss"]), len(run.history["loss"]), run.batch == 3 * len(data)
        (2, 3, True)
    """

    def __init__(
        self,
        folder: str | Path,
        data: Any,
        *,
        minutes: float = 5.0,
        keep: int = 2,
        steps_per_epoch: int | None = None,
        callbacks: Iterable[keras.callbacks.Callback] = (),
    ):
        super().__init__()
        self.folder = Path(folder)
        self.data = data
        self.minutes = positive_number(minutes, "minutes")
        self.keep = positive_integer(keep, "keep")
        self.steps_per_epoch = positive_integer(
            len(data) if steps_per_epoch is None else steps_per_epoch, "steps_per_epoch"
        )
        self.callbacks = list(callbacks)
        self.batch = self.step = self.epoch = 0
        self.history: dict[str, list[Any]] = {}
        self._data = {**getattr(data, "fingerprint", dict)(), "steps_per_epoch": self.steps_per_epoch}
        self._signals = StopSignals()
        self._state = read_newest_state(self.folder)  # until it is restored
        if self._state is not None:
            self._read(self._state)

    @property
    def initial_epoch(self) -> int:
        """The argument of `fit`: the number of finished epochs, or the largest integer after an `EarlyStopping`."""
        return sys.maxsize if self._ended_early() else self.epoch

    def dataset(self) -> Any:
        """Makes the dataset for `fit`: the batches from the position of the state on, without end.

        Returns:
            A `tf.data.Dataset`, or an iterator where TensorFlow is not installed.
        """
        return self.data.dataset(*divmod(self.batch, len(self.data))).repeat()

    def discard(self) -> None:
        """Forgets the state, so that training begins as without one. Its files remain until there are newer ones."""
        self.batch = self.step = self.epoch = 0
        self.history, self._state = {}, None

    def set_model(self, model: Any) -> None:
        """Restores the model and its optimizer, before any callback begins.

        Args:
            model: The compiled model.

        Raises:
            ValueError: If the state is one of another model or optimizer.
        """
        super().set_model(model)
        self._optimizer = json.loads(json.dumps(keras.optimizers.serialize(model.optimizer)))  # with lists for tuples
        if self._state is None:
            return
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        saved, path = self._state.manifest, self._state.path
        changes = differences(_settings(saved["optimizer"]), _settings(self._optimizer))
        if changes:
            raise ValueError(
                f"{path} is the state of a training with another optimizer: compile the model with that one, or train "
                f"in another folder. Received: {'; '.join(changes)}"
            )
        if len(_groups(model)["metrics"]) != len(saved["variables"]["metrics"]):
            self._build_metrics()
        groups = _groups(model)
        check_variables(groups, saved["variables"], path)
        same_rate = _rate(saved["optimizer"]) == _rate(self._optimizer)
        for group in ("model", "optimizer"):
            restore_variables(group, groups[group], self._state.arrays, skip=() if same_rate else (_RATE,))
        for callback in self.callbacks:
            remove_later_logs(callback, self.epoch, self.step)

    def on_train_begin(self, logs: Any = None) -> None:
        self._check_fit()
        if self._state is not None:
            self._restore_callbacks(self._state)
        if is_first_process():
            remove_unreadable(self.folder, None if self._state is None else self._state.path)
        self._signals.install(except_for=(signal.SIGTERM,) if num_processes() > 1 else ())
        self._saved = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch != self.epoch:
            self._signals.restore()
            raise ValueError(
                f"The state is one after {self.epoch} epochs: pass `initial_epoch=run.initial_epoch` to `fit`. "
                f"Received: initial_epoch={epoch}"
            )
        if self._state is not None and self._state.manifest["in_epoch"]:
            restore_variables("metrics", _groups(self.model)["metrics"], self._state.arrays)
        self._first_batch = self.batch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._state is not None:  # only here, since an iterator of torch takes a random number when it begins
            restore_random_state(self._state.arrays)
            self._state = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batch = self._first_batch + batch + 1
        if stops_now(self.batch):
            self._signals.received = signal.SIGTERM
        if self.batch % self.steps_per_epoch == 0:
            # Keras counts the batches of the epoch in which training resumed from zero.
            if batch + 1 < self.steps_per_epoch and not self.model.stop_training:
                self.model.stop_training = _END_OF_EPOCH
        elif not self.model.stop_training:  # otherwise the epoch ends here, and its end saves the state
            late = time.monotonic() - self._saved >= 60 * self.minutes
            if late or self._signals.received is not None:
                self._save(in_epoch=True)
                self._stop_if_asked()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.model.stop_training == _END_OF_EPOCH:
            self.model.stop_training = False
        self.epoch = epoch + 1
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self._save(in_epoch=False)
        self._stop_if_asked()

    def on_train_end(self, logs: Any = None) -> None:
        self._signals.restore()

    def _read(self, state: State) -> None:
        """Takes the position and the history of a state, if it is one of the same data."""
        saved = state.manifest
        changes = differences(saved["data"], self._data)
        data = {**self._data, "steps_per_epoch": saved["data"]["steps_per_epoch"]}
        if saved["data"] != data:
            raise ValueError(
                f"{state.path} is the state of a training on other data: restore the data, or train in another folder. "
                f"Received: {'; '.join(changes)}"
            )
        self.batch, self.step, self.epoch = saved["batch"], saved["step"], saved["epoch"]
        self.history = saved["history"]

    def _ended_early(self) -> bool:
        """Returns True if the state is one after which an `EarlyStopping` ended the training."""
        if self._state is None:
            return False
        saved = self._state.manifest["callbacks"]
        return any(
            isinstance(callback, keras.callbacks.EarlyStopping)
            and saved.get(name, {}).get("stopped_epoch", 0) > 0
            and saved[name]["wait"] >= callback.patience  # which may have changed
            for name, callback in named(self.callbacks).items()
        )

    def _check_fit(self) -> None:
        if self.params.get("steps") != self.steps_per_epoch:
            raise ValueError(
                "The dataset has no end: pass `steps_per_epoch=run.steps_per_epoch` to `fit`. "
                f"Received: steps_per_epoch={self.params.get('steps')}, expected {self.steps_per_epoch}"
            )
        if self.steps_per_epoch % self.model.steps_per_execution:
            raise ValueError(
                f"`steps_per_execution` in `compile` must divide the {self.steps_per_epoch} steps of an epoch. "
                f"Received: steps_per_execution={self.model.steps_per_execution}"
            )
        missing = [name for name, callback in named(self.callbacks).items() if callback.model is None]
        if missing:
            raise ValueError(f"Pass the callbacks of a ResumableRun to `fit` too. Received: `fit` without {missing}")

    def _build_metrics(self) -> None:
        """Creates the variables of the metrics, which on TensorFlow exist only after the first step."""
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(next(iter(self.dataset())))
        outputs = self.model(inputs, training=False)
        self.model.compute_loss(inputs, labels, outputs, weights, training=False)
        self.model.compute_metrics(inputs, labels, outputs, weights)

    def _restore_callbacks(self, state: State) -> None:
        saved = state.manifest["callbacks"]
        for name, callback in named(self.callbacks).items():
            for attribute, value in saved.get(name, {}).items():
                if isinstance(value, list):  # the names of arrays
                    value = [state.arrays[each] for each in value]
                setattr(callback, attribute, value)

    def _save(self, in_epoch: bool) -> None:
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()  # a step keeps the variables' values to itself
        self.step = step_of(self.model.optimizer)
        groups = _groups(self.model)
        arrays = {
            f"{group}/{index}": np.asarray(keras.ops.convert_to_numpy(variable))
            for group, variables in groups.items()
            for index, variable in enumerate(variables)
        } | random_state()
        callbacks: dict[str, dict[str, Any]] = {}
        for name, callback in named(self.callbacks).items():
            callbacks[name] = dict(numbers_of(callback))
            for attribute, values in arrays_of(callback).items():
                keys = [f"callbacks/{name}/{attribute}/{index}" for index in range(len(values))]
                callbacks[name][attribute] = keys
                arrays.update(zip(keys, values, strict=True))
        manifest = {
            "batch": self.batch,
            "step": self.step,
            "epoch": self.epoch,
            "in_epoch": in_epoch,
            "data": self._data,
            "optimizer": self._optimizer,
            "variables": {group: describe_variables(variables) for group, variables in groups.items()},
            "history": self.history,
            "callbacks": callbacks,
        }
        self._file = state_file(self.folder, self.step)
        if is_first_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state(self._file, manifest, arrays, self.keep)
        self._saved = time.monotonic()

    def _stop_if_asked(self) -> None:
        if self._signals.received is not None:
            self._signals.stop(f"Stopped at step {self.step:,}, saved in {self._file}. To resume, run the same again.")


def _groups(model: Any) -> dict[str, list[Any]]:
    """The variables of a model, its metrics and its optimizer."""
    metrics = _unique(model.metrics_variables)
    of_metrics = {id(variable) for variable in metrics}
    return {
        "model": [variable for variable in _unique(model.variables) if id(variable) not in of_metrics],
        "metrics": metrics,
        "optimizer": _unique(model.optimizer.variables),
    }


def _unique(variables: Iterable[Any]) -> list[Any]:
    return list({id(variable): variable for variable in variables}.values())


def _settings(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a serialized optimizer by name, without the learning rate, which may change."""
    name = optimizer["class_name"].replace("FusedAdam", "Adam")  # the same state, by which backends are exchanged
    return dict(_flatten({"optimizer": name, **optimizer["config"]}))


def _flatten(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name == "inner_optimizer":  # of the optimizer that scales a float16 loss
            yield from ((f"inner {key}", each) for key, each in _settings(value).items())
        elif name not in ("name", _RATE):
            yield name, value


def _rate(optimizer: Mapping[str, Any]) -> Any:
    config = optimizer["config"]
    return _rate(config["inner_optimizer"]) if "inner_optimizer" in config else config.get(_RATE)
