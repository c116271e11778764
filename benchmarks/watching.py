"""The cost of watching a run: steps with and without TensorBoard in turn, an evaluation's summaries, a state file.

`python -m benchmarks.watching --help` lists the options. The steps of both sides train one model on the same batches.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from benchmarks.tools.sentences import Sentences
from keras_attention import Transformer
from keras_attention.pipeline import RunConfig
from keras_attention.pipeline.recipe import EVALUATIONS
from keras_attention.pipeline.summaries import EvaluationSummaries
from keras_attention.text import TokenBatches
from keras_attention.training import ChunkedTrainer, ResumableRun, StepTensorBoard, keep_freed_memory
from keras_attention.training.presets import OPTIMIZERS, TRAINING_PRESETS

PAIRS, VOCABULARY_SIZE = 40_000, 8000
STATE_MINUTES = 5  # of a run, by default


class Clock(keras.callbacks.Callback):
    """The seconds from the end of the first batch to that of the last, the first of which also starts `fit`."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        if batch == 0:
            self.started = now
        self.seconds = now - self.started


class Pieces:
    """A tokenizer of texts that are ids."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Reads the ids."""
        return [[int(each) for each in text.split()] for text in texts]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Names the ids."""
        return [f"piece{each}" for each in ids]


def make_trainer(model: Transformer, optimizer: str, watched: bool) -> ChunkedTrainer:
    """The trainer of a side, with or without the norm of the gradients in its graph."""
    trainer = ChunkedTrainer(model, label_smoothing=0.1)
    trainer.compile(OPTIMIZERS[optimizer](model.config))  # which builds the optimizer
    if not watched:
        trainer.optimizer.gradient_norm = None
    return trainer


def seconds_of(action: Callable[[], object], times: int = 3) -> float:
    """The median time of an action."""
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)


def compare_steps(
    model: Transformer, data: TokenBatches, optimizer: str, steps: int, rounds: int, folder: Path
) -> dict[str, list[float]]:
    """The seconds of a step, watched and unwatched, in each round, after one in which both compile."""
    sides = {"watched": True, "unwatched": False}
    trainers = {side: make_trainer(model, optimizer, watched) for side, watched in sides.items()}
    measured: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in sorted(sides, reverse=number % 2 == 0):
            clock = Clock()
            callbacks = [StepTensorBoard(folder / "logs", data=data)] if sides[side] else []
            trainers[side].fit(
                data.dataset(), steps_per_epoch=steps + 1, callbacks=[*callbacks, clock], shuffle=False, verbose=0
            )
            measured[side].append(clock.seconds / steps)
    return {side: values[1:] for side, values in measured.items()}


def evaluation_seconds(trainer: ChunkedTrainer, model: Transformer, preset: str, folder: Path) -> float:
    """The seconds that the summaries of an evaluation take, attention and histograms included."""
    steps = StepTensorBoard(folder / "logs")
    files = dict.fromkeys(("source", "target", "valid_source", "valid_target"), "texts")
    config = RunConfig.from_preset(preset, **files, vocabulary_size=VOCABULARY_SIZE)
    sample = [(" ".join(map(str, range(5, 5 + length))),) * 2 for length in range(3, 23)]
    translations = [source for source, _ in sample]
    summaries = EvaluationSummaries(steps, config, Pieces(), model, contextlib.nullcontext, sample, translations)
    summaries.set_model(trainer)
    summaries.on_epoch_end(0)  # draws the labels
    return seconds_of(lambda: summaries.on_epoch_end(0))


def state_seconds(trainer: ChunkedTrainer, data: TokenBatches, folder: Path) -> float:
    """The seconds that a state file takes."""
    run = ResumableRun(folder / "states", data)
    run.set_model(trainer)
    return seconds_of(lambda: run.on_epoch_end(0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the shares of the time of a training."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--preset", default="small", choices=list(TRAINING_PRESETS))
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), help="that of the preset by default")
    parser.add_argument("--steps", type=int, default=20, help="of a side in a round, a multiple of ten")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=30, help="of the training, for the shares")
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(1)
    keep_freed_memory()
    settings = TRAINING_PRESETS[options.preset]
    optimizer = options.optimizer or settings["optimizer"]
    rows = Sentences.drawn(PAIRS, VOCABULARY_SIZE).rows()
    data = TokenBatches(*rows, tokens_per_batch=settings["tokens_per_batch"], seed=1)
    model = Transformer.from_preset(options.preset, VOCABULARY_SIZE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = compare_steps(model, data, optimizer, options.steps, options.rounds, folder)
        ratios = [a / b - 1 for a, b in zip(steps["watched"], steps["unwatched"], strict=True)]
        trainer = make_trainer(model, optimizer, watched=True)
        evaluation = evaluation_seconds(trainer, model, options.preset, folder)
        state = state_seconds(trainer, data, folder)
    for side, values in steps.items():
        print(f"{side:10} {statistics.median(values):.4f} s per step, rounds {min(values):.4f} to {max(values):.4f}")
    shares = {
        f"steps: median of {options.rounds} rounds": statistics.median(ratios),
        f"{EVALUATIONS} evaluations' summaries of {evaluation:.2f} s": EVALUATIONS * evaluation / 60 / options.minutes,
        f"a state of {state:.2f} s every {STATE_MINUTES} minutes": state / 60 / STATE_MINUTES,
    }
    for title, share in shares.items():
        print(f"{share:8.2%}  {title}")
    print(f"{sum(shares.values()):8.2%}  of {options.minutes:g} minutes of training ({options.preset}, {optimizer})")


if __name__ == "__main__":
    main()
