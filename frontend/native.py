"""What is slowest of :mod:`frontend.postprocess`, compiled by numba where that is installed; the same answers.

Importing this module compiles the kernels, or takes them from numba's cache; ImportError without numba. They hold no
lock of the interpreter while they run.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import boolean, float32, int32, int64, njit, uint8, uint64, void  # type: ignore[import-untyped, unused-ignore]

from frontend.errors import ConfigError
from frontend.postprocess import BYTE, Gray, Peaks, best_first, decode_peaks
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


@compiled(void(float32[::1], float32[::1], float32[::1]))
def _larger(a, b, out):  # type: ignore[no-untyped-def]
    """The larger of each two, by instructions for vectors; not so within a function where ``out`` may be ``a``."""
    for x in range(len(out)):
        out[x] = a[x] if a[x] > b[x] else b[x]


@compiled(
    void(
        float32[:, ::1], int64, float32, int64[::1], float32[:, ::1], uint64[::1], uint8[::1], int64[::1], float32[::1],
        int64[::1],
    )
)  # fmt: skip
def _maxima(heat, radius, threshold, box, lines, words, marks, found, scores, counts):  # type: ignore[no-untyped-def]
    """Indices of the local maxima above a threshold, and the scores of those of them within the box.

    Row by row, while a row and those about it are in the nearest cache. In ``lines``, ``radius`` pixels longer at both
    ends, are the largest values of the columns, and then the largest of 2, 4, ... of those. ``words`` is the memory of
    ``marks``. How many there are is in ``counts``.
    """
    height, width = heat.shape
    side, length = 2 * radius + 1, 2 * radius + width
    count = inside = 0
    for y in range(height):
        own = heat[y]
        a, b = lines[0], lines[1]
        columns = a[radius : radius + width]
        for n in range(radius):
            a[n] = a[radius + width + n] = np.float32(-1)  # lower than all
        for x in range(width):  # as a slice it took half as long again, all in all
            columns[x] = own[x]
        for k in range(1, radius + 1):
            # beyond the edge the last row is taken again, which is among them
            above, below = heat[max(y - k, 0)], heat[min(y + k, height - 1)]
            for x in range(width):
                higher = above[x] if above[x] > below[x] else below[x]
                columns[x] = columns[x] if columns[x] > higher else higher
        reach = 1
        while 2 * reach <= side:
            _larger(a[: length - reach], a[reach:length], b[: length - reach])
            a, b = b, a
            reach *= 2
        rest = a[side - reach : length]
        for x in range(width):
            highest = a[x] if a[x] > rest[x] else rest[x]
            marks[x] = (own[x] > threshold) & (own[x] >= highest)
        first = count
        count += _collect(words, marks, found[first:])
        for n in range(first, count):
            x = found[n]
            found[n] = y * width + x
            scores[inside] = own[x]
            inside += int64(box[0] <= x and x < box[2] and box[1] <= y and y < box[3])
    counts[0], counts[1] = count, inside


@compiled(int64(int32[::1], int64[::1], int64, int64, int64[::1], int64[::1], int64))
def _append(bits, found, count, width, box, keys, total):  # type: ignore[no-untyped-def]
    """Add the sort keys of those within the box; how many there are then."""
    for n in range(count):
        at = found[n]
        y = at // width
        x = at - y * width
        # as in frontend.postprocess.best_peaks; no score is negative
        keys[total] = (~int64(bits[at]) << 32) | at
        total += int64(box[0] <= x and x < box[2] and box[1] <= y and y < box[3])
    return total


@compiled(
    int64(
        float32[:, ::1], int32[::1], int64, int64, float32, boolean, int64[::1], uint64[::1], uint8[:, ::1],
        int64[::1], int64, int64[::1], int64[::1],
    )
)  # fmt: skip
def _survivors(heat, bits, radius, iterations, least, without, box, free_words, free, found, count, left, keys):  # type: ignore[no-untyped-def]
    """Sort keys of what survives suppression within the box; how many there are.

    Args:
        heat: (H, W), and its memory as ``bits``.
        radius, iterations: of suppression.
        least: pixels below it neither survive nor suppress, nor those at it ``without`` it.
        box: first and last column and row.
        free_words, free, left, keys: workspace, and what is returned.
        found: indices of local maxima, the first ``count``; overwritten.
    """
    height, width = heat.shape
    for y in range(height):
        line, own = free[y], heat[y]
        if without:
            for x in range(width):
                line[x] = own[x] > least
        else:
            for x in range(width):
                line[x] = own[x] >= least
    flat = free.ravel()
    kept = 0
    for n in range(count):
        at = found[n]
        found[kept] = at
        kept += int64(flat[at] != 0)
    total = _append(bits, found, kept, width, box, keys, 0)
    _cover(found, kept, width, radius, free)
    waiting = _collect(free_words, flat, left)
    for _ in range(iterations):
        count = still = 0
        for n in range(waiting):
            at = left[n]
            if flat[at] == 0:
                continue
            y = at // width
            if _leads(heat, free, y, at - y * width, radius):
                found[count] = at
                count += 1
            else:
                left[still] = at
                still += 1
        total = _append(bits, found, count, width, box, keys, total)
        _cover(found, count, width, radius, free)
        waiting = still
    return total


class _Workspace:
    """This thread's own arrays for maps of a shape."""

    def __init__(self, shape: tuple[int, int], radius: int) -> None:
        size = shape[0] * shape[1]
        self.shape, self.radius = shape, radius
        self.lines = np.empty((2, shape[1] + 2 * radius), np.float32)
        self.marks = np.empty(shape[1], np.uint8)
        self.mark_words = self.marks.view(np.uint64)
        self.free = np.empty(shape, np.uint8)
        self.free_words = self.free.reshape(-1).view(np.uint64)
        # one more than there are pixels: what is not counted is written too
        self.found, self.left, self.keys = (np.empty(size + 1, np.int64) for _ in range(3))
        self.scores = np.empty(size + 1, np.float32)
        self.counts = np.empty(2, np.int64)


def _workspace(shape: tuple[int, int], radius: int) -> _Workspace:
    """That of the last shape is kept."""
    kept: _Workspace | None = getattr(_local, "workspace", None)
    if kept is None or kept.shape != shape or kept.radius != radius:
        kept = _local.workspace = _Workspace(shape, radius)
    return kept


def find_peaks(
    heat: Float32Array, *, radius: int, border: int, size: tuple[int, int], threshold: float, count: int
) -> Peaks:
    """As :func:`frontend.postprocess.find_peaks`, for thresholds from 0 on and sides that are multiples of 8."""
    if radius < 0:
        raise ConfigError(f"nms_radius is {radius}; expected 0 or more")
    width, height = size
    box = np.array(
        [
            min(border, heat.shape[1]),
            min(border, heat.shape[0]),
            min(max(width - border, border), heat.shape[1]),
            min(max(height - border, border), heat.shape[0]),
        ]
    )
    w = _workspace(heat.shape, radius)
    least, without = np.float32(threshold), True
    _maxima(heat, radius, least, box, w.lines, w.mark_words, w.marks, w.found, w.scores, w.counts)
    maxima, inside = w.counts.tolist()
    if inside >= count > 0:
        # local maxima survive, so that nothing below the last of the best of them can be among the best
        least, without = np.partition(w.scores[:inside], inside - count)[inside - count], False
    n = _survivors(
        heat, heat.reshape(-1).view(np.int32), radius, _ITERATIONS, least, without, box, w.free_words, w.free,
        w.found, maxima, w.left, w.keys,
    )  # fmt: skip
    return decode_peaks(w.keys[:n], count, heat.shape[1])


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
    void(
        int64[::1], int64[::1], float32[:, ::1], int64[::1], boolean, float32[:, ::1], float32[::1], float32[::1]
    )
)  # fmt: skip
def _arrange(xs, ys, position, order, subpixel, points, scores, sigmas):  # type: ignore[no-untyped-def]
    for n in range(len(order)):
        at = order[n]
        x, y = np.float32(xs[at]), np.float32(ys[at])
        if subpixel:
            x, y = x + position[at, 0], y + position[at, 1]
        points[n, 0], points[n, 1] = x, y
        sigmas[n], scores[n] = position[at, 2], position[at, 3]


def arrange(
    peaks: Peaks,
    position: Float32Array,
    points: Float32Array,
    scores: Float32Array,
    sigmas: Float32Array,
    *,
    subpixel: bool,
) -> IntArray:
    """As :func:`frontend.postprocess.arrange`."""
    order = best_first(position[:, 3])
    _arrange(peaks.x, peaks.y, np.ascontiguousarray(position), order, subpixel, points, scores, sigmas)
    return order


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
        # from 0 on, since NaN is the least of all integers, and nothing checks indices here
        left, top = max(min(int(x), width - 2), 0), max(min(int(y), height - 2), 0)
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
