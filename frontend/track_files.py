"""Tracks and trajectories as text: rows of a CSV file, lines of files of poses, and what a sequence comes to.

A CSV file has a heading and a row for each keypoint of each frame, best score first:

stamp_ns, frame: time of the frame, nanoseconds, and its number, from 0, of those that were tracked.
track_id, age: never used again in the sequence; frames in which the track has been seen, this one included.
x, y: pixels of the image as given, (0, 0) the centre of its top-left pixel.
xn, yn: undistorted normalised coordinates x/z and y/z; empty without a camera, and where the lens has no inverse.
vx, vy: pixels a second since the track was last seen; 0 for new ones.
score: of the keypoint, (0, 1].
sigma: standard deviation of x and of y, pixels; empty where the model does not know it.
new, keyframe: 0 or 1; whether the track begins here, and whether the frame is a keyframe.

With a right image there are also xr, yr: pixels in it, and px, py, pz: the point in the left camera's frame, metres;
empty where it was not found there, and the latter where the pair is not calibrated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from frontend.odometry import camera_to_world
from frontend.types import Pose, TrackedFrame

COLUMNS = "stamp_ns,frame,track_id,age,x,y,xn,yn,vx,vy,score,sigma,new,keyframe"
"""Heading of a CSV file."""

STEREO_COLUMNS = ",xr,yr,px,py,pz"
"""What follows it where there is a right image."""

TUM_HEADING = "# timestamp tx ty tz qx qy qz qw"
"""First line of a file of poses: seconds, metres, and a unit quaternion, of the camera in the world."""


def track_rows(frame: TrackedFrame, stereo: bool = False) -> str:
    """Rows of a frame, each with its line's end; nothing for a frame without keypoints.

    Args:
        frame: tracked.
        stereo: whether there are :data:`STEREO_COLUMNS`.
    """
    count = len(frame.track_ids)
    points = None if frame.normalised is None else frame.normalised.tolist()
    columns: list[Iterable[str]] = [
        map(str, frame.track_ids.tolist()),
        map(str, frame.ages.tolist()),
        (f"{x:.4f},{y:.4f}" for x, y in frame.keypoints.tolist()),
        # NaN is not itself
        [","] * count if points is None else (f"{x:.8f},{y:.8f}" if x == x and y == y else "," for x, y in points),
        (f"{x:.3f},{y:.3f}" for x, y in frame.velocities.tolist()),
        (f"{score:.6g}" for score in frame.scores.tolist()),
        [""] * count if frame.sigmas is None else (f"{sigma:.4f}" for sigma in frame.sigmas.tolist()),
        ("1" if new else "0" for new in frame.new.tolist()),
        [str(int(frame.keyframe))] * count,
    ]
    if stereo:
        columns.append(_right_columns(frame))
    head = f"{frame.stamp_ns},{frame.index},"
    return "".join(f"{head}{','.join(row)}\n" for row in zip(*columns, strict=True))


def _right_columns(frame: TrackedFrame) -> list[str]:
    columns = [",,,,"] * len(frame.track_ids)
    found = frame.stereo
    if found is not None:
        pixels = [f"{x:.4f},{y:.4f}" for x, y in found.keypoints.tolist()]
        points = [",,"] * len(pixels)
        if found.points is not None:
            points = [f"{x:.5f},{y:.5f},{z:.5f}" for x, y, z in found.points.tolist()]
        for row, pixel, point in zip(found.rows.tolist(), pixels, points, strict=True):
            columns[row] = f"{pixel},{point}"
    return columns


def tum_line(stamp_ns: int, pose: Pose) -> str:
    """A line of a TUM file, with its end.

    Args:
        stamp_ns: of the frame, nanoseconds.
        pose: X_camera = R X_world + t, metres.
    """
    position, turn = camera_to_world(pose)
    sign, (seconds, rest) = "-" if stamp_ns < 0 else "", divmod(abs(stamp_ns), 10**9)
    return f"{sign}{seconds}.{rest:09d} {' '.join(f'{value:.9f}' for value in (*position.tolist(), *turn.tolist()))}\n"


def kitti_line(pose: Pose) -> str:
    """A line of a file of poses as KITTI's odometry has them, with its end: a frame's [R | t], row by row.

    Args:
        pose: X_camera = R X_world + t, metres; what is written is X_world by X_camera.
    """
    turn = np.asarray(pose.R, np.float64).T
    matrix = np.column_stack([turn, -turn @ pose.t]) + 0.0  # no zero below zero
    return " ".join(f"{value:.9e}" for value in matrix.ravel().tolist()) + "\n"


class TrackStatistics:
    """What the frames of a sequence come to; takes memory for the lengths that tracks have, not for the tracks.

    Attributes:
        frames: tracked.
        keyframes: among them.
        keypoints: in all.
        stereo_points: keypoints found in the right image.
        motions: frames by the model of their motion, the first one left out.
    """

    def __init__(self) -> None:
        self.frames = self.keyframes = self.keypoints = self.stereo_points = 0
        self.motions: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()  # tracks by the frames that they have been seen in

    def add(self, frame: TrackedFrame) -> None:
        """Count the next frame."""
        if self.frames:
            self.motions[frame.motion] += 1
        self.frames += 1
        self.keyframes += frame.keyframe
        self.keypoints += len(frame.track_ids)
        self.stereo_points += 0 if frame.stereo is None else len(frame.stereo.rows)
        ages, counts = np.unique(frame.ages, return_counts=True)
        for age, count in zip(ages.tolist(), counts.tolist(), strict=True):
            self._lengths[age] += count
            if age > 1:  # they were counted with the frame before
                self._lengths[age - 1] -= count
                if not self._lengths[age - 1]:
                    del self._lengths[age - 1]

    @property
    def tracks(self) -> int:
        """That there have been."""
        return self._lengths.total()

    @property
    def mean_length(self) -> float:
        """Frames that a track was seen in; 0 without tracks."""
        return self.keypoints / max(self.tracks, 1)

    def median_length(self, least: int = 1) -> float:
        """The same, of tracks that were seen in ``least`` frames or more."""
        lengths = sorted((length, count) for length, count in self._lengths.items() if length >= least)
        total = sum(count for _, count in lengths)
        if not total:
            return 0.0
        middle, seen = [], 0
        for rank in ((total - 1) // 2, total // 2):
            seen = 0
            for length, count in lengths:
                seen += count
                if seen > rank:
                    middle.append(length)
                    break
        return sum(middle) / 2

    @property
    def motion_share(self) -> float:
        """Frames with a model of the motion, as a share of all but the first; 0 without any."""
        known = sum(count for model, count in self.motions.items() if model != "none")
        return known / max(self.motions.total(), 1)
