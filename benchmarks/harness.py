"""What every benchmark shares: rounds taken in turn, medians, ratios, a table, a JSON file.

Machines drift: clocks change, neighbours come and go. So the sides are never measured one after
the other but in turn within each round, and the ratio is the median of the rounds' own ratios.
"""

import contextlib
import gc
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras", "tensorflow", "numpy", "keras-hub", "ctranslate2", "torch", "jax")


@dataclass(frozen=True)
class Case:
    """One workload measured on every side; the seconds of each side, one per round."""

    name: str
    seconds: dict[str, list[float]]

    def median(self, side: str) -> float:
        """Median seconds of one side."""
        return statistics.median(self.seconds[side])

    def ratio(self, side: str, peer: str) -> float:
        """Median over the rounds of the seconds of `side` per second of `peer`."""
        pairs = zip(self.seconds[side], self.seconds[peer], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


@dataclass(frozen=True)
class Report:
    """The cases of one benchmark; every ratio is against `peer`, so below 1 is faster than it."""

    name: str
    peer: str
    setup: dict[str, object]
    cases: list[Case] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Prints a table: one line per case and side."""
        setup = ", ".join(f"{key} {value}" for key, value in self.setup.items())
        table = Table(title=f"{self.name}, milliseconds ({setup})", box=box.SIMPLE_HEAD)
        for heading in ("case", "side"):
            table.add_column(heading, no_wrap=True)
        for heading in ("median", "range", f"/ {self.peer}"):
            table.add_column(heading, justify="right", no_wrap=True)
        for case in self.cases:
            for side, seconds in case.seconds.items():
                fastest, median, slowest = (
                    f"{1000 * value:.4g}" for value in (min(seconds), case.median(side), max(seconds))
                )
                ratio = f"{case.ratio(side, self.peer):.3f}"
                table.add_row(case.name, side, median, f"{fastest} – {slowest}", ratio)
            table.add_section()
        console.print(table)

    def save(self, folder: Path = RESULTS) -> Path:
        """Writes `<folder>/<name>.json`: machine, set-up, every time measured, medians, ratios."""
        folder.mkdir(parents=True, exist_ok=True)
        cases = [
            {
                **asdict(case),
                "median_seconds": {side: case.median(side) for side in case.seconds},
                "time_over_peer": {side: case.ratio(side, self.peer) for side in case.seconds},
            }
            for case in self.cases
        ]
        content = {"benchmark": self.name, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        content |= {"machine": machine(), "setup": self.setup, "peer": self.peer, "cases": cases}
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path


def measure_in_turn(sides: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Times each side once per round, in an order that rotates from round to round.

    A side must return only when its work is done: convert an output to NumPy in it.
    """
    for _ in range(warmup):
        for work in sides.values():
            work()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides)
    gc.collect()
    gc.disable()  # a collection in the middle of one side would be charged to it
    try:
        for _ in range(rounds):
            for side in order:
                start = time.perf_counter()
                sides[side]()
                seconds[side].append(time.perf_counter() - start)
            order.append(order.pop(0))
    finally:
        gc.enable()
    return seconds


def machine() -> dict[str, object]:
    """Describes where the figures come from."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerators": _accelerators(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "one per core"),
        "packages": _versions(),
        # Of the last minute, the benchmark's own work included: above the cores, others were at work too.
        "load": round(os.getloadavg()[0], 1),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _accelerators() -> list[str]:
    if importlib.util.find_spec("tensorflow") is None:
        return []
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(device) for device in devices]
    return [str(detail.get("device_name", "unknown")) for detail in details]
