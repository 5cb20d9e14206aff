"""Losses of the detector and the descriptor (DeTone et al. 2018, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from frontend.heads import CELL
from frontend.homography import warp_points
from frontend.keypoints import refine_subpixel, window_values
from frontend.training.distributed import mean_over_ranks, world_size


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask``; 0 where there is none. Same shapes; a scalar.

    In a run of several processes the count is that of all of them, so that the mean over ranks of what they get is the
    mean over all values.
    """
    weight = mask.to(values.dtype)
    count: Tensor = mean_over_ranks(weight.sum()).clamp_min(1 / world_size())
    return (values * weight).sum() / count


def detector_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy over the 65 classes of each cell (equations 2 and 3).

    Args:
        logits: (B, 65, h, w) float.
        labels: (B, h, w) int64 in [0, 64]; 64 is the dustbin.
        mask: (B, h, w) bool, cells that count.

    Returns:
        Scalar: the mean over the cells that count.
    """
    return masked_mean(functional.cross_entropy(logits.float(), labels, reduction="none"), mask)


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of the 8 x 8 cells of an image, (h * w, 2) float32 pixels, row by row."""
    x = torch.arange(width, device=device, dtype=torch.float32) * CELL + (CELL - 1) / 2
    y = torch.arange(height, device=device, dtype=torch.float32) * CELL + (CELL - 1) / 2
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def hinge_descriptor_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H: Tensor,
    mask0: Tensor,
    mask1: Tensor,
    *,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    lambda_d: float = 250.0,
    radius: float = 8.0,
) -> Tensor:
    """Hinge loss over all pairs of cells (equations 4 to 6).

    A pair of cells is positive where the centre of the one, warped by H, falls within ``radius`` of the centre
    of the other. Descriptors are normalised first.

    Args:
        descriptors0: (B, D, h, w).
        descriptors1: (B, D, h, w).
        H: (B, 3, 3), image 0 to image 1.
        mask0: (B, h, w) bool, cells of image 0 that count.
        mask1: (B, h, w) bool, cells of image 1 that count.
        positive_margin: m_p.
        negative_margin: m_n.
        lambda_d: weight of positive pairs, which are few.
        radius: pixels.

    Returns:
        Scalar: the sum over pairs that count, divided by their number.
    """
    height, width = descriptors0.shape[-2:]
    centres = cell_centres(height, width, descriptors0.device)
    warped = warp_points(centres[None], H.float())
    positive = torch.cdist(warped, centres.expand_as(warped)) <= radius
    flat0 = functional.normalize(descriptors0.float().flatten(2), dim=1)
    flat1 = functional.normalize(descriptors1.float().flatten(2), dim=1)
    similarity = flat0.transpose(1, 2) @ flat1
    pull = lambda_d * (positive_margin - similarity).clamp_min(0)
    push = (similarity - negative_margin).clamp_min(0)
    counts = mask0.flatten(1)[:, :, None] & mask1.flatten(1)[:, None, :]
    return masked_mean(torch.where(positive, pull, push), counts)


def dual_softmax_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    points0: Tensor,
    points1: Tensor,
    valid: Tensor,
    *,
    temperature: float = 0.05,
    exclusion: float = 6.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of correspondences along rows and columns of their similarity matrix.

    The symmetric form of InfoNCE with both softmaxes over one matrix, as in dual-softmax matchers. Other points
    nearer than ``exclusion`` in either image are no negatives: their descriptors ought to be alike.

    Args:
        descriptors0: (B, N, D) of unit norm, at ``points0``.
        descriptors1: (B, N, D) of unit norm, at ``points1``.
        points0: (B, N, 2) pixels of image 0.
        points1: (B, N, 2) pixels of image 1; row n corresponds to row n.
        valid: (B, N) bool, rows that are correspondences and not padding.
        temperature: divides the similarities.
        exclusion: pixels.

    Returns:
        The loss, and the share of valid rows whose nearest neighbour is right, both scalars.
    """
    similarity = (descriptors0.float() @ descriptors1.float().transpose(1, 2)) / temperature
    near = (torch.cdist(points0, points0) < exclusion) | (torch.cdist(points1, points1) < exclusion)
    own = torch.eye(points0.shape[1], dtype=torch.bool, device=points0.device)
    padding = ~(valid[:, :, None] & valid[:, None, :])
    # a finite floor: rows of padding keep their own entry and stay free of NaN
    similarity = similarity.masked_fill((near | padding) & ~own, -1e4)
    target = torch.arange(points0.shape[1], device=points0.device).expand(valid.shape)
    rows = functional.cross_entropy(similarity.transpose(1, 2), target, reduction="none")
    columns = functional.cross_entropy(similarity, target, reduction="none")
    with torch.no_grad():
        accuracy = masked_mean((similarity.argmax(dim=2) == target).float(), valid)
    return masked_mean((rows + columns) / 2, valid), accuracy


def position_loss(heat: Tensor, points: Tensor, valid: Tensor, H: Tensor, radius: int = 2) -> Tensor:
    """How far apart corresponding keypoints end up after sub-pixel refinement.

    The heat map about each labelled point is reduced to its centre of mass, as at inference; the two centres of a
    correspondence, carried into each other's view, ought to coincide. The label's own position does not enter, so the
    detector may settle where it can be found again (after the reprojection loss of ALIKE, Zhao et al. 2022).

    Args:
        heat: (B, 2, H, W) float32 heat maps of both views.
        points: (B, 2, N, 2) pixels, corresponding points.
        valid: (B, N) bool.
        H: (B, 3, 3), view 0 to view 1.
        radius: of the window, pixels.

    Returns:
        Scalar: mean distance in pixels, over both directions; each counts up to ``radius`` and a half.
    """
    batch, _, count, _ = points.shape
    start = points.round().reshape(batch * 2, count, 2)
    refined = refine_subpixel(heat.flatten(0, 1), start, radius).reshape(points.shape)
    forward = warp_points(refined[:, 0], H) - refined[:, 1]
    backward = warp_points(refined[:, 1], torch.linalg.inv(H)) - refined[:, 0]
    # squared near zero, so that the gradient does not jump there
    squared = torch.stack([forward, backward]).square().sum(dim=-1)
    distance = (squared + 0.01).sqrt() - 0.1
    return masked_mean(distance.clamp_max(radius + 0.5).mean(dim=0), valid)


def peak_loss(heat: Tensor, points: Tensor, valid: Tensor, radius: int = 2) -> Tensor:
    """How widely the heat map is spread about labelled points (the dispersity peak loss of ALIKE, Zhao et al. 2022).

    The window's values, scaled to sum to 1, are weights of its pixels' distances to the label: a single peak there
    costs least.

    Args:
        heat: (B, H, W) float32 heat maps.
        points: (B, N, 2) labelled points, pixels.
        valid: (B, N) bool, points that count.
        radius: of the window about the nearest pixel, pixels.

    Returns:
        Scalar: mean over the points of the expected distance in pixels.
    """
    dx, dy, weight = window_values(heat, points.round(), radius)
    off = points.round() - points
    distance = torch.hypot(off[..., :1] + dx, off[..., 1:] + dy)
    return masked_mean((weight * distance).sum(dim=-1) / weight.sum(dim=-1).clamp_min(1e-12), valid)
