"""Matchers, by name: ``MATCHERS.get("mnn")``."""

from __future__ import annotations

import numpy as np

from frontend.errors import ShapeError
from frontend.matching.base import MATCHERS, BatchedMatches, Matcher
from frontend.types import Features, Matches

__all__ = ["MATCHERS", "BatchedMatches", "Matcher", "match_features"]


def match_features(
    features0: Features,
    features1: Features,
    *,
    matcher: str = "mnn",
    ratio: float | None = None,
    min_similarity: float | None = None,
    device: str = "cpu",
) -> Matches:
    """Match the features of two images.

    Args:
        features0: of image 0.
        features1: of image 1.
        matcher: a name in the registry of matchers.
        ratio: see the matcher.
        min_similarity: see the matcher.
        device: where to match.

    Returns:
        The matches, in the order of the keypoints of image 0.

    Raises:
        ShapeError: the descriptors have different dimensions.
        RegistryError: the matcher is unknown.
    """
    dimensions = features0.descriptors.shape[1], features1.descriptors.shape[1]
    if dimensions[0] != dimensions[1]:
        raise ShapeError(
            f"descriptors of image 0 have {dimensions[0]} dimensions and of image 1 {dimensions[1]}; "
            "expected the same model for both"
        )
    if matcher == "mnn" and str(device) == "cpu":
        from frontend.matching.nearest_cpu import mutual_nearest_neighbours

        return mutual_nearest_neighbours(
            features0.descriptors, features1.descriptors, ratio=ratio, min_similarity=min_similarity
        )
    import torch

    descriptors = [torch.from_numpy(np.ascontiguousarray(f.descriptors)).to(device) for f in (features0, features1)]
    valid = [torch.ones(1, len(d), dtype=torch.bool, device=device) for d in descriptors]
    found = MATCHERS.get(matcher)(
        descriptors[0][None], valid[0], descriptors[1][None], valid[1], ratio=ratio, min_similarity=min_similarity
    )
    second = found.index[0].cpu().numpy()
    first = np.flatnonzero(second >= 0)
    return Matches(np.stack([first, second[first]], axis=1), found.scores[0].cpu().numpy()[first])
