"""Sequences of images on disk: folders as EuRoC, TUM and KITTI have them, folders of any images, and video files.

Where the stamps of a folder come from, in this order: ``data.csv`` (EuRoC: nanoseconds and names of files in
``data/``), ``rgb.txt`` (TUM: seconds and names), ``timestamps.txt`` (KITTI's raw data: dates and times, a line for each
image in ``data/``), ``times.txt`` (KITTI's odometry: seconds, a line for each image, which may be named by its line's
number, from 0), names that are stamps (``1403636579763555584.png`` in nanoseconds of 18 or 19 digits,
``1305031102.175304.png`` in seconds), else the number of the image and a frame rate; names that are times of another
kind are refused without one. The folder may be that of the images, or one above them, as the data sets are unpacked.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.errors import DataError
from frontend.image import is_image_name, read_image
from frontend.sequence_lists import FARTHEST_NS, KITTI_RAW, find_list, images_in, read_list

DEFAULT_FPS = 30.0
"""Frames a second of images that have no stamps."""

_FASTEST = 10_000.0  # frames a second; more is a mistake, or the time base of a video that tells no rate
_SAME_RATE = 0.01  # of a pair's videos: the clocks of two cameras differ by less
_SAME_NS = 1_000_000  # stamps of a pair's images: those of two cameras that are triggered together differ by less
_SAME_RAW_NS = 20_000_000  # of KITTI's raw data: each camera has a list of its own, of frames 100 ms apart
_NANOSECONDS = re.compile(r"\d{18,19}")  # of the years since 1973
_SECONDS = re.compile(r"\d+\.\d+")
# numbers that do not count frames: a clock's milliseconds since 1970, or steps of so many ticks
_CLOCK = re.compile(r"[1-9]\d{12,}")
_CLOCK_STEP = 1000

_Image = NDArray[np.uint8]


class SourceFrame(NamedTuple):
    """A frame that has not been read.

    Attributes:
        number: in the source, from 0.
        stamp_ns: its time, nanoseconds.
        name: for lines about it.
    """

    number: int
    stamp_ns: int
    name: str


class Source(Protocol):
    """Frames in the order of their stamps, which rise.

    Attributes:
        name: the folder of the images, or the video.
        stamps: where stamps come from, in words.
        stamped: whether they are times that were measured, and not numbers of frames.
        count: frames, as far as it is known; a video may have another number than it says.
        interval_ns: time between frames, the median.
        files: that are read: the list and the images, or the video.
    """

    @property
    def name(self) -> str: ...

    @property
    def stamps(self) -> str: ...

    @property
    def stamped(self) -> bool: ...

    @property
    def count(self) -> int | None: ...

    @property
    def interval_ns(self) -> int: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def frames(self) -> Iterator[SourceFrame]:
        """All frames; of a video no end is known."""

    def read(self, frame: SourceFrame) -> _Image | None:
        """Read a frame; those of a video in their order.

        Returns:
            (H, W) or (H, W, 3) uint8 BGR; None where the source has ended.

        Raises:
            ImageError: it cannot be read.
        """


@dataclass(frozen=True)
class ImageFolder:
    """Images as files; see :class:`Source`.

    Attributes:
        paths: of the images.
        listed: their stamps, nanoseconds.
        white: of images of more than 8 bits, see :func:`frontend.image.to_uint8`.
        list_path: of the data set's list; None where there is none.
    """

    name: str
    stamps: str
    stamped: bool
    paths: Sequence[Path]
    listed: Sequence[int]
    white: int | None = None
    list_path: Path | None = None

    @property
    def count(self) -> int:
        """Images."""
        return len(self.paths)

    @property
    def interval_ns(self) -> int:
        """Median of the times between images."""
        return int(np.median(np.diff(self.listed))) if len(self.listed) > 1 else round(1e9 / DEFAULT_FPS)

    @property
    def files(self) -> Sequence[Path]:
        """The list and the images."""
        return self.paths if self.list_path is None else [self.list_path, *self.paths]

    def frames(self) -> Iterator[SourceFrame]:
        """All images."""
        for index, (path, stamp_ns) in enumerate(zip(self.paths, self.listed, strict=True)):
            yield SourceFrame(index, stamp_ns, str(path))

    def read(self, frame: SourceFrame) -> _Image | None:
        """Read an image, see :class:`Source`; of a pair with a video a folder may have the fewer frames."""
        return None if frame.number >= len(self.paths) else read_image(self.paths[frame.number], white=self.white)


class VideoFile:
    """A video that OpenCV decodes; see :class:`Source`. Frames that are not asked for are passed over.

    Args:
        path: of the file.
        fps: frames a second, instead of what the file says.

    Raises:
        DataError: it is no video, or tells no frame rate and none is given.
    """

    stamped = False

    def __init__(self, path: Path, fps: float | None = None) -> None:
        self.name = str(path)
        self.files: Sequence[Path] = (path,)
        try:
            # absolute, as FFmpeg would take what stands before a colon for a protocol
            self._capture = cv2.VideoCapture(os.path.abspath(path))
            opened = bool(self._capture.isOpened())
        except (cv2.error, UnicodeError):
            opened = False
        if not opened:
            raise DataError(f"{path}: is no video that OpenCV decodes; expected a folder of images, or a video")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS)) if fps is None else fps
        if not 0 < rate <= _FASTEST:
            raise DataError(f"{path}: tells a frame rate of {rate:g}; expected one, or --fps")
        self.stamps = f"{rate:g} frames a second"
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if 0 < count < 2**53 else None
        self.interval_ns = round(1e9 / rate)
        self._rate = rate
        self._next = 0

    def frames(self) -> Iterator[SourceFrame]:
        """Frames without an end."""
        for index in itertools.count():
            yield SourceFrame(index, round(index * 1e9 / self._rate), f"{self.name}: frame {index}")

    def read(self, frame: SourceFrame) -> _Image | None:
        """Read a frame, see :class:`Source`."""
        while self._next < frame.number:
            if not self._capture.grab():
                return None
            self._next += 1
        found, image = self._capture.read()
        self._next += 1
        return np.asarray(image, np.uint8) if found else None


def open_source(path: Path, *, fps: float | None = None, white: int | None = None) -> Source:
    """Find the frames of a folder or a video.

    Args:
        path: of either.
        fps: frames a second; stamps are the numbers of the frames at this rate, whatever names or lists say. Where
            None, images without stamps have :data:`DEFAULT_FPS` and videos their own rate.
        white: of images of more than 8 bits.

    Raises:
        DataError: there is nothing of the kind, a list is not as it should be, or stamps do not rise.
    """
    if path.is_dir():
        return _open_folder(path, fps, white)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; expected a folder of images, or a video")
    if not path.is_file() or is_image_name(path):
        kind = "an image" if path.is_file() else "no regular file"
        raise DataError(f"{path}: is {kind}; expected a folder of images, or a video")
    return VideoFile(path, fps)


def pair_up(left: Source, right: Source) -> Callable[[SourceFrame], SourceFrame | None]:
    """Which right image belongs to a left one.

    By their stamps where both have any (within a millisecond; KITTI's raw data within 20, as their cameras are stamped
    one by one), else by the names of the files, else by their numbers.

    Args:
        left: of the sequence.
        right: of the other camera.

    Returns:
        A function that gives the right frame; None where there is none.

    Raises:
        DataError: nothing tells which belong together, or they are the same.
    """
    if os.path.realpath(left.name) == os.path.realpath(right.name):
        raise DataError(f"{right.name}: is the left one, too; expected the images of another camera")
    if not (isinstance(left, ImageFolder) and isinstance(right, ImageFolder)):
        if left.stamped != right.stamped:
            raise DataError(
                f"{right.name}: has stamps by {right.stamps}, {left.name} by {left.stamps}; expected the same, or --fps"
            )
        if isinstance(left, VideoFile) and isinstance(right, VideoFile):
            apart = abs(left.interval_ns - right.interval_ns)
            if apart > _SAME_RATE * min(left.interval_ns, right.interval_ns):
                raise DataError(
                    f"{right.name}: has {right.stamps}, {left.name} {left.stamps}; expected the same, or --fps"
                )
        return lambda frame: frame._replace(name=f"{right.name}: frame {frame.number}")
    others = list(right.frames())
    if left.stamped and right.stamped:
        both = [side.list_path is not None and side.list_path.name == KITTI_RAW for side in (left, right)]
        same = _SAME_RAW_NS if all(both) else _SAME_NS
        stamps = np.array([other.stamp_ns for other in others])
        nearest = np.abs(stamps[_nearest(stamps, np.array(left.listed))] - np.array(left.listed))
        if nearest.min() > same:
            raise DataError(
                f"{right.name}: no image has the stamp of one of {left.name} (the nearest is {nearest.min()} ns away); "
                "expected pairs"
            )

        def by_stamp(frame: SourceFrame) -> SourceFrame | None:
            found = others[int(_nearest(stamps, np.array([frame.stamp_ns]))[0])]
            return found if abs(found.stamp_ns - frame.stamp_ns) <= same else None

        return by_stamp
    named = {path.name: other for path, other in zip(right.paths, others, strict=True)}
    if any(path.name in named for path in left.paths):
        return lambda frame: named.get(left.paths[frame.number].name)
    if left.count == right.count:
        return lambda frame: others[frame.number]
    raise DataError(
        f"{right.name}: has {right.count} images, {left.name} {left.count}, and neither stamps nor names in common; "
        "expected pairs"
    )


def _nearest(stamps: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each wanted stamp, the row of the nearest one; ``stamps`` rise."""
    after = np.clip(np.searchsorted(stamps, wanted), 1, max(len(stamps) - 1, 1))
    if len(stamps) == 1:
        return np.zeros(len(wanted), np.int64)
    return np.asarray(after - (wanted - stamps[after - 1] <= stamps[after] - wanted), np.int64)


def _open_folder(folder: Path, fps: float | None, white: int | None) -> ImageFolder:
    home, listed, paths, stamps = folder, find_list(folder), list[Path](), list[int | None]()
    if listed is not None:
        words = listed.name
        home, rows = read_list(listed, folder, stamped=fps is None)
        paths, stamps = [path for path, _ in rows], [stamp for _, stamp in rows]
        if not paths:
            raise DataError(f"{listed}: has no frame; expected one at least")
    else:
        words = "names of the images"
        paths = images_in(folder)
        if not paths:
            raise DataError(f"{folder}: has no image; expected images, or the folder of a data set")
        stamps = [_stamp_of(path.stem) for path in paths]
        others = sum(stamp is not None for stamp in stamps)
        if 0 < others < len(paths) and fps is None:
            odd = paths[stamps.index(None)].name
            raise DataError(f"{folder}: the name of {odd} is no stamp, those of {others} others are; expected all")
        if not others and fps is None:
            _refuse_unknown_clock(folder, [path.stem for path in paths])
        if others == len(paths):
            order = sorted(range(len(paths)), key=lambda n: stamps[n] or 0)
            paths, stamps = [paths[n] for n in order], [stamps[n] for n in order]
    times = [stamp for stamp in stamps if stamp is not None]
    if fps is not None or not times:
        rate = DEFAULT_FPS if fps is None else fps
        at_rate = [round(n * 1e9 / rate) for n in range(len(paths))]
        return ImageFolder(str(home), f"{rate:g} frames a second", False, paths, at_rate, white, listed)
    for n in range(1, len(times)):
        if times[n] <= times[n - 1]:
            raise DataError(f"{paths[n]}: has the stamp {times[n]} ns in {words}; expected one after {times[n - 1]} ns")
    return ImageFolder(str(home), words, True, paths, times, white, listed)


def _refuse_unknown_clock(folder: Path, stems: Sequence[str]) -> None:
    """Names that are times of an unknown unit would make a sequence at a wrong rate, and nobody would notice."""
    if len(stems) < 2 or not all(stem.isdecimal() for stem in stems):
        return
    step = float(np.median(np.diff([float(stem) for stem in stems])))
    if step >= _CLOCK_STEP or (step > 1 and all(_CLOCK.fullmatch(stem) for stem in stems)):
        raise DataError(
            f"{folder}: names such as {stems[1]} rise by {step:.0f}, so that they count no frames, and are no stamps; "
            "expected nanoseconds of 18 or 19 digits, seconds with a point, or --fps"
        )


def doubt_of_names(source: Source) -> str:
    """A line where names of images are numbers that have not become stamps and do not count frames; else empty.

    They may be those of frames that were taken out, or times of a unit that nothing tells.
    """
    if source.stamped or not isinstance(source, ImageFolder) or source.list_path is not None:
        return ""
    stems = [path.stem for path in source.paths]
    if not all(stem.isdecimal() for stem in stems):
        return ""
    odd = next((n for n in range(1, len(stems)) if int(stems[n]) - int(stems[n - 1]) != 1), None)
    if odd is None:
        return ""
    return (
        f"{source.name}: {stems[odd]} follows {stems[odd - 1]}, but images are taken to be evenly apart, at "
        f"{source.stamps}; if names are times, they are not used"
    )


def _stamp_of(stem: str) -> int | None:
    """Nanoseconds, where the name of a file tells them."""
    if _NANOSECONDS.fullmatch(stem):
        return int(stem) if int(stem) <= FARTHEST_NS else None
    if _SECONDS.fullmatch(stem) and abs(float(stem)) * 1e9 < FARTHEST_NS:
        return int((Decimal(stem) * 10**9).to_integral_value())
    return None


def check_rate(fps: float) -> float:
    """Refuse what is no frame rate.

    Raises:
        DataError: it is not above 0, or too high for one.
    """
    if not (math.isfinite(fps) and 0 < fps <= _FASTEST):
        raise DataError(f"frame rate is {fps:g}; expected a number above 0, {_FASTEST:g} at most")
    return fps
