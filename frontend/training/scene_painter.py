"""Painting of planes, prisms and spheres for made scenes; see :mod:`frontend.training.scenes`.

Faces are painted from far to near. Each goes through the homography of its own plane, in bands of depth with a level of
its texture's pyramid each, so that nothing far away aliases. Light and shadows are worked out on the plane, on a
coarse grid, and go through the same homography.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from frontend.homography import scaling
from frontend.training.scene_faces import Face, Sphere, cross
from frontend.types import BoolArray, Float32Array, Float64Array

_NEAR = 0.15
_SHIFT = 4
_AHEAD = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class View:
    """A pinhole camera.

    Attributes:
        centre: (3,) metres.
        R: (3, 3), world to camera; the camera's x to the right, y down, z ahead.
        K: (3, 3), pixels of the canvas.
        size: (width, height) of the canvas.
    """

    centre: Float64Array
    R: Float64Array
    K: Float64Array
    size: tuple[int, int]

    @classmethod
    def looking(cls, centre: Float64Array, at: Float64Array, roll: float, focal: float, size: tuple[int, int]) -> View:
        """A camera at ``centre`` looking at a point, turned about its axis by ``roll`` radians; focal in widths."""
        ahead = (at - centre) / np.linalg.norm(at - centre)
        right = cross(ahead, np.array([0.0, 0.0, 1.0]))
        right /= max(float(np.linalg.norm(right)), 1e-9)
        down = cross(ahead, right)
        c, s = np.cos(roll), np.sin(roll)
        R = np.stack([c * right + s * down, c * down - s * right, ahead])
        f = focal * size[0]
        K = np.array([[f, 0, (size[0] - 1) / 2], [0, f, (size[1] - 1) / 2], [0, 0, 1]])
        return cls(centre, R, K, size)


@dataclass(frozen=True, eq=False)
class Light:
    """Sky light, and a sun or a lamp.

    Attributes:
        ambient: gain in the shade.
        direct: gain of the sun or the lamp on a face that it meets head-on.
        sun: (3,) unit vector towards it; None for a lamp.
        lamp: (3,) position.
        reach: distance at which a lamp has lost half of its light.
        softness: of shadows, cells of the light's grid.
        fog: share of the light that is lost in a metre; 0 is clear.
        haze: grey level of the fog.
    """

    ambient: float
    direct: float
    sun: Float64Array | None
    lamp: Float64Array
    reach: float = 5.0
    softness: float = 1.0
    fog: float = 0.0
    haze: float = 160.0

    def towards(self, points: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Unit vectors from (..., 3) points towards the light, and what distance leaves of it, (...)."""
        if self.sun is not None:
            return np.broadcast_to(self.sun, points.shape), np.ones(points.shape[:-1])
        away = self.lamp - points
        distance = np.linalg.norm(away, axis=-1)
        return away / np.maximum(distance, 1e-6)[..., None], 1 / (1 + (distance / self.reach) ** 2)


class Texture:
    """A texture and its pyramid, (n, n) uint8, halved from level to level down to 16; levels are made when asked for.

    Args:
        reflectance: (n, n) in [0, 1].
    """

    def __init__(self, reflectance: Float32Array) -> None:
        self._levels: list[np.ndarray] = [cv2.convertScaleAbs(reflectance, alpha=255)]
        self.side = len(reflectance)

    def level(self, number: int) -> np.ndarray:
        """A level of the pyramid, the coarsest for numbers beyond it."""
        while len(self._levels) <= number and len(self._levels[-1]) > 16:
            self._levels.append(cv2.resize(self._levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
        return self._levels[min(number, len(self._levels) - 1)]


class Surfaces:
    """Which surface each pixel of a canvas shows, and so how far away it is at any point of the pixel.

    Args:
        view: the camera of the canvas.

    Attributes:
        labels: (H, W) uint16; 0 is the sky.
        planes: for each label a, b, c, least and greatest of 1 / depth = a x + b y + c at pixel (x, y), 1 / metres.
        balls: labels and balls; their entries in ``planes`` mean nothing.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._back = view.R.T @ np.linalg.inv(view.K)
        self.labels = np.zeros((view.size[1], view.size[0]), np.uint16)
        self.planes: list[tuple[float, ...]] = [(0.0, 0.0, 0.0, 0.0, 0.0)]
        self.balls: list[tuple[int, Sphere]] = []

    def plane(self, face: Face, depths: tuple[float, float]) -> int:
        """The label of a face that is seen between two depths, metres."""
        view = self.view
        # n . X = d on the plane and X = z K^-1 (x, y, 1): 1 / z is affine in the pixel
        distance = float(face.normal @ (face.corners[0] - view.centre))
        a, b, c = face.normal @ self._back / distance
        self.planes.append((a, b, c, 1 / depths[1], 1 / depths[0]))
        return len(self.planes) - 1

    def ball(self, ball: Sphere) -> int:
        """The label of a ball."""
        self.planes.append((0.0, 0.0, 0.0, 0.0, 0.0))
        self.balls.append((len(self.planes) - 1, ball))
        return len(self.planes) - 1


class Painter:
    """A canvas and what is needed to paint on it.

    Args:
        view: the camera.
        light: the light.
        textures: that faces refer to by index.
        occluders: (k, 3) corners of convex things that cast shadows.
        backdrop: (H, W) uint8, the canvas to start from; painted on.
        surfaces: of the same view, where depth is wanted; painted on along with the canvas.
    """

    def __init__(
        self,
        view: View,
        light: Light,
        textures: list[Texture],
        occluders: list[Float64Array],
        backdrop: np.ndarray,
        surfaces: Surfaces | None = None,
    ) -> None:
        self.view, self.light, self.textures, self.occluders = view, light, textures, occluders
        self.canvas, self.surfaces = backdrop, surfaces
        x, y = (1.05 * side / (2 * view.K[0, 0]) for side in view.size)
        self._sides = np.array([(1.0, 0, x), (-1.0, 0, x), (0, 1.0, y), (0, -1.0, y)])
        self._points = np.concatenate(occluders) if occluders else np.zeros((1, 3))
        self._starts = np.cumsum([0, *map(len, occluders[:-1])])

    def faces(self, face: Face) -> bool:
        """Whether the camera is on the side of a face that is seen."""
        return float(face.normal @ (self.view.centre - face.corners[0])) > 1e-6

    def _seen(self, face: Face) -> Float64Array | None:
        """The (k, 3) corners, in the camera's frame, of what is seen of a face and a little more; None for nothing."""
        view = self.view
        if not self.faces(face):
            return None
        corners = (face.corners - view.centre) @ view.R.T
        # to what is seen and a little more: numbers stay small
        outside = corners @ self._sides.T < 0
        if outside.all(axis=0).any():
            return None
        for number in np.flatnonzero(outside.any(axis=0)):
            corners = _clip(corners, self._sides[number])
        return None if len(corners) < 3 or float(corners[:, 2].max()) <= _NEAR else corners

    def outline(self, face: Face) -> None:
        """Put a face on the surfaces alone, whatever is there already."""
        corners = self._seen(face)
        if corners is None or self.surfaces is None:
            return
        polygon = _clip(corners, _AHEAD, _NEAR)
        label = self.surfaces.plane(face, (float(polygon[:, 2].min()), float(polygon[:, 2].max())))
        pixels = polygon @ self.view.K.T
        fixed = np.rint(pixels[:, :2] / pixels[:, 2:] * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(self.surfaces.labels, fixed, label, cv2.LINE_8, _SHIFT)

    def face(self, face: Face) -> None:
        """Paint a face, whatever is there already."""
        corners = self._seen(face)
        if corners is None:
            return
        farthest = float(corners[:, 2].max())
        gain, fog = self._lit(face)
        nearest = max(float(corners[:, 2].min()), _NEAR)
        label = 0 if self.surfaces is None else self.surfaces.plane(face, (nearest, farthest))
        # a small face is one band; doubled depths halve the scale, which is one level of the pyramid
        bounds = [nearest]
        while bounds[-1] * 2 < farthest:
            bounds.append(bounds[-1] * 2)
        bounds.append(farthest)
        for low, high in pairwise(bounds):
            self._band(face, corners, (low, high if high < farthest else farthest + 1), gain, fog, label)

    def _band(
        self,
        face: Face,
        corners: Float64Array,
        depths: tuple[float, float],
        gain: Float32Array,
        fog: Float32Array | None,
        label: int,
    ) -> None:
        view = self.view
        polygon = _clip(_clip(corners, _AHEAD, depths[0]), -_AHEAD, -depths[1])
        if len(polygon) < 3:
            return
        pixels = polygon @ view.K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        low = np.maximum(np.floor(pixels.min(0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(pixels.max(0)).astype(int) + 2, view.size)
        if (high - low < 1).any():
            return
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        mask = np.zeros((size[1], size[0]), np.uint8)
        fixed = np.rint((pixels - low) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(mask, fixed, 255, cv2.LINE_8, _SHIFT)
        if self.surfaces is not None:
            # the same outline
            window = self.surfaces.labels[low[1] : high[1], low[0] : high[0]]
            cv2.fillConvexPoly(window, fixed, label, cv2.LINE_8, _SHIFT)
        texture = self.textures[face.texture]
        texel = face.tile / texture.side
        middle = polygon.mean(0)
        slant = abs(float((view.R @ face.normal) @ middle)) / float(np.linalg.norm(middle))
        pixels_per_texel = view.K[0, 0] * texel / float(middle[2]) * max(slant, 0.1) ** 0.5
        source = texture.level(max(round(-np.log2(pixels_per_texel) - 0.2), 0))
        coarser = texture.side // len(source)
        move = np.array([[1.0, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]])
        unit_x, unit_y = (side / max(float(np.linalg.norm(side)), 1e-9) for side in (face.across, face.down))
        start = face.origin - face.tile * (face.shift[0] * unit_x + face.shift[1] * unit_y)
        H = move @ self._plane(start, texel * unit_x, texel * unit_y) @ scaling(coarser, coarser)
        patch = cv2.warpPerspective(source, H, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        lit: Any = self._over(gain, face, move, size)
        patch = cv2.multiply(patch, lit, dtype=cv2.CV_8U)
        if fog is not None:
            veil: Any = self._over(fog, face, move, size)
            patch = cv2.add(patch, veil, dtype=cv2.CV_8U)
        cv2.copyTo(patch, mask, self.canvas[low[1] : high[1], low[0] : high[0]])

    def _over(
        self, values: Float32Array, face: Face, move: Float64Array, size: tuple[int, int]
    ) -> float | Float32Array:
        """Values on the grid of a face as its pixels see them; one number where they hardly differ."""
        low, high = float(values.min()), float(values.max())
        if high - low <= 0.06 * max(high, 1e-3):
            return (low + high) / 2
        height, width = values.shape
        # they are smooth: half of the resolution will do
        H = scaling(0.5, 0.5) @ move @ self._plane(face.origin, face.across / width, face.down / height)
        half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        small = cv2.warpPerspective(values, H, half, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR), np.float32)

    def _plane(self, origin: Float64Array, across: Float64Array, down: Float64Array) -> Float64Array:
        """The homography from coordinates (s, t) of the plane origin + s across + t down to pixels."""
        view = self.view
        return np.asarray(view.K @ view.R @ np.stack([across, down, origin - view.centre], axis=1), np.float64)

    def _lit(self, face: Face) -> tuple[Float32Array, Float32Array | None]:
        """Gain of the light over a face's rectangle, and what fog adds; (h, w) float32."""
        light = self.light
        longest = max(float(np.linalg.norm(face.across)), float(np.linalg.norm(face.down)))
        shape = [max(2, round(face.grid * float(np.linalg.norm(side)) / longest)) for side in (face.down, face.across)]
        coarse = [min(n, 24) for n in shape]
        t, s = ((np.arange(n) + 0.5) / n for n in coarse)
        points = face.origin + s[None, :, None] * face.across + t[:, None, None] * face.down
        towards, left = light.towards(points)
        direct = light.direct * np.clip(towards @ face.normal, 0, None) * left
        size = (shape[1], shape[0])
        direct_map = np.asarray(cv2.resize(direct.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), np.float32)
        if face.grid > 8 and self.occluders and direct.max() > 0:
            direct_map = direct_map * self._visible(face, size)
        gain = np.float32(light.ambient) + direct_map
        if light.fog == 0:
            return gain, None
        distance = np.linalg.norm(points - self.view.centre, axis=-1)
        clear = np.exp(-light.fog * distance).astype(np.float32)
        clear = np.asarray(cv2.resize(clear, size, interpolation=cv2.INTER_LINEAR), np.float32)
        return gain * clear, (1 - clear) * np.float32(light.haze)

    def _visible(self, face: Face, size: tuple[int, int]) -> Float32Array:
        """What other things leave of the direct light, (h, w) float32 in [0, 1]."""
        light, n, points = self.light, face.normal, self._points
        shade: np.ndarray = np.full((size[1], size[0]), 255, np.uint8)
        axes = np.stack([side / float(side @ side) for side in (face.across, face.down)])
        height = np.maximum((points - face.origin) @ n, 0)
        if light.sun is not None:
            slope = float(light.sun @ n)
            if slope < 0.05:
                return np.zeros((size[1], size[0]), np.float32)
            fallen = points - light.sun * (height / slope)[:, None]
        else:
            top = float((light.lamp - face.origin) @ n)
            if top <= 0:
                return np.zeros((size[1], size[0]), np.float32)
            height = np.minimum(height, 0.95 * top)
            fallen = light.lamp + (points - light.lamp) * (top / (top - height))[:, None]
        cells = ((fallen - face.origin) @ axes.T * size).clip(-8000, 8000)
        starts = self._starts
        near = (np.minimum.reduceat(cells, starts) < size).all(axis=1) & (np.maximum.reduceat(cells, starts) > 0).all(1)
        near &= np.maximum.reduceat(height, starts) > 1e-3
        fixed = np.rint(cells * (1 << _SHIFT)).astype(np.int32)
        for number in np.flatnonzero(near):
            hull = cv2.convexHull(fixed[starts[number] : starts[number] + len(self.occluders[number])])
            cv2.fillConvexPoly(shade, hull, 0, cv2.LINE_AA, _SHIFT)
        if light.softness > 0:
            shade = cv2.GaussianBlur(shade, (0, 0), light.softness)
        return shade.astype(np.float32) / np.float32(255)

    def _hit(self, ball: Sphere) -> tuple[tuple[slice, slice], Float32Array, Float32Array, BoolArray, float] | None:
        """A window of the canvas, its (h, w, 3) rays, where they meet a ball, whether, and its size; None: unseen."""
        view = self.view
        centre = view.R @ (ball.centre - view.centre)
        if centre[2] < ball.radius + _NEAR:
            return None
        f = view.K[0, 0]
        reach = 1.2 * f * ball.radius / (centre[2] - ball.radius) + 2
        x, y = (view.K @ centre)[:2] / centre[2]
        x0, x1 = max(int(x - reach), 0), min(int(x + reach) + 1, view.size[0])
        y0, y1 = max(int(y - reach), 0), min(int(y + reach) + 1, view.size[1])
        if x0 >= x1 or y0 >= y1:
            return None
        rays = np.ones((y1 - y0, x1 - x0, 3), np.float32)
        rays[..., 0] = (np.arange(x0, x1) - view.K[0, 2]) / f
        rays[..., 1] = ((np.arange(y0, y1) - view.K[1, 2]) / f)[:, None]
        # |t ray - centre| = radius
        a, b = (rays**2).sum(-1), rays @ centre.astype(np.float32)
        root = b * b - a * np.float32(centre @ centre - ball.radius**2)
        t = (b - np.sqrt(np.maximum(root, 0))) / a
        window = (slice(y0, y1), slice(x0, x1))
        if self.surfaces is not None:
            self.surfaces.labels[window][root > 0] = self.surfaces.ball(ball)
        return window, rays, t, root > 0, float(reach)

    def disc(self, ball: Sphere) -> None:
        """Put a ball on the surfaces alone, whatever is there already."""
        self._hit(ball)

    def sphere(self, ball: Sphere) -> None:
        """Paint a ball, whatever is there already."""
        view = self.view
        seen = self._hit(ball)
        if seen is None:
            return
        window, rays, t, hit, reach = seen
        centre = view.R @ (ball.centre - view.centre)
        normal = (rays * t[..., None] - centre.astype(np.float32)) / np.float32(ball.radius)
        world = normal @ view.R.astype(np.float32)
        texture = self.textures[ball.texture].level(0 if reach > 150 else 1 if reach > 60 else 2)
        n = np.float32(len(texture))
        u = (np.arctan2(world[..., 1], world[..., 0]) / np.float32(np.pi) * n).astype(np.float32)
        v = (np.arcsin(np.clip(world[..., 2], -1, 1)) / np.float32(np.pi) * n).astype(np.float32)
        values = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        towards, left = self.light.towards(ball.centre)
        gain = self.light.ambient + self.light.direct * np.clip(world @ towards.astype(np.float32), 0, None) * left
        clear = float(np.exp(-self.light.fog * np.linalg.norm(ball.centre - view.centre)))
        lit = values * gain * clear + (1 - clear) * self.light.haze
        part = self.canvas[window]
        part[hit] = np.clip(lit[hit], 0, 255).astype(np.uint8)


def _clip(polygon: Float64Array, plane: Float64Array, offset: float = 0.0) -> Float64Array:
    """The part of a convex (k, 3) polygon with plane . p >= offset (Sutherland & Hodgman 1974)."""
    values = polygon @ plane - offset
    inside = values >= 0
    if inside.all():
        return polygon
    kept = []
    for n in range(len(polygon)):
        m = (n + 1) % len(polygon)
        if inside[n]:
            kept.append(polygon[n])
        if inside[n] != inside[m]:
            kept.append(polygon[n] + (polygon[m] - polygon[n]) * (values[n] / (values[n] - values[m])))
    return np.array(kept).reshape(-1, 3)
