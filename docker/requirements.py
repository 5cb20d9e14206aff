"""What the image installs: the project's dependencies for the service, around a torch that the base image may have.

Writes torch.txt, requirements.txt and pinned.txt (constraints) for pip.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

# slim images have no libGL and no glib
_REPLACED = {"opencv-python": "opencv-python-headless"}
_BASE = ("torch", "numpy")
_RUNTIMES = ("onnx", "openvino", "ncnn", "numba")
# torch.onnx exports without it what this project exports
_UNUSED = ("torch", "onnxscript")


def requirements(
    project: Mapping[str, list[str]], extras: Mapping[str, list[str]], runtimes: Iterable[str] = ()
) -> list[str]:
    """The dependencies of the service but torch, OpenCV without windows.

    Args:
        project: the table ``project`` of pyproject.toml.
        extras: its optional dependencies.
        runtimes: names of those that are for computing on a CPU.
    """
    texts = [*project["dependencies"], *extras["service"]]
    pending = list(runtimes)
    while pending:
        for text in extras[pending.pop()]:
            ours = Requirement(text)
            if ours.name == project["name"]:
                pending += ours.extras
            else:
                texts.append(text)
    wanted = [Requirement(text) for text in texts]
    for requirement in wanted:
        requirement.name = _REPLACED.get(requirement.name, requirement.name)
    return list(dict.fromkeys(str(requirement) for requirement in wanted if requirement.name not in _UNUSED))


def constraints(lines: Iterable[str], base: Mapping[str, str], torch: str) -> list[str]:
    """The versions of constraints.txt, but for those that the base image or the caller decides.

    Args:
        lines: of constraints.txt.
        base: versions of the packages that come with a base image's torch; empty where it has none.
        torch: the requirement for torch that was asked for.
    """
    given = [line.partition("#")[0].strip() for line in lines]
    pins = {canonicalize_name(Requirement(line).name): line for line in given if line}
    if base:
        # wheels of OpenCV are compiled for one NumPy: pip takes the one that fits
        for name in (*_BASE, *_REPLACED, *_REPLACED.values()):
            pins.pop(name, None)
        pins.update((name, f"{name}=={base[name]}") for name in _BASE if name in base)
    elif torch != "torch":
        pins.pop("torch", None)
    return list(pins.values())


def installed() -> dict[str, str]:
    """Versions of torch and NumPy in the base image; empty where there is no torch."""
    if find_spec("torch") is None:
        return {}
    found = {d.name: d.version for d in distributions() if d.name in _BASE}
    return {"torch": "unknown", **found}  # torch may have been copied there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch", help="requirement, or URL of a wheel")
    parser.add_argument("--runtimes", default="", help=f"extras, with commas: {', '.join(_RUNTIMES)}")
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("constraints", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    runtimes = [name for name in args.runtimes.split(",") if name]
    if unknown := sorted({*runtimes} - {*_RUNTIMES}):
        parser.error(f"--runtimes has '{unknown[0]}'; expected names of: {', '.join(_RUNTIMES)}")

    project = tomllib.loads(args.pyproject.read_text(encoding="utf-8"))["project"]
    base = installed()
    pins = constraints(args.constraints.read_text(encoding="utf-8").splitlines(), base, args.torch)
    if base:
        print(f"kept from the base image: {base}")
        pins = [pin for pin in pins if not pin.endswith("==unknown")]
    for name, lines in (
        ("torch.txt", [] if base else [args.torch]),
        ("requirements.txt", requirements(project, project["optional-dependencies"], runtimes)),
        ("pinned.txt", pins),
    ):
        (args.out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
