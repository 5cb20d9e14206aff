"""Soft detector targets: for each 8 x 8 cell the probabilities of its 64 pixels and of the dustbin."""

from __future__ import annotations

import numpy as np

from frontend.heads import CELL, DUSTBIN
from frontend.homography import warp_points
from frontend.types import Float32Array, Float64Array

# pixels at a time: temporary arrays that stay in the cache are several times faster
_BLOCK = 8192


def warp_probabilities(heat: Float32Array, H: Float64Array, size: tuple[int, int]) -> Float64Array:
    """Carry a map of point-like peaks into a view, keeping the probability of each.

    Interpolation of the values would multiply the mass of a peak with the change of area, and lose peaks between the
    samples where the view is smaller. So the map is not sampled but scattered: the probability of each pixel goes to
    the four pixels about its image, in bilinear shares. The mass of what lands inside is kept exactly, at any scale,
    and so is the centre of mass where the homography is affine across a peak. It is what
    :func:`frontend.training.targets.cell_labels` does to points, in expectation. A value is thus the expected number
    of points on a pixel: where a view brings points together it may exceed 1.

    Args:
        heat: (H', W') float32 in [0, 1].
        H: (3, 3) float64, its pixels to the view's.
        size: (width, height) of the view.

    Returns:
        (height, width) float64, not negative.
    """
    width, height = size
    # a frame of one pixel takes what falls half outside
    stride = width + 2
    total = np.zeros((height + 2) * stride)
    ys, xs = np.nonzero(heat)
    for start in range(0, len(xs), _BLOCK):
        x, y = xs[start : start + _BLOCK], ys[start : start + _BLOCK]
        mass = heat[y, x].astype(np.float64)
        u, v = warp_points(np.stack([x, y], axis=1).astype(np.float64), H).T
        inside = (u > -1) & (u < width) & (v > -1) & (v < height)
        u, v, mass = u[inside], v[inside], mass[inside]
        left, top = np.floor(u), np.floor(v)
        first = ((top + 1) * stride + left + 1).astype(np.int64)
        right, low = u - left, (v - top) * mass
        high = mass - low
        shares = (high * (1 - right), high * right, low * (1 - right), low * right)
        for step, share in zip((0, 1, stride, stride + 1), shares, strict=True):
            total += np.bincount(first + step, share, len(total))
    return np.ascontiguousarray(total.reshape(height + 2, stride)[1:-1, 1:-1])


def soft_labels(probabilities: Float64Array) -> Float32Array:
    """The soft 65-way label of each cell.

    With S the sum of a cell's 64 values, the probability of each pixel is its value divided by max(S, 1), and that of
    the dustbin is max(1 - S, 0): below 1 the values stand as they are and the dustbin takes the rest, above 1 they are
    scaled to sum to 1 and nothing is left for the dustbin.

    Args:
        probabilities: (H, W) float, not negative; H and W multiples of 8.

    Returns:
        (65, H/8, W/8) float32, in [0, 1], summing to 1 over the first axis. Channel 8 * dy + dx is the pixel (dx, dy)
        of the cell, channel 64 the dustbin.
    """
    height, width = probabilities.shape
    blocks = probabilities.astype(np.float64).reshape(height // CELL, CELL, width // CELL, CELL)
    positions = blocks.transpose(1, 3, 0, 2).reshape(DUSTBIN, height // CELL, width // CELL)
    total = positions.sum(axis=0)
    rest = np.maximum(1 - total, 0)
    return np.concatenate([positions / np.maximum(total, 1), rest[None]]).astype(np.float32)
