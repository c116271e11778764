"""The normalisations of a block."""

from typing import Any

import keras
from keras import ops

from keras_attention.ops.normalization import layer_norm


class LayerNorm(keras.layers.LayerNormalization):
    """Keras' layer over the last axis, in fewer passes where the backend does not fuse them.

    JAX compiles all passes into one, and torch has a kernel of its own.

    Example:
        >>> print(LayerNorm(epsilon=1e-5)(keras.ops.ones((2, 3, 5))).shape)
        (2, 3, 5)

    Source: Ba et al. 2016.
    """

    def call(self, inputs: Any) -> Any:
        """Normalises.

        Args:
            inputs: (…, M).

        Returns:
            (…, M), computed in float32 or wider.
        """
        if keras.config.backend() != "tensorflow":
            return super().call(inputs)
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x, gamma, beta = (ops.cast(value, dtype) for value in (inputs, self.gamma, self.beta))
        return ops.cast(layer_norm(x, gamma, beta, self.epsilon), inputs.dtype)


NORMALIZATIONS = {"layer": LayerNorm, "rms": keras.layers.RMSNormalization}


def make_normalization(kind: str, **options: Any) -> keras.layers.Layer:
    """A layer that normalises the last axis and lets masks through.

    Args:
        kind: "layer", (x − mean) / √(variance + ε) · γ + β, or "rms", x / √(mean of squares + ε) · γ.
        **options: `epsilon`, `name`, `dtype`, `trainable`.

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
