"""SuperPoint as a predictor: images in, features out, in three public stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from frontend.device import pick_device
from frontend.errors import ConfigError, ShapeError
from frontend.image import pad_to_multiple, rescale_points, resize_to, to_gray
from frontend.keypoints import (
    BatchedKeypoints,
    inside_border,
    non_maximum_suppression,
    refine_subpixel,
    reorder,
    sample_descriptors,
    top_k,
)
from frontend.model import DenseMaps, SuperPointNet, heatmap
from frontend.refinement import add_local
from frontend.types import Features, Float32Array
from frontend.weights import DEFAULT_MODEL, load_network


@dataclass(frozen=True)
class ExtractorConfig:
    """Settings of the extractor.

    Attributes:
        max_keypoints: K, keypoints of an image.
        detection_threshold: probability that a keypoint exceeds, in [0, 1).
        nms_radius: suppression radius, pixels of the network's input.
        border: pixels along the edge without keypoints, where a keypoint's surroundings are unknown.
        subpixel: whether keypoints are refined below the pixel: by the network's refiner, or, where it has none, to the
            heat map's centre of mass. Without it a refiner still scores and describes.
        resize: longest side that images are brought to, pixels; as given where None.
    """

    max_keypoints: int = 1024
    detection_threshold: float = 0.005
    nms_radius: int = 3
    border: int = 4
    subpixel: bool = True
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.max_keypoints < 1:
            raise ConfigError(f"max_keypoints is {self.max_keypoints}; expected 1 or more")
        if not 0 <= self.detection_threshold < 1:
            raise ConfigError(f"detection_threshold is {self.detection_threshold}; expected a value in [0, 1)")
        for name in ("nms_radius", "border"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.resize is not None and self.resize < 8:
            raise ConfigError(f"resize is {self.resize}; expected 8 pixels or more")


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
        images: (B, 1, H, W) float32 in [0, 1], on the device; H and W multiples of 8.
        geometries: one for each image.
        raster: (B, M, H, W) float32 map layers in the images' frame, for networks with a context module that takes
            them (``map_fusion``); None without.
    """

    images: Tensor
    geometries: list[Geometry]
    raster: Tensor | None = None


class Prepared(NamedTuple):
    """One image as network input, on the host.

    Attributes:
        gray: (H, W) float32 in [0, 1], sides multiples of 8.
        geometry: how it became that.
        raster: (M, H, W) float32, or None.
    """

    gray: Float32Array
    geometry: Geometry
    raster: Float32Array | None


class Described(NamedTuple):
    """Keypoints of a batch with what is known of them, on the device.

    Attributes:
        keypoints: K of each image, in pixels of the network's input, best first.
        descriptors: (B, K, D) float32 of unit norm.
        sigmas: (B, K) float32, standard deviation of the position along an axis, pixels of the network's input; None
            where the network has no refiner.
    """

    keypoints: BatchedKeypoints
    descriptors: Tensor
    sigmas: Tensor | None


@dataclass
class StageTimes:
    """Milliseconds spent in each stage, added up by the calls that it is given to."""

    ms: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        self.ms[stage] = self.ms.get(stage, 0.0) + seconds * 1e3


class SuperPoint:
    """Detects and describes keypoints.

    ``SuperPoint.from_pretrained()`` loads the released weights; the constructor takes a network at hand.

    Args:
        network: in evaluation mode.
        name: of the model, recorded in features.
        config: settings.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    def __init__(
        self,
        network: SuperPointNet,
        *,
        name: str = "custom",
        config: ExtractorConfig | None = None,
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name = name
        self.config = config or ExtractorConfig()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        *,
        config: ExtractorConfig | None = None,
        device: str = "auto",
    ) -> SuperPoint:
        """Load weights.

        Args:
            name_or_path: a released model's name, or a weight file (see :func:`frontend.weights.load_network`).
            config: settings.
            device: "auto", "cpu", "cuda" or "cuda:N".

        Raises:
            WeightsError: there are no such weights, or they cannot be used.
            ConfigError: there is no such device.
        """
        name, network = load_network(name_or_path)
        return cls(network, name=name, config=config, device=device)

    def configured(self, config: ExtractorConfig) -> SuperPoint:
        """The same network, not copied, with other settings."""
        if config == self.config:
            return self
        other = object.__new__(type(self))
        other.device, other.network, other.name, other.config = self.device, self.network, self.name, config
        return other

    @property
    def descriptor_dim(self) -> int:
        """D, the length of a descriptor."""
        dim: int = self.network.config.descriptor_dim
        return dim

    def preprocess(self, images: Sequence[np.ndarray], rasters: Sequence[np.ndarray] | None = None) -> Batch:
        """Make network input of images that have one padded size.

        Args:
            images: each (H, W), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, uint16, or float in [0, 1].
            rasters: a map for each image, (M, H, W) float at the image's size.

        Raises:
            ShapeError: an image has another shape or type, or a raster does not fit its image.
            ConfigError: the images' padded sizes differ, or there is none.
        """
        prepared = self._prepare_all(images, rasters)
        sizes = sorted({item.gray.shape[::-1] for item in prepared})
        if len(sizes) != 1:
            raise ConfigError(f"a batch has network inputs of {sizes or 'no size'}; expected one size")
        return self.stack(prepared)

    def stack(self, prepared: Sequence[Prepared]) -> Batch:
        """Bring prepared images of one size to the device as a batch."""
        stacked = torch.from_numpy(np.stack([item.gray for item in prepared]))[:, None]
        rasters = [item.raster for item in prepared if item.raster is not None]
        raster = torch.from_numpy(np.stack(rasters)).to(self.device) if rasters else None
        return Batch(stacked.to(self.device), [item.geometry for item in prepared], raster)

    def _prepare_all(self, images: Sequence[np.ndarray], rasters: Sequence[np.ndarray] | None) -> list[Prepared]:
        if rasters is None:
            return [self.prepare(image, None) for image in images]
        if len(rasters) != len(images):
            raise ShapeError(f"got {len(rasters)} rasters for {len(images)} images; expected one for each")
        return [self.prepare(image, raster) for image, raster in zip(images, rasters, strict=True)]

    def prepare(self, image: np.ndarray, raster: np.ndarray | None = None) -> Prepared:
        """Make network input of one image, on the host; needs no device and may run in any thread.

        Args:
            image: as for :meth:`preprocess`.
            raster: the same.

        Raises:
            ShapeError: the image has another shape or type, or the raster does not fit it.
        """
        gray = to_gray(image)
        original = (gray.shape[1], gray.shape[0])
        layers: list[Float32Array] = []
        if raster is not None:
            if raster.ndim != 3 or raster.shape[1:] != gray.shape:
                raise ShapeError(f"raster has shape {raster.shape}; expected (M, {gray.shape[0]}, {gray.shape[1]})")
            layers = [layer.astype(np.float32) for layer in raster]
        scale = (1.0, 1.0)
        if self.config.resize is not None:
            gray, scale = resize_to(gray, self.config.resize)
            layers = [resize_to(layer, self.config.resize)[0] for layer in layers]
        geometry = Geometry(original, (gray.shape[1], gray.shape[0]), scale)
        padded = np.stack([pad_to_multiple(layer) for layer in layers]) if raster is not None else None
        return Prepared(pad_to_multiple(gray), geometry, padded)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> DenseMaps:
        """Run the network: logits (B, 65, H/8, W/8) and descriptors (B, D, H/8, W/8)."""
        maps: DenseMaps = self.network(batch.images.contiguous(memory_format=torch.channels_last), batch.raster)
        return maps

    @torch.inference_mode()
    def postprocess(self, maps: DenseMaps, batch: Batch) -> Described:
        """Pick keypoints, refine them and sample their descriptors, on the device, without waiting for it."""
        config = self.config
        heat = heatmap(maps.logits)
        sizes = torch.tensor([g.resized for g in batch.geometries], device=self.device)
        candidates = inside_border(non_maximum_suppression(heat, config.nms_radius), config.border, sizes)
        found = top_k(candidates, config.max_keypoints, config.detection_threshold, config.nms_radius)
        size = (heat.shape[2], heat.shape[1])
        refinement = self.network.refine(batch.images, found.keypoints, found.scores)
        if refinement is None:
            if config.subpixel:
                found = found._replace(keypoints=refine_subpixel(heat, found.keypoints))
            return Described(found, sample_descriptors(maps.descriptors, found.keypoints, size), None)
        keypoints = found.keypoints + refinement.offsets if config.subpixel else found.keypoints
        dense = sample_descriptors(maps.descriptors, keypoints, size)
        found = BatchedKeypoints(keypoints, refinement.logits.sigmoid() * found.valid, found.valid)
        found, order = reorder(found)
        descriptors = add_local(dense, refinement.descriptors)
        return Described(
            found,
            descriptors.gather(1, order[..., None].expand_as(descriptors)),
            refinement.log_sigmas.exp().gather(1, order),
        )

    def collect(self, found: Described, batch: Batch) -> list[Features]:
        """Bring a batch's results to the host: unpadded, in pixels of the original images."""
        valid = found.keypoints.valid.cpu().numpy()
        keypoints, scores = found.keypoints.keypoints.cpu().numpy(), found.keypoints.scores.cpu().numpy()
        described = found.descriptors.cpu().numpy()
        sigmas = None if found.sigmas is None else found.sigmas.cpu().numpy()
        features = []
        for i, geometry in enumerate(batch.geometries):
            # valid keypoints come first, as scores fall
            count = int(valid[i].sum())
            back = (1 / geometry.scale[0], 1 / geometry.scale[1])
            original = rescale_points(keypoints[i, :count].astype(np.float64), back).astype(np.float32)
            limit = np.array(geometry.original, np.float32) - 1
            features.append(
                Features(
                    keypoints=np.clip(original, 0, limit),
                    scores=scores[i, :count].copy(),
                    descriptors=described[i, :count].copy(),
                    image_size=geometry.original,
                    model=self.name,
                    # one figure for both axes: their scales differ by rounding only
                    sigmas=None if sigmas is None else sigmas[i, :count] * np.float32(sum(back) / 2),
                )
            )
        return features

    def extract_batch(
        self,
        images: Sequence[np.ndarray],
        times: StageTimes | None = None,
        rasters: Sequence[np.ndarray] | None = None,
    ) -> list[Features]:
        """Features of several images; those of one padded size go through the network together.

        Args:
            images: as for :meth:`preprocess`, of any sizes.
            times: where the stages' times are added.
            rasters: a map for each image, see :meth:`preprocess`.

        Returns:
            One for each image, in their order; the same as one at a time, to rounding.
        """
        times = times or StageTimes()
        began = time.perf_counter()
        prepared = self._prepare_all(images, rasters)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(prepared):
            groups.setdefault(item.gray.shape, []).append(i)
        times.add("preprocess", time.perf_counter() - began)
        results: dict[int, Features] = {}
        for members in groups.values():
            began = time.perf_counter()
            batch = self.stack([prepared[i] for i in members])
            began = self._lap(times, "preprocess", began)
            maps = self.forward(batch)
            began = self._lap(times, "network", began)
            found = self.postprocess(maps, batch)
            results |= dict(zip(members, self.collect(found, batch), strict=True))
            self._lap(times, "keypoints", began)
        return [results[i] for i in range(len(images))]

    def _lap(self, times: StageTimes, stage: str, began: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        times.add(stage, now - began)
        return now

    def extract(self, image: np.ndarray, raster: np.ndarray | None = None) -> Features:
        """Features of one image, see :meth:`extract_batch`."""
        return self.extract_batch([image], rasters=None if raster is None else [raster])[0]
