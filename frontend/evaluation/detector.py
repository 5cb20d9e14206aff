"""Average precision of a corner detector on held-out synthetic shapes (DeTone et al. 2018, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from frontend.evaluation.metrics import average_precision
from frontend.types import BoolArray, Features, Float64Array

CORRECT_PX = 3.0
"""A detection is right within this of a corner that no better detection has taken, pixels."""


def match_detections(points: Float64Array, scores: NDArray[np.float32], corners: Float64Array) -> BoolArray:
    """Which detections are right: best first, each takes the nearest free corner within :data:`CORRECT_PX`.

    Args:
        points: (N, 2) pixels.
        scores: (N,) higher is better.
        corners: (M, 2) pixels.

    Returns:
        (N,) bool.
    """
    correct = np.zeros(len(points), bool)
    free = np.ones(len(corners), bool)
    for i in np.argsort(-scores, kind="stable"):
        if not free.any():
            break
        distance = np.where(free, np.linalg.norm(corners - points[i], axis=1), np.inf)
        nearest = int(distance.argmin())
        if distance[nearest] <= CORRECT_PX:
            correct[i], free[nearest] = True, False
    return correct


def synthetic_map(
    detect: Callable[[NDArray[np.uint8]], Features],
    *,
    images: int = 20,
    size: tuple[int, int] = (320, 240),
    seed: int = 1_000_003,
) -> dict[str, float]:
    """Average precision for each class of shapes that has corners, and their mean.

    Detections of all images of a class are ranked together. The images have photometric noise.

    Args:
        detect: (H, W) uint8 to features; a low detection threshold gives the whole curve.
        images: of each class.
        size: (width, height) of the images, pixels.
        seed: of the images; training uses small seeds.

    Returns:
        Class to average precision in [0, 1]; "mean" is the mAP.
    """
    from frontend.training.photometric import PhotometricConfig
    from frontend.training.synthetic import SHAPES, synthetic_image

    precisions: dict[str, float] = {}
    for number, shape in enumerate(SHAPES):
        scores, correct, corners = [], [], 0
        for index in range(images):
            rng = np.random.default_rng((seed, number, index))
            image, truth = synthetic_image(rng, size, shape=shape, noise=PhotometricConfig())
            found = detect(image)
            scores.append(found.scores)
            correct.append(match_detections(found.keypoints.astype(np.float64), found.scores, truth))
            corners += len(truth)
        if corners:
            precisions[shape] = average_precision(np.concatenate(scores), np.concatenate(correct), corners)
    return {**precisions, "mean": float(np.mean(list(precisions.values())))}
