"""Which axes of a tensor are batch and which are the positions that attention runs over.

Shapes: B batch, T query length, S key length, H heads, D head width; B' and T' are products of several axes.
"""

import math
from typing import Any

from keras import ops


class AttentionAxes:
    """Sequences have one axis of positions; images and videos have more, and attention over some of them.

    The attended axes become the one axis T, the others join the batch.

    Args:
        rank: Number of axes of the inputs, (B, …, M).
        attention_axes: The attended axes, all between batch and width by default.

    Raises:
        ValueError: An axis that is none of those between batch and width, or is given twice.

    Example:
        >>> axes = AttentionAxes(rank=4, attention_axes=(2,))  # (B, frames, T, M): within each frame
        >>> print(axes.split_heads(ops.ones((2, 3, 5, 7, 11))).shape)
        (6, 7, 5, 11)
    """

    def __init__(self, rank: int, attention_axes: tuple[int, ...] | None = None):
        given = range(1, rank - 1) if attention_axes is None else attention_axes
        self.attended = tuple(axis % rank for axis in given)
        if len(set(self.attended)) < len(self.attended) or not set(self.attended) <= set(range(1, rank - 1)):
            raise ValueError(
                f"`attention_axes` names axes between the batch (0) and the width ({rank - 1}), each once. "
                f"Received: attention_axes={attention_axes} for inputs with {rank} axes"
            )
        self.outer = tuple(axis for axis in range(rank - 1) if axis not in self.attended)  # the batch first
        self.is_sequence = rank == 3

    def length(self, x: Any) -> Any:
        """T', how many positions are attended to together.

        Args:
            x: (B, …, M).

        Returns:
            An integer, a scalar tensor or, for a sequence whose length is not known yet, None.
        """
        return x.shape[1] if self.is_sequence else math.prod(ops.shape(x)[i] for i in self.attended)

    def split_heads(self, x: Any) -> Any:
        """Brings the heads before the positions.

        Args:
            x: (B, …, H, D).

        Returns:
            (B', H, T', D).
        """
        head, width = len(x.shape) - 2, len(x.shape) - 1
        x = ops.transpose(x, (*self.outer, head, *self.attended, width))
        if self.is_sequence:
            return x
        shape, outer = ops.shape(x), len(self.outer)
        return ops.reshape(x, (math.prod(shape[:outer]), shape[outer], math.prod(shape[outer + 1 : -1]), shape[-1]))

    def join_heads(self, context: Any, query: Any) -> Any:
        """Undoes `split_heads`.

        Args:
            context: (B', H, T', D).
            query: The tensor (B, …, M) whose axes the result gets.

        Returns:
            (B, …, H, D).
        """
        if self.is_sequence:
            return ops.transpose(context, (0, 2, 1, 3))
        sizes, (_, heads, _, width) = ops.shape(query), ops.shape(context)
        context = ops.reshape(
            context, (*(sizes[i] for i in self.outer), heads, *(sizes[i] for i in self.attended), width)
        )
        order = (*self.outer, -2, *self.attended)  # the axes of the input in the order they stand in
        return ops.transpose(context, (*(order.index(i) for i in range(len(sizes) - 1)), len(self.outer), len(sizes)))

    def sizes(self, x: Any) -> dict[str, Any]:
        """The sizes that a mask of positions has.

        Args:
            x: (B, …, M).

        Returns:
            Each axis by its name, as far as it is known.

        Example:
            >>> AttentionAxes(rank=4).sizes(ops.ones((2, 5, 7, 11)))
            {'batch': 2, 'axis 1': 5, 'axis 2': 7}
        """
        names = ("length",) if self.is_sequence else tuple(f"axis {i}" for i in range(1, len(x.shape) - 1))
        return dict(zip(("batch", *names), x.shape[:-1], strict=True))

    def padding_mask(self, mask: Any, name: str = "padding_mask") -> Any:
        """Orders a mask of positions as `split_heads` orders the positions.

        Args:
            mask: (B, …).
            name: What the caller calls it, for the message.

        Returns:
            (B', T').

        Raises:
            ValueError: Another rank, where the inputs have several axes of positions.
        """
        if self.is_sequence or mask is None:
            return mask
        rank = len(self.outer) + len(self.attended)
        if len(mask.shape) != rank:
            raise ValueError(
                f"`{name}` has the axes of the inputs but their width, {rank} of them. "
                f"Received: {name}.shape={tuple(mask.shape)}"
            )
        mask = ops.transpose(mask, (*self.outer, *self.attended))
        shape, outer = ops.shape(mask), len(self.outer)
        return ops.reshape(mask, (math.prod(shape[:outer]), math.prod(shape[outer:])))

    def attention_mask(self, mask: Any, query: Any, value: Any) -> Any:
        """Orders a mask of pairs; axes that it lacks before the pairs are the same for all.

        Args:
            mask: (…, attended axes of the query, attended axes of the value).
            query: (B, …, M).
            value: (B, …, M).

        Returns:
            (B', H or 1, T', S').
        """
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
        """Gives attention weights the axes of the inputs back.

        Args:
            weights: (B', H, T', S').
            query: (B, …, M).
            value: (B, …, M).

        Returns:
            (outer axes, H, attended axes of the query, attended axes of the value).
        """
        if self.is_sequence:
            return weights
        return ops.reshape(weights, self.weights_shape(weights.shape[1], ops.shape(query), ops.shape(value)))

    def weights_shape(self, heads: int, query_shape: Any, value_shape: Any) -> tuple[Any, ...]:
        """The shape of attention weights with the axes of the inputs.

        Args:
            heads: H.
            query_shape: (B, …, M).
            value_shape: (B, …, M).

        Returns:
            (outer axes, H, attended axes of the query, attended axes of the value).

        Example:
            >>> AttentionAxes(rank=3).weights_shape(2, (3, 5, 16), (3, None, 16))
            (3, 2, 5, None)
        """
        attended = [shape[i] for shape in (query_shape, value_shape) for i in self.attended]
        return (*(query_shape[i] for i in self.outer), heads, *attended)
