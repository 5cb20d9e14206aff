"""Estimators of relative pose behind one call, and the errors of what they find."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from frontend.camera import Camera
from frontend.geometry import estimate_essential
from frontend.relative_pose import decompose_essential
from frontend.types import BoolArray, Float64Array, Pose

_ITERATIONS = 10_000
_CONFIDENCE = 0.9999


class Matched(NamedTuple):
    """Matches of two calibrated images.

    Attributes:
        points0: (M, 2) pixels of image 0.
        points1: (M, 2) of image 1.
        camera0: of image 0.
        camera1: of image 1.
        sigmas: (M,) standard deviations of the matches; None where they are not known.
    """

    points0: Float64Array
    points1: Float64Array
    camera0: Camera
    camera1: Camera
    sigmas: Float64Array | None = None

    def ideal(self) -> tuple[Float64Array, Float64Array, float]:
        """Both points normalised, and one focal length, pixels, for cameras without distortion to have."""
        focal = float(np.sqrt(self.camera0.focal * self.camera1.focal))
        return self.camera0.normalise(self.points0), self.camera1.normalise(self.points1), focal


Estimate = Callable[[Matched, float, int], tuple[Pose | None, BoolArray]]
"""Matches, threshold (pixels) and seed to a pose (None: not found) and (M,) inliers."""


def rotation_error(estimate: Float64Array, truth: Float64Array) -> float:
    """Angle of the rotation between two rotations, degrees in [0, 180]; exact also near 0 and 180."""
    # |A - B| = 2 sqrt(2) sin(angle / 2), which unlike the arc cosine of the trace is well-conditioned at 0
    sine = float(np.linalg.norm(estimate - truth)) / (2 * np.sqrt(2.0))
    return float(np.degrees(2 * np.arcsin(min(1.0, sine))))


def translation_error(estimate: Float64Array, truth: Float64Array) -> float:
    """Angle between two directions up to sign, degrees in [0, 90].

    An essential matrix does not know the sign of its translation; that it is left out is the protocol of SuperGlue
    and of those after it.
    """
    cross = float(np.linalg.norm(np.cross(estimate, truth)))
    return float(np.degrees(np.arctan2(cross, abs(float(estimate @ truth)))))


def _opencv(given: Matched, threshold: float, seed: int) -> tuple[Pose | None, BoolArray]:
    y0, y1, focal = given.ideal()
    ideal = np.diag([focal, focal, 1.0])
    found, mask = cv2.findEssentialMat(
        y0 * focal, y1 * focal, ideal, cv2.USAC_MAGSAC, _CONFIDENCE, threshold, maxIters=_ITERATIONS
    )
    if found is None or found.shape != (3, 3) or not np.isfinite(found).all():
        return None, np.zeros(len(given.points0), np.bool_)
    inliers = np.asarray(mask[:, 0] > 0, np.bool_)
    return decompose_essential(np.asarray(found, np.float64), y0[inliers], y1[inliers]), inliers


def _frontend(given: Matched, threshold: float, seed: int) -> tuple[Pose | None, BoolArray]:
    found = estimate_essential(
        given.points0,
        given.points1,
        given.camera0,
        given.camera1,
        sigmas=given.sigmas,
        threshold=threshold,
        confidence=_CONFIDENCE,
        max_iterations=_ITERATIONS,
    )
    return (None if found.R is None or found.t is None else Pose(found.R, found.t)), found.inliers


def _poselib(given: Matched, threshold: float, seed: int) -> tuple[Pose | None, BoolArray]:
    import poselib

    y0, y1, focal = given.ideal()
    ideal = {"model": "SIMPLE_PINHOLE", "width": 1, "height": 1, "params": [focal, 0.0, 0.0]}
    options = {
        "max_epipolar_error": threshold,
        "success_prob": _CONFIDENCE,
        "max_iterations": _ITERATIONS,
        "seed": seed,
    }
    found, info = poselib.estimate_relative_pose(y0 * focal, y1 * focal, ideal, ideal, options, {})
    inliers = np.asarray(info["inliers"], np.bool_)
    if not inliers.any():
        return None, np.zeros(len(given.points0), np.bool_)
    return Pose(np.asarray(found.R, np.float64), np.asarray(found.t, np.float64)), inliers


ESTIMATORS: dict[str, Estimate] = {"opencv": _opencv, "frontend": _frontend, "poselib": _poselib}
"""OpenCV's USAC_MAGSAC, this project's (the same, then refined and verified), and PoseLib's LO-RANSAC."""
