"""What the C library does with freed memory: settled once."""

from __future__ import annotations

from functools import cache

import numpy as np

_FREED = 30 << 20  # bytes; glibc learns from sizes below 32 MiB


@cache
def settle_memory() -> None:
    """Have glibc keep freed images and maps for the next call, instead of returning them to the system.

    An image's arrays of a megabyte or two would otherwise be fresh pages every time, and touching those costs as much
    as the keypoints' whole post-processing. glibc raises its thresholds to the largest block that was mapped and freed
    (mallopt(3), M_MMAP_THRESHOLD): one such block, never touched, is enough. Elsewhere this does nothing.
    """
    np.empty(_FREED, np.uint8)
