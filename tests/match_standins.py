"""A stand-in for the pipeline of ``superpoint-match``: as many matches as the image's top-left pixel says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.cli import match as command
from frontend.types import Features, Fundamental, Homography, Matches, MatchResult, Status


class FakeExtractor:
    name = "fake"

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        count = int(image.flat[0]) // 10
        points = np.linspace(1.1, 12.3, 2 * count, dtype=np.float32).reshape(-1, 2)
        scores = np.linspace(0.9, 0.1, count, dtype=np.float32)
        size = (image.shape[1], image.shape[0])
        sigmas = np.full(count, 0.3, np.float32)
        return Features(points, scores, np.zeros((count, 4), np.float32), size, self.name, sigmas)


class FakePipeline:
    extractor = FakeExtractor()

    def __init__(self, geometry: str) -> None:
        self.geometry = geometry

    def match(
        self, image0: np.ndarray, image1: np.ndarray, features0: Features | None = None, **_: object
    ) -> MatchResult:
        return self._match(features0 or self.extractor.extract(image0), self.extractor.extract(image1))

    def _match(self, features0: Features, features1: Features) -> MatchResult:
        count = min(len(features0), len(features1))
        pairs = np.stack([np.arange(count)] * 2, axis=1)
        matches = Matches(pairs, np.linspace(1, 0.5, count, dtype=np.float32))
        found = count >= 4
        status = Status.OK if found else Status.TOO_FEW_MATCHES
        model = np.eye(3) + 1e-3 if found else None
        inliers = np.arange(count) < 3 * count // 4 if found else np.zeros(count, bool)
        geometry: Homography | Fundamental = Homography(model, inliers, status)
        if self.geometry == "fundamental":
            geometry = Fundamental(model, inliers, status)
        elif self.geometry == "none":
            geometry = Homography(None, np.zeros(count, bool), Status.NOT_REQUESTED)
        return MatchResult(features0, features1, matches, geometry, {"network": 12.34567, "matching": 1.0})


def image_file(path: Path, level: int, size: tuple[int, int] = (40, 30)) -> Path:
    """An image for which the stand-in finds level / 10 keypoints."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((size[1], size[0], 3), level, np.uint8))
    return path


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that has to fail on its input; return the one line that it prints."""
    try:
        code = run(*arguments)
    except SystemExit as ended:  # argparse
        code = int(str(ended.code))
    printed = capfd.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("superpoint-match: ")
    return printed.err
