"""Frames of ``superpoint track``: read, and their features extracted, ahead of their use."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frontend.camera import Camera
from frontend.errors import ConfigError, FrontendError, ImageError, SequenceError
from frontend.extraction import Prepared
from frontend.extractor import SuperPoint
from frontend.folders import read_ahead
from frontend.sequences import Source, SourceFrame, pair_up
from frontend.stereo import StereoRig
from frontend.types import Features

_Image = NDArray[np.uint8]
_AHEAD = 2  # frames whose features are made before their tracks are


class _Taken(NamedTuple):
    """A frame that has been read; ``problem`` says what is wrong with its right image, if anything."""

    left: Prepared
    right: Prepared | None
    image: _Image | None
    problem: str


class ExtractedFrame(NamedTuple):
    """A frame's features.

    Attributes:
        left: of the image.
        right: of the right one; None without.
        image: itself, where it is kept.
        problem: why there is no right one where one should be; else empty.
    """

    left: Features
    right: Features | None
    image: _Image | None
    problem: str


class FrameReader:
    """Reads the frames of a source and extracts their features, each in a thread, while others are tracked.

    Attributes:
        source: of the frames.
        skipped: frames that could not be read; counted by whoever takes them.
        alone: frames without their right image; the same.
        size: (width, height) of the frames; None before the first, unless it is known.

    Args:
        source: of the frames.
        right: of the right images.
        mask: (H, W) uint8, not 0 where keypoints may be.
        right_mask: the same of the right images.
        size: (width, height) that the frames have to have, as the calibration says.
        right_size: the same of the right images.
        keep_images: whether frames come with their images.

    Raises:
        ConfigError: a mask does not have that size.
        DataError: see :func:`frontend.sequences.pair_up`.
    """

    def __init__(
        self,
        source: Source,
        right: Source | None = None,
        *,
        mask: _Image | None = None,
        right_mask: _Image | None = None,
        size: tuple[int, int] | None = None,
        right_size: tuple[int, int] | None = None,
        keep_images: bool = False,
    ) -> None:
        self.source = source
        self.skipped = self.alone = 0
        self.size = size
        self._size_of = "the calibration says"
        self._right = right
        self._pair = None if right is None else pair_up(source, right)
        self._right_size = right_size
        self._right_size_of = "the calibration says"
        self._mask, self._right_mask = mask, right_mask
        if mask is not None:
            self.size, self._size_of = _size_of(mask, "mask", size), "the mask is"
        if right_mask is not None:
            self._right_size, self._right_size_of = _size_of(right_mask, "right mask", right_size), "the right mask is"
        self._keep = keep_images

    def total(self, every: int, limit: int) -> int | None:
        """Frames that there will be, as far as is known."""
        count = self.source.count
        if count is None:
            return None
        taken = -(-count // every)
        return min(taken, limit) if limit else taken

    def doubts(self, camera: Camera | None, rig: StereoRig | None) -> list[str]:
        """What is odd about a calibration, a line each; asked when the first frame has been read.

        Args:
            camera: of the images.
            rig: that it is in, if any.
        """
        right = None if rig is None else rig.right
        named = (("camera", camera, self.size), ("right camera", right, self._right_size))
        return [_outside(name, one, size) for name, one, size in named if one and size and not _holds(size, one)]

    def features(
        self, extractor: SuperPoint, every: int = 1, limit: int = 0
    ) -> Generator[tuple[SourceFrame, ExtractedFrame | FrontendError | None], None, None]:
        """Frames with their features, or with why there are none; None where a video has ended.

        Args:
            extractor: of the features.
            every: take one frame of so many.
            limit: frames at most; 0 takes all.
        """
        read, extract = partial(self._read, extractor), partial(_extract, extractor)
        frames = islice(self.source.frames(), 0, None, every)
        wanted = islice(frames, limit) if limit else frames
        taken = read_ahead(read, wanted, name=lambda frame: frame.name)
        for (frame, _), found in read_ahead(extract, taken, ahead=_AHEAD, name=lambda item: item[0].name):
            yield frame, found

    def _read(self, extractor: SuperPoint, frame: SourceFrame) -> _Taken | None:
        image = self.source.read(frame)
        if image is None:
            return None
        size = (image.shape[1], image.shape[0])
        if self.size is None:
            self.size, self._size_of = size, "the frames before"
        if size != self.size:
            raise SequenceError(f"{frame.name}: is {_by(size)}; expected {_by(self.size)}, as {self._size_of}")
        prepared = extractor.prepare(image, mask=self._mask)
        right, problem = self._read_right(extractor, frame)
        return _Taken(prepared, right, image if self._keep else None, problem)

    def _read_right(self, extractor: SuperPoint, frame: SourceFrame) -> tuple[Prepared | None, str]:
        if self._right is None or self._pair is None:
            return None, ""
        other = self._pair(frame)
        if other is None:
            return None, f"{self._right.name} has none of {frame.stamp_ns} ns"
        try:
            image = self._right.read(other)
        except ImageError as error:
            return None, str(error)
        if image is None:
            return None, f"{self._right.name} has ended"
        size = (image.shape[1], image.shape[0])
        if self._right_size is None:
            self._right_size, self._right_size_of = size, "those before"
        if size != self._right_size:
            expected = f"{_by(self._right_size)}, as {self._right_size_of}"
            raise SequenceError(f"{other.name}: is {_by(size)}; expected {expected}")
        return extractor.prepare(image, mask=self._right_mask), ""


def _extract(extractor: SuperPoint, item: tuple[SourceFrame, _Taken | FrontendError | None]) -> ExtractedFrame | None:
    taken = item[1]
    if isinstance(taken, FrontendError):
        raise taken
    if taken is None:
        return None
    right = None if taken.right is None else _features(extractor, taken.right)
    return ExtractedFrame(_features(extractor, taken.left), right, taken.image, taken.problem)


def _features(extractor: SuperPoint, prepared: Prepared) -> Features:
    """Of one image: those of a pair are what they would be each alone, to the last bit."""
    batch = extractor.stack([prepared])
    return extractor.collect(extractor.postprocess(extractor.forward(batch), batch), batch)[0]


def _size_of(mask: _Image, name: str, size: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of a mask, which has to be that of its images where the calibration tells it."""
    given = (mask.shape[1], mask.shape[0])
    if size is not None and size != given:
        raise ConfigError(f"{name} is {_by(given)}; expected {_by(size)}, as the calibration says")
    return given


def _holds(size: tuple[int, int], camera: Camera) -> bool:
    x, y = camera.K[:2, 2].tolist()
    return bool(0 <= x <= size[0] and 0 <= y <= size[1])


def _outside(name: str, camera: Camera, size: tuple[int, int]) -> str:
    x, y = camera.K[:2, 2].tolist()
    given = f"the principal point ({x:g}, {y:g}) of the {name} lies outside its images of {_by(size)}"
    return f"{given}; is this the calibration of another resolution?"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def one_line(text: str) -> str:
    """A line about a frame; names of files may have line breaks."""
    return " ".join(text.splitlines())
