"""Keeping the memory of one step for the next."""

import ctypes
import sys

# Parameters of mallopt(3) in glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST, STEP = 2**31 - 1, 2**28


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees, which training on a CPU needs again at the next step.

    Batches of different lengths make tensors of different sizes. glibc returns each large one to the kernel and
    gets it back as pages that are zeroed one by one, which can cost as much time as the arithmetic. In exchange, the
    process never shrinks. Does nothing without glibc.

    Returns:
        True if it took effect.

    Example:
        >>> keep_freed_memory() in (True, False)
        True

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, STEP))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
