"""Poses of tracked frames against known motions of a camera, and the choice among the models."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from test_tracking import SIZE, STEP, K, World

from frontend.camera import Camera
from frontend.errors import ConfigError, SequenceError
from frontend.motion import estimate_motion
from frontend.stereo import StereoRig
from frontend.tracking import Tracker, TrackerConfig
from frontend.types import Features

CAMERA = Camera(K)
TURN = cv2.Rodrigues(np.array([0.02, -0.05, 0.03]))[0]


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    """Between two rotations, or between two directions."""
    cosine = (np.trace(a @ b.T) - 1) / 2 if a.ndim == 2 else a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def seen(rng: np.random.Generator, R: np.ndarray, t: np.ndarray, flat: bool | str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of 250 points in two images, with noise of 0.3 px and 30 wrong ones.

    ``flat``: a plane; "mostly": one with 30 points before it.
    """
    depth = np.full(250, 5.0) if flat else rng.uniform(2, 8, 250)
    if flat == "mostly":
        depth[:30] = rng.uniform(2, 3, 30)
    points = np.column_stack([rng.uniform(-0.5, 0.5, (250, 2)) * depth[:, None], depth])
    if flat:  # a slanted plane: the poses behind its homography differ more
        points[:, 2] += 0.4 * points[:, 0]
    moved = points @ R.T + t
    x0, x1 = (p[:, :2] / p[:, 2:] * 500 + K[:2, 2] + rng.normal(0, 0.3, (250, 2)) for p in (points, moved))
    x1[-30:] = rng.uniform((0, 0), SIZE, (30, 2))
    return x0, x1


def test_a_scene_with_depth_has_an_essential_matrix_and_its_pose(rng: np.random.Generator) -> None:
    t = np.array([0.4, 0.05, 0.1])
    x0, x1 = seen(rng, TURN, t, flat=False)
    motion = estimate_motion(x0, x1, camera=CAMERA)
    assert motion.model == "essential"
    assert motion.pose is not None
    assert motion.matrix is not None
    assert degrees(motion.pose.R, TURN) < 0.3
    assert degrees(motion.pose.t, t) < 3
    assert np.linalg.norm(motion.pose.t) == pytest.approx(1)
    assert motion.inliers[:-30].mean() > 0.95
    assert motion.inliers[-30:].sum() <= 4
    y0, y1 = (np.column_stack([CAMERA.normalise(x), np.ones(250)]) for x in (x0, x1))
    errors = np.abs(np.einsum("ni,ij,nj->n", y1, motion.matrix, y0))[motion.inliers]
    assert np.median(errors) < 2e-3
    without = estimate_motion(x0, x1)
    assert (without.model, without.pose) == ("fundamental", None)


def test_a_camera_that_only_turns_has_a_rotation(rng: np.random.Generator) -> None:
    x0, x1 = seen(rng, TURN, np.zeros(3), flat=False)
    motion = estimate_motion(x0, x1, camera=CAMERA)
    assert motion.model == "homography"
    assert motion.pose is not None
    assert degrees(motion.pose.R, TURN) < 0.1
    np.testing.assert_array_equal(motion.pose.t, 0)
    still = estimate_motion(x0, x0 + rng.normal(0, 0.3, x0.shape), camera=CAMERA)
    assert still.pose is not None
    assert degrees(still.pose.R, np.eye(3)) < 0.1
    np.testing.assert_array_equal(still.pose.t, 0)


def test_a_plane_has_one_of_its_two_poses_and_points_off_it_decide(rng: np.random.Generator) -> None:
    t = np.array([0.5, 0.1, 0.2])
    x0, x1 = seen(rng, TURN, t, flat="mostly")
    motion = estimate_motion(x0, x1, camera=CAMERA)
    assert motion.model == "homography"
    assert motion.pose is not None
    assert degrees(motion.pose.R, TURN) < 0.7
    assert degrees(motion.pose.t, t) < 6
    x0, x1 = seen(rng, TURN, t, flat=True)
    motion = estimate_motion(x0, x1, camera=CAMERA)
    assert motion.pose is not None
    # X on the plane: n X = d with n = (-0.4, 0, 1), d = 5
    H = TURN + np.outer(t, [-0.4, 0, 1]) / 5
    _, rotations, directions, normals = cv2.decomposeHomographyMat(H, np.eye(3))
    facing = [(R, d[:, 0]) for R, d, n in zip(rotations, directions, normals, strict=True) if n[2, 0] > 0]
    assert len(facing) == 2
    pose = motion.pose
    assert min(degrees(pose.R, R) + degrees(pose.t, d) for R, d in facing) < 8


def test_a_wrong_camera_gives_no_pose(rng: np.random.Generator) -> None:
    x0, x1 = seen(rng, cv2.Rodrigues(np.array([0.1, -0.3, 0.2]))[0], np.array([1.5, 0.3, -0.8]), flat=False)
    wrong = Camera(np.array([[90.0, 0, 600], [0, 900, 20], [0, 0, 1]]))
    motion = estimate_motion(x0, x1, camera=wrong)
    assert (motion.model, motion.pose) == ("fundamental", None)
    assert motion.inliers[:-30].mean() > 0.9


@pytest.mark.parametrize("threshold", [0.0, 1e200, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"threshold is .*; expected"):
        estimate_motion(np.zeros((9, 2)), np.zeros((9, 2)), threshold=threshold)


def test_frames_have_poses_where_the_camera_is_known() -> None:
    tracker, plain = Tracker(camera=CAMERA), Tracker()
    world = World()
    for n in range(4):
        features, _ = world.see(0.3 * n)
        frame, other = tracker.update(features, n * STEP), plain.update(features, n * STEP)
        assert other.pose is None
        if not n:
            assert (frame.motion, frame.pose) == ("none", None)
            continue
        assert (frame.motion, other.motion) == ("essential", "fundamental")
        assert frame.pose is not None
        assert degrees(frame.pose.R, np.eye(3)) < 0.3
        assert degrees(frame.pose.t, np.array([-1.0, 0, 0])) < 3  # the camera goes to +x, so points go to -x


def test_frames_of_a_stereo_pair_have_points() -> None:
    rig = StereoRig(CAMERA, CAMERA, np.eye(3), np.array([-0.2, 0.0, 0.0]))
    world, tracker = World(), Tracker(stereo=rig)
    for n in range(3):
        left, points = world.see(0.02 * n)
        right, _ = world.see(0.02 * n + 0.2)
        frame = tracker.update(left, n * STEP, right)
        assert frame.stereo is not None
        assert frame.normalised is not None
        expected = world.points[points[frame.stereo.rows]] - [0.02 * n, 0, 0]
        assert len(frame.stereo.rows) > 200
        error = np.linalg.norm(frame.stereo.points - expected, axis=1)
        assert np.median(error / expected[:, 2] ** 2) < 0.01  # 0.4 px at f b = 100 px m
    assert tracker.update(left, 3 * STEP).stereo is None
    short = Features(right.keypoints, right.scores, right.descriptors[:, :8], SIZE)
    with pytest.raises(SequenceError, match="right image"):
        tracker.update(left, 4 * STEP, short)
    assert not tracker.update(left, 4 * STEP).new.any()
    with pytest.raises(ConfigError, match="left one"):
        Tracker(camera=Camera(2 * K * [[1], [1], [0.5]]), stereo=rig)


def test_the_memory_that_a_tracker_tells_is_what_it_takes() -> None:
    config = TrackerConfig(max_tracks=3000, max_gap=100)
    frames = [World(seed=n).see(0)[0] for n in range(20)]
    Tracker(config).update(frames[0], 0)  # what is loaded on first use
    tracemalloc.start()
    try:
        tracker = Tracker(config)
        before = tracemalloc.get_traced_memory()[0]
        for n, features in enumerate(frames):
            tracker.update(features, n * STEP)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 * tracker.nbytes < taken < 1.1 * tracker.nbytes + 20_000
    assert tracker.nbytes <= config.most_bytes(300, 64) < 1.1 * tracker.nbytes


def test_matching_in_blocks_is_matching_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracks do not depend on how many are looked at in one go."""
    ids = []
    for block in (1 << 20, 700):
        monkeypatch.setattr("frontend.mutual._BLOCK", block)
        world, tracker = World(), Tracker()
        ids.append([tracker.update(world.see(0.03 * n)[0], n * STEP).track_ids for n in range(4)])
    for one, other in zip(*ids, strict=True):
        np.testing.assert_array_equal(one, other)


LENSES = {
    "EuRoC": Camera(np.array([[458.65, 0, 367.2], [0, 457.3, 248.4], [0, 0, 1]]), (-0.2834, 0.0739, 0.0002, 0.00002)),
    "wide": Camera(np.array([[285.0, 0, 319.5], [0, 285, 239.5], [0, 0, 1]]), (-0.2834, 0.0739, 0.0002, 0.00002)),
    "fisheye": Camera(
        np.array([[190.98, 0, 254.9], [0, 190.97, 256.9], [0, 0, 1]]), (0.0034, 0.0007, -0.002, 0.0002), "fisheye"
    ),
}


def through(camera: Camera, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels of points in space, with noise of 0.5 px."""
    project = cv2.fisheye.projectPoints if camera.model == "fisheye" else cv2.projectPoints
    pixels = project(points[:, None], np.zeros(3), np.zeros(3), camera.K, np.array(camera.distortion))[0]
    return pixels.reshape(-1, 2) + rng.normal(0, 0.5, (len(points), 2))


def lens_scene(rng: np.random.Generator, camera: Camera, R: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of 270 points at depths of 2 to 10 in two images through a lens, and 30 wrong matches."""
    width, height = 2 * camera.K[0, 2], 2 * camera.K[1, 2]
    flat = camera.normalise(rng.uniform((0.1 * width, 0.1 * height), (0.9 * width, 0.9 * height), (300, 2)))
    flat = np.where(np.isfinite(flat) & (np.abs(flat) < 1.5), flat, 0.1)
    points = np.column_stack([flat, np.ones(300)]) * rng.uniform(2, 10, (300, 1))
    x0, x1 = through(camera, points, rng), through(camera, points @ R.T + t, rng)
    x1[-30:] = rng.uniform((0, 0), (width, height), (30, 2))
    return x0, x1


@pytest.mark.parametrize(("name", "turn_deg"), [("EuRoC", 2), ("EuRoC", 8), ("wide", 1), ("wide", 5)])
def test_a_camera_with_distortion_that_turns_does_not_move(
    name: str, turn_deg: float, rng: np.random.Generator
) -> None:
    camera, turn = LENSES[name], cv2.Rodrigues(np.array([0.0, np.radians(turn_deg), 0.0]))[0]
    for _ in range(4):
        motion = estimate_motion(*lens_scene(rng, camera, turn, np.zeros(3)), threshold=3, camera=camera)
        assert motion.model == "homography"
        assert motion.pose is not None
        assert not motion.pose.t.any()
        assert degrees(motion.pose.R, turn) < 0.3
        assert motion.inliers[:-30].mean() > 0.8


@pytest.mark.parametrize("name", list(LENSES))
def test_a_camera_with_distortion_that_moves_has_a_pose(name: str, rng: np.random.Generator) -> None:
    camera, t = LENSES[name], np.array([0.6, 0.0, 0.1])
    for _ in range(4):
        motion = estimate_motion(*lens_scene(rng, camera, TURN, t), threshold=3, camera=camera)
        assert motion.pose is not None
        assert degrees(motion.pose.R, TURN) < 1.5
        assert degrees(motion.pose.t, t) < 12
