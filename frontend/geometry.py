"""Epipolar geometry of two images, by OpenCV."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike

from frontend.ransac import RansacConfig, as_matches
from frontend.types import BoolArray, Float64Array, Fundamental, Status
from frontend.verification import MAX_LOG10_NFA, log10_false_alarms

MIN_MATCHES = 8  # what OpenCV's robust estimator needs
SAMPLE_SIZE = 7
MODELS_PER_SAMPLE = 3  # the seven-point algorithm solves a cubic


def epipolar_distances(
    fundamental: Float64Array, points0: Float64Array, points1: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Squared distances of matches to their epipolar lines, d(x0, F^T x1)^2 in image 0 and d(x1, F x0)^2 in image 1.

    Args:
        fundamental: (3, 3) float64.
        points0: (M, 2) float64, pixels of image 0.
        points1: (M, 2) float64, image 1.

    Returns:
        Two (M,) float64, px^2; inf where a point is its image's epipole, which has no line.
    """
    ones = np.ones((len(points0), 1))
    x0, x1 = np.hstack((points0, ones)), np.hstack((points1, ones))
    line1, line0 = x0 @ fundamental.T, x1 @ fundamental
    product: Float64Array = np.square((x1 * line1).sum(1))
    norm1, norm0 = np.square(line1[:, :2]).sum(1), np.square(line0[:, :2]).sum(1)
    usable = (norm0 > 0) & (norm1 > 0)
    safe0, safe1 = np.where(usable, norm0, 1.0), np.where(usable, norm1, 1.0)
    return np.where(usable, product / safe0, np.inf), np.where(usable, product / safe1, np.inf)


def symmetric_epipolar_distance(
    fundamental: Float64Array, points0: Float64Array, points1: Float64Array
) -> Float64Array:
    """The sum of both :func:`epipolar_distances` (Hartley & Zisserman, 2nd ed. 2004, eq. 11.10), (M,) px^2."""
    first, second = epipolar_distances(fundamental, points0, points1)
    total: Float64Array = first + second
    return total


def _significant(points0: Float64Array, points1: Float64Array, inliers: BoolArray, threshold: float) -> bool:
    """The a-contrario test: a random match fits if it lies in a band of half-width sqrt(2) t around a line."""
    chances = []
    for points in (points0, points1):
        extent = np.ptp(points, axis=0)
        area = max(float(extent.prod()), 1e-9)
        chances.append(2 * math.sqrt(2) * threshold * float(np.hypot(*extent)) / area)
    matches, count, chance = (torch.tensor(float(x)) for x in (len(points0), inliers.sum(), min(1.0, *chances)))
    alarms = log10_false_alarms(matches, count, chance, SAMPLE_SIZE, MODELS_PER_SAMPLE)
    return float(alarms) < MAX_LOG10_NFA


def estimate_fundamental(
    points0: ArrayLike,
    points1: ArrayLike,
    *,
    threshold: float = 1.5,
    confidence: float = 0.999,
    max_iterations: int = 10_000,
    seed: int = 0,
) -> Fundamental:
    """Estimate the fundamental matrix between matched points of two images with OpenCV's USAC_MAGSAC.

    A model that random matches could have given is refused by the a-contrario test of
    :mod:`frontend.verification`, with ``p = 2 sqrt(2) t D / A`` for matches whose bounding box has the diagonal D
    and the area A.

    Args:
        points0: (M, 2) matched points of image 0, pixels.
        points1: (M, 2) of image 1. A match with a coordinate that is not finite is an outlier.
        threshold: largest RMS of an inlier's distances to its two epipolar lines, pixels.
        confidence: probability of having drawn one outlier-free sample at which drawing stops, in (0, 1).
        max_iterations: samples drawn at most.
        seed: without effect, since OpenCV seeds this method's generator with a constant; here so that estimators
            are called alike.

    Returns:
        F of unit Frobenius norm with x1^T F x0 = 0: OK; TOO_FEW_MATCHES below eight matches; or NO_MODEL.

    Raises:
        ShapeError: points0 and points1 are not both (M, 2) and real.
        ConfigError: a setting is out of its range.
    """
    RansacConfig(threshold, confidence, max_iterations, seed=seed)  # refuses what is out of range
    x0, x1 = as_matches(points0, points1)
    finite = np.isfinite(x0).all(1) & np.isfinite(x1).all(1)
    inliers = np.zeros(len(x0), dtype=np.bool_)
    if finite.sum() < MIN_MATCHES:
        return Fundamental(None, inliers, Status.TOO_FEW_MATCHES)
    y0, y1 = x0[finite], x1[finite]
    found, _ = cv2.findFundamentalMat(y0, y1, cv2.USAC_MAGSAC, threshold, confidence, max_iterations)
    if found is None or found.shape != (3, 3) or not np.isfinite(found).all() or not found.any():
        return Fundamental(None, inliers, Status.NO_MODEL)
    fundamental: Float64Array = np.asarray(found / np.linalg.norm(found), dtype=np.float64)
    fits = symmetric_epipolar_distance(fundamental, y0, y1) <= 2 * threshold**2
    if fits.sum() < MIN_MATCHES or not _significant(y0, y1, fits, threshold):
        return Fundamental(None, inliers, Status.NO_MODEL)
    inliers[finite] = fits
    return Fundamental(fundamental, inliers, Status.OK)
