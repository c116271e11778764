"""Training and decoding on a GPU against peers: tokens a second, share of the chip's matrix rate, memory.

`python -m benchmarks.gpu`. Ours runs through JAX, as KerasHub's layers do where they are installed; torch is compiled.
Rows have one length and no padding; "packed" keeps eight pairs in each of them apart, which no peer does. Decoding
compares with Marian of Hugging Face where it is installed. Needs Keras, JAX and torch, no TensorFlow. On a machine
without a GPU only `--tiny` makes sense, which shows that everything runs.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from benchmarks.harness import Case
from benchmarks.peers.rows import DecodedRows
from benchmarks.peers.side import Task
from benchmarks.tools.agreement import assert_same_work
from benchmarks.tools.rates import Rates
from benchmarks.tools.speeds import Speeds
from benchmarks.tools.turns import ROOT, in_turn
from benchmarks.tools.workers import Worker

SIZES = {"vocabulary_size": 37_000, "num_layers": 6, "dtype": "mixed_bfloat16", "rows": 96, "row_length": 256}
WORKLOADS = {
    "base": Task("", **SIZES, hidden_dim=512, intermediate_dim=2048, num_heads=8),
    "big": Task("", **SIZES, hidden_dim=1024, intermediate_dim=4096, num_heads=16, dropout=0.3),
}
DECODING = "decoding"
TINY = Task(
    "", vocabulary_size=97, num_layers=2, hidden_dim=16, intermediate_dim=37, num_heads=2, dtype="mixed_bfloat16",
    rows=3, row_length=17, warmup=2, steps=3,
)  # fmt: skip
TINY_DECODING = DecodedRows(97, 2, 16, 37, 2, sentences=5, tokens_in=7, tokens_out=11)
# XLA takes memory as it needs it, so that all sides share a GPU.
JAX = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
OURS, KERASHUB, TORCH, MARIAN = "keras_attention", "kerashub", "torch", "marian (torch)"
PAIRS_PER_ROW = 8
BEAMS = {"greedy": 1, "beam 4": 4}
Report = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    names = [*WORKLOADS, DECODING]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of: {', '.join(names)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="of each workload (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of training on the clock (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that everything runs, measures nothing")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.workloads) - set(names))
    if unknown:
        parser.error(f"no workload is called {', '.join(unknown)}; there are: {', '.join(names)}")
    console = Console()
    chip = ceiling()
    console.print(f"matrix product in bfloat16: {chip['bfloat16'] / 1e12:,.0f} TFLOP/s on {chip['device']}")
    for name in options.workloads or names:
        if name == DECODING:
            result = measure_decoding(
                TINY_DECODING if options.tiny else DecodedRows(), chip, options.rounds, console.print
            )
        else:
            task = TINY if options.tiny else replace(WORKLOADS[name], steps=options.steps, warmup=5)
            result = measure(name, task, chip, options.rounds, console.print)
        result.show(console)
        if not options.tiny:
            console.print(f"written: {result.save().name}")


def measure(name: str, task: Task, chip: dict, rounds: int, report: Report = print) -> Rates:
    """Measures the training of one workload on every side there is."""
    with started(training_sides(task)) as workers:
        first = {}
        for side, worker in workers.items():
            try:
                first[side] = worker.ask("steps", count=1)["seconds"]
                worker.ask("steps", count=task.warmup)
                report(f"{side}: first step after {first[side]:.1f} s")
            except RuntimeError as error:  # out of memory, say: the others go on
                report(f"{side} is left out: {error}")

        def turn(side: str) -> dict:
            answer = workers[side].ask("steps", count=task.steps)
            return {**answer["found"], "seconds": answer["seconds"], "first_step_seconds": first[side], "loss": None}

        measured = in_turn({side: lambda side=side: turn(side) for side in first}, rounds, report)
    assert_same_work(task, measured)
    title = f"{name}: {task.rows} rows of {task.row_length} tokens a side, {chip['device']}"
    return Rates(f"gpu-{name}", title, "random ids, no padding", task, measured, [chip] * rounds)


def training_sides(task: Task) -> dict[str, tuple[str, Task, Mapping[str, str]]]:
    """The module of each side, its task and its environment."""

    def on_jax(**options: Any) -> tuple[str, Task, Mapping[str, str]]:
        return "benchmarks.peers.jax_rows", replace(task, options=options), JAX

    sides = {OURS: on_jax(layers=OURS), f"{OURS}, packed": on_jax(layers=OURS, pairs_per_row=PAIRS_PER_ROW)}
    if importlib.util.find_spec("keras_hub") is not None:
        sides[KERASHUB] = on_jax(layers=KERASHUB)
    return {**sides, TORCH: ("benchmarks.peers.torch_rows", task, {})}


def measure_decoding(task: DecodedRows, chip: dict, rounds: int, report: Report = print) -> Speeds:
    """Measures greedy and beam search on every side there is; each writes the same number of tokens."""
    sides = {OURS: ("benchmarks.peers.jax_decoding", task, JAX)}
    if importlib.util.find_spec("transformers") is not None:
        sides[MARIAN] = ("benchmarks.peers.marian_decoding", task, {})
    cases, rates, first = [], {}, {}
    with started(sides) as workers:
        for name, beam in BEAMS.items():
            for side, worker in workers.items():
                answer = worker.ask("search", beam=beam)
                assert answer["found"] == [task.sentences, task.tokens_out], f"{side} wrote {answer['found']}"
                first[f"{side}, {name}"] = answer["seconds"]
            turns = {side: lambda side=side, beam=beam: workers[side].ask("search", beam=beam) for side in workers}
            measured = in_turn(turns, rounds, lambda line: None)
            case = Case(name, {side: [answer["seconds"] for answer in answers] for side, answers in measured.items()})
            cases.append(case)
            tokens = task.sentences * task.tokens_out
            rates[f"tokens a second, {name}"] = {side: tokens / case.median(side) for side in case.seconds}
            report(
                f"{name}: {', '.join(f'{side} {rate:,.0f} tokens/s' for side, rate in [*rates.values()][-1].items())}"
            )
    setup = {**asdict(task), "dtype": "bfloat16", "device": chip["device"]}
    return Speeds("gpu-decoding", setup, cases, [OURS], {**rates, "seconds of the first search": first})


@contextmanager
def started(sides: Mapping[str, tuple[str, Any, Mapping[str, str]]]) -> Iterator[dict[str, Worker]]:
    """The processes of some sides, until the block ends."""
    workers = {}
    try:
        for name, (module, task, environment) in sides.items():
            workers[name] = Worker(module, task, os.cpu_count() or 1, environment)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def ceiling() -> dict:
    """The rate of the device's matrix products, by dtype, and its name."""
    command = [sys.executable, "-m", "benchmarks.tools.jax_ceiling"]
    variables = {**os.environ, **JAX, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
