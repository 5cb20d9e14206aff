"""SuperPoint as a predictor: images in, features out, in three public stages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frontend.device import Device, pick_name
from frontend.errors import ConfigError, ShapeError
from frontend.extraction import (
    Backend,
    Batch,
    ExtractorConfig,
    Geometry,
    HostDescribed,
    HostKeypoints,
    Prepared,
    StageTimes,
    check_mask,
)
from frontend.image import pad_to_multiple, rescale_points, resize_to, to_gray, to_gray_bytes
from frontend.types import BoolArray, Features, Float32Array
from frontend.weights import DEFAULT_MODEL

if TYPE_CHECKING:
    from frontend.model import SuperPointNet

__all__ = [
    "Batch",
    "ExtractorConfig",
    "Geometry",
    "HostDescribed",
    "HostKeypoints",
    "Prepared",
    "StageTimes",
    "SuperPoint",
]


def _has_bytes(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8


def _checked(config: ExtractorConfig | None) -> ExtractorConfig:
    if config is None:
        return ExtractorConfig()
    if not isinstance(config, ExtractorConfig):
        raise ConfigError(f"config is a {type(config).__name__}; expected an ExtractorConfig")
    return config


def _loaded_again(kind: type[SuperPoint], origin: str, config: ExtractorConfig, **how: Any) -> SuperPoint:
    return kind.from_pretrained(origin, config=config, **how)


class SuperPoint:
    """Detects and describes keypoints.

    ``SuperPoint.from_pretrained()`` loads the released weights; the constructor takes a network at hand, and
    :meth:`of` anything that computes one. Those that were loaded can be copied and sent to other processes, where they
    are loaded again, from the same name or file, for the same device, runtime and precision.

    Args:
        network: in evaluation mode.
        name: of the model, recorded in features.
        config: settings.
        device: "auto", "cpu", "cuda" or "cuda:N".
        runtime: of the network on a CPU: "torch", "onnxruntime", "openvino", "ncnn" or "auto", see
            :mod:`frontend.runtime`.
        precision: of the network: "float32", "bf16", "fp16", "int8", or "auto", which is what is fast there and safe.
    """

    backend: Backend
    name: str
    config: ExtractorConfig
    _origin: str | None = None  # what it was loaded from

    def __init__(
        self,
        network: SuperPointNet,
        *,
        name: str = "custom",
        config: ExtractorConfig | None = None,
        device: str = "auto",
        runtime: str = "torch",
        precision: str = "float32",
    ) -> None:
        from frontend.backends import backend_of_network

        self.name, self.config = name, _checked(config)
        self.backend = backend_of_network(network, device, runtime, precision)

    @classmethod
    def of(cls, backend: Backend, *, name: str = "custom", config: ExtractorConfig | None = None) -> SuperPoint:
        """An extractor on a backend at hand."""
        extractor = object.__new__(cls)
        extractor.backend, extractor.name, extractor.config = backend, name, _checked(config)
        return extractor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        *,
        config: ExtractorConfig | None = None,
        device: str = "auto",
        runtime: str = "auto",
        precision: str = "auto",
        brief: bool = False,
    ) -> SuperPoint:
        """Load weights.

        Args:
            name_or_path: a released model's name, or a weight file (see :func:`frontend.weights.load_network`).
            config: settings.
            device: "auto", "cpu", "cuda" or "cuda:N".
            runtime: as for the constructor.
            precision: the same.
            brief: whether a pair of images is all that is to come, so that "auto" looks at the time to load too.

        Raises:
            WeightsError: there are no such weights, or they cannot be used.
            ConfigError: there is no such device or runtime, or it has no such precision; or the config is none.
        """
        from frontend.backends import load_backend

        config = _checked(config)  # before seconds are spent
        name, backend = load_backend(name_or_path, device, runtime, precision, brief)
        extractor = cls.of(backend, name=name, config=config)
        # another process may have another working directory
        extractor._origin = name if name == str(name_or_path) else os.path.abspath(name_or_path)
        return extractor

    def configured(self, config: ExtractorConfig) -> SuperPoint:
        """The same network, not copied, with other settings."""
        if config == self.config:
            return self
        extractor = self.of(self.backend, name=self.name, config=config)
        extractor._origin = self._origin
        return extractor

    def __reduce__(self) -> tuple[Callable[[], SuperPoint], tuple[()]]:
        """For pickle and copy.

        Raises:
            ConfigError: it was not loaded by :meth:`from_pretrained`.
        """
        if self._origin is None:
            raise ConfigError(
                f"extractor '{self.name}' of a network at hand cannot be pickled or copied; expected one that"
                " SuperPoint.from_pretrained loaded"
            )
        # what was chosen, which "auto" may not choose again
        how = {"device": str(self.device), "runtime": self.runtime, "precision": self.precision}
        return partial(_loaded_again, type(self), self._origin, self.config, **how), ()

    @property
    def device(self) -> Device:
        """Where it computes."""
        return pick_name(self.backend.device)

    @property
    def network(self) -> SuperPointNet:
        """The network in PyTorch; on a GPU a copy of it runs, which does not follow when its weights change.

        Raises:
            ConfigError: the runtime has another form of it.
        """
        network: SuperPointNet | None = getattr(self.backend, "network", None)
        if network is None:
            raise ConfigError(f"the network runs in {self.backend.runtime}; expected runtime 'torch' to get at it")
        return network

    @property
    def runtime(self) -> str:
        """What runs the network: "torch", "onnxruntime", "openvino" or "ncnn"."""
        return self.backend.runtime

    @property
    def precision(self) -> str:
        """Of the network: "float32", "bf16", "fp16" or "int8"."""
        return self.backend.precision

    @property
    def encoder(self) -> str:
        """Specification of the network's encoder."""
        return self.backend.encoder

    @property
    def refines(self) -> bool:
        """Whether the network has a refiner, so that its keypoints have sigmas."""
        return self.backend.refines

    @property
    def takes_raster(self) -> bool:
        """Whether a map given with an image may matter, to a context module such as map_fusion; in torch alone."""
        network = getattr(self.backend, "network", None)
        # another package's module need not be one of ours
        return network is not None and any(getattr(context, "takes_raster", True) for context in network.contexts)

    @property
    def descriptor_dim(self) -> int:
        """D, the length of a descriptor."""
        return self.backend.descriptor_dim

    def preprocess(
        self,
        images: Sequence[np.ndarray],
        rasters: Sequence[np.ndarray] | None = None,
        masks: Sequence[np.ndarray | None] | None = None,
    ) -> Batch:
        """Make network input of images that have one padded size.

        Args:
            images: each (H, W), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, uint16, or float in [0, 1].
            rasters: a map for each image, (M, H, W) float at the image's size.
            masks: for each image where keypoints may be, (H, W) bool or uint8, nonzero there; None for anywhere.

        Raises:
            ShapeError: an image has another shape or type, or a raster or a mask does not fit its image.
            ConfigError: the images' padded sizes differ, or there is none; or the network takes no rasters.
        """
        prepared = self._prepare_all(images, rasters, masks)
        sizes = sorted({item.gray.shape[::-1] for item in prepared})
        if len(sizes) != 1:
            raise ConfigError(f"a batch has network inputs of {sizes or 'no size'}; expected one size")
        return self.stack(prepared)

    def stack(self, prepared: Sequence[Prepared]) -> Batch:
        """Bring prepared images of one size to the device as a batch."""
        return self.backend.stack(prepared)

    def _prepare_all(
        self,
        images: Sequence[np.ndarray],
        rasters: Sequence[np.ndarray] | None,
        masks: Sequence[np.ndarray | None] | None,
    ) -> list[Prepared]:
        for name, others in (("rasters", rasters), ("masks", masks)):
            if others is not None and len(others) != len(images):
                raise ShapeError(f"got {len(others)} {name} for {len(images)} images; expected one for each")
        nothing = [None] * len(images)
        # not by their truth: they may be arrays
        layers: Sequence[np.ndarray | None] = nothing if rasters is None else rasters
        allowed = nothing if masks is None else masks
        return [self.prepare(*each) for each in zip(images, layers, allowed, strict=True)]

    def prepare(self, image: np.ndarray, raster: np.ndarray | None = None, mask: np.ndarray | None = None) -> Prepared:
        """Make network input of one image, on the host; needs no device and may run in any thread.

        Args:
            image: as for :meth:`preprocess`.
            raster: the same.
            mask: the same.

        Raises:
            ShapeError: the image has another shape or type, or the raster or the mask does not fit it.
            ConfigError: there is a raster, and the network does not look at it.
        """
        # resizing rounds less in floats
        in_bytes = getattr(self.backend, "takes_bytes", False) and self.config.resize is None
        gray: Any = to_gray_bytes(image) if in_bytes and _has_bytes(image) else to_gray(image, self.config.white)
        original = (gray.shape[1], gray.shape[0])
        layers: list[Float32Array] = []
        if raster is not None:
            if not self.takes_raster:
                raise ConfigError(
                    f"got a raster for encoder '{self.encoder}' in {self.runtime}; expected none, or an encoder with a"
                    " context module that takes one, such as map_fusion, in torch"
                )
            expected = f"expected (M, {gray.shape[0]}, {gray.shape[1]})"
            if not isinstance(raster, np.ndarray):
                raise ShapeError(f"raster is a {type(raster).__name__}; {expected} real numbers")
            if raster.ndim != 3 or raster.shape[1:] != gray.shape:
                raise ShapeError(f"raster has shape {raster.shape}; {expected}")
            if not len(raster) or raster.dtype.kind not in "fiub":
                raise ShapeError(f"raster is {raster.shape} {raster.dtype}; {expected} real numbers, M of 1 or more")
            layers = [layer.astype(np.float32) for layer in raster]
        if mask is not None:
            check_mask(mask, *gray.shape)
            mask = mask != 0
        scale = (1.0, 1.0)
        if self.config.resize is not None:
            gray, scale = resize_to(gray, self.config.resize)
            layers = [resize_to(layer, self.config.resize)[0] for layer in layers]
        geometry = Geometry(original, (gray.shape[1], gray.shape[0]), scale)
        padded = np.stack([pad_to_multiple(layer) for layer in layers]) if raster is not None else None
        return Prepared(pad_to_multiple(gray), geometry, padded, mask)

    def forward(self, batch: Batch) -> Any:
        """Run the network; gives dense maps in the backend's own form."""
        return self.backend.forward(batch)

    def postprocess(self, maps: Any, batch: Batch, times: StageTimes | None = None) -> Any:
        """Pick keypoints, refine them and sample their descriptors, on the device, without waiting for it."""
        return self.backend.postprocess(maps, batch, self.config, times)

    def collect(self, found: Any, batch: Batch) -> list[Features]:
        """Bring a batch's results to the host: unpadded, in pixels of the original images."""
        (keypoints, scores, valid), described, sigmas = self.backend.host(found)
        features = []
        for i, geometry in enumerate(batch.geometries):
            # valid keypoints come first, as scores fall
            count = int(valid[i].sum())
            # a whole array that is nobody else's needs no copy
            kept = len(batch.geometries) == 1 and count == described.shape[1] and not self.backend.lends
            original, back = keypoints[i, :count], (1 / geometry.scale[0], 1 / geometry.scale[1])
            if back != (1.0, 1.0):
                original = rescale_points(original.astype(np.float64), back).astype(np.float32)
            limit = np.array(geometry.original, np.float32) - 1
            one = Features(
                keypoints=np.clip(original, 0, limit),
                scores=scores[i, :count].copy(),
                descriptors=described[i] if kept else described[i, :count].copy(),
                image_size=geometry.original,
                model=self.name,
                # one figure for both axes: their scales differ by rounding only, unless the image is so narrow that
                # its shorter side stops at 8 pixels
                sigmas=None if sigmas is None else sigmas[i, :count] * np.float32(sum(back) / 2),
            )
            mask = None if batch.masks is None else batch.masks[i]
            features.append(one if mask is None else _within(mask, one))
        return features

    def extract_batch(
        self,
        images: Sequence[np.ndarray],
        times: StageTimes | None = None,
        rasters: Sequence[np.ndarray] | None = None,
        masks: Sequence[np.ndarray | None] | None = None,
    ) -> list[Features]:
        """Features of several images; those of one padded size go through the network together.

        Args:
            images: as for :meth:`preprocess`, of any sizes.
            times: where the stages' times are added.
            rasters: a map for each image, see :meth:`preprocess`.
            masks: where keypoints may be, the same. Robots' own parts, time stamps and people are left out so; what is
                next to them still sees them.

        Returns:
            One for each image, in their order; the same as one at a time, to rounding.
        """
        times = times or StageTimes()
        began = time.perf_counter()
        prepared = self._prepare_all(images, rasters, masks)
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
            refined_before = times.ms.get("refinement", 0.0)
            found = self.postprocess(maps, batch, times)
            results |= dict(zip(members, self.collect(found, batch), strict=True))
            self._lap(times, "keypoints", began)
            times.ms["keypoints"] -= times.ms.get("refinement", 0.0) - refined_before
        return [results[i] for i in range(len(images))]

    def _lap(self, times: StageTimes, stage: str, began: float) -> float:
        self.backend.synchronize()
        now = time.perf_counter()
        times.add(stage, now - began)
        return now

    def extract(self, image: np.ndarray, raster: np.ndarray | None = None, mask: np.ndarray | None = None) -> Features:
        """Features of one image, see :meth:`extract_batch`."""
        return self.extract_batch([image], rasters=None if raster is None else [raster], masks=[mask])[0]


def _within(mask: BoolArray, features: Features) -> Features:
    """Those whose nearest pixel the mask allows: a refiner may have moved some across its edge."""
    x, y = np.rint(features.keypoints).astype(np.int64).T
    keep = mask[y, x]
    if keep.all():
        return features
    return replace(
        features,
        keypoints=features.keypoints[keep],
        scores=features.scores[keep],
        descriptors=features.descriptors[keep],
        sigmas=None if features.sigmas is None else features.sigmas[keep],
    )
