"""Synthetic shapes with unambiguous corners, drawn on the fly (DeTone et al. 2018, section 4.1).

Every function draws on a gray canvas in place and returns the corners, (N, 2) float64 in pixels. Corners are
placed with sub-pixel precision, and shapes never cover each other.

The canvas is larger than the image by :data:`OVERSAMPLING` and reduced by area averaging. OpenCV's own anti-aliased
fill would not do: it widens a polygon by 0.6 pixel to every side, and so would move its corners by a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from frontend.homography import HomographyConfig, sample_homography, warp_image, warp_points
from frontend.training.photometric import PhotometricConfig, photometric_noise
from frontend.types import Float64Array

Canvas = np.ndarray  # (H, W) uint8
Drawer = Callable[[Canvas, np.random.Generator], Float64Array]

OVERSAMPLING = 4
_SHIFT = 4  # fractional bits of OpenCV's fixed-point drawing coordinates
_NO_POINTS = np.zeros((0, 2))
_WIDEST_ANGLE, _NARROWEST_ANGLE = np.deg2rad(150), np.deg2rad(18)


def _fixed(points: Float64Array) -> np.ndarray:
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def _fill(canvas: Canvas, polygon: Float64Array, colour: int) -> None:
    cv2.fillPoly(canvas, [_fixed(polygon)], colour, cv2.LINE_8, _SHIFT)


def _segment(canvas: Canvas, a: Float64Array, b: Float64Array, colour: int, thickness: int) -> None:
    start, end = _fixed(a).tolist(), _fixed(b).tolist()
    cv2.line(canvas, start, end, colour, thickness, cv2.LINE_8, _SHIFT)


def _thickness(rng: np.random.Generator) -> int:
    """One to three and a half pixels of the image."""
    return int(rng.integers(OVERSAMPLING, 7 * OVERSAMPLING // 2))


def _extent(canvas: Canvas) -> Float64Array:
    return np.array([canvas.shape[1], canvas.shape[0]], np.float64)


def _contrasting(rng: np.random.Generator, level: float, least: float = 35.0) -> int:
    """A grey level at least ``least`` away from ``level``."""
    choices = [(0.0, level - least), (level + least, 255.0)]
    widths = np.array([max(high - low, 0.0) for low, high in choices])
    low, high = choices[int(rng.random() * widths.sum() > widths[0])]
    return int(np.clip(rng.uniform(low, high), 0, 255))


def _level_under(canvas: Canvas, points: Float64Array) -> float:
    xy = np.clip(np.rint(points).astype(int), 0, np.array(canvas.shape[::-1]) - 1)
    return float(canvas[xy[:, 1], xy[:, 0]].mean())


def _corner_angles(polygon: Float64Array) -> Float64Array:
    before = np.roll(polygon, 1, axis=0) - polygon
    after = np.roll(polygon, -1, axis=0) - polygon
    cosine = (before * after).sum(1) / np.maximum(np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1), 1e-9)
    angles: Float64Array = np.arccos(np.clip(cosine, -1, 1))
    return angles


def _random_polygon(rng: np.random.Generator, centre: Float64Array, radius: float) -> Float64Array | None:
    """A star-convex polygon with 3 to 6 clear corners, or None where the draw has a blunt or needle-like one."""
    count = int(rng.integers(3, 7))
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.35, 0.35, count)) / count + rng.uniform(0, 2 * np.pi)
    reach = radius * rng.uniform(0.5, 1.0, count)
    polygon = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
    corners = _corner_angles(polygon)
    if corners.max() > _WIDEST_ANGLE or corners.min() < _NARROWEST_ANGLE:
        return None
    return polygon


def draw_polygon(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """One filled polygon."""
    size = _extent(canvas)
    for _ in range(10):
        polygon = _random_polygon(rng, rng.uniform(0.25, 0.75, 2) * size, rng.uniform(0.2, 0.6) * size.min())
        if polygon is not None:
            _fill(canvas, polygon, _contrasting(rng, _level_under(canvas, polygon)))
            return polygon
    return _NO_POINTS


def draw_polygons(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """Several filled polygons that do not touch."""
    size = _extent(canvas)
    circles: list[tuple[Float64Array, float]] = []
    corners = []
    for _ in range(int(rng.integers(4, 20))):
        centre, radius = rng.uniform(0, 1, 2) * size, rng.uniform(0.08, 0.3) * size.min()
        if any(np.linalg.norm(centre - c) < radius + r + 2 * OVERSAMPLING for c, r in circles):
            continue
        polygon = _random_polygon(rng, centre, radius)
        if polygon is None:
            continue
        circles.append((centre, radius))
        _fill(canvas, polygon, _contrasting(rng, _level_under(canvas, polygon)))
        corners.append(polygon)
    return np.concatenate(corners) if corners else _NO_POINTS


def _crosses(a: Float64Array, b: Float64Array, c: Float64Array, d: Float64Array) -> bool:
    def side(p: Float64Array, q: Float64Array, r: Float64Array) -> float:
        return float((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    return side(a, b, c) * side(a, b, d) <= 0 and side(c, d, a) * side(c, d, b) <= 0


def _point_to_segment(p: Float64Array, a: Float64Array, b: Float64Array) -> float:
    along = np.clip(np.dot(p - a, b - a) / max(float(np.dot(b - a, b - a)), 1e-9), 0, 1)
    return float(np.linalg.norm(p - a - along * (b - a)))


def _separate(a: Float64Array, b: Float64Array, c: Float64Array, d: Float64Array, gap: float) -> bool:
    if _crosses(a, b, c, d):
        return False
    ends = (_point_to_segment(a, c, d), _point_to_segment(b, c, d), _point_to_segment(c, a, b))
    return min(*ends, _point_to_segment(d, a, b)) > gap


def draw_lines(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """Line segments that do not cross; their ends are corners."""
    size = _extent(canvas)
    drawn: list[tuple[Float64Array, Float64Array]] = []
    gap = 6.0 * OVERSAMPLING
    for _ in range(int(rng.integers(2, 12))):
        a, b = rng.uniform(0, 1, (2, 2)) * size
        if np.linalg.norm(a - b) < 0.12 * size.min() or not all(_separate(a, b, c, d, gap) for c, d in drawn):
            continue
        middle = (a + b) / 2
        _segment(canvas, a, b, _contrasting(rng, _level_under(canvas, middle[None]), 45.0), _thickness(rng))
        drawn.append((a, b))
    return np.array(drawn).reshape(-1, 2)


def draw_star(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """Segments from a common centre; the centre and the ends are corners."""
    size = _extent(canvas)
    centre = rng.uniform(0.25, 0.75, 2) * size
    count = int(rng.integers(3, 7))
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count + rng.uniform(0, 2 * np.pi)
    reach = rng.uniform(0.15, 0.6, count) * size.min()
    ends = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
    colour, thickness = _contrasting(rng, _level_under(canvas, ends), 45.0), _thickness(rng)
    for end in ends:
        _segment(canvas, centre, end, colour, thickness)
    return np.concatenate([centre[None], ends])


def _perspective_quad(rng: np.random.Generator, size: Float64Array) -> Float64Array:
    """A convex quadrilateral that fills a good part of the canvas, clockwise from the top left."""
    base = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * rng.uniform(0.4, 0.95, 2)
    base = base * (1 + rng.uniform(-0.3, 0.3, (4, 1)))
    angle = rng.uniform(-np.pi, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    quad: Float64Array = (base * size) @ turn.T + size * rng.uniform(0.35, 0.65, 2)
    return quad


def _draw_grid(canvas: Canvas, rng: np.random.Generator, columns: int, rows: int) -> Float64Array:
    size = _extent(canvas)
    quad = _perspective_quad(rng, size)
    xs = np.sort(np.linspace(0, 1, columns + 1) + np.pad(rng.uniform(-0.2, 0.2, columns - 1) / columns, 1))
    ys = np.linspace(0, 1, rows + 1)
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    H = cv2.getPerspectiveTransform(unit, quad.astype(np.float32))
    nodes = warp_points(np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2), H).reshape(rows + 1, columns + 1, 2)
    dark = rng.uniform(0, 120)
    bright = min(dark + rng.uniform(50, 160), 255)
    for j in range(rows):
        for i in range(columns):
            colour = (dark if (i + j) % 2 else bright) + rng.uniform(-12, 12)
            cell = np.array([nodes[j, i], nodes[j, i + 1], nodes[j + 1, i + 1], nodes[j + 1, i]])
            _fill(canvas, cell, int(np.clip(colour, 0, 255)))
    return nodes.reshape(-1, 2)


def draw_checkerboard(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """A checkerboard under a perspective."""
    return _draw_grid(canvas, rng, int(rng.integers(3, 8)), int(rng.integers(3, 7)))


def draw_stripes(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """Stripes of varying width under a perspective."""
    return _draw_grid(canvas, rng, int(rng.integers(3, 12)), 1)


def draw_cube(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """The three visible faces of a box in general position, each in its own grey."""
    size = _extent(canvas)
    sides = rng.uniform(0.25, 0.7, 3) * size.min()
    a, b = rng.uniform(-np.pi, np.pi), rng.uniform(0.35, 1.1)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    roll = rng.uniform(-np.pi, np.pi)
    spin = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    axes = (tilt @ turn) * sides  # columns: the box's edges, depth along z
    axes = np.where(axes[2] > 0, axes, -axes)  # towards the viewer, so that the corner they share is visible
    centre = size * rng.uniform(0.35, 0.65, 2)
    signs = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], np.float64) - 0.5
    corners = (signs @ axes.T)[:, :2] @ spin.T + centre
    index = {tuple(int(v > 0) for v in s): n for n, s in enumerate(signs)}
    under = _level_under(canvas, corners)
    greys: list[float] = []
    for axis in range(3):
        others = [k for k in range(3) if k != axis]
        face = []
        for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)):
            key = [1, 1, 1]
            key[others[0]], key[others[1]] = u, v
            face.append(index[tuple(key)])
        grey = float(_contrasting(rng, under))
        for _ in range(8):
            if all(abs(grey - g) > 25 for g in greys):
                break
            grey = float(_contrasting(rng, under))
        greys.append(grey)
        _fill(canvas, corners[face], int(grey))
    visible: Float64Array = corners[[n for key, n in index.items() if key != (0, 0, 0)]]
    return visible


def draw_ellipses(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """Ellipses that do not touch: they have no corners."""
    size = _extent(canvas)
    circles: list[tuple[Float64Array, float]] = []
    for _ in range(int(rng.integers(3, 20))):
        centre, radius = rng.uniform(0, 1, 2) * size, rng.uniform(0.04, 0.25) * size.min()
        if any(np.linalg.norm(centre - c) < radius + r + 2 * OVERSAMPLING for c, r in circles):
            continue
        circles.append((centre, radius))
        axes = _fixed(np.array([radius, radius * rng.uniform(0.4, 1)])).tolist()
        colour = _contrasting(rng, _level_under(canvas, centre[None]))
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(canvas, _fixed(centre).tolist(), axes, angle, 0, 360, colour, -1, cv2.LINE_8, _SHIFT)
    return _NO_POINTS


def draw_noise(canvas: Canvas, rng: np.random.Generator) -> Float64Array:
    """Noise over the whole canvas: it has no corners."""
    shape = (canvas.shape[0] // OVERSAMPLING, canvas.shape[1] // OVERSAMPLING)
    noise: np.ndarray = rng.integers(0, 256, shape, dtype=np.uint8)
    if rng.random() < 0.5:
        noise = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.5, 2.0)))
    cv2.resize(noise, (canvas.shape[1], canvas.shape[0]), dst=canvas, interpolation=cv2.INTER_NEAREST)
    return _NO_POINTS


SHAPES: dict[str, Drawer] = {
    "polygon": draw_polygon,
    "polygons": draw_polygons,
    "lines": draw_lines,
    "star": draw_star,
    "checkerboard": draw_checkerboard,
    "stripes": draw_stripes,
    "cube": draw_cube,
    "ellipses": draw_ellipses,
    "noise": draw_noise,
}
# noise is half as frequent as a shape
SHAPE_WEIGHTS = np.array([0.5 if name == "noise" else 1.0 for name in SHAPES])


def background(rng: np.random.Generator, size: tuple[int, int]) -> Canvas:
    """Blurred blobs of grey: structure without corners.

    Args:
        rng: source of randomness.
        size: (width, height), pixels.

    Returns:
        (height, width) uint8.
    """
    width, height = size
    canvas = np.full((height, width), int(rng.integers(0, 256)), np.uint8)
    spread = rng.uniform(0, 60)
    base = float(canvas[0, 0])
    for _ in range(int(rng.integers(0, 30))):
        grey = int(np.clip(base + rng.uniform(-spread, spread), 0, 255))
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        cv2.circle(canvas, centre, int(rng.integers(3, max(min(size) // 3, 4))), grey, -1)
    kernel = int(rng.integers(5, 22)) | 1
    return cv2.blur(canvas, (kernel, kernel))


@dataclass(frozen=True, eq=False)
class Drawing:
    """An image of synthetic shapes and what is known about it.

    Attributes:
        image: (H, W) uint8.
        points: (N, 2) float64 pixels, the corners, all within the image.
        regions: (H, W) uint8, or None where nobody asked for it: 1 + the index in :data:`SHAPES` where the shape
            changed at least half of the pixel, 0 elsewhere. A pixel drawn in the grey that was there already is
            no change.
    """

    image: Canvas
    points: Float64Array
    regions: Canvas | None = None


def _region(before: Canvas, after: Canvas, name: str) -> Canvas:
    """Which pixels a shape covers, from its oversampled canvas: (H, W) uint8, 0 or the shape's number."""
    rows, columns = before.shape[0] // OVERSAMPLING, before.shape[1] // OVERSAMPLING
    changed = (before != after).reshape(rows, OVERSAMPLING, columns, OVERSAMPLING).sum(axis=(1, 3))
    return np.where(2 * changed >= OVERSAMPLING**2, list(SHAPES).index(name) + 1, 0).astype(np.uint8)


def synthetic_drawing(
    rng: np.random.Generator,
    size: tuple[int, int] = (160, 120),
    *,
    shape: str | None = None,
    weights: Float64Array = SHAPE_WEIGHTS,
    warp: HomographyConfig | None = None,
    warp_probability: float = 0.6,
    regions: bool = False,
) -> Drawing:
    """Draw one image of synthetic shapes, without noise.

    Args:
        rng: source of randomness; the drawing is a function of it.
        size: (width, height), pixels.
        shape: a key of :data:`SHAPES`; drawn at random where None.
        weights: (len(SHAPES),) float64, how often each shape is drawn, in proportion.
        warp: ranges of the random homography.
        warp_probability: how many of the images are warped.
        regions: whether to mark the pixels of the shape; the image is the same either way.
    """
    name = shape or str(rng.choice(list(SHAPES), p=weights / weights.sum()))
    canvas = cv2.resize(background(rng, size), None, fx=OVERSAMPLING, fy=OVERSAMPLING, interpolation=cv2.INTER_LINEAR)
    before = canvas.copy() if regions else None
    points = (SHAPES[name](canvas, rng) + 0.5) / OVERSAMPLING - 0.5
    region = None if before is None else _region(before, canvas, name)
    canvas = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    if rng.random() < warp_probability:
        H = sample_homography(rng, size, warp or HomographyConfig(rotation=np.pi / 2))
        # replicated: a mirrored border would show corners that have no label
        canvas = warp_image(canvas, H, size, border=cv2.BORDER_REPLICATE)
        points = warp_points(points, H)
        if region is not None:
            region = warp_image(region, H, size, border=cv2.BORDER_REPLICATE, interpolation=cv2.INTER_NEAREST)
    inside = ((points >= 0) & (points <= np.array(size) - 1)).all(axis=1)
    return Drawing(canvas, points[inside], region)


def synthetic_image(
    rng: np.random.Generator,
    size: tuple[int, int] = (160, 120),
    *,
    shape: str | None = None,
    warp: HomographyConfig | None = None,
    warp_probability: float = 0.6,
    noise: PhotometricConfig | None = None,
) -> tuple[Canvas, Float64Array]:
    """Draw one image of synthetic shapes, with noise.

    Args:
        rng: source of randomness; the image is a function of it.
        size: (width, height), pixels.
        shape: a key of :data:`SHAPES`; drawn at random where None.
        warp: ranges of the random homography.
        warp_probability: how many of the images are warped.
        noise: ranges of the photometric noise; none where None.

    Returns:
        The image, (height, width) uint8, and its corners, (N, 2) float64 pixels, all within the image.
    """
    drawing = synthetic_drawing(rng, size, shape=shape, warp=warp, warp_probability=warp_probability)
    image = drawing.image if noise is None else photometric_noise(drawing.image, rng, noise)
    return image, drawing.points
