"""What is slowest of :mod:`frontend.postprocess`, compiled by numba where that is installed; the same answers.

Importing this module compiles the kernels, or takes them from numba's cache; ImportError without numba. They hold no
lock of the interpreter while they run.
"""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np
from numba import boolean, float32, int64, njit, uint8, uint64, void  # type: ignore[import-untyped, unused-ignore]

from frontend.errors import ConfigError
from frontend.postprocess import BYTE, Gray, Peaks, best_peaks
from frontend.types import Float32Array, IntArray

_local = threading.local()
_ITERATIONS = 2  # rounds of suppression after the first, as in frontend.postprocess


def compiled(signature: Any, **options: Any) -> Any:
    """Compile at once for a signature, or for each of a list; kept on disk where numba finds a folder to write to."""

    def decorate(function: Any) -> Any:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return njit(signature, cache=True, **settings)(function)
        except RuntimeError:  # no such folder
            return njit(signature, **settings)(function)

    return decorate


@compiled(int64(uint64[::1], uint8[::1], int64[::1]))
def _collect(words, marks, found):  # type: ignore[no-untyped-def]
    """Indices of the marks that are set; ``words`` is the same memory, eight at a time."""
    count = 0
    for n in range(len(words)):
        if words[n] != 0:
            for at in range(8 * n, 8 * n + 8):
                # without a branch, which would be guessed wrong too often
                found[count] = at
                count += int64(marks[at] != 0)
    return count


@compiled(void(int64[::1], int64, int64, int64, uint8[:, ::1]))
def _cover(found, count, width, radius, free):  # type: ignore[no-untyped-def]
    """Clear what lies within the radius of each pixel."""
    height = free.shape[0]
    for n in range(count):
        y = found[n] // width
        x = found[n] - y * width
        first, last = max(x - radius, 0), min(x + radius + 1, width)
        for i in range(max(y - radius, 0), min(y + radius + 1, height)):
            line = free[i]
            for j in range(first, last):
                line[j] = 0


@compiled(boolean(float32[:, ::1], uint8[:, ::1], int64, int64, int64))
def _leads(heat, free, y, x, radius):  # type: ignore[no-untyped-def]
    """Whether nothing free within the radius exceeds a pixel."""
    value = heat[y, x]
    right, below = min(x + 1, heat.shape[1] - 1), min(y + 1, heat.shape[0] - 1)
    left, above = max(x - 1, 0), max(y - 1, 0)
    # most fail here; no branches between, which would be guessed wrong too often
    if (
        (heat[y, left] > value) & (free[y, left] != 0)
        | (heat[y, right] > value) & (free[y, right] != 0)
        | (heat[above, x] > value) & (free[above, x] != 0)
        | (heat[below, x] > value) & (free[below, x] != 0)
    ):
        return False
    first, last = max(x - radius, 0), min(x + radius + 1, heat.shape[1])
    for i in range(max(y - radius, 0), min(y + radius + 1, heat.shape[0])):
        beaten = False
        for j in range(first, last):
            beaten |= (heat[i, j] > value) & (free[i, j] != 0)
        if beaten:
            return False
    return True


@compiled(int64(float32[:, ::1], int64[::1], uint64[::1], uint8[:, ::1], int64[::1], float32[::1]))
def _scores_within(heat, box, words, marks, found, scores):  # type: ignore[no-untyped-def]
    """Scores of the marked pixels that lie within the box."""
    width = heat.shape[1]
    inside = 0
    for n in range(_collect(words, marks.ravel(), found)):
        y = found[n] // width
        x = found[n] - y * width
        scores[inside] = heat[y, x]
        inside += int64(box[0] <= x and x < box[2] and box[1] <= y and y < box[3])
    return inside


@compiled(
    int64(
        float32[:, ::1], int64, int64, int64[::1], uint64[::1], uint8[:, ::1], uint64[::1], uint8[:, ::1],
        int64[::1], int64[::1], float32[::1],
    )
)  # fmt: skip
def _survivors(heat, radius, iterations, box, keep_words, keep, free_words, free, found, left, scores):  # type: ignore[no-untyped-def]
    """Indices and scores of what survives suppression within the box, in the order of rows.

    Given ``keep``, local maxima, and ``free``, the pixels above some value, which the others never suppress.
    """
    width = heat.shape[1]
    count = _collect(keep_words, keep.ravel(), found)
    _cover(found, count, width, radius, free)
    waiting = _collect(free_words, free.ravel(), left)
    flat = free.ravel()
    for _ in range(iterations):
        count = still = 0
        for n in range(waiting):
            at = left[n]
            if flat[at] == 0:
                continue
            y = at // width
            if _leads(heat, free, y, at - y * width, radius):
                keep.ravel()[at] = 1
                found[count] = at
                count += 1
            else:
                left[still] = at
                still += 1
        _cover(found, count, width, radius, free)
        waiting = still
    keep[: box[1]] = 0
    keep[box[3] :] = 0
    keep[:, : box[0]] = 0
    keep[:, box[2] :] = 0
    count = _collect(keep_words, keep.ravel(), found)
    for n in range(count):
        scores[n] = heat.ravel()[found[n]]
    return count


def _workspace(shape: tuple[int, int]) -> tuple[Any, ...]:
    """This thread's own arrays for a size; those of its last size are kept."""
    if getattr(_local, "shape", None) != shape:
        size = shape[0] * shape[1]
        keep, free = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        _local.arrays = (
            np.empty(shape, np.float32),
            keep.reshape(-1).view(np.uint64),
            keep,
            free.reshape(-1).view(np.uint64),
            free,
            # one more than there are pixels: what is not counted is written too
            np.empty(size + 1, np.int64),
            np.empty(size + 1, np.int64),
            np.empty(size, np.float32),
        )
        _local.shape = shape
    arrays: tuple[Any, ...] = _local.arrays
    return arrays


def find_peaks(
    heat: Float32Array, *, radius: int, border: int, size: tuple[int, int], threshold: float, count: int
) -> Peaks:
    """As :func:`frontend.postprocess.find_peaks`, for thresholds from 0 on and sides that are multiples of 8."""
    if radius < 0:
        raise ConfigError(f"nms_radius is {radius}; expected 0 or more")
    width, height = size
    box = np.array([border, border, max(width - border, border), max(height - border, border)])
    np.minimum(box, [heat.shape[1], heat.shape[0]] * 2, out=box)
    arrays = _workspace(heat.shape)
    highest, words, keep, _, free, found, _, scores = arrays
    cv2.dilate(heat, np.ones((2 * radius + 1,) * 2, np.uint8), dst=highest, borderType=cv2.BORDER_REPLICATE)
    np.greater(heat, np.float32(threshold), out=free.view(np.bool_))
    cv2.compare(heat, highest, cv2.CMP_EQ, dst=keep)
    cv2.bitwise_and(keep, free, dst=keep)
    first = _scores_within(heat, box, words, keep, found, scores)
    if first >= count > 0:
        # local maxima survive, so that nothing below the last of the best of them can be among the best
        least = np.partition(scores[:first], first - count)[first - count]
        np.greater_equal(heat, least, out=free.view(np.bool_))
        cv2.bitwise_and(keep, free, dst=keep)
    n = _survivors(heat, radius, _ITERATIONS, box, *arrays[1:])
    return best_peaks(found[:n], scores[:n], count, heat.shape[1])


@compiled(
    [
        void(gray[:, ::1], int64[::1], int64[::1], float32, float32[:, :, ::1])  # type: ignore[index, unused-ignore]
        for gray in (float32, uint8)
    ]
)
def _cut(gray, xs, ys, white, out):  # type: ignore[no-untyped-def]
    height, width = gray.shape
    count, side, _ = out.shape
    around = side // 2
    for n in range(count):
        left, top = xs[n] - around, ys[n] - around
        if left >= 0 and top >= 0 and left + side <= width and top + side <= height:
            for i in range(side):
                for j in range(side):
                    out[n, i, j] = np.float32(gray[top + i, left + j]) * white
        else:
            for i in range(side):
                for j in range(side):
                    x, y = min(max(left + j, 0), width - 1), min(max(top + i, 0), height - 1)
                    out[n, i, j] = np.float32(gray[y, x]) * white


def cut_patches(gray: Gray, peaks: Peaks, side: int) -> Float32Array:
    """As :func:`frontend.postprocess.cut_patches`."""
    out = np.empty((len(peaks.x), side, side), np.float32)
    _cut(gray, peaks.x, peaks.y, BYTE if gray.dtype == np.uint8 else np.float32(1), out)
    return out


@compiled(
    void(float32[:, :, ::1], float32[:, ::1], float32, float32, float32[:, ::1], int64[::1], float32[:, ::1]),
    fastmath={"reassoc", "nsz", "contract"},
)
def _describe(cells, points, across, down, local, order, out):  # type: ignore[no-untyped-def]
    height, width, dim = cells.shape
    half, least = np.float32(0.5), np.float32(1e-12)
    for n in range(len(points)):
        x = min(max((points[n, 0] + half) * across - half, np.float32(0)), np.float32(width - 1))
        y = min(max((points[n, 1] + half) * down - half, np.float32(0)), np.float32(height - 1))
        left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
        right, below = min(left + 1, width - 1), min(top + 1, height - 1)
        u, v = x - np.float32(left), y - np.float32(top)
        row = out[n]
        a, b, c, d = cells[top, left], cells[top, right], cells[below, left], cells[below, right]
        wa, wb, wc, wd = (1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v
        total = np.float32(0)
        for k in range(dim):
            value = np.float32(wa * a[k] + wb * b[k] + wc * c[k] + wd * d[k])
            row[k] = value
            total += value * value
        scale = np.float32(1) / max(np.sqrt(total), least)
        if len(order) == 0:
            for k in range(dim):
                row[k] *= scale
            continue
        part = local[order[n]]
        total = np.float32(0)
        for k in range(dim):
            value = row[k] * scale + part[k]
            row[k] = value
            total += value * value
        scale = np.float32(1) / max(np.sqrt(total), least)
        for k in range(dim):
            row[k] *= scale


_NO_LOCAL, _NO_ORDER = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)


def describe(
    cells: Float32Array,
    points: Float32Array,
    size: tuple[int, int],
    local: Float32Array | None = None,
    order: IntArray | None = None,
) -> Float32Array:
    """As :func:`frontend.postprocess.describe`."""
    out = np.empty((len(points), cells.shape[2]), np.float32)
    extent = (np.float32(cells.shape[1] / size[0]), np.float32(cells.shape[0] / size[1]))
    if local is None or order is None:
        local, order = _NO_LOCAL, _NO_ORDER
    _describe(cells, np.ascontiguousarray(points), *extent, local, order, out)
    return out
