"""Tracks drawn into the frames of a video."""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.errors import ConfigError
from frontend.image import rescale_points
from frontend.types import TrackedFrame
from frontend.viz import to_bgr

# by the age that a track has reached: from blue for young ones to yellow for old ones
_AGES = (2, 4, 8, 16, 32)
_COLORS = ((230, 120, 40), (200, 190, 40), (110, 210, 60), (60, 200, 170), (40, 220, 240))
_NEW = (150, 150, 150)
_KEYFRAME = (60, 60, 235)
_TEXT = (235, 235, 235)
_STRIP = 24  # pixels at the bottom that the text stands on
_SHIFT = 4  # drawing coordinates are in 1/16 pixel
_SLOWEST, _FASTEST = 1.0, 120.0  # frames a second; a player shows the others as nothing


class TrackVideo:
    """Writes an MPEG-4 video with the tracks of each frame: a dot, and a trail of where the track was before.

    New tracks are gray; the others have the colour of their age. A keyframe has a red rim.

    Args:
        path: of the file; ends in .mp4, by which OpenCV knows what it is to be.
        fps: frames a second; brought into 1 to 120.
        name: of the file in errors; ``path`` where None.
        trail: places of a track that are shown.
        max_side: frames with a longer side are reduced to it, pixels.
    """

    def __init__(
        self, path: Path, fps: float, *, name: str | None = None, trail: int = 12, max_side: int = 1280
    ) -> None:
        self.path = path
        self._name = str(path) if name is None else name
        self.fps = round(min(max(fps, _SLOWEST), _FASTEST), 3)
        self._trail = trail
        self._max_side = max_side
        self._trails: dict[int, deque[tuple[float, float]]] = {}
        self._writer: cv2.VideoWriter | None = None
        self._count = 0  # of the frames that were written

    def add(self, image: NDArray[np.uint8], frame: TrackedFrame) -> None:
        """Draw and write the next frame.

        Args:
            image: that the frame is of, (H, W) or (H, W, 3) BGR; all of one size.
            frame: tracked.

        Raises:
            ConfigError: OpenCV cannot write such a video, or not this frame.
        """
        picture = self._draw(image, frame)
        try:
            if self._writer is None:
                size = (picture.shape[1], picture.shape[0])
                code = cv2.VideoWriter.fourcc(*"mp4v")  # which is in FFmpeg itself; H.264 is not in pip's OpenCV
                self._writer = cv2.VideoWriter(str(self.path), code, self.fps, size)
                if not self._writer.isOpened():
                    raise ConfigError(f"{self._name}: this OpenCV writes no MPEG-4 video of {size[0]} x {size[1]}")
            self._writer.write(picture)
        except cv2.error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{self._name}: OpenCV ended the video after {self._count} frames ({reason})") from None
        self._count += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: the file does not have all frames, as on a full disk.
        """
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        # the writer never tells that it could not write
        capture = cv2.VideoCapture(os.path.abspath(self.path))
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found != self._count:
            raise OSError(errno.EIO, "the video is not whole", self._name)

    def _draw(self, image: NDArray[np.uint8], frame: TrackedFrame) -> NDArray[np.uint8]:
        canvas = to_bgr(image)
        canvas = canvas.copy() if canvas is image else canvas
        height, width = canvas.shape[:2]
        scale = min(1.0, self._max_side / max(width, height))
        # an odd column or row would be cut off
        size = tuple(max(2, round(side * scale) // 2 * 2) for side in (width, height))
        scales = (size[0] / width, size[1] / height)
        if size != (width, height):
            canvas = np.asarray(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA), np.uint8)
        canvas = canvas // 4 * 3  # tracks stand out from what is darker
        for track in frame.lost.tolist():
            self._trails.pop(track, None)
        points = rescale_points(frame.keypoints.astype(np.float64), scales)
        by_age: list[list[NDArray[np.int32]]] = [[] for _ in _COLORS]
        for track, age, point in zip(frame.track_ids.tolist(), frame.ages.tolist(), points.tolist(), strict=True):
            trail = self._trails.setdefault(track, deque(maxlen=self._trail))
            trail.append((point[0], point[1]))
            if age > 1:
                row = sum(age >= limit for limit in _AGES) - 1
                by_age[row].append(np.rint(np.array(trail) * (1 << _SHIFT)).astype(np.int32))
        for x, y in _fixed(points[frame.new]):
            cv2.circle(canvas, (x, y), 1 << _SHIFT, _NEW, -1, cv2.LINE_AA, _SHIFT)
        for color, trails in zip(_COLORS, by_age, strict=True):
            cv2.polylines(canvas, trails, False, color, 1, cv2.LINE_AA, _SHIFT)
            for ends in trails:
                cv2.circle(canvas, ends[-1].tolist(), 2 << _SHIFT, color, -1, cv2.LINE_AA, _SHIFT)
        old = int((~frame.new).sum())
        text = f"{frame.index}  {len(frame.new)} keypoints, {old} tracked  {frame.motion}"
        text += "  keyframe" if frame.keyframe else ""
        canvas[-_STRIP:] //= 4
        cv2.putText(canvas, text, (8, size[1] - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _TEXT, 1, cv2.LINE_AA)
        if frame.keyframe:
            cv2.rectangle(canvas, (1, 1), (size[0] - 2, size[1] - 2), _KEYFRAME, 3)
        return canvas


def _fixed(points: NDArray[np.float64]) -> list[list[int]]:
    return [[int(x), int(y)] for x, y in np.rint(points * (1 << _SHIFT))]
