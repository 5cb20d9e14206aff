"""Augmentation of synthetic images, and how often each shape is drawn.

Mosaics, rotation and scale change an image, its corners and its regions together. What they make unknown, the seams
of a mosaic and what lies beyond the image, is marked as such: nothing there is labelled, though there may be corners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from frontend.errors import ConfigError
from frontend.homography import warp_image, warp_points
from frontend.training.synthetic import SHAPE_WEIGHTS, SHAPES, Drawing, synthetic_drawing
from frontend.types import BoolArray, Float64Array

# pixels to either side of a seam whose contents the seam may have changed, blur by the warp included
_SEAM = 2
_IMAGES_PER_SHAPE = 64


@dataclass(frozen=True)
class AugmentationConfig:
    """How synthetic images are augmented; by default they are not.

    Attributes:
        mosaic: probability that four images are joined in one (Bochkovskiy et al. 2020, arXiv:2004.10934).
        rotate: largest rotation about the centre to either side, degrees; uniform.
        scale_jitter: S; the image is scaled about the centre by a factor between 1 / (1 + S) and 1 + S, uniform in
            log.
    """

    mosaic: float = 0.0
    rotate: float = 0.0
    scale_jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mosaic <= 1:
            raise ConfigError(f"mosaic is {self.mosaic}; expected a probability in [0, 1]")
        if not 0 <= self.rotate <= 180:
            raise ConfigError(f"rotate is {self.rotate}; expected degrees in [0, 180]")
        if not 0 <= self.scale_jitter <= 1:
            raise ConfigError(f"scale_jitter is {self.scale_jitter}; expected a value in [0, 1]")


def mosaic(drawings: list[Drawing], rng: np.random.Generator) -> tuple[Drawing, BoolArray]:
    """Join four images of one size around a random centre; of each a random crop is seen.

    Args:
        drawings: four; the top left, top right, bottom left and bottom right parts come from them in this order.
        rng: source of randomness.

    Returns:
        The mosaic, of the same size, and the pixels that are known: (H, W) bool, False within two pixels of the seams.
    """
    height, width = drawings[0].image.shape
    x, y = (round(side * float(rng.uniform(0.25, 0.75))) for side in (width, height))
    image = np.empty_like(drawings[0].image)
    regions = np.empty_like(image) if drawings[0].regions is not None else None
    points = []
    places = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    for drawing, (left, top, right, bottom) in zip(drawings, places, strict=True):
        part = np.array([right - left, bottom - top])
        crop = rng.integers(0, np.array([width, height]) - part + 1)
        taken = (slice(crop[1], crop[1] + part[1]), slice(crop[0], crop[0] + part[0]))
        image[top:bottom, left:right] = drawing.image[taken]
        if regions is not None and drawing.regions is not None:
            regions[top:bottom, left:right] = drawing.regions[taken]
        moved = drawing.points - crop
        inside = ((moved >= -0.5) & (moved < part - 0.5)).all(axis=1)
        points.append(moved[inside] + (left, top))
    known = np.ones((height, width), bool)
    known[:, x - _SEAM : x + _SEAM] = False
    known[y - _SEAM : y + _SEAM] = False
    joined = np.concatenate(points)
    within = ((joined >= 0) & (joined <= np.array([width, height]) - 1)).all(axis=1)
    return Drawing(image, joined[within], regions), known


def similarity(angle: float, scale: float, size: tuple[int, int]) -> Float64Array:
    """The rotation by ``angle`` radians, from x towards y, and scaling about an image's centre: (3, 3) float64."""
    centre = (np.array(size) - 1) / 2
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    H = np.eye(3)
    H[:2, :2], H[:2, 2] = turn, centre - turn @ centre
    return H


def warped(drawing: Drawing, known: BoolArray, H: Float64Array) -> tuple[Drawing, BoolArray]:
    """Carry a drawing through an affine map, into a frame of the same size.

    Args:
        drawing: what to warp; regions by the nearest neighbour.
        known: (H, W) bool, pixels of it that are known.
        H: (3, 3) float64, its last row (0, 0, 1).

    Returns:
        The drawing, and the pixels of it that are known: not those from beyond the image or its outermost two
        pixels, where replication bends the edges.
    """
    size = (drawing.image.shape[1], drawing.image.shape[0])
    inner = np.zeros(known.shape, np.uint8)
    inner[_SEAM:-_SEAM, _SEAM:-_SEAM] = known[_SEAM:-_SEAM, _SEAM:-_SEAM]
    regions = drawing.regions
    if regions is not None:
        regions = warp_image(regions, H, size, border=cv2.BORDER_REPLICATE, interpolation=cv2.INTER_NEAREST)
    points = warp_points(drawing.points, H)
    inside = ((points >= 0) & (points <= np.array(size) - 1)).all(axis=1)
    image = warp_image(drawing.image, H, size, border=cv2.BORDER_REPLICATE)
    still_known = warp_image(inner, H, size, interpolation=cv2.INTER_NEAREST)
    return Drawing(image, points[inside], regions), still_known.astype(bool)


def augmented(
    draw: Callable[[], Drawing], rng: np.random.Generator, config: AugmentationConfig
) -> tuple[Drawing, BoolArray]:
    """Draw an image and augment it; rotation and scale come last and in one warp.

    Args:
        draw: makes the drawings, of one size: one, or four for a mosaic.
        rng: source of randomness; not used for an augmentation that is switched off.
        config: which augmentations.

    Returns:
        The drawing, and the pixels of it that are known, (H, W) bool.
    """
    if config.mosaic > 0 and rng.random() < config.mosaic:
        drawing, known = mosaic([draw() for _ in range(4)], rng)
    else:
        drawing = draw()
        known = np.ones(drawing.image.shape, bool)
    if config.rotate > 0 or config.scale_jitter > 0:
        angle = np.deg2rad(rng.uniform(-config.rotate, config.rotate))
        reach = np.log1p(config.scale_jitter)
        scale = float(np.exp(rng.uniform(-reach, reach)))
        size = (drawing.image.shape[1], drawing.image.shape[0])
        drawing, known = warped(drawing, known, similarity(angle, scale, size))
    return drawing, known


def corner_shares(size: tuple[int, int] = (160, 120), images: int = _IMAGES_PER_SHAPE) -> Float64Array:
    """Which share of all labelled corners each shape has, as the shapes are drawn by default.

    Measured on the generator's own images, always the same ones.

    Args:
        size: (width, height) of the images, pixels.
        images: how many of each shape are looked at.

    Returns:
        (len(SHAPES),) float64, sums to one.
    """
    corners = [
        sum(len(synthetic_drawing(np.random.default_rng((n, k)), size, shape=name).points) for k in range(images))
        for n, name in enumerate(SHAPES)
    ]
    weighted = SHAPE_WEIGHTS * np.array(corners)
    shares: Float64Array = weighted / weighted.sum()
    return shares


def repeat_factors(shares: Float64Array, threshold: float) -> Float64Array:
    """How many times more often each class is drawn (Gupta et al. 2019, arXiv:1908.03195, repeat factor sampling).

    ``r_c = max(1, sqrt(threshold / f_c))``. The paper's ``f_c`` is the share of images with the class. Here that is
    all but the same for every class by construction, while their corners, which are what is learnt, differ by a
    factor of ten; so ``f_c`` is the class's share of the corners. A class without corners is not rare: its factor is 1.

    Args:
        shares: (C,) float64, f_c.
        threshold: share below which a class is repeated.

    Returns:
        (C,) float64, 1 or more.
    """
    safe = np.where(shares > 0, shares, 1.0)
    return np.where(shares > 0, np.maximum(1.0, np.sqrt(threshold / safe)), 1.0)


def repeated_weights(threshold: float, size: tuple[int, int]) -> Float64Array:
    """Weights of the shapes with repetition, (len(SHAPES),) float64.

    Args:
        threshold: see :func:`repeat_factors`; 0 leaves the weights as they are.
        size: (width, height) of the images, pixels.

    Raises:
        ConfigError: the threshold is no share.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"repeat_threshold is {threshold}; expected a share in [0, 1]")
    if threshold == 0:
        return SHAPE_WEIGHTS
    return np.asarray(SHAPE_WEIGHTS * repeat_factors(corner_shares(size), threshold), np.float64)
