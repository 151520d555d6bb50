"""Freed memory stays with the process: on a CPU every step needs the same tensors again."""

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h), and the largest values that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_KEPT, _LARGEST_FROM_HEAP = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Stop glibc from returning what a step frees, page by page, to get it back a moment later.

    Saves 5 to 7% of a step of ResNet-20 (benchmarks/RESULTS.md). The process keeps up to 2 GiB of
    freed memory; tensors above 32 MiB are returned as before.

    Returns:
        Whether it was done: only where the C library is glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    thresholds = {_TRIM_THRESHOLD: _MOST_KEPT, _MMAP_THRESHOLD: _LARGEST_FROM_HEAP}
    return all(mallopt(name, value) == 1 for name, value in thresholds.items())
