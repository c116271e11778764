"""The figures of docs/concepts/attention.md, from the tensors of its listings: `make figures`."""

from pathlib import Path
from typing import Any

import numpy as np
from drawing import COLOURS, heat_map, new_figure, save
from listings import run_listings


def write_numbers(axes: Any, matrix: Any, dark: float = 0.5) -> None:
    for (i, j), number in np.ndenumerate(matrix):
        colour = "white" if number > dark else "black"
        axes.text(j, i, f"{number:.2f}".replace("-", "−"), ha="center", va="center", fontsize=10, color=colour)


def look_up(names: dict[str, Any]) -> Path:
    figure, row = new_figure(3, 2.4, sharey=True)
    for axes, (factor, (output, weights)) in zip(row, names["sharpness"].items(), strict=True):
        axes.bar(range(1, 5), weights, color=["#90a4ae", COLOURS[1], "#90a4ae", "#90a4ae"])
        axes.set(
            title=f"query × {factor}\noutput {output.item():.1f}", xlabel="key", xticks=range(1, 5), ylim=(0, 1.05)
        )
    row[0].set_ylabel("weight")
    return save(figure, "attention-look-up")


def correlation(names: dict[str, Any]) -> Path:
    figure, row = new_figure(2, 3.7)
    heat_map(row[0], names["correlation"], "correlations", cmap="RdBu", vmin=-1.3, vmax=1.3)
    write_numbers(row[0], names["correlation"], dark=0.8)
    heat_map(row[1], names["weights"], "attention weights", vmax=0.6)
    write_numbers(row[1], names["weights"], dark=0.4)
    row[1].set(xlabel="key", ylabel="query")
    return save(figure, "attention-correlation")


def projections(names: dict[str, Any]) -> Path:
    figure, row = new_figure(3, 3.1)
    x = names["sequences"][:1].astype("float32")
    for axes, layer, title in ((row[0], "separate", "three matrices"), (row[1], "shared", "Q and K share one")):
        weights = names["to_numpy"](names[layer](x, return_attention_scores=True)[1])[0, 0]
        heat_map(axes, weights, title)
        axes.set(xlabel="key", ylabel="query")
    for offset, part, colour in ((-0.2, 0, COLOURS[2]), (0.2, 1, COLOURS[1])):
        sizes = [sizes[part] for sizes in names["sizes"].values()]
        row[2].bar(np.arange(3) + offset, sizes, 0.4, color=colour, label=("word", "position")[part])
    row[2].set_title("what each reads")
    row[2].set_xticks(range(3), ["query", "key", "value"])
    row[2].set_ylim(0, 4.9)
    row[2].legend(frameon=False, loc="upper center", ncols=2, columnspacing=0.8, handlelength=0.8, handletextpad=0.4)
    return save(figure, "attention-projections")


def scale(names: dict[str, Any]) -> Path:
    figure, row = new_figure(2, 3.3)
    for name, colour, marker in zip(names["scales"], COLOURS, "os^", strict=False):
        columns = list(zip(*names["measured"][name], strict=True))
        row[0].plot(names["widths"], columns[1], marker=marker, color=colour, label=name)
        row[1].plot(names["widths"], columns[3], marker=marker, color=colour)
    for axes, title in zip(row, ("largest of 32 weights", "derivative by the query"), strict=True):
        axes.set(xscale="log", xlabel="$d_k$", title=title)
        axes.set_xticks(names["widths"], names["widths"])
        axes.minorticks_off()
    row[0].set_ylim(0, 1.02)
    row[1].set_yscale("log")
    row[0].legend(frameon=False, loc="center right")
    return save(figure, "attention-scale")


def additive(names: dict[str, Any]) -> Path:
    figure, axes = new_figure(1, 3.0)
    widths = list(names["spreads"])
    network, product = (np.array(column) for column in zip(*names["spreads"].values(), strict=True))
    lines = {"q · k": product, "q · k / √d": product / np.sqrt(widths), "additive": network}
    for (name, line), colour, marker in zip(lines.items(), (*COLOURS[:2], COLOURS[3]), "osD", strict=True):
        axes.plot(widths, line, marker=marker, color=colour, label=name)
    axes.set(xscale="log", xlabel="$d_k$", ylabel="standard deviation\nof the scores")
    axes.set_xticks(widths, widths)
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return save(figure, "attention-additive")


def draw() -> list[Path]:
    """Draws the figures and returns their paths."""
    names, _ = run_listings("attention.md")
    return [part(names) for part in (look_up, correlation, projections, scale, additive)]


if __name__ == "__main__":
    print(*draw(), sep="\n")
