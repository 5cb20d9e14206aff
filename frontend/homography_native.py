"""What is slowest of :mod:`frontend.homography_cpu`, compiled by numba where that is installed; the same answers.

Importing this module compiles the kernels, or takes them from numba's cache; ImportError without numba. Sums are taken
in another order than NumPy's, so that the last digits differ.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, float64, int64, njit, types, void  # type: ignore[import-untyped, unused-ignore]

from frontend import homography_cpu
from frontend.homography_cpu import FAR, MIN_DEPTH, RIDGE, Linearised, Projection, Sampson
from frontend.native import compiled
from frontend.types import Float32Array, Float64Array

# constants of other modules are arguments: numba's cache would not see that they change
# sums may be taken in any order, which lets them be taken eight at a time; NaN and infinity stay what they are
_SUMS = {"fastmath": {"reassoc", "nsz", "contract"}}
_PROJECTION = types.UniTuple(float64[:, ::1], 5)  # type: ignore[no-untyped-call, unused-ignore]


@njit(inline="always")
def _nine(h):  # type: ignore[no-untyped-def]
    return h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]


@njit(inline="always")
def _invert(h, inverse):  # type: ignore[no-untyped-def]
    """The adjugate of a matrix, of unit norm; both (9)."""
    a, b, c, d, e, f, g, h_, i = _nine(h)
    inverse[0], inverse[1], inverse[2] = e * i - f * h_, c * h_ - b * i, b * f - c * e
    inverse[3], inverse[4], inverse[5] = f * g - d * i, a * i - c * g, c * d - a * f
    inverse[6], inverse[7], inverse[8] = d * h_ - e * g, b * g - a * h_, a * e - b * d
    norm = inverse[0] * inverse[0]
    for n in range(1, 9):
        norm += inverse[n] * inverse[n]
    if norm > 0:
        norm = 1 / math.sqrt(norm)
        for n in range(9):
            inverse[n] *= norm


@compiled(void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32, float32, float32, float32[::1]), **_SUMS)
def _score(h, points0, points1, per_limit0, per_limit1, least, costs):  # type: ignore[no-untyped-def]
    x0, y0, x1, y1 = points0[0], points0[1], points1[0], points1[1]
    inverse = np.empty(9, np.float32)
    one = np.float32(1)
    for n in range(len(h)):
        f0, f1, f2, f3, f4, f5, f6, f7, f8 = _nine(h[n])
        _invert(h[n], inverse)
        b0, b1, b2, b3, b4, b5, b6, b7, b8 = _nine(inverse)
        total = np.float32(0)
        for k in range(len(x0)):
            depth = one / max(f6 * x0[k] + f7 * y0[k] + f8, least)
            u = ((f0 * x0[k] + f1 * y0[k] + f2) * depth - x1[k]) * per_limit1
            v = ((f3 * x0[k] + f4 * y0[k] + f5) * depth - y1[k]) * per_limit1
            back = one / max(b6 * x1[k] + b7 * y1[k] + b8, least)
            p = ((b0 * x1[k] + b1 * y1[k] + b2) * back - x0[k]) * per_limit0
            q = ((b3 * x1[k] + b4 * y1[k] + b5) * back - y0[k]) * per_limit0
            total += min(u * u + v * v + (p * p + q * q), one)
        costs[n] = total


def _flat(h: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(h).reshape(-1, 9)


def score(h: Float32Array, points0: Float32Array, points1: Float32Array, limits: tuple[float, float]) -> Float32Array:
    """As :func:`frontend.homography_cpu.score`."""
    costs = np.empty(len(h), np.float32)
    _score(_flat(h), points0, points1, 1 / limits[0], 1 / limits[1], MIN_DEPTH, costs)
    return costs


@compiled(
    void(
        float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64, float64,
        float64, float64[:, :, :, ::1], float64[:, ::1],
    ),
    **_SUMS,
)  # fmt: skip
def _linearise(h, inverse, points0, points1, pixels0, pixels1, least, at, error):  # type: ignore[no-untyped-def]
    """Fill inverses, and inverse depths, u, v and residuals (2, 5, T, K) of both directions; add to errors of zero."""
    for t in range(len(h)):
        _invert(h[t], inverse[t])
        for way in range(2):
            x, y = (points0[0], points0[1]) if way == 0 else (points1[0], points1[1])
            goal_u, goal_v = (points1[0], points1[1]) if way == 0 else (points0[0], points0[1])
            pixels = pixels1 if way == 0 else pixels0
            h0, h1, h2, h3, h4, h5, h6, h7, h8 = _nine(h[t] if way == 0 else inverse[t])
            depths, us, vs, first, second = at[way, 0, t], at[way, 1, t], at[way, 2, t], at[way, 3, t], at[way, 4, t]
            total = error[t]
            for k in range(len(x)):
                depth = 1 / max(h6 * x[k] + h7 * y[k] + h8, least)
                u = (h0 * x[k] + h1 * y[k] + h2) * depth
                v = (h3 * x[k] + h4 * y[k] + h5) * depth
                p, q = (u - goal_u[k]) * pixels, (v - goal_v[k]) * pixels
                depths[k], us[k], vs[k], first[k], second[k] = depth, u, v, p, q
                total[k] += p * p + q * q


@compiled(
    void(
        float64[:, ::1], float64[:, ::1], float64[:, ::1], float64, float64,
        float64, float64, float64[:, :, ::1], float64[:, :, ::1], float64[:, ::1],
    ),
    **_SUMS,
)  # fmt: skip
def _sampson(h, points0, points1, pixels0, pixels1, least, far, at, whitening, error):  # type: ignore[no-untyped-def]
    """Fill inverse depths, u, v and residuals (5, T, K), whitening (3, T, K) and errors (T, K)."""
    x, y, goal_u, goal_v, scale = points0[0], points0[1], points1[0], points1[1], pixels1 / pixels0
    for t in range(len(h)):
        h0, h1, h2, h3, h4, h5, h6, h7, h8 = _nine(h[t])
        depths, us, vs, first, second = at[0, t], at[1, t], at[2, t], at[3, t], at[4, t]
        white0, white1, white2, squares = whitening[0, t], whitening[1, t], whitening[2, t], error[t]
        for k in range(len(x)):
            ahead = h6 * x[k] + h7 * y[k] + h8
            depth = 1 / max(ahead, least)
            u = (h0 * x[k] + h1 * y[k] + h2) * depth
            v = (h3 * x[k] + h4 * y[k] + h5) * depth
            p, q = (u - goal_u[k]) * pixels1, (v - goal_v[k]) * pixels1
            gain = depth * scale
            a00, a01 = (h0 - u * h6) * gain, (h1 - u * h7) * gain
            a10, a11 = (h3 - v * h6) * gain, (h4 - v * h7) * gain
            c00, c11, c01 = 1 + a00 * a00 + a01 * a01, 1 + a10 * a10 + a11 * a11, a00 * a10 + a01 * a11
            over = 1 / max(c00 * c11 - c01 * c01, 1.0)
            w0, w1, w2 = c11 * over, -c01 * over, c00 * over
            depths[k], us[k], vs[k], first[k], second[k] = depth, u, v, p, q
            white0[k], white1[k], white2[k] = w0, w1, w2
            squares[k] = w0 * p * p + 2 * w1 * p * q + w2 * q * q if ahead > least else far


@njit(inline="always")
def _moments(x, y, weights):  # type: ignore[no-untyped-def]
    """Weighted sums of xx, xy, x, yy, y and 1."""
    xx = xy = x1 = yy = y1 = one = 0.0
    for k in range(len(x)):
        wx, wy = weights[k] * x[k], weights[k] * y[k]
        xx += wx * x[k]
        xy += wx * y[k]
        x1 += wx
        yy += wy * y[k]
        y1 += wy
        one += weights[k]
    return xx, xy, x1, yy, y1, one


@njit(inline="always")
def _place(normal, row, column, moments):  # type: ignore[no-untyped-def]
    """A symmetric block of 3 x 3 of a matrix, from the moments of its points."""
    xx, xy, x1, yy, y1, one = moments
    normal[row, column], normal[row + 1, column + 1], normal[row + 2, column + 2] = xx, yy, one
    normal[row, column + 1] = normal[row + 1, column] = xy
    normal[row, column + 2] = normal[row + 2, column] = x1
    normal[row + 1, column + 2] = normal[row + 2, column + 1] = y1


@compiled(void(float64[:, ::1], float64, _PROJECTION, int64, float64[::1], float64[:, ::1], float64[::1]), **_SUMS)
def _normal(source, pixels, at, t, weights, normal, gradient):  # type: ignore[no-untyped-def]
    """Normal matrix (9, 9) and gradient (9) of one direction in the entries of its matrix, for model t."""
    x, y = source[0], source[1]
    inverse, us, vs, first, second = at[0][t], at[1][t], at[2][t], at[3][t], at[4][t]
    normal[:] = 0.0
    factors = np.empty((4, len(x)))
    for k in range(len(x)):
        slope = inverse[k] * pixels
        a = weights[k] * slope * slope
        factors[0, k], factors[1, k], factors[2, k] = a, -a * us[k], -a * vs[k]
        factors[3, k] = a * (us[k] * us[k] + vs[k] * vs[k])
    same, across, down = _moments(x, y, factors[0]), _moments(x, y, factors[1]), _moments(x, y, factors[2])
    both = _moments(x, y, factors[3])
    g0 = g1 = g2 = g3 = g4 = g5 = g6 = g7 = g8 = 0.0
    for k in range(len(x)):
        b = weights[k] * inverse[k] * pixels
        p, q = b * first[k], b * second[k]
        r = -(p * us[k] + q * vs[k])
        g0 += p * x[k]
        g1 += p * y[k]
        g2 += p
        g3 += q * x[k]
        g4 += q * y[k]
        g5 += q
        g6 += r * x[k]
        g7 += r * y[k]
        g8 += r
    gradient[0], gradient[1], gradient[2], gradient[3], gradient[4] = g0, g1, g2, g3, g4
    gradient[5], gradient[6], gradient[7], gradient[8] = g5, g6, g7, g8
    _place(normal, 0, 0, same)
    _place(normal, 3, 3, same)
    _place(normal, 0, 6, across)
    _place(normal, 3, 6, down)
    _place(normal, 6, 0, across)
    _place(normal, 6, 3, down)
    _place(normal, 6, 6, both)


@compiled(
    void(
        float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64, float64,
        _PROJECTION, _PROJECTION, float64[:, ::1], float64[:, :, ::1], float64[:, ::1],
    )
)  # fmt: skip
def _equations(h, inverse, points0, points1, pixels0, pixels1, forward, backward, weights, normals, gradients):  # type: ignore[no-untyped-def]
    back, slopes, chain, half = np.empty((9, 9)), np.empty(9), np.empty((9, 9)), np.empty((9, 9))
    for t in range(len(h)):
        g = inverse[t]
        _normal(points0, pixels1, forward, t, weights[t], normals[t], gradients[t])
        _normal(points1, pixels0, backward, t, weights[t], back, slopes)
        # the inverse is used scaled to unit norm, H G = c I: vec(dG) = -(G kron G^T) vec(dH) / c
        c = 0.0
        for i in range(3):
            for j in range(3):
                c += h[t, 3 * i + j] * g[3 * j + i]
        c /= 3
        by = -1 / c if abs(c) > 1e-30 else 1.0
        for i in range(9):
            for j in range(9):
                chain[i, j] = g[i // 3 * 3 + j // 3] * g[j % 3 * 3 + i % 3] * by
        for i in range(9):
            for j in range(9):
                total = 0.0
                for k in range(9):
                    total += back[i, k] * chain[k, j]
                half[i, j] = total
        for i in range(9):
            for j in range(9):
                total = 0.0
                for k in range(9):
                    total += chain[k, i] * half[k, j]
                normals[t, i, j] += total
            for k in range(9):
                gradients[t, i] += chain[k, i] * slopes[k]


@compiled(
    void(
        float64[:, ::1], float64, _PROJECTION, float64[:, :, ::1],
        float64[:, ::1], float64[:, :, ::1], float64[:, ::1],
    ),
    **_SUMS,
)  # fmt: skip
def _sampson_equations(points0, pixels1, at, whitening, weights, normals, gradients):  # type: ignore[no-untyped-def]
    x, y = points0[0], points0[1]
    factors, pulls = np.empty((6, len(x))), np.empty((3, len(x)))
    for t in range(len(weights)):
        depths, us, vs, first, second = at[0][t], at[1][t], at[2][t], at[3][t], at[4][t]
        white0, white1, white2 = whitening[0, t], whitening[1, t], whitening[2, t]
        for k in range(len(x)):
            slope = depths[k] * pixels1
            by = weights[t, k] * slope
            pull_u = by * (white0[k] * first[k] + white1[k] * second[k])
            pull_v = by * (white1[k] * first[k] + white2[k] * second[k])
            pulls[0, k], pulls[1, k], pulls[2, k] = pull_u, pull_v, -(pull_u * us[k] + pull_v * vs[k])
            by *= slope
            a, b, c = by * white0[k], by * white1[k], by * white2[k]
            across, down = a * us[k] + b * vs[k], b * us[k] + c * vs[k]
            factors[0, k], factors[1, k], factors[2, k] = a, b, c
            factors[3, k], factors[4, k], factors[5, k] = -across, -down, across * us[k] + down * vs[k]
        normal, gradient = normals[t], gradients[t]
        _place(normal, 0, 0, _moments(x, y, factors[0]))
        mixed = _moments(x, y, factors[1])
        _place(normal, 0, 3, mixed)
        _place(normal, 3, 0, mixed)
        _place(normal, 3, 3, _moments(x, y, factors[2]))
        by_u, by_v = _moments(x, y, factors[3]), _moments(x, y, factors[4])
        _place(normal, 0, 6, by_u)
        _place(normal, 6, 0, by_u)
        _place(normal, 3, 6, by_v)
        _place(normal, 6, 3, by_v)
        _place(normal, 6, 6, _moments(x, y, factors[5]))
        for n in range(3):
            pull, by_x, by_y, alone = pulls[n], 0.0, 0.0, 0.0
            for k in range(len(x)):
                by_x += pull[k] * x[k]
                by_y += pull[k] * y[k]
                alone += pull[k]
            gradient[3 * n], gradient[3 * n + 1], gradient[3 * n + 2] = by_x, by_y, alone


@compiled(void(float64[:, ::1], float64[:, :, ::1], float64[:, ::1], float64, float64[:, ::1]))
def _step(h, normals, gradients, ridge, updated):  # type: ignore[no-untyped-def]
    """One Gauss-Newton step (T, 9) by Cholesky's factors, in place of the normal equations; see gauge_fixed."""
    for t in range(len(h)):
        a, b = normals[t], gradients[t]
        scale = 0.0
        for i in range(9):
            scale += a[i, i]
        scale = max(scale, 1e-200)
        usable = True
        for i in range(9):
            b[i] /= scale
            for j in range(i + 1):
                value = a[i, j] / scale + h[t, i] * h[t, j]
                if i == j:
                    value += ridge
                for k in range(j):
                    value -= a[i, k] * a[j, k]
                if i == j:
                    usable &= value > 0
                    a[i, i] = math.sqrt(value) if value > 0 else 1.0
                else:
                    a[i, j] = value / a[j, j]
            for k in range(i):
                b[i] -= a[i, k] * b[k]
            b[i] /= a[i, i]
        norm = 0.0
        for m in range(9):
            i = 8 - m
            for k in range(i + 1, 9):
                b[i] -= a[k, i] * b[k]
            b[i] /= a[i, i]
            updated[t, i] = h[t, i] - b[i]
            norm += updated[t, i] * updated[t, i]
        norm = math.sqrt(norm)
        usable &= 0 < norm < math.inf
        for i in range(9):
            updated[t, i] = updated[t, i] / norm if usable else h[t, i]


class GaussNewton(homography_cpu.GaussNewton):
    """As :class:`frontend.homography_cpu.GaussNewton`."""

    def __init__(self, points0: Float64Array, points1: Float64Array, unit0: float, unit1: float) -> None:
        self._points = np.ascontiguousarray(points0.T), np.ascontiguousarray(points1.T)
        self._pixels = 1 / unit0, 1 / unit1

    def subset(self, keep: np.ndarray) -> GaussNewton:
        part = object.__new__(GaussNewton)
        index = np.flatnonzero(keep)
        part._points = self._points[0].take(index, axis=1), self._points[1].take(index, axis=1)
        part._pixels = self._pixels
        return part

    def linearise(self, h: Float64Array) -> Linearised:
        at, error = np.empty((2, 5, len(h), self._points[0].shape[1])), np.zeros((len(h), self._points[0].shape[1]))
        flat, inverse = _flat(h), np.empty((len(h), 9))
        _linearise(flat, inverse, *self._points, *self._pixels, MIN_DEPTH, at, error)
        shape = (-1, 3, 3)
        return Linearised(flat.reshape(shape), inverse.reshape(shape), Projection(*at[0]), Projection(*at[1]), error)

    def normal_equations(self, at: Linearised, weights: Float64Array) -> tuple[Float64Array, Float64Array]:
        normals, gradients = np.empty((len(at.h), 9, 9)), np.empty((len(at.h), 9))
        _equations(
            at.h.reshape(-1, 9),
            at.inverse.reshape(-1, 9),
            *self._points,
            *self._pixels,
            tuple(at.forward),
            tuple(at.backward),
            np.ascontiguousarray(weights),
            normals,
            gradients,
        )
        return normals, gradients

    def step(self, at: Linearised, weights: Float64Array) -> Float64Array:
        return _stepped(at.h, *self.normal_equations(at, weights))

    def sampson(self, h: Float64Array) -> Sampson:
        shape = (len(h), self._points[0].shape[1])
        at, whitening, error, flat = np.empty((5, *shape)), np.empty((3, *shape)), np.empty(shape), _flat(h)
        _sampson(flat, *self._points, *self._pixels, MIN_DEPTH, FAR, at, whitening, error)
        return Sampson(flat.reshape(-1, 3, 3), Projection(*at), whitening, error)

    def sampson_equations(self, at: Sampson, weights: Float64Array) -> tuple[Float64Array, Float64Array]:
        normals, gradients = np.empty((len(at.h), 9, 9)), np.empty((len(at.h), 9))
        _sampson_equations(
            self._points[0],
            self._pixels[1],
            tuple(at.forward),
            at.whitening,
            np.ascontiguousarray(weights),
            normals,
            gradients,
        )
        return normals, gradients

    def sampson_step(self, at: Sampson, weights: Float64Array) -> Float64Array:
        return _stepped(at.h, *self.sampson_equations(at, weights))


def _stepped(h: Float64Array, normals: Float64Array, gradients: Float64Array) -> Float64Array:
    updated = np.empty_like(h)
    _step(h.reshape(-1, 9), normals, gradients, RIDGE, updated.reshape(-1, 9))
    return updated
