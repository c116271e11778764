"""What the rounds of a training benchmark come to: a table and a JSON file."""

import json
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, machine
from benchmarks.peers.side import Task

DTYPES = ("float32", "bfloat16")
WIDTH = 110  # of the table


@dataclass(frozen=True)
class Rates:
    """What every side of one workload measured; the first side is ours.

    Attributes:
        name: Of the file.
        title: Of the table.
        text: What the sentences are.
        task: What was trained.
        measured: The `Measured` of each side, one per round.
        ceilings: The rates of a matrix product by dtype, one per round.
    """

    name: str
    title: str
    text: str
    task: Task
    measured: dict[str, list[dict]]
    ceilings: list[dict]

    def medians(self, side: str) -> dict[str, float | None]:
        """Medians over the rounds of one side."""
        results = self.measured[side]
        losses = [result["loss"] for result in results if result["loss"] is not None]
        return {
            "tokens_per_second": _median(_rate(result) for result in results),
            "seconds_per_step": _median(result["seconds"] / self.task.steps for result in results),
            "first_step_seconds": _median(result["first_step_seconds"] for result in results),
            "peak_bytes": _median(result["peak_bytes"] for result in results),
            "share_of_matrix_rate": _median(
                result["flops"] / result["seconds"] / ceiling[self._dtype]
                for result, ceiling in zip(results, self.ceilings, strict=True)
            ),
            "loss": _median(losses) if losses else None,
        }

    def times_as_fast(self, side: str) -> float:
        """Median over the rounds of our tokens a second per token a second of a side."""
        ours = next(iter(self.measured.values()))
        return _median(_rate(mine) / _rate(theirs) for mine, theirs in zip(ours, self.measured[side], strict=True))

    def show(self, console: Console) -> None:
        """Prints a table: one line per side; "ours ×" says how many times as fast ours is."""
        ceiling = ", ".join(
            f"{dtype} {_median(found[dtype] for found in self.ceilings) / 1e9:,.0f}" for dtype in DTYPES
        )
        console.print(f"{self.title}; {self.text}; {self.task.steps} steps of {len(self.ceilings)} rounds")
        console.print(f"matrix product, GFLOP/s: {ceiling}")
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("side", "tokens/s", "range", "ours ×", "s/step", "of matrix", "1st step s", "GB", "loss"):
            table.add_column(heading, justify="left" if heading == "side" else "right", no_wrap=True)
        for side, results in self.measured.items():
            found = self.medians(side)
            rates = sorted(_rate(result) for result in results)
            table.add_row(
                side,
                f"{found['tokens_per_second']:,.0f}",
                f"{rates[0]:,.0f}–{rates[-1]:,.0f}",
                f"{self.times_as_fast(side):.2f}",
                f"{found['seconds_per_step']:.3f}",
                f"{found['share_of_matrix_rate']:.0%}",
                f"{found['first_step_seconds']:.1f}",
                f"{found['peak_bytes'] / 1e9:.2f}",
                "" if found["loss"] is None else f"{found['loss']:.2f}",
            )
        console.width = max(console.width, WIDTH)  # where there is no terminal rich takes 80 and cuts the numbers
        console.print(table)

    def save(self, folder: Path = RESULTS) -> Path:
        """Writes `<folder>/<name>.json`: machine, task, everything measured, medians, ratios."""
        folder.mkdir(parents=True, exist_ok=True)
        task = {name: value for name, value in asdict(self.task).items() if name not in ("sentences", "options")}
        sides = {
            side: {"times_as_fast": self.times_as_fast(side), "median": self.medians(side), "rounds": results}
            for side, results in self.measured.items()
        }
        content = {"benchmark": self.name, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        content |= {"machine": machine(), "title": self.title, "text": self.text, "task": task}
        content |= {"matrix_product_flops_per_second": self.ceilings, "sides": sides}
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    @property
    def _dtype(self) -> str:
        return "bfloat16" if self.task.dtype == "mixed_bfloat16" else "float32"


def _rate(result: dict) -> float:
    return result["tokens"] / result["seconds"]


def _median(values) -> float:
    return statistics.median(values)
