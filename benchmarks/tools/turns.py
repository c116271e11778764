"""Sides that are processes of their own, run one after another in each round."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers.side import STARTED, Task

ROOT = Path(__file__).parent.parent.parent


def run_side(module: str, task: Task | None = None, environment: Mapping[str, str] | None = None) -> dict:
    """Runs one side in a fresh process.

    Args:
        module: Name of the module, such as "benchmarks.peers.ours".
        task: The training task; None for a side that takes none.
        environment: Variables in addition to those of this process.

    Returns:
        Its measurements, from the last line that it printed.

    Raises:
        RuntimeError: If it fails; the message ends with its standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", module]
        if task is not None:
            file = Path(folder) / "task.json"
            file.write_text(json.dumps(asdict(task)), encoding="utf-8")
            command.append(str(file))
        variables = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, **(environment or {}), STARTED: repr(time.time())}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} failed with exit status {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(
    sides: Mapping[str, Callable[[], dict]], rounds: int, report: Callable[[str], None] = print
) -> dict[str, list[dict]]:
    """Runs each side once per round, in an order that rotates from round to round.

    Args:
        sides: Functions that run a side, by its name.
        rounds: Number of rounds.
        report: Called with a line about each side when it has run.

    Returns:
        The measurements of each side, one per round.
    """
    measured: dict[str, list[dict]] = {side: [] for side in sides}
    order = list(sides)
    for number in range(1, rounds + 1):
        for side in order:
            start = time.monotonic()
            found = sides[side]()
            measured[side].append(found)
            rate = f"{found['tokens'] / found['seconds']:,.0f} tokens/s, " if "tokens" in found else ""
            report(f"round {number}: {side}, {rate}{time.monotonic() - start:.0f} s in all")
        order.append(order.pop(0))
    return measured
