"""Each other's most similar among rows and columns that are too many for all their pairs to be in memory at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from frontend.types import Float32Array, IntArray

NEVER = np.float32(-2.0)
"""A similarity that no pair has: of those that may not be taken."""

_BLOCK = 1 << 20  # pairs that are looked at in one go


def mutual_best(count: int, columns: int, similarity: Callable[[slice], Float32Array]) -> tuple[IntArray, IntArray]:
    """Rows and columns that are each other's most similar.

    Args:
        count: of rows.
        columns: of columns, 1 or more.
        similarity: gives those of a slice of the rows to all columns, (n, columns) float32, ``NEVER`` for pairs that
            may not be taken.

    Returns:
        Two (M,) int64, rows rising.
    """
    best, rival = np.zeros(count, np.int64), np.zeros(columns, np.int64)
    highest, rival_highest = np.zeros(count, np.float32), np.full(columns, NEVER)
    step = max(_BLOCK // columns, 1)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        values = similarity(block)
        best[block] = values.argmax(axis=1)
        highest[block] = values.max(axis=1)
        challenger = values.argmax(axis=0)
        level = values.max(axis=0)
        wins = level > rival_highest
        rival[wins], rival_highest[wins] = challenger[wins] + start, level[wins]
    own = np.arange(count)
    mutual = (rival[best] == own) & (highest > NEVER)
    return own[mutual], best[mutual]
