"""How the threads of NumPy's matrix products wait: settled before NumPy loads them."""

from __future__ import annotations

import os
import sys

VARIABLE = "OPENBLAS_THREAD_TIMEOUT"
"""Of OpenBLAS, which NumPy's wheels have: its threads loop for 2^N cycles while they wait for work, N from 4 to 30."""


def settle_waiting() -> None:
    """Let them sleep at once, unless the user says otherwise or NumPy is there already: it is read when that loads.

    With the default of 2^26 cycles, tens of milliseconds, they take the CPU from the next image's network: a pair of
    images took 181 ms instead of 114 on two cores.
    """
    if "numpy" not in sys.modules:
        os.environ.setdefault(VARIABLE, "4")
