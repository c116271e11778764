"""Linear maps, each computed as one matrix product.

Shapes: B batch, T length, M model width, H heads, D head width, N rows, F output width.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_attention.layers.composite import QuantizableSubclass


class Projection(QuantizableSubclass, keras.layers.EinsumDense):
    """y = x W + b over the last axes of x, as one matrix product over all positions.

    Keras' `EinsumDense` computes (B, T, M) × (M, H, D) as B products and its kernel's gradient as a sum of B products.

    Args:
        rank: Number of axes of x.
        output_dims: Sizes of the axes that replace the last axes.
        input_axes: Number of last axes to replace.
        use_bias: Whether to add b.
        **kwargs: Arguments of `keras.layers.EinsumDense`.
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
        """Replaces the last axes of the inputs, (B, T, M), or (B, T, H, D) with two input axes."""
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


class Dense(QuantizableSubclass, keras.layers.Dense):
    """y = f(x W + b) for rows x, with the gradient of `product`."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Maps rows (N, M) to (N, F)."""
        y = product(inputs, self.kernel)
        y = y if self.bias is None else ops.add(y, self.bias)
        return y if self.activation is None else self.activation(y)


def product(x: Any, kernel: Any) -> Any:
    """x W of (N, M) and (M, F), with the gradient dy Wᵀ of x taken by a transposed copy of W.

    On a CPU, TensorFlow multiplies by a matrix in transposed order more slowly. Other backends choose a layout.
    """
    is_float32 = all(keras.backend.standardize_dtype(each.dtype) == "float32" for each in (x, kernel))
    if keras.config.backend() != "tensorflow" or not is_float32:
        return ops.matmul(x, kernel)

    @ops.custom_gradient
    def multiply(x: Any, kernel: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            transposed = ops.einsum("mf->fm", kernel)  # TensorFlow folds a transpose into the product
            return ops.matmul(upstream, transposed), ops.matmul(ops.transpose(x), upstream)

        return ops.matmul(x, kernel), gradient

    return multiply(x, ops.cast(kernel, "float32"))  # a custom gradient needs a tensor, not a variable
