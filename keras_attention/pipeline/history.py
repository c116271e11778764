"""The history of a run: a row for each evaluation, written during training and read afterwards."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_attention.training.scalars import step_of, value_of


class HistoryWriter(keras.callbacks.CSVLogger):
    """Adds the step, the passes over the text and the learning rate, and appends in the order of a file's columns."""

    def __init__(self, filename: str, steps_per_pass: float, append: bool = False):
        super().__init__(filename, append=append)
        self.steps_per_pass = steps_per_pass

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if not self.append_header:  # Keras appends its own columns, whatever those of the file
            with open(self.filename, encoding="utf-8", errors="replace", newline="") as file:
                self.keys = next(csv.reader(file))[1:] or None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        step = step_of(optimizer)
        now = {
            "step": step,
            "passes": step / self.steps_per_pass,
            "learning_rate": value_of(optimizer.learning_rate),
        }
        super().on_epoch_end(epoch, {**(logs or {}), **now})


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a run, (N,) each: losses are means per token, in nats, without label smoothing."""

    steps: np.ndarray
    learning_rates: np.ndarray
    train_losses: np.ndarray  # with dropout, over the steps since the last evaluation
    valid_losses: np.ndarray
    passes: float | None = None  # over the training text, at the last evaluation; None where not known


def read_evaluations(path: Path) -> Evaluations:
    """Reads the evaluations of a run, without those that were repeated after an interruption."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no evaluation has been made")
    rows: list[tuple[float, ...]] = []
    for values in _read_rows(path):
        while rows and rows[-1][0] >= values[0]:
            rows.pop()
        rows.append(values)
    if not rows:
        raise ValueError(f"{path} holds no evaluation")
    steps, rates, train, valid, passes = np.array(rows).T
    known = 0 < passes[-1] < np.inf
    return Evaluations(steps, rates, np.log(train), np.log(valid), float(passes[-1]) if known else None)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Reads all columns (N,) of a history, NaN where empty, without evaluations that were repeated."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no evaluation has been made")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
        names = lines[0] if lines else []
        if "step" not in names:
            raise ValueError("it has no column step, as in a run of an earlier release")
        if len(lines) > 1 and len(lines[-1]) < len(names):
            lines.pop()  # a line that is being written
        rows: list[list[float]] = []
        step = names.index("step")
        for line in lines[1:]:
            values = [float(value or "nan") for value in line]
            if len(values) != len(names):
                raise ValueError(f"line {len(rows) + 2} does not have a value for each column")
            while rows and rows[-1][step] >= values[step]:
                rows.pop()
            rows.append(values)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no evaluation")
    return dict(zip(names, np.array(rows).T, strict=True))


def _read_rows(path: Path) -> list[tuple[float, ...]]:
    """The step, the learning rate, the perplexities of training and validation, and the passes, or NaN, of each row."""
    columns = ("step", "learning_rate", "perplexity", "val_perplexity")
    rows = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"it has no column {missing[0]}, as in a run of an earlier release")
            for row in reader:
                values = tuple(float(row[name] or "nan") for name in columns)
                if not (np.isfinite(values).all() and min(values[0], *values[2:]) > 0):
                    raise ValueError(f"line {reader.line_num} is incomplete, or holds a number that is not positive")
                # Histories of earlier versions have no such column.
                rows.append((*values, float(row.get("passes") or "nan")))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return rows
