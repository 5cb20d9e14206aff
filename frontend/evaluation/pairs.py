"""Pairs of photographs with an exact homography, made from single photographs by seeded changes.

For each photograph one viewpoint pair (a second camera looks at the photograph as at a poster: tilt, roll, distance,
shift, and the second camera's own exposure, defocus, noise and JPEG) and one illumination pair (the same pixels under
other light). A pair depends on the seed and on the file's name alone: not on the order, nor on the other files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from frontend.errors import ConfigError
from frontend.evaluation.camera import CameraConfig, LightConfig, Range, UInt8Image, expose, illumination_field
from frontend.homography import scaling
from frontend.image import read_image
from frontend.types import Float64Array

KINDS = ("viewpoint", "illumination")
"""The two kinds of pairs, as in HPatches (v_*, i_*)."""

MAX_DRAWS = 200
"""Viewpoints drawn before the one that sees most of the photograph is taken."""


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two images of one plane.

    Attributes:
        name: unique in its dataset.
        kind: "viewpoint" or "illumination".
        image0: (H, W, 3) uint8 BGR.
        image1: (H1, W1, 3) uint8 BGR.
        H: (3, 3) float64, pixels of image 0 to pixels of image 1, (0, 0) the centre of the top-left pixel.
    """

    name: str
    kind: str
    image0: UInt8Image
    image1: UInt8Image
    H: Float64Array


@dataclass(frozen=True)
class ViewpointConfig:
    """Where the second camera may stand. The photograph is a flat poster, filling the first camera's view.

    Attributes:
        tilt: degrees between the poster's normal and the second camera's axis (0 = frontal): the foreshortening.
        roll: largest in-plane rotation, degrees.
        zoom: ratio of the distances of the first and the second camera; above 1 the second is closer.
        shift: largest displacement of the poster's centre, as a part of the longest side.
        focal: focal length of both cameras, as a part of the longest side (1 = 53 degrees field of view).
        min_coverage: least part of image 1 that shows the photograph.
        min_overlap: least part of the photograph that image 1 shows.
    """

    tilt: Range = (35.0, 65.0)
    roll: float = 30.0
    zoom: Range = (0.75, 1.5)
    shift: float = 0.12
    focal: float = 1.1
    min_coverage: float = 0.75
    min_overlap: float = 0.6


@dataclass(frozen=True)
class PairConfig:
    """The published difficulty: fixed with SIFT, RootSIFT and ORB alone, so that none of them fails or saturates."""

    viewpoint: ViewpointConfig = field(default_factory=ViewpointConfig)
    viewpoint_camera: CameraConfig = field(default_factory=CameraConfig)
    light: LightConfig = field(default_factory=LightConfig)
    illumination_camera: CameraConfig = field(
        default_factory=lambda: CameraConfig(
            exposure=(-3.0, 2.3),
            tone_gamma=(0.6, 1.6),
            color_cast=0.4,
            defocus=(0.0, 1.2),
            read_noise=(3.0, 12.0),
            shot_noise=(3.0, 9.0),
            jpeg_quality=(35.0, 80.0),
        )
    )


def pair_rng(seed: int, kind: str, name: str) -> np.random.Generator:
    """A generator that depends on its three arguments alone (through SHA-256)."""
    digest = hashlib.sha256(f"{seed}\n{kind}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def viewpoint_homography(
    size: tuple[int, int],
    tilt: float,
    direction: float,
    roll: float,
    zoom: float,
    shift: tuple[float, float],
    focal: float,
) -> Float64Array:
    """Homography between a frontal camera and a second camera, both looking at one plane.

    The plane's point at p (image 0, in units of the focal length, from the centre) stands at
    ``R (p, 0) + (shift, 1 / zoom)`` before camera 1, so H = K [r1 r2 t] K^-1 (Hartley & Zisserman 2004, eq. 13.1).

    Args:
        size: (width, height) of both images, pixels.
        tilt: degrees out of the frontal plane.
        direction: degrees; the in-plane axis about which the plane tilts.
        roll: degrees in the plane of image 1.
        zoom: ratio of the two distances.
        shift: (x, y) of the plane's centre in image 1, parts of the longest side.
        focal: focal length, parts of the longest side.

    Returns:
        (3, 3) float64 with H[2, 2] = 1.
    """
    width, height = size
    longest = max(size)
    f = focal * longest
    K = np.array([[f, 0.0, (width - 1) / 2], [0.0, f, (height - 1) / 2], [0.0, 0.0, 1.0]])
    tilt_, direction_, roll_ = np.radians([tilt, direction, roll])
    axis = np.array([np.cos(direction_), np.sin(direction_), 0.0]) * tilt_
    tilting, _ = cv2.Rodrigues(axis)
    rolling, _ = cv2.Rodrigues(np.array([0.0, 0.0, roll_]))
    R = rolling @ tilting
    distance = 1.0 / zoom
    t = np.array([shift[0] / focal * distance, shift[1] / focal * distance, distance])
    H = K @ np.stack([R[:, 0], R[:, 1], t], axis=1) @ np.linalg.inv(K)
    return np.asarray(H / H[2, 2], dtype=np.float64)


def _visible_part(H: Float64Array, size: tuple[int, int], steps: int = 24) -> float:
    """Part of a grid on an image of ``size`` that ``H`` maps into an image of the same size, before the camera."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, width - 1, steps), np.linspace(0, height - 1, steps))
    mapped = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1) @ H.T
    front = mapped[:, 2] > 1e-6
    xy = mapped[:, :2] / np.where(front, mapped[:, 2], 1.0)[:, None]
    inside = front & (xy[:, 0] >= 0) & (xy[:, 0] <= width - 1) & (xy[:, 1] >= 0) & (xy[:, 1] <= height - 1)
    return float(inside.mean())


def sample_viewpoint(rng: np.random.Generator, size: tuple[int, int], config: ViewpointConfig) -> Float64Array:
    """Draw a second viewpoint that sees enough of the photograph and little beside it.

    Args:
        rng: source of randomness.
        size: (width, height) of both images, pixels.
        config: ranges; the tilt is drawn once, so that the rejections do not favour easy tilts.

    Returns:
        (3, 3) float64 homography, image 0 to image 1. Where :data:`MAX_DRAWS` viewpoints do not meet both
        conditions, the one that comes closest.
    """
    tilt = float(rng.uniform(*config.tilt))
    best: Float64Array | None = None
    best_deficit = np.inf
    for _ in range(MAX_DRAWS):
        H = viewpoint_homography(
            size,
            tilt=tilt,
            direction=float(rng.uniform(0.0, 360.0)),
            roll=float(rng.uniform(-config.roll, config.roll)),
            zoom=float(np.exp(rng.uniform(*np.log(config.zoom)))),
            shift=(float(rng.uniform(-config.shift, config.shift)), float(rng.uniform(-config.shift, config.shift))),
            focal=config.focal,
        )
        coverage = _visible_part(np.asarray(np.linalg.inv(H), np.float64), size)
        overlap = _visible_part(H, size)
        deficit = max(0.0, config.min_coverage - coverage) + max(0.0, config.min_overlap - overlap)
        if deficit < best_deficit:
            best, best_deficit = H, deficit
        if deficit == 0.0:
            break
    if best is None:
        raise ConfigError(f"no viewpoint can be drawn for an image of {size[0]}x{size[1]} pixels")
    return best


def _smallest_scale(H: Float64Array, size: tuple[int, int], steps: int = 8) -> float:
    """Smallest local scale (singular value of the Jacobian) of ``H`` where its result lies inside the image."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, width - 1, steps), np.linspace(0, height - 1, steps))
    there = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    back = there @ np.linalg.inv(H).T
    back = back[np.abs(back[:, 2]) > 1e-9]
    source = back / back[:, 2:]
    scales = []
    for point in source:
        if not (0 <= point[0] <= width - 1 and 0 <= point[1] <= height - 1):
            continue
        u, v, w = H @ point
        jacobian = np.array([H[0, :2] * w - u * H[2, :2], H[1, :2] * w - v * H[2, :2]]) / w**2
        scales.append(np.linalg.svd(jacobian, compute_uv=False)[-1])
    return float(min(scales)) if scales else 1.0


def render_view(image: UInt8Image, H: Float64Array) -> UInt8Image:
    """What the second camera sees: each pixel integrates its area, so nothing aliases.

    The canvas is drawn k times finer and averaged, k by the strongest minification. Beside the photograph stands
    its own mirror image, far out of focus: no false edge, and nothing that a detector could hold on to.

    Args:
        image: (H, W, 3) uint8 BGR.
        H: (3, 3) float64, ``image`` to the result.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    height, width = image.shape[:2]
    k = int(np.clip(np.ceil(1.0 / _smallest_scale(H, (width, height))), 2, 4))
    finer = scaling(k, k) @ H
    canvas = (width * k, height * k)
    view = cv2.warpPerspective(image, finer, canvas, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    full = np.full((height, width), 255, dtype=np.uint8)
    inside = cv2.warpPerspective(full, finer, canvas, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    view = cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = cv2.resize(inside, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)[:, :, None] / 255.0
    if float(alpha.min()) < 1.0:
        backdrop = cv2.GaussianBlur(view, (0, 0), 0.03 * max(width, height))
        view = alpha * view + (1.0 - alpha) * backdrop
    return np.asarray(np.clip(np.rint(view), 0, 255), dtype=np.uint8)


def load_bgr(path: Path) -> UInt8Image:
    """Read an image as (H, W, 3) uint8 BGR.

    Raises:
        ImageError: it cannot be read; one line with its name.
    """
    image = read_image(path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8) if image.ndim == 2 else image


def reduce_image(image: UInt8Image, longest_side: int | None) -> tuple[UInt8Image, Float64Array]:
    """Reduce an image that is larger than wanted; a smaller one stays as it is.

    Args:
        image: (H, W, 3) uint8.
        longest_side: pixels; None for no limit.

    Returns:
        The image, and the (3, 3) float64 map of its pixels: (xy + 0.5) * s - 0.5, with the exact s of each side.
    """
    height, width = image.shape[:2]
    if longest_side is None or max(width, height) <= longest_side:
        return image, np.eye(3)
    ratio = longest_side / max(width, height)
    new = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    resized = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8), scaling(new[0] / width, new[1] / height)


def viewpoint_pair(image: UInt8Image, name: str, *, seed: int = 0, config: PairConfig | None = None) -> ImagePair:
    """The photograph, and the photograph seen by a second camera from elsewhere.

    Args:
        image: (H, W, 3) uint8 BGR.
        name: file name; with ``seed`` it determines the pair.
        seed: of the benchmark.
        config: difficulty; the published one by default.
    """
    config = config or PairConfig()
    rng = pair_rng(seed, "viewpoint", name)
    H = sample_viewpoint(rng, (image.shape[1], image.shape[0]), config.viewpoint)
    view = expose(rng, render_view(image, H), config.viewpoint_camera)
    return ImagePair(name=f"v_{name}", kind="viewpoint", image0=image, image1=view, H=H)


def illumination_pair(image: UInt8Image, name: str, *, seed: int = 0, config: PairConfig | None = None) -> ImagePair:
    """The photograph, and the same pixels under other light; H is the identity. Arguments as viewpoint_pair."""
    config = config or PairConfig()
    rng = pair_rng(seed, "illumination", name)
    light = illumination_field(rng, (image.shape[1], image.shape[0]), config.light)
    relit = expose(rng, image, config.illumination_camera, light)
    return ImagePair(name=f"i_{name}", kind="illumination", image0=image, image1=relit, H=np.eye(3))


def photo_pairs(
    photos: Iterable[Path],
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    resize: int | None = 640,
    config: PairConfig | None = None,
) -> Iterator[ImagePair]:
    """The seeded pairs of a set of photographs, photograph by photograph.

    Args:
        photos: image files. Only a file's name enters its pairs, so two of one name get the same changes.
        kinds: "viewpoint", "illumination" or both.
        seed: of the benchmark.
        resize: photographs with a longer side than this many pixels are reduced to it first; None for never.
        config: difficulty; the published one by default.

    Yields:
        A pair for each photograph and kind; the pairs of one photograph share one ``image0`` array.

    Raises:
        ConfigError: an unknown kind.
        ImageError: a photograph cannot be read.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of pairs '{kind}'; expected one of: {', '.join(KINDS)}")
    for path in photos:
        image, _ = reduce_image(load_bgr(path), resize)
        for kind in kinds:
            make = viewpoint_pair if kind == "viewpoint" else illumination_pair
            yield make(image, path.name, seed=seed, config=config)
