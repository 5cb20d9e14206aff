"""The CPU's path: a runtime for the network, and NumPy for the keypoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

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
from frontend.kernels import load_kernels
from frontend.postprocess import BYTE, Gray, Peaks, centre_of_mass, points_of, settle
from frontend.runtime.base import Maps, Refined, Runtime
from frontend.runtime.memory import settle_memory
from frontend.types import Float32Array


class CpuBackend:
    """See :class:`frontend.extraction.Backend`.

    Args:
        runner: runs the network.
        brief: whether a pair of images is all that is to come, so that loading compiled kernels would not pay.
    """

    device = "cpu"
    takes_bytes = True
    lends = False

    def __init__(self, runner: Runtime, brief: bool = False) -> None:
        settle_memory()
        self.kernels = load_kernels(brief)
        self.runner = runner
        self.runtime = runner.name
        self.precision = runner.precision
        self.encoder = runner.info.encoder
        self.descriptor_dim = runner.info.descriptor_dim
        self.refines = runner.info.patch > 0

    @property
    def network(self) -> Any:
        """The network in PyTorch; None where the runtime has another form of it."""
        return getattr(self.runner, "network", None)

    def stack(self, prepared: Sequence[Prepared]) -> Batch:
        grays = [item.gray for item in prepared]
        if any(gray.dtype != np.uint8 for gray in grays):
            grays = [_to_float(gray) for gray in grays]
        images = grays[0][None, None] if len(grays) == 1 else np.stack(grays)[:, None]
        rasters = [item.raster for item in prepared if item.raster is not None]
        raster = np.stack(rasters) if rasters else None
        geometries = [item.geometry for item in prepared]
        return Batch(np.ascontiguousarray(images), geometries, raster, *allowed_pixels(prepared))

    def forward(self, batch: Batch) -> Maps:
        """Heat (B, H, W) and descriptors (B, H/8, W/8, D); the next call overwrites them."""
        # patches are cut from bytes where there are any, which are a quarter of the memory
        images = batch.images if self.runner.takes_bytes else _to_float(batch.images)
        return self.runner.dense(images, batch.raster)

    def postprocess(
        self, maps: Maps, batch: Batch, config: ExtractorConfig, times: StageTimes | None = None
    ) -> HostDescribed:
        """Pick keypoints, refine and describe them."""
        heats = maps.heat if batch.allowed is None else maps.heat * batch.allowed
        found = [
            self.kernels.find_peaks(
                heat,
                radius=config.nms_radius,
                border=config.border,
                size=geometry.resized,
                threshold=config.detection_threshold,
                count=candidates(config.max_keypoints, self.runner.info.passes),
            )
            for heat, geometry in zip(heats, batch.geometries, strict=True)
        ]
        refined = self._refine(batch.images, found, times)
        for _ in range(self.runner.info.passes - 1):
            found, refined = self._refine_again(batch, found, refined, config.max_keypoints, times)
        size, most = (maps.heat.shape[2], maps.heat.shape[1]), config.max_keypoints
        keypoints = np.zeros((len(found), most, 2), np.float32)
        scores = np.zeros(keypoints.shape[:2], np.float32)
        valid = np.zeros(keypoints.shape[:2], np.bool_)
        sigmas = np.zeros_like(scores) if self.runner.info.patch else None
        described = []
        for i, (peaks, extra) in enumerate(zip(found, refined, strict=True)):
            n = len(peaks.x)
            valid[i, :n] = True
            if extra is None or sigmas is None:
                points = centre_of_mass(maps.heat[i], peaks) if config.subpixel else points_of(peaks)
                keypoints[i, :n], scores[i, :n] = points, peaks.scores
                described.append(self.kernels.describe(maps.descriptors[i], points, size))
                continue
            points = keypoints[i, :n]
            order = self.kernels.arrange(
                peaks, extra.position, points, scores[i, :n], sigmas[i, :n], subpixel=config.subpixel
            )
            described.append(self.kernels.describe(maps.descriptors[i], points, size, extra.local, order))
        return HostDescribed(HostKeypoints(keypoints, scores, valid), _stacked(described, most), sigmas)

    def _refine(self, images: Gray, found: list[Peaks], times: StageTimes | None) -> list[Refined | None]:
        """What the refiner says of each image's keypoints; None where there is no refiner, or nothing to refine."""
        side = self.runner.info.patch
        counts = [len(peaks.x) for peaks in found]
        if not side:
            return [None] * len(found)
        if not any(counts):
            nothing = Refined(np.zeros((0, 4), np.float32), np.zeros((0, self.descriptor_dim), np.float32))
            return [nothing] * len(found)
        patches = [self.kernels.cut_patches(image[0], peaks, side) for image, peaks in zip(images, found, strict=True)]
        together = (patches[0] if len(patches) == 1 else np.concatenate(patches))[:, None]
        scores = np.concatenate([peaks.scores for peaks in found])
        began = time.perf_counter()
        result = self.runner.refine(together, scores)
        if times is not None:
            times.add("refinement", time.perf_counter() - began)
        ends = np.cumsum([0, *counts])
        return [Refined(result.position[a:b], result.local[a:b]) for a, b in pairwise(ends)]

    def _refine_again(
        self, batch: Batch, found: list[Peaks], refined: list[Refined | None], most: int, times: StageTimes | None
    ) -> tuple[list[Peaks], list[Refined | None]]:
        """The keypoints at the pixels that the refiner moved them to, and what it says of them there."""
        settled = [
            settle(peaks, one.position, geometry.resized, most)
            for peaks, one, geometry in zip(found, refined, batch.geometries, strict=True)
            if one is not None
        ]
        # what is still on its pixel has its answer
        moved = [Peaks(one.peaks.x[one.moved], one.peaks.y[one.moved], one.peaks.scores[one.moved]) for one in settled]
        answers: list[Refined | None] = []
        for one, before, after in zip(settled, refined, self._refine(batch.images, moved, times), strict=True):
            assert before is not None
            assert after is not None
            answer = Refined(before.position[one.rows], before.local[one.rows])
            answer.position[one.moved], answer.local[one.moved] = after.position, after.local
            answers.append(answer)
        return [one.peaks for one in settled], answers

    def host(self, found: HostDescribed) -> HostDescribed:
        return found

    def synchronize(self) -> None:
        """Nothing runs behind the caller's back."""

    def check(self) -> None:
        """The CPU does not fail."""


def _to_float(images: Gray) -> Float32Array:
    """Grey levels in [0, 1], whatever they are in; the given array itself where they are that already."""
    if images.dtype == np.uint8:
        return np.multiply(images, BYTE, dtype=np.float32)
    floats: Float32Array = np.asarray(images, np.float32)
    return floats


def _stacked(parts: list[Float32Array], most: int) -> Float32Array:
    """(N, D) arrays as one (B, most, D), zeros behind each; not copied where it is all there is."""
    if len(parts) == 1 and len(parts[0]) == most:
        return parts[0][None]
    stacked = np.zeros((len(parts), most, parts[0].shape[1]), np.float32)
    for row, part in zip(stacked, parts, strict=True):
        row[: len(part)] = part
    return stacked
