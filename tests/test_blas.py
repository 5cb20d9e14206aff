"""NumPy's threads are told how many they are and how to wait, where that is still possible and nobody else has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def told(name: str, imports: str, given: dict[str, str | None], before: str = "") -> str:
    """A variable as a process finds it that imports something; ``given`` are variables, None where not set."""
    environment = {key: value for key, value in os.environ.items() if key not in given}
    environment |= {key: value for key, value in given.items() if value is not None}
    program = f"{before}import {imports}, os; print(os.environ.get({name!r}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("imports", "given", "expected"),
    [
        ("frontend", None, "4"),
        ("service", None, "4"),
        ("service.client", None, "4"),
        ("frontend.cli.match", None, "4"),
        ("frontend", "20", "20"),
        ("numpy, frontend", None, "None"),
    ],
)
def test_what_is_told(imports: str, given: str | None, expected: str) -> None:
    assert told("OPENBLAS_THREAD_TIMEOUT", imports, {"OPENBLAS_THREAD_TIMEOUT": given}) == expected


@pytest.mark.parametrize(
    ("imports", "given", "asked", "cpus", "quota", "expected"),
    [
        ("frontend", None, "1", 2, "max 100000", "1"),
        ("numpy, frontend", None, "1", 2, "max 100000", "None"),
        ("frontend", "7", "1", 2, "max 100000", "7"),
        # no more than there are, which it finds by itself; and nonsense is refused by what loads a network
        ("frontend", None, "4096", 2, "max 100000", "None"),
        ("frontend", None, "none", 2, "max 100000", "None"),
        ("frontend", None, None, 2, "max 100000", "None"),
        # the share that a container has
        ("frontend", None, None, 64, "150000 100000", "2"),
    ],
)
def test_how_many_are_told(
    imports: str, given: str | None, asked: str | None, cpus: int, quota: str, expected: str
) -> None:
    machine = (
        f"import os, pathlib; os.sched_getaffinity = lambda _: set(range({cpus}));"
        f"pathlib.Path.read_text = lambda *_: {quota!r};"
    )
    variables = {"OPENBLAS_NUM_THREADS": given, "SUPERPOINT_THREADS": asked}
    assert told("OPENBLAS_NUM_THREADS", imports, variables, machine) == expected
