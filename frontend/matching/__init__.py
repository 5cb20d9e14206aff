"""Matchers, by name: ``match_features(features0, features1, matcher="lightglue")``."""

from __future__ import annotations

import numpy as np

from frontend.errors import ConfigError, ShapeError
from frontend.matching.base import MATCHERS, BatchedMatches, Matcher, check_matcher, find_matcher
from frontend.types import Features, Matches

__all__ = [
    "MATCHERS",
    "BatchedMatches",
    "Matcher",
    "check_matcher",
    "find_matcher",
    "load_matcher_of",
    "match_features",
]


def load_matcher_of(
    model: str,
    descriptor_dim: int,
    *,
    matcher: str = "mnn",
    ratio: float | None = None,
    min_similarity: float | None = None,
    device: str = "cpu",
    brief: bool = False,
) -> None:
    """Load a matcher and run it once, on keypoints drawn at random; later matching finds it loaded.

    Args:
        model: whose features it is to match.
        descriptor_dim: D of their descriptors.
        matcher: as of :func:`match_features`.
        ratio: the same.
        min_similarity: the same.
        device: the same.
        brief: whether a pair of images is all that is to come, so that the time to load counts.

    Raises:
        FrontendError: it cannot match such features, or not with such limits; see :func:`match_features`.
    """
    check_matcher(matcher)
    if brief and (matcher == "lightglue" or matcher not in MATCHERS):
        from frontend.matching.lightglue import load_briefly

        load_briefly(matcher, model, device)
    rng = np.random.default_rng(0)
    descriptors = rng.standard_normal((8, descriptor_dim), np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    points = rng.uniform(0, 63, (8, 2)).astype(np.float32)
    features = Features(points, np.ones(8, np.float32), descriptors, (64, 64), model)
    match_features(features, features, matcher=matcher, ratio=ratio, min_similarity=min_similarity, device=device)


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
        matcher: "mnn" for mutual nearest neighbours, "lightglue" for the learned matcher that was released for the
            features' model, the path of a learned matcher's weights, or another name in the registry of matchers.
        ratio: see :func:`frontend.matching.nearest.mutual_nearest_neighbours`.
        min_similarity: the same; of a learned matcher the least probability of a match, .1 where None.
        device: where to match: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        The matches, in the order of the keypoints of image 0.

    Raises:
        ShapeError: the descriptors have different dimensions, or others than the matcher's.
        RegistryError: the matcher is unknown.
        WeightsError: there is no learned matcher for the features' model.
        ConfigError: the features are of different models; the matcher has no such limit, or it is out of range.
    """
    dimensions = features0.descriptors.shape[1], features1.descriptors.shape[1]
    if dimensions[0] != dimensions[1]:
        raise ShapeError(
            f"descriptors of image 0 have {dimensions[0]} dimensions and of image 1 {dimensions[1]}; "
            "expected the same model for both"
        )
    if features0.model != features1.model:
        raise ConfigError(
            f"features of image 0 are of model '{features0.model}' and of image 1 of '{features1.model}'; "
            "expected the same model for both"
        )
    found = find_matcher(matcher)
    return found(features0, features1, ratio=ratio, min_similarity=min_similarity, device=str(device))
