"""The normalization of a block: layer normalization or RMS normalization."""

from typing import Any

import keras
from keras import ops

from keras_attention.ops.normalization import layer_norm


class LayerNorm(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` of the last axis in fewer passes on TensorFlow, which does not fuse them.

    Source: Ba et al. 2016.
    """

    def call(self, inputs: Any) -> Any:
        """Normalizes (…, M), computed in float32 or wider."""
        if keras.config.backend() != "tensorflow":
            return super().call(inputs)
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x, gamma, beta = (ops.cast(value, dtype) for value in (inputs, self.gamma, self.beta))
        return ops.cast(layer_norm(x, gamma, beta, self.epsilon), inputs.dtype)


NORMALIZATIONS = {"layer": LayerNorm, "rms": keras.layers.RMSNormalization}


def make_normalization(kind: str, **options: Any) -> keras.layers.Layer:
    """Creates a normalization of the last axis, "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019)."""
    layer = NORMALIZATIONS[kind](**options)
    layer.supports_masking = True  # Keras' RMSNormalization declares no support, and loses them
    return layer
