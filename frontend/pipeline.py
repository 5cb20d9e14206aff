"""Two images to their matches and the geometry between them."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from frontend.camera import Camera
from frontend.errors import ConfigError
from frontend.extraction import check_mask
from frontend.extractor import StageTimes, SuperPoint
from frontend.geometry import estimate_essential, estimate_fundamental
from frontend.homography_estimation import estimate_homography, match_sigmas
from frontend.image import check_pixels
from frontend.matching import match_features
from frontend.matching.base import check_limits_of
from frontend.ransac_config import RansacConfig
from frontend.types import Essential, Features, Float32Array, Fundamental, Homography, Matches, MatchResult, Status
from frontend.weights import released_matcher

GEOMETRIES = ("homography", "fundamental", "essential", "none")
RANSAC_METHODS = ("ransac", "opencv")


@dataclass(frozen=True)
class PipelineConfig:
    """Settings of the pipeline.

    Attributes:
        matcher: a name in the registry of matchers, or a weight file; see :func:`frontend.matching.match_features`.
        ratio: see :func:`frontend.matching.nearest.mutual_nearest_neighbours`; None is no ratio test.
        min_similarity: the same.
        geometry: model fitted to the matches: "homography", "fundamental", "essential" (needs cameras) or "none".
        ransac_method: of a homography: "ransac", or "opencv".
        ransac_threshold: largest error of an inlier, pixels of the original images; as in
            :class:`frontend.ransac_config.RansacConfig`.
        rotations: 1, or 4 to try image 1 at 0, 90, 180 and 270 degrees and keep the best.
        seed: of the robust estimation.

    Raises:
        ConfigError: a setting is out of its range, or the matcher has no such limit.
        RegistryError: the matcher is unknown.
    """

    matcher: str = "mnn"
    ratio: float | None = None
    min_similarity: float | None = None
    geometry: str = "homography"
    ransac_method: str = "ransac"
    ransac_threshold: float = 3.0
    rotations: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES:
            raise ConfigError(f"geometry is '{self.geometry}'; expected one of: {', '.join(GEOMETRIES)}")
        if self.ransac_method not in RANSAC_METHODS:
            raise ConfigError(f"ransac_method is '{self.ransac_method}'; expected one of: {', '.join(RANSAC_METHODS)}")
        if self.rotations not in (1, 4):
            raise ConfigError(f"rotations is {self.rotations}; expected 1 or 4")
        # refused here, and not when the first pair has been extracted
        check_limits_of(self.matcher, self.ratio, self.min_similarity)
        if not isinstance(self.seed, Integral):
            raise ConfigError(f"seed is {self.seed!r:.64}; expected a whole number")
        if not isinstance(self.ransac_threshold, Real):
            raise ConfigError(f"ransac_threshold is {self.ransac_threshold!r:.64}; expected a number of pixels")
        RansacConfig(self.ransac_threshold, seed=self.seed)


class MatchPipeline:
    """Extract, match, fit.

    Args:
        extractor: makes the features.
        config: settings.
        cameras: those of image 0 and image 1; only an essential matrix needs them.

    Raises:
        ConfigError: an essential matrix is asked for without cameras, or the config is none.
    """

    def __init__(
        self,
        extractor: SuperPoint,
        config: PipelineConfig | None = None,
        cameras: tuple[Camera, Camera] | None = None,
    ) -> None:
        self.extractor = extractor
        if not isinstance(config, (PipelineConfig, type(None))):
            raise ConfigError(f"config is a {type(config).__name__}; expected a PipelineConfig")
        self.config = config or PipelineConfig()
        self.cameras = cameras
        self._sure = self.config.matcher != "lightglue"  # that there is a matcher for what the extractor makes
        if self.config.geometry == "essential" and cameras is None:
            raise ConfigError("geometry is 'essential' without cameras; expected those of both images")

    def match(
        self,
        image0: np.ndarray,
        image1: np.ndarray,
        features0: Features | None = None,
        *,
        mask0: np.ndarray | None = None,
        mask1: np.ndarray | None = None,
    ) -> MatchResult:
        """Match two images.

        Args:
            image0: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, uint16, or float in [0, 1].
            image1: the same.
            features0: features of image 0 at hand already.
            mask0: where keypoints of image 0 may be, (H, W) bool or uint8, nonzero there; anywhere without.
            mask1: the same of image 1.

        Returns:
            Keypoints in pixels of the images as given, whatever rotation won.

        Raises:
            ShapeError: an image or a mask has another shape or type.
            WeightsError: the matcher is "lightglue", and none was released for the extractor's model.
        """
        if not self._sure:
            # not when the images have been extracted; nor before, as features at hand may be of another model
            released_matcher(self.extractor.name)
            self._sure = True
        for image in (image1,) if features0 is not None else (image0, image1):
            check_pixels(image)
        # before they are turned, which asks for two axes
        for image, mask in ((image1, mask1),) if features0 is not None else ((image0, mask0), (image1, mask1)):
            if mask is not None:
                check_mask(mask, *image.shape[:2])
        times = StageTimes()
        turns = range(self.config.rotations)
        views = [np.ascontiguousarray(np.rot90(image1, turn)) for turn in turns]
        masks = [None if mask1 is None else np.rot90(mask1, turn) for turn in turns]
        if features0 is None:
            views, masks = [image0, *views], [mask0, *masks]
        extracted = self.extractor.extract_batch(views, times, masks=masks)
        first = extracted[0] if features0 is None else features0
        size = (image1.shape[1], image1.shape[0])
        results = [
            # matched as they were seen: a learned matcher looks at descriptors and positions together
            self._fit_to(first, _turned_back(second, turn, size), self._match(first, second, times), times)
            for second, turn in zip(extracted[-len(turns) :], turns, strict=True)
        ]
        best = max(results, key=lambda result: (result.geometry.num_inliers, len(result.matches)))
        return dataclasses.replace(best, timings_ms=times.ms)

    def match_features(self, features0: Features, features1: Features, times: StageTimes | None = None) -> MatchResult:
        """Match features at hand and fit the geometry.

        Args:
            features0: of image 0.
            features1: of image 1.
            times: where the stages' times are added.
        """
        times = times or StageTimes()
        return self._fit_to(features0, features1, self._match(features0, features1, times), times)

    def _match(self, features0: Features, features1: Features, times: StageTimes) -> Matches:
        config = self.config
        began = time.perf_counter()
        matches = match_features(
            features0,
            features1,
            matcher=config.matcher,
            ratio=config.ratio,
            min_similarity=config.min_similarity,
            device=str(self.extractor.device),
        )
        times.add("matching", time.perf_counter() - began)
        return matches

    def _fit_to(self, features0: Features, features1: Features, matches: Matches, times: StageTimes) -> MatchResult:
        began = time.perf_counter()
        geometry = self._fit(features0, features1, matches)
        times.add("geometry", time.perf_counter() - began)
        return MatchResult(features0, features1, matches, geometry, times.ms)

    def _fit(self, features0: Features, features1: Features, matches: Matches) -> Homography | Fundamental | Essential:
        config = self.config
        points0 = features0.keypoints[matches.matches[:, 0]]
        points1 = features1.keypoints[matches.matches[:, 1]]
        if config.geometry == "none":
            return Homography(None, np.zeros(len(matches), dtype=bool), Status.NOT_REQUESTED)
        if config.geometry == "fundamental":
            return estimate_fundamental(points0, points1, threshold=config.ransac_threshold, seed=config.seed)
        if config.geometry == "essential" and self.cameras is not None:
            camera0, camera1 = self.cameras
            return estimate_essential(
                points0,
                points1,
                camera0,
                camera1,
                sigmas=match_sigmas(features0, features1, matches),
                threshold=config.ransac_threshold,
                seed=config.seed,
            )
        return estimate_homography(
            points0,
            points1,
            sigmas=match_sigmas(features0, features1, matches),
            method="opencv" if config.ransac_method == "opencv" else "ransac",
            threshold=config.ransac_threshold,
            seed=config.seed,
        )


def _turned_back(features: Features, turn: int, size: tuple[int, int]) -> Features:
    """Carry keypoints of ``np.rot90(image, turn)`` back to the image, whose (width, height) is ``size``."""
    x, y = features.keypoints.T
    width, height = size
    back = {0: (x, y), 1: (width - 1 - y, x), 2: (width - 1 - x, height - 1 - y), 3: (y, height - 1 - x)}[turn]
    keypoints: Float32Array = np.stack(back, axis=1).astype(np.float32)
    return dataclasses.replace(features, keypoints=keypoints, image_size=size)
