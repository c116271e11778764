"""The figures of docs/concepts/heads.md, from the tensors of its listings: `make figures`."""

from pathlib import Path
from typing import Any

import numpy as np
from drawing import COLOURS, heat_map, new_figure, save
from listings import run_listings

# A line of the figure of shapes: the words, the step of the listing, a colour.
GREY, RED, ORANGE, BLUE = "#eceff1", "#fadfe0", "#fbe2bd", "#c5e4f7"
ENCODER = [
    ("source ids", "source", GREY),
    ("embedded", "source, embedded", RED),
    ("Q, K, V: heads apart", "encoder: queries", ORANGE),
    ("weights", "encoder: weights", ORANGE),
    ("heads", "encoder: heads", ORANGE),
    ("attention's output", "encoder: output", RED),
    ("inside feed-forward", "feed-forward: inside", BLUE),
    ("memory", "memory", RED),
]
CROSS = [
    ("target ids", "target", GREY),
    ("embedded", "target, embedded", RED),
    ("Q of the target", "cross: queries", ORANGE),
    ("K, V of the memory", "cross: keys", ORANGE),
    ("cross weights", "cross: weights", ORANGE),
    ("heads", "cross: heads", ORANGE),
    ("attention's output", "cross: output", RED),
    ("logits", "logits", GREY),
]


def resolution(names: dict[str, Any]) -> Path:
    figure, row = new_figure(3, 2.8)
    one, two = (names["trained"][heads][2][0] for heads in (1, 2))
    for axes, weights, title in zip(row, (one[0], *two), ("the only head", "head 1 of 2", "head 2 of 2"), strict=True):
        heat_map(axes, weights, title)
        axes.set(xlabel="key")
    row[0].set_ylabel("query")
    return save(figure, "heads-resolution")


def kinds(names: dict[str, Any]) -> Path:
    figure, row = new_figure(3, 3.0)
    english, german = ["his", "name", "is", "Adrian"], ["start", "sein", "Name", "ist", "Adrian"]
    words = {"encoder": (english, english), "decoder": (german, german), "cross": (german, english)}
    for axes, (kind, weights) in zip(row, names["maps"].items(), strict=True):
        heat_map(axes, weights.mean(0), kind, *words[kind])
        axes.tick_params(axis="x", rotation=90)
    return save(figure, "heads-kinds")


def sentence(names: dict[str, Any]) -> Path:
    figure, row = new_figure(4, 2.6, sharey=True)
    words = ["his", "name", "is", "Adrian"]
    for head, (axes, weights) in enumerate(zip(row, names["maps"]["encoder"], strict=True), 1):
        heat_map(axes, weights, f"head {head}", words, words)
        axes.tick_params(axis="x", rotation=90)
    return save(figure, "heads-sentence")


def hidden(names: dict[str, Any]) -> Path:
    figure, axes = new_figure(1, 3.6)
    vectors = names["hidden"]["memory"] - names["hidden"]["memory"].mean(0)
    main_axis = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][0]
    probe = names["features"] @ names["probe"]  # of the last round, that of the memory
    first_words = np.array([english.split()[0] for english, _ in names["pairs"]])
    for word, marker in zip(names["possessives"], "os^D", strict=True):
        for is_feminine, colour in ((True, COLOURS[0]), (False, COLOURS[1])):
            chosen = (first_words == word) & (names["is_feminine"] == is_feminine)
            label = word if is_feminine else None
            axes.scatter(main_axis[chosen], probe[chosen], color=colour, marker=marker, s=24, label=label)
    axes.set(xlabel="main axis", ylabel="probe", title="red: feminine noun follows, blue: masculine")
    axes.legend(title="word", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), labelcolor="black")
    return save(figure, "heads-hidden")


def shapes(names: dict[str, Any]) -> Path:
    figure, row = new_figure(2, 4.6)
    for axes, title, steps in zip(row, ("encoder", "decoder: cross-attention"), (ENCODER, CROSS), strict=True):
        for line, (words, name, colour) in enumerate(steps):
            axes.barh(-line, 1, 0.72, color=colour)
            axes.text(0.02, -line, words, va="center", fontsize=10)
            shape = " × ".join(map(str, names["shapes"][name]))
            axes.text(0.98, -line, shape, va="center", ha="right", fontsize=10, weight="bold")
            if line and not words.startswith("K, V"):  # from the memory, not from Q
                axes.annotate("", (0.5, -line + 0.34), (0.5, -line + 0.68), arrowprops={"arrowstyle": "->"})
        axes.set(xlim=(0, 1), title=title)
        axes.axis("off")
    return save(figure, "heads-shapes")


def draw() -> list[Path]:
    """Draws the figures and returns their paths."""
    names, _ = run_listings("heads.md")
    return [part(names) for part in (resolution, kinds, sentence, hidden, shapes)]


if __name__ == "__main__":
    print(*draw(), sep="\n")
