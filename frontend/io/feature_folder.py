"""A folder of feature files: names of the images, and features that are read when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontend.errors import DataError
from frontend.feature_files import read_features
from frontend.folders import SETTINGS, read_settings, reading_npz
from frontend.types import Features
from frontend.weights import sha256_of

MEMORY = 512 << 20
"""Bytes of features that stay in memory, two images' at least: blocks of pairs read each image a few times."""

_ENDING = ".npz"


def _size(features: Features) -> int:
    return features.keypoints.nbytes + features.scores.nbytes + features.descriptors.nbytes


def _is_utf8(name: str) -> bool:
    """Whether a name has none of the bytes that file systems hold and UTF-8 does not, which Python escapes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Stamp:
    """What tells a feature file from another one.

    Attributes:
        sha256: of its content.
        size: of the file, bytes.
        mtime_ns: time of its last change.
    """

    sha256: str
    size: int
    mtime_ns: int


class FeatureFolder:
    """What ``superpoint extract`` has written: ``sub/a.jpg.npz`` holds the features of the image ``sub/a.jpg``.

    Args:
        folder: of the feature files, searched with its sub-folders.
        memory: see :data:`MEMORY`.

    Attributes:
        names: of the images, with their endings, relative to their folder, by ``/``, in the order of extraction.
        settings: what the files were made with, by name, as far as the folder says.

    Raises:
        DataError: the folder is missing or has no feature file, a name is not UTF-8, or its record cannot be read.
    """

    def __init__(self, folder: Path, *, memory: int = MEMORY) -> None:
        if not folder.is_dir():
            raise DataError(f"feature folder {folder} is {'a file' if folder.is_file() else 'missing'}")
        found = (path for path in folder.rglob(f"*{_ENDING}") if path.is_file() and not path.name.startswith("."))
        images = sorted(path.relative_to(folder).with_name(path.name[: -len(_ENDING)]) for path in found)
        if not images:
            raise DataError(f"feature folder {folder} has no feature file; expected those of 'superpoint extract'")
        self.folder = folder
        self.names = tuple(image.as_posix() for image in images)
        odd = next((name for name in self.names if not _is_utf8(name)), None)
        if odd is not None:
            raise DataError(f"image {odd!r} has a name that is not UTF-8; expected one that map builders can read")
        self.settings: dict[str, Any] = read_settings(folder) if (folder / SETTINGS).is_file() else {}
        self._memory, self._used = memory, 0
        self._stats: dict[int, tuple[int, int]] = {}
        self._kept: OrderedDict[int, Features] = OrderedDict()
        self._model: tuple[str, int, Path] | None = None

    def path(self, index: int) -> Path:
        """The file with the features of an image, given by its place among the names."""
        return self.folder / f"{self.names[index]}{_ENDING}"

    def read(self, index: int) -> Features:
        """Features of an image; those used last are at hand.

        Raises:
            DataError: its file cannot be read, is of another model than the files that were read before, or was changed
                since it was used first.
        """
        features = self._kept.get(index)
        if features is not None:
            self._kept.move_to_end(index)
            return features
        before = self._stat(index)
        features = read_features(self.path(index))
        self._check(index, features)
        self._same(index, before)
        self._kept[index] = features
        self._used += _size(features)
        while self._used > self._memory and len(self._kept) > 2:
            _, oldest = self._kept.popitem(last=False)
            self._used -= _size(oldest)
        return features

    def stamp(self, index: int) -> Stamp:
        """What tells an image's feature file from another one; reads all of it.

        Raises:
            DataError: it cannot be read, or was changed since it was used first.
        """
        before = self._stat(index)
        try:
            digest = sha256_of(self.path(index))
        except OSError as error:
            raise DataError(f"feature file {self.path(index)} cannot be read: {error.strerror}") from None
        self._same(index, before)
        return Stamp(digest, *before)

    def is_as(self, index: int, stamp: Stamp) -> bool:
        """Whether an image's feature file is that of a stamp; it is read only where size or time are others.

        Raises:
            DataError: it cannot be read.
        """
        return self._stat(index) == (stamp.size, stamp.mtime_ns) or self.stamp(index).sha256 == stamp.sha256

    def _stat(self, index: int) -> tuple[int, int]:
        """Size and time of a feature file."""
        try:
            stat = self.path(index).stat()
        except OSError as error:
            raise DataError(f"feature file {self.path(index)} cannot be read: {error.strerror}") from None
        return stat.st_size, stat.st_mtime_ns

    def _same(self, index: int, before: tuple[int, int]) -> None:
        """Refuse a file that was changed while it was read, or since it was read first."""
        if not before == self._stat(index) == self._stats.setdefault(index, before):
            raise DataError(
                f"feature file {self.path(index)} was changed meanwhile; expected it to stay while it is used"
            )

    def check_sizes(self) -> None:
        """Refuse images of several sizes, which one camera has not taken.

        Raises:
            DataError: there are such, or a file cannot be read.
        """
        first = self.read(0).image_size
        for index, name in enumerate(self.names):
            with reading_npz(self.path(index), "feature file") as file:
                size = tuple(int(value) for value in file["image_size"].ravel())
            if size != first:
                raise DataError(
                    f"image {name} has {' x '.join(map(str, size))} pixels; expected {first[0]} x {first[1]}, "
                    "which those before have: one camera is to have taken all"
                )

    def _check(self, index: int, features: Features) -> None:
        path, dimensions = self.path(index), features.descriptors.shape[1]
        if self._model is None:
            self._model = (features.model, dimensions, path)
        model, expected, first = self._model
        if (features.model, dimensions) != (model, expected):
            raise DataError(
                f"{path} holds features of model '{features.model}' with {dimensions} dimensions; "
                f"expected '{model}' with {expected}, as {first} has"
            )
