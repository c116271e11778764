"""The figures of docs/concepts/sequences.md, from the numbers of its listings: `make figures`."""

from pathlib import Path
from typing import Any

import numpy as np
from drawing import COLOURS, new_figure, save
from listings import run_listings


def lengths(names: dict[str, Any]) -> Path:
    figure, axes = new_figure(1, 3.2)
    english, german = names["lengths"].T
    axes.plot([0, 50], [0, 50], color="#b0bec5", zorder=0)
    axes.scatter(english, german, s=12, color=COLOURS[1], alpha=0.15)
    axes.set(xlabel="characters in English", ylabel="in German", xlim=(0, 52), ylim=(0, 60))
    return save(figure, "sequences-lengths")


def gates(names: dict[str, Any]) -> Path:
    figure, axes = new_figure(1, 3.6)
    colours = ("#757575", *COLOURS)
    for (name, sizes), colour in zip(names["gradients"].items(), colours, strict=True):
        axes.plot(np.arange(64), sizes, color=colour, label=name, lw=2)
    axes.set(yscale="log", ylim=(1e-10, 10), xlim=(0, 63), xlabel="positions before the last", ylabel="gradient")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, "sequences-gates")


def bottleneck(names: dict[str, Any]) -> Path:
    figure, axes = new_figure(1, 2.8)
    bars = {"last state": COLOURS[2], "attention to all states": COLOURS[1]}
    for part, (label, colour) in enumerate(bars.items()):
        shares = [shares[part] for shares in names["recalled"].values()]
        drawn = axes.bar(np.arange(len(shares)) + 0.4 * part - 0.2, shares, 0.38, color=colour, label=label)
        axes.bar_label(drawn, [f"{share:.0%}" for share in shares], fontsize=11)
    axes.set_xticks(range(len(names["recalled"])), [f"{length} symbols" for length in names["recalled"]])
    axes.set(ylim=(0, 1.12), ylabel="right")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, "sequences-bottleneck")


def draw() -> list[Path]:
    """Draws the figures and returns their paths."""
    names, _ = run_listings("sequences.md")
    return [part(names) for part in (lengths, gates, bottleneck)]


if __name__ == "__main__":
    print(*draw(), sep="\n")
