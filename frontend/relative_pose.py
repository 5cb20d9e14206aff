"""Relative pose of two calibrated cameras: depths, decompositions and refinement, in normalised coordinates.

A pose is X1 = R X0 + t. Points are (N, 2) float64 undistorted normalised coordinates, as
:meth:`frontend.camera.Camera.normalise` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from frontend.types import Float64Array, Pose

_ITERATIONS = 15
_TUKEY = 4.685  # 95 % efficiency under Gaussian noise (Huber, Robust Statistics, 1981)
_MAD = 1.4826  # median absolute deviation to standard deviation


def homogeneous(points: Float64Array) -> Float64Array:
    """(N, 2) to (N, 3) with ones."""
    return np.column_stack([points, np.ones(len(points))])


def skew(vector: Float64Array) -> Float64Array:
    """[v]x, (3, 3): the matrix with [v]x w = v x w."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def quaternion_of(R: Float64Array) -> Float64Array:
    """(4,) unit quaternion (x, y, z, w), w >= 0, of a (3, 3) rotation.

    The eigenvector of Bar-Itzhack's matrix (2000, eq. 1), which is well conditioned for all rotations.
    """
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(R, np.float64).tolist()
    matrix = np.array(
        [
            [a - e - i, b + d, c + g, h - f],
            [b + d, e - a - i, f + h, c - g],
            [c + g, f + h, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    found: Float64Array = np.linalg.eigh(matrix / 3)[1][:, -1]
    return -found if found[3] < 0 else found


def essential_matrix(pose: Pose) -> Float64Array:
    """E = [t]x R of unit Frobenius norm (Hartley & Zisserman, 2nd ed. 2004, eq. 9.12); ``t`` is not zero."""
    matrix = skew(pose.t) @ pose.R
    return np.asarray(matrix / np.linalg.norm(matrix), np.float64)


def ray_depths(pose: Pose, points0: Float64Array, points1: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Depths along the optical axes at which the rays of matches come closest to each other.

    The least-squares solution of ``z1 y1 - z0 R y0 = t``.

    Args:
        pose: of camera 1 relative to camera 0.
        points0: (N, 2) of camera 0.
        points1: (N, 2) of camera 1.

    Returns:
        Two (N,) float64 in the unit of ``t``; negative behind a camera, inf for parallel rays.
    """
    turned, seen = homogeneous(points0) @ pose.R.T, homogeneous(points1)
    aa, bb, ab = (turned**2).sum(1), (seen**2).sum(1), (turned * seen).sum(1)
    determinant = aa * bb - ab**2
    at, bt = turned @ pose.t, seen @ pose.t
    parallel = determinant <= 1e-15 * aa * bb
    safe = np.where(parallel, 1.0, determinant)
    z0, z1 = (ab * bt - bb * at) / safe, (aa * bt - ab * at) / safe
    return np.where(parallel, np.inf, z0), np.where(parallel, np.inf, z1)


def decompose_essential(essential: Float64Array, points0: Float64Array, points1: Float64Array) -> Pose:
    """The one of the four poses of an essential matrix that has most points in front of both cameras.

    Hartley & Zisserman, 2nd ed. 2004, section 9.6.

    Args:
        essential: (3, 3) float64.
        points0: (N, 2) inliers.
        points1: (N, 2).

    Returns:
        The pose, t of unit norm.
    """
    first, second, t = cv2.decomposeEssentialMat(essential)
    poses = [
        Pose(np.asarray(R, np.float64), np.asarray(sign * t[:, 0], np.float64))
        for R in (first, second)
        for sign in (1, -1)
    ]
    return max(poses, key=lambda pose: in_front(pose, points0, points1))


def in_front(pose: Pose, points0: Float64Array, points1: Float64Array) -> int:
    """Number of points in front of both cameras."""
    z0, z1 = ray_depths(pose, points0, points1)
    return int(((z0 > 0) & (z1 > 0)).sum())


@dataclass(frozen=True, eq=False)
class _Residuals:
    values: Float64Array
    slopes: Float64Array

    def divided(self, scale: Float64Array) -> _Residuals:
        """The same in units of (N,) scales."""
        return _Residuals(self.values / scale, self.slopes / scale[:, None])


def _sampson(pose: Pose, y0: Float64Array, y1: Float64Array, focals: tuple[float, float]) -> _Residuals:
    """Sampson distances (Hartley & Zisserman, 2nd ed. 2004, eq. 11.9), (N,) px, and their derivatives (N, 5).

    The parameters are a rotation vector that is applied from the left to ``R``, and two steps of ``t`` on the sphere.
    """
    scale0, scale1 = np.array([1 / focals[0], 1 / focals[0], 1.0]), np.array([1 / focals[1], 1 / focals[1], 1.0])
    cross = skew(pose.t)
    steps = [cross @ skew(axis) @ pose.R for axis in np.eye(3)]
    steps += [skew(side) @ pose.R for side in _tangents(pose.t)]
    # matrices of pixels, so that residuals are pixels
    scaling = scale1[:, None] * scale0
    matrix, changes = scaling * (cross @ pose.R), scaling * np.stack(steps)
    x0, x1 = y0 / scale0, y1 / scale1
    line1, line0 = x0 @ matrix.T, x1 @ matrix
    product = (x1 * line1).sum(1)
    norm = np.sqrt(np.maximum((line1[:, :2] ** 2).sum(1) + (line0[:, :2] ** 2).sum(1), 1e-300))
    change1, change0 = np.einsum("kij,nj->nki", changes, x0), np.einsum("kij,ni->nkj", changes, x1)
    slope = (change1 * x1[:, None]).sum(2)
    turn = (change1[..., :2] * line1[:, None, :2]).sum(2) + (change0[..., :2] * line0[:, None, :2]).sum(2)
    return _Residuals(product / norm, slope / norm[:, None] - (product / norm**3)[:, None] * turn)


def _tangents(direction: Float64Array) -> Float64Array:
    """Two unit vectors (2, 3) across a unit vector and each other."""
    least = np.eye(3)[np.abs(direction).argmin()]
    first = np.cross(direction, least)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(direction, first)])


def refine_pose(
    pose: Pose,
    points0: Float64Array,
    points1: Float64Array,
    *,
    focals: tuple[float, float],
    threshold: float,
    sigmas: Float64Array | None = None,
) -> Pose:
    """Minimise the Sampson distances under Tukey's loss over rotation and direction of translation.

    Levenberg-Marquardt over the five degrees of freedom. Unlike the linear solvers that robust estimators polish
    with, it stays determined where the scene is a plane.

    Args:
        pose: the start; t of unit norm.
        points0: (N, 2) matches, wrong ones among them.
        points1: (N, 2).
        focals: of both cameras, pixels: residuals are measured in pixels.
        threshold: residuals beyond it have no weight, pixels; the scale of the residuals may lower it.
        sigmas: (N,) standard deviations of the matches, of which the ratios matter; all equal without.

    Returns:
        The refined pose, t of unit norm.
    """
    y0, y1 = homogeneous(points0), homogeneous(points1)
    current = _sampson(pose, y0, y1, focals)
    inside = np.abs(current.values) <= threshold
    scale = np.ones(len(y0)) if sigmas is None else sigmas
    # residuals as those of a typical match
    scale = scale / float(np.median(scale[inside])) if inside.any() else scale
    current = current.divided(scale)
    near = np.abs(current.values[inside])
    limit = threshold if not len(near) else min(threshold, max(_TUKEY * _MAD * float(np.median(near)), threshold / 10))
    damping = 1e-3
    for _ in range(_ITERATIONS):
        weights = np.maximum(1 - (current.values / limit) ** 2, 0.0) ** 2
        weighted = current.slopes * weights[:, None]
        normal, gradient = weighted.T @ current.slopes, weighted.T @ current.values
        ridge = damping * np.diag(np.diag(normal)) + 1e-12 * max(float(np.trace(normal)), 1e-300) * np.eye(5)
        step = -np.linalg.solve(normal + ridge, gradient)
        t = pose.t + step[3:] @ _tangents(pose.t)
        tried = Pose(np.asarray(cv2.Rodrigues(step[:3])[0] @ pose.R, np.float64), t / np.linalg.norm(t))
        residuals = _sampson(tried, y0, y1, focals).divided(scale)
        if _tukey_cost(residuals.values, limit) < _tukey_cost(current.values, limit):
            pose, current, damping = tried, residuals, damping / 10
            if np.abs(step).max() < 1e-9:
                break
        else:
            damping *= 10
    return pose


def _tukey_cost(residuals: Float64Array, limit: float) -> float:
    return float((1 - np.maximum(1 - (residuals / limit) ** 2, 0.0) ** 3).sum())
