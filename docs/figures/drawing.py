"""What the figures of docs/concepts share: size, colours, maps of weights."""

from pathlib import Path
from typing import Any

import matplotlib

IMAGES = Path(__file__).parent.parent / "images"
COLOURS = ("#c62828", "#1565c0", "#ef6c00", "#2e7d32")


def new_figure(columns: int, height: float, **options: Any) -> tuple[Any, Any]:
    """A white figure with axes in a row."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"font.size": 11, "axes.titlesize": 11, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False})
    return pyplot.subplots(1, columns, figsize=(6, height), layout="constrained", **options)


def save(figure: Any, name: str) -> Path:
    path = IMAGES / f"{name}.png"
    figure.savefig(path, dpi=125, bbox_inches="tight")
    return path


def heat_map(axes: Any, matrix: Any, title: str, rows: Any = None, columns: Any = None, **options: Any) -> Any:
    """A map of a matrix with its rows from the top; rows and columns are numbered from 1 without names."""
    image = axes.imshow(matrix, **{"cmap": "Blues", "vmin": 0, "vmax": 1, **options})
    rows = range(1, len(matrix) + 1) if rows is None else rows
    columns = range(1, len(matrix[0]) + 1) if columns is None else columns
    axes.set_yticks(range(len(matrix)), rows)
    axes.set_xticks(range(len(matrix[0])), columns)
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image
