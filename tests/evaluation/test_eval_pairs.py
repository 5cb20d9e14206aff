"""Seeded pairs: exact geometry, reproducible changes, plausible ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.errors import ConfigError, ImageError
from frontend.evaluation.camera import CameraConfig, LightConfig, expose, illumination_field
from frontend.evaluation.pairs import (
    ViewpointConfig,
    illumination_pair,
    pair_rng,
    photo_pairs,
    reduce_image,
    render_view,
    sample_viewpoint,
    viewpoint_homography,
    viewpoint_pair,
)

Scene = Callable[..., np.ndarray]


def blob(size: tuple[int, int], x: float, y: float) -> np.ndarray:
    """A black (H, W, 3) image of (width, height) with one bright Gaussian spot."""
    grid_y, grid_x = np.mgrid[: size[1], : size[0]]
    spot = np.rint(250 * np.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2 * 2.0**2)))
    return np.repeat(spot.astype(np.uint8)[:, :, None], 3, axis=2)


def centroid(image: np.ndarray) -> tuple[float, float]:
    weight = image.astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


def carry(x: float, y: float, H: np.ndarray) -> tuple[float, float]:
    w = H[2, 0] * x + H[2, 1] * y + H[2, 2]
    return (H[0, 0] * x + H[0, 1] * y + H[0, 2]) / w, (H[1, 0] * x + H[1, 1] * y + H[1, 2]) / w


@pytest.mark.parametrize("tilt", [0.0, 40.0, 60.0])
def test_rendered_blobs_lie_where_the_homography_says(tilt: float) -> None:
    size = (320, 240)
    H = viewpoint_homography(size, tilt, 25.0, 20.0, 1.1, (0.03, -0.02), 1.1)
    checked = 0
    for x, y in ((90.0, 70.0), (160.0, 120.0), (230.0, 90.0), (110.0, 180.0)):
        expected = carry(x, y, H)
        if not (15 < expected[0] < 305 and 15 < expected[1] < 225):
            continue
        view = render_view(blob(size, x, y), H)[:, :, 0]
        left, top = int(expected[0]) - 14, int(expected[1]) - 14  # the backdrop glows faintly elsewhere
        inside = centroid(view[top : top + 29, left : left + 29])
        found = (inside[0] + left, inside[1] + top)
        # a small blob's centroid moves a little under perspective, far less than a pixel
        assert math.dist(found, expected) < 0.1
        checked += 1
    assert checked >= 3


def test_viewpoint_homography_equals_projecting_points_in_space() -> None:
    width, height = 200, 150
    tilt, direction, roll, zoom, shift, focal = 50.0, 70.0, -20.0, 1.2, (0.05, -0.1), 1.3
    H = viewpoint_homography((width, height), tilt, direction, roll, zoom, shift, focal)
    f, cx, cy = focal * width, (width - 1) / 2, (height - 1) / 2
    a, t, r = math.radians(direction), math.radians(tilt), math.radians(roll)
    for x, y in ((10.0, 20.0), (150.0, 30.0), (99.5, 74.5), (40.0, 140.0)):
        point = np.array([(x - cx) / f, (y - cy) / f, 0.0])
        axis = np.array([math.cos(a), math.sin(a), 0.0])
        # Rodrigues' rotation formula, then the roll about the optical axis, then the distance
        turned = (
            point * math.cos(t) + np.cross(axis, point) * math.sin(t) + axis * float(axis @ point) * (1 - math.cos(t))
        )
        rolled = np.array(
            [
                turned[0] * math.cos(r) - turned[1] * math.sin(r),
                turned[0] * math.sin(r) + turned[1] * math.cos(r),
                turned[2],
            ]
        )
        camera = rolled + np.array([shift[0] / focal / zoom, shift[1] / focal / zoom, 1 / zoom])
        expected = (f * camera[0] / camera[2] + cx, f * camera[1] / camera[2] + cy)
        assert carry(x, y, H) == pytest.approx(expected, abs=1e-9)
    # the centre of the poster moves by the shift and by nothing else
    assert carry(cx, cy, H) == pytest.approx((cx + shift[0] * width, cy + shift[1] * width), abs=1e-9)


def test_minified_views_do_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest pattern there is
    H = viewpoint_homography((256, 256), 0.0, 0.0, 0.0, 0.45, (0.0, 0.0), 1.1)
    view = render_view(stripes, H)[100:156, 100:156, 0].astype(np.float64)
    assert abs(view.mean() - 127.5) < 4
    assert view.std() < 16  # plain bilinear sampling leaves more than 80


def test_viewpoints_keep_their_promises(rng: np.random.Generator) -> None:
    config = ViewpointConfig()
    size = (320, 240)
    x, y = np.meshgrid(np.arange(320.0), np.arange(240.0))
    grid = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    for _ in range(20):
        H = sample_viewpoint(rng, size, config)
        for matrix, least in ((H, config.min_overlap), (np.linalg.inv(H), config.min_coverage)):
            u, v, w = matrix @ grid
            part = np.mean((w > 0) & (u >= 0) & (u <= 319 * w) & (v >= 0) & (v <= 239 * w))
            assert part > least - 0.03  # drawn on a coarser grid


def test_pairs_depend_on_seed_and_name_alone(make_scene: Scene, tmp_path: Path) -> None:
    for name, seed in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        cv2.imwrite(str(tmp_path / name), make_scene(96, 128, seed))
    together = {pair.name: pair for pair in photo_pairs([tmp_path / "c.png", tmp_path / "b.png", tmp_path / "a.png"])}
    alone = list(photo_pairs([tmp_path / "b.png"], kinds=("illumination", "viewpoint")))
    assert sorted(together) == ["i_a.png", "i_b.png", "i_c.png", "v_a.png", "v_b.png", "v_c.png"]
    for pair in alone:
        np.testing.assert_array_equal(pair.image1, together[pair.name].image1)
        np.testing.assert_array_equal(pair.H, together[pair.name].H)
    assert not np.allclose(together["v_a.png"].H, together["v_b.png"].H)
    other = next(iter(photo_pairs([tmp_path / "b.png"], kinds=("viewpoint",), seed=1)))
    assert not np.allclose(other.H, together["v_b.png"].H)


def test_pairs_of_one_photograph_share_the_reference(make_scene: Scene, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), make_scene(96, 128))
    first, second = photo_pairs([tmp_path / "a.png"])
    assert first.image0 is second.image0
    assert (first.kind, second.kind) == ("viewpoint", "illumination")


def test_gray_photographs_and_bad_ones(make_scene: Scene, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "gray.png"), cv2.cvtColor(make_scene(96, 128), cv2.COLOR_BGR2GRAY))
    assert next(iter(photo_pairs([tmp_path / "gray.png"]))).image1.shape == (96, 128, 3)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.png"):
        next(iter(photo_pairs([tmp_path / "text.png"])))
    with pytest.raises(ConfigError, match="sideways"):
        next(iter(photo_pairs([tmp_path / "gray.png"], kinds=("sideways",))))


def test_illumination_moves_no_pixel(make_scene: Scene) -> None:
    image = make_scene(120, 160)
    pair = illumination_pair(image, "x")
    np.testing.assert_array_equal(pair.H, np.eye(3))
    assert pair.image1.shape == image.shape
    # a camera without faults under even light gives the same picture back, but for JPEG at quality 100
    still = CameraConfig((0, 0), (1, 1), 0.0, (0, 0), (0, 0), (0, 0), (100, 100))
    # (compared in gray: JPEG halves the resolution of colour)
    again = cv2.cvtColor(expose(np.random.default_rng(0), image, still), cv2.COLOR_BGR2GRAY).astype(int)
    assert np.abs(again - cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).mean() < 1.5


def test_exposure_gain_shadow_and_clipping_follow_the_light() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    for stops in (-1.0, 0.5, 3.0):
        camera = CameraConfig((stops, stops), (1, 1), 0.0, (0, 0), (0, 0), (0, 0), (100, 100))
        expected = min(255.0, 255.0 * ((128 / 255) ** 2.2 * 2**stops) ** (1 / 2.2))
        assert expose(rng, image, camera).mean() == pytest.approx(expected, abs=1.5)
    # two halves of light: the camera meters the mean, so that their ratio stays and the mean light too
    light = np.ones((64, 64, 3), np.float32)
    light[:, 32:] = 0.25
    camera = CameraConfig((0, 0), (1, 1), 0.0, (0, 0), (0, 0), (0, 0), (100, 100))
    linear = (expose(rng, image, camera, light).astype(np.float64) / 255) ** 2.2
    assert linear[:, :24].mean() / linear[:, 40:].mean() == pytest.approx(4.0, rel=0.05)
    assert linear.mean() == pytest.approx((128 / 255) ** 2.2, rel=0.05)


def test_noise_has_the_stated_strength() -> None:
    image = np.full((128, 128, 3), 128, np.uint8)
    camera = CameraConfig((0, 0), (1, 1), 0.0, (0, 0), (8, 8), (0, 0), (100, 100))
    noisy = expose(np.random.default_rng(0), image, camera)
    # luminance only: JPEG halves the resolution of colour, and so its noise
    gray = 0.114 * noisy[..., 0] + 0.587 * noisy[..., 1] + 0.299 * noisy[..., 2]
    assert gray.std() == pytest.approx(8 * math.sqrt(0.114**2 + 0.587**2 + 0.299**2), rel=0.1)


def test_light_stays_within_its_ranges(rng: np.random.Generator) -> None:
    config = LightConfig()
    for _ in range(10):
        light = illumination_field(rng, (80, 60), config)
        assert light.shape == (60, 80, 3)
        deepest = config.max_shadows * (config.shadow_depth[1] + config.shadow_color) + config.gradient[1]
        assert light.max() <= 2 ** (config.gradient[1] / 2 * 1.3)
        assert light.min() >= 2**-deepest
        assert light.max() > 1.5 * light.min()


def test_reducing_an_image_keeps_the_geometry_exact() -> None:
    image = blob((401, 300), 201.0, 101.0)
    small, S = reduce_image(image, 200)
    assert small.shape == (150, 200, 3)
    assert carry(201.0, 101.0, S) == pytest.approx(centroid(small[:, :, 0]), abs=0.02)
    # the outer edges of the first and the last pixel stay the outer edges
    assert carry(-0.5, -0.5, S) == pytest.approx((-0.5, -0.5))
    assert carry(400.5, 299.5, S) == pytest.approx((199.5, 149.5))
    same, identity = reduce_image(image, 640)
    assert same is image
    np.testing.assert_array_equal(identity, np.eye(3))


def test_random_streams_of_pairs_differ() -> None:
    draws = {pair_rng(seed, kind, name).random() for seed in (0, 1) for kind in ("v", "i") for name in ("a", "b")}
    assert len(draws) == 8
    assert pair_rng(0, "v", "a").random() == pair_rng(0, "v", "a").random()


def test_view_of_a_photograph_shows_the_photograph(make_scene: Scene) -> None:
    image = make_scene(240, 320)
    pair = viewpoint_pair(image, "scene")
    back = cv2.warpPerspective(pair.image1, np.linalg.inv(pair.H), (320, 240)).astype(np.float64)
    shown = cv2.warpPerspective(np.ones((240, 320), np.uint8), np.linalg.inv(pair.H), (320, 240)).astype(bool)
    right = np.corrcoef(back[shown].ravel(), image[shown].ravel().astype(np.float64))[0, 1]
    wrong = np.corrcoef(back[shown].ravel(), np.roll(image, 25, axis=1)[shown].ravel().astype(np.float64))[0, 1]
    assert right > 0.85
    assert right > wrong + 0.2
