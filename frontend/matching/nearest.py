"""Mutual nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from frontend.errors import ShapeError
from frontend.matching.base import LEAST_DISTANCE, BatchedMatches, check_limits

# similarities held at once, for each image pair: 64 MiB of float32
BLOCK = 4096 * 4096
_PADDING = -2.0  # below any cosine


def mutual_nearest_neighbours(
    descriptors0: Tensor,
    valid0: Tensor,
    descriptors1: Tensor,
    valid1: Tensor,
    *,
    ratio: float | None = None,
    min_similarity: float | None = None,
    block: int = BLOCK,
) -> BatchedMatches:
    """Match descriptors that are each other's nearest neighbour.

    The similarity matrix is worked through in blocks of rows, so that no more than ``block`` of its entries exist
    at once for each pair of images (one row at least).

    Args:
        descriptors0: (B, K0, D) float, of unit norm; a keypoint whose descriptor is not finite has no match.
        valid0: (B, K0) bool.
        descriptors1: (B, K1, D) float, of unit norm.
        valid1: (B, K1) bool.
        ratio: of the distance to the nearest and to the second-nearest descriptor of image 1; matches at or above
            it are dropped (Lowe 2004, section 7.1), as are those whose two distances are both nothing. In (0, 1].
        min_similarity: cosine that a match reaches at least, in [-1, 1].
        block: similarities held at once.

    Returns:
        For every row of image 0, its match and its cosine.

    Raises:
        ShapeError: the arrays do not fit each other.
        ConfigError: ratio or min_similarity is out of range.
    """
    _check(descriptors0, valid0, descriptors1, valid1, ratio, min_similarity)
    batch, rows, columns = len(descriptors0), descriptors0.shape[1], descriptors1.shape[1]
    device = descriptors0.device
    # a NaN would be the nearest of all descriptors of the other image: it goes through every maximum
    valid0, valid1 = valid0 & descriptors0.isfinite().all(-1), valid1 & descriptors1.isfinite().all(-1)
    index = torch.full((batch, rows), -1, dtype=torch.long, device=device)
    scores = torch.zeros((batch, rows), device=device)
    if rows == 0 or columns == 0:
        return BatchedMatches(index, scores)
    first, second = torch.full_like(scores, _PADDING), torch.full_like(scores, _PADDING)
    nearest = torch.zeros_like(index)
    best_column = torch.full((batch, columns), _PADDING, device=device)
    best_row = torch.zeros((batch, columns), dtype=torch.long, device=device)
    transposed = descriptors1.transpose(1, 2)
    step = max(block // columns, 1)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        similarity = (descriptors0[:, part] @ transposed).float()
        similarity.masked_fill_(~valid0[:, part, None] | ~valid1[:, None, :], _PADDING)
        if ratio is not None and columns > 1:
            top, where = similarity.topk(2, dim=2)
            first[:, part], second[:, part], nearest[:, part] = top[..., 0], top[..., 1], where[..., 0]
        else:
            first[:, part], nearest[:, part] = similarity.max(dim=2)
        value, row = similarity.max(dim=1)
        better = value > best_column
        best_column = torch.where(better, value, best_column)
        best_row = torch.where(better, row + start, best_row)
    keep = best_row.gather(1, nearest) == torch.arange(rows, device=device)
    keep &= first > _PADDING
    if min_similarity is not None:
        keep &= first >= min_similarity
    if ratio is not None:
        # |a - b|^2 = 2 - 2 cos; a lone candidate has no second and passes
        near, far = ((1 - cosine).clamp(min=LEAST_DISTANCE) for cosine in (first, second))
        keep &= (near < ratio**2 * far) | (second <= _PADDING)
    return BatchedMatches(torch.where(keep, nearest, index), torch.where(keep, first, scores))


def _check(
    descriptors0: Tensor,
    valid0: Tensor,
    descriptors1: Tensor,
    valid1: Tensor,
    ratio: float | None,
    min_similarity: float | None,
) -> None:
    shapes = [tuple(t.shape) for t in (descriptors0, valid0, descriptors1, valid1)]
    if (
        descriptors0.ndim != 3
        or descriptors1.ndim != 3
        or shapes[0][:2] != shapes[1]
        or shapes[2][:2] != shapes[3]
        or shapes[0][0] != shapes[2][0]
        or shapes[0][2] != shapes[2][2]
    ):
        raise ShapeError(
            f"got descriptors {shapes[0]} and {shapes[2]} with masks {shapes[1]} and {shapes[3]}; "
            "expected (B, K0, D), (B, K1, D), (B, K0) and (B, K1)"
        )
    check_limits(ratio, min_similarity)
