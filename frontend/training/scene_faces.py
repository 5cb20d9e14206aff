"""Faces of the things in made scenes: rectangles and prisms; see :mod:`frontend.training.scenes`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frontend.types import Float64Array


@dataclass(frozen=True, eq=False)
class Face:
    """A convex polygon in a plane, with a texture that repeats.

    Attributes:
        corners: (k, 3) metres.
        origin: (3,), a corner of the rectangle that holds it.
        across: (3,), that rectangle's side along the texture's x.
        down: (3,), its side along the texture's y; at right angles.
        normal: (3,) unit vector, on the side that is seen.
        texture: index in the painter's textures.
        tile: side of the texture in the plane, metres.
        shift: (2,) where in the texture the origin is, tiles.
        grid: cells of the light's grid along the longer side; 8 or so where no shadow falls.
    """

    corners: Float64Array
    origin: Float64Array
    across: Float64Array
    down: Float64Array
    normal: Float64Array
    texture: int
    tile: float
    shift: Float64Array
    grid: int = 8


@dataclass(frozen=True, eq=False)
class Sphere:
    """A textured ball: centre (3,), radius, metres; index of its texture."""

    centre: Float64Array
    radius: float
    texture: int


def cross(a: Float64Array, b: Float64Array) -> Float64Array:
    """The cross product of two vectors; NumPy's own is slow for single ones."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def rectangle(
    origin: Float64Array, across: Float64Array, down: Float64Array, texture: int, tile: float, grid: int = 8
) -> Face:
    """A rectangular face, seen from the side that ``across`` x ``down`` points away from."""
    normal = cross(down, across)
    corners = np.stack([origin, origin + across, origin + across + down, origin + down])
    return Face(corners, origin, across, down, normal / np.linalg.norm(normal), texture, tile, np.zeros(2), grid)


def prism_faces(
    base: Float64Array, up: Float64Array, textures: tuple[int, int], tile: float, shift: Float64Array
) -> list[Face]:
    """The faces of a prism.

    Args:
        base: (k, 3), counter-clockwise as seen from where ``up`` points.
        up: (3,), at right angles to the base.
        textures: of the sides and of both ends.
        tile: see :class:`Face`.
        shift: see :class:`Face`.
    """
    faces = []
    top = base + up
    for start, end in zip(top, np.roll(top, -1, axis=0), strict=True):
        across = end - start
        normal = cross(across, up)
        corners = np.stack([start, end, end - up, start - up])
        unit = normal / max(float(np.linalg.norm(normal)), 1e-9)
        faces.append(Face(corners, start, across, -up, unit, textures[0], tile, shift))
    e1 = (base[1] - base[0]) / np.linalg.norm(base[1] - base[0])
    unit = up / np.linalg.norm(up)
    e2 = cross(e1, unit)
    for corners, normal in ((top, unit), (base, -unit)):
        along, aside = corners @ e1, corners @ e2
        height = float(corners[0] @ unit)
        origin = along.min() * e1 + aside.min() * e2 + height * unit
        across, down = np.ptp(along) * e1, np.ptp(aside) * e2
        faces.append(Face(corners, origin, across, down, normal, textures[1], tile, shift, 32))
    return faces
