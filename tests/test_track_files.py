"""Rows of tracks and lines of poses against the numbers in them, statistics against lists of all tracks, and videos."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_tracking import SIZE, STEP, K, World

from frontend.camera import Camera
from frontend.stereo import StereoRig
from frontend.track_files import COLUMNS, STEREO_COLUMNS, TrackStatistics, kitti_line, track_rows, tum_line
from frontend.track_video import TrackVideo
from frontend.tracking import Tracker
from frontend.types import Features, Pose


def test_rows_are_the_frame(rng: np.random.Generator) -> None:
    camera = Camera(K, (-0.3, 0.1, 0.0, 0.0))
    world, tracker = World(), Tracker(stereo=StereoRig(camera, camera, np.eye(3), np.array([-0.2, 0, 0])))
    for n in range(2):
        seen = world.see(0.03 * n)[0]
        frame = tracker.update(seen, n * STEP, world.see(0.03 * n + 0.2)[0])
    rows = list(csv.DictReader(io.StringIO(f"{COLUMNS}{STEREO_COLUMNS}\n{track_rows(frame, stereo=True)}")))
    assert len(rows) == len(frame.track_ids)
    assert frame.normalised is not None
    assert frame.stereo is not None
    assert frame.stereo.points is not None
    right = dict(zip(frame.stereo.rows.tolist(), frame.stereo.points.tolist(), strict=True))
    for n, row in enumerate(rows):
        assert (int(row["stamp_ns"]), int(row["frame"])) == (STEP, 1)
        assert (int(row["track_id"]), int(row["age"])) == (frame.track_ids[n], frame.ages[n])
        assert (row["new"], row["keyframe"]) == (str(int(frame.new[n])), str(int(frame.keyframe)))
        assert row["sigma"] == ""  # this model has none
        for names, values, tolerance in (
            ("x y", frame.keypoints[n], 1e-4),
            ("xn yn", frame.normalised[n], 1e-8),
            ("vx vy", frame.velocities[n], 1e-3),
        ):
            got = [row[name] for name in names.split()]
            if np.isfinite(values).all():
                np.testing.assert_allclose([float(value) for value in got], values, atol=tolerance)
            else:
                assert got == ["", ""]
        assert float(row["score"]) == pytest.approx(frame.scores[n], rel=1e-5)
        got = [row[name] for name in ("px", "py", "pz")]
        if n in right:
            np.testing.assert_allclose([float(value) for value in got], right[n], atol=1e-5)
        else:
            assert [row["xr"], row["yr"], *got] == [""] * 5
    assert 0 < len(right) < len(rows)


def test_what_has_no_value_is_empty() -> None:
    seen = Features(np.full((1, 2), 1.5, np.float32), np.ones(1, np.float32), np.ones((1, 4), np.float32), SIZE)
    frame = Tracker().update(seen, -5)
    assert track_rows(frame) == "-5,0,0,1,1.5000,1.5000,,,0.000,0.000,1,,1,1\n"
    assert track_rows(frame, stereo=True) == "-5,0,0,1,1.5000,1.5000,,,0.000,0.000,1,,1,1,,,,,\n"
    none = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), SIZE)
    assert track_rows(Tracker().update(none, 0)) == ""


@pytest.mark.parametrize(
    ("stamp_ns", "expected"),
    [(1403636579763555584, "1403636579.763555584"), (5, "0.000000005"), (-1_500_000_000, "-1.500000000")],
)
def test_poses_have_all_digits_of_their_stamps(stamp_ns: int, expected: str) -> None:
    turn = cv2.Rodrigues(np.array([0.0, 0.0, np.pi / 2]))[0]
    line = tum_line(stamp_ns, Pose(turn, np.array([1.0, 2.0, 3.0])))
    stamp, *values = line.split()
    assert line.endswith("\n")
    assert stamp == expected
    # the camera's x points along -y of the world: a quarter turn back about z
    half = np.sqrt(0.5)
    np.testing.assert_allclose([float(value) for value in values], [-2, 1, -3, 0, 0, -half, half], atol=1e-9)


def test_poses_as_kitti_has_them() -> None:
    turn = cv2.Rodrigues(np.array([0.1, -0.4, 1.2]))[0]
    line = kitti_line(Pose(turn, np.array([1.0, 2.0, 300.0])))
    assert line.endswith("\n")
    matrix = np.array([float(value) for value in line.split()]).reshape(3, 4)
    camera_from_world = np.vstack([np.column_stack([turn, [1, 2, 300]]), [0, 0, 0, 1]])
    np.testing.assert_allclose(matrix, np.linalg.inv(camera_from_world)[:3], atol=1e-6)
    first = kitti_line(Pose(np.eye(3), np.zeros(3)))
    assert [float(value) for value in first.split()] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert "-" not in first.replace("e-", "")


def test_statistics_are_those_of_all_tracks() -> None:
    world, tracker, counts = World(), Tracker(), TrackStatistics()
    lengths: dict[int, int] = {}
    motions = []
    for n in range(12):
        hidden = range(0, 40) if n in (3, 4, 8) else range(0)
        frame = tracker.update((World(seed=5) if n == 9 else world).see(0.05 * n, hidden)[0], n * STEP)
        counts.add(frame)
        motions.append(frame.motion)
        for track in frame.track_ids.tolist():
            lengths[track] = lengths.get(track, 0) + 1
    everything = list(lengths.values())
    assert counts.frames == 12
    assert counts.tracks == len(everything) == tracker.num_tracks
    assert counts.mean_length == pytest.approx(statistics.mean(everything))
    assert counts.median_length() == statistics.median(everything)
    assert counts.median_length(2) == statistics.median([length for length in everything if length > 1])
    assert counts.motion_share == pytest.approx(sum(motion != "none" for motion in motions[1:]) / 11)
    assert 0 < counts.motion_share < 1


def test_statistics_of_nothing() -> None:
    counts = TrackStatistics()
    assert (counts.tracks, counts.mean_length, counts.median_length(), counts.motion_share) == (0, 0, 0, 0)


def test_a_video_shows_tracks_where_they_are(tmp_path: Path) -> None:
    world, tracker = World(count=60), Tracker()
    video = TrackVideo(tmp_path / "out.mp4", 12.5, trail=4)
    image = np.full((*SIZE[::-1], 3), 128, np.uint8)
    for n in range(6):
        frame = tracker.update(world.see(0.05 * n)[0], n * STEP)
        video.add(image, frame)
    assert image.min() == image.max() == 128
    assert set(video._trails) >= set(frame.track_ids.tolist())
    assert max(len(trail) for trail in video._trails.values()) == 4
    video.close()
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    pictures = []
    while (read := capture.read())[0]:
        pictures.append(read[1].astype(int))
    assert [picture.shape for picture in pictures] == [(480, 640, 3)] * 6
    # colour is where tracks are, and nowhere else but in the text
    last = pictures[-1][:-24]
    colour = (last.max(axis=2) - last.min(axis=2)) > 60
    old = frame.keypoints[(frame.ages >= 4) & (frame.keypoints[:, 1] < 450)]
    assert len(old) > 20
    x, y = np.rint(old).astype(int).T
    assert colour[y, x].mean() > 0.9
    near = np.zeros(SIZE[::-1], np.uint8)
    for point in frame.keypoints:
        cv2.circle(near, np.rint(point).astype(int).tolist(), 45, 1, -1)
    assert not colour[near[:-24] == 0].any()


@pytest.mark.parametrize(
    ("size", "expected"), [((321, 241), (320, 240)), ((2000, 1000), (1280, 640)), ((9, 600), (8, 600))]
)
def test_pictures_of_any_size_are_written(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    seen = Features(np.full((3, 2), 4, np.float32), np.ones(3, np.float32), np.ones((3, 4), np.float32), size)
    video, tracker = TrackVideo(tmp_path / "out.mp4", 0.3), Tracker()
    for n in range(2):
        video.add(np.zeros(size[::-1], np.uint8), tracker.update(seen, n))
    video.close()
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    found = tuple(int(capture.get(name)) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    assert (found, capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (expected, 1, 2)
