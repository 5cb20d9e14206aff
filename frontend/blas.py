"""The threads of NumPy's matrix products, how many and how they wait: settled before NumPy loads them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from frontend.errors import ConfigError
from frontend.threads import available_cpus, wanted_threads

WAITING = "OPENBLAS_THREAD_TIMEOUT"
"""Of OpenBLAS, which NumPy's wheels have: its threads loop for 2^N cycles while they wait for work, N from 4 to 30."""

THREADS = "OPENBLAS_NUM_THREADS"
"""How many it has: all CPUs by itself, whatever the container's share of them."""


def settle_blas() -> None:
    """Settle both, unless the user says otherwise or NumPy is there already: they are read when that loads.

    Threads that wait are to sleep at once. With the default of 2^26 cycles, tens of milliseconds, they take the CPU
    from the next image's network: a pair of images took 181 ms instead of 114 on two cores.
    """
    if "numpy" in sys.modules:
        return
    os.environ.setdefault(WAITING, "4")
    with suppress(ConfigError):  # said where the other libraries are told
        count = wanted_threads()
        if count < available_cpus():
            os.environ.setdefault(THREADS, str(count))
