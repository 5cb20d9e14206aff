"""Stereo pairs against known points in space."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from frontend.camera import Camera
from frontend.errors import ConfigError, SequenceError
from frontend.stereo import StereoRig, match_stereo, triangulate
from frontend.types import Features, Float64Array

SIZE = (640, 480)
LEFT = Camera(np.array([[500.0, 0, 320], [0, 505, 240], [0, 0, 1]]), (-0.2, 0.05, 0.001, -0.001))
RIGHT = Camera(np.array([[480.0, 0, 310], [0, 480, 250], [0, 0, 1]]))
TURN = cv2.Rodrigues(np.array([0.01, -0.03, 0.02]))[0]
RIG = StereoRig(LEFT, RIGHT, TURN, np.array([-0.2, 0.01, 0.005]))


def project(camera: Camera, points: Float64Array) -> Float64Array:
    """Pinhole and Brown's distortion, written out."""
    k1, k2, p1, p2 = (*camera.distortion, 0, 0, 0, 0)[:4]
    x, y = (points[:, :2] / points[:, 2:]).T
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.column_stack([camera.K[0, 0] * xd + camera.K[0, 2], camera.K[1, 1] * yd + camera.K[1, 2]])


def scene(rng: np.random.Generator, count: int = 200) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Points in the left camera's frame, and their pixels in both images."""
    depth = rng.uniform(1.5, 6, count)
    points = np.column_stack([rng.uniform(-0.5, 0.5, (count, 2)) * depth[:, None], depth])
    return points, project(LEFT, points), project(RIGHT, points @ RIG.R.T + RIG.t)


def features(pixels: Float64Array, descriptors: np.ndarray) -> Features:
    scores = np.linspace(1, 0.1, len(pixels), dtype=np.float32)
    return Features(pixels.astype(np.float32), scores, descriptors.astype(np.float32), SIZE)


def unit(rng: np.random.Generator, count: int, length: int = 64) -> np.ndarray:
    drawn = rng.normal(size=(count, length))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_points_are_found_where_they_are(rng: np.random.Generator) -> None:
    points, left, right = scene(rng)
    described = unit(rng, len(points))
    order = rng.permutation(len(points))[:150]  # the right image does not see all of them
    noise = rng.normal(0, 0.2, (len(order), 2))
    found = match_stereo(features(left, described), features(right[order] + noise, described[order]), RIG)
    assert found.points is not None
    assert len(found.rows) > 140
    assert (np.diff(found.rows) > 0).all()
    assert np.isin(found.rows, order).all()
    np.testing.assert_allclose(found.keypoints, right[found.rows], atol=1.2)
    # 0.2 px of noise on a disparity of f b / z
    depth = points[found.rows, 2]
    allowed = 6 * 0.3 * depth**2 / (490 * 0.2) + 0.01
    assert (np.abs(found.points[:, 2] - depth) < allowed).all()
    assert (np.linalg.norm(found.points - points[found.rows], axis=1) < 2 * allowed).all()


def test_triangulation_is_exact_without_noise_and_near_the_best_with_it(rng: np.random.Generator) -> None:
    points, left, right = scene(rng, 50)
    y0, y1 = LEFT.normalise(left), RIGHT.normalise(right)
    np.testing.assert_allclose(triangulate(RIG, y0, y1), points, rtol=1e-5)
    y0, y1 = (y + rng.normal(0, 1 / 500, y.shape) for y in (y0, y1))
    got = triangulate(RIG, y0, y1)

    def residuals(point: Float64Array, n: int) -> Float64Array:
        """Of a point's images, (4,) px."""
        other = RIG.R @ point + RIG.t
        first, second = point[:2] / point[2] - y0[n], other[:2] / other[2] - y1[n]
        return np.concatenate([first * LEFT.focal, second * RIGHT.focal])

    for n in range(50):
        # Gauss-Newton from the truth, by differences: an independent minimum
        best = points[n]
        for _ in range(8):
            slopes = [
                (residuals(best + 1e-6 * axis, n) - residuals(best - 1e-6 * axis, n)) / 2e-6 for axis in np.eye(3)
            ]
            best = best - np.linalg.lstsq(np.stack(slopes, 1), residuals(best, n), rcond=None)[0]
        least, reached = (float((residuals(point, n) ** 2).sum()) for point in (best, got[n]))
        assert reached < 1.05 * least + 0.01


def test_pairs_that_cannot_be_are_not_matched(rng: np.random.Generator) -> None:
    points, left, right = scene(rng)
    described = unit(rng, len(points))
    moved = right.copy()
    moved[:40, 1] += 30  # off their epipolar lines
    far = 0.35 * np.array([1.0, 0.0])
    behind = project(RIGHT, points[40:60] @ RIG.R.T + RIG.t) + far * 480  # where rays diverge
    moved[40:60] = behind
    found = match_stereo(features(left, described), features(moved, described), RIG)
    assert not np.isin(np.arange(60), found.rows).any()
    assert np.isin(np.arange(60, 200), found.rows).mean() > 0.98
    weak = match_stereo(features(left, described), features(right, unit(rng, 200)), RIG, min_similarity=0.7)
    assert len(weak.rows) == 0
    assert weak.points is not None
    assert weak.points.shape == (0, 3)


def test_without_calibration_matches_are_verified_and_have_no_points(rng: np.random.Generator) -> None:
    points, _, right = scene(rng)
    left = project(Camera(LEFT.K), points)  # no fundamental matrix is that of a distorted image
    described = unit(rng, len(points))
    wrong = right.copy()
    wrong[:50] = rng.uniform((0, 0), SIZE, (50, 2))
    found = match_stereo(features(left, described), features(wrong, described))
    assert found.points is None
    assert np.isin(np.arange(50, 200), found.rows).mean() > 0.95
    assert np.isin(np.arange(50), found.rows).sum() < 6
    few = match_stereo(features(left[50:56], described[:6]), features(right[50:56], described[:6]))
    assert len(few.rows) == 0


@pytest.mark.parametrize("rig", [None, RIG])
def test_empty_images_have_no_pairs(rng: np.random.Generator, rig: StereoRig | None) -> None:
    _, left, right = scene(rng, 20)
    described = unit(rng, 20)
    some, none = features(left, described), features(np.zeros((0, 2)), np.zeros((0, 64)))
    for pair in ((some, none), (none, features(right, described)), (none, none)):
        found = match_stereo(*pair, rig)
        assert (len(found.rows), found.keypoints.shape) == (0, (0, 2))
        assert (found.points is None) == (rig is None)


def test_what_makes_no_pair_is_refused(rng: np.random.Generator) -> None:
    _, left, right = scene(rng, 20)
    first, second = features(left, unit(rng, 20)), features(right, unit(rng, 20, 32))
    with pytest.raises(SequenceError, match="length 32; expected 64"):
        match_stereo(first, second, RIG)
    other = dataclasses.replace(first, model="b")
    for rig in (None, RIG):
        with pytest.raises(SequenceError, match="right image is of model 'b'; expected '', as the left one"):
            match_stereo(first, other, rig)
    with pytest.raises(ConfigError, match="threshold is 0"):
        match_stereo(first, first, RIG, threshold=0)
    for wrong in (
        {"R": np.eye(2)},
        {"R": -np.eye(3)},
        {"R": 2 * np.eye(3)},
        {"R": np.full((3, 3), np.nan)},
        {"t": np.zeros(3)},
        {"t": np.zeros(2)},
        {"t": np.array([np.inf, 0, 0])},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            dataclasses.replace(RIG, **wrong)
