"""The parts that attention in blocks is made of: loops over blocks, ranges of a tensor, biases of a distance.

Shapes: L length, N blocks, R rows of a block, C columns of a tile.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def over_rows(count: Any, body: Callable[[Any], Any], shapes: tuple[tuple[Any, ...], ...], dtype: str) -> Any:
    """Runs through sentences and heads, one after the other.

    Args:
        count: How many there are.
        body: Given the number of one, returns its results.
        shapes: Of the results.
        dtype: Of the results.

    Returns:
        The results of all, (count, …) each.

    Example:
        >>> (results,) = over_rows(2, lambda row: (ops.ones((3,)),), ((3,),), "float32")
        >>> print(results.shape)
        (2, 3)
    """
    if keras.config.backend() != "tensorflow":
        return ops.map(body, ops.arange(count, dtype="int32"))

    def step(row: Any, results: Any) -> tuple[Any, Any]:  # `ops.map` would run several at once, and trace each twice
        return row + 1, tuple(
            ops.scatter_update(all_, [[row]], one[None]) for all_, one in zip(results, body(row), strict=True)
        )

    results = tuple(ops.zeros((count, *shape), dtype) for shape in shapes)
    _, results = ops.while_loop(lambda row, _: row < count, step, (ops.convert_to_tensor(0, "int32"), results))
    return results


def groups_of(count: int, groups: int) -> list[tuple[int, int]]:
    """Divides blocks into groups, each of which is a loop.

    XLA knows no shape that depends on a loop's counter, so a compiled program has a loop for each of some groups of
    blocks, with the shape that the group as a whole needs.

    Args:
        count: How many blocks there are, N.
        groups: How many groups there are, at most.

    Returns:
        The first block of each group, and the one past its end.

    Example:
        >>> groups_of(5, 3)
        [(0, 2), (2, 4), (4, 5)]
    """
    size = 1 if keras.config.backend() == "torch" else -(-count // groups)  # torch has no such loop
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def over_blocks(
    group: tuple[int, int],
    size: int,
    body: Callable[..., Any],
    carry: tuple[Any, ...],
    widths: tuple[int, ...],
    dtype: str,
    turn: Any,
) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """Runs through the blocks of a group, one after the other, so that one block's tiles are alive at a time.

    Args:
        group: The first block, and the one past the end.
        size: R.
        body: Given the carry and where the block starts, returns the next carry and the results of the block, each
            (R, width).
        carry: Tensors whose shapes stay.
        widths: Of the results.
        dtype: Of the results.
        turn: A scalar int32 that goes from group to group, so that TensorFlow does not run them side by side.

    Returns:
        The last carry, the results of all blocks, each (N·R, width), and the next group's turn.

    Example:
        >>> def body(carry, start):
        ...     return (carry[0] + 1,), (ops.ones((2, 3)),)
        >>> zero = ops.convert_to_tensor(0)
        >>> carry, (results,), _ = over_blocks((1, 6), 2, body, (zero,), (3,), "float32", zero)
        >>> print(int(carry[0]), results.shape)
        5 (10, 3)
    """
    begin, end = group
    if end - begin == 1:
        return *body(carry, begin * size), turn

    def step(i: Any, carry: Any, results: Any) -> tuple[Any, ...]:
        carry, found = body(carry, i * size)
        results = tuple(
            ops.scatter_update(all_, [[i - begin]], one[None]) for all_, one in zip(results, found, strict=True)
        )
        return i + 1, tuple(carry), results

    results = tuple(ops.zeros((end - begin, size, width), dtype) for width in widths)
    first = ops.maximum(turn, begin)
    last, carry, results = ops.while_loop(lambda i, *_: i < end, step, (first, tuple(carry), results))
    joined = tuple(ops.reshape(each, (-1, width)) for each, width in zip(results, widths, strict=True))
    return carry, joined, last


def known_integer(x: Any) -> Any:
    """An integer in place of a scalar tensor that holds one; outside of compiled programs all do.

    Args:
        x: An integer or a scalar tensor.

    Returns:
        The integer where it is known, x otherwise.

    Example:
        >>> known_integer(ops.convert_to_tensor(3))
        3
    """
    try:
        return int(x)
    except (TypeError, RuntimeError):  # a tensor of a program in the making; one on torch's device "meta"
        return x


def block_of(x: Any, start: Any, size: int) -> Any:
    """Rows start, …, start + size - 1.

    Args:
        x: (L, width).
        start: An index, or a scalar tensor.
        size: R.

    Returns:
        (R, width).

    Example:
        >>> print(block_of(ops.ones((7, 3)), 2, 5).shape)
        (5, 3)
    """
    return ops.slice(x, (start, 0), (size, x.shape[1]))


def range_of(x: Any, low: int, high: int, turn: Any, begin: int) -> Any:
    """Some of the columns, made no earlier than the turn of the group that needs them.

    Args:
        x: (width, L).
        low: The first.
        high: The one past the end.
        turn: As in `over_blocks`.
        begin: The group's first block.

    Returns:
        (width, high - low).

    Example:
        >>> print(range_of(ops.ones((3, 7)), 2, 5, turn=ops.convert_to_tensor(0), begin=4).shape)
        (3, 3)
    """
    # All groups' columns at once would take much memory. The difference is 0, which no compiler knows.
    return ops.slice(x, (0, ops.maximum(turn, begin) - begin + low), (x.shape[0], high - low))


def with_range(x: Any, low: int, high: int, part: Any) -> Any:
    """Puts other numbers into some of the columns.

    Args:
        x: (…, L).
        low: The first.
        high: The one past the end.
        part: (…, high - low).

    Returns:
        (…, L).

    Example:
        >>> ops.convert_to_numpy(with_range(ops.zeros((4,)), 1, 3, ops.ones((2,)))).tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    return ops.concatenate([x[..., :low], part, x[..., high:]], axis=-1)


def add_at(x: Any, start: Any, addend: Any) -> Any:
    """The same from a place that may be known in the loop alone.

    Args:
        x: (L,).
        start: An index, or a scalar tensor.
        addend: (C,).

    Returns:
        x with the sums in their place.

    Example:
        >>> ops.convert_to_numpy(add_at(ops.zeros((4,)), 1, ops.ones((2,)))).tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    return ops.slice_update(x, (start,), ops.slice(x, (start,), ops.shape(addend)) + addend)


def pad_rows(x: Any, size: int, value: float = 0.0) -> Any:
    """Completes the last block.

    Args:
        x: (L, width).
        size: R.
        value: Of the new rows.

    Returns:
        (N·R, width).

    Example:
        >>> print(pad_rows(ops.ones((7, 3)), 5).shape)
        (10, 3)
    """
    missing = -ops.shape(x)[0] % size
    return ops.pad(x, ((0, missing), (0, 0)), constant_values=value)


def along_diagonals(values: Any, rows: int) -> Any:
    """A tile whose entry (r, c) is values[rows - 1 + c - r].

    Args:
        values: (R + C - 1,).
        rows: R.

    Returns:
        (R, C).

    Example:
        >>> ops.convert_to_numpy(along_diagonals(ops.arange(4), rows=2)).tolist()
        [[1, 2, 3], [0, 1, 2]]
    """
    length = ops.shape(values)[0] + 1
    # Rows of one number more than the tile's stride: each row of it starts one further back.
    rolled = ops.reshape(ops.tile(ops.pad(values, ((0, 1),)), (rows,)), (-1,))[: rows * (length - 1)]
    return ops.reshape(rolled, (rows, length - 1))[:, rows - 1 :]


def sum_of_diagonals(tile: Any) -> Any:
    """What `along_diagonals` makes of a gradient.

    Args:
        tile: (R, C).

    Returns:
        The sums of its diagonals (R + C - 1,), the one of the lower left corner first.

    Example:
        >>> ops.convert_to_numpy(sum_of_diagonals(ops.ones((2, 3)))).tolist()
        [1.0, 2.0, 2.0, 1.0]
    """
    rows = tile.shape[0]
    wide = ops.pad(tile, ((0, 0), (rows - 1, 0)))
    length = ops.shape(wide)[1] + 1
    rolled = ops.reshape(ops.pad(ops.reshape(wide, (-1,)), ((0, rows),)), (rows, length))
    return ops.sum(rolled, axis=0)[:-1]
