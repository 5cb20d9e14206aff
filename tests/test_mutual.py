"""Each other's best in blocks: those of the whole matrix, in memory that does not grow with it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from frontend import mutual
from frontend.camera import Camera
from frontend.mutual import NEVER, mutual_best
from frontend.stereo import StereoRig, match_stereo
from frontend.types import Features


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_blocks_give_what_the_whole_gives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutual, "_BLOCK", block)
    values = np.random.default_rng(0).uniform(-1, 1, (31, 17)).astype(np.float32)
    values[:, 3] = NEVER
    values[5] = NEVER
    rows, columns = mutual_best(31, 17, lambda part: values[part])
    expected = [
        (i, int(row.argmax()))
        for i, row in enumerate(values)
        if row.max() > NEVER and values[:, row.argmax()].argmax() == i
    ]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert len(expected) > 5


def test_memory_of_a_stereo_pair_is_bounded() -> None:
    """4,096 keypoints on each side have 16.8 million pairs, of which eight bytes each would be 134 MB."""
    rng = np.random.default_rng(0)
    camera = Camera(np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]))
    rig = StereoRig(camera, camera, np.eye(3), np.array([-0.1, 0, 0]))
    rows = rng.normal(size=(4096, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    points = rng.uniform((40, 0), (640, 480), (4096, 2)).astype(np.float32)
    scores = np.ones(4096, np.float32)
    left, right = (Features(points - [shift, 0], scores, rows, (640, 480)) for shift in (0, 10))
    tracemalloc.start()
    found = match_stereo(left, right, rig)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.rows) > 3900
    assert most < 80e6
