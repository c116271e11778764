"""What the rounds of the decoding benchmark come to: a table and a JSON file."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, Case, machine

WIDTH = 120  # of the table


@dataclass(frozen=True)
class Speeds:
    """The seconds of every side for every row, and what else was found.

    Attributes:
        name: Of the file.
        setup: What was decoded.
        cases: The rows.
        ours: Our sides; each has a column that says how many times as fast it is as the side of the line.
        found: By a heading: by side or row, a number or a text.
    """

    name: str
    setup: dict[str, object]
    cases: list[Case]
    ours: list[str]
    found: dict[str, dict[str, object]] = field(default_factory=dict)

    def show(self, console: Console) -> None:
        """Prints a table, one line per row and side, then what else was found."""
        console.width = max(console.width, WIDTH)  # where there is no terminal rich takes 80 and cuts the numbers
        console.print(f"{self.name}: {', '.join(f'{key} {value}' for key, value in self.setup.items())}")
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("row", "side"):
            table.add_column(heading, no_wrap=True)
        for heading in ("median, ms", "range", *(f"{side} ×" for side in self.ours)):
            table.add_column(heading, justify="right")
        for case in self.cases:
            for side, seconds in case.seconds.items():
                times = [1000 * value for value in (case.median(side), min(seconds), max(seconds))]
                factors = [f"{case.ratio(side, mine):.2f}" for mine in self.ours]
                table.add_row(case.name, side, f"{times[0]:,.0f}", f"{times[1]:,.0f} – {times[2]:,.0f}", *factors)
            table.add_section()
        console.print(table)
        for heading, values in self.found.items():
            console.print(f"{heading}: {', '.join(f'{key} {_short(value)}' for key, value in values.items())}")

    def save(self, folder: Path = RESULTS) -> Path:
        """Writes `<folder>/<name>.json`: machine, set-up, every time measured, medians, ratios, what else was found."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                **asdict(case),
                "median_seconds": {side: case.median(side) for side in case.seconds},
                "times_as_fast": {mine: {side: case.ratio(side, mine) for side in case.seconds} for mine in self.ours},
            }
            for case in self.cases
        ]
        content = {"benchmark": self.name, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        content |= {"machine": machine(), "setup": self.setup, "rows": rows, "found": self.found}
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path


def time_over(case: Case, other: Case) -> dict[str, float]:
    """How many times as long a row takes as another, by side.

    Args:
        case: A row.
        other: One of the same rounds.

    Returns:
        The median over the rounds.
    """
    return {
        side: statistics.median(one / two for one, two in zip(seconds, other.seconds[side], strict=True))
        for side, seconds in case.seconds.items()
    }


def share_of_equal(found: list, expected: list) -> float:
    """Which share of the items are equal, in their places.

    Args:
        found: Any.
        expected: As many.

    Returns:
        From 0 to 1.
    """
    return sum(one == two for one, two in zip(found, expected, strict=True)) / len(expected)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
