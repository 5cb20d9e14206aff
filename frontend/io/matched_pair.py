"""One pair of images of a folder: matched, and the geometry between them estimated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frontend.camera import Camera
from frontend.errors import ConfigError
from frontend.geometry import estimate_essential, estimate_fundamental
from frontend.homography_estimation import estimate_homography, match_sigmas
from frontend.matching import check_matcher, match_features
from frontend.matching.base import check_limits
from frontend.ransac_config import RansacConfig
from frontend.types import Essential, Features, Fundamental, Homography, Matches

GEOMETRIES = ("fundamental", "essential", "homography", "none")

_ESSENTIAL_SAMPLES = 2_000
"""Samples at most of an essential matrix: on all pairs of 17 frames of a desk 2,000 find 86 models in 22 ms a pair,
10,000 find 88 in 59 ms."""


@dataclass(frozen=True)
class MatchConfig:
    """How the pairs of a folder are matched.

    Attributes:
        matcher: see :func:`frontend.matching.match_features`.
        ratio: the same.
        min_similarity: the same.
        geometry: model that is fitted to the matches: "fundamental", "essential" (of images by ``camera``),
            "homography" (of planes, and of a camera that only turned) or "none".
        threshold: largest error of an inlier, pixels of the images as they were given.
        camera: of all images; only an essential matrix needs it.
        device: where to match; geometry is the CPU's.

    Raises:
        ConfigError: a setting is out of its range, or an essential matrix is asked for without a camera.
        RegistryError: there is no such matcher.
    """

    matcher: str = "mnn"
    ratio: float | None = None
    min_similarity: float | None = None
    geometry: str = "fundamental"
    threshold: float = 3.0
    camera: Camera | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_matcher(self.matcher)
        check_limits(self.ratio, self.min_similarity)
        RansacConfig(self.threshold)
        if self.geometry not in GEOMETRIES:
            raise ConfigError(f"geometry is '{self.geometry}'; expected one of: {', '.join(GEOMETRIES)}")
        if self.geometry == "essential" and self.camera is None:
            raise ConfigError("geometry is 'essential' without a camera; expected that of the images")


@dataclass(frozen=True, eq=False)
class MatchedPair:
    """What a pair of images has in common.

    Attributes:
        matches: of image 0 and image 1.
        geometry: between the images, pixels with (0, 0) the centre of the first; None where none was asked for.
    """

    matches: Matches
    geometry: Homography | Fundamental | Essential | None


def check_matching(features: Features, config: MatchConfig) -> None:
    """Load the matcher and match a few keypoints drawn at random, as features such as these are going to be.

    Raises:
        FrontendError: it cannot match them, or not with such limits.
    """
    rng = np.random.default_rng(0)
    descriptors = rng.standard_normal((8, features.descriptors.shape[1]), np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    points = rng.uniform(0, 63, (8, 2)).astype(np.float32)
    few = Features(points, np.ones(8, np.float32), descriptors, (64, 64), features.model)
    _match(few, few, config)


def _match(features0: Features, features1: Features, config: MatchConfig) -> Matches:
    return match_features(
        features0,
        features1,
        matcher=config.matcher,
        ratio=config.ratio,
        min_similarity=config.min_similarity,
        device=config.device,
    )


def match_pair(features0: Features, features1: Features, config: MatchConfig) -> MatchedPair:
    """Match the features of two images, and fit the geometry. Threads may do so at the same time.

    Raises:
        FrontendError: the matcher cannot match such features; see :func:`frontend.matching.match_features`.
    """
    matches = _match(features0, features1, config)
    points0 = features0.keypoints[matches.matches[:, 0]]
    points1 = features1.keypoints[matches.matches[:, 1]]
    sigmas = match_sigmas(features0, features1, matches)
    geometry: Homography | Fundamental | Essential | None = None
    if config.geometry == "fundamental":
        geometry = estimate_fundamental(points0, points1, threshold=config.threshold)
    elif config.geometry == "homography":
        geometry = estimate_homography(points0, points1, sigmas=sigmas, threshold=config.threshold)
    elif config.geometry == "essential" and config.camera is not None:
        geometry = estimate_essential(
            points0,
            points1,
            config.camera,
            config.camera,
            sigmas=sigmas,
            threshold=config.threshold,
            max_iterations=_ESSENTIAL_SAMPLES,
        )
    return MatchedPair(matches, geometry)
