"""Made photographs: textured, lit scenes of planes, prisms and spheres, seen by a pinhole camera.

They stand in for photographs in labelling and training, free of anybody's rights. World coordinates are metres, x to
the right, y ahead, z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from frontend.atomic import atomic_write
from frontend.errors import ConfigError
from frontend.progress import Progress
from frontend.training.scene_faces import Face, Sphere, prism_faces, rectangle
from frontend.training.scene_painter import Light, Painter, Texture, View
from frontend.training.scene_textures import TEXTURES, fractal
from frontend.training.workers import mapping
from frontend.types import Float64Array

# canvases are this much finer than their images, against jagged edges
FINER = 1.5
_QUALITY = 92
_UP = np.array([0.0, 0.0, 1.0])


@dataclass
class Stage:
    """What stands in a scene: faces to be painted first, in order, and things, each a list of faces or a ball."""

    rng: np.random.Generator
    textures: list[str]
    behind: list[Face] = field(default_factory=list)
    things: list[tuple[Float64Array, list[Face] | Sphere]] = field(default_factory=list)
    occluders: list[Float64Array] = field(default_factory=list)

    def texture(self, *wanted: str) -> int:
        """One of the scene's textures; of the wanted kinds, where there are any."""
        fitting = [n for n, name in enumerate(self.textures) if name in wanted]
        return int(self.rng.choice(fitting or range(len(self.textures))))

    def wall(self, origin: Float64Array, across: Float64Array, down: Float64Array, tile: float, *kinds: str) -> None:
        """A rectangle behind everything."""
        self.behind.append(rectangle(origin, across, down, self.texture(*kinds), tile, 256))

    def poster(self, wall: Face, low: float = 0.08, high: float = 0.35) -> None:
        """A rectangle a little in front of a wall, at a random place."""
        rng = self.rng
        width, height = float(np.linalg.norm(wall.across)), float(np.linalg.norm(wall.down))
        side = min(width, height) * np.exp(rng.uniform(np.log(low), np.log(high), 2))
        ratio = side / (width, height)
        place = rng.uniform(0, 1, 2) * np.maximum(1 - ratio, 0)
        origin = wall.origin + place[0] * wall.across + place[1] * wall.down + 0.004 * wall.normal
        texture = self.texture("print", "collage", "facade", "checker")
        face = rectangle(origin, ratio[0] * wall.across, ratio[1] * wall.down, texture, float(side.max()), 64)
        self.behind.append(face)

    def prism(
        self, place: Float64Array, radius: float, height: float, sides: int, turn: Float64Array | None = None
    ) -> None:
        """A prism whose base is centred at a place; ``turn`` is a (3, 3) rotation about its middle."""
        rng = self.rng
        if sides == 4:
            half = radius * rng.uniform(0.4, 1.0, 2)
            outline = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        else:
            angles = 2 * np.pi * np.arange(sides) / sides
            outline = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        angle = rng.uniform(0, 2 * np.pi)
        outline = outline @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        base = np.concatenate([outline, np.zeros((sides, 1))], axis=1)
        up = height * _UP
        if turn is not None:
            base, up = (base - up / 2) @ turn.T, turn @ up
        base = base + place
        kinds = (self.texture(), self.texture())
        tile = float(max(2 * radius, height) * np.exp(rng.uniform(np.log(0.4), np.log(1.5))))
        self.things.append((base.mean(0) + up / 2, prism_faces(base, up, kinds, tile, rng.uniform(0, 1, 2))))
        self.occluders.append(np.concatenate([base, base + up]))

    def ball(self, place: Float64Array, radius: float) -> None:
        """A ball, its centre at a place."""
        self.things.append((place, Sphere(place, radius, self.texture())))
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
        self.occluders.append(place + radius * np.concatenate([ring, ring[:, [0, 2, 1]], ring[:, [2, 0, 1]]]))

    def clutter(self, count: int, low: Float64Array, high: Float64Array, sizes: tuple[float, float]) -> None:
        """Prisms and balls on the ground within a rectangle that keep clear of each other; some are stacked."""
        rng = self.rng
        taken: list[tuple[Float64Array, float]] = []
        for _ in range(3 * count):
            radius = float(np.exp(rng.uniform(*np.log(sizes))))
            place = np.append(rng.uniform(low, high), 0.0)
            if any(np.linalg.norm(place[:2] - other[:2]) < radius + size for other, size in taken):
                continue
            taken.append((place, radius))
            if rng.random() < 0.18:
                self.ball(place + radius * _UP, radius)
            else:
                height = radius * float(np.exp(rng.uniform(np.log(0.3), np.log(3.0))))
                self.prism(place, radius, height, int(rng.choice((4, 4, 4, 3, 6, 12))))
                if rng.random() < 0.25:
                    self.prism(place + (height + 0.001) * _UP, 0.6 * radius, 0.7 * height, 4)
            if len(taken) == count:
                break

    def paint(self, centre: Float64Array, face: Callable[[Face], None], ball: Callable[[Sphere], None]) -> None:
        """Hand everything to painting functions, in the order for a camera at ``centre``, (3,)."""
        for flat in self.behind:
            face(flat)
        for _, thing in sorted(self.things, key=lambda entry: -float(np.linalg.norm(entry[0] - centre))):
            if isinstance(thing, Sphere):
                ball(thing)
            else:
                for flat in thing:
                    face(flat)


def _turn(rng: np.random.Generator) -> Float64Array:
    """A random rotation, uniform."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q * np.sign(np.linalg.det(q)), np.float64)


def _lamp(rng: np.random.Generator, low: Float64Array, high: Float64Array) -> Light:
    return Light(
        ambient=float(rng.uniform(0.25, 0.6)),
        direct=float(rng.uniform(0.8, 1.8)),
        sun=None,
        lamp=rng.uniform(low, high),
        reach=float(np.linalg.norm(high - low)),
        softness=float(rng.uniform(0.6, 3)),
    )


def sunlight(rng: np.random.Generator) -> Light:
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.3)
    sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
    return Light(
        ambient=float(rng.uniform(0.3, 0.6)),
        direct=float(rng.uniform(0.5, 1.0)),
        sun=sun,
        lamp=np.zeros(3),
        softness=float(rng.uniform(0.4, 1.2)),
        fog=float(rng.uniform(0.005, 0.06)) if rng.random() < 0.4 else 0.0,
        haze=float(rng.uniform(110, 220)),
    )


def _room(stage: Stage, size: tuple[int, int]) -> tuple[View, Light]:
    """A room seen from one end: floor, walls with posters, often a ceiling, and things on the floor."""
    rng = stage.rng
    half, depth, height = rng.uniform(1.5, 4), rng.uniform(3.5, 9), rng.uniform(2.4, 4)
    x, y = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    back = -1.0
    floor = np.array([-half, depth, 0.0])
    stage.wall(floor, 2 * half * x, -(depth - back) * y, rng.uniform(0.8, 3), "planks", "checker", "stone", "cobbles")
    walls = [
        (np.array([-half, depth, height]), 2 * half * x),
        (np.array([-half, back, height]), (depth - back) * y),
        (np.array([half, depth, height]), -(depth - back) * y),
    ]
    for origin, across in walls:
        stage.wall(origin, across, -height * _UP, rng.uniform(1, 3), "stone", "bricks", "planks", "scratched")
        wall = stage.behind[-1]
        for _ in range(int(rng.integers(0, 6))):
            stage.poster(wall)
    if rng.random() < 0.7:
        origin = np.array([-half, back, height])
        stage.wall(origin, 2 * half * x, (depth - back) * y, rng.uniform(0.6, 2), "stone", "checker")
    stage.clutter(int(rng.integers(4, 15)), np.array([-half, 0.8]) * 0.85, np.array([half, depth]) * 0.85, (0.12, 0.6))
    eye = np.array([rng.uniform(-0.6, 0.6) * half, back + 0.3, rng.uniform(0.6, 2.0)])
    at = np.array([rng.uniform(-0.7, 0.7) * half, depth, rng.uniform(0.0, 1.8)])
    lamp = _lamp(rng, np.array([-0.7 * half, 0.2, 0.75 * height]), np.array([0.7 * half, 0.8 * depth, 0.95 * height]))
    return View.looking(eye, at, float(rng.normal(0, 0.12)), float(rng.uniform(0.55, 1.1)), size), lamp


def _street(stage: Stage, size: tuple[int, int]) -> tuple[View, Light]:
    """Outdoors: ground to the horizon, rows of buildings, things in the way."""
    rng = stage.rng
    wide, deep = 40.0, 80.0
    ground = np.array([-wide, deep, 0.0])
    kinds = ("cobbles", "stone", "bricks", "litter", "checker")
    stage.wall(ground, np.array([2 * wide, 0, 0]), np.array([0, -deep - 5.0, 0]), rng.uniform(1.5, 5), *kinds)
    half = rng.uniform(3, 8)
    for side in (-1, 1):
        along = rng.uniform(2, 8)
        while along < 50:
            length, height = rng.uniform(4, 12), rng.uniform(3, 14)
            radius = length / 2
            if rng.random() < 0.8:
                stage.prism(np.array([side * (half + radius), along + radius, 0.0]), radius, height, 4)
                base = side * (half + radius) + np.array([-1, 1, 1, -1]) * radius
                front = along + np.array([0, 0, 1, 1]) * length
                corners = np.stack([base, front, np.zeros(4)], axis=1)
                tile = float(rng.uniform(3, 8))
                textures = (stage.texture("facade", "bricks"), stage.texture("stone", "planks"))
                faces = prism_faces(corners, height * _UP, textures, tile, rng.uniform(0, 1, 2))
                stage.things[-1] = (corners.mean(0) + height / 2 * _UP, faces)
                stage.occluders[-1] = np.concatenate([corners, corners + height * _UP])
            along += length + rng.uniform(0, 2)
    stage.clutter(int(rng.integers(5, 16)), np.array([-half, 2.5]) * 0.9, np.array([half, 22]) * 0.9, (0.15, 1.0))
    eye = np.array([rng.uniform(-0.5, 0.5) * half, 0.0, rng.uniform(0.5, 2.5)])
    at = np.array([rng.uniform(-1, 1) * half, 14.0, rng.uniform(0, 4)])
    return View.looking(eye, at, float(rng.normal(0, 0.1)), float(rng.uniform(0.6, 1.2)), size), sunlight(rng)


def _table(stage: Stage, size: tuple[int, int]) -> tuple[View, Light]:
    """Looking down at a table or the ground with papers and small things."""
    rng = stage.rng
    reach = 4.0
    ground = np.array([-reach, reach, 0.0])
    stage.wall(ground, np.array([2 * reach, 0, 0]), np.array([0, -2 * reach, 0]), rng.uniform(0.35, 1.3))
    for _ in range(int(rng.integers(5, 16))):
        angle, side = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(0.12), np.log(0.7), 2))
        across = side[0] * np.array([np.cos(angle), np.sin(angle), 0])
        down = side[1] * np.array([np.sin(angle), -np.cos(angle), 0])
        origin = np.append(rng.uniform(-1.2, 1.2, 2), 0.002 + 0.001 * len(stage.behind))
        texture = stage.texture("print", "collage", "checker")
        stage.behind.append(rectangle(origin, across, down, texture, float(side.max()), 64))
    low = np.array([-1.3, -1.3])
    stage.clutter(int(rng.integers(8, 24)), low, -low, (0.04, 0.25))
    pitch, distance, azimuth = rng.uniform(0.5, 1.45), rng.uniform(1.1, 2.4), rng.uniform(0, 2 * np.pi)
    away = np.array([np.cos(azimuth) * np.cos(pitch), np.sin(azimuth) * np.cos(pitch), np.sin(pitch)])
    at = np.append(rng.uniform(-0.3, 0.3, 2), 0.0)
    light = _lamp(rng, np.array([-2, -2, 1.2]), np.array([2, 2, 2.5])) if rng.random() < 0.6 else sunlight(rng)
    # no fog over a table
    light = replace(light, fog=0.0)
    view = View.looking(at + distance * away, at, float(rng.normal(0, 0.3)), float(rng.uniform(0.6, 1.2)), size)
    return view, light


def _facade(stage: Stage, size: tuple[int, int]) -> tuple[View, Light]:
    """One large wall, seen head-on to slanted, with posters, windows and what stands before it."""
    rng = stage.rng
    x = np.array([1.0, 0, 0])
    stage.wall(np.array([-12, 5.0, 8]), 24 * x, -8 * _UP, rng.uniform(1.2, 5))
    wall = stage.behind[-1]
    for _ in range(int(rng.integers(12, 40))):
        stage.poster(wall, 0.05, 0.3)
    stage.wall(np.array([-12, 5.0, 0]), 24 * x, np.array([0, -8.0, 0]), rng.uniform(1, 3))
    stage.clutter(int(rng.integers(0, 9)), np.array([-3.5, 2.5]), np.array([3.5, 4.7]), (0.12, 0.5))
    eye = np.array([rng.uniform(-4, 4), rng.uniform(-1.5, 1.5), rng.uniform(1, 4)])
    at = np.array([rng.uniform(-1.5, 1.5), 5.0, rng.uniform(1, 4)])
    return View.looking(eye, at, float(rng.normal(0, 0.2)), float(rng.uniform(0.7, 1.4)), size), sunlight(rng)


def _heap(stage: Stage, size: tuple[int, int]) -> tuple[View, Light]:
    """Boxes and balls of all sizes, turned at random, before a wall."""
    rng = stage.rng
    stage.wall(np.array([-9, 8.0, 9]), np.array([18.0, 0, 0]), -18 * _UP, rng.uniform(1.5, 4))
    for _ in range(int(rng.integers(15, 40))):
        depth = rng.uniform(2.2, 7)
        place = np.array([rng.uniform(-0.55, 0.55) * depth, depth, rng.uniform(-0.42, 0.42) * depth])
        radius = float(np.exp(rng.uniform(np.log(0.08), np.log(0.7))))
        if rng.random() < 0.15:
            stage.ball(place, radius)
        else:
            height = radius * float(np.exp(rng.uniform(np.log(0.3), np.log(2.5))))
            stage.prism(place, radius, height, int(rng.choice((4, 4, 4, 3, 6))), _turn(rng))
    view = View.looking(
        np.zeros(3), np.array([0, 5.0, 0]), float(rng.uniform(-0.5, 0.5)), float(rng.uniform(0.8, 1.1)), size
    )
    return view, _lamp(rng, np.array([-4.0, -1, -2]), np.array([4.0, 2, 5]))


Layout = Callable[[Stage, tuple[int, int]], tuple[View, Light]]
LAYOUTS: dict[str, tuple[Layout, float]] = {
    "room": (_room, 0.3),
    "street": (_street, 0.25),
    "table": (_table, 0.2),
    "facade": (_facade, 0.13),
    "heap": (_heap, 0.12),
}


def _sky(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A gradient with clouds, (H, W) uint8."""
    height = size[1]
    clouds = cv2.resize(fractal(rng, 512, 4)[:384], size, interpolation=cv2.INTER_LINEAR)
    top, bottom = rng.uniform(90, 235, 2)
    slope = np.linspace(top, bottom, height, dtype=np.float32)[:, None]
    return np.clip(slope + np.float32(rng.uniform(0, 18)) * clouds, 0, 255).astype(np.uint8)


def exposed(rng: np.random.Generator, canvas: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What lens, sensor and exposure make of it: (H, W) uint8 of the image's size."""
    width, height = size
    image: np.ndarray = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.0)))
    # exposed so that the mean comes out as in photographs, then a gamma
    mean, spread = float(image.mean()), max(float(image.std()), 1.0)
    contrast = max(rng.uniform(75, 150) / max(mean, 1.0), rng.uniform(25, 45) / spread)
    image = (image - mean) * np.float32(contrast) + np.float32(rng.uniform(80, 145))
    if rng.random() < 0.5:
        exponent = float(np.exp(rng.uniform(-0.3, 0.3)))
        image = cv2.pow(np.clip(image, 0, 255) / np.float32(255), exponent) * np.float32(255)
    if rng.random() < 0.5:
        x = (np.arange(width, dtype=np.float32) / width - 0.5) ** 2
        y = (np.arange(height, dtype=np.float32) / height - 0.5) ** 2
        image *= 1 - np.float32(rng.uniform(0.2, 0.9)) * (x[None] + y[:, None])
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.3, 4.0))
    result: np.ndarray = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return result


@dataclass(frozen=True, eq=False)
class Setting:
    """A scene before it is painted: what stands in it, its layout's own camera and light, and (H, W) uint8 of sky."""

    stage: Stage
    view: View
    light: Light
    textures: list[Texture]
    sky: np.ndarray


def set_up(seed: int, number: int, size: tuple[int, int], layout: str | None) -> Setting:
    """What :func:`scene` paints, for an image of a size; the stage's generator is left ready for :func:`exposed`."""
    rng = np.random.default_rng((seed, number))
    shares = np.array([share for _, share in LAYOUTS.values()])
    drawn = str(rng.choice(list(LAYOUTS), p=shares / shares.sum()))
    make = LAYOUTS[layout or drawn][0]
    names = [str(name) for name in rng.permutation(list(TEXTURES))[: int(rng.integers(4, 7))]]
    stage = Stage(rng, names)
    canvas_size = (round(size[0] * FINER), round(size[1] * FINER))
    view, light = make(stage, canvas_size)
    textures = [Texture(TEXTURES[name](rng, 512)) for name in names]
    return Setting(stage, view, light, textures, _sky(rng, canvas_size))


def scene(seed: int, number: int, size: tuple[int, int] = (640, 480), layout: str | None = None) -> np.ndarray:
    """Make one image, a function of the arguments.

    Args:
        seed: of the whole set.
        number: of the image.
        size: (width, height), pixels.
        layout: a key of :data:`LAYOUTS`; drawn where None.

    Returns:
        (height, width) uint8.
    """
    setting = set_up(seed, number, size, layout)
    view = setting.view
    painter = Painter(view, setting.light, setting.textures, setting.stage.occluders, setting.sky)
    setting.stage.paint(view.centre, painter.face, painter.sphere)
    return exposed(setting.stage.rng, painter.canvas, size)


def _write(number: int, out: Path, seed: int, size: tuple[int, int]) -> bool:
    path = out / f"scene-{seed}-{size[0]}x{size[1]}-{number:06}.jpg"
    if path.is_file():
        return False
    cv2.setNumThreads(1)
    _, encoded = cv2.imencode(".jpg", scene(seed, number, size), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    atomic_write(path, encoded.tobytes())
    return True


def make_scenes(
    out: Path, count: int, seed: int = 0, size: tuple[int, int] = (640, 480), workers: int = 1
) -> tuple[int, int]:
    """Fill a folder with made images; those that are there are kept, so an interrupted run goes on.

    Args:
        out: folder, made if missing. Seed, size and number are in a file's name, so sets do not mix up.
        count: images.
        seed: of the set; another seed gives other images.
        size: (width, height), pixels.
        workers: processes.

    Returns:
        How many were made, and how many were there.

    Raises:
        ConfigError: a number is out of its range.
        DataError: a process has been killed, for want of memory for instance.
    """
    for name, value, least in (("count", count, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}; expected {least} or more")
    if min(size) < 64:
        raise ConfigError(f"size is {size[0]} x {size[1]}; expected at least 64 x 64")
    out.mkdir(parents=True, exist_ok=True)
    write = partial(_write, out=out, seed=seed, size=size)
    made = 0
    with Progress(count, "scenes", unit="image") as progress, mapping(workers if workers > 1 else 0) as run:
        for new in run(write, range(count)):
            made += new
            progress.update()
    return made, count - made
