"""A folder of feature files: names of the images, and features that are read when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from frontend.errors import DataError
from frontend.feature_files import read_features
from frontend.folders import SETTINGS, read_settings
from frontend.types import Features

MEMORY = 512 << 20
"""Bytes of features that stay in memory, two images' at least: blocks of pairs read each image a few times."""

_ENDING = ".npz"


def _size(features: Features) -> int:
    return features.keypoints.nbytes + features.scores.nbytes + features.descriptors.nbytes


class FeatureFolder:
    """What ``superpoint extract`` has written: ``sub/a.jpg.npz`` holds the features of the image ``sub/a.jpg``.

    Args:
        folder: of the feature files, searched with its sub-folders.
        memory: see :data:`MEMORY`.

    Attributes:
        names: of the images, with their endings, relative to their folder, by ``/``, in the order of extraction.
        settings: what the files were made with, by name, as far as the folder says.

    Raises:
        DataError: the folder is missing or has no feature file, or its record cannot be read.
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
        self.settings: dict[str, Any] = read_settings(folder) if (folder / SETTINGS).is_file() else {}
        self._memory, self._used = memory, 0
        self._kept: OrderedDict[int, Features] = OrderedDict()
        self._model: tuple[str, int, Path] | None = None

    def path(self, index: int) -> Path:
        """The file with the features of an image, given by its place among the names."""
        return self.folder / f"{self.names[index]}{_ENDING}"

    def read(self, index: int) -> Features:
        """Features of an image; those used last are at hand.

        Raises:
            DataError: its file cannot be read, or is of another model than the files that were read before.
        """
        features = self._kept.get(index)
        if features is not None:
            self._kept.move_to_end(index)
            return features
        features = read_features(self.path(index))
        self._check(index, features)
        self._kept[index] = features
        self._used += _size(features)
        while self._used > self._memory and len(self._kept) > 2:
            _, oldest = self._kept.popitem(last=False)
            self._used -= _size(oldest)
        return features

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
