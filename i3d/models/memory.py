"""Freed memory is kept and used again.

A forward pass allocates and frees half a gigabyte of activations in pieces. glibc maps each such
piece from the kernel and unmaps it, so every page of it is cleared and faulted in again the next
time: 148,000 faults and a fifth of the pass (64 frames of 224 x 224, measured on two cores).
"""

import ctypes
import os
import platform
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_TRIM_BYTES = (1 << 31) - 1  # so much free memory is kept; the argument is an int
_MAP_BYTES = (1 << 30, 32 << 20)  # what is larger is mapped; glibc up to 2.34 takes 32 MiB at most
_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def reuse_freed_memory() -> bool:
    """Tell glibc to keep up to 2 GiB of what this process frees, instead of returning it.

    Where another allocator or system is at work, or the environment has the user's own settings
    (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`), nothing is changed.

    Returns:
        Whether it was told.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USERS):
        return False
    library = ctypes.CDLL(None)
    library.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    return any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in _MAP_BYTES)
