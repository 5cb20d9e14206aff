"""What an extra installs is enough for what it is there for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from frontend.weights import tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = set(sys.argv[1:])
sys.meta_path.insert(0, Missing())
"""


def canonical(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def brought(requirements: Iterable[str]) -> set[str]:
    """Distributions that come with requirements."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        line = waiting.pop()
        if "extra ==" not in line and "python_version <" not in line and canonical(line) not in found:
            found.add(canonical(line))
            with suppress(PackageNotFoundError):  # of another platform
                waiting += requires(canonical(line)) or []
    return found


@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("client", "service.client"),
        ("client", "service.ros2_node"),
        ("service", "service.app"),
        ("numba", "frontend.native"),
        ("onnx", "frontend.runtime.onnx_runtime"),
        ("openvino", "frontend.runtime.openvino_runtime"),
        ("", "frontend.pipeline"),
        ("", "frontend.tracking"),
    ],
)
def test_a_module_can_be_imported_with_what_its_extra_brings(extra: str, module: str) -> None:
    base = [line for line in PROJECT["dependencies"] if not line.startswith("opencv")]
    there = brought([*base, *PROJECT["optional-dependencies"].get(extra, ())])
    # with windows or without: one of the two is there
    there |= {"opencv-python", "opencv-python-headless", "superpoint-frontend"}
    missing = [name for name, of in packages_distributions().items() if not there & {canonical(one) for one in of}]
    assert {"pytest", "matplotlib"} <= set(missing)
    subprocess.run([sys.executable, "-c", f"{WITHOUT}\nimport {module}", *missing], check=True)
