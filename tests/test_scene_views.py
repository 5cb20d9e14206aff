"""Views of made scenes: true depth, consistent cameras, flagged occlusion, overlaps within bounds, determinism."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from frontend.errors import ConfigError, ShapeError
from frontend.training.scene_faces import Sphere, rectangle
from frontend.training.scene_painter import Light, Painter, Surfaces, Texture, View
from frontend.training.scene_views import SceneView, inverse_depth, overlap, project_points, scene_views
from frontend.training.scenes import LAYOUTS, scene

SMALL = (320, 240)
CASES = [(layout, number) for layout in LAYOUTS for number in range(2)]
WALL = rectangle(np.array([-3.0, 4.0, 3.0]), np.array([6.0, 0, 0]), np.array([0, 0.0, -6.0]), 0, 2.0)
BALL = Sphere(np.array([0.2, 2.5, 0.1]), 0.5, 0)


@cache
def views(layout: str, number: int) -> list[SceneView]:
    return scene_views(5, number, 4, SMALL, layout)


def seen_from(eye: np.ndarray, at: np.ndarray, roll: float = 0.0) -> SceneView:
    """A wall and a ball before it, painted 1.5 times as fine as the image."""
    width, height = SMALL
    view = View.looking(eye, at, roll, 0.9, (width * 3 // 2, height * 3 // 2))
    surfaces = Surfaces(view)
    light = Light(1.0, 0.0, None, np.array([0.0, 0, 5]))
    texture = Texture(np.full((64, 64), 0.5, np.float32))
    painter = Painter(view, light, [texture], [], np.zeros(view.size[::-1], np.uint8), surfaces)
    painter.face(WALL)
    painter.sphere(BALL)
    assert ((painter.canvas > 0) == (surfaces.labels > 0)).all()
    image = cv2.resize(painter.canvas, SMALL, interpolation=cv2.INTER_AREA)
    # the image's own camera, as View.looking has it for its size
    K = View.looking(eye, at, roll, 0.9, SMALL).K
    with np.errstate(divide="ignore"):
        depth = np.float32(1) / inverse_depth(surfaces, SMALL)
    return SceneView(image, depth, K, view.R, -view.R @ eye)


def reference(view: SceneView) -> tuple[np.ndarray, np.ndarray]:
    """Depths of the wall and of the ball along each pixel's ray; inf for a miss; both (H, W)."""
    height, width = view.depth.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(view.K).T @ view.R
    eye = -view.R.T @ view.t
    wall = (4.0 - eye[1]) / rays[..., 1]
    place = eye + wall[..., None] * rays
    wall = np.where((wall > 0) & (np.abs(place[..., 0]) <= 3) & (np.abs(place[..., 2]) <= 3), wall, np.inf)
    a, b = (rays**2).sum(-1), rays @ (eye - BALL.centre)
    root = b * b - a * (((eye - BALL.centre) ** 2).sum() - BALL.radius**2)
    return wall, np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


@pytest.mark.parametrize(("eye", "roll"), [((0.0, -1.0, 0.3), 0.0), ((2.0, 0.5, -1.0), 0.4), ((-2.8, 1.0, 1.0), -2.0)])
def test_depth_is_that_of_the_rays_through_the_pixels(eye: tuple[float, float, float], roll: float) -> None:
    view = seen_from(np.array(eye), np.array([0.1, 3.0, 0.2]), roll)
    wall, ball = reference(view)
    nearest = np.minimum(wall, ball)
    sky = np.isinf(nearest)
    right = np.where(sky, np.isinf(view.depth), np.abs(view.depth / np.where(sky, 1, nearest) - 1) < 1e-5)
    edge = cv2.dilate(np.isfinite(ball).astype(np.uint8), np.ones((3, 3))) != np.isfinite(ball)
    edge |= cv2.dilate(sky.astype(np.uint8), np.ones((3, 3))) != cv2.erode(sky.astype(np.uint8), np.ones((3, 3)))
    edge |= cv2.erode(np.isfinite(ball).astype(np.uint8), np.ones((3, 3))) != np.isfinite(ball)
    assert (np.isfinite(ball) & ~edge).sum() > 1000
    assert right[~edge].all()
    # depth goes with the surface that the image shows
    assert (np.isinf(view.depth) == (view.image == 0))[~edge].all()


def test_points_go_where_their_surface_is_and_hidden_ones_are_flagged() -> None:
    first = seen_from(np.array([-1.5, -1.0, 0.0]), np.array([0.1, 4.0, 0.2]))
    second = seen_from(np.array([1.5, -0.5, 0.4]), np.array([0.3, 4.0, 0.0]), 0.3)

    def pixels(view: SceneView, places: np.ndarray) -> np.ndarray:
        p = (places @ view.R.T + view.t) @ view.K.T
        return p[:, :2] / p[:, 2:]

    def hidden(view: SceneView, places: np.ndarray) -> np.ndarray:
        """How deep within the ball the line of sight passes; below zero outside of it."""
        eye = -view.R.T @ view.t
        along = (places - eye) / np.linalg.norm(places - eye, axis=1)[:, None]
        foot = eye + ((BALL.centre - eye) * along).sum(1)[:, None] * along
        return BALL.radius - np.linalg.norm(foot - BALL.centre, axis=1)

    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-1.2, 1.2, 3000), np.full(3000, 4.0), rng.uniform(-0.9, 0.9, 3000)], axis=1)
    places = places[hidden(first, places) < -0.03]
    margin = hidden(second, places)
    moved, visible = project_points(pixels(first, places), first, second)
    assert moved.dtype == np.float32
    assert visible.dtype == np.bool_
    truth = pixels(second, places)
    np.testing.assert_allclose(moved, truth, atol=2e-3)
    inside = ((truth >= 0) & (truth <= (SMALL[0] - 1, SMALL[1] - 1))).all(axis=1)
    assert (inside & (margin > 0.03)).sum() > 100
    assert not visible[margin > 0.03].any()
    assert visible[inside & (margin < -0.03)].all()
    assert not visible[~inside].any()


def test_positions_are_finite_for_any_points() -> None:
    first, second = views("street", 0)[:2]
    points = np.array([[-5.0, 3], [1e9, 0], [np.nan, 2], [100.5, 1], [319, 239], [np.inf, 0]])
    moved, visible = project_points(points, first, second)
    assert np.isfinite(moved).all()
    assert not visible[[0, 1, 2, 5]].any()
    moved, visible = project_points(np.zeros((0, 2)), first, second)
    assert moved.shape == (0, 2)
    assert visible.shape == (0,)
    with pytest.raises(ShapeError, match="expected"):
        project_points(np.zeros((3, 3)), first, second)


@pytest.mark.parametrize(("layout", "number"), CASES)
def test_the_first_view_is_the_scene_itself(layout: str, number: int) -> None:
    first = views(layout, number)[0]
    np.testing.assert_array_equal(first.image, scene(5, number, SMALL, layout))


def test_views_are_as_described() -> None:
    for layout, number in CASES:
        for view in views(layout, number):
            assert view.image.shape == view.depth.shape == SMALL[::-1]
            assert (view.image.dtype, view.depth.dtype) == (np.uint8, np.float32)
            assert (view.K.dtype, view.R.dtype, view.t.dtype) == (np.float64,) * 3
            assert (view.depth > 0.1).all()
            np.testing.assert_allclose(view.R @ view.R.T, np.eye(3), atol=1e-12)
            assert np.linalg.det(view.R) > 0
            assert (view.depth < 0.3).mean() < 0.25


def _agreements(first: SceneView, second: SceneView, supposed: list[SceneView]) -> list[float]:
    """Correlations of the first image with the second, brought to it as if by these views, without local means."""
    height, width = first.depth.shape
    x, y = np.meshgrid(np.arange(0, width, 2), np.arange(0, height, 2))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    weight = project_points(points, first, second)[1].reshape(x.shape).astype(np.float32)
    total = cv2.blur(weight, (13, 13)) + 1e-6
    # both are smoothed: one may be coarser than the other
    here, there = (cv2.GaussianBlur(view.image.astype(np.float32), (0, 0), 1.0) for view in (first, second))
    found = []
    for view in supposed:
        maps = project_points(points, first, view)[0].reshape(*x.shape, 2)
        pair = (here[::2, ::2], cv2.remap(there, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR))
        a, b = ((image - cv2.blur(image * weight, (13, 13)) / total)[weight > 0] for image in pair)
        found.append(float(np.corrcoef(a, b)[0, 1]))
    return found


def test_images_agree_through_depth_and_cameras_and_not_through_wrong_ones() -> None:
    found = []
    turn = cv2.Rodrigues(np.array([0.02, 0.03, 0.0]))[0]
    for layout, number in CASES:
        first, *others = views(layout, number)
        shift = 0.02 * np.median(first.depth[np.isfinite(first.depth)]) * np.array([1, -1, 0])
        for other in others:
            turned = replace(other, R=turn @ other.R, t=turn @ other.t)
            found.append(_agreements(first, other, [other, turned, replace(other, t=other.t + shift)]))
    right, turned_, shifted = np.array(found).T
    assert np.median(right) > 0.8
    assert np.quantile(right, 0.1) > 0.5
    assert np.median(turned_) < 0.4
    assert np.median(shifted) < 0.4


def test_there_and_back_again() -> None:
    rng = np.random.default_rng(0)
    medians = []
    for layout, number in CASES:
        first, *others = views(layout, number)
        points = rng.uniform(0, (SMALL[0] - 1, SMALL[1] - 1), (500, 2))
        for other in others:
            there, visible = project_points(points, first, other)
            back, again = project_points(there, other, first)
            both = visible & again
            assert both.sum() > 0.9 * visible.sum()
            errors = np.linalg.norm(back - points, axis=1)[both]
            assert errors.max() < 0.51
            medians.append(np.median(errors))
    assert max(medians) < 0.01


def test_overlaps_are_spread_and_bounded() -> None:
    least = []
    for layout, number in CASES:
        first, *others = views(layout, number)
        assert overlap(first, first) == pytest.approx(np.isfinite(first.depth).mean(), abs=0.05)
        least += [min(overlap(first, other), overlap(other, first)) for other in others]
    assert min(least) >= 0.15
    assert np.quantile(least, 0.2) < 0.45
    assert np.quantile(least, 0.8) > 0.55


def test_views_are_a_function_of_the_arguments_and_not_of_their_count() -> None:
    few, many = scene_views(5, 1, 2, SMALL, "facade"), views("facade", 1)
    for one, other in zip(few, many, strict=False):
        for name in ("image", "depth", "K", "R", "t"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert np.abs(many[1].t - many[2].t).max() > 1e-3
    assert np.abs(many[1].image.astype(int) - views("facade", 0)[1].image).mean() > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, 0), "count 0"),
        ((-1, 0, 1), "seed -1"),
        ((1, -2, 1), "number -2"),
        ((1, 0, 1, (63, 480)), "63 x 480"),
        ((1, 0, 1, SMALL, "cave"), "'cave'; expected one of room"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        scene_views(*arguments)
    assert "\n" not in str(error.value)
