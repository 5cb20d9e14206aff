"""What an extra installs is enough for what it is there for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_licence_files_are_those_of_the_repository() -> None:
    assert PROJECT["license-files"] == ["LICENSE", "NOTICE"]
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])


@cache
def modules() -> dict[str, set[str]]:
    """Distributions by the modules that they install."""
    found: dict[str, set[str]] = {}
    for distribution in distributions():
        for file in distribution.files or ():
            # as packages_distributions of Python 3.11 does, beyond what top_level.txt says
            name = file.parts[0] if len(file.parts) > 1 else file.name.partition(".")[0]
            if file.suffix in (".py", ".so") and name.isidentifier():
                found.setdefault(name, set()).add(canonicalize_name(distribution.metadata["Name"]))
    return found


def brought(requirements: Iterable[str]) -> set[str]:
    """Distributions that come with requirements."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonicalize_name(wanted.name)
        if name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found.add(name)
            with suppress(PackageNotFoundError):  # of another platform
                waiting += requires(name) or []
    return found


@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("client", "service.client"),
        ("client", "service.ros2_node"),
        ("service", "service.app"),
        ("numba", "frontend.native"),
        ("numba", "frontend.homography_native"),
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
    missing = [name for name, of in modules().items() if not there & of]
    assert {"pytest", "matplotlib"} <= set(missing)
    subprocess.run([sys.executable, "-c", f"{WITHOUT}\nimport {module}", *missing], check=True)
