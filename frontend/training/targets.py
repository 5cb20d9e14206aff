"""Detector targets: from points to one class for each 8 x 8 cell."""

from __future__ import annotations

import numpy as np

from frontend.heads import CELL, DUSTBIN
from frontend.postprocess import survivors
from frontend.types import BoolArray, Float64Array


def cell_labels(
    points: Float64Array, size: tuple[int, int], rng: np.random.Generator, scores: np.ndarray | None = None
) -> np.ndarray:
    """The class of each cell: the position of its point, or the dustbin.

    Sub-pixel points are rounded at random, up with the probability of their fraction: the expected target is the
    bilinear one, so the trained heat map keeps its centre of mass on the point.

    Args:
        points: (N, 2) pixels.
        size: (width, height) of the image, multiples of 8.
        rng: source of randomness, for rounding and for the choice among points of one cell.
        scores: (N,) where given, the best point of a cell wins; a random one does otherwise.

    Returns:
        (height / 8, width / 8) uint8 in [0, 64].
    """
    width, height = size
    labels = np.full((height // CELL, width // CELL), DUSTBIN, np.uint8)
    pixels = np.floor(points + rng.random(points.shape)).astype(np.int64)
    # the last to be written wins
    order = rng.permutation(len(pixels)) if scores is None else np.argsort(scores, kind="stable")
    pixels = pixels[order]
    inside = ((pixels >= 0) & (pixels < np.array(size))).all(axis=1)
    x, y = pixels[inside].T
    labels[y // CELL, x // CELL] = (y % CELL) * CELL + x % CELL
    return labels


def spaced(points: Float64Array, scores: np.ndarray, size: tuple[int, int], radius: int) -> BoolArray:
    """Which points survive non-maximum suppression among themselves.

    Labels are spaced in the photograph; a view from further away brings them closer than keypoints may be.

    Args:
        points: (N, 2) pixels; those outside the image do not survive.
        scores: (N,) positive.
        size: (width, height) of the image.
        radius: suppression radius, pixels.

    Returns:
        (N,) bool.
    """
    width, height = size
    pixels = np.rint(points).astype(np.int64)
    inside = np.asarray(((pixels >= 0) & (pixels < np.array(size))).all(axis=1), dtype=bool)
    x, y = np.where(inside[:, None], pixels, 0).T
    drawn = np.zeros((height, width), np.float32)
    np.maximum.at(drawn, (y[inside], x[inside]), scores[inside])
    # most pixels are 0 and their own maximum, so that only what was drawn counts
    survives: BoolArray = inside & (survivors(drawn, radius)[y, x] > 0) & (drawn[y, x] == scores) & (scores > 0)
    return survives


def cell_mask(mask: BoolArray) -> BoolArray:
    """Which cells lie wholly within a (H, W) mask: (H / 8, W / 8) bool."""
    height, width = mask.shape
    blocks = mask.reshape(height // CELL, CELL, width // CELL, CELL)
    return np.asarray(blocks.all(axis=(1, 3)), dtype=bool)
