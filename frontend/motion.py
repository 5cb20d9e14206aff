"""Which model explains the motion between two frames: a homography, a fundamental or an essential matrix."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

from frontend.camera import Camera
from frontend.geometry import epipolar_distances, estimate_essential, estimate_fundamental
from frontend.homography import warp_points
from frontend.homography_estimation import estimate_homography
from frontend.ransac_config import FARTHEST, RansacConfig, as_matches
from frontend.relative_pose import essential_matrix, homogeneous, in_front, refine_pose
from frontend.types import BoolArray, Essential, Float64Array, Fundamental, Homography, Pose

# limits of squared errors at 95 % for noise of 1 px, of two and of one degree of freedom (Mur-Artal et al. 2015)
_CHI2_HOMOGRAPHY = 5.99
_CHI2_FUNDAMENTAL = 3.84
_HOMOGRAPHY_SHARE = 0.45
# Of the score of a freer model, what a model with fewer degrees of freedom has to reach to be preferred.
_ESSENTIAL_SHARE = 0.9
_ROTATION_SHARE = 0.95


@dataclass(frozen=True, eq=False)
class Motion:
    """The model chosen.

    Attributes:
        model: "homography" (a plane, or a camera that only turned), "essential" (depth and baseline, and a camera that
            is known), "fundamental" (without one, or where the motion contradicts it) or "none".
        matrix: (3, 3) float64 of that model, image 0 to image 1; None without one. An essential matrix is of
            normalised coordinates, the others are of pixels, undistorted where a camera with distortion is known.
        inliers: (M,) bool, matches that the model explains.
        pose: of image 1 relative to image 0, t of unit norm, or zero where the camera has only turned; None without a
            camera, for a fundamental matrix, or without a model.
    """

    model: str
    matrix: Float64Array | None
    inliers: BoolArray
    pose: Pose | None = None


def _score(squared: Float64Array, limit: float) -> float:
    """Truncated errors: best is ``_CHI2_HOMOGRAPHY`` for each match, for all models alike, so that they compare."""
    return float(np.where(squared < limit, _CHI2_HOMOGRAPHY - squared, 0.0).sum())


def _transfer_score(H: Float64Array, x0: Float64Array, x1: Float64Array, noise: float) -> float:
    forward = np.square(warp_points(x0, H) - x1).sum(axis=1)
    backward = np.square(warp_points(x1, np.linalg.inv(H)) - x0).sum(axis=1)
    return _score(forward / noise, _CHI2_HOMOGRAPHY) + _score(backward / noise, _CHI2_HOMOGRAPHY)


def _epipolar_score(matrix: Float64Array, x0: Float64Array, x1: Float64Array, noise: float) -> float:
    first, second = epipolar_distances(matrix, x0, x1)
    return _score(first / noise, _CHI2_FUNDAMENTAL) + _score(second / noise, _CHI2_FUNDAMENTAL)


class _Calibrated:
    """Matches in an ideal camera of the same focal length, whose principal point is (0, 0).

    Args:
        x0: (M, 2) pixels.
        x1: (M, 2).
        camera: of both.
        noise: variance of a coordinate, px^2.
    """

    def __init__(self, x0: Float64Array, x1: Float64Array, camera: Camera, noise: float) -> None:
        self.camera, self.noise = camera, noise
        self.y0, self.y1 = camera.normalise(x0), camera.normalise(x1)
        # NaN where a distortion has no inverse
        self.usable = np.isfinite(self.y0).all(1) & np.isfinite(self.y1).all(1)
        self.z0, self.z1 = (y[self.usable] * camera.focal for y in (self.y0, self.y1))
        self.scale = np.diag([1 / camera.focal, 1 / camera.focal, 1.0])

    def essential_score(self, E: Float64Array) -> float:
        """Of all matches."""
        return _epipolar_score(self.scale @ E @ self.scale, self.z0, self.z1, self.noise)

    def pose_of_homography(self, inliers: BoolArray, threshold: float, essential: Essential) -> Pose | None:
        """The pose behind a homography.

        A rotation, where it explains the inliers nearly as well as a homography of them does. Otherwise the camera
        moved along a plane, which two poses explain alike; of these, and of the pose that the essential matrix gave,
        the one is taken that explains most of all matches, those off the plane included.
        """
        inside = inliers[self.usable]
        z0, z1 = self.z0[inside], self.z1[inside]
        if len(z0) < 4:
            return None
        found, _ = cv2.findHomography(z0, z1, 0)
        if found is None or not np.isfinite(found).all() or abs(np.linalg.det(found)) < 1e-12:
            return None
        plane: Float64Array = np.asarray(found, np.float64)
        R = _rotation_between(homogeneous(z0 / self.camera.focal), homogeneous(z1 / self.camera.focal))
        back = np.linalg.inv(self.scale)
        turned = _transfer_score(back @ R @ self.scale, z0, z1, self.noise)
        if turned >= _ROTATION_SHARE * _transfer_score(plane, z0, z1, self.noise):
            return Pose(R, np.zeros(3))
        y0, y1 = z0 / self.camera.focal, z1 / self.camera.focal
        candidates = _poses_of_plane(self.scale @ plane @ back, y0)
        if essential.R is not None and essential.t is not None:
            candidates.append(Pose(essential.R, essential.t))
        focals = (self.camera.focal, self.camera.focal)
        refined = [refine_pose(pose, y0, y1, focals=focals, threshold=threshold) for pose in candidates]
        scored = [(self.essential_score(essential_matrix(pose)), in_front(pose, y0, y1), pose) for pose in refined]
        return max(scored, key=lambda found: found[:2])[2] if scored else None


def _rotation_between(rays0: Float64Array, rays1: Float64Array) -> Float64Array:
    """The rotation that brings rays (N, 3) onto others, in the least-squares sense (Kabsch 1976)."""
    first, second = (rays / np.linalg.norm(rays, axis=1, keepdims=True) for rays in (rays0, rays1))
    left, _, right = np.linalg.svd(second.T @ first)
    sign = np.sign(np.linalg.det(left @ right))
    return np.asarray(left @ np.diag([1.0, 1.0, sign]) @ right, np.float64)


def _poses_of_plane(H: Float64Array, y0: Float64Array) -> list[Pose]:
    """Poses behind a homography of normalised points that see the plane from the front (Malis, Vargas 2007)."""
    _, rotations, translations, normals = cv2.decomposeHomographyMat(H, np.eye(3))
    found = []
    for R, t, normal in zip(rotations, translations, normals, strict=True):
        length = float(np.linalg.norm(t))
        facing = homogeneous(y0) @ normal[:, 0]
        if length > 1e-9 and (facing > 0).mean() > 0.5:
            found.append(Pose(np.asarray(R, np.float64), np.asarray(t[:, 0] / length, np.float64)))
    return found


def estimate_motion(
    points0: ArrayLike,
    points1: ArrayLike,
    *,
    threshold: float = 2.0,
    camera: Camera | None = None,
) -> Motion:
    """Fit the models and choose (Mur-Artal, Montiel, Tardos: ORB-SLAM, 2015, section IV).

    The homography is taken where it has more than 0.45 of the sum of its score and that of the epipolar model: where
    the scene is a plane or there is little parallax, that is not determined although it fits. With a camera the
    epipolar model is an essential matrix, unless a fundamental matrix explains clearly more: then the camera is not
    the one that took the images.

    Args:
        points0: (M, 2) matched points of frame 0, pixels.
        points1: (M, 2) of frame 1.
        threshold: largest error of an inlier, pixels; the noise is taken to be half of it along an axis.
        camera: of both frames, where it is known.

    Returns:
        The model; "none" where neither is more than what random matches would give.

    Raises:
        ShapeError: the points are not both (M, 2) and real.
        ConfigError: the threshold is out of its range.
    """
    RansacConfig(threshold)  # refuses what is out of range
    x0, x1 = as_matches(points0, points1)
    beyond = ~(np.abs(np.hstack((x0, x1))) <= FARTHEST).all(axis=1)
    x0[beyond] = x1[beyond] = np.nan  # which no model explains
    noise = (threshold / 2) ** 2
    calibrated: _Calibrated | None = None
    if camera is not None:
        calibrated = _Calibrated(x0, x1, camera, noise)
        # all models of the same points: what a lens bends no homography explains, and a freer model seems to
        x0, x1 = camera.undistort(x0), camera.undistort(x1)
    # a single problem: OpenCV is done with it before the batched estimator has begun
    plane: Homography = estimate_homography(x0, x1, method="opencv", threshold=threshold)
    depth: Fundamental = estimate_fundamental(x0, x1, threshold=threshold)
    planar = 0.0 if plane.H is None else _transfer_score(plane.H, x0, x1, noise)
    epipolar = 0.0 if depth.F is None else _epipolar_score(depth.F, x0, x1, noise)
    essential: Essential | None = None
    chosen = False
    if camera is not None and calibrated is not None:
        essential = estimate_essential(points0, points1, camera, camera, threshold=threshold)
        score = 0.0 if essential.E is None else calibrated.essential_score(essential.E)
        if score > 0 and score >= _ESSENTIAL_SHARE * epipolar:
            epipolar, chosen = score, True
    if not planar + epipolar:
        return Motion("none", None, np.zeros(len(x0), dtype=bool))
    if planar > _HOMOGRAPHY_SHARE * (planar + epipolar):
        pose = None
        if calibrated is not None and essential is not None:
            pose = calibrated.pose_of_homography(plane.inliers, threshold, essential)
        return Motion("homography", plane.H, plane.inliers, pose)
    if chosen and essential is not None and essential.R is not None and essential.t is not None:
        return Motion("essential", essential.E, essential.inliers, Pose(essential.R, essential.t))
    return Motion("fundamental", depth.F, depth.inliers)
