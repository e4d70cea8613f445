"""Memory of the CPU between the steps of a run."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes


def keep_freed_memory() -> bool:
    """Have glibc keep what a step frees for the next one, instead of giving its pages back to the system.

    Pages that are fetched anew have to be cleared: a fifth of a training step of NCSN++ on two cores.

    Returns:
        Whether the C library did; others than glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, -1))
