"""Homography solvers and residuals in NumPy, for one set of matches: :mod:`frontend.homography_solver` for a CPU.

The same equations without the batch, written for few calls on arrays that stay in the cache: with a thousand matches
the time of a call is what it costs to make it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from frontend.types import BoolArray, Float32Array, Float64Array

COLLINEAR = 1e-2
MIN_DEPTH = 1e-6
RIDGE = 1e-12
FAR = 1e12  # squared error behind the camera, px^2
SCORED_AT_ONCE = 1 << 14  # hypotheses x matches: what stays in a core's cache
_GAUGE = RIDGE * np.eye(9)
# the nine 2x2 minors of an adjugate as a b - c d, by the places of their factors among the nine entries
_MINORS = np.array(
    [
        [4, 2, 1, 5, 0, 2, 3, 1, 0],
        [8, 7, 5, 6, 8, 3, 7, 6, 4],
        [5, 1, 2, 3, 2, 0, 4, 0, 1],
        [7, 8, 4, 8, 6, 5, 6, 7, 3],
    ]
)


def adjugate(h: np.ndarray) -> np.ndarray:
    """Adjugates of (..., 3, 3) matrices: ``det(M) * M^-1``, same type."""
    flat = h.reshape(*h.shape[:-2], 9)
    a, b, c, d = _MINORS
    result: np.ndarray = (flat[..., a] * flat[..., b] - flat[..., c] * flat[..., d]).reshape(h.shape)
    return result


def unit_norm(h: np.ndarray) -> np.ndarray:
    """(..., 3, 3) matrices scaled to Frobenius norm 1, keeping their sign."""
    norm = np.sqrt(np.square(h).sum(axis=(-2, -1), keepdims=True))
    result: np.ndarray = h / np.maximum(norm, np.finfo(h.dtype).tiny)
    return result


def normalising_transform(points: Float64Array) -> Float64Array:
    """Similarity (3, 3) that moves the centroid of (K, 2) points to 0 and their RMS distance to sqrt(2) (Hartley)."""
    centre = points.mean(axis=0)
    spread = float(np.square(points - centre).sum() / len(points))
    scale = np.sqrt(2.0 / spread) if spread > 1e-12 else 1.0
    return np.array([[scale, 0, -scale * centre[0]], [0, scale, -scale * centre[1]], [0, 0, 1]])


def _triangles(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Signed doubled areas of the triangles (3, 1, 2), (3, 2, 0), (3, 0, 1) and (0, 1, 2) of points (4, N)."""
    x, y = x[:3] - x[3], y[:3] - y[3]
    area01 = x[0] * y[1] - x[1] * y[0]
    area12 = x[1] * y[2] - x[2] * y[1]
    area20 = x[2] * y[0] - x[0] * y[2]
    return area12, area20, area01, area01 + area12 + area20


def good_samples(sample0: Float32Array, sample1: Float32Array) -> BoolArray:
    """Which samples (2, 4, N) can come from one homography, see :func:`frontend.homography_solver.is_good_sample`."""
    good = np.ones(sample0.shape[2], np.bool_)
    signs = []
    for sample in (sample0, sample1):
        areas = np.stack(_triangles(*sample))
        size = np.square(sample.max(axis=1) - sample.min(axis=1)).sum(axis=0)
        good &= np.abs(areas).min(axis=0) > COLLINEAR * size
        signs.append(areas > 0)
    result: BoolArray = good & (signs[0] == signs[1]).all(axis=0)
    return result


def from_4_points(sample0: Float32Array, sample1: Float32Array) -> Float32Array:
    """The homographies (N, 3, 3) of good samples (2, 4, N), in closed form.

    The method is that of :func:`frontend.homography_solver.homography_from_4_points`.
    """
    area0, area1 = (np.stack(_triangles(*sample)) for sample in (sample0, sample1))
    # each to unit size, or the products below underflow for small samples in float32
    area0, area1 = (a / np.abs(a).max(axis=0) for a in (area0, area1))
    gain = area1[:3] * area0[[1, 2, 0]] * area0[[2, 0, 1]]
    x, y = sample0[:, :3]
    (xb, yb), (xc, yc) = (x[[1, 2, 0]], y[[1, 2, 0]]), (x[[2, 0, 1]], y[[2, 0, 1]])
    dual = np.stack([yb - yc, xc - xb, xb * yc - xc * yb], axis=-1)  # (3 points, N, 3)
    target = np.stack([sample1[0, :3] * gain, sample1[1, :3] * gain, gain])  # (3, 3 points, N)
    h = target.transpose(2, 0, 1) @ dual.transpose(1, 0, 2)
    return np.asarray(unit_norm(h * np.sign(gain[0] * area0[3])[:, None, None]), np.float32)


def _one_way(h: Float32Array, source: Float32Array, target: Float32Array, limit: float) -> Float32Array:
    """Squared transfer errors (N, K) of hypotheses (N, 3, 3), in units of the squared limit."""
    mapped = h.reshape(-1, 3) @ source
    u, v, depth = (mapped[i::3] for i in range(3))
    inverse = np.maximum(depth, np.float32(MIN_DEPTH))
    np.divide(np.float32(1 / limit), inverse, out=inverse)
    # (u / w - x) / limit = u (1 / (w limit)) - x / limit
    u = u * inverse
    u -= target[0] * np.float32(1 / limit)
    v = v * inverse
    v -= target[1] * np.float32(1 / limit)
    u *= u
    v *= v
    u += v
    return np.asarray(u, np.float32)


def score(h: Float32Array, points0: Float32Array, points1: Float32Array, limits: tuple[float, float]) -> Float32Array:
    """MSAC costs (N,) of hypotheses in float32: the sum of min(error / limit, 1) over the matches.

    Args:
        h: (N, 3, 3) float32 between the points.
        points0: (3, K) float32 homogeneous, of image 0.
        points1: (3, K), of image 1.
        limits: largest symmetric transfer error of an inlier, in units of points0 and of points1.
    """
    inverse = unit_norm(adjugate(h))
    step = max(1, SCORED_AT_ONCE // max(points0.shape[1], 1))
    costs = np.empty(len(h), np.float32)
    for start in range(0, len(h), step):
        part = slice(start, start + step)
        error = _one_way(h[part], points0, points1, limits[1])
        error += _one_way(inverse[part], points1, points0, limits[0])
        np.minimum(error, np.float32(1), out=error)
        costs[part] = error.sum(axis=1)
    return costs


class Projection(NamedTuple):
    """Points of one image mapped into the other by T homographies: each (T, K) float64."""

    inverse_depth: Float64Array
    u: Float64Array
    v: Float64Array
    residual_u: Float64Array  # pixels
    residual_v: Float64Array  # pixels


class Linearised(NamedTuple):
    """Matches projected both ways, where a Gauss-Newton step starts from."""

    h: Float64Array  # (T, 3, 3) unit norm
    inverse: Float64Array  # (T, 3, 3) unit norm
    forward: Projection
    backward: Projection
    error: Float64Array  # (T, K) squared symmetric transfer error, px^2


class Sampson(NamedTuple):
    """Matches at a homography, where a Gauss-Newton step on the Sampson error starts from."""

    h: Float64Array  # (T, 3, 3) unit norm
    forward: Projection
    whitening: Float64Array  # (3, T, K) entries (0, 0), (0, 1), (1, 1) of (I + A A^T)^-1
    error: Float64Array  # (T, K) squared Sampson error, px^2


class _Side(NamedTuple):
    """One direction of transfer: the matches seen from the image that is mapped."""

    y: Float64Array  # (3, K) homogeneous source points
    moments: Float64Array  # (K, 9) y y^T; its columns 2, 5 and 8 are y
    u: Float64Array  # (K,) target
    v: Float64Array  # (K,)
    pixels: float  # pixels in one unit of the target's coordinates


class GaussNewton:
    """Weighted Gauss-Newton steps, see :class:`frontend.homography_solver.GaussNewton`.

    Args:
        points0: (K, 2) float64, normalised.
        points1: (K, 2) float64, normalised.
        unit0: length of one pixel of image 0 in units of points0.
        unit1: the same for image 1.
    """

    def __init__(self, points0: Float64Array, points1: Float64Array, unit0: float, unit1: float) -> None:
        self._forward = self._side(points0, points1, unit1)
        self._backward = self._side(points1, points0, unit0)

    @staticmethod
    def _side(source: Float64Array, target: Float64Array, unit: float) -> _Side:
        y = np.ones((3, len(source)))
        y[:2] = source.T
        moments = (y[:, None] * y).reshape(9, -1).T
        u, v = np.ascontiguousarray(target.T)
        return _Side(y, np.ascontiguousarray(moments), u, v, 1 / unit)

    def subset(self, keep: BoolArray) -> GaussNewton:
        """The same for the matches where ``keep`` (K,)."""
        part = object.__new__(GaussNewton)
        index = np.flatnonzero(keep)
        part._forward, part._backward = (
            _Side(
                side.y.take(index, axis=1), side.moments.take(index, axis=0), side.u[index], side.v[index], side.pixels
            )
            for side in (self._forward, self._backward)
        )
        return part

    @staticmethod
    def _project(h: Float64Array, side: _Side) -> Projection:
        mapped = (h.reshape(-1, 3) @ side.y).reshape(len(h), 3, -1)
        inverse_depth = 1 / np.maximum(mapped[:, 2], MIN_DEPTH)
        u, v = mapped[:, 0] * inverse_depth, mapped[:, 1] * inverse_depth
        return Projection(inverse_depth, u, v, (u - side.u) * side.pixels, (v - side.v) * side.pixels)

    def linearise(self, h: Float64Array) -> Linearised:
        """Project all matches both ways.

        Args:
            h: (T, 3, 3) float64 between the normalised points, oriented, of unit norm.
        """
        inverse = unit_norm(adjugate(h))
        forward, backward = self._project(h, self._forward), self._project(inverse, self._backward)
        error = forward.residual_u * forward.residual_u
        for residual in (forward.residual_v, backward.residual_u, backward.residual_v):
            error += residual * residual
        return Linearised(h, inverse, forward, backward, error)

    @staticmethod
    def _normal(side: _Side, at: Projection, weights: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Normal matrices (T, 9, 9) and gradients (T, 9) of one direction in the entries of its matrix."""
        slope = at.inverse_depth * side.pixels  # pixels for a unit change of the homogeneous coordinates
        first = weights * slope
        factors = np.empty((len(first), 7, first.shape[1]))
        a = np.multiply(first, slope, out=factors[:, 0])
        au, av = np.multiply(a, at.u, out=factors[:, 1]), np.multiply(a, at.v, out=factors[:, 2])
        np.add(au * at.u, av * at.v, out=factors[:, 3])
        bu = np.multiply(first, at.residual_u, out=factors[:, 4])
        bv = np.multiply(first, at.residual_v, out=factors[:, 5])
        np.add(bu * at.u, bv * at.v, out=factors[:, 6])
        sums = (factors.reshape(-1, first.shape[1]) @ side.moments).reshape(-1, 7, 3, 3)
        normal = np.zeros((len(first), 3, 3, 3, 3))
        normal[:, 0, :, 0] = normal[:, 1, :, 1] = sums[:, 0]
        normal[:, 0, :, 2] = normal[:, 2, :, 0] = -sums[:, 1]
        normal[:, 1, :, 2] = normal[:, 2, :, 1] = -sums[:, 2]
        normal[:, 2, :, 2] = sums[:, 3]
        gradient = sums[:, 4:, :, 2].copy()
        gradient[:, 2] *= -1
        return normal.reshape(-1, 9, 9), gradient.reshape(-1, 9)

    def normal_equations(self, at: Linearised, weights: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Normal matrices (T, 9, 9) and gradients (T, 9) of half the weighted error, px^2, row-major in H.

        Args:
            at: from :meth:`linearise`.
            weights: (T, K) float64 >= 0.
        """
        normal, gradient = self._normal(self._forward, at.forward, weights)
        normal_back, gradient_back = self._normal(self._backward, at.backward, weights)
        g = at.inverse
        # the inverse is used scaled to unit norm, H G = c I: vec(dG) = -(G kron G^T) vec(dH) / c
        c = (at.h * g.transpose(0, 2, 1)).sum(axis=(1, 2)) / 3
        chain = (g[:, :, None, :, None] * g.transpose(0, 2, 1)[:, None, :, None, :]).reshape(-1, 9, 9)
        chain /= np.where(np.abs(c) > 1e-30, -c, 1.0)[:, None, None]
        transposed = chain.transpose(0, 2, 1)
        return normal + transposed @ normal_back @ chain, gradient + (transposed @ gradient_back[..., None])[..., 0]

    def step(self, at: Linearised, weights: Float64Array) -> Float64Array:
        """One Gauss-Newton step: (T, 3, 3) of unit norm; where it cannot be computed, at.h itself."""
        return _stepped(at.h, *self.normal_equations(at, weights))

    def sampson(self, h: Float64Array) -> Sampson:
        """Sampson errors, see :meth:`frontend.homography_solver.GaussNewton.sampson`.

        Args:
            h: (T, 3, 3) float64 between the normalised points, oriented, of unit norm.
        """
        at = self._project(h, self._forward)
        gain = at.inverse_depth * (self._forward.pixels / self._backward.pixels)
        entry = h[..., None]
        a00, a01 = ((entry[:, 0, n] - at.u * entry[:, 2, n]) * gain for n in range(2))
        a10, a11 = ((entry[:, 1, n] - at.v * entry[:, 2, n]) * gain for n in range(2))
        c00, c11, c01 = 1 + a00 * a00 + a01 * a01, 1 + a10 * a10 + a11 * a11, a00 * a10 + a01 * a11
        whitening = np.stack((c11, -c01, c00)) / np.maximum(c00 * c11 - c01 * c01, 1.0)
        p, q = at.residual_u, at.residual_v
        error = whitening[0] * (p * p) + (2 * whitening[1]) * (p * q) + whitening[2] * (q * q)
        # behind the camera the derivative has no bound, and would excuse any residual
        return Sampson(h, at, whitening, np.where(at.inverse_depth < 1 / MIN_DEPTH, error, FAR))

    def sampson_equations(self, at: Sampson, weights: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Normal matrices (T, 9, 9) and gradients (T, 9) of half the weighted Sampson error, whitening held.

        Args:
            at: from :meth:`sampson`.
            weights: (T, K) float64 >= 0.
        """
        inverse_depth, u, v, p, q = at.forward
        slope = inverse_depth * self._forward.pixels
        first = at.whitening * (weights * slope)
        a, b, c = first * slope
        across, down = a * u + b * v, b * u + c * v
        pull_u, pull_v = first[0] * p + first[1] * q, first[1] * p + first[2] * q
        factors = np.stack(
            (a, b, c, across, down, across * u + down * v, pull_u, pull_v, pull_u * u + pull_v * v), axis=1
        )
        sums = (factors.reshape(-1, factors.shape[2]) @ self._forward.moments).reshape(-1, 9, 3, 3)
        normal = np.empty((len(sums), 3, 3, 3, 3))
        normal[:, 0, :, 0], normal[:, 1, :, 1], normal[:, 2, :, 2] = sums[:, 0], sums[:, 2], sums[:, 5]
        normal[:, 0, :, 1] = normal[:, 1, :, 0] = sums[:, 1]
        normal[:, 0, :, 2] = normal[:, 2, :, 0] = -sums[:, 3]
        normal[:, 1, :, 2] = normal[:, 2, :, 1] = -sums[:, 4]
        gradient = sums[:, 6:, :, 2].copy()
        gradient[:, 2] *= -1
        return normal.reshape(-1, 9, 9), gradient.reshape(-1, 9)

    def sampson_step(self, at: Sampson, weights: Float64Array) -> Float64Array:
        """As :meth:`step`, on the Sampson error."""
        return _stepped(at.h, *self.sampson_equations(at, weights))


def _stepped(h: Float64Array, normal: Float64Array, gradient: Float64Array) -> Float64Array:
    matrix, scale = gauge_fixed(normal, h)
    try:
        delta = np.linalg.solve(matrix, (gradient / scale[:, None])[..., None])[..., 0]
    except np.linalg.LinAlgError:
        return h
    updated = unit_norm(h - delta.reshape(-1, 3, 3))
    usable = np.isfinite(updated).all(axis=(1, 2))
    return updated if usable.all() else np.where(usable[:, None, None], updated, h)


def gauge_fixed(normal: Float64Array, h: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Normal matrices without the freedom of H's scale: ``normal / scale + h h^T`` (T, 9, 9), and scale (T,)."""
    flat = h.reshape(-1, 9)
    scale = np.maximum(np.trace(normal, axis1=1, axis2=2), 1e-200)
    return normal / scale[:, None, None] + flat[:, :, None] * flat[:, None] + _GAUGE, scale
