"""The normalisations of a block."""

from typing import Any

import keras

NORMALIZATIONS = {"layer": keras.layers.LayerNormalization, "rms": keras.layers.RMSNormalization}


def make_normalization(kind: str, **options: Any) -> keras.layers.Layer:
    """A layer that normalises the last axis and lets masks through.

    Args:
        kind: "layer", (x − mean) / √(variance + ε) · γ + β, or "rms", x / √(mean of squares + ε) · γ.
        **options: As of Keras' layers.

    Returns:
        A layer.

    Example:
        >>> make_normalization("rms", name="norm").supports_masking
        True

    Source: Ba et al. 2016; Zhang and Sennrich 2019.
    """
    layer = NORMALIZATIONS[kind](**options)
    layer.supports_masking = True  # Keras' RMSNormalization says that it loses masks, and it would
    return layer
