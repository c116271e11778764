"""A picture of which source tokens the model looks at while it writes."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np


def draw_attention(translator: Any, text: str, path: str | Path) -> Path:
    """Draws the cross-attention of a translation: a row for each written token, a column for each read one.

    The weights are the mean over the heads of the decoder's last layer.

    Args:
        translator: A `serving.Translator`.
        text: What is translated.
        path: The PNG file; the numbers go beside it, as CSV.

    Returns:
        The path of the picture.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    weights, target, source = translator.attention(text)  # (T, S)
    path = Path(path)
    figure, axes = pyplot.subplots(figsize=(0.42 * len(source) + 1.5, 0.34 * len(target) + 1.5), layout="constrained")
    image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(source)), source, rotation=60, ha="right")
    axes.set_yticks(range(len(target)), target)
    axes.set_xlabel("read")
    axes.set_ylabel("written")
    figure.colorbar(image, label="attention", shrink=0.8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    header = ",".join(f'"{token}"' for token in source)
    np.savetxt(path.with_suffix(".csv"), weights, fmt="%.4f", delimiter=",", header=header, comments="")
    return path
