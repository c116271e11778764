"""Figures 1 and 2 of the paper, drawn from the layers and functions that a model calls: `make figures`."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
from drawing import IMAGES

import keras_attention as ka

# The paper's words and the colour of a box, by the name of the layer or function in the code.
WORDS = {
    "embedding": ("Embedding", "#fadfe0"),
    "positions": ("Positional\nEncoding", "#ffffff"),
    "encoder.self_attention": ("Multi-Head\nAttention", "#fbe2bd"),
    "decoder.self_attention": ("Masked\nMulti-Head\nAttention", "#fbe2bd"),
    "cross_attention": ("Multi-Head\nAttention", "#fbe2bd"),
    "self_attention_norm": ("Add & Norm", "#f3f5c3"),
    "cross_attention_norm": ("Add & Norm", "#f3f5c3"),
    "feed_forward": ("Feed\nForward", "#c5e4f7"),
    "feed_forward_norm": ("Add & Norm", "#f3f5c3"),
    "query_dense": ("Linear", "#dddfef"),
    "key_dense": ("Linear", "#dddfef"),
    "value_dense": ("Linear", "#dddfef"),
    "output_dense": ("Linear", "#dddfef"),
    "multiply": ("Scale", "#f3f5c3"),
    "einsum": ("MatMul", "#dccfe6"),
    "matmul": ("MatMul", "#dccfe6"),
    "where": ("Mask (opt.)", "#fadfe0"),
    "softmax": ("SoftMax", "#cfe8d5"),
}
SECOND_INPUTS = {"einsum": "K", "where": "mask", "matmul": "V"}
NAMES = "#3f51b5"
LINE, GAP, MARGIN = 0.36, 0.3, 0.3


@dataclass(frozen=True)
class Call:
    """A layer that the model called, and where it is: `model.network.encoder.layers[0].self_attention`."""

    layer: keras.layers.Layer
    owner: str  # path of the object that holds it
    name: str  # attribute of the owner

    @property
    def class_name(self) -> str:
        return type(self.layer).__name__


def small_model() -> ka.Transformer:
    config = ka.TransformerConfig(50, num_layers=1, hidden_dim=32, intermediate_dim=64, num_heads=4)
    return ka.Transformer(config)


def holders(model: ka.Transformer) -> dict[str, Any]:
    """The objects whose attributes are the boxes, by path."""
    paths = {"network": model.network}
    for stack in ("encoder", "decoder"):
        layer = getattr(model.network, stack).layers[0]
        paths[f"network.{stack}.layers[0]"] = layer
        paths[f"network.{stack}.layers[0].self_attention"] = layer.self_attention
    return paths


def called_layers(model: ka.Transformer) -> list[Call]:
    """The layers of a pass, in order, that are attributes of the network, of a layer or of its attention."""
    layers, original = [], keras.layers.Layer.__call__

    def call(layer, *args, **kwargs):
        layers.append(layer)
        return original(layer, *args, **kwargs)

    with mock.patch.object(keras.layers.Layer, "__call__", call):
        model({"source": np.ones((1, 5), int), "target": np.ones((1, 3), int)})
    places = {
        id(value): (owner, name)
        for owner, parent in holders(model).items()
        for name, value in vars(parent).items()
        if isinstance(value, keras.layers.Layer)
    }
    return [Call(layer, *places[id(layer)]) for layer in layers if id(layer) in places]


def called_operations() -> list[str]:
    """The operations of `keras.ops` that `ka.ops.dot_product_attention` calls, in order, without changes of dtype."""
    called = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(keras.ops, name)

    module = importlib.import_module("keras_attention.ops.attention")
    x = np.ones((1, 2, 3, 5), "float32")
    with mock.patch.object(module, "ops", Recorder()):
        module.dot_product_attention(x, x, x, mask=np.ones((3, 3), bool))
    names = [name for name in called if name in WORDS]
    # The second `where` sets the weights to exactly 0, which the paper has from the first.
    first = names.index("where")
    return [name for index, name in enumerate(names) if name != "where" or index == first]


def figure_1_boxes(calls: list[Call]) -> dict[str, list[Call]]:
    """The boxes of figure 1, from the bottom up: below the stacks, in each layer, above the decoder."""
    in_network = [call for call in calls if call.owner == "network" and call.name in WORDS]
    layers = {
        stack: [call for call in calls if call.owner == f"network.{stack}.layers[0]" and "dropout" not in call.name]
        for stack in ("encoder", "decoder")
    }
    *below, top = in_network  # the embedding once more, transposed
    return {"below": sorted(set(below), key=below.index), **layers, "above": [top]}


class Column:
    """Boxes drawn one above the other, joined by arrows."""

    def __init__(self, axes: Any, x: float, y: float = 0.0, width: float = 4.0):
        self.axes, self.x, self.y, self.width = axes, x, y, width

    def arrow(self, length: float = GAP) -> None:
        start, self.y = self.y, self.y + length
        arrow(self.axes, (self.x, start), (self.x, self.y))

    def box(self, words: str, colour: str, names: str) -> float:
        """Draws a box with the paper's words above the names in the code; returns the height of its centre."""
        from matplotlib.patches import FancyBboxPatch

        tall = LINE * (words.count("\n") + names.count("\n") + 2) + 0.14
        corner, style = (self.x - self.width / 2, self.y), "round,pad=0,rounding_size=0.1"
        self.axes.add_patch(FancyBboxPatch(corner, self.width, tall, style, facecolor=colour, edgecolor="#444"))
        split = LINE * (names.count("\n") + 1)
        self.axes.text(self.x, self.y + (tall + split) / 2, words, ha="center", va="center", fontsize=11)
        text = {"fontsize": 9.5, "family": "monospace", "color": NAMES, "linespacing": 1.1}
        self.axes.text(self.x, self.y + split / 2 + 0.05, names, ha="center", va="center", **text)
        self.y += tall
        return self.y - tall / 2

    def call(self, call: Call, stack: str = "") -> float:
        words, colour = WORDS.get(call.name) or WORDS[f"{stack}.{call.name}"]
        return self.box(words, colour, f"{call.name}\n{call.class_name}")

    def label(self, words: str, below: bool = False) -> None:
        y, side = (self.y - 0.06, "top") if below else (self.y + 0.06, "bottom")
        self.axes.text(self.x, y, words, ha="center", va=side, fontsize=11)

    def frame(self, bottom: float, words: str) -> None:
        """Draws a frame from a height to the last box, with words below its top."""
        from matplotlib.patches import FancyBboxPatch

        self.y += MARGIN + LINE
        left, wide = self.x - self.width / 2 - 0.2, self.width + 0.4
        style = {"facecolor": "none", "edgecolor": "#888", "linestyle": "--"}
        box = FancyBboxPatch((left, bottom), wide, self.y - bottom, "round,pad=0,rounding_size=0.15", **style)
        self.axes.add_patch(box)
        text = {"fontsize": 9.5, "family": "monospace", "color": NAMES}
        self.axes.text(self.x, self.y - 0.12, words, ha="center", va="top", **text)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444", "lw": 1, "shrinkA": 0, "shrinkB": 0})


def draw_stack(column: Column, calls: list[Call], stack: str) -> dict[str, float]:
    """Draws a layer in its frame; returns the heights of its boxes."""
    column.arrow(GAP + MARGIN)
    bottom, heights = column.y - MARGIN, {}
    for number, call in enumerate(calls):
        if number and not call.name.endswith("_norm"):
            column.arrow()
        heights[call.name] = column.call(call, stack)
    column.frame(bottom, f"{stack}.layers[i], N times")
    return heights


def figure_1(axes: Any, calls: list[Call]) -> None:
    boxes = figure_1_boxes(calls)
    encoder, decoder = Column(axes, 0.0), Column(axes, 5.3)
    for column, words in ((encoder, "source"), (decoder, "target, shifted right")):
        column.label(words, below=True)
        column.arrow()
        for number, call in enumerate(boxes["below"]):
            if number:
                column.arrow()
            column.call(call)
    draw_stack(encoder, boxes["encoder"], "encoder")
    heights = draw_stack(decoder, boxes["decoder"], "decoder")
    for call in boxes["above"]:
        decoder.arrow()
        decoder.box("Linear", "#dddfef", f"{call.name}, transposed\n{call.class_name}")
    decoder.arrow()
    decoder.label("logits; their softmax is\nin the loss and the search")
    middle, top, entry = 2.65, encoder.y + 0.35, heights["cross_attention"]
    axes.plot([encoder.x, encoder.x, middle, middle], [encoder.y, top, top, entry], color="#444", lw=1)
    arrow(axes, (middle, entry), (decoder.x - decoder.width / 2, entry))
    axes.text(encoder.x + 0.1, top + 0.08, "memory", ha="left", va="bottom", fontsize=11)
    axes.set_xlim(encoder.x - 2.4, decoder.x + 2.4)
    axes.set_ylim(-0.6, decoder.y + 0.9)


def figure_2(left: Any, right: Any, calls: list[Call], operations: list[str]) -> None:
    column = Column(left, 0.0, width=3.2)
    column.label("Q", below=True)
    for name in operations:
        column.arrow()
        height, edge = column.box(*WORDS[name], name), column.width / 2
        if name in SECOND_INPUTS:
            arrow(left, (edge + 0.5, height), (edge, height))
            left.text(edge + 0.55, height, SECOND_INPUTS[name], ha="left", va="center", fontsize=11)
    column.arrow()
    column.label("output")
    left.set_title("Scaled Dot-Product\nAttention", fontsize=11)

    owner = "network.encoder.layers[0].self_attention"
    projections = {call.name: call for call in calls if call.owner == owner}
    columns = [Column(right, x, width=2.4) for x in (-2.6, 0.0, 2.6)]
    for each, letter, name in zip(columns, "VKQ", ("value_dense", "key_dense", "query_dense"), strict=True):
        each.label(letter, below=True)
        each.arrow()
        each.call(projections.pop(name))
        arrow(right, (each.x, each.y), (each.x, each.y + GAP))
    middle = Column(right, 0.0, columns[0].y + GAP, width=7.6)
    middle.box("Scaled Dot-Product Attention, h times", "#dccfe6", "ka.ops.dot_product_attention")
    middle.arrow()
    middle.box("Concat", "#fdf3c8", "join_heads")
    for call in projections.values():
        middle.arrow()
        middle.call(call)
    middle.arrow()
    middle.label("output")
    right.set_title("Multi-Head Attention:\nMultiHeadSelfAttention", fontsize=11)
    left.set_xlim(-1.8, 3.1)
    right.set_xlim(-4.0, 4.0)
    for axes in (left, right):
        axes.set_ylim(-0.6, column.y + 0.5)


def draw() -> list[Path]:
    """Draws both figures and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    calls, operations = called_layers(small_model()), called_operations()
    paths = []
    for number, (size, widths) in {1: ((5.4, 9.2), (1,)), 2: ((6.2, 4.6), (4.9, 8.0))}.items():
        figure, row = pyplot.subplots(
            1, len(widths), figsize=size, width_ratios=widths, layout="constrained", squeeze=False
        )
        if number == 1:
            figure_1(row[0, 0], calls)
        else:
            figure_2(*row[0], calls, operations)
        for axes in row[0]:
            axes.axis("off")
        paths.append(IMAGES / f"paper-figure-{number}.png")
        figure.savefig(paths[-1], dpi=125)
        pyplot.close(figure)
    return paths


if __name__ == "__main__":
    print(*draw(), sep="\n")
