"""A heat map of the attention of a translation."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np


def draw_attention(translator: Any, text: str, path: str | Path) -> Path:
    """Draws the cross-attention of a translation, and saves the weights as CSV next to the PNG file."""
    # Rows are target tokens, columns source tokens; weights are means over the heads of the decoder's last layer.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    weights, target, source = translator.attention(text)  # (T, S)
    path = Path(path)
    figure, axes = pyplot.subplots(figsize=(0.42 * len(source) + 1.5, 0.34 * len(target) + 1.5), layout="constrained")
    image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(source)), source, rotation=60, ha="right")
    axes.set_yticks(range(len(target)), target)
    axes.set_xlabel("source")
    axes.set_ylabel("target")
    figure.colorbar(image, label="attention weight", shrink=0.8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    header = ",".join(f'"{token}"' for token in source)
    np.savetxt(path.with_suffix(".csv"), weights, fmt="%.4f", delimiter=",", header=header, comments="")
    return path
