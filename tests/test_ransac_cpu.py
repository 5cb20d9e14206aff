"""Homographies in NumPy, and compiled: the same equations and the same answers as the batched ones in PyTorch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from homography_scenes import TURNED, project, scene

from frontend import homography_cpu as cpu
from frontend import homography_native as native
from frontend import homography_solver as reference
from frontend import kernels
from frontend.errors import ConfigError
from frontend.homography import corner_error
from frontend.homography_estimation import estimate_homography
from frontend.kernels import HomographyKernels, load_kernels
from frontend.ransac import batched_ransac
from frontend.ransac_config import RansacConfig
from frontend.ransac_cpu import _polish, _prepare, ransac
from frontend.ransac_search import polish, prepare
from frontend.significance import middle_extent
from frontend.verification import count_distinct, verify_homography
from frontend.verification import middle_extent as batched_middle_extent
from frontend.verification_cpu import count_distinct as count_distinct_cpu
from frontend.verification_cpu import verify


@pytest.fixture
def models(rng: np.random.Generator) -> np.ndarray:
    return reference.unit_norm(torch.from_numpy(np.eye(3) + rng.normal(0, 0.1, (5, 3, 3)))).numpy()


def test_adjugates_are_inverses_times_determinants(models: np.ndarray) -> None:
    expected = np.linalg.inv(models) * np.linalg.det(models)[:, None, None]
    np.testing.assert_allclose(cpu.adjugate(models), expected, atol=1e-12)


def test_minimal_samples_are_judged_and_solved_alike(rng: np.random.Generator) -> None:
    points0, points1, _ = scene(60, 0.4, 0.5)
    matches, _, _ = _prepare(points0, points1)
    index = rng.integers(0, 60, (4, 400))
    sample0, sample1 = matches.low0[:2, index], matches.low1[:2, index]
    torches = [torch.from_numpy(np.ascontiguousarray(s.transpose(2, 1, 0))) for s in (sample0, sample1)]
    good = cpu.good_samples(sample0, sample1)
    np.testing.assert_array_equal(good, reference.is_good_sample(*torches).numpy())
    assert 10 < good.sum() < 390
    got = cpu.from_4_points(sample0[:, :, good], sample1[:, :, good])
    expected = reference.homography_from_4_points(*(t[torch.from_numpy(good)] for t in torches))
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-3)


def test_steps_and_normal_equations_are_alike(
    models: np.ndarray, rng: np.random.Generator, homography_kernels: HomographyKernels
) -> None:
    points0, points1, _ = scene(80, 0.2, 0.5)
    matches, _, _ = _prepare(points0, points1)
    units = matches.unit0, matches.unit1
    weights = rng.uniform(0, 1, (5, 80))
    ours = homography_kernels.GaussNewton(matches.points0, matches.points1, *units)
    theirs = reference.GaussNewton(
        *(torch.from_numpy(p)[None] for p in (matches.points0, matches.points1)),
        *(torch.tensor([unit], dtype=torch.float64) for unit in units),
    )
    at, expected_at = ours.linearise(models), theirs.linearise(torch.from_numpy(models)[None])
    np.testing.assert_allclose(at.error, expected_at.error[0].numpy(), rtol=1e-9)
    for a, b in zip((*at.forward, *at.backward), (*expected_at.forward, *expected_at.backward), strict=True):
        np.testing.assert_allclose(a, b[0].numpy(), rtol=1e-9, atol=1e-9)
    expected = theirs.normal_equations(expected_at, torch.from_numpy(weights)[None])
    for a, b in zip(ours.normal_equations(at, weights), expected, strict=True):
        np.testing.assert_allclose(a, b[0].numpy(), rtol=1e-7, atol=1e-9 * float(b.abs().max()))
    step = theirs.step(expected_at, torch.from_numpy(weights)[None])[0].numpy()
    np.testing.assert_allclose(ours.step(at, weights), step, atol=1e-6)
    near, expected_near = ours.sampson(models), theirs.sampson(torch.from_numpy(models)[None])
    np.testing.assert_allclose(near.error, expected_near.error[0].numpy(), rtol=1e-7)
    expected = theirs.sampson_equations(expected_near, torch.from_numpy(weights)[None])
    for a, b in zip(ours.sampson_equations(near, weights), expected, strict=True):
        np.testing.assert_allclose(a, b[0].numpy(), rtol=1e-7, atol=1e-9 * float(b.abs().max()))
    step = theirs.sampson_step(expected_near, torch.from_numpy(weights)[None])[0].numpy()
    np.testing.assert_allclose(ours.sampson_step(near, weights), step, atol=1e-6)
    keep = np.arange(80) % 3 > 0
    part = ours.subset(keep)
    some = part.linearise(models)
    np.testing.assert_allclose(some.error, at.error[:, keep], rtol=1e-12)
    for a, b in zip(
        part.normal_equations(some, weights[:, keep]), ours.normal_equations(at, weights * keep), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def test_a_step_that_cannot_be_computed_changes_nothing(
    models: np.ndarray, homography_kernels: HomographyKernels
) -> None:
    points0, points1, _ = scene(50, 0.2, 0.5)
    matches, _, _ = _prepare(points0, points1)
    solver = homography_kernels.GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    at = solver.linearise(models)
    weights = np.ones((len(models), 50))
    weights[1] = 0.0  # no equations
    weights[2, 7] = np.nan
    stepped = solver.step(at, weights)
    np.testing.assert_allclose(stepped[1:3], at.h[1:3], atol=1e-12)
    alone = solver.step(solver.linearise(models[3:]), weights[3:])
    np.testing.assert_allclose(stepped[3:], alone, atol=1e-12)
    assert np.abs(alone - models[3:]).max() > 1e-3


def test_costs_are_sums_of_truncated_errors(models: np.ndarray, homography_kernels: HomographyKernels) -> None:
    points0, points1, _ = scene(300, 0.2, 0.5)
    matches, _, _ = _prepare(points0, points1)
    error = cpu.GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1).linearise(models).error
    for threshold in (3.0, 30.0):
        expected = np.minimum(error / (2 * threshold**2), 1).sum(axis=1)
        limits = [np.sqrt(2) * threshold * unit for unit in (matches.unit0, matches.unit1)]
        costs = homography_kernels.score(models.astype(np.float32), matches.low0, matches.low1, (limits[0], limits[1]))
        np.testing.assert_allclose(costs, expected, rtol=1e-3)
        assert len(homography_kernels.score(models[:0].astype(np.float32), matches.low0, matches.low1, (1.0, 1.0))) == 0


@pytest.mark.parametrize(("count", "outliers"), [(40, 0.2), (200, 0.5), (1024, 0.5), (300, 0.8)])
def test_models_are_those_of_the_batched_estimator(
    count: int, outliers: float, homography_kernels: HomographyKernels
) -> None:
    config = RansacConfig()
    for seed in range(3):
        points0, points1, _ = scene(count, outliers, 1.0, seed=seed)
        H, inliers, iterations = ransac(points0, points1, config)
        batch = (torch.from_numpy(p)[None] for p in (points0, points1))
        expected = batched_ransac(*batch, torch.ones(1, count, dtype=torch.bool), config)
        assert H is not None
        assert bool(expected.ok[0])
        assert corner_error(H, expected.H[0].numpy(), (640, 480)) < 0.05
        assert (inliers != expected.inliers[0].numpy()).sum() <= 1
        assert corner_error(H, TURNED, (640, 480)) < 3
        assert 0 < iterations <= config.max_iterations


def test_matches_behind_the_camera_decide_nothing(
    rng: np.random.Generator, homography_kernels: HomographyKernels
) -> None:
    """A horizon inside the image; beyond it wrong matches, more than there are right ones before it."""
    H = np.array([[1.0, 0.1, 5], [0, 1.2, 3], [0, -0.004, 1]])
    good = np.c_[rng.uniform(0, 640, 150), rng.uniform(0, 200, 150)]
    there = project(H, good) + rng.normal(0, 0.5, (150, 2))
    bad = np.c_[rng.uniform(0, 640, 200), rng.uniform(260, 480, 200)]
    points0, points1 = np.r_[good, bad], np.r_[there, rng.uniform(0, 640, (200, 2))]
    matches, t0, t1 = _prepare(points0, points1)
    solver = homography_kernels.GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    error = solver.sampson(cpu.unit_norm(t1 @ H @ cpu.adjugate(t0))[None]).error[0]
    assert error[:150].max() < 30
    assert error[150:].min() > 1e6
    start = cpu.unit_norm(t1 @ (H + np.array([[0, 0, 0.8], [0, 0, -0.6], [0, 0, 0]])) @ cpu.adjugate(t0))
    polished = _polish(start, solver, 3.0)
    batch = (torch.from_numpy(p)[None] for p in (points0, points1))
    prepared, _, _ = prepare(*batch, torch.ones(1, 350, dtype=torch.bool), 3.0)
    for model in (polished, polish(torch.from_numpy(start)[None], prepared, 3.0)[0].numpy()):
        pixels, far_off = cpu.adjugate(t1) @ model @ t0, good[good[:, 1] < 100]  # from the horizon
        assert np.abs(project(pixels, far_off) - project(H, far_off)).max() < 0.5


def test_repeated_matches_are_no_further_evidence(rng: np.random.Generator) -> None:
    points0, points1, good = scene(40, 0.5, 0.0)
    again = np.r_[np.arange(40), rng.integers(0, 40, 100), [0] * 9]
    matches, _, _ = _prepare(points0[again], points1[again])
    points, inliers = (matches.points0, matches.points1), good[again]
    assert count_distinct_cpu(points, inliers) == (40, 20)
    valid = torch.ones(1, len(again) + 5, dtype=torch.bool)
    valid[0, 3:8] = False  # padding, anywhere
    places = valid[0].nonzero()[:, 0]
    padded = [torch.zeros(1, len(again) + 5, 2, dtype=torch.float64) for _ in points]
    fits = torch.zeros_like(valid)
    for to, values in zip(padded, points, strict=True):
        to[0, places] = torch.from_numpy(values)
    fits[0, places] = torch.from_numpy(inliers)
    assert [int(n[0]) for n in count_distinct(*padded, valid, fits)] == [40, 20]
    # five matches define a homography and one more; that each comes twenty times makes it no likelier
    five0, five1 = (np.repeat(p[:5], 20, axis=0) for p in (points0, points1))
    assert ransac(five0, five1, RansacConfig())[0] is None
    batch = [torch.from_numpy(p)[None] for p in (five0, five1)]
    assert not batched_ransac(*batch, torch.ones(1, 100, dtype=torch.bool)).ok[0]


@pytest.mark.parametrize("away", [False, True])
def test_a_last_fit_that_loses_its_inliers_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, homography_kernels: HomographyKernels, away: bool
) -> None:
    points0, points1, _ = scene(120, 0.4, 0.5)
    config = RansacConfig()
    batch = [torch.from_numpy(p)[None] for p in (points0, points1)]
    valid = torch.ones(1, 120, dtype=torch.bool)

    def estimates() -> list[tuple[np.ndarray, np.ndarray]]:
        H, inliers, _ = ransac(points0, points1, config)
        found = batched_ransac(*batch, valid, config)
        assert H is not None
        assert found.ok[0]
        return [(H, inliers), (found.H[0].numpy(), found.inliers[0].numpy())]

    polished = estimates()
    monkeypatch.setattr("frontend.ransac_cpu._polish", lambda h, *_: h + 0.1 if away else h)
    monkeypatch.setattr("frontend.ransac.polish", lambda h, *_: h + 0.1 if away else h)
    for (H, inliers), (best, most) in zip(estimates(), polished, strict=True):
        assert corner_error(H, TURNED, (640, 480)) < 3
        assert corner_error(H, best, (640, 480)) > 1e-3
        assert inliers.sum() > 0.9 * most.sum()


def test_which_kernels_are_taken() -> None:
    assert kernels.homography_kernels() is cpu
    load_kernels()
    assert kernels.homography_kernels() is native
    code = (
        "from frontend import homography_cpu as cpu; from frontend.kernels import homography_kernels, load_kernels\n"
        "assert homography_kernels() is cpu\n"
        "load_kernels(brief=True); assert homography_kernels() is cpu\n"
        "load_kernels(); assert homography_kernels() is not cpu"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_models_stand(rng: np.random.Generator, homography_kernels: HomographyKernels) -> None:
    """Models near the truth and far from it, matches few and many, on a line and not: the same verdicts."""
    verdicts = []
    for seed in range(60):
        count = int(rng.integers(6, 60))
        points0, points1, _ = scene(count, float(rng.uniform(0, 0.8)), 1.0, seed=seed)
        if seed % 4 == 0:
            points0[:, 1] = points0[:, 0] * 0.3 + rng.normal(0, 0.5, count)
            points1 = points0 + 20
        matches, t0, t1 = _prepare(points0, points1)
        truth = np.array([[1, 0, 20], [0, 1, 20], [0, 0, 1.0]]) if seed % 4 == 0 else TURNED
        h = cpu.unit_norm(t1 @ truth @ cpu.adjugate(t0) * (-1 if seed % 7 == 3 else 1))
        units = matches.unit0, matches.unit1
        points = matches.points0, matches.points1
        inliers, ok = verify(h, points, units, 3.0, 8, homography_kernels.GaussNewton(*points, *units))
        expected_inliers, expected = verify_homography(
            torch.from_numpy(h)[None],
            *(torch.from_numpy(p)[None] for p in (matches.points0, matches.points1)),
            (torch.tensor([units[0]]).double(), torch.tensor([units[1]]).double()),
            torch.ones(1, count, dtype=torch.bool),
            3.0,
            8,
        )
        np.testing.assert_array_equal(inliers, expected_inliers[0].numpy())
        assert ok == bool(expected[0]), seed
        verdicts.append(ok)
    assert 10 < sum(verdicts) < 50


def test_a_match_far_away_makes_accidental_homographies_no_likelier() -> None:
    for seed in range(3):
        points = np.random.default_rng(seed).uniform(0, 1, (2, 1000, 2)) * [639, 479]
        points[0, 7] = points[1, 7] = 1e6
        config = RansacConfig(10.0, seed=seed)
        assert ransac(*points, config)[0] is None, seed
        valid = torch.ones(1, 1000, dtype=torch.bool)
        assert not batched_ransac(*torch.from_numpy(points[:, None]), valid, config).ok.any(), seed
    points0, points1, good = scene(200, 0.3, 0.5)
    points0[0] = points1[0] = 1e6
    assert ransac(points0, points1, RansacConfig())[1][good].mean() > 0.9


def test_areas_are_those_between_quantiles_also_in_batches(rng: np.random.Generator) -> None:
    for count in (1, 2, 13, 49, 50, 51, 300):
        points = rng.normal(size=(count, 2))
        low, high = np.quantile(points, (0.02, 0.98), axis=0)
        np.testing.assert_allclose(middle_extent(points), (high - low) / 0.96, atol=1e-12)
        padded = np.concatenate([rng.normal(100, 9, (40, 2)), points])
        mask = torch.arange(count + 40)[None] >= 40
        batch = torch.from_numpy(np.stack([padded, padded]))
        got = batched_middle_extent(batch, torch.cat([mask, torch.zeros_like(mask)]))
        np.testing.assert_allclose(got, [(high - low) / 0.96, [0, 0]], atol=1e-12)


@pytest.mark.parametrize(("name", "value"), [("seed", 1.5), ("max_iterations", 10.5), ("threshold", "3")])
def test_settings_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"RANSAC {name} is .*; expected a (whole )?number"):
        RansacConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("device", ["xyz", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str, count: int) -> None:
    with pytest.raises(ConfigError, match=f"device is '{device}'"):
        estimate_homography(np.zeros((count, 2)), np.zeros((count, 2)), device=device)


def test_where_there_is_no_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    points = rng.uniform(0, 400, (2, 40, 2))
    points[1, :30] = points[0, :30] * 1.1 + rng.normal(0, 1, (30, 2))
    expected = estimate_homography(*points)
    assert expected.H is not None
    np.testing.assert_array_equal(estimate_homography(*points, device="auto").H, expected.H)
