"""Several views of one made scene with depth and cameras, for training on what corresponds between them.

Pixels are those of :mod:`frontend.types`: (0, 0) is the centre of the top-left one. Depth is along the optical axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from frontend.errors import ConfigError, ShapeError
from frontend.training.scene_faces import Sphere
from frontend.training.scene_painter import Light, Painter, Surfaces, View
from frontend.training.scenes import LAYOUTS, Setting, exposed, set_up, sunlight
from frontend.types import BoolArray, Float32Array, Float64Array

# of either view's pixels in the other; asked for with some to spare, as it is first estimated on small images
_OVERLAP = 0.15
_SPARE = 0.03
_TRIES = 24
_CLEAR = 0.2
_GLANCE = 96
# relative differences of depth between neighbours that are still one surface
_AGREE = 0.02
_FLAT = 0.002
# pixels
_BACK = 0.5


@dataclass(frozen=True, eq=False)
class SceneView:
    """An image of a made scene and what is known of it.

    Attributes:
        image: (H, W) uint8.
        depth: (H, W) float32, metres along the optical axis at the pixels' centres; inf where there is only sky.
        K: (3, 3) float64, pixels of the image.
        R: (3, 3) float64, world to camera: X_cam = R X + t; the camera's x to the right, y down, z ahead.
        t: (3,) float64, metres.
    """

    image: np.ndarray
    depth: Float32Array
    K: Float64Array
    R: Float64Array
    t: Float64Array


def inverse_depth(surfaces: Surfaces, size: tuple[int, int]) -> Float32Array:
    """What an image of a size sees at the centres of its pixels, worked out from the surfaces themselves.

    Args:
        surfaces: of a canvas that becomes the image as by cv2.INTER_AREA; a pixel has the nearest one's surface.
        size: (width, height) of the image.

    Returns:
        (height, width) float32, 1 / metres along the optical axis; 0 for the sky.
    """
    view = surfaces.view
    xs, ys = ((np.arange(n) + 0.5) * (side / n) - 0.5 for n, side in zip(size, view.size, strict=True))
    labels = surfaces.labels[np.rint(ys).astype(int)[:, None], np.rint(xs).astype(int)]
    planes = np.array(surfaces.planes, np.float32).T.copy()
    inverse: Float32Array = planes[0][labels] * xs.astype(np.float32)
    inverse += planes[1][labels] * ys.astype(np.float32)[:, None]
    inverse += planes[2][labels]
    # a pixel's centre may lie outside of an outline that it was given to, and a face seen from its edge is steep
    np.clip(inverse, planes[3][labels], planes[4][labels], out=inverse)
    for label, ball in surfaces.balls:
        y, x = np.nonzero(labels == label)
        rays = np.stack([xs[x], ys[y], np.ones(len(x))], axis=1) @ np.linalg.inv(view.K).T
        centre = view.R @ (ball.centre - view.centre)
        a, b = (rays**2).sum(-1), rays @ centre
        root = b * b - a * (centre @ centre - ball.radius**2)
        inverse[y, x] = a / (b - np.sqrt(np.maximum(root, 0)))
    return inverse


def _scaled(view: View, size: tuple[int, int]) -> View:
    """The same camera with pixels of another size, as cv2.INTER_AREA has them."""
    x, y = (n / side for n, side in zip(size, view.size, strict=True))
    return replace(view, K=np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ view.K, size=size)


def _view(image: np.ndarray, surfaces: Surfaces, size: tuple[int, int]) -> SceneView:
    with np.errstate(divide="ignore"):
        depth = np.float32(1) / inverse_depth(surfaces, size)
    camera = _scaled(surfaces.view, size)
    return SceneView(image, depth, camera.K, camera.R, -camera.R @ camera.centre)


def _inverse_at(depth: Float32Array, points: Float64Array) -> Float64Array:
    """1 / depth at (N, 2) points within half a pixel of the image, (N,); 0 for the sky."""
    height, width = depth.shape

    def at(x: np.ndarray, y: np.ndarray) -> Float64Array:
        x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
        return np.asarray(1 / depth[y, x].astype(np.float64), np.float64)

    x, y = np.rint(points).astype(int).T
    dx, dy = (points - np.stack([x, y], axis=1)).T
    centre, left, right, up, down = at(x, y), at(x - 1, y), at(x + 1, y), at(x, y - 1), at(x, y + 1)
    # on a plane, however steep, inverse depth goes on straight
    flat = np.maximum(np.abs(left + right - 2 * centre), np.abs(up + down - 2 * centre)) <= _FLAT * centre
    flat &= (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    straight = centre + dx * (right - left) / 2 + dy * (down - up) / 2
    x0, y0 = np.floor(points).astype(int).T
    fx, fy = (points - np.stack([x0, y0], axis=1)).T
    four = np.stack([at(x0, y0), at(x0 + 1, y0), at(x0, y0 + 1), at(x0 + 1, y0 + 1)])
    smooth = (1 - fy) * ((1 - fx) * four[0] + fx * four[1]) + fy * ((1 - fx) * four[2] + fx * four[3])
    agree = np.ptp(four, axis=0) <= _AGREE * four.max(axis=0)
    return np.asarray(np.where(flat, straight, np.where(agree, smooth, centre)), np.float64)


def project_points(
    points: np.ndarray, first: SceneView, second: SceneView, tolerance: float = 0.02
) -> tuple[Float32Array, BoolArray]:
    """Where points of one view are in another.

    Args:
        points: (N, 2), x and y, pixels of the first view.
        first: the view that they are in.
        second: another view of the same scene.
        tolerance: relative difference of depth up to which a point is on the surface that the second view shows there.

    Returns:
        (N, 2) float32 pixels of the second view, finite; for a point of the sky, of its direction; (-1, -1) for one
        that is outside of the first image or not ahead of the second camera. And (N,) bool, whether it is visible:
        its depth is known, and it is ahead of the second camera, inside of its image, and not hidden; and what is
        seen there projects to within half a pixel of the point.

    Raises:
        ShapeError: the points are not (N, 2).
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ShapeError(f"points of shape {points.shape}; expected (N, 2)")
    inside = _inside(points, first)
    points = np.where(inside[:, None], points, 0)
    inverse = _inverse_at(first.depth, points)
    rays = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.linalg.inv(first.K).T
    turn = second.R @ first.R.T
    # all divided by the depth in the first, which a point at infinity has none of
    there = rays @ turn.T + inverse[:, None] * (second.t - turn @ first.t)
    ahead = inside & (there[:, 2] > 1e-3)
    pixels = there @ second.K.T
    moved = np.where(ahead[:, None], pixels[:, :2] / np.where(ahead, pixels[:, 2], 1)[:, None], -1)
    visible = ahead & (inverse > 0) & _inside(moved, second)
    expected = inverse / np.where(ahead, there[:, 2], 1)
    found = _inverse_at(second.depth, np.where(visible[:, None], moved, 0))
    visible &= np.abs(found - expected) <= tolerance * expected
    # things in contact differ by less than the tolerance and yet by pixels: what is seen there has to be seen here
    rays = np.concatenate([moved, np.ones((len(points), 1))], axis=1) @ np.linalg.inv(second.K).T
    back = (rays @ turn + found[:, None] * (first.t - turn.T @ second.t)) @ first.K.T
    visible &= back[:, 2] > 0
    back = back[:, :2] / np.where(visible, back[:, 2], 1)[:, None]
    visible &= np.linalg.norm(back - points, axis=1) <= _BACK
    return moved.astype(np.float32), visible


def _inside(points: Float64Array, view: SceneView) -> BoolArray:
    height, width = view.depth.shape
    return np.asarray(((points >= 0) & (points <= (width - 1, height - 1))).all(axis=1), np.bool_)


def _grid(view: SceneView) -> Float64Array:
    """(N, 2) pixels, 40 along the width."""
    height, width = view.depth.shape
    step = max(width // 40, 1)
    x, y = np.meshgrid(np.arange(step // 2, width, step), np.arange(step // 2, height, step))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)


def overlap(first: SceneView, second: SceneView) -> float:
    """Share of the first view's pixels, sky included, that are visible in the second; on a coarse grid; in [0, 1]."""
    return float(project_points(_grid(first), first, second)[1].mean())


class _Space:
    """Where a camera may be: outside of all things, and on the seen side of what is behind them."""

    def __init__(self, setting: Setting) -> None:
        walls = [face for face in setting.stage.behind if face.normal @ (setting.view.centre - face.corners[0]) > 0]
        solids = [thing for _, thing in setting.stage.things if not isinstance(thing, Sphere)]
        faces = walls + [face for thing in solids for face in thing]
        self._normals = np.array([face.normal for face in faces]).reshape(-1, 3)
        self._offsets = np.array([face.normal @ face.corners[0] for face in faces])
        self._walls = len(walls)
        self._starts = np.cumsum([0, *map(len, solids[:-1])]) if solids else None
        balls = [thing for _, thing in setting.stage.things if isinstance(thing, Sphere)]
        self._centres = np.array([ball.centre for ball in balls]).reshape(-1, 3)
        self._radii = np.array([ball.radius for ball in balls])

    def free(self, place: Float64Array, clear: float = _CLEAR) -> bool:
        """Whether a place, (3,), is free and a distance clear of everything, metres."""
        heights = self._normals @ place - self._offsets
        if (heights[: self._walls] < clear).any():
            return False
        if self._starts is not None and (np.maximum.reduceat(heights[self._walls :], self._starts) < clear).any():
            return False
        return bool((np.linalg.norm(self._centres - place, axis=1) >= self._radii + clear).all())


def _rotation(vector: Float64Array) -> Float64Array:
    """The (3, 3) rotation about a vector by its length."""
    return np.asarray(cv2.Rodrigues(vector)[0], np.float64)


def _moved(rng: np.random.Generator, first: SceneView, own: View, shrink: float) -> View:
    """A camera that looks at about what the first view shows, from elsewhere; the less so, the smaller ``shrink``."""
    # what it looks at, not the far end of a street
    points = _grid(first)
    height, width = first.depth.shape
    central = (np.abs(points / (width, height) - 0.5) < 0.35).all(axis=1)
    depths = first.depth[points[:, 1].astype(int), points[:, 0].astype(int)]
    near = central & (depths <= min(float(np.median(depths)) * 2, 25.0))
    number = int(rng.choice(np.flatnonzero(near if near.any() else central)))
    distance = min(float(depths[number]), 25.0)
    ray = np.linalg.inv(first.K) @ (*points[number], 1.0)
    target = own.centre + distance * (own.R.T @ ray)
    distance *= float(np.linalg.norm(ray))
    # some all but where the first is, some at the other side of what is looked at
    strength = float(rng.uniform(0, 1))
    # rather to the side than up or down
    axis = np.cross(target - own.centre, rng.standard_normal(3) * (1, 1, 0.6))
    angle = shrink * 0.03 * (1.5 / 0.03) ** strength
    amount = shrink * min(1.0, 0.15 + 1.5 * strength)
    scale = float(np.exp(amount * rng.uniform(np.log(0.6), np.log(1.6))))
    away = _rotation(axis / max(float(np.linalg.norm(axis)), 1e-9) * angle) @ (own.centre - target)
    centre = target + scale * away
    # where it comes to be in the image
    pixel = points[number] + amount * rng.normal(0, 0.15, 2) * (width, height)
    pixel = np.clip(pixel, 0.12 * np.array((width, height)), 0.88 * np.array((width, height)))
    focal = own.K[0, 0] * (float(np.exp(amount * rng.uniform(-0.28, 0.22))) if rng.random() < 0.5 else 1.0)
    K = own.K.copy()
    K[0, 0] = K[1, 1] = focal
    wanted = np.linalg.inv(_scaled(replace(own, K=K), (width, height)).K) @ (*pixel, 1.0)
    wanted /= np.linalg.norm(wanted)
    seen = own.R @ (target - centre)
    seen /= np.linalg.norm(seen)
    across = np.cross(seen, wanted)
    sine = float(np.linalg.norm(across))
    turn = _rotation(across / max(sine, 1e-9) * np.arctan2(sine, float(seen @ wanted)))
    any_roll = rng.random() < 0.15
    roll = float(rng.uniform(-np.pi, np.pi)) if any_roll else amount * float(rng.uniform(-0.5, 0.5))
    return View(centre, _rotation(wanted * roll) @ turn @ own.R, K, own.size)


def _glance(setting: Setting, view: View) -> SceneView:
    """A small view without an image."""
    small = (_GLANCE, max(round(_GLANCE * view.size[1] / view.size[0]), 8))
    surfaces = Surfaces(_scaled(view, small))
    empty = np.zeros(small[::-1], np.uint8)
    painter = Painter(surfaces.view, setting.light, [], [], empty, surfaces)
    setting.stage.paint(view.centre, painter.outline, painter.disc)
    return _view(empty, surfaces, small)


def _another(rng: np.random.Generator, setting: Setting, first: SceneView, space: _Space) -> View:
    """A camera that shares enough with the first view, a glance."""
    usual = float(np.median(np.where(np.isfinite(first.depth), first.depth, 1e3)))
    # a scene that hardly fills the first view cannot be asked for more than there is
    enough = min(_OVERLAP + _SPARE, 0.8 * float(np.isfinite(first.depth).mean()))
    for attempt in range(_TRIES):
        view = _moved(rng, first, setting.view, 0.9**attempt)
        if not space.free(view.centre):
            continue
        # without a look at what hides what, which takes longer
        bare = SceneView(first.image, np.full_like(first.depth, np.inf), *_camera(view, first))
        if _framed(first, bare) < enough:
            continue
        second = _glance(setting, view)
        if (second.depth < 0.2 * min(usual, 10.0)).mean() > 0.25:
            continue
        if min(overlap(first, second), overlap(second, first)) >= enough:
            return view
    return replace(_moved(rng, first, setting.view, 0.005), R=setting.view.R, K=setting.view.K)


def _camera(view: View, like: SceneView) -> tuple[Float64Array, Float64Array, Float64Array]:
    scaled = _scaled(view, (like.depth.shape[1], like.depth.shape[0]))
    return scaled.K, scaled.R, -scaled.R @ scaled.centre


def _framed(first: SceneView, second: SceneView) -> float:
    """Share of the first view's pixels that are within the second's image."""
    points = _grid(first)
    moved, _ = project_points(points, first, second)
    known = np.isfinite(first.depth[points[:, 1].astype(int), points[:, 0].astype(int)])
    return float((known & _inside(moved.astype(np.float64), second)).mean())


def _relit(rng: np.random.Generator, setting: Setting, space: _Space) -> Light:
    """Another light: the sun or the lamp elsewhere, of another strength; the same weather."""
    light = setting.light
    if light.sun is not None:
        return replace(sunlight(rng), fog=light.fog, haze=light.haze)
    lamp = light.lamp
    for _ in range(8):
        place = light.lamp + rng.normal(0, 0.35 * light.reach, 3)
        if space.free(place):
            lamp = place
            break
    return replace(
        light,
        lamp=lamp,
        ambient=float(rng.uniform(0.25, 0.6)),
        direct=float(rng.uniform(0.8, 1.8)),
        softness=float(rng.uniform(0.6, 3)),
    )


def _turned(sky: np.ndarray, own: View, view: View) -> np.ndarray:
    """The sky of one camera as another sees it: infinitely far away, and without an end."""
    width, height = view.size
    # smooth: one ray for eight pixels each way will do
    x, y = np.meshgrid(np.arange(3.5, width + 8, 8), np.arange(3.5, height + 8, 8))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ (own.R @ view.R.T @ np.linalg.inv(view.K)).T
    # angles from the axis of the first, which go on where its pixels end
    aside = np.maximum(np.hypot(rays[..., 0], rays[..., 1]), 1e-9)
    angle = own.K[0, 0] * np.arctan2(aside, rays[..., 2]) / aside
    there = (own.K[:2, 2] + rays[..., :2] * angle[..., None]).astype(np.float32)
    shape = (there.shape[1] * 8, there.shape[0] * 8)
    x, y = (cv2.resize(there[..., n], shape, interpolation=cv2.INTER_LINEAR)[:height, :width] for n in (0, 1))
    return np.asarray(cv2.remap(sky, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def _painted(rng: np.random.Generator, setting: Setting, view: View, light: Light, size: tuple[int, int]) -> SceneView:
    surfaces = Surfaces(view)
    own = setting.view
    # its own view has the sky as it was drawn
    sky = setting.sky.copy() if view is own else _turned(setting.sky, own, view)
    painter = Painter(view, light, setting.textures, setting.stage.occluders, sky, surfaces)
    setting.stage.paint(view.centre, painter.face, painter.sphere)
    return _view(exposed(rng, painter.canvas, size), surfaces, size)


def scene_views(
    seed: int, number: int, count: int, size: tuple[int, int] = (640, 480), layout: str | None = None
) -> list[SceneView]:
    """Make several views of one scene, a function of the arguments; a view does not depend on ``count``.

    The first has the image of :func:`frontend.training.scenes.scene`. Each of the others shares at least 0.15 of its
    pixels with the first and the other way round, has an exposure of its own and at times another light.

    Args:
        seed: of the whole set.
        number: of the scene.
        count: views.
        size: (width, height), pixels.
        layout: a key of :data:`frontend.training.scenes.LAYOUTS`; drawn where None.

    Raises:
        ConfigError: a number is out of its range, or the layout is unknown.
    """
    if count < 1 or seed < 0 or number < 0 or min(size) < 64:
        raise ConfigError(
            f"count {count}, seed {seed}, number {number}, size {size[0]} x {size[1]}; expected at least 1, 0, 0 and 64"
        )
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    setting = set_up(seed, number, size, layout)
    views = [_painted(setting.stage.rng, setting, setting.view, setting.light, size)]
    if count == 1:
        return views
    space, first = _Space(setting), _glance(setting, setting.view)
    for index in range(1, count):
        rng = np.random.default_rng((seed, number, 7, index))
        view = _another(rng, setting, first, space)
        light = _relit(rng, setting, space) if rng.random() < 0.4 else setting.light
        views.append(_painted(rng, setting, view, light, size))
    return views
