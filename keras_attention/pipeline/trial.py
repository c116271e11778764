"""A trial of a training in a process of its own: the memory and the time that its batches need."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.recipe import choose_by_length
from keras_attention.pipeline.run_data import RunData
from keras_attention.pipeline.run_model import build_model, make_trainer
from keras_attention.serving import Translator
from keras_attention.text import PackedBatches, StreamedBatches, SubwordTokenizer, TokenBatches
from keras_attention.training import ExponentialMovingAverage, keep_freed_memory

_TIMED = 5  # batches of all sizes, for the time of a step
_PASSES = 10  # over the text: the length of the training, by which its dropout is chosen
_CONFIG, _TOKENIZER, _RESULT = "config.yaml", "tokenizer.model", "trial.json"
# Imported by its name, since `python -m` would import it twice.
_PROGRAM = "import sys; from keras_attention.pipeline.trial import run_trial; run_trial(sys.argv[1])"


@dataclasses.dataclass(frozen=True)
class Trial:
    """The memory and the time that a training needs, as a few of its steps show.

    Attributes:
        peak_bytes: Largest memory of the process, in bytes; that of a GPU is not counted.
        available_bytes: Memory of the machine.
        step_seconds: Mean seconds of a batch.
        batches_per_epoch: Number of batches in a pass over the text.
        num_parameters: Number of parameters of the model.
        shapes: Largest batches that were tried: rows, source length, target length.
    """

    peak_bytes: int
    available_bytes: int
    step_seconds: float
    batches_per_epoch: int
    num_parameters: int
    shapes: list[list[int]]

    @property
    def fits(self) -> bool:
        """True if the machine has the memory."""
        return self.peak_bytes < self.available_bytes

    def __str__(self) -> str:
        shapes = ", ".join("×".join(map(str, shape)) for shape in self.shapes)
        epoch = self.step_seconds * self.batches_per_epoch
        lack = (
            "" if self.fits else "\nwarning: this is more than the machine has: use smaller batches or a smaller model"
        )
        return (
            f"trial: {self.num_parameters:,} parameters, largest batches (rows × source × target) {shapes}\n"
            f"  peak memory {self.peak_bytes / 1e9:.2f} GB of {self.available_bytes / 1e9:.2f} GB\n"
            f"  {self.step_seconds:.2f} s per batch, {_duration(epoch)} for each pass over the text "
            f"({self.batches_per_epoch:,} batches){lack}"
        )


def trial_training(config: RunConfig, tokenizer: SubwordTokenizer | None = None) -> Trial:
    """Trains a few steps with the largest batches of a run, in another process, and writes nothing of it.

    The steps are those of `train`: its texts, tokenizer, model, optimizer and dtype. An evaluation, a translation of
    the sample for BLEU and a checkpoint follow, since any of these can need the most memory.

    Args:
        config: Config of the run.
        tokenizer: Tokenizer of the run; None to train it as `train` does.

    Returns:
        The memory and the time.

    Raises:
        MemoryError: If the process is killed, as the system does where memory ends.
        ValueError: If the texts are not usable, or the process ends with an error.
    """
    if tokenizer is not None:
        config = config.replace(vocabulary_size=tokenizer.vocabulary_size)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as folder:
        config.save(Path(folder, _CONFIG))
        if tokenizer is not None:
            tokenizer.save(Path(folder, _TOKENIZER))
        command = [sys.executable, "-c", _PROGRAM, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode == -signal.SIGKILL:
            raise MemoryError("the trial was killed")
        if done.returncode:
            reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
            raise ValueError(f"The trial of the training ended with an error: {reason}")
        return Trial(**json.loads(Path(folder, _RESULT).read_text(encoding="utf-8")))


def run_trial(folder: str) -> None:
    """Tries the training whose config is in a folder, and writes the result there: the program of the process."""
    path = Path(folder, _TOKENIZER)
    tokenizer = SubwordTokenizer.load(path) if path.exists() else None
    trial = measure_training(RunConfig.load(Path(folder, _CONFIG)), tokenizer, folder)
    Path(folder, _RESULT).write_text(json.dumps(dataclasses.asdict(trial)), encoding="utf-8")


def measure_training(config: RunConfig, tokenizer: SubwordTokenizer | None, folder: str | Path) -> Trial:
    """Trains a few steps in this process, evaluates, translates and saves, and returns the memory and the time."""
    keep_freed_memory()
    keras.utils.set_random_seed(config.seed)
    config, data = RunData.read(config, tokenizer, _choose)
    batches_per_epoch = len(data.batches)
    model = build_model(config)
    # Of text in shards, the batches of one buffer are tried.
    batches = data.batches.buffer(0) if isinstance(data.batches, StreamedBatches) else data.batches
    shapes, number = _put_first(batches)
    clock = _Clock()
    make_trainer(model, config).fit(
        batches.dataset(),
        steps_per_epoch=number,
        shuffle=False,
        verbose=0,
        callbacks=[clock, *([] if config.ema is None else [ExponentialMovingAverage(config.ema)])],
    )
    _evaluate(model, data, Path(folder))
    timed = clock.seconds[len(shapes) :][:_TIMED] or clock.seconds[-1:]
    return Trial(
        peak_bytes=_peak_bytes(),
        available_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        step_seconds=float(np.mean(timed)),
        batches_per_epoch=batches_per_epoch,
        num_parameters=model.count_params(),
        shapes=shapes,
    )


def _choose(config: RunConfig, steps_per_epoch: float) -> RunConfig:
    return choose_by_length(config, steps_per_epoch, max(1, round(_PASSES * steps_per_epoch)), None)


class _Clock(keras.callbacks.Callback):
    """Measures the seconds of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def _put_first(batches: TokenBatches | PackedBatches) -> tuple[list[list[int]], int]:
    """Puts the largest batches first, then some of all sizes; returns the shapes of the largest, and the number."""
    plan = batches.plan(0)
    if isinstance(batches, PackedBatches):  # of one shape
        shape = [batches.rows_per_batch, batches.source_length, batches.target_length]
        return [shape], min(len(plan), 1 + _TIMED)
    shapes = np.array([_shape(batches, index) for index in plan])  # (batches, 3)
    rows, source, target = shapes.T
    # Most memory is for the tokens of a batch, or for their attention scores, or for the logits of its targets.
    costs = (rows * (source + target), rows * (source**2 + target**2 + source * target), rows * target)
    largest = list(dict.fromkeys(int(cost.argmax()) for cost in costs))
    by_size = np.argsort(costs[0], kind="stable")
    timed = by_size[np.linspace(0, len(plan) - 1, min(_TIMED, len(plan))).round().astype(int)].tolist()
    # The largest once more at the end: memory that earlier batches have left in pieces may not hold them.
    first = [*largest, *timed, *largest][: len(plan)]
    order = [*first, *range(len(plan) - len(first))]
    batches.plan = lambda epoch: [plan[index] for index in order]
    return [shapes[index].tolist() for index in largest], len(first)


def _shape(batches: TokenBatches, index: Sequence[int]) -> tuple[int, int, int]:
    inputs, labels = batches.batch(index)
    return *inputs["source"].shape, labels.shape[1]


def _evaluate(model: keras.Model, data: RunData, folder: Path) -> None:
    """Does what an evaluation of a run does, with the largest validation batches."""
    _, number = _put_first(data.valid_batches)
    model.evaluate(data.valid_batches.dataset(), steps=number, verbose=0)
    Translator(model, data.tokenizer, beam_size=1).translate([source for source, _ in data.sample])
    file = folder / "trial.keras"
    model.save(file)
    keras.models.load_model(file, compile=False)


def _peak_bytes() -> int:
    """The largest memory of this process so far, without that of the process it was forked from."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
