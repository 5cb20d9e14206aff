"""The contract of a runtime: what runs an exported or a live network on the CPU, NumPy in and NumPy out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from frontend.errors import ConfigError, FrontendError, is_lack_of_memory
from frontend.postprocess import Gray
from frontend.types import Float32Array

RUNTIMES = ("auto", "torch", "onnxruntime", "openvino", "ncnn")
"""Names that may be asked for."""

PRECISIONS = ("auto", "float32", "bf16", "fp16", "int8")
"""The same for the arithmetic of the network."""

DETECTOR = "/detector/"
"""In an exported graph, part of the names of what belongs to the detector."""
FINE_BRANCH = "/detector/fine/"
"""The same for the detector's fine branch."""


def check_names(runtime: str, precision: str) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: the runtime or the precision is none of the above.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime is '{runtime}'; expected one of: {', '.join(RUNTIMES)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is '{precision}'; expected one of: {', '.join(PRECISIONS)}")


@contextmanager
def loading(runtime: str) -> Iterator[None]:
    """Say in one line why a runtime that is installed cannot be used here.

    Raises:
        ConfigError: instead of whatever it raises, but for a lack of memory.
    """
    try:
        yield
    except FrontendError:
        raise
    except Exception as error:  # the runtimes have no errors in common
        if is_lack_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"runtime '{runtime}' is installed, but cannot be used: {reason}") from error


@dataclass(frozen=True)
class NetworkInfo:
    """What callers have to know of a network.

    Attributes:
        encoder: specification of its encoder.
        descriptor_dim: D.
        patch: side of the refiner's patches, pixels; 0 where the network has no refiner.
        passes: how often keypoints are refined, see :class:`frontend.model.ModelConfig`.
    """

    encoder: str
    descriptor_dim: int
    patch: int = 0
    passes: int = 1


class Maps(NamedTuple):
    """What the dense part of a network gives.

    Attributes:
        heat: (B, H, W) float32 in [0, 1], probability of a keypoint at each pixel.
        descriptors: (B, H/8, W/8, D) float32, not normalised; the cells' rows are contiguous.
    """

    heat: Float32Array
    descriptors: Float32Array


class Refined(NamedTuple):
    """What the refiner gives for N keypoints.

    Attributes:
        position: (N, 4) float32: offset along x and y, pixels; standard deviation along an axis, pixels; score in
            (0, 1).
        local: (N, D) float32, to be added to the unit descriptors of the dense map.
    """

    position: Float32Array
    local: Float32Array


class Runtime(Protocol):
    """Runs a network on the CPU; threads may share it.

    Attributes:
        name: "torch", "onnxruntime", "openvino" or "ncnn".
        precision: of the dense part.
        info: of the network.
        takes_bytes: whether :meth:`dense` takes images of 8 bits as they are.
    """

    name: str
    precision: str
    info: NetworkInfo
    takes_bytes: bool

    def dense(self, images: Gray, raster: Float32Array | None = None) -> Maps:
        """Compute the dense maps.

        Args:
            images: (B, 1, H, W) float32 in [0, 1], or uint8 where it takes bytes; contiguous; H and W multiples of 8.
            raster: (B, M, H, W) float32 for networks that take a map; torch only.

        Returns:
            The maps; they may be the runtime's own memory, which the same thread's next call overwrites.
        """

    def refine(self, patches: Float32Array, scores: Float32Array) -> Refined:
        """Refine keypoints from the pixels about them.

        Args:
            patches: (N, 1, patch, patch) float32 in [0, 1], contiguous; N >= 1.
            scores: (N,) float32, of the heat map.

        Returns:
            The caller's own: no later call changes it.
        """
