"""The argument `attention_axes`: which axes of the inputs attention runs over.

Shapes: B batch, T query length, S key length, H heads, D head width; B' and T' are products of several axes.
"""

import math
from typing import Any

from keras import ops


class AttentionAxes:
    """Axes of inputs (B, …, M): the attended axes become the one axis T', the others join the batch.

    Sequences have one axis of positions; images and videos have more, and may attend over some of them.
    """

    def __init__(self, rank: int, attention_axes: tuple[int, ...] | None = None):
        axes = range(1, rank - 1) if attention_axes is None else attention_axes
        self.attended = tuple(axis % rank for axis in axes)
        if len(set(self.attended)) < len(self.attended) or not set(self.attended) <= set(range(1, rank - 1)):
            raise ValueError(
                f"`attention_axes` names axes between the batch (0) and the width ({rank - 1}), each once. "
                f"Received: attention_axes={attention_axes} for inputs with {rank} axes"
            )
        self.outer = tuple(axis for axis in range(rank - 1) if axis not in self.attended)  # the batch first
        self.is_sequence = rank == 3

    def length(self, x: Any) -> Any:
        """T', the number of positions, an integer or a scalar tensor; None for a sequence of unknown length."""
        return x.shape[1] if self.is_sequence else math.prod(ops.shape(x)[i] for i in self.attended)

    def split_heads(self, x: Any) -> Any:
        """Transposes (B, …, H, D) to (B', H, T', D)."""
        head, width = len(x.shape) - 2, len(x.shape) - 1
        x = ops.transpose(x, (*self.outer, head, *self.attended, width))
        if self.is_sequence:
            return x
        shape, outer = ops.shape(x), len(self.outer)
        return ops.reshape(x, (math.prod(shape[:outer]), shape[outer], math.prod(shape[outer + 1 : -1]), shape[-1]))

    def join_heads(self, context: Any, query: Any) -> Any:
        """Transposes (B', H, T', D) back to (B, …, H, D), with the axes of the query (B, …, M)."""
        if self.is_sequence:
            return ops.transpose(context, (0, 2, 1, 3))
        sizes, (_, heads, _, width) = ops.shape(query), ops.shape(context)
        context = ops.reshape(
            context, (*(sizes[i] for i in self.outer), heads, *(sizes[i] for i in self.attended), width)
        )
        order = (*self.outer, -2, *self.attended)  # the axes of the input in their present order
        return ops.transpose(context, (*(order.index(i) for i in range(len(sizes) - 1)), len(self.outer), len(sizes)))

    def sizes(self, x: Any) -> dict[str, Any]:
        """The expected sizes of a mask for x (B, …, M), by name."""
        names = ("length",) if self.is_sequence else tuple(f"axis {i}" for i in range(1, len(x.shape) - 1))
        return dict(zip(("batch", *names), x.shape[:-1], strict=True))

    def padding_mask(self, mask: Any, name: str = "padding_mask") -> Any:
        """Transposes a mask of positions (B, …) to (B', T')."""
        if self.is_sequence or mask is None:
            return mask
        rank = len(self.outer) + len(self.attended)
        if len(mask.shape) != rank:
            raise ValueError(
                f"`{name}` has the axes of the inputs without their width, {rank} of them. "
                f"Received: {name}.shape={tuple(mask.shape)}"
            )
        mask = ops.transpose(mask, (*self.outer, *self.attended))
        shape, outer = ops.shape(mask), len(self.outer)
        return ops.reshape(mask, (math.prod(shape[:outer]), math.prod(shape[outer:])))

    def attention_mask(self, mask: Any, query: Any, value: Any) -> Any:
        """Transposes a mask (…, attended axes of the query, of the value) to (B', H or 1, T', S')."""
        if self.is_sequence or mask is None:
            return mask
        sizes, pairs, outer = ops.shape(query), 2 * len(self.attended), len(self.outer)
        while len(mask.shape) < outer + 1 + pairs:
            mask = ops.expand_dims(mask, len(mask.shape) - pairs)
        heads = mask.shape[outer]
        attended = [ops.shape(x)[i] for x in (query, value) for i in self.attended]
        mask = ops.broadcast_to(mask, (*(sizes[i] for i in self.outer), heads, *attended))
        half = len(self.attended)
        batch = math.prod(sizes[i] for i in self.outer)
        return ops.reshape(mask, (batch, heads, math.prod(attended[:half]), math.prod(attended[half:])))

    def attention_weights(self, weights: Any, query: Any, value: Any) -> Any:
        """Reshapes weights (B', H, T', S') to (outer axes, H, attended axes of the query, of the value)."""
        if self.is_sequence:
            return weights
        return ops.reshape(weights, self.weights_shape(weights.shape[1], ops.shape(query), ops.shape(value)))

    def weights_shape(self, heads: int, query_shape: Any, value_shape: Any) -> tuple[Any, ...]:
        """The shape that `attention_weights` returns, for inputs of these shapes."""
        attended = [shape[i] for shape in (query_shape, value_shape) for i in self.attended]
        return (*(query_shape[i] for i in self.outer), heads, *attended)
