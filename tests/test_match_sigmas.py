"""Homographies from matches that are known to be more and less exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from homography_scenes import TURNED, project, sampson_covariances, scene

from frontend.errors import ShapeError
from frontend.homography import corner_error
from frontend.homography_estimation import LEAST_SIGMA, estimate_homography, match_sigmas
from frontend.pipeline import MatchPipeline
from frontend.ransac import batched_ransac
from frontend.ransac_config import RansacConfig
from frontend.ransac_cpu import POLISH_NARROWEST, POLISH_WIDEST, TUKEY, ransac
from frontend.types import Features, Matches

pytestmark = pytest.mark.usefixtures("homography_kernels")


def uneven(seed: int, count: int = 240, outliers: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches whose noise has known standard deviations, .2 to 2 px, with outliers."""
    points0, points1, good = scene(count, outliers, 0.0, seed=seed)
    rng = np.random.default_rng(seed + 1000)
    sigmas = np.exp(rng.uniform(math.log(0.2), math.log(2.0), count))
    points1 += np.where(good, sigmas, 0.0)[:, None] * rng.normal(0, 1, (count, 2))
    return points0, points1, sigmas


def test_known_sigmas_make_the_model_more_exact() -> None:
    errors = []
    for seed in range(20):
        points0, points1, sigmas = uneven(seed)
        found = [estimate_homography(points0, points1, sigmas=given).H for given in (None, sigmas)]
        assert all(H is not None for H in found)
        errors.append([corner_error(H, TURNED, (640, 480)) for H in found if H is not None])
    plain, weighted = np.mean(errors, axis=0)
    # least squares with the true variances and without the outliers: .68
    assert weighted < 0.78 * plain


def test_the_model_minimises_the_weighted_robust_error() -> None:
    """Plain reference: Tukey's loss of standardised Sampson errors, numerically differentiated about the result."""
    points0, points1, sigmas = uneven(7, outliers=0.0)

    def lower_median(values: np.ndarray) -> float:
        return float(np.sort(values)[(len(values) - 1) // 2])

    def offsets(H: np.ndarray) -> list[float]:
        """How far the loss's minimum is along each entry, in steps that move a corner by some hundredths of a px."""
        whitening = np.linalg.inv(sampson_covariances(H, points0))  # held, as the estimator's last step does

        def errors(h: np.ndarray) -> np.ndarray:
            residuals = points1 - project(h, points0)
            return np.einsum("ni,nij,nj->n", residuals, whitening, residuals)

        limit = 3.0**2 / 2
        inside = errors(H) <= limit
        relative = sigmas**2 / lower_median(sigmas[inside] ** 2)
        median = lower_median((errors(H) / relative)[inside])
        cut = min(max(median * TUKEY**2, limit * POLISH_NARROWEST**2), limit * POLISH_WIDEST**2)

        def loss(h: np.ndarray) -> float:
            return float((cut / 6 * (1 - np.maximum(1 - errors(h) / relative / cut, 0) ** 3)).sum())

        found = []
        for entry in range(8):
            step = np.zeros(9)
            step[entry] = (1e-4, 1e-4, 5e-2)[entry % 3] / (1, 1, 500)[entry // 3]
            low, middle, high = (loss(H + k * step.reshape(3, 3)) for k in (-1, 0, 1))
            found.append(abs((low - high) / (2 * (low - 2 * middle + high))))
        return found

    weighted = estimate_homography(points0, points1, sigmas=sigmas).H
    plain = estimate_homography(points0, points1).H
    assert weighted is not None
    assert plain is not None
    assert max(offsets(weighted)) < 0.02
    assert max(offsets(plain)) > 0.5


def test_equal_sigmas_change_nothing() -> None:
    points0, points1, _ = scene(200, 0.4, 1.0)
    plain, equal = (estimate_homography(points0, points1, sigmas=s) for s in (None, np.full(200, 0.37, np.float32)))
    np.testing.assert_allclose(equal.H, plain.H, rtol=1e-9)  # type: ignore[arg-type]
    np.testing.assert_array_equal(equal.inliers, plain.inliers)


def test_the_batched_estimator_weighs_alike() -> None:
    points, sigmas, config = [], [], RansacConfig()
    for seed in range(3):
        *pair, s = uneven(seed, 200)
        points.append(pair)
        sigmas.append(s)
    batch = [torch.from_numpy(np.stack([pair[k] for pair in points])) for k in (0, 1)]
    variances = torch.from_numpy(np.stack(sigmas) ** 2)
    valid = torch.ones(3, 200, dtype=torch.bool)
    valid[:, 5:9] = False
    # what is not valid may hold anything
    variances[:, 5:9] = torch.nan
    found = batched_ransac(*batch, valid, config, variances)
    keep = valid[0].numpy()
    for i, (points0, points1) in enumerate(points):
        H, _, _ = ransac(points0[keep], points1[keep], config, sigmas[i][keep] ** 2)
        assert H is not None
        assert corner_error(found.H[i].numpy(), H, (640, 480)) < 0.01
        plain, _, _ = ransac(points0[keep], points1[keep], config)
        assert plain is not None
        assert corner_error(plain, H, (640, 480)) > 0.02
    with pytest.raises(ShapeError, match=r"variances is \(3, 199\)"):
        batched_ransac(*batch, valid, config, variances[:, 1:])


def features(sigmas: np.ndarray | None) -> Features:
    count = 4
    return Features(
        np.zeros((count, 2), np.float32),
        np.ones(count, np.float32),
        np.eye(count, dtype=np.float32),
        (64, 48),
        "x",
        sigmas,
    )


def test_sigmas_of_matches() -> None:
    first = features(np.array([0.3, 0.6, 0.9, 0], np.float32))
    second = features(np.array([0.4, 0.8, 1.2, 0], np.float32))
    matches = Matches(np.array([[0, 0], [2, 1], [3, 3]]), np.ones(3, np.float32))
    got = match_sigmas(first, second, matches)
    np.testing.assert_allclose(got, [0.5, math.hypot(0.9, 0.8), LEAST_SIGMA], rtol=1e-6)  # type: ignore[arg-type]
    assert match_sigmas(first, features(None), matches) is None


def test_the_pipeline_weighs_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, np.ndarray] = {}

    def estimate(points0: np.ndarray, points1: np.ndarray, **settings: object) -> object:
        given.update(sigmas=settings["sigmas"])  # type: ignore[dict-item]
        return estimate_homography(points0, points1, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("frontend.pipeline.estimate_homography", estimate)

    class Extractor:
        device = "cpu"

    pipeline = MatchPipeline(Extractor())  # type: ignore[arg-type]
    sigmas = np.array([0.3, 0.6, 0.9, 1.2], np.float32)
    result = pipeline.match_features(features(sigmas), features(sigmas))
    np.testing.assert_allclose(given["sigmas"], math.sqrt(2) * sigmas[result.matches.matches[:, 0]], rtol=1e-6)
    assert len(given["sigmas"]) == 4


@pytest.mark.parametrize(
    "sigmas", [np.ones(8), np.ones((9, 1)), np.zeros(9), np.full(9, -1.0), np.full(9, np.nan), np.full(9, "a")]
)
def test_other_sigmas_are_refused(sigmas: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"sigmas .*; expected"):
        estimate_homography(np.ones((9, 2)), np.ones((9, 2)), sigmas=sigmas)


def test_a_match_without_coordinates_takes_its_sigma_along() -> None:
    points0, points1, sigmas = uneven(3)
    expected = estimate_homography(points0, points1, sigmas=sigmas)
    broken0 = np.insert(points0, 4, np.nan, axis=0)
    broken1, more = np.insert(points1, 4, 0.0, axis=0), np.insert(sigmas, 4, 0.001)
    got = estimate_homography(broken0, broken1, sigmas=more)
    np.testing.assert_allclose(got.H, expected.H, rtol=1e-9)  # type: ignore[arg-type]
    assert not got.inliers[4]
