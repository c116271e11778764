"""A matrix as a decoding step multiplies with it: whole for many rows, in parts for few.

Shapes: N rows, M numbers in a row before the product, F after.
"""

import itertools
import math
from typing import Any, NamedTuple

import keras
from keras import ops

# Numbers of a part: 512 KiB in float32, which is half of the L2 cache of a server's core, or less.
PART = 2**17


class Kernel(NamedTuple):
    """W as it lies in memory.

    Attributes:
        values: W (M, F); Wᵀ where `turned`.
        turned: Whether it is Wᵀ.
    """

    values: Any
    turned: bool

    def __call__(self, x: Any) -> Any:
        return ops.matmul(x, ops.transpose(self.values) if self.turned else self.values)

    @property
    def longer_axis(self) -> int:
        """Of rows and columns, of which W has more."""
        inputs, outputs = self.shape
        return int(outputs >= inputs)

    @property
    def shape(self) -> tuple[int, int]:
        """M and F."""
        return tuple(self.values.shape[::-1] if self.turned else self.values.shape)

    def divided(self, axis: int, count: int) -> tuple["Kernel", ...]:
        """Parts of W.

        Args:
            axis: 0 for parts of its rows, 1 for parts of its columns.
            count: How many; as large as each other, but for one.

        Returns:
            The parts.
        """
        ends = [self.shape[axis] * part // count for part in range(1, count)]
        return tuple(Kernel(each, self.turned) for each in ops.split(self.values, ends, axis=axis ^ self.turned))


class Matrix(NamedTuple):
    """y = x W + b.

    On a CPU TensorFlow has oneDNN multiply, which wakes the other threads unless the operands fit into the L2 cache of
    a core. For few rows reading W is all there is to do, and threads that share it and wait for each other take up to
    1.4 times as long as W in parts that one thread each multiplies, several of them side by side.

    Attributes:
        parts: W; or the columns of W in parts, or its rows where these are more.
        bias: b, or None.
    """

    parts: tuple[Kernel, ...]
    bias: Any

    @classmethod
    def of(cls, values: Any, bias: Any, dtype: str, turned: bool = False, divided: bool = False) -> "Matrix":
        """The matrix in a dtype.

        Args:
            values: W (M, F).
            bias: b (F,), or None.
            dtype: Of the product.
            turned: Whether `values` are Wᵀ, (F, M).
            divided: Whether a large one is kept in parts.

        Returns:
            The matrix.

        Example:
            >>> matrix = Matrix.of(keras.ops.ones((5, 7)), keras.ops.ones(7), "float32")
            >>> float(matrix(keras.ops.ones((3, 5)))[0, 0])
            6.0
        """
        kernel = Kernel(ops.cast(values, dtype), turned)
        count = math.ceil(math.prod(kernel.shape) / PART) if divided else 1
        if count > 1:
            return cls(kernel.divided(kernel.longer_axis, count), bias)
        wanted = dtype == "bfloat16"  # Wᵀ is the faster way round there
        return cls((kernel if turned == wanted else Kernel(ops.transpose(kernel.values), wanted),), bias)

    @property
    def dtype(self) -> str:
        """Of the product."""
        return keras.backend.standardize_dtype(self.parts[0].values.dtype)

    def __call__(self, x: Any, dtype: str = "float32") -> Any:
        """The product.

        Args:
            x: (N, M).
            dtype: Of the result.

        Returns:
            (N, F).
        """
        x = ops.cast(x, self.dtype)
        inputs = [part.shape[0] for part in self.parts]
        if inputs[0] == x.shape[1]:
            y = [part(x) for part in self.parts]
            y = y[0] if len(y) == 1 else ops.concatenate(y, axis=1)
        else:
            rows = ops.split(x, list(itertools.accumulate(inputs))[:-1], axis=1)
            y = sum(part(some) for part, some in zip(self.parts, rows, strict=True))
        y = ops.cast(y, dtype)
        return y if self.bias is None else y + ops.cast(self.bias, dtype)
