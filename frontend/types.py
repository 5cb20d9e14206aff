"""What crosses the public boundary: frozen dataclasses of NumPy arrays.

Coordinate contract: a keypoint is (x, y), float32, in pixels of the image as it was given; (0, 0) is the
centre of its top-left pixel. Sizes are (width, height). ``H`` maps points of image 0 to image 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Status(str, Enum):
    """Outcome of a geometry estimation."""

    OK = "ok"
    TOO_FEW_MATCHES = "too_few_matches"
    NO_MODEL = "no_model"
    NOT_REQUESTED = "not_requested"


@dataclass(frozen=True)
class Features:
    """Keypoints of one image, best score first.

    Attributes:
        keypoints: (N, 2) float32, (x, y) in pixels of the original image.
        scores: (N,) float32 in (0, 1], non-increasing.
        descriptors: (N, D) float32, each of unit L2 norm.
        image_size: (width, height) of the original image.
        model: name of the model that made them.
        sigmas: (N,) float32, standard deviation of the position along an axis, pixels of the original image; None where
            the model does not know it.
    """

    keypoints: Float32Array
    scores: Float32Array
    descriptors: Float32Array
    image_size: tuple[int, int]
    model: str = ""
    sigmas: Float32Array | None = None

    def __len__(self) -> int:
        return int(self.keypoints.shape[0])


@dataclass(frozen=True)
class Matches:
    """Correspondences between two sets of features.

    Attributes:
        matches: (M, 2) int64, rows (index into image 0, index into image 1).
        match_scores: (M,) float32, cosine similarity of the descriptors in [-1, 1] (or the matcher's own score).
    """

    matches: IntArray
    match_scores: Float32Array

    def __len__(self) -> int:
        return int(self.matches.shape[0])


@dataclass(frozen=True)
class Homography:
    """A planar transform between two images.

    Attributes:
        H: (3, 3) float64 with H[2, 2] = 1, image 0 to image 1; None where none was found.
        inliers: (M,) bool, one for each match.
        status: why ``H`` is or is not there.
    """

    H: Float64Array | None
    inliers: BoolArray
    status: Status

    @property
    def num_inliers(self) -> int:
        return int(self.inliers.sum())


@dataclass(frozen=True)
class Fundamental:
    """The epipolar geometry of two images: x1^T F x0 = 0.

    Attributes:
        F: (3, 3) float64; None where none was found.
        inliers: (M,) bool, one for each match.
        status: why ``F`` is or is not there.
    """

    F: Float64Array | None
    inliers: BoolArray
    status: Status

    @property
    def num_inliers(self) -> int:
        return int(self.inliers.sum())


@dataclass(frozen=True)
class MatchResult:
    """Two images matched.

    Attributes:
        features0: features of image 0.
        features1: features of image 1.
        matches: their correspondences.
        geometry: the model fitted to the matches.
        timings_ms: milliseconds of each stage, by name, in the order they ran.
    """

    features0: Features
    features1: Features
    matches: Matches
    geometry: Homography | Fundamental
    timings_ms: dict[str, float] = field(default_factory=dict)
