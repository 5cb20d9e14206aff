"""How many threads the CPU's libraries use: settled once for all of them. Loads none of them by itself."""

from __future__ import annotations

import math
import os
import sys
from functools import cache
from pathlib import Path

from frontend.errors import ConfigError

VARIABLE = "SUPERPOINT_THREADS"
_NO_LIMIT = 1 << 20


def _quota() -> int:
    """CPUs that the container may use at a time, rounded up; very many where there is no such limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return _NO_LIMIT if limit == "max" else math.ceil(int(limit) / int(period))
    except (OSError, ValueError):
        return _NO_LIMIT


def available_cpus() -> int:
    """CPUs that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wanted_threads() -> int:
    """Threads of a library: $SUPERPOINT_THREADS, or the CPUs that this process may use.

    Raises:
        ConfigError: the variable is no positive whole number.
    """
    asked = os.environ.get(VARIABLE)
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise ConfigError(f"{VARIABLE} is '{asked}'; expected a whole number, 1 or more")
        return int(asked)
    return max(1, min(available_cpus(), _quota()))


thread_count = cache(wanted_threads)
"""The same, as it was at first."""


def settle_threads() -> int:
    """Tell OpenCV, and torch where it is loaded, how many threads to use; the runtimes are told when they load."""
    import cv2

    count = thread_count()
    cv2.setNumThreads(count)
    torch = sys.modules.get("torch")
    if torch is not None and (os.environ.get(VARIABLE) or torch.get_num_threads() > count):
        torch.set_num_threads(count)
    return count
