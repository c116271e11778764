"""A linear map of the last axes of a tensor.

Shapes: B batch, T length, M model width, H heads, D head width.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_attention.layers.adaptation import QuantizableSubclass
from keras_attention.ops.product import product


class Projection(QuantizableSubclass, keras.layers.EinsumDense):
    """y = x W + b over the last axes of x, as one matrix product.

    Keras' `EinsumDense` computes (B, T, M) × (M, H, D) as B products and its kernel's gradient as a sum of B
    of them. Here all positions of all sentences are the rows of one.

    Args:
        rank: Number of axes of x.
        output_dims: Sizes that take the place of the last axes.
        input_axes: How many last axes are replaced.
        use_bias: Whether to add b.
        **kwargs: See `keras.layers.EinsumDense`.

    Example:
        >>> query = Projection(rank=3, output_dims=(4, 8))
        >>> print(query(keras.ops.ones((2, 5, 16))).shape)
        (2, 5, 4, 8)
    """

    def __init__(
        self, rank: int, output_dims: tuple[int, ...], input_axes: int = 1, use_bias: bool = True, **kwargs: Any
    ):
        kept = "abcdefghijkl"[: rank - input_axes]
        replaced, new = "mnop"[:input_axes], "qrstuvwxyz"[: len(output_dims)]
        super().__init__(
            f"{kept}{replaced},{replaced}{new}->{kept}{new}",
            output_shape=(*(None,) * (len(kept) - 1), *output_dims),
            bias_axes=new if use_bias else None,
            **kwargs,
        )
        self.supports_masking = True  # `EinsumDense` warns that it loses the mask
        self.input_axes = input_axes
        self.output_dims = tuple(output_dims)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Multiplies.

        Args:
            inputs: (B, T, M), or (B, T, H, D) with two input axes.
            training: Unused.

        Returns:
            The inputs with their last axes replaced.
        """
        if tuple(inputs.shape[-self.input_axes :]) != tuple(self.kernel.shape[: self.input_axes]):
            raise ValueError(
                f"The {self.name} has another width than when the layer was built. Received: shape "
                f"{tuple(inputs.shape)}, where the last axes were {tuple(self.kernel.shape[: self.input_axes])}"
            )
        kept = ops.shape(inputs)[: -self.input_axes]
        width, units = math.prod(inputs.shape[-self.input_axes :]), math.prod(self.output_dims)
        rows = ops.reshape(inputs, (-1, width))  # (B·T, M)
        y = product(rows, ops.reshape(self.kernel, (width, units)))  # (B·T, H·D)
        if self.bias is not None:
            y = ops.add(y, ops.reshape(self.bias, (units,)))
        output = ops.reshape(y, (*kept, *self.output_dims))  # (B, T, H, D)
        return output if self.activation is None else self.activation(output)
