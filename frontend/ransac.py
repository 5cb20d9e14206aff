"""Robust homography estimation, batched in PyTorch on the device of its inputs.

LO-RANSAC (O. Chum, J. Matas and J. Kittler, Locally Optimized RANSAC, 2003) with the truncated quadratic score of
MSAC (P. Torr and A. Zisserman, MLESAC, 2000) on the symmetric transfer error (Hartley & Zisserman sec. 4.2.2). A
match is an inlier when the root mean square of its two errors, d(x1, H x0) and d(x0, H^-1 x1), is at most the
threshold.

Each block draws minimal samples, throws away those that no homography can explain (degenerate, or with an
orientation flipped), scores the rest in float32, and refines the best by reweighted Gauss-Newton in float64; the
batch is asked once per block which of its items still need more samples. The winner is polished on Sampson errors
(Hartley & Zisserman sec. 4.2.6), with Tukey weights at their own scale, relative to the matches' variances where those
are known. Items do not see each other: the random numbers of a block depend on the seed alone and are mapped to each
item's valid matches, so neither the batch nor its padding changes a result.

Whether a model means anything is decided by :func:`frontend.verification.verify_homography`: unrelated images give
no model, however many matches they have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frontend.errors import ShapeError
from frontend.homography_solver import adjugate, unit_norm
from frontend.ransac_config import FARTHEST, KEPT, RansacConfig
from frontend.ransac_search import NormalisedMatches, polish, prepare, search
from frontend.verification import verify_homography


@dataclass(frozen=True, eq=False)
class BatchedHomography:
    """Homographies of a batch, on the device of the matches.

    Attributes:
        H: (B, 3, 3) float64, image 0 to image 1, H[2, 2] = 1; the identity where there is none.
        inliers: (B, K) bool; False for padding and where there is no model.
        ok: (B,) bool, whether a model was found.
        iterations: (B,) int64, minimal samples drawn.
    """

    H: Tensor
    inliers: Tensor
    ok: Tensor
    iterations: Tensor


def _check(points0: Tensor, points1: Tensor, valid: Tensor) -> None:
    """Raise ShapeError unless the inputs of batched_ransac fit together."""
    if points0.ndim != 3 or points0.shape[-1] != 2 or points1.shape != points0.shape:
        raise ShapeError(
            f"points0 is {tuple(points0.shape)} and points1 {tuple(points1.shape)}; expected (B, K, 2) for both"
        )
    if not (points0.is_floating_point() and points1.is_floating_point()):
        raise ShapeError(f"points0 is {points0.dtype} and points1 {points1.dtype}; expected floating point")
    if valid.shape != points0.shape[:2] or valid.dtype != torch.bool:
        raise ShapeError(f"valid is {tuple(valid.shape)} {valid.dtype}; expected {tuple(points0.shape[:2])} torch.bool")
    if not points0.device == points1.device == valid.device:
        raise ShapeError(f"points are on {points0.device}, {points1.device}, valid on {valid.device}; expected one")


def _compact(
    points0: Tensor, points1: Tensor, valid: Tensor, variances: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Usable valid matches first, in their order, padding 0, in float64; also mask, variances and the permutation."""
    # also False for NaN
    valid = valid & (points0.abs() <= FARTHEST).all(-1) & (points1.abs() <= FARTHEST).all(-1)
    order = torch.argsort((~valid).to(torch.uint8), dim=1, stable=True)
    pair = order[..., None].expand(-1, -1, 2)
    points0, points1 = (
        torch.where(valid[..., None], points, 0.0).double().gather(1, pair) for points in (points0, points1)
    )
    if variances is not None:
        variances = torch.where(valid, variances.double(), 1.0).gather(1, order)
    return points0, points1, valid.gather(1, order), variances, order


def _finish(
    h: Tensor, prepared: tuple[NormalisedMatches, Tensor, Tensor], config: RansacConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Verify models between normalised points; H in pixels (B, 3, 3), inliers (B, K) and ok (B,)."""
    matches, t0, t1 = prepared
    inliers, ok = verify_homography(
        h,
        matches.points0,
        matches.points1,
        (matches.unit0, matches.unit1),
        matches.weights > 0,
        config.threshold,
        config.min_inliers,
    )
    pixels = unit_norm(adjugate(t1) @ h @ t0)
    ok = ok & (pixels[:, 2, 2].abs() > 1e-12)  # or the origin maps to infinity and H[2, 2] cannot be 1
    eye = torch.eye(3, dtype=pixels.dtype, device=pixels.device)
    pixels = torch.where(ok[:, None, None], pixels, eye)
    return pixels / pixels[:, 2:, 2:], inliers & ok[:, None], ok


def batched_ransac(
    points0: Tensor,
    points1: Tensor,
    valid: Tensor,
    config: RansacConfig | None = None,
    variances: Tensor | None = None,
) -> BatchedHomography:
    """Estimate a homography for each item of a batch of matches.

    The work runs on the device of the inputs with one read-back per block of samples for the whole batch. An item's
    result depends on its valid matches, their order and the settings; not on the other items nor on the padding
    (up to the rounding of sums).

    Args:
        points0: (B, K, 2) floating point, matched points of image 0, pixels. What is not valid may hold anything.
        points1: (B, K, 2) floating point, image 1.
        valid: (B, K) bool. A match with a coordinate that is not finite, or beyond ``FARTHEST``, counts as invalid.
        config: settings.
        variances: (B, K) floating point, of the matches' residuals, positive where valid, up to a common factor; all
            equal without.

    Returns:
        The homographies. An item with too few matches, or without a significant model, has ok False.

    Raises:
        ShapeError: shapes, dtypes or devices do not fit together.
    """
    _check(points0, points1, valid)
    if variances is not None and (variances.shape != valid.shape or variances.device != valid.device):
        raise ShapeError(
            f"variances is {tuple(variances.shape)} on {variances.device}; "
            f"expected {tuple(valid.shape)} on {valid.device}"
        )
    config = config or RansacConfig()
    batch, device = len(valid), valid.device
    if valid.numel() == 0:
        eye = torch.eye(3, dtype=torch.float64, device=device).repeat(batch, 1, 1)
        nothing = torch.zeros(batch, dtype=torch.int64, device=device)
        return BatchedHomography(eye, torch.zeros_like(valid), nothing > 0, nothing)
    x0, x1, mask, variances, order = _compact(points0, points1, valid, variances)
    prepared = prepare(x0, x1, mask, config.threshold, variances)
    found, fits, iterations = search(prepared[0], config)
    h, inliers, ok = _finish(polish(found, prepared[0], config.threshold), prepared, config)
    lost = inliers.sum(1) < KEPT * fits
    if lost.any():  # rarely: the last fit may follow an exact few, which do not determine it
        before = _finish(found, prepared, config)
        lost &= inliers.sum(1) < KEPT * before[1].sum(1)
        h = torch.where(lost[:, None, None], before[0], h)
        inliers, ok = torch.where(lost[:, None], before[1], inliers), torch.where(lost, before[2], ok)
    return BatchedHomography(h, torch.zeros_like(valid).scatter(1, order, inliers), ok, iterations)
