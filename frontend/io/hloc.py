"""hloc's files: ``features.h5``, ``matches.h5`` and ``pairs.txt`` in a folder.

A group of ``features.h5`` has the name of an image: ``keypoints`` (N, 2) float32, which hloc itself would halve and so
round to half a pixel, ``scores`` (N,), ``descriptors`` (D, N) and ``image_size``. A group of ``matches.h5`` has the
names of a pair, each with ``-`` for ``/``, the second within the first: ``matches0`` (N,) int32, -1 for none, and
``matching_scores0`` (N,).

HDF5 files that are being written when the process is killed are lost. Matches are therefore collected in
``matches.journal``, a database that is always whole, from which the file is written at the end under another name.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from frontend.atomic import atomic_path, atomic_write, remove_leftovers
from frontend.errors import ConfigError, DataError
from frontend.folders import check_settings
from frontend.io.matched_pair import MatchedPair
from frontend.types import Features

FEATURES, MATCHES, PAIRS, JOURNAL = "features.h5", "matches.h5", "pairs.txt", "matches.journal"

_VERSION = ("v110", "v110")  # of the format: many small groups take little room, and HDF5 reads it since 2016
_LEAST_UNCERTAINTY = 1.0  # pixels, which hloc takes where a file says nothing


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ConfigError("hloc's files need h5py: pip install 'superpoint-frontend[hloc]'") from None
    return h5py


def pair_key(name0: str, name1: str) -> str:
    """The group of a pair of images in hloc's file of matches."""
    return "/".join(name.replace("/", "-") for name in (name0, name1))


class HlocFolder:
    """The files of a folder, which are made, or gone on with; none is ever seen half written.

    Args:
        folder: of the files; it is made.
        names: of the images.
        settings: what the files are made with, values that JSON has.

    Raises:
        DataError: the folder was made with other settings or is a file, files in it cannot be read, or names of images
            cannot be told apart, or not be written, in hloc's files.
        ConfigError: h5py is not installed.
    """

    def __init__(self, folder: Path, names: Sequence[str], settings: Mapping[str, object]) -> None:
        self._h5 = _h5py()
        self.folder, self._names = folder, names
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; expected a folder, or --format colmap")
        _check_names(names)
        folder.mkdir(parents=True, exist_ok=True)
        check_settings(folder, settings, "matches")
        remove_leftovers(folder)
        self._features = self._reader(FEATURES)
        self._matches = self._reader(MATCHES)
        self._finished = False
        with self._reported():
            self._journal = sqlite3.connect(folder / JOURNAL, isolation_level=None, timeout=30)
            self._begin()
            self._journal.execute(
                "CREATE TABLE IF NOT EXISTS pairs (name0 TEXT NOT NULL, name1 TEXT NOT NULL, rows INTEGER NOT NULL,"
                " matches BLOB NOT NULL, scores BLOB NOT NULL, PRIMARY KEY (name0, name1))"
            )
            self.commit()

    def _reader(self, name: str) -> Any:
        """One of the files, open; None where it is not there."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return self._h5.File(path, "r")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"{self.folder / JOURNAL}: {error}") from None

    def _begin(self) -> None:
        if not self._journal.in_transaction:
            self._journal.execute("BEGIN IMMEDIATE")

    def has_image(self, index: int) -> bool:
        """Whether an image is there, given by its place among the names."""
        return self._features is not None and self._names[index] in self._features

    def add_images(self, images: Iterable[tuple[int, Features]]) -> None:
        """Add images that are not there, given by their places among the names: all of them, or none."""
        with self._appending(FEATURES) as file:
            for index, features in images:
                group = file.create_group(self._names[index])
                points = group.create_dataset("keypoints", data=features.keypoints.astype(np.float32, copy=False))
                if features.sigmas is not None and len(features):
                    # of which hloc's verification allows four times as much
                    points.attrs["uncertainty"] = max(_LEAST_UNCERTAINTY, float(np.median(features.sigmas)))
                group.create_dataset("scores", data=features.scores)
                group.create_dataset("descriptors", data=np.ascontiguousarray(features.descriptors.T))
                group.create_dataset("image_size", data=np.array(features.image_size, np.int64))
        self._features = self._reader(FEATURES)

    @contextmanager
    def _appending(self, name: str) -> Iterator[Any]:
        """A copy of one of the files that takes its place when the block ends well."""
        path = self.folder / name
        with atomic_path(path) as temporary:
            if path.is_file():
                shutil.copyfile(path, temporary)
            with self._h5.File(temporary, "a", libver=_VERSION) as file:
                yield file

    def check_image(self, index: int, features: Features) -> None:
        """Refuse features that are not those which an image was added with.

        Raises:
            DataError: they are others.
        """
        name = self._names[index]
        if not np.array_equal(self._features[name]["keypoints"][()], features.keypoints):
            raise DataError(f"{self.folder} holds other keypoints of image '{name}' than its features (another --out?)")

    def ordered(self, first: int, second: int) -> tuple[int, int]:
        """A pair of images as it was given."""
        return first, second

    def has_pair(self, first: int, second: int) -> bool:
        """Whether a pair of images is there, either way around."""
        names = self._names[first], self._names[second]
        if self._matches is not None and any(pair_key(*pair) in self._matches for pair in (names, names[::-1])):
            return True
        sql = "SELECT 1 FROM pairs WHERE (name0, name1) IN (VALUES (?, ?), (?, ?))"
        with self._reported():
            return self._journal.execute(sql, (*names, *names[::-1])).fetchone() is not None

    def add_pair(self, first: int, second: int, pair: MatchedPair) -> None:
        """Add a pair that is not there; where a geometry was asked for, the matches that fit it alone.

        Raises:
            DataError: the journal cannot be written.
        """
        matches, scores = pair.matches.matches, pair.matches.match_scores
        if pair.geometry is not None:
            matches, scores = matches[pair.geometry.inliers], scores[pair.geometry.inliers]
        row = (self._names[first], self._names[second], len(self._features[self._names[first]]["keypoints"]))
        blobs = matches.astype("<i4").tobytes(), scores.astype("<f4").tobytes()
        with self._reported():
            self._begin()
            self._journal.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?)", (*row, *blobs))

    def commit(self) -> None:
        """Make what was added last to the journal.

        Raises:
            DataError: it cannot be written.
        """
        with self._reported():
            if self._journal.in_transaction:
                self._journal.execute("COMMIT")

    def finish(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Write the files of matches and of pairs, and do away with the journal.

        Args:
            pairs: all that were asked for.

        Raises:
            DataError: the journal cannot be read.
        """
        self.commit()
        with self._reported():
            if self._journal.execute("SELECT 1 FROM pairs LIMIT 1").fetchone() or self._matches is None:
                self._write_matches()
        self._write_pairs(pairs)
        self._journal.close()
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self._finished = True

    def _write_matches(self) -> None:
        with self._appending(MATCHES) as file:
            for name0, name1, rows, matches, scores in self._journal.execute("SELECT * FROM pairs"):
                if (key := pair_key(name0, name1)) in file:
                    continue  # a run was killed between this file and its journal's end
                pairs = np.frombuffer(matches, "<i4").reshape(-1, 2)
                partner, confidence = np.full(rows, -1, np.int32), np.zeros(rows, np.float32)
                partner[pairs[:, 0]], confidence[pairs[:, 0]] = pairs[:, 1], np.frombuffer(scores, "<f4")
                group = file.create_group(key)
                group.create_dataset("matches0", data=partner)
                group.create_dataset("matching_scores0", data=confidence)

    def _write_pairs(self, pairs: Iterable[tuple[int, int]]) -> None:
        """The list of pairs; those that are there already, of which there are matches too, stay."""
        path = self.folder / PAIRS
        lines = dict.fromkeys(path.read_text(encoding="utf-8").splitlines() if path.is_file() else ())
        for first, second in pairs:
            line, turned = (f"{self._names[a]} {self._names[b]}" for a, b in ((first, second), (second, first)))
            if turned not in lines:
                lines[line] = None
        atomic_write(path, "".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Leave the journal as the last :meth:`commit` made it, if there is anything in it."""
        for file in (self._features, self._matches):
            if file is not None:
                file.close()
        if not self._finished:
            with self._reported():
                empty = self._journal.execute("SELECT 1 FROM pairs LIMIT 1").fetchone() is None
            self._journal.close()
            if empty:
                (self.folder / JOURNAL).unlink(missing_ok=True)


def _check_names(names: Sequence[str]) -> None:
    """Refuse names of images that hloc's files cannot hold.

    Raises:
        DataError: a name has white space, which parts the two names of a pair; or two are one with ``-`` for ``/``.
    """
    flat: dict[str, str] = {}
    for name in names:
        if len(name.split()) != 1:
            raise DataError(f"image '{name}' has white space in its name; hloc's lists of pairs cannot hold it")
        other = flat.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise DataError(f"images '{other}' and '{name}' have one name in hloc's file of matches; rename one")
