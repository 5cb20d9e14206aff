"""The network and its keypoints in PyTorch, all on one device: the reference for the other backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frontend.device import pick_device
from frontend.extraction import (
    Batch,
    ExtractorConfig,
    HostDescribed,
    HostKeypoints,
    Prepared,
    StageTimes,
    allowed_pixels,
    candidates,
)
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
from frontend.refinement import Refinement, add_local, settle


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


class TorchBackend:
    """See :class:`frontend.extraction.Backend`.

    Args:
        network: is brought to evaluation mode and to the device.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", "bf16" or "fp16", of the network's dense part.
    """

    runtime = "torch"
    takes_bytes = False
    lends = True

    def __init__(self, network: SuperPointNet, device: str = "auto", precision: str = "float32") -> None:
        self._device = pick_device(device)
        self.device = str(self._device)
        self.precision = precision
        self.network: SuperPointNet = network.eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder: str = network.config.encoder
        self.descriptor_dim: int = network.config.descriptor_dim
        self.refines = network.refiner is not None
        dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        # without its cache: within a caller's autocast it would outlive the call, and graphs would hold its addresses
        self._cast = torch.autocast(
            self._device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False
        )

    def stack(self, prepared: Sequence[Prepared]) -> Batch:
        stacked = torch.from_numpy(np.stack([item.gray for item in prepared]))[:, None]
        rasters = [item.raster for item in prepared if item.raster is not None]
        raster = torch.from_numpy(np.stack(rasters)).to(self._device) if rasters else None
        return Batch(stacked.to(self._device), [item.geometry for item in prepared], raster, *self._allowed(prepared))

    def _allowed(self, prepared: Sequence[Prepared]) -> tuple[Tensor | None, Any]:
        allowed, masks = allowed_pixels(prepared)
        return None if allowed is None else torch.from_numpy(allowed).to(self._device), masks

    @torch.inference_mode()
    def forward(self, batch: Batch) -> DenseMaps:
        """Logits (B, 65, H/8, W/8) and descriptors (B, D, H/8, W/8)."""
        with self._cast:
            maps: DenseMaps = self.network(batch.images.contiguous(memory_format=torch.channels_last), batch.raster)
        return maps

    @torch.inference_mode()
    def postprocess(
        self, maps: DenseMaps, batch: Batch, config: ExtractorConfig, times: StageTimes | None = None
    ) -> Described:
        """Pick keypoints, refine them and sample their descriptors, on the device, without waiting for it."""
        sizes = torch.tensor([g.resized for g in batch.geometries], device=self._device)
        return self._describe(maps, batch.images, sizes, config, batch.allowed)

    def _describe(
        self, maps: DenseMaps, images: Tensor, sizes: Tensor, config: ExtractorConfig, allowed: Tensor | None = None
    ) -> Described:
        heat = heatmap(maps.logits)
        peaked = heat if allowed is None else heat * allowed
        kept = inside_border(non_maximum_suppression(peaked, config.nms_radius), config.border, sizes)
        passes = self.network.config.refiner_passes if self.refines else 1
        count = candidates(config.max_keypoints, passes)
        found = top_k(kept, count, config.detection_threshold, config.nms_radius)
        size = (heat.shape[2], heat.shape[1])
        refinement = self._refine(images, found.keypoints, found.scores)
        for _ in range(passes - 1):
            assert refinement is not None
            found = settle(found, refinement, sizes, size, config.max_keypoints)
            refinement = self._refine(images, found.keypoints, found.scores)
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

    def _refine(self, images: Tensor, keypoints: Tensor, scores: Tensor) -> Refinement | None:
        return self.network.refine(images, keypoints, scores)

    def host(self, found: Described) -> HostDescribed:
        keypoints = HostKeypoints(*(value.cpu().numpy() for value in found.keypoints))
        sigmas = None if found.sigmas is None else found.sigmas.cpu().numpy()
        return HostDescribed(keypoints, found.descriptors.cpu().numpy(), sigmas)

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def check(self) -> None:
        """Compute something; raises what the device raises where it has failed."""
        try:
            float(torch.ones(8, device=self._device).sum())
        except torch.cuda.OutOfMemoryError:
            return  # it has answered: what lacks is memory
