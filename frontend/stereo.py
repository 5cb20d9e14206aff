"""Stereo pairs: keypoints of the left image found in the right one, and their points in space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frontend.camera import Camera
from frontend.errors import ConfigError, SequenceError
from frontend.geometry import estimate_fundamental
from frontend.mutual import NEVER, mutual_best
from frontend.relative_pose import essential_matrix, homogeneous, ray_depths
from frontend.types import Features, Float32Array, Float64Array, IntArray, Pose, StereoPoints

_ORTHOGONAL = 1e-3  # a rotation in a file has three digits or more


@dataclass(frozen=True, eq=False)
class StereoRig:
    """Two calibrated cameras that do not move against each other: X_right = R X_left + t.

    Attributes:
        left: the camera of the sequence.
        right: the other one.
        R: (3, 3) float64 rotation.
        t: (3,) float64, metres; its length is the baseline.
    """

    left: Camera
    right: Camera
    R: Float64Array
    t: Float64Array

    def __post_init__(self) -> None:
        R, t = np.asarray(self.R, np.float64), np.asarray(self.t, np.float64)
        object.__setattr__(self, "R", R)
        object.__setattr__(self, "t", t)
        if R.shape != (3, 3) or t.shape != (3,):
            raise ConfigError(f"R has shape {R.shape} and t {t.shape}; expected (3, 3) and (3,)")
        turns = np.isfinite(R).all() and np.abs(R @ R.T - np.eye(3)).max() < _ORTHOGONAL and np.linalg.det(R) > 0
        if not turns:
            raise ConfigError(f"R has the rows {R.tolist()}; expected a rotation")
        if not np.isfinite(t).all() or not np.linalg.norm(t) > 0:
            raise ConfigError(f"t is {t.tolist()}; expected a baseline that is not zero, metres")

    @property
    def pose(self) -> Pose:
        """Of the right camera relative to the left one."""
        return Pose(self.R, self.t)

    @property
    def fundamental(self) -> Float64Array:
        """(3, 3) for points of two ideal cameras: normalised coordinates times the focal lengths."""
        first, second = (np.array([1 / c.focal, 1 / c.focal, 1.0]) for c in (self.left, self.right))
        return np.asarray(second[:, None] * essential_matrix(self.pose) * first, np.float64)


def match_stereo(
    left: Features,
    right: Features,
    rig: StereoRig | None = None,
    *,
    min_similarity: float = 0.5,
    threshold: float = 3.0,
) -> StereoPoints:
    """Match a stereo pair, and triangulate where it is calibrated.

    With a rig, a keypoint is only compared with those near its epipolar line, and its point must lie in front of both
    cameras. Without one the matches are verified by a fundamental matrix, and there are none where it is not found.

    Args:
        left: features of the left image.
        right: of the right one, by the same model.
        rig: the calibration.
        min_similarity: least cosine similarity, in [-1, 1].
        threshold: largest Sampson distance to the epipolar geometry, pixels.

    Returns:
        The matches, and their points where there is a rig.

    Raises:
        SequenceError: the features are of different models, or the descriptors have different lengths.
        ConfigError: the threshold is not more than 0.
    """
    if left.descriptors.shape[1] != right.descriptors.shape[1]:
        got, expected = right.descriptors.shape[1], left.descriptors.shape[1]
        raise SequenceError(f"right image has descriptors of length {got}; expected {expected}, as the left one")
    if left.model != right.model:
        raise SequenceError(f"right image is of model '{right.model}'; expected '{left.model}', as the left one")
    if not threshold > 0:
        raise ConfigError(f"threshold is {threshold}; expected more than 0 pixels")
    if not len(left) or not len(right):
        return _matched(right, np.zeros(0, np.int64), np.zeros(0, np.int64), None if rig is None else np.zeros((0, 3)))

    def alike(block: slice) -> Float32Array:
        cosines: Float32Array = left.descriptors[block] @ right.descriptors.T
        return np.where(cosines >= min_similarity, cosines, NEVER)

    if rig is None:
        rows, columns = mutual_best(len(left), len(right), alike)
        pixels0, pixels1 = (f.keypoints.astype(np.float64) for f in (left, right))
        found = estimate_fundamental(pixels0[rows], pixels1[columns], threshold=threshold)
        return _matched(right, rows[found.inliers], columns[found.inliers], None)
    y0 = rig.left.normalise(left.keypoints.astype(np.float64))
    y1 = rig.right.normalise(right.keypoints.astype(np.float64))
    z0, z1, F = y0 * rig.left.focal, y1 * rig.right.focal, rig.fundamental

    def near(block: slice) -> Float32Array:
        # where a distortion has no inverse a point is NaN, and so are its distances, which is not near
        return np.where(_sampson_distances(F, z0[block], z1) <= threshold, alike(block), NEVER)

    rows, columns = mutual_best(len(left), len(right), near)
    points = triangulate(rig, y0[rows], y1[columns])
    ahead = np.isfinite(points).all(1) & (points[:, 2] > 0) & ((points @ rig.R.T + rig.t)[:, 2] > 0)
    return _matched(right, rows[ahead], columns[ahead], points[ahead])


def triangulate(rig: StereoRig, points0: Float64Array, points1: Float64Array) -> Float64Array:
    """Points in space of matches, each moved to the epipolar geometry first.

    The move is the Sampson correction, the first-order approximation of the least one (Hartley & Zisserman, 2nd ed.
    2004, eq. 12.11 with 4.11); rays of what it gives meet but for terms of second order.

    Args:
        rig: the calibration.
        points0: (N, 2) undistorted normalised coordinates of the left camera.
        points1: (N, 2) of the right one.

    Returns:
        (N, 3) float64 in the left camera's frame, metres; behind it, or not finite, where the rays say so.
    """
    F = rig.fundamental
    x0, x1 = homogeneous(points0 * rig.left.focal), homogeneous(points1 * rig.right.focal)
    line1, line0 = x0 @ F.T, x1 @ F
    norm = (line1[:, :2] ** 2).sum(1) + (line0[:, :2] ** 2).sum(1)
    step = (x1 * line1).sum(1) / np.where(norm > 0, norm, 1.0)
    z0 = (x0[:, :2] - step[:, None] * line0[:, :2]) / rig.left.focal
    z1 = (x1[:, :2] - step[:, None] * line1[:, :2]) / rig.right.focal
    depth, _ = ray_depths(rig.pose, z0, z1)
    with np.errstate(invalid="ignore"):  # parallel rays: infinity times zero
        return homogeneous(z0) * depth[:, None]


def _sampson_distances(F: Float64Array, x0: Float64Array, x1: Float64Array) -> Float64Array:
    """(N, M) float64, of all points of one image to all of the other, pixels."""
    lines1, lines0 = homogeneous(x0) @ F.T, homogeneous(x1) @ F
    product = lines1 @ homogeneous(x1).T
    norm = (lines1[:, :2] ** 2).sum(1)[:, None] + (lines0[:, :2] ** 2).sum(1)[None]
    return np.asarray(np.abs(product) / np.sqrt(np.maximum(norm, 1e-300)), np.float64)


def _matched(right: Features, rows: IntArray, columns: IntArray, points: Float64Array | None) -> StereoPoints:
    return StereoPoints(rows.astype(np.int64), right.keypoints[columns], points)
