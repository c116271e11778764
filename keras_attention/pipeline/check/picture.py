"""The picture of a check: lengths, pairs of lengths, length ratios, problems."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_attention.extras import needed_by
from keras_attention.files import write_atomically
from keras_attention.pipeline.check.problems import ERROR, Problem
from keras_attention.pipeline.check.report import TITLES, CheckReport
from keras_attention.pipeline.check.scan import SIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The part of the lengths that the axes show: the longest lines would leave the others in a corner.
_SHOWN = 0.998


def draw_report(report: CheckReport, path: str | os.PathLike[str]) -> None:
    """Draws a report into a PNG file.

    Args:
        report: Result of `check_texts`.
        path: Path of the file.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import pathlib
        >>> from keras_attention.pipeline import check_texts
        >>> _ = pathlib.Path("a.en").write_text("A cat.\\nTwo cats.\\n", encoding="utf-8")
        >>> _ = pathlib.Path("a.de").write_text("Eine Katze.\\nZwei Katzen.\\n", encoding="utf-8")
        >>> draw_report(check_texts("a.en", "a.de"), "a.png")
        >>> pathlib.Path("a.png").read_bytes()[1:4]
        b'PNG'
    """
    with needed_by("The picture of a check", "cli"):
        from matplotlib.figure import Figure  # only the picture needs it, and it loads slowly
    # Not by pyplot, whose figures and settings are the caller's.
    figure = Figure(figsize=(11, 8), layout="constrained")
    (lengths, pairs), (ratios, problems) = figure.subplots(2, 2)
    _draw_lengths(lengths, report)
    _draw_pairs(pairs, report, figure)
    _draw_ratios(ratios, report)
    _draw_problems(problems, report)
    figure.suptitle(" and ".join(report.splits[0].files), parse_math=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def _limit(report: CheckReport) -> int:
    """The length up to which the axes reach."""
    lengths, counts = report.length_counts[0]
    if not len(lengths):
        return 1
    widest = lengths.max(axis=1)
    order = np.argsort(widest)
    share = counts[order].cumsum() / counts.sum()
    return int(widest[order][np.searchsorted(share, _SHOWN)])


def _edges(limit: int) -> np.ndarray:
    """The edges of at most 60 ranges of lengths, each of whole lengths."""
    return np.unique(np.linspace(0, limit + 1, min(limit + 1, 60) + 1).astype(int)) - 0.5


def _draw_lengths(axes: "Axes", report: CheckReport) -> None:
    limit = _limit(report)
    edges = _edges(limit)
    for split, (lengths, counts), style in zip(report.splits, report.length_counts, ("-", "--", ":"), strict=False):
        for side, color in enumerate(("tab:blue", "tab:orange")):
            shares, _ = np.histogram(lengths[:, side], edges, weights=counts / max(counts.sum(), 1))
            axes.stairs(shares, edges, color=color, ls=style, label=f"{TITLES[split.split]} {SIDES[side]}")
    axes.set(xlabel=report.unit, ylabel="share of the texts", title="Lengths", xlim=(0, limit + 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small")


def _draw_pairs(axes: "Axes", report: CheckReport, figure: "Figure") -> None:
    from matplotlib.colors import LogNorm

    lengths, counts = report.length_counts[0]
    limit = _limit(report)
    edges = _edges(limit)
    grid, _, _ = np.histogram2d(lengths[:, 0], lengths[:, 1], [edges, edges], weights=counts)
    image = axes.pcolormesh(edges, edges, np.where(grid.T > 0, grid.T, np.nan), norm=LogNorm(1, max(grid.max(), 2)))
    figure.colorbar(image, ax=axes, label="pairs")
    axes.plot([0, limit], [0, limit * report.splits[0].ratio], color="black", lw=0.8, ls="--", label="mean ratio")
    axes.set(xlabel=f"source {report.unit}", ylabel=f"target {report.unit}", title="Training pairs by length")
    axes.set(xlim=(0, limit + 1), ylim=(0, limit + 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", loc="upper left")


def _draw_ratios(axes: "Axes", report: CheckReport) -> None:
    edges = np.linspace(-3, 3, 32)  # an even number of edges, so that a range has the ratio 1 in its middle
    for split, (lengths, counts), style in zip(report.splits, report.length_counts, ("-", "--", ":"), strict=False):
        # Of the numbers of tokens and one, so that texts without a word have a ratio.
        logarithms = np.log2((lengths[:, 1] + 1) / (lengths[:, 0] + 1))
        shares, _ = np.histogram(logarithms.clip(-3, 3), edges, weights=counts / max(counts.sum(), 1))
        axes.stairs(shares, edges, color="tab:green", ls=style, label=TITLES[split.split])
    axes.set_xticks(range(-3, 4), ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set(xlabel=f"target {report.unit} per source {report.unit[:-1]}", ylabel="share of the pairs")
    axes.set(title="Length ratios", yscale="log" if report.splits[0].num_pairs else "linear")
    axes.legend(fontsize="small")


def _draw_problems(axes: "Axes", report: CheckReport) -> None:
    counted = [problem for problem in report.problems if len(problem.lines)][::-1]
    axes.set_title("Problems, by number of lines")
    if not counted:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    values = [len(problem.lines) for problem in counted]
    names = [f"{problem.kind.replace('_', ' ')} ({TITLES[problem.split]})" for problem in counted]
    bars = axes.barh(range(len(values)), values, height=0.6, color=_colors(counted))
    axes.bar_label(bars, [f" {value:,}" for value in values])
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlim=(0.5, 10 * max(values)), ylim=(min(-0.5, len(values) - 6.5), len(values) - 0.5))


def _colors(problems: Sequence[Problem]) -> list[str]:
    return ["tab:red" if problem.level == ERROR else "tab:olive" for problem in problems]
