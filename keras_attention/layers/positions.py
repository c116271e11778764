"""Position vectors added to the embeddings.

Shapes: B batch, T length, M model width.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import positive_number
from keras_attention.ops.sinusoids import sinusoids


@keras.saving.register_keras_serializable("keras_attention")
class PositionalEncoding(keras.layers.Layer):
    """y_t = √M x_t + PE(t), with the sinusoids of the paper, for sequences of any length.

    Scaling and adding stand in one layer because `x * 2` and `x + y` on Keras tensors lose the mask.

    Args:
        max_wavelength: 10000 in the paper.
        **kwargs: `name`, `dtype` and the like.

    Raises:
        ValueError: A `max_wavelength` that is not above zero.

    Example:
        >>> x = keras.ops.zeros((2, 3, 4))
        >>> keras.ops.convert_to_numpy(PositionalEncoding()(x)[0, 0]).tolist()
        [0.0, 1.0, 0.0, 1.0]

    Source: Vaswani et al. 2017, sections 3.4 and 3.5.
    """

    def __init__(self, max_wavelength: float = 10000.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.max_wavelength = positive_number(max_wavelength, "max_wavelength")

    def build(self, inputs_shape: Any) -> None:
        if len(inputs_shape) != 3:
            raise ValueError(
                f"`inputs` must have shape (batch, length, width). Received: inputs.shape={tuple(inputs_shape)}"
            )

    def call(self, inputs: Any, start_index: Any = 0) -> Any:
        """Scales and adds.

        Args:
            inputs: Embeddings (B, T, M).
            start_index: Position of the first token, for decoding step by step.

        Returns:
            (B, T, M), in the compute dtype.
        """
        width = inputs.shape[-1]
        positions = ops.arange(ops.shape(inputs)[1], dtype="int32") + start_index  # (T,)
        table = sinusoids(positions, width, self.max_wavelength)  # (T, M)
        scaled = ops.cast(inputs, "float32") * width**0.5  # (B, T, M)
        return ops.cast(scaled + table, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_wavelength": self.max_wavelength}
