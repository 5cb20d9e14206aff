"""NumPy's threads are told how many they are and how to wait, where that is still possible and nobody else has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_THREAD_TIMEOUT"}
    if given is not None:
        environment["OPENBLAS_THREAD_TIMEOUT"] = given
    program = f"import {imports}, os; print(os.environ.get('OPENBLAS_THREAD_TIMEOUT'))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize(
    ("imports", "given", "asked", "expected"),
    [
        ("frontend", None, "1", "1"),
        ("numpy, frontend", None, "1", "None"),
        ("frontend", "7", "1", "7"),
        # no more than there are, which it finds by itself; and nonsense is refused by what loads a network
        ("frontend", None, "4096", "None"),
        ("frontend", None, "none", "None"),
        ("frontend", None, None, "None"),
    ],
)
def test_how_many_are_told(imports: str, given: str | None, asked: str | None, expected: str) -> None:
    names = ("OPENBLAS_NUM_THREADS", "SUPERPOINT_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {key: value for key, value in zip(names, (given, asked), strict=True) if value is not None}
    # two CPUs, no quota: as a test may run in a container that has one
    program = (
        "import os, pathlib; os.sched_getaffinity = lambda _: {0, 1}; pathlib.Path.read_text = lambda *_: 'max 100000';"
        f"import {imports}; print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


def test_a_container_s_share_is_told() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_THREADS")}
    program = (
        "import os, pathlib; os.sched_getaffinity = lambda _: set(range(64));"
        "pathlib.Path.read_text = lambda *_: '150000 100000'; import frontend;"
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "2", done.stderr
