"""Which device to run on."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Device:
    """A device without torch; ``str()`` gives the name that torch understands.

    Attributes:
        type: "cpu" or "cuda".
        index: of the GPU; None for the current one.
    """

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


def _may_have_cuda() -> bool:
    """False where there can be no CUDA device, which is found out without torch; True means to ask torch."""
    if sys.platform == "darwin" or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if not sys.platform.startswith("linux"):
        return True
    # discrete GPUs, Jetsons, and the Windows subsystem
    return any(Path("/dev", name).exists() for name in ("nvidia0", "nvidiactl", "nvhost-ctrl-gpu", "nvmap", "dxg"))


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"device is {name!r:.64}; expected auto, cpu, cuda or cuda:N")


def pick_name(name: str = "auto") -> Device:
    """Turn a device's name into a device; loads torch only where there may be a GPU.

    Args:
        name: as for :func:`pick_device`.

    Raises:
        ConfigError: as there.
    """
    _check_name(name)
    if name == "cpu" or (name == "auto" and not _may_have_cuda()):
        return Device("cpu")
    device = pick_device(name)
    return Device(device.type, device.index)


def pick_device(name: str = "auto") -> torch.device:
    """Turn a device's name into a device that is there.

    Args:
        name: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: the name is none of these, or there is no such device.
    """
    _check_name(name)
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise ConfigError(f"device is '{name}'; expected auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise ConfigError(f"device is '{name}'; this machine has {count} CUDA devices")
    return torch.device(name)


PRECISIONS = ("auto", "bf16", "fp32")
"""Names of the arithmetic that training and labelling may use."""


def check_precision(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        ConfigError: it is none of :data:`PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"precision is '{name}'; expected auto, bf16 or fp32")


def autocast(name: str, device: torch.device) -> torch.autocast:
    """The context of an arithmetic.

    Args:
        name: "bf16", "fp32", or "auto": bf16 where the device has fast kernels for it. Without those (CPUs before
            AVX-512) a bf16 product is computed value by value, hundreds of times slower than in float32.
        device: that computes.

    Raises:
        ConfigError: the name is unknown.
    """
    import torch

    check_precision(name)
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16" or (name == "auto" and fast))


def exactly(x: Tensor) -> AbstractContextManager[Any]:
    """The context in which what follows from a tensor is not computed in half precision, whatever autocast is on."""
    import torch

    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _cpu_has_bf16() -> bool:
    """Whether training is faster in bf16: by instructions, not by a trial, so that a run goes on as it began.

    Intel's CPUs with AVX-512's instructions for bf16 but no AMX multiply at the rate of float32 and convert besides: on
    one whose AMX was hidden superpoint-edge's training step took 1.65 s instead of 1.23.
    """
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return bool(torch.cpu._is_amx_tile_supported()) or not _is_intel()


@cache
def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "GenuineIntel" in platform.processor()
