"""Each measure against plain loops in float64, and on warps where the value is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from frontend.evaluation import metrics

SIZE = (160, 120)
H = np.array([[0.9, 0.12, 6.0], [-0.08, 1.1, -4.0], [4e-4, -3e-4, 1.0]])


def carry(point: np.ndarray, matrix: np.ndarray) -> tuple[float, float] | None:
    """One point through a homography, digit by digit; None behind the camera."""
    x, y = float(point[0]), float(point[1])
    w = matrix[2][0] * x + matrix[2][1] * y + matrix[2][2]
    if w <= 0:
        return None
    u = (matrix[0][0] * x + matrix[0][1] * y + matrix[0][2]) / w
    return u, (matrix[1][0] * x + matrix[1][1] * y + matrix[1][2]) / w


def seen(point: tuple[float, float] | None, size: tuple[int, int]) -> bool:
    return point is not None and -0.5 <= point[0] < size[0] - 0.5 and -0.5 <= point[1] < size[1] - 0.5


def visible_pairs(
    points: np.ndarray, matrix: np.ndarray, size: tuple[int, int]
) -> list[tuple[int, tuple[float, float]]]:
    """(index, place in the other image) of the points that the other image shows."""
    found = []
    for i, point in enumerate(points):
        there = carry(point, matrix)
        if there is not None and seen(there, size):
            found.append((i, there))
    return found


def loop_repeatability(p0: np.ndarray, p1: np.ndarray, matrix: np.ndarray, eps: float) -> tuple[float, float]:
    back = np.linalg.inv(matrix)
    v0, v1 = visible_pairs(p0, matrix, SIZE), visible_pairs(p1, back, SIZE)
    total, correct, distance = 0, 0, 0.0
    for own, others, targets in ((v0, v1, p1), (v1, v0, p0)):
        for _, there in own:
            total += 1
            nearest = min((math.dist(there, targets[j]) for j, _ in others), default=math.inf)
            if nearest <= eps:
                correct += 1
                distance += nearest
    return correct / total, distance / correct


def loop_ap(p0: np.ndarray, p1: np.ndarray, d0: np.ndarray, d1: np.ndarray, matrix: np.ndarray, eps: float) -> float:
    """Precision at every distinct descriptor distance, recomputed from the start each time."""
    v0, v1 = visible_pairs(p0, matrix, SIZE), visible_pairs(p1, np.linalg.inv(matrix), SIZE)
    drawn, possible = [], 0
    for i, there in v0:
        distances = [float(np.linalg.norm(d0[i].astype(np.float64) - d1[j])) for j, _ in v1]
        j = v1[int(np.argmin(distances))][0]
        drawn.append((round(min(distances), 9), math.dist(there, p1[j]) <= eps))
        possible += any(math.dist(there, p1[k]) <= eps for k, _ in v1)
    area, recall_before = 0.0, 0.0
    for limit in sorted({distance for distance, _ in drawn}):
        accepted = [good for distance, good in drawn if distance <= limit]
        precision, recall = sum(accepted) / len(accepted), sum(accepted) / possible
        area += precision * (recall - recall_before)
        recall_before = recall
    return area


@pytest.fixture
def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of both images: true ones displaced by up to some pixels, strays, and points seen by one image only."""
    p0 = rng.uniform((0, 0), SIZE, (90, 2)) - 0.5
    moved = np.array([carry(point, H) for point in p0[:60]]) + rng.normal(0, 2.0, (60, 2))
    inside = np.array([seen(tuple(point), SIZE) for point in moved])
    p1 = np.concatenate([moved[inside], rng.uniform((0, 0), SIZE, (25, 2)) - 0.5])
    d0 = rng.normal(size=(90, 8))
    d1 = np.concatenate([(d0[:60] + rng.normal(0, 0.5, (60, 8)))[inside], rng.normal(size=(25, 8))])
    unit = [d / np.linalg.norm(d, axis=1, keepdims=True) for d in (d0, d1)]
    return p0.astype(np.float32), p1.astype(np.float32), unit[0].astype(np.float32), unit[1].astype(np.float32)


def test_repeatability_equals_loops(scene: tuple[np.ndarray, ...]) -> None:
    p0, p1, _, _ = scene
    result = metrics.repeatability(p0, p1, H, SIZE, SIZE, 3.0)
    expected, error = loop_repeatability(p0, p1, H, 3.0)
    assert 0.2 < expected < 0.9
    assert result.repeatability == pytest.approx(expected, abs=1e-12)
    assert result.localization_error == pytest.approx(error, abs=1e-9)
    assert result.visible0 == len(visible_pairs(p0, H, SIZE)) < len(p0)
    assert result.visible1 == len(visible_pairs(p1, np.linalg.inv(H), SIZE)) < len(p1)


def test_the_sign_of_the_homography_does_not_matter(scene: tuple[np.ndarray, ...]) -> None:
    p0, p1, _, _ = scene
    assert metrics.repeatability(p0, p1, -2.0 * H, SIZE, SIZE) == metrics.repeatability(p0, p1, H, SIZE, SIZE)


def test_points_behind_the_camera_are_not_visible() -> None:
    horizon = np.array([[1.0, 0, 0], [0, 1.0, 0], [-1 / 100.0, 0, 1.0]])  # x > 100 lies behind
    points = np.array([[50.0, 30.0], [120.0, 30.0]])
    assert metrics.project(points, horizon, (10000, 10000)).visible.tolist() == [True, False]


@pytest.mark.parametrize(("shift", "expected", "error"), [(0.0, 1.0, 0.0), (2.0, 1.0, 2.0), (3.5, 0.0, math.nan)])
def test_repeatability_of_shifted_points(shift: float, expected: float, error: float) -> None:
    grid = np.stack(np.meshgrid(np.arange(20.0, 140.0, 20.0), np.arange(20.0, 100.0, 20.0)), axis=-1).reshape(-1, 2)
    result = metrics.repeatability(grid, grid + np.array([shift, 0.0]), np.eye(3), SIZE, SIZE)
    assert result.repeatability == expected
    assert result.localization_error == pytest.approx(error, nan_ok=True)


def test_points_seen_by_one_image_do_not_count() -> None:
    shift = np.array([[1.0, 0, 100.0], [0, 1.0, 0], [0, 0, 1.0]])
    p0 = np.array([[10.0, 10.0], [100.0, 10.0]])  # the second leaves image 1
    p1 = np.array([[110.0, 10.0], [20.0, 50.0]])  # the second comes from outside image 0
    result = metrics.repeatability(p0, p1, shift, SIZE, SIZE)
    assert (result.repeatability, result.visible0, result.visible1) == (1.0, 1, 1)


def test_nothing_detected_earns_nothing() -> None:
    none, some = np.zeros((0, 2)), np.array([[5.0, 5.0]])
    no_descriptor, descriptor = np.zeros((0, 4), np.float32), np.eye(1, 4, dtype=np.float32)
    for p0, p1, d0, d1 in ((none, none, no_descriptor, no_descriptor), (none, some, no_descriptor, descriptor)):
        result = metrics.repeatability(p0, p1, np.eye(3), SIZE, SIZE)
        assert result.repeatability == 0.0
        assert math.isnan(result.localization_error)
        assert metrics.nearest_neighbor_ap(p0, p1, d0, d1, np.eye(3), SIZE, SIZE) == 0.0
        empty = np.zeros((0, 2), np.int64)
        assert metrics.matching_score(p0, p1, empty, np.eye(3), SIZE, SIZE) == 0.0
    assert metrics.matching_accuracy(np.zeros(0), np.array([1.0, 3.0])).tolist() == [0.0, 0.0]


def test_nearest_distances_cross_the_block_size(rng: np.random.Generator) -> None:
    points, others = rng.uniform(0, 50, (metrics._BLOCK + 7, 2)), rng.uniform(0, 50, (40, 2))
    found = metrics.nearest_distances(points, others)
    for i in (0, metrics._BLOCK - 1, metrics._BLOCK, metrics._BLOCK + 6):
        assert found[i] == pytest.approx(min(math.dist(points[i], other) for other in others), abs=1e-12)


def test_average_precision_of_known_rankings() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert metrics.average_precision(scores, np.array([True, True, False, False]), 2) == 1.0
    # found at ranks 2 and 4: 1/2 * 1/2 + 2/4 * 1/2
    assert metrics.average_precision(scores, np.array([False, True, False, True]), 2) == pytest.approx(0.5)
    # one of four that could be found, at rank 1
    assert metrics.average_precision(scores, np.array([True, False, False, False]), 4) == pytest.approx(0.25)
    # all scores equal: no threshold tells right from wrong
    assert metrics.average_precision(np.ones(4), np.array([True, False, False, True]), 2) == pytest.approx(0.5)


def test_nearest_neighbor_ap_equals_loops(scene: tuple[np.ndarray, ...]) -> None:
    p0, p1, d0, d1 = scene
    forth = loop_ap(p0, p1, d0, d1, H, 3.0)
    back = loop_ap(p1, p0, d1, d0, np.linalg.inv(H), 3.0)
    assert 0.1 < forth < 0.95
    assert metrics.nearest_neighbor_ap(p0, p1, d0, d1, H, SIZE, SIZE, 3.0) == pytest.approx(
        (forth + back) / 2, abs=1e-9
    )


def test_matching_score_equals_loops(scene: tuple[np.ndarray, ...], rng: np.random.Generator) -> None:
    p0, p1, d0, d1 = scene
    matches = [(i, j) for i in range(len(p0)) for j in [int(np.argmax(d1 @ d0[i]))] if int(np.argmax(d0 @ d1[j])) == i]
    back = np.linalg.inv(H)
    ratios = []
    for own, other, matrix, pairs in ((p0, p1, H, matches), (p1, p0, back, [(j, i) for i, j in matches])):
        correct = 0
        for i, j in pairs:
            there = carry(own[i], matrix)
            correct += there is not None and seen(there, SIZE) and math.dist(there, other[j]) <= 3.0
        ratios.append(correct / len(visible_pairs(own, matrix, SIZE)))
    assert 0.1 < ratios[0] < 0.9
    score = metrics.matching_score(p0, p1, np.array(matches), H, SIZE, SIZE, 3.0)
    assert score == pytest.approx(sum(ratios) / 2, abs=1e-12)


def test_match_errors_and_accuracy_equal_loops(rng: np.random.Generator) -> None:
    p0 = rng.uniform((0, 0), SIZE, (40, 2))
    p1 = np.array([carry(point, H) for point in p0]) + rng.normal(0, 3.0, (40, 2))
    matches = np.stack([np.arange(40), np.arange(40)], axis=1)
    errors = metrics.match_errors(p0, p1, matches, H)
    expected = [math.dist(carry(a, H) or (0.0, 0.0), b) for a, b in zip(p0, p1, strict=True)]
    np.testing.assert_allclose(errors, expected, atol=1e-9)
    curve = metrics.matching_accuracy(errors, np.array([1.0, 3.0, 9.0]))
    assert curve.tolist() == [sum(e <= t for e in expected) / 40 for t in (1.0, 3.0, 9.0)]
    assert 0.0 < curve[0] < curve[1] < curve[2]


def test_a_match_to_infinity_is_wrong_not_a_warning() -> None:
    horizon = np.array([[1.0, 0, 0], [0, 1.0, 0], [-1 / 100.0, 0, 1.0]])
    errors = metrics.match_errors(np.array([[100.0, 5.0]]), np.array([[1.0, 1.0]]), np.array([[0, 0]]), horizon)
    assert errors.tolist() == [math.inf]


def test_accuracy_counts_failures_as_wrong() -> None:
    errors = np.array([0.5, 1.0, 2.9, 4.0, math.inf])
    assert metrics.accuracy(errors, np.array([1.0, 3.0, 5.0])).tolist() == [0.4, 0.6, 0.8]


def test_auc_of_known_curves() -> None:
    assert metrics.error_auc(np.zeros(4), 5.0) == pytest.approx(1.0)
    assert metrics.error_auc(np.array([math.inf, 7.0]), 5.0) == 0.0
    # one pair at 2 px: a triangle of 2 x 1 / 2, then 3 at full height
    assert metrics.error_auc(np.array([2.0]), 5.0) == pytest.approx((1.0 + 3.0) / 5.0)
    # half of the pairs fail: the same at half the height
    assert metrics.error_auc(np.array([2.0, math.inf]), 5.0) == pytest.approx((1.0 + 3.0) / 10.0)


def test_auc_equals_dense_integration(rng: np.random.Generator) -> None:
    errors = rng.exponential(3.0, 50)
    knots = np.sort(errors[errors < 5.0])
    x = np.concatenate([[0.0], knots, [5.0]])
    y = np.concatenate([[0.0], np.arange(1, len(knots) + 1), [len(knots)]]) / 50
    fine = np.linspace(0.0, 5.0, 200_001)
    assert metrics.error_auc(errors, 5.0) == pytest.approx(float(np.interp(fine, x, y).mean()), abs=1e-4)


def test_no_pairs_give_no_figure() -> None:
    assert math.isnan(metrics.error_auc(np.zeros(0), 5.0))
    assert np.isnan(metrics.accuracy(np.zeros(0), np.array([3.0]))).all()
