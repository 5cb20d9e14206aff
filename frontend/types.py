"""What crosses the public boundary: frozen dataclasses of NumPy arrays.

Two of them are equal where they are one and the same, since arrays have no single truth; what holds them may be hashed.

Coordinate contract: a keypoint is (x, y), float32, in pixels of the image as it was given; (0, 0) is the
centre of its top-left pixel. Sizes are (width, height). ``H`` maps points of image 0 to image 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from frontend.errors import ShapeError

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


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of one image, best score first.

    Attributes:
        keypoints: (N, 2) float32, (x, y) in pixels of the original image. A model with a refiner may put some within a
            pixel of each other, and nearer to the edge than the extractor's border by what it has moved them.
        scores: (N,) float32 in (0, 1], non-increasing: the refiner's, where the model has one, and not the detector's,
            by which the extractor's threshold and number of keypoints choose.
        descriptors: (N, D) float32, each of unit L2 norm.
        image_size: (width, height) of the original image.
        model: name of the model that made them.
        sigmas: (N,) float32, standard deviation of the position along an axis, pixels of the original image; None where
            the model does not know it. One for both axes, also where ``resize`` scaled them differently, see
            :class:`frontend.extraction.ExtractorConfig`.

    Raises:
        ShapeError: the arrays are not of these shapes, or not of one N; their values are not looked at.
    """

    keypoints: Float32Array
    scores: Float32Array
    descriptors: Float32Array
    image_size: tuple[int, int]
    model: str = ""
    sigmas: Float32Array | None = None

    def __post_init__(self) -> None:
        given = {"keypoints": self.keypoints, "scores": self.scores, "descriptors": self.descriptors}
        if self.sigmas is not None:
            given["sigmas"] = self.sigmas
        shapes = [getattr(array, "shape", ()) for array in given.values()]
        count, width = shapes[0][:1], shapes[2][1:]
        # matchers and trackers index one by rows of another, and would fail long after, or not at all
        if not count or len(width) != 1 or shapes != [(*count, 2), count, (*count, *width), count][: len(shapes)]:
            said = ", ".join(
                f"{name} {shape if hasattr(array, 'shape') else type(array).__name__}"
                for (name, array), shape in zip(given.items(), shapes, strict=True)
            )
            raise ShapeError(f"features have {said}; expected (N, 2), (N,), (N, D) and, where there are any, (N,)")

    def __len__(self) -> int:
        return int(self.keypoints.shape[0])


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class Homography:
    """A planar transform between two images.

    Attributes:
        kind: the model in words.
        symbol: its letter.
        H: (3, 3) float64 with H[2, 2] = 1, image 0 to image 1; None where none was found.
        inliers: (M,) bool, one for each match.
        status: why ``H`` is or is not there.
    """

    kind: ClassVar[str] = "homography"
    symbol: ClassVar[str] = "H"

    H: Float64Array | None
    inliers: BoolArray
    status: Status

    @property
    def matrix(self) -> Float64Array | None:
        """The matrix, whatever the model is."""
        return self.H

    @property
    def num_inliers(self) -> int:
        return int(self.inliers.sum())


@dataclass(frozen=True, eq=False)
class Fundamental:
    """The epipolar geometry of two images: x1^T F x0 = 0.

    Attributes:
        kind: the model in words.
        symbol: its letter.
        F: (3, 3) float64; None where none was found.
        inliers: (M,) bool, one for each match.
        status: why ``F`` is or is not there.
    """

    kind: ClassVar[str] = "fundamental matrix"
    symbol: ClassVar[str] = "F"

    F: Float64Array | None
    inliers: BoolArray
    status: Status

    @property
    def matrix(self) -> Float64Array | None:
        """The matrix, whatever the model is."""
        return self.F

    @property
    def num_inliers(self) -> int:
        return int(self.inliers.sum())


@dataclass(frozen=True, eq=False)
class Essential:
    """The motion between two calibrated cameras: y1^T E y0 = 0 for normalised points, E = [t]x R, X1 = R X0 + t.

    Attributes:
        kind: the model in words.
        symbol: its letter.
        E: (3, 3) float64 of unit Frobenius norm; None where none was found.
        R: (3, 3) float64 rotation from camera 0 to camera 1; None where none was found.
        t: (3,) float64 direction of the translation, of unit norm: two images do not tell its length.
        inliers: (M,) bool, one for each match.
        status: why ``E`` is or is not there.
    """

    kind: ClassVar[str] = "essential matrix"
    symbol: ClassVar[str] = "E"

    E: Float64Array | None
    R: Float64Array | None
    t: Float64Array | None
    inliers: BoolArray
    status: Status

    @property
    def matrix(self) -> Float64Array | None:
        """The matrix, whatever the model is."""
        return self.E

    @property
    def num_inliers(self) -> int:
        return int(self.inliers.sum())


@dataclass(frozen=True, eq=False)
class Pose:
    """A rigid motion between two cameras: X1 = R X0 + t.

    Attributes:
        R: (3, 3) float64 rotation.
        t: (3,) float64, of unit norm where only its direction is known, zero for a camera that only turned.
    """

    R: Float64Array
    t: Float64Array


@dataclass(frozen=True, eq=False)
class StereoPoints:
    """What the right image of a stereo pair adds to the left one's keypoints.

    Attributes:
        rows: (M,) int64, keypoints of the left image that were found in the right one, ascending.
        keypoints: (M, 2) float32, pixels of the right image.
        points: (M, 3) float64, in the left camera's frame, in the unit of the baseline (metres); None where the pair
            is not calibrated.
    """

    rows: IntArray
    keypoints: Float32Array
    points: Float64Array | None


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """What a frame of a sequence shows.

    Attributes:
        index: of the frame, from 0.
        stamp_ns: its time, nanoseconds.
        image_size: (width, height) of the image.
        track_ids: (N,) int64, one for each keypoint; never used again in a sequence.
        ages: (N,) int64, frames in which the track has been seen, this one included.
        keypoints: (N, 2) float32 pixels.
        scores: (N,) float32, see :class:`Features`.
        sigmas: (N,) float32, the same.
        normalised: (N, 2) float64 undistorted normalised coordinates, NaN where the distortion has no inverse; None
            without a camera.
        velocities: (N, 2) float32 pixels a second since the track was last seen; 0 for new tracks.
        new: (N,) bool, tracks that start here.
        lost: (L,) int64, tracks that have been given up with this frame.
        keyframe: whether it is one.
        motion: "homography", "fundamental", "essential" or "none": the model of the motion since the frame before.
        matrix: (3, 3) float64 of that model, frame before to this frame; None without one. An essential matrix is of
            normalised coordinates, the others are of pixels, undistorted ones where the camera has distortion.
        inlier_share: share of the matches with tracks seen in the frame before that the motion explains, in [0, 1].
        pose: of this frame relative to the frame before; None without a camera, where there is no motion model, or
            where that is a fundamental matrix, which contradicts the camera.
        stereo: what the right image adds; None without one.
    """

    index: int
    stamp_ns: int
    image_size: tuple[int, int]
    track_ids: IntArray
    ages: IntArray
    keypoints: Float32Array
    scores: Float32Array
    sigmas: Float32Array | None
    normalised: Float64Array | None
    velocities: Float32Array
    new: BoolArray
    lost: IntArray
    keyframe: bool
    motion: str
    matrix: Float64Array | None
    inlier_share: float
    pose: Pose | None = None
    stereo: StereoPoints | None = None


@dataclass(frozen=True, eq=False)
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
    geometry: Homography | Fundamental | Essential
    timings_ms: dict[str, float] = field(default_factory=dict)
