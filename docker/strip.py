"""Removes from the virtual environment of the image what no service ever loads, above all of torch and OpenVINO."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Container
from importlib.metadata import distributions
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

# relative to site-packages
UNUSED = (
    "torch/test",
    "torch/include",
    "torch/share",
    "torch/lib/*.a",
    "torch/lib/*test*.so",
    "torch/lib/libbackend_with_compiler.so",
    "torch/lib/libaoti_custom_ops.so",
    "nvidia/**/include",
    # here OpenVINO reads ONNX and its own models, and computes on CPUs
    "openvino/include",
    "openvino/cmake",
    "openvino/libs/libopenvino_intel_[gn]pu_plugin.so",
    "openvino/libs/cache.json",
    "openvino/libs/libopenvino_tensorflow*_frontend.so*",
    "openvino/libs/libopenvino_pytorch_frontend.so*",
    "openvino/libs/libopenvino_jax_frontend.so*",
    "openvino/libs/libopenvino_paddle_frontend.so*",
    "openvino/libs/libopenvino_gguf_frontend.so*",
    "openvino/libs/libopenvino_c.so*",
    # for programs in C++; Python's module has all of it inside
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/transformers/models",
    "onnx/backend/test",
    "**/*.pyi",
    "**/__pycache__",
    # tests that are installed with their packages
    "*/**/tests",
)
# torch refuses to be imported without it
KEPT_OF_TORCH_BIN = "torch_shm_manager"
INSTALLERS = {
    "setuptools": ("setuptools*", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"),
    "wheel": ("wheel", "wheel-*"),
    "pip": ("pip", "pip-*"),
}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all below a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def remove(path: Path) -> int:
    """Remove a file or a folder, and return its bytes."""
    size = size_of(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return size


def required() -> set[str]:
    """Names of the packages that an installed one, other than pip and its kind, needs here."""
    needed = set()
    for distribution in distributions():
        if distribution.name in INSTALLERS:
            continue
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed.add(requirement.name)
    return needed


def strip(site: Path, needed: Container[str]) -> None:
    """Remove what is unused, and report what that was worth.

    Args:
        site: site-packages.
        needed: packages that stay, also those that install others.
    """
    patterns = [*UNUSED, *(p for name, its in INSTALLERS.items() if name not in needed for p in its)]
    groups = {pattern: sorted(site.glob(pattern)) for pattern in patterns}
    unused = [path for path in sorted(site.glob("torch/bin/*")) if path.name != KEPT_OF_TORCH_BIN]
    for name, paths in {**groups, f"torch/bin but {KEPT_OF_TORCH_BIN}": unused}.items():
        # what lay in a folder went with it
        removed = sum(remove(path) for path in paths if path.exists() or path.is_symlink())
        if removed >= 1 << 20:
            print(f"{removed / 1e6:7.1f} MB  {name}")


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    strip(site, required())
    print(f"{size_of(site) / 1e6:7.1f} MB  left")
    for script in Path(sysconfig.get_path("scripts")).glob("pip*"):
        script.unlink()


if __name__ == "__main__":
    main()
