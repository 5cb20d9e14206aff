"""What glibc is told about freed memory, seen in a process's page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from frontend.runtime.memory import {name}

{name}()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.empty({megabytes} << 20, np.uint8)
    block[::4096] = 1
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[0], faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("name", "megabytes", "kept"),
    [("settle_memory", 2, True), ("settle_memory", 100, False), ("keep_large_blocks", 100, True)],
)
def test_freed_blocks_stay(name: str, megabytes: int, kept: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name, megabytes=megabytes)], capture_output=True, text=True, check=True
    )
    first, last = map(int, done.stdout.split())
    assert first > 0
    assert (last < 20) == kept
