"""Measures of keypoints, descriptors and homographies on image pairs with a known homography.

Definitions: DeTone et al. 2018 (SuperPoint), section 6 and appendices: repeatability, localisation error, nearest
neighbour mAP, matching score, homography accuracy; Dusmanu et al. 2019 (D2-Net): mean matching accuracy; Sarlin et
al. 2020 (SuperGlue): area under the recall curve of the corner error. All arithmetic is float64.

Points are (N, 2) pixels, (0, 0) the centre of the top-left pixel; ``H`` (3, 3) maps image 0 to image 1; sizes are
(width, height). A point is visible in the other image where the homography puts it inside that image's pixels and
in front of its camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontend.types import BoolArray, Float64Array, IntArray

Points = NDArray[Any]
_BLOCK = 1024


@dataclass(frozen=True)
class Repeatability:
    """Detector measures of one pair.

    Attributes:
        repeatability: part of the points visible in both images that the other image has too, in [0, 1].
        localization_error: mean distance of those that it has, pixels; NaN where there is none.
        visible0: points of image 0 visible in image 1.
        visible1: points of image 1 visible in image 0.
    """

    repeatability: float
    localization_error: float
    visible0: int
    visible1: int


@dataclass(frozen=True, eq=False)
class Projection:
    """Points of one image carried to the other.

    Attributes:
        points: (N, 2) float64, pixels of the other image; meaningless where not visible.
        visible: (N,) bool.
    """

    points: Float64Array
    visible: BoolArray


def project(points: Points, H: Float64Array, size: tuple[int, int]) -> Projection:
    """Carry points by a homography whose third row is positive before the camera.

    Args:
        points: (N, 2) pixels.
        H: (3, 3).
        size: (width, height) of the target image.
    """
    homogeneous = np.concatenate([np.asarray(points, np.float64), np.ones((len(points), 1))], axis=1) @ H.T
    front = homogeneous[:, 2] > 1e-12
    xy = homogeneous[:, :2] / np.where(front, homogeneous[:, 2], 1.0)[:, None]
    limit = np.array(size, dtype=np.float64) - 0.5
    return Projection(xy, front & (xy >= -0.5).all(axis=1) & (xy < limit).all(axis=1))


def project_both(
    points0: Points, points1: Points, H: Float64Array, size0: tuple[int, int], size1: tuple[int, int]
) -> tuple[Projection, Projection]:
    """Points of image 0 in image 1, and of image 1 in image 0.

    The sign of ``H`` is arbitrary; it is taken so that the centre of image 0 lies before camera 1. The inverse then
    has the right sign of itself.
    """
    centre = np.array([(size0[0] - 1) / 2, (size0[1] - 1) / 2, 1.0])
    signed = np.asarray(H, np.float64) * (1.0 if float(H[2] @ centre) >= 0 else -1.0)
    return project(points0, signed, size1), project(points1, np.asarray(np.linalg.inv(signed), np.float64), size0)


def nearest_distances(points: Float64Array, others: Points) -> Float64Array:
    """Distance of each point to the nearest of the others, in blocks of bounded memory.

    Args:
        points: (N, 2).
        others: (M, 2).

    Returns:
        (N,) float64; infinite where there are no others.
    """
    if len(others) == 0:
        return np.full(len(points), np.inf)
    target = np.asarray(others, np.float64)
    result = np.empty(len(points))
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        squared = (block[:, None, 0] - target[None, :, 0]) ** 2 + (block[:, None, 1] - target[None, :, 1]) ** 2
        result[start : start + _BLOCK] = np.sqrt(squared.min(axis=1))
    return result


def repeatability(
    points0: Points,
    points1: Points,
    H: Float64Array,
    size0: tuple[int, int],
    size1: tuple[int, int],
    threshold: float = 3.0,
) -> Repeatability:
    """Symmetric repeatability and localisation error (DeTone et al. 2018, appendix A).

    Each visible point is carried to the other image and counts where a visible point of that image lies within
    ``threshold`` pixels, measured there. Rep = (correct0 + correct1) / (visible0 + visible1), 0 where nothing is
    visible; the localisation error is the mean distance over all that count.

    Args:
        points0: (N, 2) pixels of image 0.
        points1: (M, 2) pixels of image 1.
        H: (3, 3), image 0 to image 1.
        size0: (width, height) of image 0.
        size1: (width, height) of image 1.
        threshold: pixels; the paper's epsilon.
    """
    to1, to0 = project_both(points0, points1, H, size0, size1)
    seen0, seen1 = np.asarray(points0)[to1.visible], np.asarray(points1)[to0.visible]
    distances = np.concatenate(
        [nearest_distances(to1.points[to1.visible], seen1), nearest_distances(to0.points[to0.visible], seen0)]
    )
    correct = distances <= threshold
    return Repeatability(
        repeatability=float(correct.mean()) if len(distances) else 0.0,
        localization_error=float(distances[correct].mean()) if correct.any() else float("nan"),
        visible0=len(seen0),
        visible1=len(seen1),
    )


def average_precision(scores: NDArray[Any], correct: BoolArray, num_positives: int) -> float:
    """Area under the precision-recall curve of a ranking: sum of precision times the step in recall.

    Equal scores enter together, as no threshold separates them.

    Args:
        scores: (N,) higher is better.
        correct: (N,) bool.
        num_positives: how many could have been found; the denominator of recall.

    Returns:
        In [0, 1]; 0 where nothing could be found.
    """
    if num_positives <= 0 or len(scores) == 0:
        return 0.0
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(scores)[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    found = np.cumsum(correct[order])[last_of_tie].astype(np.float64)
    drawn = (np.arange(len(order)) + 1.0)[last_of_tie]
    steps = np.diff(found, prepend=0.0) / num_positives
    return float((found / drawn * steps).sum())


def _one_way_ap(
    projected: Float64Array, targets: Points, descriptors: NDArray[Any], other: NDArray[Any], threshold: float
) -> float:
    if len(projected) == 0 or len(targets) == 0:
        return 0.0
    neighbor = np.empty(len(projected), np.int64)
    similarity = np.empty(len(projected), np.float64)
    for start in range(0, len(projected), _BLOCK):
        block = descriptors[start : start + _BLOCK] @ other.T
        neighbor[start : start + _BLOCK] = block.argmax(axis=1)
        similarity[start : start + _BLOCK] = block.max(axis=1)
    error = np.linalg.norm(projected - np.asarray(targets, np.float64)[neighbor], axis=1)
    possible = int((nearest_distances(projected, targets) <= threshold).sum())
    return average_precision(similarity, error <= threshold, possible)


def nearest_neighbor_ap(
    points0: Points,
    points1: Points,
    descriptors0: NDArray[Any],
    descriptors1: NDArray[Any],
    H: Float64Array,
    size0: tuple[int, int],
    size1: tuple[int, int],
    threshold: float = 3.0,
) -> float:
    """Average precision of nearest-neighbour matching, both ways averaged (DeTone et al. 2018, appendix B).

    Among the visible points of both images each point takes its nearest neighbour in descriptor space; the match
    is right within ``threshold`` pixels. The curve comes from a threshold on the descriptor distance; recall is
    relative to the points that have a point of the other image within ``threshold``. The mean over pairs is the mAP.

    Args:
        points0: (N, 2) pixels of image 0.
        points1: (M, 2) pixels of image 1.
        descriptors0: (N, D) of unit length, so that the largest dot product is the smallest distance.
        descriptors1: (M, D).
        H: (3, 3), image 0 to image 1.
        size0: (width, height) of image 0.
        size1: (width, height) of image 1.
        threshold: pixels.
    """
    to1, to0 = project_both(points0, points1, H, size0, size1)
    seen0, seen1 = np.asarray(points0)[to1.visible], np.asarray(points1)[to0.visible]
    d0, d1 = descriptors0[to1.visible], descriptors1[to0.visible]
    forth = _one_way_ap(to1.points[to1.visible], seen1, d0, d1, threshold)
    back = _one_way_ap(to0.points[to0.visible], seen0, d1, d0, threshold)
    return (forth + back) / 2


def match_errors(points0: Points, points1: Points, matches: IntArray, H: Float64Array) -> Float64Array:
    """Reprojection error of each match in image 1, pixels.

    Args:
        points0: (N, 2) pixels of image 0.
        points1: (M, 2) pixels of image 1.
        matches: (K, 2) rows (index into image 0, index into image 1).
        H: (3, 3), image 0 to image 1.

    Returns:
        (K,) float64; infinite where H sends the point to infinity.
    """
    source = np.asarray(points0, np.float64)[matches[:, 0]]
    mapped = np.concatenate([source, np.ones((len(source), 1))], axis=1) @ np.asarray(H, np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - np.asarray(points1)[matches[:, 1]], axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def matching_score(
    points0: Points,
    points1: Points,
    matches: IntArray,
    H: Float64Array,
    size0: tuple[int, int],
    size1: tuple[int, int],
    threshold: float = 3.0,
) -> float:
    """Correct matches over the points that each image has in the shared view, averaged over both images.

    DeTone et al. 2018, appendix B: the whole pipeline, detection to mutual nearest neighbours. The error of a match
    is measured in the other image: in image 1 for the ratio of image 0 and the reverse.

    Args:
        points0: (N, 2) pixels of image 0.
        points1: (M, 2) pixels of image 1.
        matches: (K, 2) index pairs, one to one.
        H: (3, 3), image 0 to image 1.
        size0: (width, height) of image 0.
        size1: (width, height) of image 1.
        threshold: pixels.

    Returns:
        In [0, 1]; 0 where no point is visible.
    """
    to1, to0 = project_both(points0, points1, H, size0, size1)
    first, second = matches[:, 0], matches[:, 1]
    ratios = []
    for own, other, there, targets in ((first, second, to1, points1), (second, first, to0, points0)):
        error = np.linalg.norm(there.points[own] - np.asarray(targets, np.float64)[other], axis=1)
        correct = there.visible[own] & (error <= threshold)
        ratios.append(float(correct.sum()) / max(1, int(there.visible.sum())))
    return (ratios[0] + ratios[1]) / 2


def matching_accuracy(errors: NDArray[Any], thresholds: NDArray[Any]) -> Float64Array:
    """Part of the matches within each threshold (D2-Net); its mean over pairs is the MMA.

    Args:
        errors: (K,) reprojection errors, pixels.
        thresholds: (T,) pixels.

    Returns:
        (T,) float64 in [0, 1]; 0 where there are no matches.
    """
    if len(errors) == 0:
        return np.zeros(len(thresholds))
    return np.asarray((np.asarray(errors)[None, :] <= np.asarray(thresholds)[:, None]).mean(axis=1), np.float64)


def accuracy(corner_errors: NDArray[Any], thresholds: NDArray[Any]) -> Float64Array:
    """Homography accuracy: part of the pairs whose mean corner error is within each threshold.

    Args:
        corner_errors: (P,) pixels, infinite where no homography was found.
        thresholds: (T,) pixels.

    Returns:
        (T,) float64 in [0, 1]; NaN without pairs.
    """
    errors = np.asarray(corner_errors, np.float64)
    if len(errors) == 0:
        return np.full(len(thresholds), np.nan)
    return np.asarray((errors[None, :] <= np.asarray(thresholds)[:, None]).mean(axis=1), np.float64)


def error_auc(corner_errors: NDArray[Any], threshold: float) -> float:
    """Area under recall over error from 0 to a threshold, by trapezoids, relative to the threshold (SuperGlue).

    The curve runs through (0, 0) and through (e_i, i / P) for the sorted errors, and stays level from the last error
    below the threshold up to it.

    Args:
        corner_errors: (P,) pixels, infinite where no homography was found.
        threshold: pixels, > 0.

    Returns:
        In [0, 1]; NaN without pairs.
    """
    errors = np.sort(np.asarray(corner_errors, np.float64))
    if len(errors) == 0:
        return float("nan")
    recall = np.concatenate([[0.0], (np.arange(len(errors)) + 1.0) / len(errors)])
    errors = np.concatenate([[0.0], errors])
    last = int(np.searchsorted(errors, threshold))
    x = np.append(errors[:last], threshold)
    y = np.append(recall[:last], recall[last - 1])
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / threshold)
