"""Tracks through synthetic scenes whose motion is known, the motion's model, and the camera."""

from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np
import pytest

from frontend.camera import Camera
from frontend.errors import ConfigError, SequenceError
from frontend.geometry import epipolar_distances
from frontend.motion import estimate_motion
from frontend.tracking import Tracker, TrackerConfig
from frontend.types import Features

SIZE = (640, 480)
K = np.array([[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]])
STEP = 50_000_000  # 20 frames a second


class World:
    """Points in space with descriptors of their own, seen by a camera that moves sideways."""

    def __init__(self, count: int = 300, seed: int = 0, flat: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        depth = np.full(count, 5.0) if flat else self.rng.uniform(2, 8, count)
        pixels = self.rng.uniform(0, SIZE, (count, 2))
        self.points = np.column_stack([(pixels - K[:2, 2]) / 500 * depth[:, None], depth])
        descriptors = self.rng.normal(size=(count, 64))
        self.descriptors = (descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).astype(np.float32)

    def see(self, shift: float, hidden: range = range(0), noise: float = 0.3) -> tuple[Features, np.ndarray]:
        """Features from a camera at x = shift, and which points they are."""
        moved = self.points - [shift, 0, 0]
        pixels = moved[:, :2] / moved[:, 2:] * 500 + K[:2, 2] + self.rng.normal(0, noise, (len(moved), 2))
        inside = ((pixels >= 0) & (pixels <= np.array(SIZE) - 1)).all(axis=1)
        inside[list(hidden)] = False
        seen = self.rng.permutation(np.flatnonzero(inside))
        descriptors = self.descriptors[seen] + self.rng.normal(0, 0.03, (len(seen), 64)).astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        scores = np.linspace(1, 0.1, len(seen), dtype=np.float32)
        return Features(pixels[seen].astype(np.float32), scores, descriptors, SIZE), seen


def test_a_track_stays_with_its_point() -> None:
    world, tracker = World(), Tracker()
    point_of: dict[int, int] = {}
    for n in range(12):
        features, seen = world.see(0.03 * n)
        frame = tracker.update(features, n * STEP)
        assert frame.index == n
        assert frame.track_ids.shape == (len(features),)
        assert len(set(frame.track_ids.tolist())) == len(features)
        for track, point in zip(frame.track_ids.tolist(), seen.tolist(), strict=True):
            assert point_of.setdefault(track, point) == point
        np.testing.assert_array_equal(frame.new, frame.ages == 1)
        if n:
            assert frame.new.mean() < 0.1
            assert frame.inlier_share > 0.9
    assert np.median(frame.ages) == 12
    assert 0 < tracker.nbytes < 1e6


def test_velocities_are_pixels_a_second() -> None:
    world, tracker = World(), Tracker()
    tracker.update(world.see(0.0, noise=0)[0], 0)
    features, seen = world.see(0.05, noise=0)
    frame = tracker.update(features, 2 * STEP)
    expected = -0.05 * 500 / world.points[seen, 2] / (2 * STEP * 1e-9)
    old = ~frame.new
    np.testing.assert_allclose(frame.velocities[old, 0], expected[old], rtol=1e-2, atol=0.1)
    np.testing.assert_allclose(frame.velocities[old, 1], 0, atol=0.1)
    assert not frame.velocities[frame.new].any()


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_tracks_survive_a_gap_and_no_longer(gap: int) -> None:
    world, tracker = World(), Tracker(TrackerConfig(max_gap=2))
    hidden = range(0, 40)
    first = tracker.update(world.see(0)[0], 0)
    lost: list[int] = []
    for n in range(1, gap + 1):
        lost += tracker.update(world.see(0.01 * n, hidden)[0], n * STEP).lost.tolist()
    features, seen = world.see(0.01 * (gap + 1))
    frame = tracker.update(features, (gap + 1) * STEP)
    back = np.isin(seen, list(hidden))
    assert back.sum() > 30
    if gap <= 2:
        assert not lost
        assert frame.new[back].mean() < 0.1
        assert (frame.ages[back & ~frame.new] == 2).all()
    else:
        assert len(lost) > 30
        assert set(lost) <= set(first.track_ids.tolist())
        assert frame.new[back].all()
        assert not set(lost) & set(frame.track_ids.tolist())


def test_moving_things_do_not_keep_their_tracks() -> None:
    world, tracker = World(flat=True), Tracker()
    tracker.update(world.see(0)[0], 0)
    features, seen = world.see(0.02)
    moving = seen < 30
    keypoints = features.keypoints.copy()
    keypoints[moving] += [0, 40]
    keypoints = np.clip(keypoints, 0, np.array(SIZE) - 1).astype(np.float32)
    frame = tracker.update(Features(keypoints, features.scores, features.descriptors, SIZE), STEP)
    assert frame.motion == "homography"
    assert frame.new[moving].mean() > 0.9
    assert frame.new[~moving].mean() < 0.1
    assert frame.inlier_share == pytest.approx(1 - 30 / 300, abs=0.05)


def test_a_cut_starts_over() -> None:
    tracker = Tracker()
    before = tracker.update(World(seed=0).see(0)[0], 0)
    frame = tracker.update(World(seed=1).see(0)[0], STEP)
    assert frame.new.all()
    assert frame.keyframe
    assert not set(frame.track_ids.tolist()) & set(before.track_ids.tolist())


def test_keyframes_come_with_parallax_and_with_new_scenery() -> None:
    world, tracker = World(), Tracker(TrackerConfig(keyframe_share=0.0, keyframe_parallax=0.05))
    flags = [tracker.update(world.see(0.05 * n)[0], n * STEP).keyframe for n in range(14)]
    assert flags[0]
    # about 5 px a frame at a median depth of 5 m; 5 % of 640 px are 32 px
    gaps = np.diff(np.flatnonzero(flags))
    assert len(gaps) >= 1
    assert (gaps >= 5).all()
    still = Tracker()
    flags = [still.update(world.see(0)[0], n * STEP).keyframe for n in range(5)]
    assert flags == [True, False, False, False, False]
    crowd = Tracker(TrackerConfig(keyframe_share=0.6, keyframe_parallax=9.0))
    crowd.update(world.see(0)[0], 0)
    assert not crowd.update(world.see(0, range(0, 90))[0], STEP).keyframe
    assert crowd.update(world.see(0, range(0, 160))[0], 2 * STEP).keyframe


def test_memory_is_bounded() -> None:
    tracker = Tracker(TrackerConfig(max_tracks=400, max_gap=100))
    sizes, lost = [], 0
    for n in range(10):
        frame = tracker.update(World(seed=n).see(0)[0], n * STEP)
        lost += len(frame.lost)
        sizes.append(tracker.nbytes)
    # and the keyframe's 300 keypoints: an id and a point each
    assert max(sizes) <= 400 * (64 * 4 + 4 * 8 + 4 * 8) + 300 * 3 * 8 == tracker.config.most_bytes(300, 64)
    assert lost > 2000


def test_empty_frames_are_frames() -> None:
    empty = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 64), np.float32), SIZE)
    world, tracker = World(), Tracker(camera=Camera(K))
    shown = [empty, world.see(0)[0], empty, world.see(0)[0]]
    frames = [tracker.update(features, n * STEP) for n, features in enumerate(shown)]
    # a frame without keypoints is no keyframe, and the one before is still there after it
    assert [frame.keyframe for frame in frames] == [False, True, False, False]
    assert frames[0].normalised is not None
    assert frames[0].normalised.shape == (0, 2)
    assert frames[3].new.mean() < 0.05


def test_stamps_must_rise_and_descriptors_keep_their_length() -> None:
    world, tracker = World(), Tracker()
    features, _ = world.see(0)
    tracker.update(features, 5)
    for stamp in (5, 4):
        with pytest.raises(SequenceError, match=f"stamp {stamp} ns; expected one after 5 ns"):
            tracker.update(features, stamp)
    short = Features(features.keypoints, features.scores, features.descriptors[:, :32], SIZE)
    with pytest.raises(SequenceError, match="length 32; expected 64"):
        tracker.update(short, 6)
    with pytest.raises(SequenceError, match="right image is of model 'b'; expected '', as the left one"):
        tracker.update(features, 6, right=dataclasses.replace(features, model="b"))
    # a refused frame changes nothing
    assert not tracker.update(features, 7).new.any()


@pytest.mark.parametrize("stamp", [1341847980.72, 5.0, np.float64(5), "5", None])
def test_stamps_are_whole_nanoseconds(stamp: object) -> None:
    """Seconds as floats are what datasets list."""
    world, tracker = World(), Tracker()
    features, _ = world.see(0)
    with pytest.raises(SequenceError, match=rf"^stamp_ns is {stamp}; expected nanoseconds, a whole number$"):
        tracker.update(features, stamp)  # type: ignore[arg-type]
    frame = tracker.update(features, np.int64(7))  # type: ignore[arg-type]
    assert (frame.index, frame.stamp_ns, type(frame.stamp_ns)) == (0, 7, int)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_similarity": 1.5},
        {"search_radius": 0.0},
        {"keyframe_share": 2.0},
        {"max_gap": -1},
        {"max_tracks": 0},
        {"threshold": float("nan")},
        {"threshold": 1e200},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrackerConfig(**wrong)  # type: ignore[arg-type]


def test_motion_is_a_plane_or_depth_or_nothing() -> None:
    for flat, expected in ((True, "homography"), (False, "fundamental")):
        world = World(flat=flat)
        (first, a), (second, b) = world.see(0), world.see(0.4)
        common, i, j = np.intersect1d(a, b, return_indices=True)
        motion = estimate_motion(first.keypoints[i], second.keypoints[j])
        assert motion.model == expected
        assert motion.inliers.shape == common.shape
        assert motion.inliers.mean() > 0.9
    rng = np.random.default_rng(0)
    nothing = estimate_motion(rng.uniform(0, 480, (60, 2)), rng.uniform(0, 480, (60, 2)))
    assert (nothing.model, nothing.matrix, nothing.pose, nothing.inliers.any()) == ("none", None, None, False)
    assert estimate_motion(np.zeros((3, 2)), np.zeros((3, 2))).model == "none"


def test_epipolar_distances_are_those_of_points_to_lines() -> None:
    rng = np.random.default_rng(0)
    F, x0, x1 = rng.normal(size=(3, 3)), rng.uniform(0, 100, (9, 2)), rng.uniform(0, 100, (9, 2))
    first, second = epipolar_distances(F, x0, x1)
    for n in range(9):
        p, q = np.array([*x0[n], 1]), np.array([*x1[n], 1])
        for line, point, got in ((F.T @ q, p, first[n]), (F @ p, q, second[n])):
            assert got == pytest.approx((line @ point) ** 2 / (line[0] ** 2 + line[1] ** 2))


@pytest.mark.parametrize("distortion", [(), (-0.3, 0.1, 0.001, -0.002), (-0.3, 0.1, 0.001, -0.002, 0.02)])
def test_normalised_coordinates_project_back(distortion: tuple[float, ...]) -> None:
    camera = Camera(K, distortion)
    points = np.array(list(itertools.product([60.0, 320, 600], [50.0, 240, 430])))
    normalised = camera.normalise(points)
    rays = np.column_stack([normalised, np.ones(len(points))])
    back, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), K, np.array(distortion) if distortion else None)
    np.testing.assert_allclose(back[:, 0], points, atol=0.05)
    assert camera.focal == 500


@pytest.mark.parametrize(
    ("intrinsics", "distortion"),
    [
        (np.eye(2), ()),
        (np.diag([0.0, 1, 1]), ()),
        (np.diag([1.0, 1, 2]), ()),
        (np.full((3, 3), np.nan), ()),
        (K, (0.1,)),
        (K, (np.inf, 0, 0, 0)),
    ],
)
def test_cameras_that_are_none(intrinsics: np.ndarray, distortion: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError):
        Camera(intrinsics, distortion)


@pytest.mark.parametrize(("name", "value"), [("max_gap", 1.5), ("max_tracks", 700.5), ("threshold", "3")])
def test_settings_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is .*; expected a (whole )?number"):
        TrackerConfig(**{name: value})  # type: ignore[arg-type]


def test_a_stamp_of_more_than_64_bits_is_refused() -> None:
    empty = np.zeros((0, 2), np.float32)
    nothing = Features(empty, empty[:, 0], np.zeros((0, 8), np.float32), (64, 48))
    for stamp in (2**63, -(2**70)):
        with pytest.raises(SequenceError, match="expected nanoseconds, of 64 bits"):
            Tracker().update(nothing, stamp)
