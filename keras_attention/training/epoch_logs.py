"""The logs of epochs in CSV and TensorBoard files, without those that are repeated when a training resumes."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_attention.files import write_atomically


class ResumableTensorBoard(keras.callbacks.TensorBoard):
    """`keras.callbacks.TensorBoard` that writes the logs of an epoch to disk at its end.

    Keras' callback keeps them in memory for up to two minutes, so that a process that is killed loses those of epochs
    from which `ResumableRun` does not train again.

    Example:
        >>> ResumableTensorBoard("runs/en-de/logs").update_freq
        'epoch'
    """

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        names = logs or {}
        # Keras' subclasses find its writers here. One without any logs would add an empty file.
        if any(not name.startswith("val_") for name in names):
            self._train_writer.flush()
        if any(name.startswith("val_") for name in names):
            self._val_writer.flush()


def remove_later_logs(callback: keras.callbacks.Callback, epoch: int, step: int) -> None:
    """Removes, from the files of a `CSVLogger` or a `TensorBoard`, the logs of an epoch and those after it."""
    if isinstance(callback, keras.callbacks.CSVLogger):
        _remove_rows(Path(callback.filename), callback.sep, epoch)
    elif isinstance(callback, keras.callbacks.TensorBoard):
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
    kept = [record for record in records if _is_earlier(tf.compat.v1.Event.FromString(record), epoch, step)]
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
