"""The command line: `python -m benchmarks [names] [--rounds N] [--list]`."""

import argparse
import importlib
import pkgutil
from collections.abc import Iterator, Sequence

from rich.console import Console

import benchmarks
from benchmarks.harness import RESULTS

# Commands of their own: `gpu` and `gpu_run` need a GPU, `learning`, `ablations` and `shards` need texts, `watching`
# takes turns, the others resume and draw.
COMMANDS = {"gpu", "gpu_run", "learning", "ablations", "complexity", "long_range", "parallelism", "watching", "shards"}
NOT_BENCHMARKS = {"__main__", "harness", *COMMANDS}
ROUNDS = 15


def names() -> list[str]:
    """The benchmarks there are: one per module."""
    modules = (module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.ispkg)
    return sorted(name for name in modules if name not in NOT_BENCHMARKS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the named benchmarks, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(names())}")
    parser.add_argument("--rounds", type=int, help=f"rounds of each case ({ROUNDS}, if not the benchmark's own)")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(names()))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(names())}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1. Received: {options.rounds}")
    console = Console()
    for name in options.names or names():
        module = importlib.import_module(f"benchmarks.{name}")
        if options.list:
            console.print(f"{name}: {module.__doc__.splitlines()[0]}", markup=False)
            continue
        reports = module.run(options.rounds or getattr(module, "ROUNDS", ROUNDS))
        for report in reports if isinstance(reports, Iterator) else [reports]:
            report.show(console)
            console.print(f"written: {report.save().relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
