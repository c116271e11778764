"""Loops over blocks, slices of a tensor and biases by distance, of which blockwise attention consists.

Shapes: L length, N blocks, R rows of a block, C columns of a tile.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

# Most blocks that are unrolled: XLA takes long to compile them, torch has no loop.
UNROLLED = {"tensorflow": 64, "jax": 0, "torch": math.inf}
GROUPS = 32  # most groups of unrolled blocks: each makes slices, which its blocks share
LOOPS = 16  # with fewer, more of what causality hides is computed; with more, tracing takes longer


def over_rows(count: Any, body: Callable[[Any], Any], shapes: tuple[tuple[Any, ...], ...], dtype: str) -> Any:
    """Calls `body` with the number of each sentence and head, one after the other; stacks the results (count, …)."""
    if keras.config.backend() != "tensorflow":
        return ops.map(body, ops.arange(count, dtype="int32"))

    # `ops.map` would run several at once, and trace each twice. The next row may begin before this one ends: to wait
    # would save a third of the memory and cost a tenth of the time.
    def step(row: Any, results: Any) -> tuple[Any, Any]:
        return row + 1, tuple(
            ops.scatter_update(stacked, [[row]], one[None]) for stacked, one in zip(results, body(row), strict=True)
        )

    results = tuple(ops.zeros((count, *shape), dtype) for shape in shapes)
    _, results = ops.while_loop(lambda row, _: row < count, step, (ops.convert_to_tensor(0, "int32"), results))
    return results


class Group(NamedTuple):
    """Consecutive blocks, from `begin` to before `end`, that are computed from the same slices."""

    begin: int
    end: int
    is_unrolled: bool


def groups_of(count: int, have_same_ranges: bool) -> list[Group]:
    """Divides `count` blocks into groups.

    XLA has no shape that depends on a loop's counter, so a loop computes for each of its blocks what any of them
    needs. Where blocks differ in what they need, a few are unrolled and many get several loops.
    """
    most = UNROLLED[keras.config.backend()]
    is_unrolled = (count <= most and not have_same_ranges) or most == math.inf
    size = count if have_same_ranges else -(-count // (GROUPS if is_unrolled else LOOPS))
    return [Group(begin, min(begin + size, count), is_unrolled or size == 1) for begin in range(0, count, size)]


def over_blocks(
    group: Group,
    size: int,
    body: Callable[..., Any],
    carry: tuple[Any, ...],
    widths: tuple[int, ...],
    dtype: str,
    order: Any,
) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """Runs the blocks of a group one after the other, so that only one block's tiles are in memory.

    `body(carry, start, order)` returns the next carry and the results, each (R, width); `start` is an integer where the
    group is unrolled. Returns the last carry, the results of all blocks, each (N·R, width), and the next `order`.
    """
    begin, end, is_unrolled = group
    if is_unrolled:
        unrolled = []
        for i in range(begin, end):
            carry, found = body(carry, i * size, order)
            unrolled.append(found)
            order = zero_after(found[0])
        return carry, tuple(ops.concatenate(each, axis=0) for each in zip(*unrolled, strict=True)), order

    def step(i: Any, order: Any, carry: Any, results: Any) -> tuple[Any, ...]:
        carry, found = body(carry, i * size, order)
        results = tuple(
            ops.scatter_update(stacked, [[i - begin]], one[None]) for stacked, one in zip(results, found, strict=True)
        )
        return i + 1, zero_after(found[0]), tuple(carry), results

    results = tuple(ops.zeros((end - begin, size, width), dtype) for width in widths)
    first = (order + begin, order, tuple(carry), results)
    last, _, carry, results = ops.while_loop(lambda i, *_: i < end, step, first)
    joined = tuple(ops.reshape(each, (-1, width)) for each, width in zip(results, widths, strict=True))
    return carry, joined, last - end


def zero_after(x: Any) -> Any:
    """The integer 0, computed from x (L, width): what adds it waits for x.

    TensorFlow runs independent operations at the same time and would hold many tiles in memory.
    """
    if keras.config.backend() != "tensorflow":  # the others run in order
        return ops.convert_to_tensor(0, "int32")
    number = x[0, 0]
    return ops.cast(ops.logical_and(number < 0, number > 0), "int32")


def known_integer(x: Any) -> Any:
    """The integer that a scalar tensor holds, where it is known; x itself inside a compiled function."""
    try:
        return int(x)
    except (TypeError, RuntimeError):  # a symbolic tensor; torch's device "meta"
        return x


def block_of(x: Any, start: Any, size: int) -> Any:
    """Rows start, …, start + size - 1 of x (L, width)."""
    return ops.slice(x, (start, 0), (size, x.shape[1]))


def range_of(x: Any, low: int, high: int, group: Group, order: Any) -> Any:
    """Columns low, …, high - 1 of x (width, L); for a loop, sliced only after `order` is known."""
    if group.is_unrolled:  # XLA takes long for slices whose start depends on much
        return x[:, low:high]
    return ops.slice(x, (0, order + low), (x.shape[0], high - low))  # the columns of all loops at once take much memory


def part_of(x: Any, part: slice, axis: int) -> Any:
    """Rows (axis 0) or columns (axis 1) of x; x itself where that is all of them."""
    if (part.start, part.stop) == (0, x.shape[axis]):
        return x
    return x[:, part] if axis else x[part]


def with_columns(x: Any, low: int, parts: list[Any]) -> Any:
    """x (width, L) with its columns from `low` on replaced by `parts`, each (width, ·)."""
    high = low + sum(part.shape[1] for part in parts)
    parts = [part for part in (x[:, :low], *parts, x[:, high:]) if part.shape[1]]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)


def add_at(x: Any, start: Any, addend: Any) -> Any:
    """x (L,) plus `addend` from `start` on, which may be a tensor."""
    return ops.slice_update(x, (start,), ops.slice(x, (start,), ops.shape(addend)) + addend)


def pad_rows(x: Any, size: int, value: float = 0.0) -> Any:
    """x (L, width) with rows of `value` that complete the last block, (N·R, width)."""
    missing = -ops.shape(x)[0] % size
    return ops.pad(x, ((0, missing), (0, 0)), constant_values=value)


def along_diagonals(values: Any, rows: int) -> Any:
    """A tile (R, C) whose entry (r, c) is values[rows - 1 + c - r], from values (R + C - 1,)."""
    length = ops.shape(values)[0] + 1
    # With rows one longer than the stride, each row of the tile starts one position earlier.
    rolled = ops.reshape(ops.tile(ops.pad(values, ((0, 1),)), (rows,)), (-1,))[: rows * (length - 1)]
    return ops.reshape(rolled, (rows, length - 1))[:, rows - 1 :]


def sum_of_diagonals(tile: Any) -> Any:
    """The gradient of `along_diagonals`: sums of a tile's diagonals (R + C - 1,), from the lower left corner."""
    rows = tile.shape[0]
    wide = ops.pad(tile, ((0, 0), (rows - 1, 0)))
    length = ops.shape(wide)[1] + 1
    rolled = ops.reshape(ops.pad(ops.reshape(wide, (-1,)), ((0, rows),)), (rows, length))
    return ops.sum(rolled, axis=0)[:-1]
