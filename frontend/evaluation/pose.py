"""The relative-pose benchmark: methods side by side on pairs of calibrated images with a known motion (SuperGlue).

The motion is estimated from the matches with an essential matrix, and compared as the angle of the
rotation that is left over and the angle between the directions of translation. The AUC is taken over the larger of
both. Estimators draw at random, so every pair is estimated several times, each time from the matches in another order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from frontend.camera import Camera
from frontend.errors import ConfigError, DataError
from frontend.evaluation import metrics
from frontend.evaluation.methods import Method
from frontend.evaluation.pairs import load_bgr, reduce_image
from frontend.evaluation.pose_estimators import ESTIMATORS, Matched, rotation_error, translation_error
from frontend.geometry import MIN_MATCHES, symmetric_epipolar_distance
from frontend.progress import Progress
from frontend.relative_pose import essential_matrix
from frontend.types import Features, Float64Array, Pose

AUC_THRESHOLDS = (5.0, 10.0, 20.0)
"""Upper ends of the area under the recall curve of the pose error, degrees."""

EPIPOLAR_THRESHOLD = 5e-4
"""Squared symmetric epipolar distance, in normalised coordinates, within which a match is right (SuperGlue)."""

PAIRS_FILE = "pairs_with_gt.txt"
_NUMBERS = 38  # two names, two rotations, 9 + 9 intrinsics, 16 of the motion


@dataclass(frozen=True, eq=False)
class PosePair:
    """A line of a pairs file.

    Attributes:
        image0: file of image 0.
        image1: file of image 1.
        turns0: quarter turns counter-clockwise that set image 0 upright; K and the pose are of the image as it is.
        turns1: the same of image 1.
        camera0: of image 0, in its own pixels.
        camera1: of image 1.
        pose: from camera 0 to camera 1, t in the unit of the file (metres).
    """

    image0: Path
    image1: Path
    turns0: int
    turns1: int
    camera0: Camera
    camera1: Camera
    pose: Pose

    @property
    def name(self) -> str:
        return f"{self.image0.name} {self.image1.name}"


@dataclass(frozen=True)
class PoseConfig:
    """What all methods of a run share.

    Attributes:
        estimators: names of :data:`ESTIMATORS`.
        threshold: of the estimators, pixels of the resized images.
        seeds: how many times each pair is estimated.
        resize: longest side that larger images are reduced to, pixels; None never.
    """

    estimators: tuple[str, ...] = ("opencv", "frontend")
    threshold: float = 1.0
    seeds: int = 5
    resize: int | None = 640

    def __post_init__(self) -> None:
        unknown = [name for name in self.estimators if name not in ESTIMATORS]
        if unknown or not self.estimators:
            given = f"'{unknown[0]}'" if unknown else "empty"
            raise ConfigError(f"estimator is {given}; expected one or more of: {', '.join(ESTIMATORS)}")
        if "poselib" in self.estimators and find_spec("poselib") is None:
            raise ConfigError("estimator 'poselib' needs: pip install 'superpoint-frontend[eval]'")
        if not self.threshold > 0 or not np.isfinite(self.threshold):
            raise ConfigError(f"threshold is {self.threshold}; expected a number of pixels above 0")
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}; expected at least 1")
        if self.resize is not None and self.resize < 32:
            raise ConfigError(f"resize is {self.resize}; expected at least 32 pixels, or none (0)")


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """One estimator on one pair, once for each seed.

    Attributes:
        rotation: (S,) degrees in [0, 180]; infinite where no pose was found.
        translation: (S,) degrees in [0, 90], see :func:`translation_error`; infinite the same.
        inliers: (S,) number of matches that support the pose.
    """

    rotation: Float64Array
    translation: Float64Array
    inliers: Float64Array

    @property
    def pose(self) -> Float64Array:
        """(S,) the larger of both, degrees."""
        return np.asarray(np.maximum(self.rotation, self.translation), np.float64)


@dataclass(frozen=True, eq=False)
class PosePairResult:
    """One method on one pair.

    Attributes:
        name: of the pair.
        keypoints0: number in image 0.
        keypoints1: number in image 1.
        matches: number of matches.
        correct: those of them within :data:`EPIPOLAR_THRESHOLD` of the true epipolar geometry.
        errors: by estimator.
    """

    name: str
    keypoints0: int
    keypoints1: int
    matches: int
    correct: int
    errors: Mapping[str, PoseErrors]

    @property
    def precision(self) -> float:
        """Part of the matches that are right; 0 without matches."""
        return self.correct / max(1, self.matches)


def read_pairs(path: Path) -> list[PosePair]:
    """Read pairs with ground truth.

    A line is ``name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16)``, matrices row by row; names are relative to the file's
    folder.

    Args:
        path: the file, or a folder with :data:`PAIRS_FILE`.

    Raises:
        DataError: there is no such file, or a line of it is wrong.
    """
    file = path / PAIRS_FILE if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{file}: cannot be read as a list of pairs ({reason})") from None
    pairs = [_parse(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise DataError(f"{file}: is empty; expected lines of name0 name1 rot0 rot1 K0 K1 T_0to1")
    return pairs


def _parse(file: Path, number: int, line: str) -> PosePair:
    words = line.split()
    if len(words) != _NUMBERS:
        raise DataError(f"{file}, line {number}: has {len(words)} values; expected {_NUMBERS}")
    try:
        turns0, turns1 = int(words[2]), int(words[3])
        values = np.array(words[4:], np.float64)
        cameras = [Camera(values[part].reshape(3, 3)) for part in (slice(0, 9), slice(9, 18))]
    except (ValueError, ConfigError) as error:
        raise DataError(f"{file}, line {number}: {error}") from None
    motion = values[18:].reshape(4, 4)
    R, t = motion[:3, :3], motion[:3, 3]
    # files carry five digits or so
    if not np.isfinite(motion).all() or np.abs(R @ R.T - np.eye(3)).max() > 1e-2 or np.linalg.det(R) < 0:
        raise DataError(f"{file}, line {number}: T_0to1 has no rotation in its first three columns")
    if not t.any():
        raise DataError(f"{file}, line {number}: T_0to1 has no translation, so that its direction is unknown")
    folder = file.parent
    return PosePair(folder / words[0], folder / words[1], turns0 % 4, turns1 % 4, cameras[0], cameras[1], Pose(R, t))


def estimate_pair(
    name: str,
    points0: Float64Array,
    points1: Float64Array,
    cameras: tuple[Camera, Camera],
    truth: Pose,
    config: PoseConfig,
    key: int = 0,
    sigmas: Float64Array | None = None,
) -> PoseErrors:
    """Estimate a pose once for each seed and compare it with the truth.

    Args:
        name: of the estimator.
        points0: (M, 2) matched pixels of image 0.
        points1: (M, 2) of image 1.
        cameras: of both.
        truth: the motion.
        config: thresholds and seeds.
        key: mixed into the seeds.
        sigmas: (M,) standard deviations of the matches, where they are known.
    """
    rows = []
    for seed in range(config.seeds):
        # the order decides what is drawn: OpenCV's generator starts the same every time
        order = np.random.default_rng([key, seed]).permutation(len(points0))
        found, inliers = None, np.zeros(0, np.bool_)
        if len(points0) >= MIN_MATCHES:
            given = Matched(points0[order], points1[order], *cameras, None if sigmas is None else sigmas[order])
            found, inliers = ESTIMATORS[name](given, config.threshold, seed)
        if found is None:
            rows.append((np.inf, np.inf, 0.0))
        else:
            errors = rotation_error(found.R, truth.R), translation_error(found.t, truth.t)
            rows.append((*errors, float(inliers.sum())))
    rotation, translation, inliers_ = np.array(rows, np.float64).T
    return PoseErrors(rotation, translation, inliers_)


def turned_back(points: np.ndarray, turns: int, size: tuple[int, int]) -> Float64Array:
    """Carry points of ``np.rot90(image, turns)`` back to the image, whose (width, height) is ``size``."""
    x, y = np.asarray(points, np.float64).reshape(-1, 2).T
    width, height = size
    back = ((x, y), (width - 1 - y, x), (width - 1 - x, height - 1 - y), (y, height - 1 - x))[turns]
    return np.stack(back, axis=1)


@dataclass(frozen=True, eq=False)
class View:
    """An image ready for extraction.

    Attributes:
        image: (H, W, 3) uint8 BGR, upright.
        turns: quarter turns that made it so.
        camera: in pixels of the reduced image before it was turned.
    """

    image: np.ndarray
    turns: int
    camera: Camera

    def extract(self, method: Method) -> tuple[Features, Float64Array]:
        """Features, and their keypoints (N, 2) in the pixels that ``camera`` is of."""
        features = method(self.image)
        height, width = self.image.shape[:2]
        size = (height, width) if self.turns % 2 else (width, height)
        return features, turned_back(features.keypoints, self.turns, size)


def load_view(path: Path, turns: int, camera: Camera, resize: int | None) -> View:
    """Read an image, reduce it and its camera, and set it upright.

    Raises:
        ImageError: it cannot be read.
    """
    image, scale = reduce_image(load_bgr(path), resize)
    # pixel centres at integers: the scaling carries the shift of half a pixel into the principal point
    return View(np.ascontiguousarray(np.rot90(image, turns)), turns, replace(camera, K=scale @ camera.K))


def evaluate_views(
    name: str, views: tuple[View, View], truth: Pose, method: Method, config: PoseConfig, matcher: str = "mnn"
) -> PosePairResult:
    """One method on one pair.

    Args:
        name: of the pair.
        views: both images.
        truth: the motion.
        method: makes features.
        config: of the estimators.
        matcher: a name of :func:`frontend.matching.match_features`.
    """
    from frontend.homography_estimation import match_sigmas
    from frontend.matching import match_features

    (features0, xy0), (features1, xy1) = (view.extract(method) for view in views)
    found = match_features(features0, features1, matcher=matcher)
    matches, sigmas = found.matches, match_sigmas(features0, features1, found)
    points0, points1 = xy0[matches[:, 0]], xy1[matches[:, 1]]
    cameras = (views[0].camera, views[1].camera)
    distances = symmetric_epipolar_distance(
        essential_matrix(truth), cameras[0].normalise(points0), cameras[1].normalise(points1)
    )
    key = zlib.crc32(name.encode())
    return PosePairResult(
        name=name,
        keypoints0=len(features0),
        keypoints1=len(features1),
        matches=len(matches),
        correct=int((distances < EPIPOLAR_THRESHOLD).sum()),
        errors={
            each: estimate_pair(each, points0, points1, cameras, truth, config, key, sigmas)
            for each in config.estimators
        },
    )


def run_pose_benchmark(
    pairs: Sequence[PosePair],
    methods: Mapping[str, Method],
    config: PoseConfig,
    matchers: Mapping[str, str] | None = None,
) -> dict[str, list[PosePairResult]]:
    """Run methods over all pairs, with a progress bar on stderr.

    Args:
        pairs: see :func:`read_pairs`.
        methods: by name.
        config: shared by all.
        matchers: of methods that are matched by another than "mnn", see :func:`frontend.matching.match_features`.

    Returns:
        Results of each pair, by method.

    Raises:
        ImageError: an image cannot be read.
    """
    results: dict[str, list[PosePairResult]] = {name: [] for name in methods}
    with Progress(len(pairs), "pairs", unit="pair") as progress:
        for pair, views in _views(pairs, config):
            for name, method in methods.items():
                matcher = (matchers or {}).get(name, "mnn")
                results[name].append(evaluate_views(pair.name, views, pair.pose, method, config, matcher))
            progress.update()
    return results


def _views(pairs: Sequence[PosePair], config: PoseConfig) -> Iterator[tuple[PosePair, tuple[View, View]]]:
    for pair in pairs:
        first = load_view(pair.image0, pair.turns0, pair.camera0, config.resize)
        yield pair, (first, load_view(pair.image1, pair.turns1, pair.camera1, config.resize))


def auc(errors: Sequence[PoseErrors]) -> Float64Array:
    """AUC of the pose error at each of :data:`AUC_THRESHOLDS`, for each seed.

    Args:
        errors: of each pair, with the same number of seeds.

    Returns:
        (S, 3) float64 in [0, 1], see :func:`frontend.evaluation.metrics.error_auc`.
    """
    by_seed = np.stack([each.pose for each in errors], axis=1)
    return np.array([[metrics.error_auc(row, limit) for limit in AUC_THRESHOLDS] for row in by_seed])
