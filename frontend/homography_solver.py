"""Homography solvers and residuals, batched in PyTorch: the parts that robust estimation is made of.

Every function takes any leading batch shape, runs on the device of its inputs and never waits for it: no value is
read back to the host. ``H`` maps points of image 0 to image 1 as ``[u, v, w] = H [x, y, 1]``; its overall sign is
such that ``w`` is positive for points in front of both cameras (oriented projective geometry, so a point with
``w <= 0`` is behind, never an inlier).

Sources: R. Hartley and A. Zisserman, Multiple View Geometry, 2nd ed. (2004): alg. 4.2 (normalised DLT), sec. 4.2.2
(symmetric transfer error). O. Chum, T. Werner and J. Matas, Epipolar geometry estimation via RANSAC benefits from the
oriented epipolar constraint (2004): the orientation test.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A triangle whose doubled area is below this fraction of its sample's squared diameter counts as collinear: its
# homography would amplify the noise of the points a hundredfold.
COLLINEAR = 1e-2
# Depths are clamped here before a division: a point at or behind the plane at infinity gets an enormous error
# instead of a NaN. Homographies are scaled to unit norm and points to unit size, so real depths are far larger.
MIN_DEPTH = 1e-6
# Relative ridge that keeps a 9x9 normal matrix positive definite when the data leave it singular.
RIDGE = 1e-12
FAR = 1e12  # squared error behind the camera, px^2


def adjugate(matrix: Tensor) -> Tensor:
    """Adjugate of 3x3 matrices: ``det(M) * M^-1``, defined for singular ones too.

    Args:
        matrix: (..., 3, 3) floating point.

    Returns:
        (..., 3, 3), same dtype.
    """
    r0, r1, r2 = matrix.unbind(-2)
    columns = (torch.linalg.cross(r1, r2), torch.linalg.cross(r2, r0), torch.linalg.cross(r0, r1))
    return torch.stack(columns, dim=-1)


def unit_norm(matrix: Tensor) -> Tensor:
    """Scale (..., 3, 3) matrices to Frobenius norm 1, keeping their sign; a zero matrix stays zero."""
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    return matrix / norm.clamp(min=torch.finfo(matrix.dtype).tiny)


def normalising_transform(points: Tensor, weights: Tensor) -> Tensor:
    """Similarity that moves the weighted points' centroid to 0 and their RMS distance to sqrt(2) (Hartley).

    Args:
        points: (..., K, 2) floating point, pixels.
        weights: (..., K) >= 0; 0 leaves a point out (it must still be finite).

    Returns:
        (..., 3, 3), same dtype. Without points, or with all of them in one place, the scale is 1.
    """
    total = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(points.dtype).tiny)  # (..., 1)
    centre = (points * weights[..., None]).sum(-2) / total  # (..., 2)
    spread = ((points - centre[..., None, :]).square().sum(-1) * weights).sum(-1) / total[..., 0]  # (...), px^2
    scale = torch.where(spread > 1e-12, (2.0 / spread.clamp(min=1e-12)).sqrt(), torch.ones_like(spread))
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rows = (
        torch.stack((scale, zero, -scale * centre[..., 0]), -1),
        torch.stack((zero, scale, -scale * centre[..., 1]), -1),
        torch.stack((zero, zero, one), -1),
    )
    return torch.stack(rows, -2)


def homogeneous(points: Tensor) -> Tensor:
    """(..., K, 2) -> (..., K, 3) with ones."""
    return torch.cat((points, torch.ones_like(points[..., :1])), -1)


def _triangles(points: Tensor) -> Tensor:
    """Signed doubled areas (..., 4) of the triangles of points (3, 1, 2), (3, 2, 0), (3, 0, 1) and (0, 1, 2).

    In homogeneous coordinates p3 = sum_i (area_i / area_3) p_i over i = 0..2 (Cramer's rule), which is what the
    solver needs.
    """
    x, y = points.unbind(-1)  # (..., 4)
    x, y = x - x[..., 3:], y - y[..., 3:]
    area01 = x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]
    area12 = x[..., 1] * y[..., 2] - x[..., 2] * y[..., 1]
    area20 = x[..., 2] * y[..., 0] - x[..., 0] * y[..., 2]
    return torch.stack((area12, area20, area01, area01 + area12 + area20), -1)


def is_good_sample(points0: Tensor, points1: Tensor) -> Tensor:
    """Whether four matches can come from one homography between views of the same side of a plane.

    Refused: three (nearly) collinear points in either image, which includes repeated points; and any of the four
    triangles turning the other way in image 1, since a homography whose four points lie in front of both cameras
    keeps every orientation. About nine in ten samples of random matches fail this test, long before any scoring.

    Args:
        points0: (..., 4, 2) floating point.
        points1: (..., 4, 2).

    Returns:
        (...) bool.
    """
    area0, area1 = _triangles(points0), _triangles(points1)
    # bounding boxes stand for the diameters
    size0 = (points0.amax(-2) - points0.amin(-2)).square().sum(-1)
    size1 = (points1.amax(-2) - points1.amin(-2)).square().sum(-1)
    clear = (area0.abs().amin(-1) > COLLINEAR * size0) & (area1.abs().amin(-1) > COLLINEAR * size1)
    return clear & ((area0 > 0) == (area1 > 0)).all(-1)


def homography_from_4_points(points0: Tensor, points1: Tensor) -> Tensor:
    """The homography through four matches, in closed form by projective bases.

    With the first three points as the columns of P (and Q in image 1) and the fourth written as P a (and Q b),
    ``H = Q diag(b / a) P^-1``; a and b are ratios of triangle areas and P^-1 three cross products, so that the whole
    solver is some hundred multiplications and needs no factorisation.

    Args:
        points0: (..., 4, 2) floating point, best normalised; must satisfy :func:`is_good_sample` with points1.
        points1: (..., 4, 2).

    Returns:
        (..., 3, 3) of unit norm with positive depth at the four points; zeros or garbage for degenerate samples.
    """
    # Each to unit size, or the products below underflow for small samples in float32.
    area0, area1 = (a / a.abs().amax(-1, keepdim=True).clamp(min=1e-30) for a in map(_triangles, (points0, points1)))
    # b_i / a_i up to a common factor, written without division so that nothing overflows.
    gain = torch.stack(
        (
            area1[..., 0] * area0[..., 1] * area0[..., 2],
            area1[..., 1] * area0[..., 2] * area0[..., 0],
            area1[..., 2] * area0[..., 0] * area0[..., 1],
        ),
        -1,
    )  # (..., 3)
    p = homogeneous(points0[..., :3, :])  # (..., 3 points, 3)
    q = homogeneous(points1[..., :3, :]) * gain[..., None]
    dual = torch.linalg.cross(p[..., [1, 2, 0], :], p[..., [2, 0, 1], :])  # rows of det(P) P^-1
    h = (q[..., :, None] * dual[..., None, :]).sum(-3)  # sum over the three points of outer products
    # Depth at point 0 is gain_0 * det(P): make it positive.
    return unit_norm(h * torch.sign(gain[..., 0] * area0[..., 3])[..., None, None])


class Projection(NamedTuple):
    """Points of one image mapped into the other by T homographies: each (B, T, K) float64."""

    inverse_depth: Tensor
    u: Tensor
    v: Tensor
    residual_u: Tensor  # pixels
    residual_v: Tensor  # pixels


class Linearised(NamedTuple):
    """Matches projected both ways, where a Gauss-Newton step starts from."""

    h: Tensor  # (B, T, 3, 3) unit norm
    inverse: Tensor  # (B, T, 3, 3) unit norm
    forward: Projection
    backward: Projection
    error: Tensor  # (B, T, K) squared symmetric transfer error, px^2


class Sampson(NamedTuple):
    """Matches at a homography, where a Gauss-Newton step on the Sampson error starts from."""

    h: Tensor  # (B, T, 3, 3) unit norm
    forward: Projection
    whitening: tuple[Tensor, Tensor, Tensor]  # entries (0, 0), (0, 1), (1, 1) of (I + A A^T)^-1, (B, T, K) each
    error: Tensor  # (B, T, K) squared Sampson error, px^2


class _Side(NamedTuple):
    """One direction of transfer: the matches seen from the image that is mapped."""

    y: Tensor  # (B, K, 3) homogeneous source points
    moments: Tensor  # (B, K, 9) y y^T
    u: Tensor  # (B, 1, K) target
    v: Tensor  # (B, 1, K)
    pixels: Tensor  # (B, 1, 1) pixels in one unit of the target's coordinates


class GaussNewton:
    """Weighted Gauss-Newton steps on symmetric transfer or Sampson errors, T homographies for each set of matches.

    The forward residual ``pi(H y) - (u1, v1)`` of a source point y has the derivative
    ``[y, 0, -u y; 0, y, -v y] / w`` in the entries of H, so its normal matrix is made of four moments of y y^T: one
    small matrix product, whatever the number of matches. The backward residual is the forward one of G = H^-1 with
    the images exchanged, and ``dG = -G dH G`` carries its normal matrix over to H.

    Args:
        points0: (B, K, 2) float64, normalised; padding must be finite.
        points1: (B, K, 2) float64, normalised.
        unit0: (B,) float64, length of one pixel of image 0 in units of points0.
        unit1: (B,) float64, the same for image 1.
    """

    def __init__(self, points0: Tensor, points1: Tensor, unit0: Tensor, unit1: Tensor) -> None:
        self._forward = self._side(points0, points1, unit1)
        self._backward = self._side(points1, points0, unit0)

    @staticmethod
    def _side(source: Tensor, target: Tensor, unit: Tensor) -> _Side:
        y = homogeneous(source)
        moments = (y[..., :, None] * y[..., None, :]).flatten(-2)
        u, v = target.transpose(-1, -2)[:, None].unbind(-2)
        return _Side(y, moments, u, v, unit.reciprocal()[:, None, None])

    @staticmethod
    def _project(h: Tensor, side: _Side) -> Projection:
        mapped = h.flatten(1, 2) @ side.y.transpose(-1, -2)
        mapped = mapped.view(*h.shape[:2], 3, -1)  # (B, T, 3, K)
        inverse_depth = mapped[:, :, 2].clamp(min=MIN_DEPTH).reciprocal()
        u, v = mapped[:, :, 0] * inverse_depth, mapped[:, :, 1] * inverse_depth
        return Projection(inverse_depth, u, v, (u - side.u) * side.pixels, (v - side.v) * side.pixels)

    def linearise(self, h: Tensor) -> Linearised:
        """Project all matches both ways.

        Args:
            h: (B, T, 3, 3) float64 between the normalised points, oriented, of unit norm.
        """
        inverse = unit_norm(adjugate(h))
        forward, backward = self._project(h, self._forward), self._project(inverse, self._backward)
        error = forward.residual_u.square().addcmul_(forward.residual_v, forward.residual_v)
        error.addcmul_(backward.residual_u, backward.residual_u).addcmul_(backward.residual_v, backward.residual_v)
        return Linearised(h, inverse, forward, backward, error)

    @staticmethod
    def _normal(side: _Side, projection: Projection, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Normal matrix (B, T, 9, 9) and gradient (B, T, 9) of one direction in the entries of its matrix."""
        inverse_depth, u, v, residual_u, residual_v = projection
        slope = inverse_depth * side.pixels  # pixels for a unit change of the homogeneous coordinates
        first = weights * slope
        a = first * slope
        au, av = a * u, a * v
        batch, count = a.shape[:2]
        factors = torch.stack((a, au, av, au * u + av * v), 2)  # (B, T, 4, K)
        sums = (factors.flatten(1, 2) @ side.moments).view(batch, count, 4, 3, 3)
        one, by_u, by_v, by_uv = sums.unbind(2)
        zero = torch.zeros_like(one)
        rows = (
            torch.cat((one, zero, -by_u), -1),
            torch.cat((zero, one, -by_v), -1),
            torch.cat((-by_u, -by_v, by_uv), -1),
        )
        bu, bv = first * residual_u, first * residual_v
        factors = torch.stack((bu, bv, -(bu * u + bv * v)), 2)
        return torch.cat(rows, -2), (factors.flatten(1, 2) @ side.y).view(batch, count, 9)

    def normal_equations(self, at: Linearised, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Normal matrix (B, T, 9, 9) and gradient (B, T, 9) of half the weighted error, px^2, row-major in H.

        Args:
            at: from :meth:`linearise`.
            weights: (B, T, K) float64 >= 0, 0 for padding.
        """
        normal, gradient = self._normal(self._forward, at.forward, weights)
        normal_back, gradient_back = self._normal(self._backward, at.backward, weights)
        # The inverse is used scaled to unit norm, H G = c I; its own scale moves no residual, so that
        # dG = -G dH G / c, that is vec(dG) = -(G kron G^T) vec(dH) / c.
        g = at.inverse
        c = (at.h * g.transpose(-1, -2)).sum((-1, -2))[..., None, None] / 3
        chain = (g[..., :, None, :, None] * g.transpose(-1, -2)[..., None, :, None, :]).flatten(-2).flatten(-3, -2)
        chain = chain / torch.where(c.abs() > 1e-30, -c, 1.0)  # (B, T, 9, 9)
        transposed = chain.transpose(-1, -2)
        return normal + transposed @ normal_back @ chain, gradient + (transposed @ gradient_back[..., None])[..., 0]

    def step(self, at: Linearised, weights: Tensor) -> Tensor:
        """One Gauss-Newton step.

        Args:
            at: from :meth:`linearise`.
            weights: (B, T, K) float64 >= 0, 0 for padding.

        Returns:
            (B, T, 3, 3) of unit norm. Where the step cannot be computed, at.h itself.
        """
        return _stepped(at.h, *self.normal_equations(at, weights))

    def sampson(self, h: Tensor) -> Sampson:
        """Sampson errors: the first-order distance of matches to H, both points moving (Hartley & Zisserman, 4.2.6).

        With noise of one variance in both images, the residual r = H x0 - x1 has the covariance I + A A^T, A being the
        derivative of H x0 by x0. The squared error r^T (I + A A^T)^-1 r is in px^2, a quarter of the symmetric transfer
        error where H changes neither scale nor shape.

        Args:
            h: (B, T, 3, 3) float64 between the normalised points, oriented, of unit norm.
        """
        at = self._project(h, self._forward)
        gain = at.inverse_depth * (self._forward.pixels / self._backward.pixels)
        entry = h[..., None]  # (B, T, 3, 3, 1)
        a00, a01 = ((entry[:, :, 0, n] - at.u * entry[:, :, 2, n]) * gain for n in range(2))
        a10, a11 = ((entry[:, :, 1, n] - at.v * entry[:, :, 2, n]) * gain for n in range(2))
        c00, c11, c01 = 1 + a00.square() + a01.square(), 1 + a10.square() + a11.square(), a00 * a10 + a01 * a11
        determinant = (c00 * c11 - c01.square()).clamp(min=1.0)
        first, mixed, second = c11 / determinant, -c01 / determinant, c00 / determinant
        p, q = at.residual_u, at.residual_v
        error = first * p.square() + 2 * mixed * p * q + second * q.square()
        # behind the camera the derivative has no bound, and would excuse any residual
        error = torch.where(at.inverse_depth < 1 / MIN_DEPTH, error, FAR)
        return Sampson(h, at, (first, mixed, second), error)

    def sampson_equations(self, at: Sampson, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Normal matrix (B, T, 9, 9) and gradient (B, T, 9) of half the weighted Sampson error, whitening held.

        Args:
            at: from :meth:`sampson`.
            weights: (B, T, K) float64 >= 0, 0 for padding.
        """
        inverse_depth, u, v, p, q = at.forward
        slope = inverse_depth * self._forward.pixels
        square = slope.square() * weights
        a, b, c = (entry * square for entry in at.whitening)
        across, down = a * u + b * v, b * u + c * v
        batch, count = a.shape[:2]
        factors = torch.stack((a, b, c, across, down, across * u + down * v), 2)  # (B, T, 6, K)
        moments = (factors.flatten(1, 2) @ self._forward.moments).view(batch, count, 6, 3, 3)
        same_u, mixed, same_v, by_u, by_v, by_both = moments.unbind(2)
        rows = (
            torch.cat((same_u, mixed, -by_u), -1),
            torch.cat((mixed, same_v, -by_v), -1),
            torch.cat((-by_u, -by_v, by_both), -1),
        )
        first, second, third = (entry * weights * slope for entry in at.whitening)
        pull_u, pull_v = first * p + second * q, second * p + third * q
        factors = torch.stack((pull_u, pull_v, -(pull_u * u + pull_v * v)), 2)
        return torch.cat(rows, -2), (factors.flatten(1, 2) @ self._forward.y).view(batch, count, 9)

    def sampson_step(self, at: Sampson, weights: Tensor) -> Tensor:
        """As :meth:`step`, on the Sampson error."""
        return _stepped(at.h, *self.sampson_equations(at, weights))


def _stepped(h: Tensor, normal: Tensor, gradient: Tensor) -> Tensor:
    factor, scale, info = gauge_fixed_cholesky(normal, h)
    delta = torch.cholesky_solve((gradient / scale[..., None])[..., None], factor)[..., 0]
    updated = unit_norm((h.flatten(-2) - delta).view_as(h))
    usable = (info == 0) & updated.isfinite().flatten(-2).all(-1)
    return torch.where(usable[..., None, None], updated, h)


def gauge_fixed_cholesky(normal: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factorise a normal matrix in the nine entries of H, one of whose directions, H's own scale, means nothing.

    Args:
        normal: (..., 9, 9) float64, positive semi-definite.
        h: (..., 3, 3) of unit norm.

    Returns:
        Cholesky factor (..., 9, 9) of ``normal / scale + h h^T`` (plus a tiny ridge), scale (...) and LAPACK's info
        (...), not 0 where it failed.
    """
    flat = h.flatten(-2)
    scale = normal.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-200)
    gauge = flat[..., :, None] * flat[..., None, :] + RIDGE * torch.eye(9, dtype=h.dtype, device=h.device)
    factor, info = torch.linalg.cholesky_ex(normal / scale[..., None, None] + gauge)
    return factor, scale, info
