"""Mutual nearest neighbours as a matcher: in NumPy on a CPU, in torch elsewhere."""

from __future__ import annotations

import numpy as np

from frontend.device import pick_name
from frontend.matching.base import MATCHERS
from frontend.matching.nearest_cpu import mutual_nearest_neighbours
from frontend.types import Features, Matches


@MATCHERS.register("mnn")
def match_mutual(
    features0: Features,
    features1: Features,
    *,
    ratio: float | None = None,
    min_similarity: float | None = None,
    device: str = "cpu",
) -> Matches:
    """Match descriptors that are each other's nearest: :func:`frontend.matching.nearest.mutual_nearest_neighbours`.

    Scores are cosines.
    """
    picked = pick_name(device)
    if picked.type == "cpu":
        return mutual_nearest_neighbours(
            features0.descriptors, features1.descriptors, ratio=ratio, min_similarity=min_similarity
        )
    import torch

    from frontend.matching import nearest

    there = torch.device(str(picked))
    descriptors = [torch.from_numpy(np.ascontiguousarray(f.descriptors)).to(there) for f in (features0, features1)]
    valid = [torch.ones(1, len(d), dtype=torch.bool, device=there) for d in descriptors]
    found = nearest.mutual_nearest_neighbours(
        descriptors[0][None], valid[0], descriptors[1][None], valid[1], ratio=ratio, min_similarity=min_similarity
    )
    second = found.index[0].cpu().numpy()
    first = np.flatnonzero(second >= 0)
    return Matches(np.stack([first, second[first]], axis=1), found.scores[0].cpu().numpy()[first])
