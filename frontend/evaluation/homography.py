"""The homography benchmark: methods side by side on pairs with a known homography (SuperPoint, tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from frontend.errors import ConfigError
from frontend.evaluation import metrics
from frontend.evaluation.camera import UInt8Image
from frontend.evaluation.datasets import PairDataset
from frontend.evaluation.methods import Method, computed_by
from frontend.evaluation.pairs import KINDS, ImagePair
from frontend.homography import corner_error
from frontend.progress import Progress
from frontend.types import Features, Float64Array, Homography, Matches

CORRECT_PX = 3.0
"""Distance within which a point is repeated and a match is right: the paper's epsilon."""

MMA_THRESHOLDS = np.arange(1.0, 11.0)
"""Pixels at which the mean matching accuracy is taken."""

HOMOGRAPHY_THRESHOLDS = (1.0, 3.0, 5.0)
"""Mean corner errors at which the homography accuracy is taken, pixels."""

AUC_THRESHOLD = 5.0
"""Upper end of the area under the recall curve of the corner error, pixels."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What all methods of a run share.

    Attributes:
        threshold: of the robust estimator, pixels.
        geometry_method: "opencv" (USAC_MAGSAC) or "ransac" (this project's).
        seed: of the estimator, where it has one.
    """

    threshold: float = 3.0
    geometry_method: str = "opencv"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.geometry_method not in ("opencv", "ransac"):
            raise ConfigError(f"geometry_method is '{self.geometry_method}'; expected opencv or ransac")
        if not self.threshold > 0 or not np.isfinite(self.threshold):
            raise ConfigError(f"threshold is {self.threshold}; expected a number of pixels above 0")


@dataclass(frozen=True, eq=False)
class PairResult:
    """One method on one pair.

    Attributes:
        name: of the pair.
        kind: "viewpoint" or "illumination".
        keypoints0: number in image 0.
        keypoints1: number in image 1.
        matches: number of matches.
        inliers: number of matches that support the homography.
        repeatability: see :func:`frontend.evaluation.metrics.repeatability`.
        localization_error: pixels; NaN where nothing is repeated.
        nn_ap: average precision of nearest-neighbour matching.
        matching_score: see :func:`frontend.evaluation.metrics.matching_score`.
        matching_accuracy: (T,) part of the matches within each of :data:`MMA_THRESHOLDS`.
        corner_error: mean over the four corners, pixels; infinite where no homography was found.
    """

    name: str
    kind: str
    keypoints0: int
    keypoints1: int
    matches: int
    inliers: int
    repeatability: float
    localization_error: float
    nn_ap: float
    matching_score: float
    matching_accuracy: Float64Array
    corner_error: float


@dataclass(frozen=True, eq=False)
class Summary:
    """One method on all pairs of one kind: means over pairs.

    Attributes:
        pairs: number of pairs.
        homography_accuracy_1: part of the pairs with a mean corner error of at most 1 px.
        homography_accuracy_3: the same at 3 px.
        homography_accuracy_5: the same at 5 px.
        auc_5: area under the recall curve of the corner error up to 5 px.
        mma_3: mean matching accuracy at 3 px.
        mma: (T,) the same at each of :data:`MMA_THRESHOLDS`.
        repeatability: at 3 px.
        localization_error: pixels, over the pairs with a repeated point; NaN where there are none.
        nn_map: mean average precision of nearest-neighbour matching.
        matching_score: at 3 px.
        keypoints: mean number in an image.
        matches: mean number.
        inliers: mean number.
        failures: number of pairs without a homography.
    """

    pairs: int
    homography_accuracy_1: float
    homography_accuracy_3: float
    homography_accuracy_5: float
    auc_5: float
    mma_3: float
    mma: Float64Array
    repeatability: float
    localization_error: float
    nn_map: float
    matching_score: float
    keypoints: float
    matches: float
    inliers: float
    failures: int


@dataclass(frozen=True)
class BenchmarkResult:
    """A whole run.

    Attributes:
        dataset: what was run on.
        config: how.
        max_keypoints: the budget of all methods.
        pairs: results of each pair, by method.
        networks: what computed those methods that are networks, see :func:`~frontend.evaluation.methods.computed_by`.
        matchers: of those methods that have another than "mnn".
    """

    dataset: PairDataset
    config: BenchmarkConfig
    max_keypoints: int
    pairs: Mapping[str, list[PairResult]]
    networks: Mapping[str, str]
    matchers: Mapping[str, str] = field(default_factory=dict)

    def kinds(self) -> list[str]:
        """The kinds of pairs that there are: viewpoint first, rotations last and in their order."""
        counts = self.dataset.counts
        others = [kind for kind in counts if kind not in KINDS]
        return [kind for kind in (*KINDS, *others) if counts.get(kind)]

    def of(self, method: str, kind: str) -> list[PairResult]:
        """The results of one method on the pairs of one kind."""
        return [result for result in self.pairs[method] if result.kind == kind]

    def summary(self, method: str, kind: str) -> Summary:
        """The means of one method on the pairs of one kind."""
        return summarize(self.of(method, kind))


def match_and_fit(
    features0: Features, features1: Features, config: BenchmarkConfig, matcher: str = "mnn"
) -> tuple[Matches, Homography]:
    """Matches, and the homography that fits them best."""
    from frontend.homography_estimation import estimate_homography, match_sigmas
    from frontend.matching import match_features

    found = match_features(features0, features1, matcher=matcher)
    geometry = estimate_homography(
        features0.keypoints[found.matches[:, 0]],
        features1.keypoints[found.matches[:, 1]],
        sigmas=match_sigmas(features0, features1, found),
        method="opencv" if config.geometry_method == "opencv" else "ransac",
        threshold=config.threshold,
        seed=config.seed,
    )
    return found, geometry


def evaluate_pair(
    pair: ImagePair, features0: Features, features1: Features, config: BenchmarkConfig, matcher: str = "mnn"
) -> PairResult:
    """Match two images' features, fit a homography, and measure everything.

    Args:
        pair: the images and their homography.
        features0: of image 0.
        features1: of image 1.
        config: of the estimator.
        matcher: a name of :func:`frontend.matching.match_features`.
    """
    size0 = (pair.image0.shape[1], pair.image0.shape[0])
    size1 = (pair.image1.shape[1], pair.image1.shape[0])
    points0, points1 = features0.keypoints, features1.keypoints
    found, geometry = match_and_fit(features0, features1, config, matcher)
    matches = found.matches
    detector = metrics.repeatability(points0, points1, pair.H, size0, size1, CORRECT_PX)
    precision = metrics.nearest_neighbor_ap(
        points0, points1, features0.descriptors, features1.descriptors, pair.H, size0, size1, CORRECT_PX
    )
    errors = metrics.match_errors(points0, points1, matches, pair.H)
    return PairResult(
        name=pair.name,
        kind=pair.kind,
        keypoints0=len(features0),
        keypoints1=len(features1),
        matches=len(matches),
        inliers=geometry.num_inliers,
        repeatability=detector.repeatability,
        localization_error=detector.localization_error,
        nn_ap=precision,
        matching_score=metrics.matching_score(points0, points1, matches, pair.H, size0, size1, CORRECT_PX),
        matching_accuracy=metrics.matching_accuracy(errors, MMA_THRESHOLDS),
        corner_error=float("inf") if geometry.H is None else corner_error(geometry.H, pair.H, size0),
    )


def summarize(results: list[PairResult]) -> Summary:
    """Means over the pairs of one kind.

    Args:
        results: at least one.
    """
    if not results:
        raise ConfigError("no pairs to summarise; expected at least one")
    corner_errors = np.array([result.corner_error for result in results])
    acc1, acc3, acc5 = metrics.accuracy(corner_errors, np.array(HOMOGRAPHY_THRESHOLDS)).tolist()
    mma = np.mean([result.matching_accuracy for result in results], axis=0)
    localization = np.array([result.localization_error for result in results])
    localization = localization[np.isfinite(localization)]

    def mean(name: str) -> float:
        return float(np.mean([getattr(result, name) for result in results]))

    return Summary(
        pairs=len(results),
        homography_accuracy_1=acc1,
        homography_accuracy_3=acc3,
        homography_accuracy_5=acc5,
        auc_5=metrics.error_auc(corner_errors, AUC_THRESHOLD),
        mma_3=float(mma[MMA_THRESHOLDS == CORRECT_PX][0]),
        mma=mma,
        repeatability=mean("repeatability"),
        localization_error=float(localization.mean()) if len(localization) else float("nan"),
        nn_map=mean("nn_ap"),
        matching_score=mean("matching_score"),
        keypoints=(mean("keypoints0") + mean("keypoints1")) / 2,
        matches=mean("matches"),
        inliers=mean("inliers"),
        failures=int(np.isinf(corner_errors).sum()),
    )


class _ReferenceMemory:
    """A method that remembers the last reference image: pairs of one sequence share its array."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._image: UInt8Image | None = None
        self._features: Features | None = None

    def reference(self, image: UInt8Image) -> Features:
        if self._features is None or image is not self._image:
            self._image, self._features = image, self._method(image)
        return self._features

    def other(self, image: UInt8Image) -> Features:
        return self._method(image)


def run_benchmark(
    dataset: PairDataset,
    methods: Mapping[str, Method],
    config: BenchmarkConfig | None = None,
    *,
    max_keypoints: int,
    matchers: Mapping[str, str] | None = None,
) -> BenchmarkResult:
    """Run methods over all pairs, with a progress bar on stderr.

    Args:
        dataset: the pairs.
        methods: by name; each is to return at most ``max_keypoints`` features.
        config: of the estimator.
        max_keypoints: the budget.
        matchers: of methods that are matched by another than "mnn", see :func:`frontend.matching.match_features`.

    Raises:
        ConfigError: a method exceeds the budget.
        ImageError: an image cannot be read.
    """
    config, matchers = config or BenchmarkConfig(), matchers or {}
    memories = {name: _ReferenceMemory(method) for name, method in methods.items()}
    results: dict[str, list[PairResult]] = {name: [] for name in methods}
    with Progress(len(dataset), "pairs", unit="pair") as progress:
        for pair in dataset:
            for name, memory in memories.items():
                features0, features1 = memory.reference(pair.image0), memory.other(pair.image1)
                most = max(len(features0), len(features1))
                if most > max_keypoints:
                    raise ConfigError(f"method '{name}' returned {most} keypoints; expected at most {max_keypoints}")
                results[name].append(evaluate_pair(pair, features0, features1, config, matchers.get(name, "mnn")))
            progress.update()
    return BenchmarkResult(dataset, config, max_keypoints, results, computed_by(methods), matchers)


SUMMARY_FIELDS = tuple(field.name for field in fields(Summary))
"""Names of all measures, in their order of report."""
