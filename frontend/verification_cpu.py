"""The checks of :mod:`frontend.verification` in NumPy, for one homography."""

from __future__ import annotations

import math

import numpy as np

from frontend.homography_cpu import GaussNewton, gauge_fixed
from frontend.significance import KEY, MAX_LOG10_NFA, SAME, log10_false_alarms, middle_extent
from frontend.types import BoolArray, Float64Array

MAX_SCALE = 16.0
MAX_UNCERTAINTY = 3.0


def _spread(points: Float64Array) -> float:
    """Standard deviation of points across their main axis, in their unit."""
    centred = points - points.sum(axis=0) / len(points)
    (xx, xy), (_, yy) = (centred.T @ centred / len(points)).tolist()
    # the smaller eigenvalue of the 2x2 covariance, without cancellation
    larger = (xx + yy) / 2 + math.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    return math.sqrt(max(xx * yy - xy * xy, 0.0) / max(larger, 1e-300))


def count_distinct(points: tuple[Float64Array, Float64Array], inliers: BoolArray) -> tuple[int, int]:
    """How many different matches there are, and how many of them are inliers; repeated ones are no further evidence."""
    coordinates = (*points[0].T, *points[1].T)
    keys = np.zeros(len(inliers))
    for values, factor in zip(coordinates, KEY, strict=True):
        keys += values * factor
    total, fitting = (1 + int((np.diff(np.sort(some)) > SAME).sum()) for some in (keys, keys[inliers]))
    return total, fitting


def _derivative(h: Float64Array, points: Float64Array) -> Float64Array:
    """Derivative (2 N, 9) of mapped points in the nine entries of h (3, 3); points (N, 2)."""
    y = np.ones((len(points), 3))
    y[:, :2] = points
    mapped = y @ h.T
    depth = np.where(np.abs(mapped[:, 2]) < 1e-9, 1e-9, mapped[:, 2])[:, None]
    y /= depth
    slopes = np.zeros((len(points), 2, 9))
    slopes[:, 0, :3] = slopes[:, 1, 3:6] = y
    slopes[:, 0, 6:] = -mapped[:, :1] / depth * y
    slopes[:, 1, 6:] = -mapped[:, 1:2] / depth * y
    return slopes.reshape(-1, 9)


def verify(
    h: Float64Array,
    points: tuple[Float64Array, Float64Array],
    units: tuple[float, float],
    threshold: float,
    min_inliers: int,
    solver: GaussNewton | None = None,
) -> tuple[BoolArray, bool]:
    """The inliers of a homography, and whether it means anything: :func:`frontend.verification.verify_homography`.

    Args:
        h: (3, 3) float64 between the normalised points, of unit norm, oriented.
        points: (K, 2) float64 of image 0 and of image 1, normalised.
        units: length of a pixel of image 0 and of image 1 in units of its points.
        threshold: pixels.
        min_inliers: at least 4.
        solver: of these points, where there is one at hand.

    Returns:
        inliers (K,) bool, and whether the model stands.
    """
    solver = solver or GaussNewton(*points, *units)
    state = solver.linearise(h[None])
    inliers: BoolArray = state.error[0] <= 2 * threshold**2
    if not inliers.any():
        return inliers, False
    total, count = count_distinct(points, inliers)
    if count < min_inliers:
        return inliers, False
    areas = [float(middle_extent(p).prod()) / unit**2 for p, unit in zip(points, units, strict=True)]
    # an error within the limit needs the forward error to be, in image 1, and the backward one, in image 0
    chance = min(2 * math.pi * threshold**2 / max(*areas, 1e-9), 1.0)
    if not log10_false_alarms(total, count, chance, sample=4) < MAX_LOG10_NFA:
        return inliers, False

    # singular values of the local affine map A: s1^2 + s2^2 = |A|^2, s1 s2 = det(A) = det(H) / w^3
    zoom = units[0] / units[1]
    depth, u, v = (values[0][inliers] for values in state.forward[:3])
    squares = np.zeros_like(u)
    for row, mapped in ((0, u), (1, v)):
        for column in (0, 1):
            squares += np.square(h[row, column] - mapped * h[2, column])
    squares *= np.square(depth * zoom)
    det = float(np.linalg.det(h)) * depth**3 * zoom**2
    largest = np.sqrt(squares / 2 + np.sqrt(np.maximum(squares**2 / 4 - det**2, 0.0)))
    if not ((largest <= MAX_SCALE) & (det >= largest / MAX_SCALE)).all():  # the latter also means det > 0
        return inliers, False

    inside = [p[inliers] for p in points]
    if any(_spread(p) <= threshold / 2 * unit for p, unit in zip(inside, units, strict=True)):
        return inliers, False
    normal, _ = solver.normal_equations(state, inliers[None].astype(np.float64))
    matrix, scale = gauge_fixed(normal, h[None])
    (x0, y0), (x1, y1) = inside[0].min(axis=0).tolist(), inside[0].max(axis=0).tolist()
    slopes = _derivative(h, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])) / units[1]  # (8, 9) px
    try:
        whitened = np.linalg.solve(np.linalg.cholesky(matrix[0]), slopes.T)
    except np.linalg.LinAlgError:
        return inliers, False
    variance = (np.square(whitened).sum(axis=0) / scale[0]).reshape(4, 2).sum(axis=1)
    # noise of threshold / 3 against so many thresholds
    return inliers, bool((variance / 9 <= MAX_UNCERTAINTY**2).all())
