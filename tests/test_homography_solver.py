from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from homography_scenes import TURNED, project, reference_dlt, sampson_covariances, scene, symmetric_errors, tensors

from frontend.homography_solver import (
    GaussNewton,
    adjugate,
    homography_from_4_points,
    is_good_sample,
    unit_norm,
)
from frontend.ransac_search import _score, prepare
from frontend.verification import log10_false_alarms


def test_minimal_solver_matches_dlt_and_is_oriented() -> None:
    rng = np.random.default_rng(0)
    points0 = rng.uniform(-1.5, 1.5, (400, 4, 2))
    h = np.eye(3) + rng.uniform(-0.3, 0.3, (400, 3, 3))
    points1 = np.stack([project(h[i], points0[i]) for i in range(400)])
    good = is_good_sample(torch.from_numpy(points0), torch.from_numpy(points1)).numpy()
    assert 100 < good.sum() < 400
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        solved = homography_from_4_points(*(torch.from_numpy(p).to(dtype) for p in (points0, points1)))
        assert solved.dtype == dtype
        for i in np.flatnonzero(good):
            found = solved[i].double().numpy()
            assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
            assert ((np.c_[points0[i], np.ones(4)] @ found.T)[:, 2] > 0).all()
            expected = reference_dlt(points0[i], points1[i])
            expected /= np.linalg.norm(expected) * np.sign((expected * found).sum())
            np.testing.assert_allclose(found, expected, atol=tolerance)


SQUARE = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("points1", "good"),
    [
        ([[0.1, 0.0], [1.2, 0.1], [1.0, 0.9], [0.0, 1.1]], True),
        ([[0.0, 0.0], [1.0, 0.0], [2.0, 0.001], [0.0, 1.0]], False),  # three on a line
        ([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], False),  # a point twice
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], False),  # one point
        ([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], False),  # mirrored
        ([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], False),  # crossed over
        ([[0.0, 0.0], [1.0, 0.0], [0.3, 0.3], [0.0, 1.0]], False),  # folded inwards: a point behind the camera
    ],
)
@pytest.mark.parametrize("unit", [1e-3, 1.0, 500.0])
def test_sample_test(points1: list[list[float]], good: bool, unit: float) -> None:
    square, other = torch.tensor(SQUARE) * unit, torch.tensor(points1) * unit
    assert bool(is_good_sample(square, other)) is good
    assert bool(is_good_sample(other, square)) is good


def test_adjugate() -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3, 3)))
    expected = torch.linalg.det(matrix)[:, None, None] * torch.linalg.inv(matrix)
    torch.testing.assert_close(adjugate(matrix), expected)


def test_score_matches_loop() -> None:
    points0, points1, _ = scene(60, 0.5, 1.0)
    matches, t0, t1 = prepare(*tensors(points0, points1), torch.ones(1, 60, dtype=torch.bool), 3.0)
    hypotheses = np.stack([TURNED, np.eye(3), TURNED + np.diag([0.02, -0.01, 0])])
    normalised = unit_norm(t1 @ torch.from_numpy(hypotheses) @ torch.linalg.inv(t0))[None]
    cost = _score(normalised.float(), matches)[0]
    for index, h in enumerate(hypotheses):
        error = ((project(h, points0) - points1) ** 2).sum(1)
        error += ((project(np.linalg.inv(h), points1) - points0) ** 2).sum(1)
        assert float(cost[index]) == pytest.approx(np.minimum(error / 18.0, 1.0).sum(), abs=0.01)


def test_normal_equations_match_finite_differences() -> None:
    points0, points1, _ = scene(30, 0.2, 2.0)
    weights = np.random.default_rng(0).uniform(0, 1, 30)
    matches, t0, t1 = prepare(*tensors(points0, points1), torch.ones(1, 30, dtype=torch.bool), 3.0)
    h = unit_norm(t1 @ torch.from_numpy(TURNED) @ torch.linalg.inv(t0))[:, None]
    solver = GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    state = solver.linearise(h)
    normal, gradient = solver.normal_equations(state, torch.from_numpy(weights)[None, None])

    def residuals(flat: np.ndarray) -> np.ndarray:
        matrix = np.linalg.inv(t1[0].numpy()) @ flat.reshape(3, 3) @ t0[0].numpy()
        forward = project(matrix, points0) - points1
        backward = project(np.linalg.inv(matrix), points1) - points0
        return (np.sqrt(weights)[:, None] * np.hstack((forward, backward))).ravel()

    flat, step = h[0, 0].numpy().ravel(), 1e-6
    jacobian = np.stack([(residuals(flat + e) - residuals(flat - e)) / (2 * step) for e in step * np.eye(9)], 1)
    scale = np.abs(jacobian.T @ jacobian).max()
    np.testing.assert_allclose(normal[0, 0].numpy() / scale, jacobian.T @ jacobian / scale, atol=1e-7)
    expected = jacobian.T @ residuals(flat)
    np.testing.assert_allclose(
        gradient[0, 0].numpy() / np.abs(expected).max(), expected / np.abs(expected).max(), atol=1e-6
    )
    torch.testing.assert_close(
        state.error[0, 0],
        torch.from_numpy(symmetric_errors(TURNED, points0, points1)),
    )


def test_sampson_equations_match_finite_differences() -> None:
    points0, points1, _ = scene(30, 0.2, 2.0)
    weights = np.random.default_rng(0).uniform(0, 1, 30)
    matches, t0, t1 = prepare(*tensors(points0, points1), torch.ones(1, 30, dtype=torch.bool), 3.0)
    h = unit_norm(t1 @ torch.from_numpy(TURNED) @ torch.linalg.inv(t0))[:, None]
    solver = GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    state = solver.sampson(h)
    covariances = sampson_covariances(TURNED, points0)
    residual = project(TURNED, points0) - points1
    expected_error = [r @ np.linalg.solve(c, r) for r, c in zip(residual, covariances, strict=True)]
    np.testing.assert_allclose(state.error[0, 0].numpy(), expected_error, rtol=1e-6)

    whiten = np.linalg.cholesky(np.linalg.inv(covariances)).transpose(0, 2, 1) * np.sqrt(weights)[:, None, None]

    def residuals(flat: np.ndarray) -> np.ndarray:
        matrix = np.linalg.inv(t1[0].numpy()) @ flat.reshape(3, 3) @ t0[0].numpy()
        found: np.ndarray = np.einsum("nij,nj->ni", whiten, project(matrix, points0) - points1).ravel()
        return found

    flat, step = h[0, 0].numpy().ravel(), 1e-6
    jacobian = np.stack([(residuals(flat + e) - residuals(flat - e)) / (2 * step) for e in step * np.eye(9)], 1)
    normal, gradient = solver.sampson_equations(state, torch.from_numpy(weights)[None, None])
    scale = np.abs(jacobian.T @ jacobian).max()
    np.testing.assert_allclose(normal[0, 0].numpy() / scale, jacobian.T @ jacobian / scale, atol=1e-7)
    expected = jacobian.T @ residuals(flat)
    np.testing.assert_allclose(
        gradient[0, 0].numpy() / np.abs(expected).max(), expected / np.abs(expected).max(), atol=1e-6
    )


def test_sampson_errors_are_distances_to_the_nearest_pair_of_points_that_fits() -> None:
    """To first order: where the noise is small, of the squared distance in the space of both points."""
    points0, points1, _ = scene(20, 0.0, 0.05)
    matches, t0, t1 = prepare(*tensors(points0, points1), torch.ones(1, 20, dtype=torch.bool), 3.0)
    h = unit_norm(t1 @ torch.from_numpy(TURNED) @ torch.linalg.inv(t0))[:, None]
    solver = GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    error = solver.sampson(h).error[0, 0].numpy()
    for x0, x1, found in zip(points0, points1, error, strict=True):
        grid = np.stack(np.meshgrid(*[np.linspace(-0.2, 0.2, 201)] * 2), axis=-1).reshape(-1, 2)
        nearest = ((grid**2).sum(1) + ((project(TURNED, x0 + grid) - x1) ** 2).sum(1)).min()
        assert found == pytest.approx(nearest, rel=0.02, abs=1e-5)


def test_log10_false_alarms() -> None:
    for n, k, p in ((100, 12, 1e-3), (20, 5, 0.02), (300, 40, 2e-4)):
        expected = math.log10((n - 4) * math.comb(n, k) * math.comb(k, 4)) + (k - 4) * math.log10(p)
        assert float(log10_false_alarms(torch.tensor(n), torch.tensor(k), torch.tensor(p), 4)) == pytest.approx(
            expected, 1e-6
        )
    assert float(log10_false_alarms(torch.tensor(9), torch.tensor(4), torch.tensor(1e-9), 4)) == math.inf
