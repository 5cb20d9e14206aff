"""NumPy's threads are told how to wait, where that is still possible and nobody else has."""

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
