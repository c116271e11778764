"""A few lengths to which batches are padded, so that a backend that compiles each shape compiles few programs."""

import numpy as np


def ladder(widths: np.ndarray, count: int, pairs: np.ndarray | None = None) -> np.ndarray:
    """Returns at most `count` lengths, ascending, that pad pairs of these widths (N,) with the fewest ids."""
    # `pairs` (N,) are the numbers of pairs of each width, 1 by default.
    lengths, index = np.unique(widths, return_inverse=True)
    pairs = np.bincount(index, pairs).astype(np.int64)
    before = np.concatenate([[0], pairs.cumsum()])  # pairs below each length
    # Dynamic programming: the ids of all pairs below each length, with one more rung in each round.
    ids = np.concatenate([[0.0], lengths * before[1:]])
    choices = []
    for _ in range(min(count, len(lengths)) - 1):
        # The last rung is lengths[end - 1], and has the pairs from `start` on.
        totals = ids[None, :-1] + lengths[:, None] * (before[1:, None] - before[None, :-1])  # (end - 1, start)
        totals[np.triu_indices(len(lengths), 1)] = np.inf
        choices.append(totals.argmin(axis=1))
        ids = np.concatenate([[0.0], totals.min(axis=1)])
    end = len(lengths)
    rungs = [int(lengths[-1])]
    for starts in reversed(choices):
        end = int(starts[end - 1])
        if end == 0:
            break
        rungs.append(int(lengths[end - 1]))
    return np.array(rungs[::-1])


def cut(widths: np.ndarray, lengths: np.ndarray, tokens_per_batch: int) -> np.ndarray:
    """The indices of the sorted widths that begin a batch, each batch within the rows of one of the lengths."""
    starts = [0]
    while starts[-1] < len(widths):
        starts.append(_end(widths, starts[-1], lengths, tokens_per_batch))
    return np.array(starts[1:-1], dtype=np.int64)


def _end(widths: np.ndarray, start: int, lengths: np.ndarray, tokens_per_batch: int) -> int:
    """The end of the batch that begins at an index."""
    for length in lengths[np.searchsorted(lengths, widths[start]) :].tolist():
        rows = tokens_per_batch // length
        fitting = int(np.searchsorted(widths, length, side="right")) - start
        if fitting >= rows:
            return start + rows
        # Pairs that do not fill the rows of their length join longer ones, if there is room for any.
        longer = lengths[lengths > length]
        if start + fitting == len(widths) or not len(longer) or fitting >= tokens_per_batch // int(longer[0]):
            return start + fitting
    raise ValueError(f"No length is so large. Received: lengths={lengths.tolist()}, width={widths[start]}")
