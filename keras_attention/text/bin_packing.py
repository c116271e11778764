"""Bin packing of sentence pairs into rows, which have a source and a target side.

Shapes: N pairs, R rows.
"""

import numpy as np

NO_ROW = -1
# Row lengths are rounded up to a multiple of this, which suits the tiles of accelerators.
MULTIPLE = 8


def row_lengths(lengths: np.ndarray, longest: int, counts: np.ndarray | None = None) -> np.ndarray:
    """The source and target length of a row (2,) with which both sides fill up, for pairs of these lengths (N, 2)."""
    # `counts` (N,) are the numbers of pairs of these lengths, 1 by default.
    # The side with more tokens in total has the longest rows. Those of the other side are shorter in proportion, but
    # long enough for its longest sentence.
    totals = lengths.sum(axis=0) if counts is None else counts @ lengths
    needed = np.maximum(np.ceil(longest * totals / totals.max()), lengths.max(axis=0)).astype(np.int64)
    return np.minimum(-(-needed // MULTIPLE) * MULTIPLE, longest)


def pack(lengths: np.ndarray, capacity: np.ndarray, multiple: int) -> tuple[np.ndarray, int]:
    """The row of each pair (N,), in as few rows as it finds, and the number of rows, divisible by `multiple`."""
    # `lengths` (N, 2) are sorted from long to short, and none exceeds the `capacity` of a row (2,).
    unpacked, num_rows = lengths, 0
    while len(unpacked):
        # After the first pass, rows for half of the unpacked pairs: the rest often fits into gaps.
        more = (unpacked.sum(axis=0) / capacity).max() / (2 if num_rows else 1)
        num_rows += multiple * max(1, int(np.ceil(more / multiple)))
        rows = _deal(lengths, np.tile(capacity, (num_rows, 1)))
        unpacked = lengths[rows == NO_ROW]
    return rows, num_rows


def _deal(lengths: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Assigns the pairs to rows with `room` (R, 2), which shrinks: in each round, one pair to each row."""
    # In each round, the pairs with longer sources go to the rows with more room on the source side, so that both sides
    # of a row fill up together. A pair that does not fit its row waits for the next round.
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
        # If none of these pairs fits, none ever will: the rounds continue with the shorter ones.
        waiting = waiting[rows[waiting] == NO_ROW] if fits.any() else waiting[len(pairs) :]
    return rows
