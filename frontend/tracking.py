"""Frames to tracks: the front-end of a SLAM system.

A track is one point of the scene followed through frames by its descriptor. Each new frame's keypoints are matched with
the tracks near where these are expected, the matches are verified by the motion between the frames, and what is left
over starts tracks of its own. What has been gone for some frames is verified by the motion since then, if there is
enough of it, and otherwise found near where it was last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frontend.camera import Camera
from frontend.errors import ConfigError, SequenceError, whole_nanoseconds
from frontend.motion import Motion, estimate_motion
from frontend.mutual import NEVER, mutual_best
from frontend.ransac_config import RansacConfig, check_numbers
from frontend.stereo import StereoRig, match_stereo
from frontend.types import Features, Float32Array, Float64Array, IntArray, TrackedFrame

_LEAST_VERIFIED = 12  # fewer matches than this say nothing of the motion
_MANY = 30  # so many without a common motion are another scene; of fewer, some wrong ones may be all that is wrong
_NEARBY = 0.25  # of the search radius: how far what no motion verifies may be from where it is expected
_TRUSTED = 2.0  # times the interval that a velocity was measured over: as far ahead as it says something
_UNKNOWN = Motion("none", None, np.zeros(0, dtype=bool))
# besides its descriptor: id, age, gap, stamp, point and velocity; and of a keyframe's keypoint: id and point
_TRACK_BYTES, _KEYFRAME_BYTES = 4 * 8 + 2 * 16, 8 + 16


@dataclass(frozen=True)
class TrackerConfig:
    """Settings of a tracker.

    Attributes:
        min_similarity: least cosine similarity of a keypoint to its track, in [-1, 1].
        search_radius: largest distance from where a track is expected, as a share of the longest side of the image.
        max_gap: frames that a track may go unseen.
        max_tracks: tracks that are remembered; the least lately seen are given up first.
        threshold: largest error of an inlier of the motion, pixels.
        keyframe_share: a frame that still sees less than this share of the last keyframe's tracks is a keyframe.
        keyframe_parallax: so is one where they have moved by more than this on median, as a share of the longest side.
    """

    min_similarity: float = 0.5
    search_radius: float = 0.2
    max_gap: int = 2
    max_tracks: int = 4096
    threshold: float = 3.0
    keyframe_share: float = 0.6
    keyframe_parallax: float = 0.1

    def __post_init__(self) -> None:
        limits = ("min_similarity", "threshold", "search_radius", "keyframe_parallax", "keyframe_share")
        check_numbers(self, whole=("max_gap", "max_tracks"), real=limits)
        if not -1 <= self.min_similarity <= 1:
            raise ConfigError(f"min_similarity is {self.min_similarity}; expected a value in [-1, 1]")
        RansacConfig(self.threshold)  # refuses what the estimators of the motion would
        for name in ("search_radius", "keyframe_parallax"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.keyframe_share <= 1:
            raise ConfigError(f"keyframe_share is {self.keyframe_share}; expected a share in [0, 1]")
        if self.max_gap < 0 or self.max_tracks < 1:
            raise ConfigError(
                f"max_gap is {self.max_gap} and max_tracks {self.max_tracks}; expected at least 0 and at least 1"
            )

    def most_bytes(self, max_keypoints: int, descriptor_dim: int) -> int:
        """Memory that a tracker's state can come to at most, bytes.

        Args:
            max_keypoints: of a frame.
            descriptor_dim: length of a descriptor.
        """
        tracks = max(self.max_tracks, max_keypoints)
        return tracks * (_TRACK_BYTES + 4 * descriptor_dim) + max_keypoints * _KEYFRAME_BYTES


@dataclass
class _Tracks:
    """State of the tracks that are remembered, one row each."""

    ids: IntArray
    ages: IntArray
    gaps: IntArray
    stamps: IntArray
    points: Float64Array
    velocities: Float64Array
    descriptors: Float32Array

    def keep(self, rows: np.ndarray) -> _Tracks:
        return _Tracks(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def join(self, other: _Tracks) -> _Tracks:
        names = self.__dataclass_fields__
        return _Tracks(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


class Tracker:
    """Follows keypoints through the frames of one camera.

    Args:
        config: settings.
        camera: gives normalised coordinates and poses where it is known.
        stereo: a calibrated pair, whose left camera this is; frames with a right image get points in space.

    Raises:
        ConfigError: both are given, and the camera is another than the left one of the pair.
    """

    def __init__(
        self, config: TrackerConfig | None = None, camera: Camera | None = None, stereo: StereoRig | None = None
    ) -> None:
        self.config = config or TrackerConfig()
        if camera is not None and stereo is not None and not camera.same_as(stereo.left):
            raise ConfigError("camera differs from the left one of the stereo pair; expected the same")
        self.camera = camera if stereo is None else stereo.left
        self.stereo = stereo
        self._tracks: _Tracks | None = None
        self._next_id = 0
        self._index = 0
        self._stamp_ns: int | None = None
        self._interval_ns = 0  # between the last two frames
        self._image_size: tuple[int, int] | None = None
        self._model = ""
        self._keyframe_ids: IntArray = np.zeros(0, np.int64)
        self._keyframe_points: Float64Array = np.zeros((0, 2))

    @property
    def nbytes(self) -> int:
        """Memory that the tracks take, bytes."""
        tracks = self._tracks
        if tracks is None:
            return 0
        state = sum(getattr(tracks, name).nbytes for name in tracks.__dataclass_fields__)
        return int(state + self._keyframe_ids.nbytes + self._keyframe_points.nbytes)

    @property
    def num_tracks(self) -> int:
        """Tracks that there have been."""
        return self._next_id

    def update(self, features: Features, stamp_ns: int, right: Features | None = None) -> TrackedFrame:
        """Take the next frame.

        Args:
            features: of the frame; descriptors of one model throughout a sequence.
            stamp_ns: its time in nanoseconds, a whole number, later than that of the frame before.
            right: features of the right image of a stereo pair, whose left one the frame is.

        Raises:
            SequenceError: the stamp is no whole number or not later, the features are of another model or of an image
                of another size, or those of the right image are of another model than these.
        """
        stamp_ns = whole_nanoseconds(stamp_ns, SequenceError)
        if self._stamp_ns is not None and stamp_ns <= self._stamp_ns:
            raise SequenceError(f"frame has the stamp {stamp_ns} ns; expected one after {self._stamp_ns} ns")
        if self._image_size is not None and self._image_size != features.image_size:
            got, expected = (f"{width} x {height}" for width, height in (features.image_size, self._image_size))
            raise SequenceError(f"frame is {got}; expected {expected}, as the frames before")
        points = features.keypoints.astype(np.float64)
        pair = None
        if right is not None:
            limits = {"min_similarity": self.config.min_similarity, "threshold": self.config.threshold}
            pair = match_stereo(features, right, self.stereo, **limits)
        before = self._tracks
        if before is None:
            before = self._started(features, points, np.zeros(0, np.int64), stamp_ns)
        elif self._model != features.model:
            raise SequenceError(f"frame is of model '{features.model}'; expected '{self._model}', as the frames before")
        elif before.descriptors.shape[1] != features.descriptors.shape[1]:
            got, expected = features.descriptors.shape[1], before.descriptors.shape[1]
            raise SequenceError(f"frame has descriptors of length {got}; expected {expected}, as the frames before")
        rows, columns, motion, share = self._associate(before, features, points, stamp_ns)
        seconds = (stamp_ns - before.stamps[rows]) * 1e-9
        seen = before.keep(rows)
        seen.velocities = (points[columns] - seen.points) / seconds[:, None]
        seen.points, seen.descriptors = points[columns], features.descriptors[columns]
        seen.ages, seen.gaps, seen.stamps = seen.ages + 1, np.zeros_like(seen.gaps), np.full_like(seen.stamps, stamp_ns)
        unseen = before.keep(np.setdiff1d(np.arange(len(before.ids)), rows))
        unseen.gaps = unseen.gaps + 1
        fresh = np.setdiff1d(np.arange(len(points)), columns)
        started = self._started(features, points, fresh, stamp_ns)
        # in the order of the keypoints
        current = seen.join(started)
        order = np.argsort(np.concatenate([columns, fresh]), kind="stable")
        current = current.keep(order)
        alive = unseen.gaps <= self.config.max_gap
        room = max(self.config.max_tracks - len(current.ids), 0)
        kept = np.flatnonzero(alive)[np.argsort(unseen.gaps[alive], kind="stable")][:room]
        lost = np.setdiff1d(unseen.ids, unseen.ids[kept])
        self._tracks = current.join(unseen.keep(kept))
        frame = TrackedFrame(
            index=self._index,
            stamp_ns=stamp_ns,
            image_size=features.image_size,
            track_ids=current.ids,
            ages=current.ages,
            keypoints=features.keypoints,
            scores=features.scores,
            sigmas=features.sigmas,
            normalised=None if self.camera is None else self.camera.normalise(points),
            velocities=current.velocities.astype(np.float32),
            new=current.ages == 1,
            lost=lost,
            keyframe=self._is_keyframe(current, max(features.image_size)),
            motion=motion.model,
            matrix=motion.matrix,
            inlier_share=share,
            pose=motion.pose,
            stereo=pair,
        )
        if frame.keyframe:
            self._keyframe_ids, self._keyframe_points = current.ids, current.points
        self._index += 1
        self._interval_ns = 0 if self._stamp_ns is None else stamp_ns - self._stamp_ns
        self._stamp_ns, self._model, self._image_size = stamp_ns, features.model, features.image_size
        return frame

    def _started(self, features: Features, points: Float64Array, rows: IntArray, stamp_ns: int) -> _Tracks:
        count = len(rows)
        ids = np.arange(self._next_id, self._next_id + count, dtype=np.int64)
        self._next_id += count
        return _Tracks(
            ids=ids,
            ages=np.ones(count, np.int64),
            gaps=np.zeros(count, np.int64),
            stamps=np.full(count, stamp_ns, np.int64),
            points=points[rows],
            velocities=np.zeros((count, 2)),
            descriptors=features.descriptors[rows],
        )

    def _associate(
        self, tracks: _Tracks, features: Features, points: Float64Array, stamp_ns: int
    ) -> tuple[IntArray, IntArray, Motion, float]:
        """Rows of tracks and of keypoints that belong together, the model of the motion, and its share of inliers."""
        config = self.config
        none = np.zeros(0, np.int64)
        if not len(tracks.ids) or not len(points):
            return none, none, _UNKNOWN, 0.0
        # a velocity is trusted for the time to the next frame, if that comes about when it should; what has been gone
        # longer is sought where it was last
        ahead = np.minimum(stamp_ns - tracks.stamps, _TRUSTED * self._interval_ns) * (tracks.gaps == 0) * 1e-9
        expected = tracks.points + tracks.velocities * ahead[:, None]
        reach = config.search_radius * max(features.image_size)
        rows, columns = _nearest(tracks.descriptors, expected, features, points, reach, config.min_similarity)
        gaps = tracks.gaps[rows]
        recent = gaps == 0
        near = np.linalg.norm(expected[rows] - points[columns], axis=1) <= _NEARBY * reach
        motion, share = _UNKNOWN, 0.0
        if recent.sum() >= _LEAST_VERIFIED:
            motion = self._motion(tracks.points[rows[recent]], points[columns[recent]])
            if motion.matrix is None and recent.sum() >= _MANY:
                # many matches and no common motion: another scene
                return none, none, _UNKNOWN, 0.0
        kept = near.copy()
        if motion.matrix is not None:
            kept[recent], share = motion.inliers, float(motion.inliers.mean())
        elif recent.sum() < _LEAST_VERIFIED:
            kept[recent] = True
        for gap in range(1, config.max_gap + 1):
            # all of these were seen last in the same frame
            gone = gaps == gap
            if gone.sum() >= _LEAST_VERIFIED:
                since = self._motion(tracks.points[rows[gone]], points[columns[gone]])
                if since.matrix is not None:
                    kept[gone] = since.inliers
        return rows[kept], columns[kept], motion, share

    def _motion(self, before: Float64Array, now: Float64Array) -> Motion:
        return estimate_motion(before, now, threshold=self.config.threshold, camera=self.camera)

    def _is_keyframe(self, current: _Tracks, longest: int) -> bool:
        if not len(current.ids):
            return False
        if not len(self._keyframe_ids):
            return True
        _, first, second = np.intersect1d(self._keyframe_ids, current.ids, assume_unique=True, return_indices=True)
        if len(first) < self.config.keyframe_share * len(self._keyframe_ids):
            return True
        moved = np.linalg.norm(self._keyframe_points[first] - current.points[second], axis=1)
        return bool(len(moved) and np.median(moved) > self.config.keyframe_parallax * longest)


def _nearest(
    descriptors: Float32Array,
    expected: Float64Array,
    features: Features,
    points: Float64Array,
    reach: float,
    min_similarity: float,
) -> tuple[IntArray, IntArray]:
    """Rows of tracks and of keypoints that are each other's most similar within reach."""

    def similarity(block: slice) -> Float32Array:
        cosines: Float32Array = descriptors[block] @ features.descriptors.T
        x, y = (expected[block, axis, None] - points[None, :, axis] for axis in (0, 1))
        near = (np.square(x) + np.square(y) <= reach**2) & (cosines >= min_similarity)
        return np.where(near, cosines, NEVER)

    return mutual_best(len(expected), len(points), similarity)
