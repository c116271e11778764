"""A heat map of the attention of a translation."""

from pathlib import Path
from typing import Any

import numpy as np

from keras_attention.pipeline.plot import heat_map


def draw_attention(translator: Any, text: str, path: str | Path) -> Path:
    """Draws the cross-attention of a translation, and saves the weights as CSV next to the PNG file."""
    # Rows are target tokens, columns source tokens; weights are means over the heads of the decoder's last layer.
    weights, target, source = translator.attention(text)  # (T, S)
    path = Path(path)
    heat_map(weights, target, source).savefig(path, dpi=120)
    header = ",".join(f'"{token}"' for token in source)
    np.savetxt(path.with_suffix(".csv"), weights, fmt="%.4f", delimiter=",", header=header, comments="")
    return path
