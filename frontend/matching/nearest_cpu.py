"""Mutual nearest neighbours in NumPy, for one pair of images on a CPU."""

from __future__ import annotations

import threading

import numpy as np

from frontend.matching.base import LEAST_DISTANCE, check_limits
from frontend.types import Float32Array, Matches

# similarities held at once: 2 MiB of float32, which stay in a cache between the product and what reads them
BLOCK = 512 * 1024
_ROWS = 128  # at least, or the product would be slow

_local = threading.local()


def _workspace(rows: int, columns: int) -> Float32Array:
    """(rows, columns) float32, this thread's own: fresh memory would cost half as much as the product."""
    size = rows * columns
    if getattr(_local, "size", 0) < size:
        _local.array, _local.size = np.empty(size, np.float32), size
    array: Float32Array = _local.array[:size].reshape(rows, columns)
    return array


def mutual_nearest_neighbours(
    descriptors0: Float32Array,
    descriptors1: Float32Array,
    *,
    ratio: float | None = None,
    min_similarity: float | None = None,
    block: int | None = None,
) -> Matches:
    """Match descriptors that are each other's nearest: :func:`frontend.matching.nearest.mutual_nearest_neighbours`.

    Args:
        descriptors0: (N0, D) float32, of unit norm; a keypoint whose descriptor is not finite has no match.
        descriptors1: (N1, D) float32, of unit norm.
        ratio: as there.
        min_similarity: as there.
        block: similarities held at once; one row at least. Some 2 MiB of them where None.

    Returns:
        The matches, in the order of image 0; of equal similarities the first. Where descriptors are equal
        to the bit, others than there may be the first: a column goes to the first row that chose it.

    Raises:
        ConfigError: ratio or min_similarity is out of range.
    """
    check_limits(ratio, min_similarity)
    rows, columns = len(descriptors0), len(descriptors1)
    if rows == 0 or columns == 0:
        return Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
    nearest = np.empty(rows, np.int64)
    first, second = np.empty(rows, np.float32), np.full(rows, -2.0, np.float32)
    highest = np.full(columns, -np.inf, np.float32)
    step = min(rows, max(BLOCK // columns, _ROWS) if block is None else max(block // columns, 1))
    held = _workspace(step, columns)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite, seen to below
            similarity = np.matmul(descriptors0[start : start + count], descriptors1.T, out=held[:count])
        part, every = slice(start, start + count), np.arange(count)
        np.maximum(highest, similarity.max(axis=0), out=highest)
        nearest[part] = similarity.argmax(axis=1)
        first[part] = similarity[every, nearest[part]]
        if ratio is not None and columns > 1:
            similarity[every, nearest[part]] = -2.0
            second[part] = similarity.max(axis=1)
    if not np.isfinite(first).all():
        # a NaN goes through every maximum, and so is the nearest of all descriptors of the other image
        finite0, finite1 = (np.flatnonzero(np.isfinite(d).all(axis=1)) for d in (descriptors0, descriptors1))
        if len(finite0) < rows or len(finite1) < columns:
            found = mutual_nearest_neighbours(
                descriptors0[finite0], descriptors1[finite1], ratio=ratio, min_similarity=min_similarity, block=block
            )
            pairs = np.stack([finite0[found.matches[:, 0]], finite1[found.matches[:, 1]]], axis=1)
            return Matches(pairs, found.match_scores)
    keep = first >= highest[nearest]
    if min_similarity is not None:
        keep &= first >= min_similarity
    if ratio is not None:
        # |a - b|^2 = 2 - 2 cos; a lone candidate has no second and passes
        near, far = (np.maximum(1 - cosine, LEAST_DISTANCE) for cosine in (first, second))
        keep &= (near < ratio**2 * far) | (second <= -2.0)
    index = np.flatnonzero(keep)
    # two rows may be equally near to one column
    _, once = np.unique(nearest[index], return_index=True)
    index = index[np.sort(once)]
    return Matches(np.stack([index, nearest[index]], axis=1), first[index])
