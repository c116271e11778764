"""The logs of epochs in CSV and TensorBoard files, without those that are repeated when a training resumes."""

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_attention.files import write_atomically

# The end of the names of event files whose steps are those of the optimizer, except for the tags of epochs.
BY_STEP = ".steps"
_EPOCH = "epoch_"


class ResumableTensorBoard(keras.callbacks.Callback):
    """Writes the logs of each epoch for TensorBoard at its end, with the tags of `keras.callbacks.TensorBoard`.

    Keras' callback keeps logs in memory for up to two minutes, so that a process that is killed loses those of epochs
    from which `ResumableRun` does not train again.

    Args:
        log_dir: Folder of the event files, which are in `train` and `validation`.

    Example:
        >>> logs = ResumableTensorBoard("logs")
        >>> logs.set_model(ka.Transformer.from_preset("tiny", vocabulary_size=100, num_layers=1))
        >>> logs.on_epoch_end(0, {"loss": 2.5, "val_loss": 2.7})
        >>> sorted(path.name for path in logs.log_dir.iterdir())
        ['train', 'validation']
    """

    suffix = ""  # of the names of the event files

    def __init__(self, log_dir: str | Path = "logs"):
        super().__init__()
        self.log_dir = Path(log_dir)
        self._writers: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        scalars: dict[str, dict[str, float]] = {"train": {}, "validation": {}}
        for name, value in (logs or {}).items():
            split = "validation" if name.startswith("val_") else "train"
            scalars[split][name.removeprefix("val_")] = value
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None:
            scalars["train"]["learning_rate"] = learning_rate(optimizer)
        for split, values in scalars.items():
            if values:
                self._write(split, {f"{_EPOCH}{name}": value for name, value in values.items()}, epoch)

    def on_train_end(self, logs: Any = None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def writer(self, split: str = "") -> Any:
        """Returns the summary writer of a folder within that of the logs, for further events.

        Args:
            split: Name of the folder, such as "validation"; empty for the folder of the logs.

        Returns:
            A `tf.summary.SummaryWriter`.
        """
        import tensorflow as tf

        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(
                str(self.log_dir / split), filename_suffix=f".v2{self.suffix}"
            )
        return self._writers[split]

    def _write(self, split: str, scalars: dict[str, float], step: int) -> None:
        import tensorflow as tf

        with self.writer(split).as_default():
            for tag, value in scalars.items():
                tf.summary.scalar(tag, value, step=step)
        self.writer(split).flush()


def learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """The learning rate of the next step, also of an optimizer with a copy of its variables on each device."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def remove_later_logs(callback: keras.callbacks.Callback, epoch: int, step: int) -> None:
    """Removes, from the files of a `CSVLogger` or a `TensorBoard`, the logs of an epoch and those after it."""
    if isinstance(callback, keras.callbacks.CSVLogger):
        _remove_rows(Path(callback.filename), callback.sep, epoch)
    elif isinstance(callback, keras.callbacks.TensorBoard | ResumableTensorBoard):
        for path in sorted(Path(callback.log_dir).rglob("events.out.tfevents.*")):
            _remove_events(path, epoch, step)


def _remove_rows(path: Path, separator: str, epoch: int) -> None:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = list(csv.reader(io.StringIO(text), delimiter=separator))
    if not lines or lines[0][:1] != ["epoch"]:
        return  # not the file of a CSVLogger
    header, *rows = lines
    # The last row may be incomplete.
    kept = [row for row in rows if len(row) == len(header) and row[0].isdecimal() and int(row[0]) < epoch]
    if len(kept) == len(rows):
        return

    def write(temporary: str) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([header, *kept])

    write_atomically(path, write)


def _remove_events(path: Path, epoch: int, step: int) -> None:
    import tensorflow as tf

    records = list(_read_records(path))
    events = [tf.compat.v1.Event.FromString(record) for record in records]
    if path.name.endswith(BY_STEP):
        earlier = itertools.takewhile(lambda each: _is_earlier_step(each, epoch, step), events)
        kept = records[: len(list(earlier))]
    else:
        kept = [record for record, each in zip(records, events, strict=True) if _is_earlier(each, epoch, step)]
    if len(kept) == len(records):
        return

    def write(temporary: str) -> None:
        with tf.io.TFRecordWriter(temporary) as writer:
            for record in kept:
                writer.write(record)

    write_atomically(path, write)


def _read_records(path: Path) -> Iterator[bytes]:
    """The records of an event file, except one at its end that is incomplete."""
    import tensorflow as tf

    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    try:
        yield from records
    except tf.errors.DataLossError:
        return


def _is_earlier_step(event: Any, epoch: int, step: int) -> bool:
    """Returns False for the first event that an uninterrupted training would not have written yet."""
    # The events at the end of an epoch begin with its tags: where batches are accumulated, two may end at one step.
    if any(value.tag.startswith(_EPOCH) for value in event.summary.value):
        return event.step < epoch
    return event.step <= step


def _is_earlier(event: Any, epoch: int, step: int) -> bool:
    """Returns True for an event that an uninterrupted training would have written by then."""
    if event.WhichOneof("what") != "summary":
        return True  # the version of the file, the graph
    tags = [value.tag for value in event.summary.value]
    if any(tag.startswith("batch_") for tag in tags):
        return True  # its step counts the batches of one `fit`
    if any(tag.endswith("_vs_iterations") for tag in tags):
        return event.step <= step
    return event.step < epoch
