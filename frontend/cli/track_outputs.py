"""What ``superpoint track`` writes: files under a name of their own until they are done."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from frontend.errors import ConfigError, FrontendError
from frontend.odometry import StereoOdometry
from frontend.terminal import write
from frontend.track_files import COLUMNS, STEREO_COLUMNS, TUM_HEADING, TrackStatistics, kitti_line, track_rows, tum_line
from frontend.track_video import TrackVideo
from frontend.types import Pose

if TYPE_CHECKING:
    from frontend.types import TrackedFrame

STDOUT = "-"
_LONGEST_NAME = 200  # bytes; what is put beside it has to fit, too


class PartFile:
    """A file that appears under its name when it is done, and until then lies beside it: ``NAME.PID.part.ENDING``.

    Unlike what :mod:`frontend.atomic` makes it can be watched, and is found where the process was killed. A link stays,
    and what is there and no regular file (a device, a pipe) is written to directly.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._target = Path(os.path.realpath(name))
        self.path = self._target
        if not self._target.exists() or self._target.is_file():
            self._target.parent.mkdir(parents=True, exist_ok=True)
            stem = os.fsencode(self._target.stem)[:_LONGEST_NAME].decode(errors="ignore")
            self.path = self._target.with_name(f"{stem}.{os.getpid()}.part{self._target.suffix}")

    def keep(self) -> None:
        """Give it its name; its content is on the disk then."""
        if self.path != self._target:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.path, self._target)

    def drop(self) -> None:
        """Remove it; what has its name stays."""
        if self.path != self._target:
            with suppress(OSError):
                self.path.unlink()


class TrackOutputs:
    """Tracks, poses and video of a sequence, written frame by frame.

    What is done is kept when the block ends, also where it is interrupted or a frame cannot be taken; it is dropped
    where there is no frame, and where something else goes wrong, such as a full disk. A video that cannot be written
    to its end is dropped alone.

    Attributes:
        statistics: of the frames.
        poses: that were written.
        lost: the first frame without a pose after one with it; None where there is none.
        video_failure: why there is no video, with its name; None while there is one, or none is wanted.

    Args:
        out: name of the CSV file, compressed where it ends in .gz; "-" for stdout.
        stereo: whether there is a right image.
        poses: name of the file of poses.
        kitti: whether these are KITTI's, with a line for each frame; else TUM's, with one for each pose.
        odometry: that places frames; given with ``poses``.
        video: name of the video.
        fps: of the video, frames a second.
    """

    def __init__(
        self,
        out: str,
        *,
        stereo: bool = False,
        poses: str | None = None,
        kitti: bool = False,
        odometry: StereoOdometry | None = None,
        video: str | None = None,
        fps: float = 30.0,
    ) -> None:
        self.statistics = TrackStatistics()
        self.poses = 0
        self.lost: int | None = None
        self.video_failure: str | None = None
        self._untold: str | None = None
        self._odometry = odometry
        self._kitti = kitti
        self._pose = Pose(np.eye(3), np.zeros(3))  # the last one that is known
        self._stereo = stereo
        self._files: list[PartFile] = []
        self._out = self._poses = None
        self._video: TrackVideo | None = None
        self._video_file: PartFile | None = None
        self._stack = ExitStack()
        try:
            self._out = self._text(out)
            self._out.write(f"{COLUMNS}{STEREO_COLUMNS if stereo else ''}\n")
            if poses is not None:
                self._poses = self._text(poses)
                self._poses.write("" if kitti else TUM_HEADING + "\n")
            if video is not None:
                self._video_file = PartFile(video)
                self._video = TrackVideo(self._video_file.path, fps, name=video)
        except BaseException as failure:  # what is there goes again, where the next cannot be
            self.__exit__(type(failure), failure, None)
            raise

    def __enter__(self) -> TrackOutputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = kind is None or issubclass(kind, (KeyboardInterrupt, FrontendError))
        kept = False
        try:
            self._stack.close()
            if whole and self.statistics.frames:
                for file in self._files:
                    file.keep()
                kept = True
        except OSError as failure:
            self._name(failure)
            raise
        finally:
            if isinstance(error, OSError):
                self._name(error)
            for file in self._files:
                file.drop()  # those that have been kept are no longer there
            self._end_video(kept)

    def _name(self, error: OSError) -> None:
        """Have an error tell the file's name that the user knows."""
        error.filename = next((f.name for f in self._files if str(f.path) == error.filename), error.filename)

    def add(self, frame: TrackedFrame, image: Any = None) -> None:
        """Write a frame; what is written of it is with the system when this returns, but for the video.

        Args:
            frame: tracked.
            image: that it is of; needed for a video.
        """
        _write(self._out, track_rows(frame, self._stereo))
        if self._odometry is not None and self._poses is not None:
            pose = self._odometry.update(frame)
            if pose is not None:
                self._pose = pose
                _write(self._poses, kitti_line(pose) if self._kitti else tum_line(frame.stamp_ns, pose))
                self.poses += 1
            else:
                self.skip()
                if self.poses and self.lost is None:
                    self.lost = frame.index
        if self._video is not None:
            try:
                self._video.add(image, frame)
            except FrontendError as error:
                self._fail(str(error))
                self._end_video(False)
        self.statistics.add(frame)

    def skip(self) -> None:
        """Go on to the next frame, as this one has no pose, or could not be read.

        KITTI's lines have no stamps: a frame is where the one before it was, or in the origin where none is known yet.
        """
        if self._kitti:
            _write(self._poses, kitti_line(self._pose))

    def news(self) -> str | None:
        """What became of the video, once where it was lost; else None."""
        text, self._untold = self._untold, None
        return text

    def _end_video(self, keep: bool) -> None:
        """Finish the video and give it its name, or remove it; what fails is told by :meth:`news` and no error."""
        video, file, self._video = self._video, self._video_file, None
        if video is None or file is None:
            return
        try:
            video.close()
            if keep:
                file.keep()
        except OSError as error:
            self._fail(f"{file.name}: {error.strerror}")
        finally:
            file.drop()

    def _fail(self, reason: str) -> None:
        if self.video_failure is None:  # the first is the cause of others
            self.video_failure = self._untold = reason

    def _part(self, name: str) -> Path:
        self._files.append(PartFile(name))
        return self._files[-1].path

    def _text(self, name: str) -> TextIO:
        if name == STDOUT:
            return sys.stdout
        path = self._part(name)
        if name.endswith(".gz"):
            packed = gzip.open(path, "wt", compresslevel=4, encoding="ascii", newline="")  # noqa: SIM115
            return self._stack.enter_context(packed)
        return self._stack.enter_context(path.open("w", encoding="ascii", newline=""))


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        write(stream, text)


def check_outputs(outputs: Iterable[tuple[str, str | None]], inputs: Iterable[str | None]) -> None:
    """Refuse outputs that cannot be written, before any work is done for them.

    Args:
        outputs: option and name of each; no name where it is not wanted.
        inputs: files that are read.

    Raises:
        ConfigError: with the file and the reason.
    """
    taken = {os.path.realpath(name) for name in inputs if name is not None}
    streams = 0
    for option, name in outputs:
        if name is None:
            continue
        if name == STDOUT:
            streams += 1
            if streams > 1:
                raise ConfigError(f"{option}: is stdout, as another output is; expected one of them to be a file")
            continue
        path = Path(os.path.realpath(name))
        if name.endswith(("/", os.sep)) or path.is_dir():
            raise ConfigError(f"{name}: is a folder; expected a file name for {option}")
        if str(path) in taken:
            raise ConfigError(f"{name}: {option} would overwrite an input or another output")
        taken.add(str(path))
        if path.exists() and not path.is_file():
            continue  # a device or a pipe
        parent = next(parent for parent in path.parents if parent.exists())
        if not parent.is_dir():
            raise ConfigError(f"{name}: {parent} is a file; expected a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ConfigError(f"{name}: {parent} cannot be written; expected a folder that can")


def check_inputs(outputs: Iterable[tuple[str, str | None]], files: Sequence[Path]) -> None:
    """Refuse outputs that are among the files of a sequence: its list, its images, or the video.

    Args:
        outputs: option and name of each; no name where it is not wanted.
        files: of the sequence; may be very many.

    Raises:
        ConfigError: with the file.
    """
    # a file that is not there can be no input, and few outputs are there: then all of the images are looked at
    names = [(option, name) for option, name in outputs if name not in (None, STDOUT)]
    held = [(option, name, os.stat(name)) for option, name in names if name is not None and os.path.isfile(name)]
    for path in files if held else ():
        with suppress(OSError, ValueError):  # one that is missing is told when it is read
            found = path.stat()
            for option, name, state in held:
                if os.path.samestat(state, found):
                    raise ConfigError(f"{name}: {option} would overwrite an input")
