"""What every side reads and writes: its task, its clock, its memory, its line of JSON."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.tools.flops import training_flops
from benchmarks.tools.sentences import Sentences

# The environment variable that holds when the process was started.
STARTED = "BENCHMARK_STARTED"
LABEL_SMOOTHING = 0.1
CHECK_SENTENCES = 64


@dataclass(frozen=True)
class Task:
    """What a side trains, and for how long.

    Attributes:
        sentences: The file of `Sentences`, with the batches of each step.
        vocabulary_size: V.
        num_layers: N.
        hidden_dim: M.
        intermediate_dim: F.
        num_heads: H.
        dropout: Dropout of sub-layer outputs and embeddings only.
        dtype: "float32" or "mixed_bfloat16".
        tokens_per_batch: What the batches were cut by; 0 where they have a number of sentences.
        warmup: Steps before the clock starts.
        steps: Steps on the clock.
        warmup_steps: Warm-up steps of the learning rate, in the paper's schedule.
        learning_rate_scale: Factor of the learning rate.
        rows: Number of rows per batch of random ids without padding, instead of sentences, for accelerators.
        row_length: Tokens per side of such a row.
        options: Options of this side only.
    """

    sentences: str
    vocabulary_size: int = 8000
    num_layers: int = 3
    hidden_dim: int = 256
    intermediate_dim: int = 1024
    num_heads: int = 4
    dropout: float = 0.1
    dtype: str = "float32"
    tokens_per_batch: int = 0
    warmup: int = 10
    steps: int = 30
    warmup_steps: int = 600
    learning_rate_scale: float = 0.6
    rows: int = 0
    row_length: int = 0
    options: dict = field(default_factory=dict)

    def learning_rate(self, step: int) -> float:
        """lr = scale · M^−½ · min(step^−½, step · warmup^−3/2), steps from 1."""
        scale = self.learning_rate_scale * self.hidden_dim**-0.5
        return scale * min(step**-0.5, step * self.warmup_steps**-1.5)

    def timed(self, sentences: Sentences) -> list:
        """The batches on the clock."""
        return list(sentences.batches[self.warmup : self.warmup + self.steps])


@dataclass(frozen=True)
class Measured:
    """What a side found.

    Attributes:
        tokens: Source and target tokens of the timed steps, ends counted, padding not.
        seconds: Of the timed steps.
        first_step_seconds: From the start of the process to the end of its first step.
        peak_bytes: The largest its memory was.
        parameters: Trained weights.
        loss: After training: mean negative log-likelihood of a token of the first sentences, without label smoothing
            and dropout; None where a side does not say.
        flops: Useful operations of the timed steps.
    """

    tokens: int
    seconds: float
    first_step_seconds: float
    peak_bytes: int
    parameters: int
    loss: float | None
    flops: int


class Clock:
    """Told of the end of each step."""

    def __init__(self, task: Task):
        self.task = task
        self.ends: list[float] = []
        self.first_step_seconds = 0.0

    def step_ended(self) -> None:
        """To be called when the step's work is done."""
        if not self.ends:
            self.first_step_seconds = time.time() - float(os.environ[STARTED])
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Seconds of the timed steps."""
        return self.ends[self.task.warmup + self.task.steps - 1] - self.ends[self.task.warmup - 1]


def peak_bytes(process: int | str = "self") -> int:
    """The largest the memory of this process was so far, or of the one with that number."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(task: Task, sentences: Sentences, clock: Clock, parameters: int, loss: float | None) -> Measured:
    """Puts together what a side found."""
    source_lengths, target_lengths = sentences.lengths(task.timed(sentences))
    return Measured(
        tokens=int(source_lengths.sum() + target_lengths.sum()),
        seconds=clock.seconds,
        first_step_seconds=clock.first_step_seconds,
        peak_bytes=peak_bytes(),
        parameters=int(parameters),
        loss=loss,
        flops=useful_flops(task, source_lengths, target_lengths),
    )


def useful_flops(task: Task, source_lengths, target_lengths) -> int:
    """Operations that training on pairs of these lengths needs."""
    sizes = ("num_layers", "hidden_dim", "intermediate_dim", "vocabulary_size")
    return training_flops(source_lengths, target_lengths, **{name: getattr(task, name) for name in sizes})


def main(run: Callable[[Task], Measured]) -> None:
    """The command line of a side."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    result = run(task)
    sys.stdout.flush()
    print("\n" + json.dumps(asdict(result)))
