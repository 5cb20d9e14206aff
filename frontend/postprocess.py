"""From a heat map to described keypoints in NumPy and OpenCV: the CPU's path.

The same steps as :mod:`frontend.keypoints`, which is the reference, for one image at a time. Only what survives is
touched: after suppression nothing is done for a pixel that is no keypoint.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from frontend.errors import ConfigError
from frontend.extraction import MEETING
from frontend.types import Float32Array, IntArray

Gray = Float32Array | NDArray[np.uint8]

_ON = 255  # of OpenCV's masks
_WINDOW = 2  # radius of the centre of mass, pixels
_MAGNITUDE = np.int32(0x7FFFFFFF)
_PLACE = np.int64(0xFFFFFFFF)
BYTE = np.float32(1 / 255)
"""A grey level of 8 bits in units of the range from black to white."""


class Peaks(NamedTuple):
    """Keypoints of one image, best first; equal scores in the order of rows.

    Attributes:
        x: (N,) int64 pixels.
        y: (N,) int64 pixels.
        scores: (N,) float32.
    """

    x: IntArray
    y: IntArray
    scores: Float32Array


_local = threading.local()


def _workspace(shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Two float32 and three uint8 arrays of a shape, this thread's own; those of its last shape are kept.

    Fresh memory for every image would cost as much as the work that is done in it.
    """
    if getattr(_local, "shape", None) != shape:
        _local.arrays = (
            *(np.empty(shape, np.float32) for _ in range(2)),
            *(np.empty(shape, np.uint8) for _ in range(3)),
        )
        _local.shape = shape
    arrays: tuple[Any, ...] = _local.arrays
    return arrays


def survivors(heat: Float32Array, radius: int, iterations: int = 2) -> NDArray[np.uint8]:
    """Local maxima by :func:`frontend.keypoints.non_maximum_suppression`, with OpenCV's filters.

    Args:
        heat: (H, W) float32, non-negative, contiguous.
        radius: suppression radius, pixels (Chebyshev distance); 0 keeps every pixel.
        iterations: rounds after the first.

    Returns:
        (H, W) uint8, 255 where a pixel survives and 0 elsewhere; this thread's next call overwrites it.

    Raises:
        ConfigError: the radius is negative.
    """
    if radius < 0:
        raise ConfigError(f"nms_radius is {radius}; expected 0 or more")
    if radius == 0:
        return np.full(heat.shape, _ON, np.uint8)
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    highest, rest, keep, free, found = _workspace(heat.shape)
    cv2.dilate(heat, kernel, dst=highest, borderType=cv2.BORDER_REPLICATE)
    cv2.compare(heat, highest, cv2.CMP_EQ, dst=keep)
    for _ in range(iterations):
        cv2.dilate(keep, kernel, dst=free, borderType=cv2.BORDER_REPLICATE)
        cv2.bitwise_not(free, dst=free)
        rest.fill(0)
        cv2.copyTo(heat, free, dst=rest)
        cv2.dilate(rest, kernel, dst=highest, borderType=cv2.BORDER_REPLICATE)
        cv2.compare(rest, highest, cv2.CMP_EQ, dst=found)
        cv2.bitwise_and(found, free, dst=found)
        cv2.bitwise_or(keep, found, dst=keep)
    kept: NDArray[np.uint8] = keep
    return kept


def find_peaks(
    heat: Float32Array, *, radius: int, border: int, size: tuple[int, int], threshold: float, count: int
) -> Peaks:
    """The best keypoints of a heat map.

    Args:
        heat: (H, W) float32 in [0, 1], contiguous.
        radius: of suppression, pixels.
        border: pixels along the image's edge without keypoints.
        size: (width, height) of the image without padding.
        threshold: the score that a keypoint exceeds.
        count: keypoints at most.
    """
    keep = survivors(heat, radius)
    width, height = size
    # all else becomes border, which leaves one search in contiguous memory
    right, bottom = max(width - border, border), max(height - border, border)
    keep[:border] = 0
    keep[bottom:] = 0
    keep[border:bottom, :border] = 0
    keep[border:bottom, right:] = 0
    np.bitwise_and(keep, 1, out=keep)  # 0 and 1 are bool's own values
    flat = np.flatnonzero(keep.view(np.bool_))
    scores = heat.ravel()[flat]
    above = scores > threshold
    return best_peaks(flat[above], scores[above], count, heat.shape[1])


def best_peaks(flat: IntArray, scores: Float32Array, count: int, width: int) -> Peaks:
    """The best of candidates.

    Args:
        flat: (N,) int64 indices into a map, rising.
        scores: (N,) float32; no NaN, and 0 for -0.
        count: keypoints at most.
        width: of the map, pixels.
    """
    return decode_peaks(_keys(scores, flat), count, width)


def _keys(scores: Float32Array, places: IntArray) -> IntArray:
    """Numbers of 64 bits that fall with the score and, below it, rise with the place: one sort orders by both.

    Args:
        scores: (N,) float32; no NaN, and 0 for -0.
        places: (N,) int64, below 2^32.
    """
    # the bits of a float32, those below the sign turned over where it is set, rise with its value
    bits = scores.view(np.int32)
    keys: IntArray = np.invert(bits ^ ((bits >> 31) & _MAGNITUDE)).astype(np.int64)
    keys <<= 32
    keys |= places
    return keys


def best_first(scores: Float32Array) -> IntArray:
    """Order of scores, the highest first, equal ones as they come: (N,) int64; scores as in :func:`best_peaks`."""
    keys = _keys(np.ascontiguousarray(scores), np.arange(len(scores)))
    keys.sort()
    keys &= _PLACE
    return keys


def points_of(peaks: Peaks) -> Float32Array:
    """Peaks as (N, 2) float32, (x, y) pixels."""
    points: Float32Array = np.stack([peaks.x, peaks.y], axis=1).astype(np.float32)
    return points


def arrange(
    peaks: Peaks,
    position: Float32Array,
    points: Float32Array,
    scores: Float32Array,
    sigmas: Float32Array,
    *,
    subpixel: bool,
) -> IntArray:
    """Keypoints as a refiner leaves them, those that are likeliest to be seen again first.

    Args:
        peaks: N keypoints.
        position: (N, 4) float32, see :class:`frontend.runtime.base.Refined`; no NaN.
        points: (N, 2) float32, where their places in pixels are written.
        scores: (N,) float32, where their probabilities are.
        sigmas: (N,) float32, where their standard deviations in pixels are.
        subpixel: whether they are moved off their pixels.

    Returns:
        (N,) int64, which of the peaks each of them is.
    """
    order = best_first(position[:, 3])
    found = position[order]
    points[:] = points_of(peaks)[order]
    if subpixel:
        points += found[:, :2]
    sigmas[:], scores[:] = found[:, 2], found[:, 3]
    return order


def decode_peaks(keys: IntArray, count: int, width: int) -> Peaks:
    """The best of candidates, from their keys, as in :func:`best_peaks`: (N,) int64 in any order; sorted in place."""
    keys.sort()
    keys = keys[:count]
    rising = np.invert(keys >> 32).astype(np.int32)
    y, x = np.divmod(keys & _PLACE, width)
    return Peaks(x, y, (rising ^ ((rising >> 31) & _MAGNITUDE)).view(np.float32))


def centre_of_mass(heat: Float32Array, peaks: Peaks) -> Float32Array:
    """Peaks moved to the centre of mass of the heat about them, (N, 2) float32 pixels; none moves by more than 2."""
    padded = cv2.copyMakeBorder(heat, _WINDOW, _WINDOW, _WINDOW, _WINDOW, cv2.BORDER_CONSTANT, value=0)
    side = 2 * _WINDOW + 1
    windows = sliding_window_view(np.asarray(padded, np.float32), (side, side))[peaks.y, peaks.x]
    steps = np.arange(-_WINDOW, _WINDOW + 1, dtype=np.float32)
    total = np.maximum(windows.sum(axis=(1, 2)), np.float32(1e-12))
    # no matrix product: BLAS may raise the floating-point flags of lanes that it does not use, and NumPy warns then
    moments = [(windows.sum(axis=axis) * steps).sum(axis=1) for axis in (1, 2)]
    shift = np.stack(moments, axis=1) / total[:, None]
    points: Float32Array = np.stack([peaks.x, peaks.y], axis=1).astype(np.float32) + shift
    return points


class Settled(NamedTuple):
    """Keypoints at the pixels that a refiner moved them to, see :func:`settle`.

    Attributes:
        peaks: the keypoints, with the detector's scores.
        rows: (N,) int64, which of the keypoints before they are.
        moved: (N,) bool, whether a keypoint is on another pixel than before.
    """

    peaks: Peaks
    rows: IntArray
    moved: NDArray[np.bool_]


def settle(peaks: Peaks, position: Float32Array, size: tuple[int, int], count: int) -> Settled:
    """Keypoints at the pixels that a refiner moves them to, without those that a better one is within ``MEETING`` of.

    Args:
        peaks: N keypoints.
        position: (N, 4) float32, see :class:`frontend.runtime.base.Refined`.
        size: (width, height) of the image without padding, which none leaves.
        count: keypoints at most.

    Returns:
        The keypoints, best first.
    """
    x, y = (
        np.clip(np.rint(at.astype(np.float32) + position[:, axis]).astype(np.int64), 0, size[axis] - 1)
        for axis, at in enumerate((peaks.x, peaks.y))
    )
    order = best_first(position[:, 3])
    width = size[0] + 2 * MEETING
    highest = np.full((size[1] + 2 * MEETING) * width, -1, np.float32)
    place, scores = (y + MEETING) * width + x + MEETING, position[:, 3]
    # of several values for one pixel the last is stored
    highest[place[order[::-1]]] = scores[order[::-1]]
    steps = range(-MEETING, MEETING + 1)
    stays = np.all([highest[place + down * width + across] <= scores for down in steps for across in steps], axis=0)
    rows = order[stays[order]][:count]
    moved = (x != peaks.x) | (y != peaks.y)
    return Settled(Peaks(x[rows], y[rows], peaks.scores[rows]), rows, moved[rows])


def cut_patches(gray: Gray, peaks: Peaks, side: int) -> Float32Array:
    """Squares of an image about each peak; beyond the edge the last pixel is repeated.

    Args:
        gray: (H, W) float32 in [0, 1], or uint8.
        peaks: inside the image.
        side: of a square, odd.

    Returns:
        (N, side, side) float32 in [0, 1], contiguous.
    """
    around = side // 2
    padded = cv2.copyMakeBorder(gray, around, around, around, around, cv2.BORDER_REPLICATE)
    windows = sliding_window_view(np.asarray(padded), (side, side))
    patches = windows[peaks.y, peaks.x]
    if patches.dtype == np.uint8:
        return np.multiply(patches, BYTE, dtype=np.float32)
    return np.ascontiguousarray(patches, np.float32)


def unit_rows(rows: Float32Array) -> Float32Array:
    """Divide each row, in place, by its Euclidean length (at least 1e-12), (N, D) float32."""
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    rows /= np.maximum(length, np.float32(1e-12))[:, None]
    return rows


def sample_rows(cells: Float32Array, points: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Sample a semi-dense descriptor map at points, bilinearly: :func:`frontend.keypoints.sample_descriptors`.

    Args:
        cells: (h, w, D) float32, contiguous.
        points: (N, 2) float32 pixels of the network's input.
        size: (width, height) of the network's input, pixels.

    Returns:
        (N, D) float32 of unit norm.
    """
    height, width, dim = cells.shape
    extent = np.array([width / size[0], height / size[1]], np.float32)
    # cell n has its centre at pixel 8 n + 3.5; beyond the outermost centres the outermost cell holds
    at = np.clip(
        (points + np.float32(0.5)) * extent - np.float32(0.5), 0, np.array([width - 1, height - 1], np.float32)
    )
    with np.errstate(invalid="ignore"):  # NaN, which broken weights give, becomes the least integer
        low = np.clip(at.astype(np.int64), 0, np.array([max(width - 2, 0), max(height - 2, 0)]))
    right, below = (at - low).astype(np.float32).T
    index = low[:, 1] * width + low[:, 0]
    across, down = (1 if width > 1 else 0), (width if height > 1 else 0)
    rows = cells.reshape(-1, dim)
    out = rows.take(index, axis=0)
    out *= ((1 - right) * (1 - below))[:, None]
    corner = np.empty_like(out)
    for step, weight in (
        (across, right * (1 - below)),
        (down, (1 - right) * below),
        (across + down, right * below),
    ):
        # the index is inside: "clip" only spares a copy
        rows.take(index + step, axis=0, out=corner, mode="clip")
        corner *= weight[:, None]
        out += corner
    return unit_rows(out)


def describe(
    cells: Float32Array,
    points: Float32Array,
    size: tuple[int, int],
    local: Float32Array | None = None,
    order: IntArray | None = None,
) -> Float32Array:
    """Descriptors of keypoints: the map's, with the refiner's local part added where there is one.

    Args:
        cells: (h, w, D) float32, contiguous.
        points: (N, 2) float32 pixels of the network's input.
        size: (width, height) of the network's input, pixels.
        local: (M, D) float32, contiguous.
        order: (N,) int64, the row of ``local`` of each point; given with it.

    Returns:
        (N, D) float32 of unit norm.
    """
    rows = sample_rows(cells, points, size)
    if local is None or order is None:
        return rows
    rows += local[order]
    return unit_rows(rows)
