"""What crosses the public boundary: arrays that belong together, compared by identity."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from frontend.errors import ShapeError
from frontend.types import Features, Homography, Matches, MatchResult, Pose, Status


def features(count: int = 4) -> Features:
    rows = np.eye(count, 8, dtype=np.float32)
    return Features(np.zeros((count, 2), np.float32), np.ones(count, np.float32), rows, (64, 48), "m")


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("keypoints", np.zeros((3, 2)), "keypoints (3, 2), scores (4,), descriptors (4, 8)"),
        ("keypoints", np.zeros((4, 3)), "keypoints (4, 3), scores (4,), descriptors (4, 8)"),
        ("keypoints", np.zeros(8), "keypoints (8,), scores (4,), descriptors (4, 8)"),
        ("scores", np.zeros((4, 1)), "keypoints (4, 2), scores (4, 1), descriptors (4, 8)"),
        ("scores", [1.0] * 4, "keypoints (4, 2), scores list, descriptors (4, 8)"),
        ("descriptors", np.zeros((10, 8)), "keypoints (4, 2), scores (4,), descriptors (10, 8)"),
        ("descriptors", np.zeros(4), "keypoints (4, 2), scores (4,), descriptors (4,)"),
        ("descriptors", None, "keypoints (4, 2), scores (4,), descriptors NoneType"),
        ("sigmas", np.zeros(5), "keypoints (4, 2), scores (4,), descriptors (4, 8), sigmas (5,)"),
    ],
)
def test_arrays_of_features_belong_together(name: str, wrong: Any, said: str) -> None:
    with pytest.raises(ShapeError) as caught:
        replace(features(), **{name: wrong})
    expected = "expected (N, 2), (N,), (N, D) and, where there are any, (N,)"
    assert str(caught.value) == f"features have {said}; {expected}"


def test_no_keypoints_and_no_descriptors_are_features() -> None:
    assert len(features(0)) == 0
    assert len(replace(features(), sigmas=np.ones(4, np.float32), descriptors=np.zeros((4, 0), np.float32))) == 4


def test_results_are_compared_and_hashed_by_identity() -> None:
    one = features()
    matches = Matches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
    geometry = Homography(np.eye(3), np.zeros(0, np.bool_), Status.OK)
    for given in (one, matches, geometry, Pose(np.eye(3), np.zeros(3)), MatchResult(one, one, matches, geometry)):
        other = copy.deepcopy(given)
        assert given == given
        assert given != other
        assert len({given, other, given}) == 2
