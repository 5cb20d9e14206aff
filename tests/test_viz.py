from __future__ import annotations

import numpy as np
import pytest

from frontend.errors import ConfigError, ShapeError
from frontend.types import Features, Fundamental, Homography, Matches, MatchResult, Status
from frontend.viz import INLIER, MATCH, OUTLIER, draw_matches, to_bgr, warp_overlay


def features(points: list[tuple[float, float]], size: tuple[int, int] = (100, 80)) -> Features:
    keypoints = np.array(points, np.float32).reshape(-1, 2)
    count = len(keypoints)
    return Features(keypoints, np.ones(count, np.float32), np.zeros((count, 8), np.float32), size)


def result(
    points0: list[tuple[float, float]],
    points1: list[tuple[float, float]],
    inliers: list[bool],
    status: Status = Status.OK,
    kind: type[Homography] | type[Fundamental] = Homography,
) -> MatchResult:
    count = len(inliers)
    matches = Matches(np.stack([np.arange(count)] * 2, axis=1), np.linspace(1, 0.5, count).astype(np.float32))
    model = np.eye(3) if status is Status.OK else None
    return MatchResult(features(points0), features(points1), matches, kind(model, np.array(inliers, bool), status))


def near(picture: np.ndarray, color: tuple[int, int, int], tolerance: int = 25) -> np.ndarray:
    # An anti-aliased line one pixel wide has nine tenths of its colour.
    return (np.abs(picture.astype(int) - color) <= tolerance).all(axis=2)


BLACK = np.zeros((80, 100, 3), np.uint8)
PLACES = [(10.0, 10.0), (10.0, 40.0), (10.0, 70.0)]


def test_lines_join_the_matched_points_in_the_colour_of_their_kind() -> None:
    picture = draw_matches(BLACK, BLACK, result(PLACES, PLACES, [True, False, True]))[:80]
    assert picture.shape == (80, 208, 3)  # two images of 100 and a gap of 8
    green = near(picture, INLIER)
    assert green[10, 15:110].all()
    assert green[70, 15:110].all()
    assert not green[30:50].any()
    faint = np.array(OUTLIER) * 0.4
    assert near(picture[40:41, 15:98], tuple(faint)).all()
    assert not green[:, 125:200].any()  # nothing beyond the right ends, at x = 118


def test_inliers_lie_above_outliers() -> None:
    crossing = result([(10, 10), (10, 70)], [(90, 70), (90, 10)], [True, False])
    picture = draw_matches(BLACK, BLACK, crossing)
    assert near(picture, INLIER)[40, 103:105].any()


def test_unverified_matches_have_a_colour_of_their_own() -> None:
    picture = draw_matches(BLACK, BLACK, result(PLACES, PLACES, [False] * 3, Status.NOT_REQUESTED))[:80]
    assert near(picture, MATCH)[[10, 40, 70], 20:90].all()
    assert not near(picture, INLIER).any()


def test_max_lines_keeps_the_best() -> None:
    picture = draw_matches(BLACK, BLACK, result(PLACES, PLACES, [True] * 3), max_lines=1)[:80]
    green = near(picture, INLIER)
    assert green[10, 20:90].all()
    assert not green[30:].any()
    with pytest.raises(ConfigError, match="max_lines = -1"):
        draw_matches(BLACK, BLACK, result(PLACES, PLACES, [True] * 3), max_lines=-1)


def test_large_images_are_reduced_and_points_with_them() -> None:
    large = np.zeros((800, 1000), np.uint8)
    points = [((x + 0.5) * 10 - 0.5, (y + 0.5) * 10 - 0.5) for x, y in PLACES]
    picture = draw_matches(large, BLACK, result(points, PLACES, [True] * 3), max_side=100)[:80]
    assert picture.shape == (80, 208, 3)
    assert near(picture, INLIER)[[10, 40, 70], 20:90].all()


@pytest.mark.parametrize("kind", [Homography, Fundamental])
def test_nothing_to_draw_is_drawn(kind: type[Homography] | type[Fundamental]) -> None:
    tiny = np.zeros((16, 16), np.uint16)
    empty = result([], [], [], Status.TOO_FEW_MATCHES, kind)
    picture = draw_matches(tiny, BLACK, empty)
    assert picture.dtype == np.uint8
    assert picture[80:].max() > 200  # the legend is there all the same
    assert picture.shape[0] > 80


def test_sizes_and_kinds_mix(make_scene) -> None:
    colour, gray = make_scene(90, 120), make_scene(60, 50)[..., 0]
    picture = draw_matches(colour, gray, result([], [], []))
    np.testing.assert_array_equal(picture[:90, :120], colour)
    np.testing.assert_array_equal(picture[:60, 128:178], np.repeat(gray[..., None], 3, axis=2))


def test_overlay_of_a_right_homography_is_the_image(make_scene) -> None:
    scene = make_scene(100, 140)
    shift = np.array([[1, 0, -20], [0, 1, -10], [0, 0, 1.0]])
    view = scene[10:90, 20:130]  # what the shift makes of the scene, in a frame of 110 x 80
    overlay = warp_overlay(scene, view, shift)
    assert overlay.shape == view.shape
    assert np.abs(overlay.astype(int) - view).max() <= 1
    wrong = warp_overlay(scene, view, np.eye(3))
    assert np.abs(wrong.astype(int) - view).mean() > 5
    outside = warp_overlay(scene, view, np.array([[1, 0, 500], [0, 1, 0], [0, 0, 1.0]]))
    np.testing.assert_array_equal(outside, view // 2)
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        warp_overlay(scene, view, np.zeros((2, 3)))


def test_any_depth_becomes_bgr() -> None:
    for image in (np.zeros((4, 5)), np.zeros((4, 5, 1), np.uint16), np.zeros((4, 5, 4), np.uint8)):
        assert to_bgr(image).shape == (4, 5, 3)
        assert to_bgr(image).dtype == np.uint8
    with pytest.raises(ShapeError, match=r"\(4, 5, 2\)"):
        to_bgr(np.zeros((4, 5, 2), np.uint8))
