"""The product with a matrix of weights, whose gradient is as fast as itself.

Shapes: N rows, M width before, F width after.
"""

from typing import Any

import keras
from keras import ops


def product(x: Any, kernel: Any) -> Any:
    """x W, with the gradient dy Wᵀ of x taken by a Wᵀ that is written out.

    On a CPU TensorFlow multiplies rows of 1,024 numbers with a matrix that it is to read crosswise at three quarters
    of the speed that it has otherwise. Other backends choose a layout themselves.

    Args:
        x: (N, M).
        kernel: W, (M, F).

    Returns:
        (N, F).

    Example:
        >>> print(product(ops.ones((3, 5)), ops.ones((5, 7))).shape)
        (3, 7)
    """
    is_float32 = all(keras.backend.standardize_dtype(each.dtype) == "float32" for each in (x, kernel))
    if keras.config.backend() != "tensorflow" or not is_float32:
        return ops.matmul(x, kernel)

    @ops.custom_gradient
    def multiplied(x: Any, kernel: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            turned = ops.einsum("mf->fm", kernel)  # a transpose would be folded back into the product
            return ops.matmul(upstream, turned), ops.matmul(ops.transpose(x), upstream)

        return ops.matmul(x, kernel), gradient

    return multiplied(x, ops.cast(kernel, "float32"))  # a variable as a tensor, which alone can have such a gradient
