"""What long experiments share: results saved part by part, Markdown tables, figures on white."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine


def resume(path: Path, setting: dict[str, Any], **empty: Any) -> dict[str, Any]:
    """The content of the file if it is of the same setting, else a new content with these empty parts."""
    setting = json.loads(json.dumps(setting))
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["setting"] == setting:
            return content
    return {"benchmark": path.stem, "setting": setting, "machine": machine(), **empty}


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes the content with the time of now."""
    content["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def markdown(heads: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose columns but the first are aligned to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def panels(number: int) -> tuple[Any, Any, Any]:
    """Matplotlib's pyplot, a white figure and its panels in a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, number, figsize=(5 * number, 4.6), layout="constrained", facecolor="white")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return pyplot, figure, axes
