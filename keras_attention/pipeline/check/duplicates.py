"""Equal pairs within files and in several of them, by hashes of 64 bits."""

import numpy as np


def repeated(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of hashes (N,) that occurred before, and those of their first occurrences."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    firsts = first[inverse]
    later = np.flatnonzero(firsts != np.arange(len(hashes)))
    return later, firsts[later]


def common(hashes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of hashes (N,) that are also among others (M,), and those of the first such others."""
    values, first = np.unique(others, return_index=True)
    if not len(values):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    positions = np.minimum(np.searchsorted(values, hashes), len(values) - 1)
    indices = np.flatnonzero(values[positions] == hashes)
    return indices, first[positions[indices]]
