"""What the stages of extraction hand to each other, and what computes them; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.errors import ConfigError, ShapeError
from frontend.types import BoolArray, Float32Array


@dataclass(frozen=True)
class ExtractorConfig:
    """Settings of the extractor.

    Attributes:
        max_keypoints: K, keypoints of an image: those that the detector's heat map rates highest.
        detection_threshold: probability in the detector's heat map that a keypoint exceeds, in [0, 1). A refiner gives
            keypoints scores of its own afterwards, :attr:`frontend.types.Features.scores`, which may be below it; and
            there may be more whose score would be above than are found.
        nms_radius: suppression radius of the heat map, pixels of the network's input. A refiner moves keypoints
            afterwards: those that meet between its passes are one, those that its last pass brings within a pixel of
            each other both stay.
        border: pixels along the edge without keypoints, where a keypoint's surroundings are unknown; of the network's
            input. What a refiner moves may end up nearer to the edge, by as much as it moves it.
        subpixel: whether keypoints are refined below the pixel: by the network's refiner, or, where it has none, to the
            heat map's centre of mass. Without it a refiner still scores and describes.
        resize: longest side that images are brought to, pixels; as given where None. The shorter side follows, but for
            rounding and the 8 pixels that it has at least: an image so narrow is scaled otherwise across than along,
            and a keypoint's one sigma, brought back by the mean of both, is then too large along one axis and too small
            along the other.
        white: value of white in images of integers beyond 8 bits, 4095 for a camera of 12 bits, say; where None, see
            :func:`frontend.image.to_uint8`, each image's own: the frames of a sequence may then differ in brightness.
    """

    max_keypoints: int = 1024
    detection_threshold: float = 0.005
    nms_radius: int = 3
    border: int = 4
    subpixel: bool = True
    resize: int | None = None
    white: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_keypoints", "nms_radius", "border", "resize", "white"):
            value = getattr(self, name)
            if not (isinstance(value, Integral) or (value is None and name in ("resize", "white"))):
                raise ConfigError(f"{name} is {value!r:.64}; expected a whole number")
        if not isinstance(self.detection_threshold, Real):
            raise ConfigError(f"detection_threshold is {self.detection_threshold!r:.64}; expected a number")
        if not isinstance(self.subpixel, (bool, np.bool_)):
            raise ConfigError(f"subpixel is {self.subpixel!r:.64}; expected True or False")
        if self.max_keypoints < 1:
            raise ConfigError(f"max_keypoints is {self.max_keypoints}; expected 1 or more")
        if not 0 <= self.detection_threshold < 1:
            raise ConfigError(f"detection_threshold is {self.detection_threshold}; expected a value in [0, 1)")
        for name in ("nms_radius", "border"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.resize is not None and self.resize < 8:
            raise ConfigError(f"resize is {self.resize}; expected 8 pixels or more")
        if self.white is not None and not 255 <= self.white < 2**32:
            raise ConfigError(f"white is {self.white}; expected a value from 255 to 2^32 - 1")


MEETING = 1
"""Keypoints that a refiner has moved this close together, in pixels along both axes, are one: the best of them."""


def candidates(count: int, passes: int) -> int:
    """How many keypoints are looked for: more than are wanted where some meet between passes of a refiner.

    Args:
        count: keypoints that are wanted.
        passes: of the refiner.
    """
    return count if passes == 1 else count + (count + 3) // 4


class Geometry(NamedTuple):
    """How an image became network input.

    Attributes:
        original: (width, height) of the image as given.
        resized: (width, height) before padding.
        scale: resized / original, along x and y.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    scale: tuple[float, float]


class Batch(NamedTuple):
    """Network input for images of one padded size.

    Attributes:
        images: (B, 1, H, W) float32 in [0, 1], or uint8 on a CPU where all images are of 8 bits; an array, or a
            tensor on the device; H and W multiples of 8.
        geometries: one for each image.
        raster: (B, M, H, W) float32 map layers in the images' frame, for networks with a context module that takes
            them (``map_fusion``); None without.
        allowed: (B, H, W) bool, where keypoints may be, on the device; None where they may be anywhere.
        masks: of each image as given, (H0, W0) bool, or None; None where ``allowed`` is.
    """

    images: Any
    geometries: list[Geometry]
    raster: Any = None
    allowed: Any = None
    masks: Sequence[BoolArray | None] | None = None


class Prepared(NamedTuple):
    """One image as network input, on the host.

    Attributes:
        gray: (H, W) float32 in [0, 1], or uint8 for a backend that takes bytes; sides multiples of 8.
        geometry: how it became that.
        raster: (M, H, W) float32, or None.
        mask: (H0, W0) bool of the image as given, False where no keypoint may be; None without.
    """

    gray: Float32Array | NDArray[np.uint8]
    geometry: Geometry
    raster: Float32Array | None
    mask: BoolArray | None = None


def allowed_pixels(prepared: Sequence[Prepared]) -> tuple[BoolArray | None, list[BoolArray | None] | None]:
    """``allowed`` and ``masks`` of a batch, see :class:`Batch`, the former on the host."""
    masks = [item.mask for item in prepared]
    if all(mask is None for mask in masks):
        return None, None
    allowed = np.ones((len(prepared), *prepared[0].gray.shape), np.bool_)
    for target, mask, item in zip(allowed, masks, prepared, strict=True):
        if mask is None:
            continue
        width, height = item.geometry.resized
        target[:] = False
        target[:height, :width] = cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return allowed, masks


def check_mask(mask: Any, height: int, width: int) -> None:
    """Refuse what says not where keypoints may be in an image of a size.

    Args:
        mask: to be (height, width) bool or uint8.
        height: of the image, pixels.
        width: the same.

    Raises:
        ShapeError: it is not that.
    """
    expected = f"expected ({height}, {width}) bool or uint8"
    if not isinstance(mask, np.ndarray):
        raise ShapeError(f"mask is a {type(mask).__name__}; {expected}")
    if mask.shape != (height, width) or mask.dtype not in (np.bool_, np.uint8):
        raise ShapeError(f"mask is {mask.shape} {mask.dtype}; {expected}")


class HostKeypoints(NamedTuple):
    """K keypoints for every image of a batch, best first, in the host's memory.

    Attributes:
        keypoints: (B, K, 2) float32, (x, y) pixels of the network's input.
        scores: (B, K) float32, non-increasing; 0 for padding.
        valid: (B, K) bool; padding is False and comes last.
    """

    keypoints: Float32Array
    scores: Float32Array
    valid: BoolArray


class HostDescribed(NamedTuple):
    """Keypoints of a batch with what is known of them, in the host's memory.

    Attributes:
        keypoints: K of each image.
        descriptors: (B, K, D) float32 of unit norm; 0 for padding.
        sigmas: (B, K) float32, standard deviation of the position along an axis, pixels of the network's input; None
            where the network has no refiner.
    """

    keypoints: HostKeypoints
    descriptors: Float32Array
    sigmas: Float32Array | None


@dataclass
class StageTimes:
    """Milliseconds spent in each stage, added up by the calls that it is given to."""

    ms: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        self.ms[stage] = self.ms.get(stage, 0.0) + seconds * 1e3


class Backend(Protocol):
    """Computes a network and its keypoints somewhere.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        runtime: what runs the network: "torch", "onnxruntime", "openvino" or "ncnn".
        precision: of the network: "float32", "bf16", "fp16" or "int8".
        encoder: specification of the network's encoder.
        descriptor_dim: D.
        refines: whether the network has a refiner, whose keypoints know how sure they are.
        takes_bytes: whether :meth:`stack` takes gray images of 8 bits as they are.
        lends: whether what :meth:`host` gives is to be copied before it is kept, as memory that a device reads is.
    """

    device: str
    runtime: str
    precision: str
    encoder: str
    descriptor_dim: int
    refines: bool
    takes_bytes: bool
    lends: bool

    def stack(self, prepared: Sequence[Prepared]) -> Batch:
        """Bring prepared images of one size to the device as a batch."""

    def forward(self, batch: Batch) -> Any:
        """Run the network; what it gives is for :meth:`postprocess`."""

    def postprocess(self, maps: Any, batch: Batch, config: ExtractorConfig, times: StageTimes | None = None) -> Any:
        """Pick keypoints, refine and describe them; adds the refiner's time to ``times`` where it can be told apart."""

    def host(self, found: Any) -> HostDescribed:
        """Bring the result of :meth:`postprocess` to the host."""

    def synchronize(self) -> None:
        """Wait for the device."""

    def check(self) -> None:
        """Compute something; raises what the device raises where it has failed."""
