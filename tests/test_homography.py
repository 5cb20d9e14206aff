"""Sampling and warping of homographies."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from frontend.errors import ConfigError, ShapeError
from frontend.homography import (
    HomographyConfig,
    corner_error,
    erode_mask,
    prefiltered,
    sample_homography,
    scaling,
    solve_corners,
    valid_mask,
    warp_image,
    warp_images,
    warp_points,
)


def some_homography(seed: int = 0, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    return sample_homography(np.random.default_rng(seed), size)


def reference_warp(points: np.ndarray, H: np.ndarray) -> np.ndarray:
    out = []
    for x, y in points:
        u, v, w = H @ np.array([x, y, 1.0])
        out.append([u / w, v / w])
    return np.array(out)


def test_warp_points_equals_a_loop_in_numpy_and_torch() -> None:
    H, points = some_homography(), np.random.default_rng(1).uniform(0, 100, (17, 2))
    expected = reference_warp(points, H)
    np.testing.assert_allclose(warp_points(points, H), expected, atol=1e-9)
    np.testing.assert_allclose(warp_points(torch.from_numpy(points), torch.from_numpy(H)).numpy(), expected, atol=1e-9)
    batch = np.stack([H, np.eye(3)])
    both = warp_points(points[None], batch)
    np.testing.assert_allclose(both[0], expected, atol=1e-9)
    np.testing.assert_allclose(both[1], points)
    assert warp_points(points.astype(np.float32), H).dtype == np.float32
    with pytest.raises(ShapeError, match=r"got points \(4, 3\)"):
        warp_points(np.zeros((4, 3)), H)


@pytest.mark.parametrize("kind", ["int64", "uint8", "bool"])
def test_points_that_are_no_floats_are_refused(kind: str) -> None:
    """They would come back truncated: (10, 10) moved by 0.7 would stay where it is."""
    H, points = np.array([[1, 0, 0.7], [0, 1, 0.7], [0, 0, 1]]), np.full((1, 2), 10).astype(kind)
    with pytest.raises(ShapeError, match=f"points are {kind}; expected floats"):
        warp_points(points, H)
    with pytest.raises(ShapeError, match=rf"points are torch\.{kind}; expected floats"):
        warp_points(torch.from_numpy(points), torch.from_numpy(H))
    np.testing.assert_allclose(warp_points(np.array([[10.0, 10.0]]), H), [[10.7, 10.7]])


def test_points_at_infinity_are_not_finite() -> None:
    H = np.array([[1, 0, 0], [0, 1, 0], [0.01, 0, -1.0]])
    assert not np.isfinite(warp_points(np.array([[100.0, 5.0]]), H)).any()


def test_solve_corners_equals_opencv() -> None:
    rng = np.random.default_rng(2)
    source = np.array([[0, 0], [99, 0], [99, 49], [0, 49]]) + rng.uniform(-8, 8, (4, 2))
    target = source + rng.uniform(-9, 9, (4, 2))
    expected = cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))
    np.testing.assert_allclose(solve_corners(source, target), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(warp_points(source, solve_corners(source, target)), target, atol=1e-9)


def test_scaling_is_the_pixel_centre_rule() -> None:
    points = np.random.default_rng(3).uniform(0, 50, (5, 2))
    expected = (points + 0.5) * [0.5, 1.7] - 0.5
    np.testing.assert_allclose(warp_points(points, scaling(0.5, 1.7)), expected)


def test_sampled_crops_stay_within_the_image_without_overhang() -> None:
    config = HomographyConfig(patch=0.5, scale=0.05, rotation=0.4, perspective=0.1)
    corners = np.array([[0, 0], [159, 0], [159, 119], [0, 119]], np.float64)
    for seed in range(100):
        H = sample_homography(np.random.default_rng(seed), (160, 120), config)
        source = warp_points(corners, np.linalg.inv(H))
        assert (source > -1).all()
        assert (source < [160, 120]).all()
        assert H[2, 2] == 1


def test_sampled_ranges_follow_the_configuration() -> None:
    still = HomographyConfig(patch=1.0, scale=0, rotation=0, perspective=0, translation=False)
    np.testing.assert_allclose(sample_homography(np.random.default_rng(0), (64, 48), still), np.eye(3), atol=1e-9)
    turning = HomographyConfig(patch=1.0, scale=0, rotation=0.5, perspective=0, translation=False)
    angles = []
    for seed in range(300):
        H = sample_homography(np.random.default_rng(seed), (64, 48), turning)
        np.testing.assert_allclose(H[:2, :2] @ H[:2, :2].T, np.eye(2), atol=1e-9)
        angles.append(np.arctan2(H[1, 0], H[0, 0]))
    assert max(np.abs(angles)) <= 0.5
    assert min(angles) < -0.45
    assert max(angles) > 0.45
    with pytest.raises(ConfigError, match=r"patch is 1\.5"):
        HomographyConfig(patch=1.5)


def test_warped_image_moves_a_blob_to_the_warped_point() -> None:
    ys, xs = np.mgrid[:120, :160]
    for seed in range(5):
        H = some_homography(seed)
        target = np.array([[80.0, 60.0]])
        (cx, cy) = warp_points(target, np.linalg.inv(H))[0]
        image = np.exp(-((xs - cx) ** 2 + (ys - cy) ** 2) / (2 * 1.5**2)).astype(np.float32)
        warped = warp_image(image, H, (160, 120))
        assert warped.sum() > 10
        centre = np.array([(warped * xs).sum(), (warped * ys).sum()]) / warped.sum()
        assert np.abs(centre - target[0]).max() < 0.3


def test_batched_warp_equals_opencv() -> None:
    rng = np.random.default_rng(4)
    image = cv2.GaussianBlur(rng.random((120, 160)).astype(np.float32), (0, 0), 2)
    H = np.stack([some_homography(s) for s in range(4)])
    got = warp_images(torch.from_numpy(image).expand(4, 1, -1, -1), torch.from_numpy(H)).numpy()[:, 0]
    for one, h in zip(got, H, strict=True):
        expected = warp_image(image, h, (160, 120))
        inside = valid_mask(h, (160, 120), (160, 120), erode=2)
        assert inside.any()
        # OpenCV interpolates at 1/32 pixel
        assert np.abs(one - expected)[inside].max() < 0.02


def test_valid_mask_and_erosion() -> None:
    shift = np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1.0]])
    mask = valid_mask(shift, (20, 10), (20, 10))
    expected = np.zeros((10, 20), bool)
    expected[:, 5:] = True
    np.testing.assert_array_equal(mask, expected)
    eroded = erode_mask(np.ones((10, 20), np.uint8), 2)
    assert eroded[2:-2, 2:-2].all()
    assert eroded.sum() == 6 * 16


def test_corner_error() -> None:
    shift = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])
    assert corner_error(shift, np.eye(3), (640, 480)) == pytest.approx(5.0)
    infinite = np.array([[1, 0, 0], [0, 1, 0], [1 / 639, 0, -1.0]])
    assert corner_error(infinite, np.eye(3), (640, 480)) == float("inf")


def supersampled(image: np.ndarray, H: np.ndarray, size: tuple[int, int], rate: int = 8) -> np.ndarray:
    """The mean of rate x rate bilinear samples within each pixel."""
    fine = (size[0] * rate, size[1] * rate)
    many = cv2.warpPerspective(image, scaling(rate, rate) @ H, fine, flags=cv2.INTER_LINEAR)
    return cv2.resize(many, size, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("scale", [1.3, 0.75, 0.6, 0.5, 0.3])
def test_what_is_made_smaller_is_prefiltered(scale: float, rng: np.random.Generator) -> None:
    image = rng.uniform(0, 255, (240, 320)).astype(np.float32)
    size = (96, 72)
    turned = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [1e-4, 0, 1]])
    H = scaling(scale, scale) @ turned @ np.array([[1, 0, -160], [0, 1, -120], [0, 0, 1.0]])
    H = np.array([[1, 0, 47.5], [0, 1, 35.5], [0, 0, 1.0]]) @ H
    source, to_view = prefiltered(image, H, size)
    # the same points of the image, half a pixel's shift included
    corners = np.array([[0, 0], [100, 50], [319, 239]], np.float64)
    smaller = (corners + 0.5) * np.array(source.shape[::-1]) / np.array(image.shape[::-1]) - 0.5
    np.testing.assert_allclose(warp_points(smaller, to_view), warp_points(corners, H), atol=1e-8)
    if scale > 0.71:
        assert source is image
        return
    assert source.shape[1] == 320 // (2 if scale > 0.36 else 4)
    truth = supersampled(image, H, size)
    before = np.abs(warp_image(image, H, size) - truth).mean()
    after = np.abs(warp_image(source, to_view, size) - truth).mean()
    assert after < 0.85 * before
