"""Which model explains the motion between two frames: a homography or a fundamental matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from frontend.geometry import epipolar_distances, estimate_fundamental
from frontend.homography import warp_points
from frontend.homography_estimation import estimate_homography
from frontend.ransac_config import as_matches
from frontend.types import BoolArray, Float64Array, Fundamental, Homography

# limits of squared errors at 95 % for noise of 1 px, of two and of one degree of freedom (Mur-Artal et al. 2015)
_CHI2_HOMOGRAPHY = 5.99
_CHI2_FUNDAMENTAL = 3.84
_HOMOGRAPHY_SHARE = 0.45


@dataclass(frozen=True)
class Motion:
    """The model chosen, and both scores.

    Attributes:
        model: "homography" (a plane, or a camera that only turned), "fundamental" (depth and baseline) or "none".
        matrix: (3, 3) float64 of that model, image 0 to image 1; None without one.
        inliers: (M,) bool, matches that the model explains.
        homography_share: S_H / (S_H + S_F) in [0, 1]; 0 without a model.
    """

    model: str
    matrix: Float64Array | None
    inliers: BoolArray
    homography_share: float


def _score(squared: Float64Array, limit: float) -> float:
    """Truncated errors: best is ``_CHI2_HOMOGRAPHY`` for each match, for both models alike, so that they compare."""
    return float(np.where(squared < limit, _CHI2_HOMOGRAPHY - squared, 0.0).sum())


def estimate_motion(points0: ArrayLike, points1: ArrayLike, *, threshold: float = 2.0, seed: int = 0) -> Motion:
    """Fit both models and choose (Mur-Artal, Montiel, Tardos: ORB-SLAM, 2015, section IV).

    The homography is taken where it has more than 0.45 of the sum of both scores: where the scene is a plane or
    there is little parallax, the fundamental matrix is not determined although it fits.

    Args:
        points0: (M, 2) matched points of frame 0, pixels.
        points1: (M, 2) of frame 1.
        threshold: largest error of an inlier, pixels; the noise is taken to be half of it along an axis.
        seed: of the random generator.

    Returns:
        The model; "none" where neither is more than what random matches would give.

    Raises:
        ShapeError: the points are not both (M, 2) and real.
        ConfigError: the threshold is out of its range.
    """
    x0, x1 = as_matches(points0, points1)
    plane: Homography = estimate_homography(x0, x1, threshold=threshold, seed=seed)
    depth: Fundamental = estimate_fundamental(x0, x1, threshold=threshold, seed=seed)
    noise = (threshold / 2) ** 2
    scores = [0.0, 0.0]
    if plane.H is not None:
        forward = np.square(warp_points(x0, plane.H) - x1).sum(axis=1)
        backward = np.square(warp_points(x1, np.linalg.inv(plane.H)) - x0).sum(axis=1)
        scores[0] = _score(forward / noise, _CHI2_HOMOGRAPHY) + _score(backward / noise, _CHI2_HOMOGRAPHY)
    if depth.F is not None:
        first, second = epipolar_distances(depth.F, x0, x1)
        scores[1] = _score(first / noise, _CHI2_FUNDAMENTAL) + _score(second / noise, _CHI2_FUNDAMENTAL)
    if not sum(scores):
        return Motion("none", None, np.zeros(len(x0), dtype=bool), 0.0)
    share = scores[0] / sum(scores)
    if share > _HOMOGRAPHY_SHARE:
        return Motion("homography", plane.H, plane.inliers, share)
    return Motion("fundamental", depth.F, depth.inliers, share)
