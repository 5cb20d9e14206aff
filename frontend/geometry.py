"""Epipolar geometry of two images: robust estimation by OpenCV, accepted only where it means something."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import ArrayLike

from frontend.camera import Camera
from frontend.homography_cpu import normalising_transform
from frontend.ransac_config import FARTHEST, KEPT, RansacConfig, as_matches, as_variances
from frontend.relative_pose import decompose_essential, essential_matrix, refine_pose
from frontend.significance import MAX_LOG10_NFA, log10_false_alarms, middle_extent
from frontend.types import BoolArray, Essential, Float64Array, Fundamental, Status
from frontend.verification_cpu import count_distinct

MIN_MATCHES = 8  # what OpenCV's robust estimator needs
_SEVEN_POINT = (7, 3)  # matches in a sample, and models that it may give: the algorithm solves a cubic
_STRIP = 4.0  # times the threshold: what errors of inliers alone would fill of points on a line
_OTHER_PAIRS = 4096  # enough to tell a chance of a hundredth; a millisecond
_FIVE_POINT = (5, 10)  # the five-point algorithm solves a polynomial of tenth degree


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


def _significant(
    fundamental: Float64Array,
    points0: Float64Array,
    points1: Float64Array,
    inliers: BoolArray,
    threshold: float,
    sample: tuple[int, int],
) -> bool:
    """The a-contrario test: a random match fits if it lies in a band of half-width sqrt(2) t around a line.

    The area is that of :func:`frontend.significance.middle_extent`; repeated matches are no further evidence. Where
    points are not spread over it, but lie along a line or in clusters, other pairs of them fit more often than that,
    and the chance is theirs. Inliers on one line determine no geometry, whatever they are.

    ``sample`` is the number of matches in a minimal sample, and that of the models it may give.
    """
    if _on_a_line(points0[inliers], threshold) or _on_a_line(points1[inliers], threshold):
        return False
    chances = []
    for points in (points0, points1):
        extent = middle_extent(points)
        area = float(extent.prod())
        # points on a line or in one place, which any band about it holds
        chances.append(2 * math.sqrt(2) * threshold * float(np.hypot(*extent)) / area if area > 1e-9 else 1.0)
    total, count = count_distinct((_normalised(points0), _normalised(points1)), inliers)
    if count < MIN_MATCHES:
        return False
    chance = max(min(1.0, *chances), _chance_of_others(fundamental, points0, points1, threshold))
    return log10_false_alarms(total, count, chance, *sample) < MAX_LOG10_NFA


def _on_a_line(points: Float64Array, threshold: float) -> bool:
    """Whether (M, 2) points, but for the outermost, lie in a strip that is as wide as their errors."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred.T @ centred)[0]
    return bool(middle_extent(centred @ axes)[1] < _STRIP * threshold)


def _chance_of_others(
    fundamental: Float64Array, points0: Float64Array, points1: Float64Array, threshold: float
) -> float:
    """Share of pairs that fit among those of a point of image 0 with a point of image 1 that is not its match.

    At least: less two standard errors, as few points have few other pairs, of which some may fit by accident.
    """
    count = len(points0)
    if count * (count - 1) <= _OTHER_PAIRS:
        first, shift = np.repeat(np.arange(count), count - 1), np.tile(np.arange(1, count), count)
    else:
        # not by one shift for all: neighbours in an order such as a raster's lie near each other's epipolar lines
        rng = np.random.default_rng(0)
        first, shift = rng.integers(count, size=_OTHER_PAIRS), rng.integers(1, count, size=_OTHER_PAIRS)
    distance = symmetric_epipolar_distance(fundamental, points0[first], points1[(first + shift) % count])
    share = float((distance <= 2 * threshold**2).mean())
    return share - 2 * math.sqrt(share * (1 - share) / len(first))


def _normalised(points: Float64Array) -> Float64Array:
    transform = normalising_transform(points)
    result: Float64Array = points * transform[0, 0] + transform[:2, 2]
    return result


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
    :mod:`frontend.verification`, with ``p = 2 sqrt(2) t D / A`` for matches whose bounding box, but for the
    outermost, has the diagonal D and the area A.

    Args:
        points0: (M, 2) matched points of image 0, pixels.
        points1: (M, 2) of image 1. A match with a coordinate that is not finite, or beyond ``FARTHEST``, is an outlier.
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
    finite = (np.abs(np.hstack((x0, x1))) <= FARTHEST).all(axis=1)  # also False for NaN
    inliers = np.zeros(len(x0), dtype=np.bool_)
    if finite.sum() < MIN_MATCHES:
        return Fundamental(None, inliers, Status.TOO_FEW_MATCHES)
    y0, y1 = x0[finite], x1[finite]
    try:
        found, _ = cv2.findFundamentalMat(y0, y1, cv2.USAC_MAGSAC, threshold, confidence, max_iterations)
    except cv2.error:  # of OpenCV 5, in a hundredth of all sets of some ten matches: it checks a model that is empty
        found = None
    if found is None or found.shape != (3, 3) or not np.isfinite(found).all() or not found.any():
        return Fundamental(None, inliers, Status.NO_MODEL)
    fundamental: Float64Array = np.asarray(found / np.linalg.norm(found), dtype=np.float64)
    fits = symmetric_epipolar_distance(fundamental, y0, y1) <= 2 * threshold**2
    if not fits.any() or not _significant(fundamental, y0, y1, fits, threshold, _SEVEN_POINT):
        return Fundamental(None, inliers, Status.NO_MODEL)
    inliers[finite] = fits
    return Fundamental(fundamental, inliers, Status.OK)


def estimate_essential(
    points0: ArrayLike,
    points1: ArrayLike,
    camera0: Camera,
    camera1: Camera,
    *,
    sigmas: ArrayLike | None = None,
    threshold: float = 1.5,
    confidence: float = 0.999,
    max_iterations: int = 10_000,
    seed: int = 0,
) -> Essential:
    """Estimate the essential matrix and the relative pose between matched points of two calibrated images.

    The points are undistorted and brought to an ideal camera of the same focal length without skew, in whose pixels
    errors are measured. OpenCV's USAC_MAGSAC with the five-point solver gives the start; rotation and direction of
    translation are then refined over the Sampson distances
    (:func:`frontend.relative_pose.refine_pose`). Models that random matches could have given are refused as
    :func:`estimate_fundamental` does.

    What images cannot tell: of a camera that only turned, ``R`` is right and ``t`` means nothing; of a plane, two
    poses may explain the matches equally well.

    Args:
        points0: (M, 2) matched points of image 0, pixels.
        points1: (M, 2) of image 1. A match with a coordinate that is not finite, or beyond ``FARTHEST``, is an outlier.
        camera0: of image 0.
        camera1: of image 1.
        sigmas: (M,) standard deviations of the matches' positions, of which the ratios matter, see
            :func:`frontend.homography_estimation.match_sigmas`: the refinement weighs matches by them.
        threshold: largest RMS of an inlier's distances to its two epipolar lines, pixels.
        confidence: probability of having drawn one outlier-free sample at which drawing stops, in (0, 1).
        max_iterations: samples drawn at most.
        seed: without effect, as for :func:`estimate_fundamental`.

    Returns:
        E with y1^T E y0 = 0 for normalised points, R and t: OK; TOO_FEW_MATCHES below eight matches; or NO_MODEL.

    Raises:
        ShapeError: points0 and points1 are not both (M, 2) and real, or sigmas not (M,) and positive.
        ConfigError: a setting is out of its range.
    """
    RansacConfig(threshold, confidence, max_iterations, seed=seed)  # refuses what is out of range
    x0, x1 = as_matches(points0, points1)
    spread = None if sigmas is None else np.sqrt(as_variances(sigmas, len(x0)))
    finite: BoolArray = np.asarray((np.abs(np.hstack((x0, x1))) <= FARTHEST).all(axis=1))
    y0, y1 = camera0.normalise(x0[finite]), camera1.normalise(x1[finite])
    # NaN where a distortion has no inverse, and very far next to there
    mapped = (np.abs(np.hstack((y0 * camera0.focal, y1 * camera1.focal))) <= FARTHEST).all(axis=1)
    finite[finite] = mapped
    y0, y1 = y0[mapped], y1[mapped]
    inliers = np.zeros(len(x0), dtype=np.bool_)
    if finite.sum() < MIN_MATCHES:
        return Essential(None, None, None, inliers, Status.TOO_FEW_MATCHES)
    focal = math.sqrt(camera0.focal * camera1.focal)
    ideal = np.diag([focal, focal, 1.0])
    try:
        found, _ = cv2.findEssentialMat(
            y0 * focal, y1 * focal, ideal, cv2.USAC_MAGSAC, confidence, threshold, max_iterations
        )
    except cv2.error:
        found = None
    if found is None or found.shape != (3, 3) or not np.isfinite(found).all() or not found.any():
        return Essential(None, None, None, inliers, Status.NO_MODEL)
    focals = (camera0.focal, camera1.focal)
    start: Float64Array = np.asarray(found, np.float64)
    fits = _calibrated_fits(start, y0, y1, focals, threshold)
    pose = decompose_essential(start, y0[fits], y1[fits])
    if spread is not None:
        spread = spread[finite]
    refined = refine_pose(pose, y0, y1, focals=focals, threshold=threshold, sigmas=spread)
    # not beyond what was found: some come and go at the threshold, but a refinement that loses many has left its basin
    better = _calibrated_fits(essential_matrix(refined), y0, y1, focals, threshold)
    if better.sum() >= KEPT * fits.sum():
        fits = better
        pose = decompose_essential(essential_matrix(refined), y0[fits], y1[fits])
    matrix = _in_pixels(essential_matrix(pose), focals)
    if not fits.any() or not _significant(matrix, y0 * focals[0], y1 * focals[1], fits, threshold, _FIVE_POINT):
        return Essential(None, None, None, inliers, Status.NO_MODEL)
    inliers[finite] = fits
    return Essential(essential_matrix(pose), pose.R, pose.t, inliers, Status.OK)


def _calibrated_fits(
    essential: Float64Array, y0: Float64Array, y1: Float64Array, focals: tuple[float, float], threshold: float
) -> BoolArray:
    """Inliers of an essential matrix among normalised points, by distances in pixels."""
    distance = symmetric_epipolar_distance(_in_pixels(essential, focals), y0 * focals[0], y1 * focals[1])
    return np.asarray(distance <= 2 * threshold**2, np.bool_)


def _in_pixels(essential: Float64Array, focals: tuple[float, float]) -> Float64Array:
    """The fundamental matrix of ideal cameras of these focal lengths, with the principal point at 0."""
    scale0, scale1 = (np.array([1 / focal, 1 / focal, 1.0]) for focal in focals)
    matrix: Float64Array = scale1[:, None] * essential * scale0
    return matrix
