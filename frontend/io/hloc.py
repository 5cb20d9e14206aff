"""hloc's files: ``features.h5``, ``matches.h5`` and ``pairs.txt`` in a folder.

A group of ``features.h5`` has the name of an image: ``keypoints`` (N, 2) float32, which hloc itself would halve and so
round to half a pixel, ``scores`` (N,), ``descriptors`` (D, N) and ``image_size``. A group of ``matches.h5`` has the
names of a pair, each with ``-`` for ``/``, the second within the first: ``matches0`` (N,) int32, -1 for none, and
``matching_scores0`` (N,).

HDF5 files that are being written when the process is killed are lost. Matches are therefore collected in
``matches.journal``, a database that is always whole, from which the file is written at the end under another name.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from frontend.atomic import atomic_write, remove_leftovers
from frontend.errors import DataError
from frontend.folders import SETTINGS, check_settings
from frontend.io.feature_folder import Stamp
from frontend.io.hdf5 import BATCH_BYTES, Appending, appending, import_h5py, open_hdf5, writing
from frontend.io.lock import RunLock
from frontend.io.matched_pair import MatchedPair
from frontend.types import Features

FEATURES, MATCHES, PAIRS, JOURNAL = "features.h5", "matches.h5", "pairs.txt", "matches.journal"

_STAMP = "superpoint_frontend"  # attribute of an image's group: its feature file, see Stamp, as JSON
_OF_IMAGE = ("keypoints", "scores", "descriptors", "image_size")
_OF_PAIR = ("matches0", "matching_scores0")
_LEAST_UNCERTAINTY = 1.0  # pixels, which hloc takes where a file says nothing

_Item = TypeVar("_Item")


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
        DataError: the folder was made with other settings, or by something else, or is a file; files in it cannot be
            read or written; it has matches, but not their features; names of images cannot be told apart, or not be
            written, in hloc's files; or another run is writing to the folder.
        ConfigError: h5py is not installed.
    """

    def __init__(self, folder: Path, names: Sequence[str], settings: Mapping[str, object]) -> None:
        import_h5py()  # missing, it is told before anything is made
        self.folder, self._names = folder, names
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; expected a folder, or --format colmap")
        _check_names(names)
        _check_ours(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._features: Any = None
        self._matches: Any = None
        self._journal: sqlite3.Connection | None = None
        self._lines: list[str] = []  # of the list of pairs that is there
        self._lock = RunLock(folder / ".lock", folder)
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: Mapping[str, object]) -> None:
        if not (self.folder / FEATURES).exists():
            if (self.folder / MATCHES).exists():
                raise DataError(f"{self.folder} has {MATCHES} without {FEATURES}; expected both, or another --out")
            # of a run that was killed before it had anything, which binds nobody, or of features that are gone
            for left in (JOURNAL, f"{JOURNAL}-journal"):
                (self.folder / left).unlink(missing_ok=True)
        self._lines = _lines_of(self.folder / PAIRS)
        with writing(self.folder / SETTINGS):
            check_settings(self.folder, settings, "matches")
        remove_leftovers(self.folder, older_than_s=0)  # nobody else writes here
        self._features = open_hdf5(self.folder / FEATURES)
        self._matches = open_hdf5(self.folder / MATCHES)
        with self._reported():
            self._journal = sqlite3.connect(self.folder / JOURNAL, isolation_level=None, timeout=30)
            self._begin()
            self._pairs.execute(
                "CREATE TABLE IF NOT EXISTS pairs (name0 TEXT NOT NULL, name1 TEXT NOT NULL, rows INTEGER NOT NULL,"
                " matches BLOB NOT NULL, scores BLOB NOT NULL, PRIMARY KEY (name0, name1))"
            )
        self.commit()

    @property
    def _pairs(self) -> sqlite3.Connection:
        """The journal, open."""
        if self._journal is None:
            raise DataError(f"{self.folder} is finished or closed; expected it open")
        return self._journal

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"{self.folder / JOURNAL}: {error}") from None

    def _begin(self) -> None:
        if not self._pairs.in_transaction:
            self._pairs.execute("BEGIN IMMEDIATE")

    def has_image(self, index: int) -> bool:
        """Whether an image is there, given by its place among the names."""
        return self._features is not None and self._names[index] in self._features

    def stamp(self, index: int) -> Stamp | None:
        """The feature file that an image was added from; None where it was added by something else, or is not whole."""
        try:
            name = self._names[index]
            whole = _is_whole(self._features, name, _OF_IMAGE)
            return Stamp(*json.loads(self._features[name].attrs[_STAMP])) if whole else None
        except (KeyError, TypeError, ValueError):
            return None

    def add_images(self, images: Iterable[tuple[int, Features, Stamp]]) -> None:
        """Add images that are not there, given by their places among the names: all of them, or none.

        Raises:
            DataError: the file cannot be written.
        """
        with appending(self.folder / FEATURES) as file:
            for batch in _batches(images, lambda image: _bytes_of(image[1])):
                self._add_batch(file, batch)
        self._features = open_hdf5(self.folder / FEATURES)

    def _add_batch(self, file: Appending, images: Sequence[tuple[int, Features, Stamp]]) -> None:
        length = sum(_bytes_of(features) for _, features, _ in images)
        with file.batch(length, [self._names[index] for index, _, _ in images]) as groups:
            for index, features, stamp in images:
                group = groups.create_group(self._names[index])
                group.attrs[_STAMP] = json.dumps(astuple(stamp))
                points = group.create_dataset("keypoints", data=features.keypoints.astype(np.float32, copy=False))
                if features.sigmas is not None and len(features):
                    # of which hloc's verification allows four times as much
                    points.attrs["uncertainty"] = max(_LEAST_UNCERTAINTY, float(np.median(features.sigmas)))
                group.create_dataset("scores", data=features.scores)
                group.create_dataset("descriptors", data=np.ascontiguousarray(features.descriptors.T))
                group.create_dataset("image_size", data=np.array(features.image_size, np.int64))

    def ordered(self, first: int, second: int) -> tuple[int, int]:
        """A pair of images as it was given."""
        return first, second

    def has_pair(self, first: int, second: int) -> bool:
        """Whether a pair of images is there, either way around."""
        names = self._names[first], self._names[second]
        keys = [pair_key(*pair) for pair in (names, names[::-1])]
        if self._matches is not None and any(_is_whole(self._matches, key, _OF_PAIR) for key in keys):
            return True
        sql = "SELECT 1 FROM pairs WHERE (name0, name1) IN (VALUES (?, ?), (?, ?))"
        with self._reported():
            return self._pairs.execute(sql, (*names, *names[::-1])).fetchone() is not None

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
            self._pairs.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?)", (*row, *blobs))

    def commit(self) -> None:
        """Make what was added last to the journal.

        Raises:
            DataError: it cannot be written.
        """
        with self._reported():
            if self._pairs.in_transaction:
                self._pairs.execute("COMMIT")

    def finish(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Write the files of matches and of pairs, and do away with the journal.

        Args:
            pairs: all that were asked for.

        Raises:
            DataError: the journal cannot be read, or a file not be written.
        """
        self.commit()
        with self._reported():
            if self._pairs.execute("SELECT 1 FROM pairs LIMIT 1").fetchone() or self._matches is None:
                self._write_matches()
        self._write_pairs(pairs)
        self._pairs.close()
        self._journal = None
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def _write_matches(self) -> None:
        with appending(self.folder / MATCHES) as file:
            rows = self._pairs.execute("SELECT * FROM pairs")
            for batch in _batches(rows, lambda row: 8 * row[2]):
                keys = [pair_key(*row[:2]) for row in batch]
                with file.batch(sum(8 * row[2] for row in batch), keys) as groups:
                    for key, row in zip(keys, batch, strict=True):
                        if _is_whole(groups, key, _OF_PAIR):
                            continue  # a run was killed between this file and its journal's end
                        if key in groups:
                            del groups[key]
                        _add_matches(groups.create_group(key), *row[2:])

    def _write_pairs(self, pairs: Iterable[tuple[int, int]]) -> None:
        """The list of pairs; those that are there already, of which there are matches too, stay."""
        path = self.folder / PAIRS
        lines = dict.fromkeys(self._lines)
        for first, second in pairs:
            line, turned = (f"{self._names[a]} {self._names[b]}" for a, b in ((first, second), (second, first)))
            if turned not in lines:
                lines[line] = None
        with writing(path):
            atomic_write(path, "".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Leave the journal as the last :meth:`commit` made it, if it has anything in it, and the folder to others."""
        for file in (self._features, self._matches):
            if file is not None:
                file.close()
        if self._journal is not None:
            empty = False
            with suppress(sqlite3.Error):  # of a disk that is full, or no journal: that was told
                empty = self._journal.execute("SELECT 1 FROM pairs LIMIT 1").fetchone() is None
            self._journal.close()
            self._journal = None
            if empty:
                (self.folder / JOURNAL).unlink(missing_ok=True)
        self._lock.release()


def _bytes_of(features: Features) -> int:
    """Bytes of the arrays that are written of an image, and a few more."""
    return features.keypoints.nbytes + features.scores.nbytes + features.descriptors.nbytes + 64


def _batches(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Items in order, as many at a time as have :data:`~frontend.io.hdf5.BATCH_BYTES`."""
    batch: list[_Item] = []
    length = 0
    for item in items:
        batch.append(item)
        length += size(item)
        if length >= BATCH_BYTES:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _add_matches(group: Any, rows: int, matches: bytes, scores: bytes) -> None:
    """Write a pair's row of the journal as hloc has it: for each keypoint of the first image."""
    pairs = np.frombuffer(matches, "<i4").reshape(-1, 2)
    partner, confidence = np.full(rows, -1, np.int32), np.zeros(rows, np.float32)
    partner[pairs[:, 0]], confidence[pairs[:, 0]] = pairs[:, 1], np.frombuffer(scores, "<f4")
    group.create_dataset("matches0", data=partner)
    group.create_dataset("matching_scores0", data=confidence)


def _is_whole(file: Any, key: str, names: Sequence[str]) -> bool:
    """Whether a group is there with all of its arrays; a tool that was killed may have left some."""
    return all(f"{key}/{name}" in file for name in names)


def _lines_of(path: Path) -> list[str]:
    """Lines of a list of pairs; none where it is not there.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _check_ours(folder: Path) -> None:
    """Refuse a folder with files of these names that this command has not made.

    Raises:
        DataError: there is one.
    """
    if not (folder / SETTINGS).is_file():
        other = next((name for name in (FEATURES, MATCHES, PAIRS, JOURNAL) if os.path.lexists(folder / name)), None)
        if other is not None:
            raise DataError(
                f"{folder} has a {other} of something else; expected a folder of this command, or a new one"
            )


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
