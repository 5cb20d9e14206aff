"""Whole processes: cold start, resident memory over many images; and the machine and the commit of a run.

``python -m frontend.evaluation.latency_process MODEL RUNTIME PRECISION DEVICE WIDTH HEIGHT IMAGES KEYPOINTS`` is the
process whose memory is measured: nothing else has been loaded into it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from frontend.errors import ConfigError
from frontend.evaluation.latency import Case

_FLAGS = (
    *("sse4_2", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)
_PACKAGES = (
    *(
        "superpoint-frontend",
        "torch",
        "numpy",
        "opencv-python",
        "opencv-python-headless",
        "onnxruntime",
        "openvino",
        "ncnn",
    ),
    *("kornia", "lightglue", "hloc"),
)
EMPTY_CACHE = "process, empty cache"
"""The stage of a process that finds no exported graph and no note of what is fastest, as the first one ever does."""

FLAT = 0.01
"""Part of the resident memory that it may grow by over a run and still count as flat."""


def machine() -> dict[str, Any]:
    """What a figure depends on: CPU, cores, its instructions for vectors and matrices, memory, versions, load.

    Returns:
        ``cpu``, ``cores`` (usable by this process), ``flags``, ``memory_gib``, ``system``, ``load_1min`` (None where
        the system does not tell), ``gpu`` (None without), ``threads`` (of torch and OpenCV) and ``versions``.
    """
    import cv2
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = _cpu_info()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    versions = {name: found for name in _PACKAGES if (found := _version(name)) is not None}
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": usable,
        "flags": [flag for flag in _FLAGS if flag in info.get("flags", info.get("Features", "")).split()],
        "memory_gib": None if pages is None else round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": {"torch": torch.get_num_threads(), "opencv": cv2.getNumThreads()},
        "versions": {"python": platform.python_version(), **versions},
    }


def _cpu_info() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source, "-dirty" with changes that are not in it; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _environment() -> dict[str, str]:
    """That of this process, and the same frontend to import."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *([path] if path else [])])}


def cold_start_cases(
    images: Sequence[np.ndarray],
    folder: Path,
    model: str,
    pair: tuple[str, str] = ("auto", "auto"),
    device: str = "cpu",
    *,
    limit_s: float | None = None,
    keypoints: int = 1024,
    empty_cache: bool = False,
) -> list[Case]:
    """Cases that run ``superpoint-match`` on a pair of image files as a process of its own.

    Weights are at hand, and files that were read before are in the system's memory.

    Args:
        images: two, (H, W, 3) uint8 BGR.
        folder: where their files are written.
        model: released name or weight file.
        pair: runtime and precision.
        device: "cpu", "cuda" or "cuda:N".
        limit_s: seconds after which the process is ended, and the case fails.
        keypoints: of an image.
        empty_cache: whether each call finds a cache directory of its own with nothing in it: stage
            :data:`EMPTY_CACHE`, and not to be called before it is timed.
    """
    import cv2

    files = [str(folder / f"cold{i}.jpg") for i in range(2)]
    for file, image in zip(files, images, strict=False):
        cv2.imwrite(file, image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    command = [sys.executable, "-m", "frontend.cli.match", *files, "--model", model, "--json", "-"]
    command += ["--max-keypoints", str(keypoints), "--device", device, "--runtime", pair[0], "--precision", pair[1]]

    def call() -> None:
        if empty_cache:
            with tempfile.TemporaryDirectory(prefix="cache-", dir=folder) as cache:
                run({**_environment(), "XDG_CACHE_HOME": str(Path(cache).resolve())})
        else:
            run(_environment())

    def run(environment: dict[str, str]) -> None:
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"superpoint-match had not ended after {limit_s:.0f} s") from None
        if done.returncode not in (0, 3):  # 3: no homography, which is a result
            raise ConfigError(f"superpoint-match ended with {done.returncode}: {done.stderr.strip()[-200:]}")

    height, width = images[0].shape[:2]
    facts = Case("superpoint-match", call, "process", pair[1], "process", (width, height), 2, keypoints)
    return [replace(facts, stage=EMPTY_CACHE, warm=True) if empty_cache else facts]


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process that extracts features of one image after another.

    Attributes:
        method, runtime, precision, size: whose, as for rows.
        images: number of images.
        loaded_mib: before the first image.
        resident_mib: median over the last quarter of the images.
        peak_mib: the most.
        growth_mib: median of the last quarter less that of the second, when all caches are warm.
        kib_per_image: slope of the same stretch, a least-squares line.
    """

    method: str
    runtime: str
    precision: str
    size: str
    images: int
    loaded_mib: float
    resident_mib: float
    peak_mib: float
    growth_mib: float
    kib_per_image: float

    @property
    def working_mib(self) -> float:
        """What the images need beside the model."""
        return self.resident_mib - self.loaded_mib

    @property
    def flat(self) -> bool:
        """Whether it grew by no more than :data:`FLAT`."""
        return self.growth_mib <= FLAT * self.resident_mib


def resident_mib() -> float:
    """Resident memory of this process; the most so far where the system tells no more."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 2**20 if sys.platform == "darwin" else most / 2**10


def summarize_memory(
    loaded_mib: float, samples: Sequence[float], method: str, pair: tuple[str, str], size: tuple[int, int]
) -> Memory:
    """Level and growth of resident memory.

    Args:
        loaded_mib: before the first image.
        samples: MiB after each image; eight or more.
        method: label.
        pair: runtime and precision.
        size: (width, height).
    """
    values = np.asarray(samples, np.float64)
    if len(values) < 8:
        raise ConfigError(f"memory over {len(values)} images says nothing; expected 8 or more")
    quarter = len(values) // 4
    rest = values[quarter:]
    level = float(np.median(values[-quarter:]))
    return Memory(
        method=method,
        runtime=pair[0],
        precision=pair[1],
        size=f"{size[0]}x{size[1]}",
        images=len(values),
        loaded_mib=loaded_mib,
        resident_mib=level,
        peak_mib=float(values.max()),
        growth_mib=level - float(np.median(values[quarter : 2 * quarter])),
        kib_per_image=float(np.polyfit(np.arange(len(rest)), rest, 1)[0]) * 1024,
    )


def measure_memory(
    model: tuple[str, str],
    pair: tuple[str, str],
    device: str,
    size: tuple[int, int],
    images: int,
    timeout: float | None,
    keypoints: int = 1024,
) -> Memory:
    """Resident memory over many images, in a process of its own.

    Args:
        model: label, and released name or weight file.
        pair: runtime and precision.
        device: of the network.
        size: (width, height) of the images.
        images: number of them, 8 or more.
        timeout: seconds after which the process is ended; None never.
        keypoints: of an image.

    Raises:
        ConfigError: the process failed, or took too long.
    """
    label, source = model
    command = [sys.executable, "-m", "frontend.evaluation.latency_process", source, *pair, device]
    command += [str(number) for number in (*size, images, keypoints)]
    try:
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"memory over {images} images took more than {timeout:.0f} s") from None
    if done.returncode:
        raise ConfigError(f"memory process ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return summarize_memory(found["loaded_mib"], found["samples"], label, pair, size)


def main(arguments: Sequence[str]) -> int:
    """Extract, and print resident memory as a line of JSON."""
    from frontend.evaluation.latency_models import ImageSource, ModelUnderTest, open_extractor

    source, runtime, precision, device, width, height, count, keypoints = arguments
    images = ImageSource().of_size((int(width), int(height)))
    extractor = open_extractor(ModelUnderTest(source, source), runtime, precision, device)
    extractor = extractor.configured(replace(extractor.config, max_keypoints=int(keypoints)))
    loaded = resident_mib()
    samples = []
    for number in range(int(count)):
        extractor.extract(images[number % len(images)])
        samples.append(round(resident_mib(), 3))
    print(json.dumps({"loaded_mib": loaded, "samples": samples}))
    return 0


def as_json(memory: Memory) -> dict[str, Any]:
    """For the document."""
    return {**asdict(memory), "working_mib": memory.working_mib, "flat": memory.flat}


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when the run ends."""
    return tempfile.TemporaryDirectory(prefix="superpoint-bench-")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
