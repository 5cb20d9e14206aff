"""What the C library does with freed memory: settled once."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

_FREED = 30 << 20  # bytes; glibc learns from sizes below 32 MiB
# mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEPT = (1 << 31) - 1  # bytes at the top of the heap that are not given back


@cache
def settle_memory() -> None:
    """Have glibc keep freed images and maps for the next call, instead of returning them to the system.

    An image's arrays of a megabyte or two would otherwise be fresh pages every time, and touching those costs as much
    as the keypoints' whole post-processing. glibc raises its thresholds to the largest block that was mapped and freed
    (mallopt(3), M_MMAP_THRESHOLD): one such block, never touched, is enough. Elsewhere this does nothing.
    """
    np.empty(_FREED, np.uint8)


@cache
def keep_large_blocks() -> None:
    """Have glibc keep blocks of any size, for a training: its activations are of the same sizes in every step.

    Blocks of 32 MiB and more are otherwise mapped and unmapped each time, which is a quarter of a training step of the
    paper's network in float32. The process does not shrink any more, so this is not for a service. With another C
    library it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, 64 << 20)):
        mallopt(option, value)
