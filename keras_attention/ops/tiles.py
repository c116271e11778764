"""The parts that attention in blocks is made of: loops over blocks, ranges of a tensor, biases of a distance.

Shapes: L length, N blocks, R rows of a block, C columns of a tile.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

# How many blocks are written out, at most: XLA takes long to compile them, torch has no loop.
WRITTEN_OUT = {"tensorflow": 64, "jax": 0, "torch": math.inf}
GROUPS = 32  # of blocks that are written out, at most: each makes slices, which several blocks may share
LOOPS = 16  # with fewer more is computed that causality hides, with more a program is slower to make


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


class Group(NamedTuple):
    """Blocks in a row that are computed from the same slices.

    Attributes:
        begin: The first block.
        end: The one past the last.
        is_written_out: Whether the program repeats its lines for each block, in place of a loop.
    """

    begin: int
    end: int
    is_written_out: bool


def groups_of(count: int, are_alike: bool) -> list[Group]:
    """Divides blocks into groups.

    XLA knows no shape that depends on a loop's counter, so a loop computes for each of its blocks what any of them
    needs. Where the start of a block says what it needs, few blocks are written out, and more get several loops.

    Args:
        count: How many blocks there are, N.
        are_alike: Whether all of them need the same.

    Returns:
        The groups.

    Example:
        >>> [(group.begin, group.end) for group in groups_of(3, are_alike=False)]
        [(0, 1), (1, 2), (2, 3)]
    """
    most = WRITTEN_OUT[keras.config.backend()]
    is_written_out = (count <= most and not are_alike) or most == math.inf
    size = count if are_alike else -(-count // (GROUPS if is_written_out else LOOPS))
    return [Group(begin, min(begin + size, count), is_written_out or size == 1) for begin in range(0, count, size)]


def over_blocks(
    group: Group,
    size: int,
    body: Callable[..., Any],
    carry: tuple[Any, ...],
    widths: tuple[int, ...],
    dtype: str,
    turn: Any,
) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """Runs through the blocks of a group, one after the other, so that one block's tiles are alive at a time.

    Args:
        group: Which blocks.
        size: R.
        body: Given the carry, where the block starts (an integer, if the group is written out), and the block's turn,
            returns the next carry and the results, each (R, width).
        carry: Tensors whose shapes stay.
        widths: Of the results.
        dtype: Of the results.
        turn: A scalar int32, which is 0: what it is added to waits for the blocks before.

    Returns:
        The last carry, the results of all blocks, each (N·R, width), and the next group's turn.

    Example:
        >>> def body(carry, start, turn):
        ...     return (carry[0] + 1,), (ops.ones((2, 3)),)
        >>> zero = ops.convert_to_tensor(0)
        >>> carry, (results,), _ = over_blocks(Group(1, 6, False), 2, body, (zero,), (3,), "float32", zero)
        >>> print(int(carry[0]), results.shape)
        5 (10, 3)
    """
    begin, end, is_written_out = group
    if is_written_out:
        written = []
        for i in range(begin, end):
            carry, found = body(carry, i * size, turn)
            written.append(found)
            turn = zero_after(found[0])
        return carry, tuple(ops.concatenate(each, axis=0) for each in zip(*written, strict=True)), turn

    def step(i: Any, turn: Any, carry: Any, results: Any) -> tuple[Any, ...]:
        carry, found = body(carry, i * size, turn)
        results = tuple(
            ops.scatter_update(all_, [[i - begin]], one[None]) for all_, one in zip(results, found, strict=True)
        )
        return i + 1, zero_after(found[0]), tuple(carry), results

    results = tuple(ops.zeros((end - begin, size, width), dtype) for width in widths)
    first = (turn + begin, turn, tuple(carry), results)
    last, _, carry, results = ops.while_loop(lambda i, *_: i < end, step, first)
    joined = tuple(ops.reshape(each, (-1, width)) for each, width in zip(results, widths, strict=True))
    return carry, joined, last - end


def zero_after(x: Any) -> Any:
    """The number 0, which TensorFlow does not know before it knows x.

    What it is added to waits for x: TensorFlow runs side by side all that it can, and would keep many tiles at once.

    Args:
        x: (L, width).

    Returns:
        A scalar int32.

    Example:
        >>> int(zero_after(ops.ones((2, 3))))
        0
    """
    if keras.config.backend() != "tensorflow":  # the others have an order
        return ops.convert_to_tensor(0, "int32")
    number = x[0, 0]
    return ops.cast(ops.logical_and(number < 0, number > 0), "int32")


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


def range_of(x: Any, low: int, high: int, group: Group, turn: Any) -> Any:
    """Some of the columns, for a loop made no earlier than its turn.

    Args:
        x: (width, L).
        low: The first.
        high: The one past the end.
        group: That which needs them.
        turn: As in `over_blocks`.

    Returns:
        (width, high - low).

    Example:
        >>> group = Group(4, 6, is_written_out=False)
        >>> print(range_of(ops.ones((3, 7)), 2, 5, group, turn=ops.convert_to_tensor(0)).shape)
        (3, 3)
    """
    if group.is_written_out:  # then there are few, and XLA takes long for slices whose start may depend on much
        return x[:, low:high]
    return ops.slice(x, (0, turn + low), (x.shape[0], high - low))  # all loops' columns at once would take much memory


def part_of(x: Any, place: slice, axis: int) -> Any:
    """Some of the rows or columns; x itself where that is all of them.

    Args:
        x: (L, width).
        place: Which, without a step.
        axis: 0 for rows, 1 for columns.

    Returns:
        (place.stop - place.start, width), or (L, place.stop - place.start).

    Example:
        >>> print(part_of(ops.ones((7, 3)), slice(2, 5), axis=0).shape)
        (3, 3)
    """
    if (place.start, place.stop) == (0, x.shape[axis]):
        return x
    return x[:, place] if axis else x[place]


def with_columns(x: Any, low: int, parts: list[Any]) -> Any:
    """Puts other numbers into some of the columns.

    Args:
        x: (width, L).
        low: The first.
        parts: (width, ·), which come one after the other.

    Returns:
        (width, L).

    Example:
        >>> ops.convert_to_numpy(with_columns(ops.zeros((1, 4)), 1, [ops.ones((1, 2))])).tolist()
        [[0.0, 1.0, 1.0, 0.0]]
    """
    high = low + sum(part.shape[1] for part in parts)
    parts = [part for part in (x[:, :low], *parts, x[:, high:]) if part.shape[1]]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)


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
