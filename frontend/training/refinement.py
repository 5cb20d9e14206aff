"""Losses on what is detected: position, its uncertainty, repetition and matching of the network's own keypoints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from frontend.homography import warp_points
from frontend.training.distributed import mean_over_ranks, world_size
from frontend.training.losses import masked_mean

MATCHED = 4.0
"""Keypoints of two views that are nearest to each other and nearer than this, in pixels, are taken for one point."""
REPEATED = 2.0
"""The same, for the keypoint to count as repeated, and its descriptors as a pair to pull together."""


NEAR = 9.0
"""Keypoints that are farther apart than ``MATCHED`` and nearer than this, in pixels, must not look alike."""
NEAR_SIMILARITY = 0.3
"""Cosine up to which they may."""


class Correspondence(NamedTuple):
    """How the keypoints of two views correspond.

    Attributes:
        distances: (B, K, K), the larger of the distances in the two views, pixels; large where a keypoint is padding.
        partner: (B, K) int64, nearest keypoint of view 1 for each of view 0.
        mutual: (B, K) bool, where the partner's nearest is the keypoint itself, nearer than ``MATCHED``.
    """

    distances: Tensor
    partner: Tensor
    mutual: Tensor


def correspond(points: Tensor, valid: Tensor, H: Tensor) -> Correspondence:
    """Find the keypoints that show the same point, from the known homography.

    Args:
        points: (B, 2, K, 2) pixels.
        valid: (B, 2, K) bool.
        H: (B, 3, 3), view 0 to view 1.
    """
    forward = torch.cdist(warp_points(points[:, 0], H), points[:, 1])
    backward = torch.cdist(points[:, 0], warp_points(points[:, 1], torch.linalg.inv(H)))
    both = valid[:, 0, :, None] & valid[:, 1, None, :]
    distances = torch.maximum(forward, backward).masked_fill(~both, 1e4)
    nearest, partner = distances.min(dim=2)
    own = torch.arange(points.shape[2], device=points.device)
    mutual = (distances.argmin(dim=1).gather(1, partner) == own) & (nearest < MATCHED)
    return Correspondence(distances, partner, mutual)


def _partners(values: Tensor, partner: Tensor) -> Tensor:
    """View 1's values (B, K, C) in the order of view 0's keypoints."""
    return values.gather(1, partner[..., None].expand(-1, -1, values.shape[-1]))


def position_nll(points: Tensor, log_sigmas: Tensor, H: Tensor, pairs: Correspondence) -> Tensor:
    """Negative log-likelihood of the distance between corresponding refined keypoints.

    The two-dimensional Laplace density exp(-d / s) / (2 pi s^2) has a variance of 3 s^2 along an axis, so s^2 is a
    third of the sum of both keypoints' variances: sure keypoints pay for their distance, unsure ones for being unsure.

    Args:
        points: (B, 2, K, 2) refined pixels.
        log_sigmas: (B, 2, K).
        H: (B, 3, 3), view 0 to view 1.
        pairs: the correspondence; its mutual ones count.

    Returns:
        Scalar, without the constant log(2 pi); the distance is the mean of those in the two views.
    """
    other = _partners(points[:, 1], pairs.partner)
    forward = warp_points(points[:, 0], H) - other
    backward = warp_points(other, torch.linalg.inv(H)) - points[:, 0]
    # the small constant keeps the gradient finite where the distance is zero
    distance = ((forward.square().sum(-1) + 1e-3).sqrt() + (backward.square().sum(-1) + 1e-3).sqrt()) / 2
    variance = (2 * log_sigmas[:, 0]).exp() + (2 * log_sigmas[:, 1].gather(1, pairs.partner)).exp()
    scale = (variance / 3).sqrt()
    return masked_mean(distance / scale + 2 * scale.log(), pairs.mutual)


def repetition_loss(
    logits: Tensor, points: Tensor, valid: Tensor, H: Tensor, pairs: Correspondence, size: tuple[int, int], border: int
) -> Tensor:
    """Binary cross-entropy of "the other view shows this keypoint again, within ``REPEATED`` pixels".

    Args:
        logits: (B, 2, K).
        points: (B, 2, K, 2) pixels.
        valid: (B, 2, K) bool.
        H: (B, 3, 3), view 0 to view 1.
        pairs: the correspondence.
        size: (width, height) of the views.
        border: pixels along the edge without keypoints; what falls there or beyond counts for nothing.

    Returns:
        Scalar.
    """
    losses, counts = [], []
    limit = torch.tensor(size, device=points.device) - 1 - border
    for view, transform, axis in ((0, H, 2), (1, torch.linalg.inv(H), 1)):
        warped = warp_points(points[:, view], transform)
        seen = ((warped >= border) & (warped <= limit)).all(dim=-1) & valid[:, view]
        repeated = (pairs.distances.amin(dim=axis) < REPEATED).float()
        losses.append(functional.binary_cross_entropy_with_logits(logits[:, view], repeated, reduction="none"))
        counts.append(seen)
    return masked_mean(torch.stack(losses), torch.stack(counts))


def matching_loss(
    descriptors: Tensor, valid: Tensor, pairs: Correspondence, temperature: float
) -> tuple[Tensor, Tensor]:
    """Dual softmax over all detected keypoints of both views.

    Unlike :func:`frontend.training.losses.dual_softmax_loss` at given points, the negatives are what matching meets:
    every other keypoint, the neighbours a few pixels away and those without a partner among them.

    Args:
        descriptors: (B, 2, K, D) of unit norm.
        valid: (B, 2, K) bool.
        pairs: the correspondence; mutual ones within ``REPEATED`` are positives, other pairs within ``MATCHED`` count
            for nothing.
        temperature: divides the similarities.

    Returns:
        The loss, and the share of positives whose nearest descriptor is right, both scalars.
    """
    similarity = (descriptors[:, 0].float() @ descriptors[:, 1].float().transpose(1, 2)) / temperature
    partner = pairs.partner[..., None]
    positive = pairs.mutual & (pairs.distances.gather(2, partner)[..., 0] < REPEATED)
    own = torch.zeros_like(pairs.distances, dtype=torch.bool).scatter(2, partner, True) & positive[..., None]
    padding = ~(valid[:, 0, :, None] & valid[:, 1, None, :])
    similarity = similarity.masked_fill(((pairs.distances < MATCHED) & ~own) | padding, -1e4)
    rows = functional.log_softmax(similarity, dim=2).gather(2, partner)[..., 0]
    columns = functional.log_softmax(similarity, dim=1).gather(2, partner)[..., 0]
    with torch.no_grad():
        accuracy = masked_mean((similarity.argmax(dim=2) == pairs.partner).float(), positive)
    return masked_mean(-(rows + columns) / 2, positive), accuracy


def near_miss_loss(descriptors: Tensor, valid: Tensor, pairs: Correspondence) -> Tensor:
    """How alike the descriptors of keypoints are that lie a few pixels apart.

    Where neither of two neighbours is seen again, nothing else keeps them from being each other's nearest: a match a
    few pixels off, which robust estimators are slow to leave out, as one anywhere else is not.

    Args:
        descriptors: (B, 2, K, D) of unit norm.
        valid: (B, 2, K) bool.
        pairs: the correspondence.

    Returns:
        Scalar: what the cosines of pairs from ``MATCHED`` to ``NEAR`` pixels apart exceed ``NEAR_SIMILARITY`` by, their
        sum for each keypoint of a view.
    """
    similarity = descriptors[:, 0].float() @ descriptors[:, 1].float().transpose(1, 2)
    near = (pairs.distances >= MATCHED) & (pairs.distances < NEAR)
    count = mean_over_ranks(valid.sum() / 2).clamp_min(1 / world_size())
    over: Tensor = ((similarity - NEAR_SIMILARITY).clamp_min(0) * near).sum() / count
    return over
