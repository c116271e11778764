"""Which pairs share a row: bin packing with two sides to each bin.

Shapes: N pairs, R rows.
"""

import numpy as np

NO_ROW = -1
# Lengths that accelerators' tiles divide.
MULTIPLE = 8


def row_lengths(lengths: np.ndarray, longest: int) -> np.ndarray:
    """How long rows should be on either side, for both sides to be full.

    Args:
        lengths: Of source and target (N, 2).
        longest: Of a row, on the side that has more tokens over all.

    Returns:
        The source's and the target's length (2,): the other side has as much less as it has fewer tokens, but room for
        its longest sentence.

    Example:
        >>> row_lengths(np.array([[3, 6], [5, 10]]), longest=64).tolist()
        [32, 64]
    """
    totals = lengths.sum(axis=0)
    needed = np.maximum(np.ceil(longest * totals / totals.max()), lengths.max(axis=0)).astype(np.int64)
    return np.minimum(-(-needed // MULTIPLE) * MULTIPLE, longest)


def pack(lengths: np.ndarray, capacity: np.ndarray, multiple: int) -> tuple[np.ndarray, int]:
    """Gives each pair a row, in as few rows as are found to do.

    Args:
        lengths: Of source and target (N, 2), from long to short; none above the capacity.
        capacity: Of every row (2,).
        multiple: What the number of rows is a multiple of.

    Returns:
        The row of each pair (N,) and the number of rows.

    Example:
        >>> rows, num_rows = pack(np.array([[5, 4], [4, 5], [3, 2], [2, 3]]), capacity=np.array([7, 7]), multiple=1)
        >>> rows.tolist(), num_rows
        ([1, 0, 0, 1], 2)
    """
    left, num_rows = lengths, 0
    while len(left):
        # After the first time half of what is left would fill: the rest often fits in between.
        more = (left.sum(axis=0) / capacity).max() / (2 if num_rows else 1)
        num_rows += multiple * max(1, int(np.ceil(more / multiple)))
        rows = _deal(lengths, np.tile(capacity, (num_rows, 1)))
        left = lengths[rows == NO_ROW]
    return rows, num_rows


def _deal(lengths: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Deals the pairs to rows with `room` (R, 2), which it takes up: one to each row and round.

    In each round, the pairs with the longer sources go to the rows with more room on the source's side, so that both
    sides of a row fill up together. A pair that does not fit its row waits for the next round.
    """
    rows, waiting, smallest = np.full(len(lengths), NO_ROW), np.arange(len(lengths)), lengths.min(axis=0)
    while len(waiting):
        free = np.flatnonzero((room >= smallest).all(axis=1))
        if not len(free):
            break
        if len(free) > len(waiting):
            free = free[np.argsort(-room[free].min(axis=1), kind="stable")[: len(waiting)]]
        free = free[np.argsort(room[free, 0] - room[free, 1], kind="stable")]
        pairs = waiting[: len(free)]
        pairs = pairs[np.argsort(lengths[pairs, 0] - lengths[pairs, 1], kind="stable")]
        fits = (lengths[pairs] <= room[free]).all(axis=1)
        rows[pairs[fits]] = free[fits]
        room[free[fits]] -= lengths[pairs[fits]]
        # Where none of them fits, none will: the shorter ones go on without them.
        waiting = waiting[rows[waiting] == NO_ROW] if fits.any() else waiting[len(pairs) :]
    return rows
