"""Whether a model fitted to matches means anything: a-contrario significance and geometric sanity.

A-contrario reasoning after L. Moisan and B. Stival, A probabilistic criterion to detect rigid point matches between
two images and estimate the fundamental matrix (2004): a model is kept if so good a one would hardly ever be found
among matches made at random. It needs no tuning to the number of matches: 12 inliers are much among 20 matches and
nothing special among 2,000.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frontend.homography_solver import GaussNewton, gauge_fixed_cholesky, homogeneous
from frontend.significance import KEY, MAX_LOG10_NFA, MIDDLE, SAME

# Local magnification around an inlier in any direction, either way. Beyond it no descriptor matches.
MAX_SCALE = 16.0
# Predicted standard deviation at the corners of the inliers' bounding box, in thresholds.
MAX_UNCERTAINTY = 3.0


def log10_false_alarms(matches: Tensor, inliers: Tensor, probability: Tensor, sample: int, models: int = 1) -> Tensor:
    """Logarithm of the expected number of models as good as this one among random matches (NFA).

    Args:
        matches: (...) number n of matches, any real dtype.
        inliers: (...) number k of those that fit the model.
        probability: (...) chance that a random match fits a given model, in (0, 1].
        sample: matches that define a model.
        models: models that one sample may give.

    Returns:
        (...) float64, log10 of ``models (n - sample) C(n, k) C(k, sample) p^(k - sample)``; inf for k <= sample,
        where the model fits whatever the matches are.
    """
    n, k = matches.double(), inliers.double()
    # C(n, k) C(k, s) = n! / ((n - k)! (k - s)! s!)
    choices = torch.lgamma(n + 1) - torch.lgamma(n - k + 1) - torch.lgamma((k - sample).clamp(min=0) + 1)
    log = choices - math.lgamma(sample + 1) + math.log(models) + (n - sample).clamp(min=1).log()
    log = log + (k - sample) * probability.double().log()
    return torch.where(k > sample, log / math.log(10), torch.inf)


def bounding_box(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner (B, 2) of the masked (B, K) points (B, K, 2); both 0 where the mask is empty."""
    low = torch.where(mask[..., None], points, torch.inf).amin(-2)
    high = torch.where(mask[..., None], points, -torch.inf).amax(-2)
    some = mask.any(-1, keepdim=True)
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)


def middle_extent(points: Tensor, mask: Tensor) -> Tensor:
    """:func:`frontend.significance.middle_extent` (B, 2) of the masked (B, K) points (B, K, 2); 0 without any."""
    ordered = torch.where(mask[..., None], points, torch.inf).sort(dim=1).values
    last = mask.sum(-1, keepdim=True)[..., None].clamp(min=1) - 1  # (B, 1, 1)
    ends = []
    for quantile in MIDDLE:
        at = quantile * last.double()
        low, high = (
            ordered.gather(1, index.clamp(max=last).expand(-1, 1, 2))[:, 0]
            for index in (at.floor().long(), at.floor().long() + 1)
        )
        ends.append(low + (at - at.floor())[..., 0] * (high - low))
    return torch.where(mask.any(-1, keepdim=True), (ends[1] - ends[0]) / (MIDDLE[1] - MIDDLE[0]), 0.0)


def _spread(points: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation (B,) of the masked points across their main axis, in the unit of the points."""
    total = mask.sum(-1, keepdim=True).clamp(min=1)
    weights = mask.to(points.dtype)[..., None]
    centred = (points - (points * weights).sum(-2, keepdim=True) / total[..., None]) * weights
    xx, yy = (centred.square().sum(-2) / total).unbind(-1)
    xy = centred.prod(-1).sum(-1) / total[..., 0]
    # the smaller eigenvalue of the 2x2 covariance, without cancellation
    larger = (xx + yy) / 2 + (((xx - yy) / 2).square() + xy.square()).sqrt()
    return ((xx * yy - xy.square()).clamp(min=0) / larger.clamp(min=1e-300)).sqrt()


def count_distinct(points0: Tensor, points1: Tensor, valid: Tensor, inliers: Tensor) -> tuple[Tensor, Tensor]:
    """How many different matches there are, and how many of them are inliers; repeated ones are no further evidence.

    Args:
        points0: (B, K, 2) float64, normalised.
        points1: (B, K, 2).
        valid: (B, K) bool.
        inliers: (B, K) bool, of those.

    Returns:
        (B,) int64 each.
    """
    coordinates = (*points0.unbind(-1), *points1.unbind(-1))
    keys = sum(value * factor for value, factor in zip(coordinates, KEY, strict=True))
    ordered, order = torch.where(valid, keys, torch.inf).sort(-1)
    first = torch.ones_like(valid)
    first[:, 1:] = ordered.diff() > SAME
    first &= valid.gather(1, order)
    return first.sum(-1), (first & inliers.gather(1, order)).sum(-1)


def _derivative(h: Tensor, points: Tensor) -> Tensor:
    """Derivative (B, N, 2, 9) of mapped points in the nine entries of h (B, 3, 3); points (B, N, 2)."""
    y = homogeneous(points)
    mapped = y @ h.transpose(-1, -2)
    depth = mapped[..., 2:]
    depth = torch.where(depth.abs() < 1e-9, 1e-9, depth)
    u, v = mapped[..., :1] / depth, mapped[..., 1:2] / depth
    zero = torch.zeros_like(y)
    return torch.stack((torch.cat((y, zero, -u * y), -1), torch.cat((zero, y, -v * y), -1)), -2) / depth[..., None]


def verify_homography(
    h: Tensor,
    points0: Tensor,
    points1: Tensor,
    units: tuple[Tensor, Tensor],
    valid: Tensor,
    threshold: float,
    min_inliers: int,
) -> tuple[Tensor, Tensor]:
    """Find the inliers of homographies and refuse those that mean nothing.

    Refused are models
        - with fewer than min_inliers different inliers, or as many as random matches would give: for these, let A be
          the larger of the areas in which the matches of an image lie, but for the outermost
          (:func:`frontend.significance.middle_extent`); a random one fits with a probability of at most
          ``p = 2 pi threshold^2 / A``, and ``(n - 4) C(n, k) C(k, 4) p^(k - 4)`` must stay below 1e-4 (with 300
          matches across a VGA image and a threshold of 3 px: 13 inliers; with 30 matches: 8);
        - that turn the plane over, or magnify or shrink an inlier's surroundings more than 16-fold in any direction;
        - that the inliers do not determine: these lie on a line, or all but one do, so that linear propagation of
          noise of a third of the threshold moves a corner of their bounding box by more than three thresholds.

    Args:
        h: (B, 3, 3) float64 between the normalised points, of unit norm, oriented.
        points0: (B, K, 2) float64, normalised; padding finite.
        points1: (B, K, 2).
        units: (B,) float64 each, length of a pixel of image 0 and 1 in units of its points.
        valid: (B, K) bool.
        threshold: pixels; inliers have a squared symmetric transfer error of at most ``2 threshold^2``.
        min_inliers: at least 4.

    Returns:
        inliers (B, K) bool and ok (B,) bool.
    """
    solver = GaussNewton(points0, points1, *units)
    state = solver.linearise(h[:, None])
    inliers = (state.error[:, 0] <= 2 * threshold**2) & valid
    total, count = count_distinct(points0, points1, valid, inliers)

    areas = []
    for points, unit in zip((points0, points1), units, strict=True):
        areas.append(middle_extent(points, valid).prod(-1) / unit.square())
    # An error within the limit needs the forward error to be, in image 1, and the backward one, in image 0.
    chance = 2 * math.pi * threshold**2 / torch.maximum(areas[0], areas[1]).clamp(min=1e-9)
    alarms = log10_false_alarms(total, count, chance.clamp(max=1.0), sample=4)
    ok = (count >= min_inliers) & (alarms < MAX_LOG10_NFA)

    # Singular values of the local affine map A: s1^2 + s2^2 = |A|^2, s1 s2 = det(A) = det(H) / w^3.
    zoom = (units[0] / units[1])[:, None]
    depth, u, v = (x[:, 0] for x in state.forward[:3])
    top = h[:, None, :2, :2] - torch.stack((u, v), -1)[..., None] * h[:, None, None, 2, :2]  # (B, K, 2, 2)
    squares = (top * (depth * zoom)[..., None, None]).square().sum((-1, -2))
    det = torch.linalg.det(h)[:, None] * depth**3 * zoom.square()
    largest = (squares / 2 + (squares.square() / 4 - det.square()).clamp(min=0).sqrt()).sqrt()
    sane = (largest <= MAX_SCALE) & (det >= largest / MAX_SCALE)  # the latter is s2 >= 1 / MAX_SCALE, and det > 0
    ok = ok & (sane | ~inliers).all(-1)

    ok = ok & (_spread(points0, inliers) > threshold / 2 * units[0])
    ok = ok & (_spread(points1, inliers) > threshold / 2 * units[1])
    normal, _ = solver.normal_equations(state, inliers.double()[:, None])
    factor, scale, info = gauge_fixed_cholesky(normal[:, 0], h)
    low, high = bounding_box(points0, inliers)
    ends = torch.stack((low, high), 1)
    corners = torch.stack((ends[:, [0, 1, 1, 0], 0], ends[:, [0, 0, 1, 1], 1]), -1)  # (B, 4, 2)
    slopes = _derivative(h, corners).flatten(1, 2) / units[1][:, None, None]  # (B, 8, 9) px
    whitened = torch.linalg.solve_triangular(factor, slopes.transpose(1, 2), upper=False)  # (B, 9, 8)
    variance = (whitened.square().sum(1) / scale[:, None]).view(-1, 4, 2).sum(-1)
    determined = (variance / 9 <= MAX_UNCERTAINTY**2).all(-1)  # noise of threshold / 3 against so many thresholds
    return inliers, ok & (info == 0) & determined
