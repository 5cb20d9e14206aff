"""Stereo odometry: where the left camera of a rig is, in metres, chained from frame to frame.

A tracked frame's own pose has a translation of unit norm. Its stereo points have the rig's scale: a frame is placed by
where it sees points in space that an earlier frame has of the same tracks. There is no map, no bundle adjustment and no
loop closure, so errors add up along the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from frontend.relative_pose import quaternion_of, skew
from frontend.stereo import StereoRig
from frontend.types import Float64Array, IntArray, Pose, TrackedFrame

_LEAST = 12  # points that a pose is trusted with, as the tracker's matches
_LEAST_SHARE = 0.4  # of the points that are seen
_TRIES = 300  # of RANSAC
_CONFIDENCE = 0.999
_ROUNDS = 5
_ITERATIONS = 10
_HUBER = 1.5  # standard deviations


@dataclass(frozen=True, eq=False)
class _Reference:
    """A frame with a pose, and what it saw.

    Attributes:
        ids: (M,) int64 of tracks.
        points: (M, 3) float64 in its camera's frame, metres.
        pose: of the frame relative to the world.
    """

    ids: IntArray
    points: Float64Array
    pose: Pose


class StereoOdometry:
    """Poses of a rig's left camera.

    A frame is placed against the last keyframe, whose points do not change while the camera stands still, and, where
    too few of these are still seen, against the last frame that has a pose. Where neither does there is no pose, and
    none later either, unless tracks come back: how far the camera went meanwhile is not known.

    Args:
        rig: of the tracker that makes the frames.
        threshold: largest error of an inlier, pixels.
    """

    def __init__(self, rig: StereoRig, threshold: float = 3.0) -> None:
        self.rig = rig
        self.threshold = threshold
        self._keyframe: _Reference | None = None
        self._last: _Reference | None = None

    def update(self, frame: TrackedFrame) -> Pose | None:
        """Place the next frame.

        Args:
            frame: by a tracker with this rig; with stereo points where it had a right image.

        Returns:
            X_frame = R X_world + t, metres; the world is the first frame's camera that has enough points. None where it
            is not known.
        """
        ids, points = self._points(frame)
        pose = Pose(np.eye(3), np.zeros(3)) if self._last is None and len(ids) >= _LEAST else None
        for reference in (self._keyframe, self._last):
            if pose is None and reference is not None:
                pose = self._placed(frame, reference)
        if pose is not None and len(ids) >= _LEAST:
            self._last = _Reference(ids, points, pose)
            if frame.keyframe or self._keyframe is None:
                self._keyframe = self._last
        return pose

    @staticmethod
    def _points(frame: TrackedFrame) -> tuple[IntArray, Float64Array]:
        if frame.stereo is None or frame.stereo.points is None:
            return np.zeros(0, np.int64), np.zeros((0, 3))
        return frame.track_ids[frame.stereo.rows], frame.stereo.points

    def _placed(self, frame: TrackedFrame, reference: _Reference) -> Pose | None:
        """The frame's pose relative to the world, by tracks that it shares with a reference."""
        if frame.normalised is None:
            return None
        _, first, second = np.intersect1d(reference.ids, frame.track_ids, assume_unique=True, return_indices=True)
        seen = frame.normalised[second]
        usable = np.isfinite(seen).all(axis=1)
        motion = pose_of_points(reference.points[first][usable], seen[usable], self.rig, threshold=self.threshold)
        if motion is None:
            return None
        return Pose(motion.R @ reference.pose.R, motion.R @ reference.pose.t + motion.t)


def pose_of_points(points: Float64Array, seen: Float64Array, rig: StereoRig, *, threshold: float) -> Pose | None:
    """The motion of a rig's left camera between a frame that has points in space and one that sees them again.

    Perspective of three points in RANSAC, then least squares under Huber's loss. A point's depth is as uncertain as its
    disparity makes it, which is carried into where it should be seen: far points tell of the rotation and near ones of
    the way.

    Args:
        points: (N, 3) in the left camera's frame before, metres.
        seen: (N, 2) undistorted normalised coordinates now.
        rig: that the points are from.
        threshold: largest error of an inlier, pixels.

    Returns:
        X_now = R X_before + t; None where there are less than twelve inliers, or less than 40 % of the points are.
    """
    if len(points) < _LEAST:
        return None
    focal = rig.left.focal
    ideal = np.diag([focal, focal, 1.0])
    try:
        found, turn, t, rows = cv2.solvePnPRansac(
            points,
            seen * focal,
            ideal,
            None,
            iterationsCount=_TRIES,
            reprojectionError=threshold,
            confidence=_CONFIDENCE,
            flags=cv2.SOLVEPNP_P3P,
        )
    except cv2.error:  # of points that it cannot solve for, as all in one
        return None
    if not found or rows is None:
        return None
    pose = Pose(np.asarray(cv2.Rodrigues(turn)[0], np.float64), np.asarray(t, np.float64).ravel())
    chosen = np.zeros(len(points), np.bool_)
    chosen[np.asarray(rows).ravel()] = True
    for _ in range(_ROUNDS):
        # of three points, a pose may leave out the near ones, which tell the most
        pose = _refined(pose, points[chosen], seen[chosen], rig)
        errors = np.linalg.norm(_whitened(pose, points, seen, rig)[0], axis=1)
        before, chosen = chosen, np.sqrt(2.0) * errors <= threshold  # pixels, where the depth is exact
        if chosen.sum() < _LEAST or (before == chosen).all():
            break
    return pose if chosen.sum() >= max(_LEAST, _LEAST_SHARE * len(points)) else None


def _whitened(
    pose: Pose, points: Float64Array, seen: Float64Array, rig: StereoRig
) -> tuple[Float64Array, Float64Array]:
    """Errors of where points are seen in units of their standard deviations for a noise of a pixel, and derivatives.

    The deviation is that of a keypoint in both frames, and along the image of the ray that the point lies on that of
    its depth: z^2 / (f b) times that of the disparity.

    Returns:
        (N, 2), and (N, 2, 6) by a rotation vector applied from the left, and t.
    """
    focal, baseline = rig.left.focal, float(np.linalg.norm(rig.t))
    turned = points @ pose.R.T
    moved = turned + pose.t
    depth = np.where(moved[:, 2] > 1e-9, moved[:, 2], np.nan)
    x, y = moved[:, 0] / depth, moved[:, 1] / depth
    errors = focal * (np.stack([x, y], axis=1) - seen)
    slopes = np.zeros((len(points), 2, 3))  # of the pixel by the point
    slopes[:, 0, 0] = slopes[:, 1, 1] = focal / depth
    slopes[:, 0, 2], slopes[:, 1, 2] = -focal * x / depth, -focal * y / depth
    deviation = np.sqrt(2.0) * points[:, 2] ** 2 / (focal * baseline)
    along = np.einsum("nij,nj->ni", slopes, turned / points[:, 2:]) * deviation[:, None]
    # a covariance of 2 I + a a^T has the square root of its inverse (I - s a a^T) / sqrt(2), see Sherman and Morrison
    squared = (along**2).sum(axis=1)
    shrink = np.where(squared > 1e-12, (1 - 1 / np.sqrt(1 + squared / 2)) / np.maximum(squared, 1e-12), 0.0)
    whiten = (np.eye(2) - shrink[:, None, None] * along[:, :, None] * along[:, None, :]) / np.sqrt(2.0)
    turns = np.stack([turned @ skew(axis).T for axis in np.eye(3)], axis=2)
    by_pose = np.concatenate([slopes @ turns, slopes], axis=2)
    return np.einsum("nij,nj->ni", whiten, errors), whiten @ by_pose


def _refined(pose: Pose, points: Float64Array, seen: Float64Array, rig: StereoRig) -> Pose:
    """Gauss-Newton under Huber's loss."""
    best = np.inf
    kept = pose
    for _ in range(_ITERATIONS):
        errors, slopes = _whitened(pose, points, seen, rig)
        sizes = np.linalg.norm(errors, axis=1)
        cost = float(np.where(sizes <= _HUBER, sizes**2 / 2, _HUBER * (sizes - _HUBER / 2)).sum())
        if not cost < best:  # no better, or a point behind the camera
            break
        kept, best = pose, cost
        weights = np.minimum(1.0, _HUBER / np.maximum(sizes, 1e-12))
        weighted = (slopes * weights[:, None, None]).reshape(-1, 6)
        flat = slopes.reshape(-1, 6)
        normal = weighted.T @ flat
        normal += 1e-9 * max(float(np.trace(normal)), 1e-300) * np.eye(6)
        step = -np.linalg.solve(normal, weighted.T @ errors.ravel())
        pose = Pose(np.asarray(cv2.Rodrigues(step[:3])[0] @ pose.R, np.float64), pose.t + step[3:])
    return kept


def camera_to_world(pose: Pose) -> tuple[Float64Array, Float64Array]:
    """Position (3,) of a camera in the world, metres, and its orientation as a quaternion (x, y, z, w), w >= 0.

    Args:
        pose: X_camera = R X_world + t.
    """
    R = np.asarray(pose.R.T, np.float64)
    return -R @ pose.t, quaternion_of(R)
