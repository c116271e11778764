"""Causal self-attention over one long sequence, against Keras' own and PyTorch's: time and memory of a training step.

`python -m benchmarks.long_attention --help` lists the options. Each side is a process of its own, which waits while the
others run; a step is forward and backward.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.harness import RESULTS, Case, Report
from benchmarks.peers.long_attention import LongAttentionTask
from benchmarks.tools.turns import in_turn
from benchmarks.tools.workers import Worker

HEADS, KEY_DIM = 8, 64
OURS, KERAS, TORCH = "keras_attention", "keras", "torch"
SIDES = {OURS: "long_attention_layer", KERAS: "long_attention_layer", TORCH: "long_attention_torch"}
LENGTHS, LONGER = (1024, 2048, 4096, 8192), (16384, 32768)
ROUNDS, ROUNDS_OF_LONGER = 5, 2
# From this length on, Keras' layer is left out: its weights take more memory than most machines have.
TOO_LONG_FOR_KERAS = LONGER[0]
SHORT = 64
# For float32 sums of many terms in another order, relative to the largest entry.
TOLERANCE = 1e-4


def run(
    rounds: int = ROUNDS,
    lengths: Sequence[int] = (*LENGTHS, *LONGER),
    sides: Sequence[str] = tuple(SIDES),
    heads: int = HEADS,
    key_dim: int = KEY_DIM,
) -> Report:
    """Asserts that all sides agree, and measures them in turn."""
    memory = {side: {} for side in sides}
    setup = {"batch": 1, "heads": heads, "key_dim": key_dim, "rounds": rounds, "additional_memory_mib": memory}
    report = Report("long_attention", OURS, {**setup, "dtype": "float32"})
    for length in lengths:
        names = [side for side in sides if side != KERAS or length < TOO_LONG_FOR_KERAS]
        workers = {}
        try:
            for side in names:
                task = LongAttentionTask(heads, key_dim, side, len(os.sched_getaffinity(0)))
                workers[side] = Worker(f"benchmarks.peers.{SIDES[side]}", task, task.threads)
                memory[side][length] = _additional_memory(workers[side], length)
            assert_equal(workers, length)
            steps = {side: partial(worker.ask, "step", length=length) for side, worker in workers.items()}
            count = rounds if length < TOO_LONG_FOR_KERAS else min(rounds, ROUNDS_OF_LONGER)
            answers = in_turn(steps, count, report=lambda line: None)
        finally:
            for worker in workers.values():
                worker.close()
        seconds = {side: [answer["seconds"] for answer in each] for side, each in answers.items()}
        report.cases.append(Case(f"{length} tokens", seconds))
    return report


def assert_equal(workers: dict[str, Worker], length: int) -> None:
    """Asserts that all sides compute the same outputs and gradients as ours."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for side, worker in workers.items():
            file = Path(folder) / f"{side}.npz"
            worker.ask("values", length=length, file=str(file))
            found[side] = list(np.load(file).values())
    for side, theirs in found.items():
        # The bias of the keys has no gradient, so what rounding leaves of it is measured by the largest of them all.
        for mine, other in zip(found[OURS], theirs, strict=True):
            scale = max(np.abs(other).max(), np.abs(theirs[1]).max())
            message = f"{side}, {length} tokens"
            np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * scale, err_msg=message)


def _additional_memory(worker: Worker, length: int) -> int:
    """The most that a step takes, in MiB, beyond what the process had after a step of `SHORT` tokens."""
    peaks = []
    for each in (SHORT, length):
        worker.ask("step", length=each)
        peaks.append(worker.peak_bytes)
    return (peaks[1] - peaks[0]) // 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_attention", description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[*LENGTHS, *LONGER], help="numbers of tokens (all)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="ours among them (all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each length (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    if OURS not in options.sides:
        parser.error(f"--sides: the others are compared with {OURS}. Received: --sides {' '.join(options.sides)}")
    console = Console()
    report = run(options.rounds, options.lengths, options.sides)
    report.show(console)
    console.print(f"written: {report.save(Path(options.results)).name}")


if __name__ == "__main__":
    main()
