"""What the sides of the benchmark of long attention share: their task, weights and input."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.tools.workers import Work

# Makes of an input (1, T, M) a step: its output, and the gradients of the input and the weights, in the order of these.
StepOf = Callable[[np.ndarray], Callable[[], list[np.ndarray]]]


@dataclass(frozen=True)
class LongAttentionTask:
    """Causal self-attention over one sequence, with a loss of the mean square of the output.

    Attributes:
        heads: H.
        key_dim: D, of queries, keys and values.
        side: Which of the sides in a module it is.
        threads: Number of threads.
    """

    heads: int
    key_dim: int
    side: str
    threads: int

    @property
    def width(self) -> int:
        """M = H · D."""
        return self.heads * self.key_dim

    def weights(self) -> list[np.ndarray]:
        """Kernels and biases of queries, keys, values and output, in the shapes of Keras' layer."""
        random, inputs = np.random.default_rng(2), [(self.width, self.heads, self.key_dim), (self.heads, self.key_dim)]
        shapes = [*inputs * 3, (self.heads, self.key_dim, self.width), (self.width,)]
        return [(random.standard_normal(shape) * 0.05).astype("float32") for shape in shapes]

    def input(self, length: int) -> np.ndarray:
        """A sequence (1, T, M)."""
        return np.random.default_rng(1).standard_normal((1, length, self.width)).astype("float32")


class LongAttention:
    """A side.

    Args:
        task: The task.
        step_of: Its step.
    """

    def __init__(self, task: LongAttentionTask, step_of: StepOf):
        self.task, self.step_of = task, step_of
        self.steps = {}  # by length

    def step(self, length: int) -> Work:
        """A step of a sequence of this length."""
        return Work(self._step(length), lambda found: None)

    def values(self, length: int, file: str) -> Work:
        """The same; what it computes is written to a file."""
        return Work(self._step(length), lambda found: np.savez(Path(file), *found))

    def _step(self, length: int) -> Callable[[], list[np.ndarray]]:
        if length not in self.steps:
            self.steps[length] = self.step_of(self.task.input(length))
        return self.steps[length]
