"""Stereo odometry against cameras whose way is known."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from test_tracking import SIZE, STEP, K

from frontend.camera import Camera
from frontend.odometry import StereoOdometry, camera_to_world, pose_of_points
from frontend.relative_pose import quaternion_of
from frontend.stereo import StereoRig
from frontend.tracking import Tracker
from frontend.types import Features, Pose

CAMERA = Camera(K)
RIG = StereoRig(CAMERA, CAMERA, np.eye(3), np.array([-0.2, 0.0, 0.0]))


class Room:
    """Points on all sides, seen by a stereo pair anywhere in it."""

    def __init__(self, rng: np.random.Generator, count: int = 2500, extent: float = 12.0) -> None:
        self.rng = rng
        self.points = rng.uniform(-extent, extent, (count, 3)) * [1, 0.5, 1]
        described = rng.normal(size=(count, 64))
        self.descriptors = (described / np.linalg.norm(described, axis=1, keepdims=True)).astype(np.float32)

    def see(self, pose: Pose, noise: float) -> Features:
        moved = self.points @ pose.R.T + pose.t
        ahead = np.flatnonzero(moved[:, 2] > 0.5)
        pixels = moved[ahead, :2] / moved[ahead, 2:] * 500 + K[:2, 2]
        pixels += self.rng.normal(0, noise, pixels.shape)
        inside = ((pixels >= 0) & (pixels <= np.array(SIZE) - 1)).all(axis=1)
        rows = ahead[inside]
        return Features(
            pixels[inside].astype(np.float32),
            np.linspace(1, 0.1, len(rows), dtype=np.float32),
            self.descriptors[rows],
            SIZE,
        )


def way(count: int) -> list[Pose]:
    """A walk in a circle: forward along z at first, turning to the right, 5 cm a frame."""
    poses = []
    for n in range(count):
        angle = 0.02 * n
        R = cv2.Rodrigues(np.array([0.0, angle, 0.0]))[0].T  # world to camera
        centre = 0.05 / 0.02 * np.array([1 - np.cos(angle), 0.0, np.sin(angle)])
        poses.append(Pose(R, -R @ centre))
    return poses


def walk(room: Room, poses: list[Pose], noise: float) -> list[Pose | None]:
    tracker, odometry = Tracker(stereo=RIG), StereoOdometry(RIG)
    right = Pose(RIG.R, RIG.t)
    found = []
    for n, pose in enumerate(poses):
        other = Pose(right.R @ pose.R, right.R @ pose.t + right.t)
        found.append(odometry.update(tracker.update(room.see(pose, noise), n * STEP, room.see(other, noise))))
    return found


def test_a_walk_is_followed_in_metres(rng: np.random.Generator) -> None:
    poses = way(25)
    found = walk(Room(rng), poses, noise=0.4)
    errors = []
    for got, pose in zip(found, poses, strict=True):
        assert got is not None
        errors.append(np.linalg.norm(got.R.T @ got.t - pose.R.T @ pose.t))
        assert np.degrees(np.linalg.norm(cv2.Rodrigues(got.R @ pose.R.T)[0])) < 0.3
    assert errors[0] == 0
    # 1.95 m long
    assert max(errors) < 0.03


def test_without_noise_there_is_no_drift(rng: np.random.Generator) -> None:
    poses = way(25)
    last = walk(Room(rng), poses, noise=0.0)[-1]
    assert last is not None
    np.testing.assert_allclose(last.R, poses[-1].R, atol=1e-4)
    np.testing.assert_allclose(last.t, poses[-1].t, atol=5e-4)


def test_a_camera_that_stands_still_does_not_drift(rng: np.random.Generator) -> None:
    found = walk(Room(rng), [Pose(np.eye(3), np.zeros(3))] * 40, noise=0.4)
    positions = np.array([pose.t for pose in found if pose is not None])
    assert len(positions) == 40
    assert np.linalg.norm(positions, axis=1).max() < 0.01
    assert np.linalg.norm(positions[20:].mean(axis=0) - positions[1:20].mean(axis=0)) < 0.003


def test_a_way_that_is_not_known_ends(rng: np.random.Generator) -> None:
    tracker, odometry, room = Tracker(stereo=RIG), StereoOdometry(RIG), Room(rng)
    other = Room(np.random.default_rng(9))
    right = Pose(RIG.R, RIG.t)
    start = Pose(np.eye(3), np.zeros(3))
    found = []
    for n, (world, sees_right) in enumerate([(room, False), (room, True), (room, False), (other, True), (other, True)]):
        features = world.see(start, 0.2)
        seen = world.see(Pose(right.R @ start.R, right.t), 0.2) if sees_right else None
        found.append(odometry.update(tracker.update(features, n * STEP, seen)))
    # nothing in space yet; the origin; placed without a right image of its own; another room, where nothing is known
    assert [pose is not None for pose in found] == [False, True, True, False, False]
    assert found[1] is not None
    assert (found[1].R.tolist(), found[1].t.tolist()) == (np.eye(3).tolist(), [0, 0, 0])


def test_a_short_blindness_is_bridged_by_tracks_that_come_back(rng: np.random.Generator) -> None:
    tracker, odometry, room = Tracker(stereo=RIG), StereoOdometry(RIG), Room(rng)
    empty = dataclasses.replace(
        room.see(Pose(np.eye(3), np.zeros(3)), 0),
        keypoints=np.zeros((0, 2), np.float32),
        scores=np.zeros(0, np.float32),
        descriptors=np.zeros((0, 64), np.float32),
    )
    found = []
    poses = way(6)
    for n, pose in enumerate(poses):
        other = Pose(pose.R, pose.t + RIG.t)
        pair = (empty, empty) if n in (3, 4) else (room.see(pose, 0.2), room.see(other, 0.2))
        found.append(odometry.update(tracker.update(pair[0], n * STEP, pair[1])))
    assert [pose is not None for pose in found] == [True, True, True, False, False, True]
    assert found[-1] is not None
    np.testing.assert_allclose(found[-1].t, poses[-1].t, atol=0.01)


def test_far_points_count_for_what_they_are_worth(rng: np.random.Generator) -> None:
    """Against least squares of pixels alone, on a scene that is mostly far away."""
    turn, t = cv2.Rodrigues(np.array([0.01, -0.02, 0.005]))[0], np.array([-0.8, 0.01, -0.3])
    own, plain = [], []
    for _ in range(20):
        depth = np.concatenate([rng.uniform(1.5, 4, 40), rng.uniform(20, 60, 200)])
        points = np.column_stack([rng.uniform(-0.5, 0.5, (240, 2)) * depth[:, None], depth])
        noisy = 1 / (1 / depth + rng.normal(0, 0.4 * np.sqrt(2), 240) / (500 * 0.2))  # of a disparity
        usable = (noisy > 0) & (noisy < 500)
        measured = points[usable] * (noisy / depth)[usable, None]
        moved = points[usable] @ turn.T + t
        seen = moved[:, :2] / moved[:, 2:] + rng.normal(0, 0.4 / 500, (usable.sum(), 2))
        pose = pose_of_points(measured, seen, RIG, threshold=3.0)
        assert pose is not None
        own.append(np.linalg.norm(pose.t - t))
        _, _, other = cv2.solvePnP(measured, seen, np.eye(3), None)
        plain.append(np.linalg.norm(other.ravel() - t))
    assert np.median(own) < 0.02
    assert np.median(own) < 0.7 * np.median(plain)


def test_what_is_not_enough_has_no_pose(rng: np.random.Generator) -> None:
    points = np.column_stack([rng.uniform(-1, 1, (60, 2)), rng.uniform(2, 5, 60)])
    seen = points[:, :2] / points[:, 2:]
    assert pose_of_points(points, seen, RIG, threshold=3.0) is not None
    assert pose_of_points(points[:11], seen[:11], RIG, threshold=3.0) is None
    assert pose_of_points(points, rng.uniform(-0.5, 0.5, (60, 2)), RIG, threshold=3.0) is None
    assert pose_of_points(np.ones((60, 3)), np.ones((60, 2)), RIG, threshold=3.0) is None
    assert pose_of_points(np.zeros((0, 3)), np.zeros((0, 2)), RIG, threshold=3.0) is None


def test_quaternions_turn_as_their_rotations_do(rng: np.random.Generator) -> None:
    turns = [*rng.normal(size=(40, 3)), np.zeros(3), *(np.pi * np.eye(3)), np.array([0, 3.1415, 0.01])]
    for turn in turns:
        R = cv2.Rodrigues(np.asarray(turn, np.float64))[0]
        x, y, z, w = quaternion_of(R)
        assert x * x + y * y + z * z + w * w == pytest.approx(1)
        assert w >= 0
        v = rng.normal(size=3)
        u = np.array([x, y, z])
        rotated = v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v))
        np.testing.assert_allclose(rotated, R @ v, atol=1e-9)
    R, t = cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0], np.array([1.0, 2, 3])
    position, turned = camera_to_world(Pose(R, t))
    np.testing.assert_allclose(R @ position + t, 0, atol=1e-12)
    np.testing.assert_allclose(turned, quaternion_of(R.T))
