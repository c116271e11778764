"""Attention weights of a pair of sentences, of all layers and heads in one picture.

Shapes: B pairs, N layers, H heads, T target length, S source length.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_attention.models import InspectedTransformer, Transformer
from keras_attention.text import BOS_ID

# The kinds of attention, with the sides of a pair to which queries and keys belong.
KINDS = {"encoder": (0, 0), "decoder": (1, 1), "cross": (1, 0)}
_MAX_LAYERS, _MAX_HEADS = 6, 8
_CELL = 12  # pixels; a label is as high
_GAP = 4  # pixels between two maps
_MARGIN = 12  # pixels around the maps and their labels, at the least
_DPI = 100


def attention_weights(
    model: Transformer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[dict[str, np.ndarray]]:
    """The weights of each kind of attention, (N, H, T, S), where the model reads each target after its source."""
    source, target = (keras.utils.pad_sequences(side, padding="post") for side in zip(*pairs, strict=True))
    weights = InspectedTransformer(model).attention_weights(source, target, bos_id=BOS_ID)  # (B, N, H, T, S) each
    kinds = {kind: ops.convert_to_numpy(getattr(weights, kind)) for kind in KINDS}
    return [
        {kind: kinds[kind][row, ..., : len(pair[query]), : len(pair[key])] for kind, (query, key) in KINDS.items()}
        for row, pair in enumerate(pairs)
    ]


class AttentionPicture:
    """A grid of heat maps, with a row for each layer and a column for each head, that can be filled many times.

    Labels take longer to draw than maps, and do not change.
    """

    def __init__(self, num_layers: int, num_heads: int, queries: Sequence[str], keys: Sequence[str]):
        self.shape = (min(num_layers, _MAX_LAYERS), min(num_heads, _MAX_HEADS), len(queries), len(keys))
        self._background = self._draw_labels(queries, keys)  # also sets the corner of the maps

    def draw(self, weights: np.ndarray) -> np.ndarray:
        """Draws weights (N, H, T, S) as an image (height, width, 3) of bytes."""
        import matplotlib

        layers, heads, queries, keys = self.shape
        image = self._background.copy()
        colors = matplotlib.colormaps["viridis"](np.clip(weights[:layers, :heads], 0, 1), bytes=True)[..., :3]
        for layer, head in np.ndindex(layers, heads):
            top, left = self._corner(layer, head)
            cells = colors[layer, head].repeat(_CELL, axis=0).repeat(_CELL, axis=1)
            image[top : top + queries * _CELL, left : left + keys * _CELL] = cells
        return image

    def _corner(self, layer: int, head: int) -> tuple[int, int]:
        """The first row and column of pixels of a map."""
        _, _, queries, keys = self.shape
        return self._top + layer * (queries * _CELL + _GAP), self._left + head * (keys * _CELL + _GAP)

    def _draw_labels(self, queries: Sequence[str], keys: Sequence[str]) -> np.ndarray:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        layers, heads, *_ = self.shape
        # Pixels of the longest labels, about half as wide as high.
        left, top = (_MARGIN + 7 * max(map(len, side)) for side in (queries, keys))
        self._left, self._top = left + 2 * _CELL, top + 2 * _CELL
        bottom, right = self._corner(layers, heads)
        width, height = right - _GAP + _MARGIN, bottom - _GAP + _MARGIN
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)

        def write(x: float, y: float, text: str, **options: str | float) -> None:
            figure.text(x / width, 1 - y / height, text, parse_math=False, **{"fontsize": 7, **options})

        for layer in range(layers):
            first, _ = self._corner(layer, 0)
            middle = first + len(queries) * _CELL / 2
            write(_MARGIN, middle, f"layer {layer + 1}", rotation=90, ha="center", va="center", weight="bold")
            for row, text in enumerate(queries):
                write(self._left - 3, first + (row + 0.5) * _CELL, text, ha="right", va="center_baseline")
        for head in range(heads):
            _, first = self._corner(0, head)
            write(first + len(keys) * _CELL / 2, _MARGIN, f"head {head + 1}", ha="center", va="center", weight="bold")
            for column, text in enumerate(keys):
                write(first + (column + 0.5) * _CELL, self._top - 3, text, rotation=90, ha="center", va="bottom")
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
