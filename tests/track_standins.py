"""An extractor that knows what it sees: the level of an image is the number of a camera's place in a made world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from test_tracking import SIZE, World

from frontend.extraction import Batch, ExtractorConfig, HostDescribed, HostKeypoints, Prepared
from frontend.extractor import SuperPoint
from frontend.types import Features

STEP_M = 0.03
BASELINE_M = 0.2
LEVELS = 10  # between the levels of two places: a lossy video keeps them apart


class WorldBackend:
    """Sees the world of ``test_tracking`` from x = number * STEP_M, and from BASELINE_M to the right of it where the
    top-left pixel is lighter than the one at the bottom right."""

    device, runtime, precision, encoder, descriptor_dim = "cpu", "stand-in", "float32", "none", 64
    refines = takes_bytes = True

    def __init__(self) -> None:
        self.world = World()
        self.seen: dict[tuple[int, bool], Features] = {}
        for number in range(25):
            for right in (False, True):
                self.seen[number, right] = self.world.see(number * STEP_M + right * BASELINE_M)[0]

    def stack(self, prepared: Sequence[Prepared]) -> Batch:
        grays, masks = [item.gray for item in prepared], [item.mask for item in prepared]
        return Batch(grays, [item.geometry for item in prepared], masks=masks)

    def forward(self, batch: Batch) -> Any:
        return [(round(int(gray[0, 0]) / LEVELS), int(gray[0, 0]) > int(gray[-1, -1]) + 2) for gray in batch.images]

    def postprocess(self, maps: Any, batch: Batch, config: ExtractorConfig, times: Any = None) -> Any:
        return maps

    def host(self, found: Any) -> HostDescribed:
        (key,) = found
        seen = self.seen[key]
        count = len(seen)
        keypoints = HostKeypoints(seen.keypoints[None], seen.scores[None], np.ones((1, count), bool))
        return HostDescribed(keypoints, seen.descriptors[None], np.full((1, count), 0.25, np.float32))

    def synchronize(self) -> None: ...

    def check(self) -> None: ...


def world_extractor(*_: Any, config: ExtractorConfig | None = None, **__: Any) -> SuperPoint:
    """In the place of ``SuperPoint.from_pretrained``."""
    return SuperPoint.of(WorldBackend(), name="stand-in", config=config)


def picture(number: int, right: bool = False, size: tuple[int, int] = SIZE) -> np.ndarray:
    """What stands for the world as it is seen from a place, (H, W) uint8."""
    image = np.full(size[::-1], number * LEVELS, np.uint8)
    if right:
        image[-8:, -8:] = max(0, number * LEVELS - 8) if number else 0
        image[:8, :8] = number * LEVELS + 4
    return image


def write_picture(path: Path, number: int, right: bool = False, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(number, right, size))
    return path
