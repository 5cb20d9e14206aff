"""Tracks where a stream is not even: pauses, bursts, look-alikes that come and go, and few points."""

from __future__ import annotations

import numpy as np
import pytest
from test_tracking import SIZE, STEP, World

from frontend.errors import SequenceError
from frontend.tracking import Tracker, TrackerConfig
from frontend.types import Features


@pytest.mark.parametrize("pause_s", [0.5, 2.0, 5.0, 60.0])
def test_a_pause_does_not_move_what_stands_still(pause_s: float) -> None:
    """A camera that moved by some 100 pixels a second stops, and its next frame comes late."""
    world, tracker = World(), Tracker()
    for n in range(6):
        tracker.update(world.see(0.05 * n)[0], n * STEP)
    frame = tracker.update(world.see(0.25)[0], 5 * STEP + int(pause_s * 1e9))
    assert frame.new.mean() < 0.1


def test_stamps_in_bursts_do_not_throw_tracks_away() -> None:
    world, tracker, stamp = World(), Tracker(), 0
    for n in range(12):
        frame = tracker.update(world.see(0.02 * n)[0], stamp)
        stamp += 1_000_000 if n % 2 else 99_000_000
        if n:
            assert frame.new.mean() < 0.15, n


@pytest.mark.parametrize("hidden_share", [0.1, 0.5])
def test_what_comes_back_is_the_point_that_it_was(hidden_share: float) -> None:
    """Two points each look alike, as windows and tiles do; what was hidden does not come back as the other."""
    world, tracker = World(count=400), Tracker()
    world.descriptors[1::2] = world.descriptors[::2]
    rng = np.random.default_rng(1)
    point_of: dict[int, int] = {}
    right = wrong = 0
    gone: dict[int, int] = {}
    for n in range(20):
        hidden = rng.choice(400, int(hidden_share * 400), replace=False)
        features, seen = world.see(0.02 * n)
        shown = ~np.isin(seen, hidden)
        features = Features(features.keypoints[shown], features.scores[shown], features.descriptors[shown], SIZE)
        frame = tracker.update(features, n * STEP)
        for track, point in zip(frame.track_ids.tolist(), seen[shown].tolist(), strict=True):
            if track in point_of and gone.get(track, n) < n - 1:
                right, wrong = right + (point_of[track] == point), wrong + (point_of[track] != point)
            point_of[track], gone[track] = point, n
    assert right > 100
    assert wrong < 0.06 * (right + wrong), (right, wrong)


def test_few_points_of_which_some_move_keep_their_tracks() -> None:
    """Sixteen points, three of which move on their own: often no model is certain, and that is no other scene."""
    restarted = frames = 0
    for seed in range(10):
        world, tracker = World(count=16, seed=seed), Tracker()
        way = np.random.default_rng(seed).uniform(-20, 20, (16, 2)) * (np.arange(16) < 3)[:, None]
        for n in range(6):
            features, seen = world.see(0.1 * n)
            keypoints = np.clip(features.keypoints + way[seen] * n, 0, np.array(SIZE) - 1).astype(np.float32)
            frame = tracker.update(Features(keypoints, features.scores, features.descriptors, SIZE), n * STEP)
            if n and len(seen) >= 12:
                frames, restarted = frames + 1, restarted + (frame.new.mean() > 0.95)
    assert frames > 40
    assert restarted == 0


def test_images_of_a_sequence_keep_their_size() -> None:
    world, tracker = World(), Tracker()
    features, _ = world.see(0)
    tracker.update(features, 0)
    larger = Features(features.keypoints * 2, features.scores, features.descriptors, (1280, 960))
    with pytest.raises(SequenceError, match="frame is 1280 x 960; expected 640 x 480, as the frames before"):
        tracker.update(larger, STEP)
    # what was refused has left no trace
    assert tracker.update(features, STEP).new.mean() < 0.05


def test_nothing_is_remembered_of_gaps_where_none_are_allowed() -> None:
    world, tracker = World(), Tracker(TrackerConfig(max_gap=0))
    tracker.update(world.see(0)[0], 0)
    tracker.update(world.see(0.01, range(40))[0], STEP)
    features, seen = world.see(0.02)
    assert tracker.update(features, 2 * STEP).new[seen < 40].all()
