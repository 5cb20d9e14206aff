from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from frontend.camera import Camera
from frontend.errors import ConfigError, ShapeError
from frontend.geometry import estimate_essential, estimate_fundamental, symmetric_epipolar_distance
from frontend.types import Status

CAMERA = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
ROTATION = cv2.Rodrigues(np.array([0.05, 0.2, 0.03]))[0]
SHIFT = np.array([0.6, 0.1, 0.05])


def true_fundamental() -> np.ndarray:
    cross = np.array([[0, -SHIFT[2], SHIFT[1]], [SHIFT[2], 0, -SHIFT[0]], [-SHIFT[1], SHIFT[0], 0]])
    inverse = np.linalg.inv(CAMERA)
    f: np.ndarray = inverse.T @ cross @ ROTATION @ inverse
    return f / np.linalg.norm(f)


def scene(count: int, outliers: float, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = np.c_[rng.uniform(-2, 2, (count, 2)), rng.uniform(4, 8, count)]
    first, second = points @ CAMERA.T, (points @ ROTATION.T + SHIFT) @ CAMERA.T
    points0, points1 = first[:, :2] / first[:, 2:], second[:, :2] / second[:, 2:]
    points0, points1 = points0 + rng.normal(0, noise, points0.shape), points1 + rng.normal(0, noise, points1.shape)
    good = np.arange(count) >= round(count * outliers)
    points1[~good] = rng.uniform(0, 1, (int((~good).sum()), 2)) * [640, 480]
    return points0, points1, good


def test_symmetric_epipolar_distance_matches_loop() -> None:
    points0, points1, _ = scene(20, 0.5)
    f = true_fundamental()
    found = symmetric_epipolar_distance(f, points0, points1)
    for value, (x0, y0), (x1, y1) in zip(found, points0, points1, strict=True):
        a, b, c = f @ [x0, y0, 1]
        d, e, g = f.T @ [x1, y1, 1]
        expected = (a * x1 + b * y1 + c) ** 2 / (a * a + b * b) + (d * x0 + e * y0 + g) ** 2 / (d * d + e * e)
        assert value == pytest.approx(expected)


def test_epipole_has_no_line() -> None:
    # motion along the optical axis: both epipoles are the principal point, here (0, 0)
    f = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])
    points0, points1 = np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[3.0, 4.0], [2.0, 4.0]])
    np.testing.assert_array_equal(symmetric_epipolar_distance(f, points0, points1), [math.inf, 0.0])


def test_finds_fundamental_among_outliers() -> None:
    points0, points1, good = scene(300, 0.4)
    result = estimate_fundamental(points0, points1)
    assert result.status is Status.OK
    assert result.F is not None
    assert result.F.dtype == np.float64
    assert np.linalg.norm(result.F) == pytest.approx(1)
    assert abs(np.linalg.det(result.F)) < 1e-10
    assert result.inliers[good].mean() > 0.95
    assert result.inliers[~good].mean() < 0.1
    np.testing.assert_array_equal(result.inliers, symmetric_epipolar_distance(result.F, points0, points1) <= 2 * 1.5**2)
    # x1^T F x0 = 0, not its transpose: the true epipolar geometry fits clean points through the estimate
    clean0, clean1, _ = scene(300, 0.0, 0.0, seed=1)
    assert np.sqrt(np.median(symmetric_epipolar_distance(result.F, clean0, clean1))) < 1.0


def test_deterministic() -> None:
    points0, points1, _ = scene(200, 0.5)
    first, second = estimate_fundamental(points0, points1), estimate_fundamental(points0, points1)
    np.testing.assert_array_equal(first.F, second.F)  # type: ignore[arg-type]
    np.testing.assert_array_equal(first.inliers, second.inliers)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few(count: int) -> None:
    result = estimate_fundamental(np.ones((count, 2)), np.ones((count, 2)))
    assert result.F is None
    assert result.status is Status.TOO_FEW_MATCHES
    assert result.inliers.shape == (count,)


@pytest.mark.parametrize("count", [8, 20, 100, 300])
def test_unrelated_matches_give_no_model(count: int) -> None:
    for seed in range(5):
        points = np.random.default_rng(seed).uniform(0, 1, (2, count, 2)) * [639, 479]
        result = estimate_fundamental(*points)
        assert result.F is None
        assert result.status is Status.NO_MODEL
        assert not result.inliers.any()


def test_a_match_far_away_makes_accidents_no_likelier() -> None:
    for seed in range(12):
        points = np.random.default_rng(seed).uniform(0, 1, (2, 400, 2)) * [639, 479]
        points[0, 7] = points[1, 7] = 1e6
        assert estimate_fundamental(*points).F is None
    points0, points1, good = scene(200, 0.3)
    points0[0] = points1[0] = 1e30
    assert estimate_fundamental(points0, points1).inliers[good].mean() > 0.9


def test_repeated_matches_are_no_further_evidence() -> None:
    for seed in range(10):
        points = np.repeat(np.random.default_rng(seed).uniform(0, 1, (2, 8, 2)) * [639, 479], 4, axis=1)
        assert estimate_fundamental(*points).F is None, seed
    points0, points1, good = scene(200, 0.3)
    again = estimate_fundamental(np.repeat(points0, 2, axis=0), np.repeat(points1, 2, axis=0))
    assert again.inliers[np.repeat(good, 2)].mean() > 0.9


def test_degenerate_matches() -> None:
    line = np.linspace(0, 400, 50)[:, None] * [1.0, 0.5]
    for points in (np.ones((50, 2)), line):
        assert estimate_fundamental(points, points + 2).status is Status.NO_MODEL


@pytest.mark.parametrize("degrees", [0, 5, 37, 45, 70, 90])
@pytest.mark.parametrize("elsewhere", [0, 60])
def test_unrelated_matches_along_a_line_give_no_model(degrees: float, elsewhere: int) -> None:
    along = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    for seed in range(5):
        rng = np.random.default_rng(seed)
        line = [320, 240] + rng.uniform(-220, 220, (2, 60, 1)) * along + rng.normal(0, 0.5, (2, 60, 2))
        points = np.concatenate([line, rng.uniform(0, 1, (2, elsewhere, 2)) * [639, 479]], axis=1)
        assert estimate_fundamental(*points).status is Status.NO_MODEL
        camera = Camera(CAMERA)
        assert estimate_essential(*points, camera, camera).status is Status.NO_MODEL


def test_matches_of_one_line_determine_nothing() -> None:
    rng = np.random.default_rng(0)
    across = np.linspace(-0.4, 0.4, 80)
    # in a plane through the first camera: a line for it alone
    points = np.c_[across, 0.4 * across + 0.02, np.ones(80)] * rng.uniform(4, 8, (80, 1))
    first, second = points @ CAMERA.T, (points @ ROTATION.T + SHIFT) @ CAMERA.T
    matches = first[:, :2] / first[:, 2:], second[:, :2] / second[:, 2:]
    camera = Camera(CAMERA)
    for points0, points1 in (matches, matches[::-1]):
        assert estimate_fundamental(points0, points1).status is Status.NO_MODEL
        assert estimate_essential(points0, points1, camera, camera).status is Status.NO_MODEL


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_a_scene_in_a_strip_is_found(degrees: float) -> None:
    """Matches along a line that is wider than their errors, such as a skyline, are evidence."""
    points0, points1, good = scene(400, 0.3)
    turned = np.array([math.sin(math.radians(degrees)), -math.cos(math.radians(degrees))])
    near = np.abs((points0 - [320, 240]) @ turned) < 40
    assert near.sum() > 60
    assert estimate_fundamental(points0[near], points1[near]).inliers[good[near]].mean() > 0.9


@pytest.mark.parametrize("shift", [(0.5, 0.0, 0.0), (0.5, 0.1, -0.1)])
@pytest.mark.parametrize("size", [(40, 30), (64, 48)])
def test_the_order_of_matches_means_nothing(shift: tuple[float, float, float], size: tuple[int, int]) -> None:
    """Matches row by row of a grid, each of which has neighbours in its row that fit its epipolar line as well."""
    rng = np.random.default_rng(1)
    raster = np.stack(np.meshgrid(np.linspace(40, 600, size[0]), np.linspace(40, 440, size[1])), axis=-1).reshape(-1, 2)
    points = np.c_[raster, np.ones(len(raster))] @ np.linalg.inv(CAMERA).T * rng.uniform(4, 10, (len(raster), 1))
    moved = (points + shift) @ CAMERA.T
    matched = moved[:, :2] / moved[:, 2:] + rng.normal(0, 0.3, raster.shape)
    wrong = rng.permutation(len(raster))[: len(raster) // 2]
    matched[wrong] = rng.uniform(0, 1, (len(wrong), 2)) * [639, 479]
    camera = Camera(CAMERA)
    for order in (np.arange(len(raster)), rng.permutation(len(raster))):
        assert estimate_fundamental(raster[order], matched[order]).status is Status.OK
        assert estimate_essential(raster[order], matched[order], camera, camera).status is Status.OK


def test_ten_matches_are_enough_for_a_pose() -> None:
    """Some of the ninety other pairs fit by accident; that is no evidence against the model."""
    camera = Camera(CAMERA)
    for seed in (16, 41, 49):
        rng = np.random.default_rng(seed)
        depth = rng.uniform(4, 10, (10, 1))
        points = np.c_[rng.uniform(-0.6, 0.6, (10, 1)), rng.uniform(-0.45, 0.45, (10, 1)), np.ones(10)] * depth
        first, second = points @ CAMERA.T, (points @ ROTATION.T + SHIFT) @ CAMERA.T
        matches = first[:, :2] / first[:, 2:], second[:, :2] / second[:, 2:]
        assert estimate_essential(*matches, camera, camera).status is Status.OK


def test_not_finite_is_an_outlier() -> None:
    points0, points1, _ = scene(200, 0.2)
    points0[150, 0] = np.nan
    result = estimate_fundamental(points0, points1)
    assert result.status is Status.OK
    assert not result.inliers[150]
    assert result.inliers.shape == (200,)


def test_refuses_bad_input() -> None:
    with pytest.raises(ShapeError, match="expected"):
        estimate_fundamental(np.zeros((9, 2)), np.zeros((9, 3)))
    with pytest.raises(ShapeError, match="rows of several lengths"):
        estimate_fundamental([[1, 2], [3]], np.zeros((2, 2)))  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"threshold is -1.*expected"):
        estimate_fundamental(np.zeros((9, 2)), np.zeros((9, 2)), threshold=-1)
    with pytest.raises(ConfigError, match=r"confidence is 2.*expected"):
        estimate_fundamental(np.zeros((9, 2)), np.zeros((9, 2)), confidence=2)


def test_what_opencv_fails_on_is_no_model() -> None:
    """Twelve matches with which OpenCV 5.0 ends in an assertion of its own; and points that are all in one place."""
    points0 = [
        [390.06, 261.19], [372.24, 157.63], [352.88, 336.44], [300.83, 162.49], [434.56, 275.06], [244.14, 274.1],
        [443.38, 181.87], [408.42, 279.84], [250.58, 177.38], [433.46, 207.97], [305.41, 270.96], [305.46, 140.33],
    ]  # fmt: skip
    points1 = [
        [387.66, 269.38], [362.18, 157.64], [345.12, 336.46], [291.88, 162.74], [423.34, 275.11], [228.0, 274.38],
        [435.76, 181.84], [392.37, 280.18], [242.96, 176.59], [423.86, 207.57], [295.72, 271.17], [293.49, 139.74],
    ]  # fmt: skip
    found = estimate_fundamental(points0, points1, threshold=3.0)
    assert found.status in (Status.OK, Status.NO_MODEL)
    rng = np.random.default_rng(0)
    for count in (12, 30, 59):
        here = np.tile([[320.0, 240.0]], (count, 1))
        for _ in range(20):
            moved = here + rng.normal(0, 0.5, here.shape)
            assert estimate_fundamental(here, moved, threshold=3.0).status is Status.NO_MODEL
            assert estimate_fundamental(moved, here, threshold=3.0).status is Status.NO_MODEL
