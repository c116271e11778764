"""What the sides of the decoding benchmark share: their task, where its files lie."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# In the folder of a task.
MODEL, SOURCES, TOKENIZER = "model.keras", "sources.npy", "tokenizer.model"
BEGIN, END, PAD = 2, 3, 0
EXTRA_LENGTH = 50  # tokens of a translation above those of its source


@dataclass(frozen=True)
class DecodingTask:
    """The decoding task of a side.

    Attributes:
        folder: Holds the model as `.keras`, CTranslate2's conversions in `float32` and `int8`, source ids.
        threads: Number of threads.
        at_once: Parts of the ids that ours and CTranslate2 decode at a time, each with its share of the threads.
        options: Options of this side only.
    """

    folder: str
    threads: int = 2
    at_once: int = 1
    options: dict = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """A file or folder of the task."""
        return Path(self.folder) / name

    def sources(self, count: int) -> np.ndarray:
        """The first source ids (count, S), which end in `END`."""
        return np.load(self.path(SOURCES))[:count]


def use_threads(count: int) -> None:
    """Sets the number of TensorFlow's threads; call it before the first operation."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)


def until_end(rows: list[list[int]]) -> list[list[int]]:
    """The ids before the end of each sentence, and before padding where it has none."""
    return [row[: row.index(END)] if END in row else [i for i in row if i != PAD] for row in rows]
