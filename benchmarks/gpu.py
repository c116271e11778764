"""Training on a GPU against peers: tokens a second, share of the chip's bfloat16 matrix rate, memory.

`python -m benchmarks.gpu`. Ours runs through JAX, as KerasHub's layers do where they are installed; torch is compiled.
Rows have one length and no padding; "packed" keeps eight pairs in each of them apart, which no peer does. Needs Keras,
JAX and torch, no TensorFlow. On a machine without a GPU only `--tiny` makes sense, which shows that everything runs.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console

from benchmarks.peers.side import Task
from benchmarks.tools.agreement import assert_same_work
from benchmarks.tools.rates import Rates
from benchmarks.tools.turns import in_turn, run_side

SIZES = {"vocabulary_size": 37_000, "num_layers": 6, "dtype": "mixed_bfloat16", "rows": 96, "row_length": 256}
WORKLOADS = {
    "base": Task("", **SIZES, hidden_dim=512, intermediate_dim=2048, num_heads=8),
    "big": Task("", **SIZES, hidden_dim=1024, intermediate_dim=4096, num_heads=16, dropout=0.3),
}
TINY = Task(
    "", vocabulary_size=97, num_layers=2, hidden_dim=16, intermediate_dim=37, num_heads=2, dtype="mixed_bfloat16",
    rows=3, row_length=17, warmup=2, steps=3,
)  # fmt: skip
# Keras reads its flash kernel's switch from the code; XLA takes memory as it needs it, so that all sides share a GPU.
JAX = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
PAIRS_PER_ROW = 8
CEILING = "matrix product"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of: {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="of each workload (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="on the clock (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that everything runs, measures nothing")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.workloads) - set(WORKLOADS))
    if unknown:
        parser.error(f"no workload is called {', '.join(unknown)}; there are: {', '.join(WORKLOADS)}")
    tasks = {name: replace(WORKLOADS[name], steps=options.steps) for name in options.workloads or WORKLOADS}
    console = Console()
    for name, task in ({"tiny": TINY} if options.tiny else tasks).items():
        rates = measure(name, task, options.rounds, console.print)
        rates.show(console)
        if not options.tiny:
            console.print(f"written: {rates.save().name}")


def measure(name: str, task: Task, rounds: int, report: Callable[[str], None] = print) -> Rates:
    """Measures one workload on every side there is."""
    measured = in_turn(sides(task), rounds, report)
    ceilings = measured.pop(CEILING)
    assert_same_work(task, measured)
    title = f"{name}: {task.rows} rows of {task.row_length} tokens a side, {ceilings[0]['device']}"
    return Rates(f"gpu-{name}", title, "random ids, no padding", task, measured, ceilings)


def sides(task: Task) -> dict[str, Callable[[], dict]]:
    """What runs each side."""

    def jax_side(**options: object) -> Callable[[], dict]:
        return partial(run_side, "benchmarks.peers.jax_rows", replace(task, options=options), JAX)

    found = {
        "keras_attention": jax_side(layers="keras_attention"),
        "keras_attention, packed": jax_side(layers="keras_attention", pairs_per_row=PAIRS_PER_ROW),
    }
    if importlib.util.find_spec("keras_hub") is not None:
        found["kerashub"] = jax_side(layers="kerashub")
    found["torch"] = partial(run_side, "benchmarks.peers.torch_rows", task)
    return {**found, CEILING: partial(run_side, "benchmarks.tools.jax_ceiling", None, JAX)}


if __name__ == "__main__":
    main()
