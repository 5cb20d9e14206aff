"""Fixtures shared by all tests: seeded random numbers and images made on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from frontend import homography_cpu
from frontend.kernels import HomographyKernels


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exported graphs of all tests, and of the processes that they start, in one folder of their own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def kernels_of_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Homographies are computed in NumPy until a test loads the compiled kernels, whatever ran before it."""
    monkeypatch.setattr("frontend.kernels._homography", homography_cpu)


@pytest.fixture(params=["numpy", "numba"])
def homography_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HomographyKernels:
    """Each of the kernels, which are those that are taken."""
    from frontend import homography_native

    chosen: HomographyKernels = homography_cpu if request.param == "numpy" else homography_native
    monkeypatch.setattr("frontend.kernels._homography", chosen)
    return chosen


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def make_scene() -> Callable[..., np.ndarray]:
    """A function (height, width, seed) -> (H, W, 3) uint8 BGR: overlapping random polygons, full of corners."""

    def make(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        image = np.full((height, width, 3), 128, np.uint8)
        for _ in range(60):
            centre = random.uniform((0, 0), (width, height))
            corners = centre + random.uniform(-0.2, 0.2, (random.integers(3, 6), 2)) * max(width, height)
            cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], random.integers(0, 256, 3).tolist())
        return cv2.GaussianBlur(image, (0, 0), 0.8)

    return make
