"""An extractor that knows what it sees: the level of an image is the number of a camera's place in a made world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_tracking import SIZE, World

from frontend.cli.main import main
from frontend.extraction import Batch, ExtractorConfig, HostDescribed, HostKeypoints, Prepared
from frontend.extractor import SuperPoint
from frontend.types import Features

STEP_M = 0.03
BASELINE_M = 0.2
CAMERA = "500,500,319.5,239.5"
FIRST_NS, STEP_NS = 1403636579763555584, 50_000_000
TURN = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # from a camera to the same one on its side
LEVELS = 10  # between the levels of two places: a lossy video keeps them apart


class WorldBackend:
    """Sees the world of ``test_tracking`` from x = number * STEP_M, and from BASELINE_M to the right of it where the
    top-left pixel is lighter than the one at the bottom right; by a camera that is turned by TURN where the image is
    higher than wide."""

    device, runtime, precision, encoder, descriptor_dim = "cpu", "stand-in", "float32", "none", 64
    refines = takes_bytes = lends = True

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
        return [
            (round(int(gray[0, 0]) / LEVELS), int(gray[0, 0]) > int(gray[-1, -1]) + 2, gray.shape[0] > gray.shape[1])
            for gray in batch.images
        ]

    def postprocess(self, maps: Any, batch: Batch, config: ExtractorConfig, times: Any = None) -> Any:
        return maps

    def host(self, found: Any) -> HostDescribed:
        ((number, right, turned),) = found
        seen = self.seen[number, right]
        count = len(seen)
        points = seen.keypoints
        if turned:
            points = np.stack([points[:, 1], SIZE[0] - 1 - points[:, 0]], axis=1)
        keypoints = HostKeypoints(points[None], seen.scores[None], np.ones((1, count), bool))
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


def euroc(root: Path, numbers: range = range(12), camera: str = "cam0", size: tuple[int, int] = SIZE) -> Path:
    """A folder as EuRoC's, of what stands for the places of a camera."""
    folder = root / "mav0" / camera
    stamps = [FIRST_NS + n * STEP_NS for n in numbers]
    for n, stamp in zip(numbers, stamps, strict=True):
        write_picture(folder / "data" / f"{stamp}.png", n, right=camera == "cam1", size=size)
    rows = "".join(f"{stamp},{stamp}.png\n" for stamp in stamps)
    (folder / "data.csv").write_text(f"#timestamp [ns],filename\n{rows}")
    return folder


def write_video(path: Path, numbers: range, fps: float, right: bool = False) -> Path:
    """A video of what stands for the places of a camera."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, SIZE)
    assert writer.isOpened()
    for n in numbers:
        writer.write(cv2.cvtColor(picture(n, right), cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def run(*arguments: object) -> int:
    """``superpoint track``."""
    return main(["track", *(str(argument) for argument in arguments)])


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that has to fail on its input; return the one line that it prints."""
    try:
        code = run(*arguments)
    except SystemExit as ended:  # argparse
        code = int(str(ended.code))
    printed = capfd.readouterr()
    assert code == 2
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("superpoint track: ")
    return printed.err
