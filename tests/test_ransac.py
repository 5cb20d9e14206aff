from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from homography_scenes import TURNED, project, reference_dlt, scene, symmetric_errors, tensors

from frontend import kernels, ransac_cpu
from frontend.errors import ConfigError, ShapeError
from frontend.geometry import estimate_fundamental
from frontend.homography import corner_error
from frontend.homography_estimation import estimate_homography
from frontend.ransac import batched_ransac
from frontend.ransac_config import FARTHEST, RansacConfig
from frontend.ransac_search import _optimise_best, _sample, _score, prepare, search
from frontend.types import Fundamental, Homography, Status

pytestmark = pytest.mark.usefixtures("homography_kernels")


def load_benchmark() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "homography_ransac.py"
    spec = importlib.util.spec_from_file_location("homography_ransac_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCHMARK = load_benchmark()


@pytest.mark.parametrize("method", ["ransac", "opencv"])
def test_finds_homography_among_outliers(method: str) -> None:
    points0, points1, good = scene(300, 0.6, 0.5)
    result = estimate_homography(points0, points1, method=method)  # type: ignore[arg-type]
    assert result.status is Status.OK
    assert result.H is not None
    assert result.H.dtype == np.float64
    assert result.H[2, 2] == 1
    assert np.abs(project(result.H, points0) - project(TURNED, points0)).max() < 1.0
    error = ((project(result.H, points0) - points1) ** 2).sum(1)
    error += ((project(np.linalg.inv(result.H), points1) - points0) ** 2).sum(1)
    np.testing.assert_array_equal(result.inliers, error <= 18.0)
    assert result.inliers[good].all()
    assert result.inliers[~good].sum() <= 2


def test_polish_reaches_the_least_squares_optimum() -> None:
    points0, points1, _ = scene(200, 0.0, 1.0, seed=3)
    result = estimate_homography(points0, points1)
    ours, best = (symmetric_errors(h, points0, points1).sum() for h in (result.H, reference_dlt(points0, points1)))
    # no refit on all matches may beat it by more than what the robust weights give away
    assert ours <= 1.002 * best


def test_local_optimisation_improves_the_best_sample() -> None:
    points0, points1, good = scene(200, 0.3, 1.5)
    matches, _, _ = prepare(*tensors(points0, points1), torch.ones(1, 200, dtype=torch.bool), 3.0)
    h, used, _ = _sample(matches, torch.rand(256, 4, generator=torch.Generator().manual_seed(0)), 64)
    _, cost, inliers = _optimise_best(h, used, matches, 3.0)
    assert float(cost) < 0.95 * float(_score(h, matches)[used].min())
    assert int(inliers) >= 0.8 * good.sum()


def test_exact_matches() -> None:
    points0, points1, _ = scene(50, 0.0, 0.0)
    result = estimate_homography(points0, points1)
    assert result.num_inliers == 50
    np.testing.assert_allclose(result.H, TURNED, rtol=1e-6, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("outliers", [0.3, 0.5, 0.7, 0.8])
def test_as_accurate_as_opencv_magsac(outliers: float) -> None:
    row = BENCHMARK.run_level(outliers, 80, (200, 500), timed_trials=1)
    assert row.ransac_error <= 1.05 * row.opencv_error
    assert row.ransac_error < 1.0
    assert row.ransac_failures <= row.opencv_failures


def test_batch_and_padding_do_not_matter() -> None:
    trials = [BENCHMARK.make_trial(seed, 0.2 + 0.1 * seed, (60, 300)) for seed in range(7)]
    rng = np.random.default_rng(0)
    unrelated = BENCHMARK.Trial(*rng.uniform(0, 400, (2, 150, 2)), np.eye(3), np.zeros(150, dtype=bool))
    trials.insert(3, unrelated)
    points0, points1, valid = BENCHMARK.stack(trials)
    padded0 = torch.full((8, 400, 2), math.nan)
    padded1, mask = padded0.clone(), torch.zeros(8, 400, dtype=torch.bool)
    # valid matches scattered, in order, over a longer axis of rubbish
    places = torch.from_numpy(np.sort(rng.permutation(400)[: valid.shape[1]]))
    padded0[:, places], padded1[:, places], mask[:, places] = points0, points1, valid
    whole, scattered = batched_ransac(points0, points1, valid), batched_ransac(padded0, padded1, mask)
    assert whole.ok.tolist() == [True] * 3 + [False] + [True] * 4
    for item, trial in enumerate(trials):
        single = batched_ransac(*BENCHMARK.stack([trial]))
        count = len(trial.points0)
        for other, inliers in (
            (single.H[0], single.inliers[0]),
            (scattered.H[item], scattered.inliers[item, places][:count]),
        ):
            torch.testing.assert_close(other, whole.H[item], rtol=1e-5, atol=1e-5)
            assert torch.equal(inliers, whole.inliers[item, :count])
        assert int(single.iterations) == int(whole.iterations[item])
    assert not scattered.inliers[~mask].any()


def test_early_stop_follows_the_inlier_ratio() -> None:
    trials = [BENCHMARK.make_trial(0, outliers, (300, 300)) for outliers in (0.2, 0.75)]
    few, many = batched_ransac(*BENCHMARK.stack(trials)).iterations.tolist()
    assert few <= 1024 < many
    bounded = batched_ransac(*BENCHMARK.stack(trials), RansacConfig(max_iterations=100))
    assert bounded.iterations.max() <= 100


def test_deterministic() -> None:
    points0, points1, _ = scene(200, 0.6, 1.0)
    for method in ("ransac", "opencv"):
        state = torch.random.get_rng_state()
        first, second = (estimate_homography(points0, points1, method=method) for _ in range(2))  # type: ignore[arg-type]
        np.testing.assert_array_equal(first.H, second.H)  # type: ignore[arg-type]
        np.testing.assert_array_equal(first.inliers, second.inliers)
        assert torch.equal(torch.random.get_rng_state(), state)


def searched(points0: np.ndarray, points1: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What few samples give, in NumPy and in a batch of one: too few for all seeds to end at the same model."""
    config = RansacConfig(seed=seed, max_iterations=20)
    matches, _, _ = ransac_cpu._prepare(points0, points1)
    chosen = kernels.homography_kernels()
    solver = chosen.GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    found, _ = ransac_cpu._search(matches, solver, config, chosen)
    assert found is not None
    valid = torch.ones(1, len(points0), dtype=torch.bool)
    batched, _, _ = search(prepare(*tensors(points0, points1), valid, config.threshold)[0], config)
    return found.h, batched[0].numpy()


def test_samples_are_drawn_by_the_seed() -> None:
    points0, points1, _ = scene(200, 0.8, 1.0)
    first, again, *others = (searched(points0, points1, seed) for seed in (3, 3, 0, 1, 2))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    for method in (0, 1):
        assert any(np.abs(other[method] - first[method]).max() > 1e-3 for other in others)


def without_model(result: Homography, status: Status = Status.NO_MODEL) -> bool:
    return result.H is None and result.status is status and not result.inliers.any()


METHODS = pytest.mark.parametrize("method", ["ransac", "opencv"])


@METHODS
@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few(count: int, method: str) -> None:
    result = estimate_homography(np.ones((count, 2)), np.ones((count, 2)), method=method)  # type: ignore[arg-type]
    assert without_model(result, Status.TOO_FEW_MATCHES)
    assert result.inliers.shape == (count,)


@METHODS
@pytest.mark.parametrize("count", [10, 100, 300])
def test_unrelated_matches_give_no_model(count: int, method: str) -> None:
    for seed in range(8):
        points = np.random.default_rng(seed).uniform(0, 1, (2, count, 2)) * [639, 479]
        assert without_model(estimate_homography(*points, method=method)), seed  # type: ignore[arg-type]


def degenerate() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0, 1, (60, 2)) * [639, 479]
    line = np.linspace(0, 600, 60)[:, None] * [1.0, 0.6] + [10, 20]
    noisy = line + rng.normal(0, 0.7, line.shape)
    one_off = noisy.copy()
    one_off[7] = [100, 400]
    mirrored = spread * [-1, 1] + [639, 0]
    return {
        "four exact": (spread[:4], spread[:4] + 5.0),
        "one match repeated": (np.full((60, 2), 50.0), np.full((60, 2), 70.0)),
        "collinear": (line, line + 3.0),
        "noisily collinear": (noisy, line + 3.0),
        "on a level line": (
            np.c_[line[:, 0], 200 + rng.normal(0, 0.7, 60)],
            np.c_[line[:, 0] + rng.normal(0, 0.3, 60), 230 + rng.normal(0, 0.7, 60)],
        ),
        "collinear but one": (one_off, line + 3.0 + (one_off - noisy)),
        "all to one point": (spread, np.full((60, 2), 70.0)),
        "all onto a line": (spread, line),
        "mirrored": (spread, mirrored),
        "shrunk 40-fold": (spread, spread / 40 + 300),
        "squashed 40-fold": (spread, spread * [1, 1 / 40]),
    }


@METHODS
@pytest.mark.parametrize("name", degenerate())
def test_degenerate_matches_give_no_model(name: str, method: str) -> None:
    points0, points1 = degenerate()[name]
    assert without_model(estimate_homography(points0, points1, method=method))  # type: ignore[arg-type]
    assert without_model(estimate_homography(points1, points0, method=method))  # type: ignore[arg-type]


@METHODS
def test_few_good_matches_suffice(method: str) -> None:
    points0, points1, _ = scene(10, 0.0, 0.3)
    assert estimate_homography(points0, points1, method=method).num_inliers == 10  # type: ignore[arg-type]


@METHODS
def test_small_plane_and_zoom(method: str) -> None:
    rng = np.random.default_rng(0)
    points0, points1, good = scene(200, 0.5, 0.5)
    h = np.array([[0.2, 0.05, 300], [-0.05, 0.2, 200], [0, 0, 1.0]])
    points0[good] = rng.uniform(200, 300, (int(good.sum()), 2))
    points1[good] = project(h, points0[good]) + rng.normal(0, 0.2, (int(good.sum()), 2))
    for pair in ((points0, points1), (points1, points0)):
        result = estimate_homography(*pair, method=method)  # type: ignore[arg-type]
        assert result.inliers[good].all()


@METHODS
def test_origin_beyond_the_horizon(method: str) -> None:
    # depth 0.01 x - 1 is positive at the points and negative at (0, 0), so that H[2, 2] = 1 turns its sign
    h = np.array([[3.0, 0, -600], [0, 1.5, 50], [0.01, 0, -1]])
    points0 = np.random.default_rng(0).uniform([200, 0], [600, 480], (100, 2))
    points1 = project(h, points0) + np.random.default_rng(1).normal(0, 0.3, (100, 2))
    result = estimate_homography(points0, points1, method=method)  # type: ignore[arg-type]
    assert result.num_inliers > 95
    assert result.H is not None
    assert result.H[2, 2] == 1
    assert np.median(np.abs(project(result.H, points0) - project(h, points0))) < 0.3


@METHODS
def test_not_finite_is_an_outlier(method: str) -> None:
    points0, points1, good = scene(100, 0.3, 0.5)
    points0[3, 0], points1[80] = np.nan, np.inf
    result = estimate_homography(points0, points1, method=method)  # type: ignore[arg-type]
    assert result.status is Status.OK
    good[3] = False
    np.testing.assert_array_equal(result.inliers[:70], good[:70])
    assert not result.inliers[80]
    points0[:] = np.nan
    assert without_model(estimate_homography(points0, points1, method=method), Status.TOO_FEW_MATCHES)  # type: ignore[arg-type]


@pytest.mark.parametrize("far", [1e6, 1e7, 1e9, 1e30, 1e300])
def test_a_match_far_away_does_no_harm(far: float) -> None:
    points0, points1, good = scene(100, 0.4, 0.5)
    points1[99] = far, 10.0
    valid = torch.ones(1, 100, dtype=torch.bool)
    alone = batched_ransac(*tensors(points0, points1), valid)
    for H, inliers in (
        (alone.H[0].numpy(), alone.inliers[0].numpy()),
        *((r.H, r.inliers) for r in (estimate_homography(points0, points1, threshold=t) for t in (1.0, 3.0))),
    ):
        assert H is not None
        assert corner_error(H, TURNED, (640, 480)) < 3
        assert inliers[good].mean() > 0.6


def test_empty_items_of_a_batch() -> None:
    points0, points1, _ = scene(80, 0.3, 0.5)
    x0, x1 = (torch.from_numpy(p).repeat(3, 1, 1) for p in (points0, points1))
    valid = torch.ones(3, 80, dtype=torch.bool)
    valid[0], valid[2, 3:] = False, False
    result = batched_ransac(x0, x1, valid)
    assert result.ok.tolist() == [False, True, False]
    assert torch.equal(result.H[0], torch.eye(3, dtype=torch.float64))
    assert torch.equal(result.H[2], torch.eye(3, dtype=torch.float64))
    assert not result.inliers[[0, 2]].any()
    x0[1, 3, 0], x1[1, 4], x0[0] = math.nan, math.inf, math.nan
    spoilt = batched_ransac(x0, x1, torch.ones_like(valid))
    assert spoilt.ok.tolist() == [False, True, True]
    assert not spoilt.inliers[1, 3:5].any()
    assert spoilt.H.isfinite().all()
    for shape in ((0, 5), (2, 0), (2, 3)):
        empty = batched_ransac(torch.zeros(*shape, 2), torch.zeros(*shape, 2), torch.ones(shape, dtype=torch.bool))
        assert empty.H.shape == (shape[0], 3, 3)
        assert empty.inliers.shape == shape
        assert not empty.ok.any()


def test_integer_and_float32_points() -> None:
    points0, points1, _ = scene(100, 0.3, 0.0)
    result = estimate_homography(np.round(points0).astype(np.int32), points1.astype(np.float32))
    assert result.status is Status.OK


def test_refuses_bad_shapes() -> None:
    good, valid = torch.zeros(1, 5, 2), torch.ones(1, 5, dtype=torch.bool)
    for points0, points1, mask in (
        (torch.zeros(5, 2), torch.zeros(5, 2), valid),
        (good, torch.zeros(1, 6, 2), valid),
        (good.long(), good.long(), valid),
        (good, good, valid.float()),
        (good, good, valid[:, :4]),
    ):
        with pytest.raises(ShapeError, match="expected"):
            batched_ransac(points0, points1, mask)
    for array0, array1 in (
        (np.zeros((5, 3)), np.zeros((5, 3))),
        (np.zeros((5, 2)), np.zeros((4, 2))),
        (np.zeros(0), np.zeros(0)),
        (np.full((5, 2), "a"), np.full((5, 2), "a")),
    ):
        with pytest.raises(ShapeError, match="expected"):
            estimate_homography(array0, array1)


@pytest.mark.parametrize(
    "setting",
    [
        {"threshold": 0.0},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"threshold": 1e200},
        {"confidence": 1.0},
        {"confidence": 0.0},
        {"max_iterations": 0},
        {"min_inliers": 3},
        {"seed": -1},
        {"method": "lmeds"},
    ],
)
def test_refuses_bad_settings(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is .*expected"):
        estimate_homography(np.zeros((9, 2)), np.zeros((9, 2)), **setting)  # type: ignore[arg-type]


def test_thresholds_whose_squares_are_lost_are_refused() -> None:
    corners = np.array([[0.0, 0], [600, 0], [600, 400], [0, 400]] * 2)
    for threshold in (5e-324, 1e-9, 0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"RANSAC threshold is .*; expected 0.001 to 1e\+07 pixels"):
            estimate_homography(corners, corners, threshold=threshold)
    assert estimate_homography(corners, corners, threshold=1e-3).inliers.shape == (8,)


@pytest.mark.parametrize(
    "estimate", [estimate_homography, partial(estimate_homography, method="opencv"), estimate_fundamental]
)
def test_the_largest_settings_are_settings(estimate: Callable[..., Homography | Fundamental]) -> None:
    points0, points1, _ = scene(60, 0.0, 0.5)
    for setting in ({"threshold": FARTHEST}, {"max_iterations": 2**31 - 1}):
        assert estimate(points0, points1, **setting).inliers.shape == (60,)
    beyond = ({"threshold": math.nextafter(FARTHEST, math.inf)}, {"max_iterations": 2**31}, {"max_iterations": 2**40})
    for setting in beyond:
        with pytest.raises(ConfigError, match=f"{next(iter(setting))} is .*; expected"):
            estimate(points0, points1, **setting)
