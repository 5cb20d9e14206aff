"""MixToken (Jiang et al. 2021, arXiv:2104.10858, section 3.3): a rectangle of an image's tokens is another image's.

Unlike CutMix, which cuts the images, it cuts behind the patch embedding, so that every token shows one image alone.
Targets go with the tokens. Which cells are replaced, and whose take their place, is drawn with each sample from its
number; nothing here is random.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from frontend.heads import CELL
from frontend.homography import warp_points
from frontend.types import BoolArray


class Pasting(NamedTuple):
    """Which cells of which image of a batch come from another.

    Attributes:
        mask: (N, h, w) bool, cells that come from the other image.
        source: (N,) int64, the other image.
    """

    mask: Tensor
    source: Tensor


class CellTargets(NamedTuple):
    """Targets of the detector.

    Attributes:
        labels: (N, h, w) int64 in [0, 64].
        mask: (N, h, w) bool, cells that count.
        soft: (N, 65, h, w) float32 soft labels; None where the batch has none.
    """

    labels: Tensor
    mask: Tensor
    soft: Tensor | None


def rectangle(rng: np.random.Generator, grid: tuple[int, int], probability: float) -> BoolArray:
    """Draw the cells to be replaced, as CutMix does (Yun et al. 2019, arXiv:1905.04899, equation 2).

    The share kept is uniform in [0, 1], Beta(1, 1); the rectangle has the grid's shape and the rest of its area,
    rounded to whole cells; its centre is uniform over the grid, and what lies outside is cut off.

    Args:
        rng: source of randomness; as many numbers are drawn whether cells are replaced or not.
        grid: (width, height), cells.
        probability: that any are replaced.

    Returns:
        (height, width) bool.
    """
    happens = rng.random() < probability
    side = float(np.sqrt(1 - rng.beta(1.0, 1.0)))
    extent = np.rint(np.array(grid) * side).astype(int)
    centre = (rng.random(2) * np.array(grid)).astype(int)
    low = centre - extent // 2
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(low + extent, np.array(grid))
    cells = np.zeros((grid[1], grid[0]), dtype=bool)
    cells[y0:y1, x0:x1] = happens
    return cells


def pasting(batch: dict[str, Tensor]) -> Pasting | None:
    """What is to be mixed in a batch of pairs; None where nothing ever is.

    Image i takes from image (i + 1 + partner_i mod (N - 1)) mod N: any but itself, all alike.

    Args:
        batch: with ``pasted`` (B, 2, h, w) bool and ``partner`` (B, 2) int64, or without; N is 2 B.
    """
    if "pasted" not in batch:
        return None
    mask, partner = batch["pasted"].flatten(0, 1), batch["partner"].flatten()
    own = torch.arange(len(mask), device=mask.device)
    return Pasting(mask, (own + 1 + partner % (len(mask) - 1)) % len(mask))


def paste(values: Tensor, mixed: Pasting) -> Tensor:
    """Replace the pasted cells by those of the other images: T_1 (1 - M) + T_2 M.

    Args:
        values: (N, ..., k h, k w), k values along each side of a cell: 1 for tokens, labels and masks, 8 for images.
        mixed: which cells, and whose.

    Returns:
        Of the same shape.
    """
    mask = mixed.mask
    scale = values.shape[-1] // mask.shape[-1]
    if scale > 1:
        mask = mask.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    mask = mask.reshape(len(mask), *(1,) * (values.ndim - 3), *mask.shape[1:])
    return torch.where(mask, values[mixed.source], values)


def cell_targets(batch: dict[str, Tensor], mixed: Pasting | None) -> CellTargets:
    """The detector's targets for all images of a batch of pairs, mixed as their tokens are.

    Args:
        batch: of :class:`frontend.training.datasets.WarpedPairs`.
        mixed: see :func:`pasting`.
    """
    labels, mask = batch["labels"].flatten(0, 1).long(), batch["mask"].flatten(0, 1)
    soft = batch["soft"].flatten(0, 1) if "soft" in batch else None
    if mixed is None:
        return CellTargets(labels, mask, soft)
    return CellTargets(paste(labels, mixed), paste(mask, mixed), None if soft is None else paste(soft, mixed))


def _on_pasted(points: Tensor, mask: Tensor) -> Tensor:
    """Which of (N, K, 2) points lie in a cell of the (N, h, w) mask: (N, K) bool, False outside the image."""
    height, width = mask.shape[1:]
    cells = ((points + 0.5) / CELL).floor()
    x, y = cells[..., 0], cells[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = torch.where(inside, y * width + x, torch.zeros_like(x)).long()
    return mask.flatten(1).gather(1, index) & inside


def without_pasted(batch: dict[str, Tensor], mixed: Pasting) -> dict[str, Tensor]:
    """A batch of pairs without what its mixed images no longer show.

    A correspondence is left out where its point lies in a pasted cell of either view. So is a pasted cell from
    ``mask``, for the losses over pairs of cells; the detector's mask is that of :func:`cell_targets`.

    Args:
        batch: of :class:`frontend.training.datasets.WarpedPairs`.
        mixed: see :func:`pasting`.
    """
    points, valid = batch["points"], batch["valid"]
    hidden = _on_pasted(points.flatten(0, 1), mixed.mask).reshape(*points.shape[:3]).any(dim=1)
    mask = batch["mask"] & ~mixed.mask.reshape(batch["mask"].shape)
    return {**batch, "valid": valid & ~hidden, "mask": mask}


def clear_of_pasted(keypoints: Tensor, H: Tensor, mixed: Pasting) -> Tensor:
    """Which detected keypoints of mixed pairs count: those in no pasted cell, neither in their own view nor where the
    other view would show them.

    Args:
        keypoints: (2 B, K, 2) pixels, the views of a pair one after the other.
        H: (B, 3, 3), first view to second.
        mixed: see :func:`pasting`.

    Returns:
        (2 B, K) bool.
    """
    both = keypoints.reshape(-1, 2, *keypoints.shape[1:])
    there = torch.stack([warp_points(both[:, 0], H), warp_points(both[:, 1], torch.linalg.inv(H))], dim=1)
    other = mixed.mask.reshape(-1, 2, *mixed.mask.shape[1:]).flip(1).flatten(0, 1)
    return ~(_on_pasted(keypoints, mixed.mask) | _on_pasted(there.flatten(0, 1), other))
