"""Whether the standard deviations that a model states for its keypoints are those that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frontend.errors import ConfigError
from frontend.evaluation.datasets import PairDataset
from frontend.evaluation.methods import Method
from frontend.homography import warp_points
from frontend.progress import Progress
from frontend.types import Features, Float64Array

LIMIT_PX = 4.0
"""Keypoints of two views are taken for one point where they are nearest to each other and nearer than this."""


@dataclass(frozen=True)
class Bin:
    """Pairs of keypoints with about the same stated uncertainty.

    Attributes:
        pairs: number of them.
        stated: root mean square of the stated standard deviation of their difference along an axis, pixels.
        measured: the same, measured.
    """

    pairs: int
    stated: float
    measured: float


def displacements(features0: Features, features1: Features, H: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Differences between keypoints that show the same point, and their stated standard deviations.

    The uncertainty of image 0 is taken over to image 1 as it is: a view change scales it, up or down.

    Args:
        features0: of image 0, with ``sigmas``.
        features1: of image 1, with ``sigmas``.
        H: (3, 3), image 0 to image 1.

    Returns:
        (N, 2) differences in pixels of image 1, and (N,) standard deviations of a difference along an axis.

    Raises:
        ConfigError: the features have no ``sigmas``.
    """
    if features0.sigmas is None or features1.sigmas is None:
        raise ConfigError(f"model '{features0.model}' states no uncertainties; expected one with a refiner")
    if not len(features0) or not len(features1):
        return np.zeros((0, 2)), np.zeros(0)
    warped = warp_points(features0.keypoints.astype(np.float64), H)
    points = features1.keypoints.astype(np.float64)
    distance = np.linalg.norm(warped[:, None] - points[None], axis=2)
    partner = distance.argmin(axis=1)
    own = np.arange(len(warped))
    mutual = (distance.argmin(axis=0)[partner] == own) & (distance[own, partner] < LIMIT_PX)
    first, second = own[mutual], partner[mutual]
    sigmas = np.hypot(features0.sigmas[first].astype(np.float64), features1.sigmas[second].astype(np.float64))
    return warped[first] - points[second], sigmas


def calibration(differences: Float64Array, sigmas: Float64Array, bins: int = 5) -> list[Bin]:
    """Sort by stated uncertainty, cut into equal parts, and compare each with what is measured.

    Args:
        differences: (N, 2) pixels.
        sigmas: (N,) pixels.
        bins: parts.
    """
    parts: Sequence[np.ndarray] = np.array_split(np.argsort(sigmas, kind="stable"), bins)
    return [
        Bin(len(part), float(np.sqrt((sigmas[part] ** 2).mean())), float(np.sqrt((differences[part] ** 2).mean())))
        for part in parts
        if len(part)
    ]


def run_calibration(dataset: PairDataset, method: Method, bins: int = 5) -> dict[str, list[Bin]]:
    """Calibration over all pairs of a dataset, by their kind.

    Raises:
        ConfigError: the method states no uncertainties.
    """
    found: dict[str, list[tuple[Float64Array, Float64Array]]] = {}
    with Progress(len(dataset), "pairs", unit="pair") as progress:
        for pair in dataset:
            one = displacements(method(pair.image0), method(pair.image1), pair.H)
            found.setdefault(pair.kind, []).append(one)
            progress.update()
    return {
        kind: calibration(np.concatenate([d for d, _ in parts]), np.concatenate([s for _, s in parts]), bins)
        for kind, parts in found.items()
    }
