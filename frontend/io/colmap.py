"""COLMAP's database: images, keypoints, matches and two-view geometry, by the standard library's SQLite.

The layout is that of COLMAP 3.8 ("Database Format" of its documentation), which all versions since then open: from
3.10 on they add the tables and columns that they have besides when they open it, and take each image for a frame, each
camera for a rig of its own. Descriptors are left out: map builders do not read them.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from frontend.camera import Camera
from frontend.errors import DataError
from frontend.io.colmap_geometry import (
    PIXEL_CENTRE,
    CameraModel,
    ColmapCamera,
    known_camera,
    two_view,
    unknown_camera,
)
from frontend.io.exif import Focal
from frontend.io.feature_folder import Stamp
from frontend.io.lock import RunLock
from frontend.io.matched_pair import MatchedPair
from frontend.types import Features, IntArray

MAX_IMAGES = 2**31 - 1
"""COLMAP's: the factor of a pair's number, above every image's number."""

_VERSION = 3800  # of COLMAP, in its way of counting
_RECORD = "superpoint_frontend"  # table of our own: what the database was made with; COLMAP leaves it alone
_STAMPS = "superpoint_frontend_images"  # another: the feature file of each image

_CHUNK_BYTES = 16 << 20  # of keypoints, written at a time

_BLOB_TABLE = "rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB"
_OF_IMAGE = "FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, model INTEGER NOT NULL,"
    " width INTEGER NOT NULL, height INTEGER NOT NULL, params BLOB, prior_focal_length INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL UNIQUE,"
    " camera_id INTEGER NOT NULL, prior_qw REAL, prior_qx REAL, prior_qy REAL, prior_qz REAL, prior_tx REAL,"
    f" prior_ty REAL, prior_tz REAL, CONSTRAINT image_id_check CHECK(image_id >= 0 and image_id < {MAX_IMAGES}),"
    " FOREIGN KEY(camera_id) REFERENCES cameras(camera_id))",
    "CREATE UNIQUE INDEX IF NOT EXISTS index_name ON images(name)",
    f"CREATE TABLE IF NOT EXISTS keypoints (image_id INTEGER PRIMARY KEY NOT NULL, {_BLOB_TABLE}, {_OF_IMAGE})",
    f"CREATE TABLE IF NOT EXISTS descriptors (image_id INTEGER PRIMARY KEY NOT NULL, {_BLOB_TABLE}, {_OF_IMAGE})",
    f"CREATE TABLE IF NOT EXISTS matches (pair_id INTEGER PRIMARY KEY NOT NULL, {_BLOB_TABLE})",
    f"CREATE TABLE IF NOT EXISTS two_view_geometries (pair_id INTEGER PRIMARY KEY NOT NULL, {_BLOB_TABLE},"
    " config INTEGER NOT NULL, F BLOB, E BLOB, H BLOB, qvec BLOB, tvec BLOB)",
    f"CREATE TABLE IF NOT EXISTS {_RECORD} (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
    f"CREATE TABLE IF NOT EXISTS {_STAMPS} (name TEXT PRIMARY KEY NOT NULL, sha256 TEXT NOT NULL,"
    " size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL)",
)
# a row that is there is the same one: of a batch that was written when the run was told to end
_ADD_MATCHES = "INSERT OR REPLACE INTO matches (pair_id, rows, cols, data) VALUES (?, ?, 2, ?)"
_ADD_GEOMETRY = (
    "INSERT OR REPLACE INTO two_view_geometries (pair_id, rows, cols, data, config, F, E, H, qvec, tvec)"
    " VALUES (?, ?, 2, ?, ?, ?, ?, ?, ?, ?)"
)


def pair_id(image_id0: int, image_id1: int) -> int:
    """COLMAP's number of a pair of images, whichever comes first."""
    first, second = sorted((image_id0, image_id1))
    return MAX_IMAGES * first + second


def _blob(array: np.ndarray | None, kind: str) -> bytes | None:
    """An array's numbers row by row, little-endian; None for none and for an empty one, as COLMAP has it."""
    return None if array is None or not array.size else np.ascontiguousarray(array, kind).tobytes()


class ColmapDatabase:
    """A database that is made, or gone on with; whole after every :meth:`commit`, whenever the process is killed.

    It is locked for writing for as long as a commit takes; that no other run of this command writes to it meanwhile, a
    file beside it sees to until :meth:`close`.

    Args:
        path: of the file; its folder is made.
        names: of the images, as COLMAP is to find them in its image folder.
        settings: what the database is made with, values that JSON has.
        camera: of all images, where it is known.
        single_camera: whether one camera took all images; true where ``camera`` is given.
        focals: focal lengths that images state, by name, where ``camera`` is None. Cameras that are there and still
            COLMAP's guess get theirs, too.

    Raises:
        DataError: the file is none of this command's databases, or was made with other settings or of other images, or
            COLMAP has made frames in it, so that it takes no more images; or another run is writing to it.
        ConfigError: COLMAP has no such camera.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        settings: Mapping[str, object],
        *,
        camera: Camera | None = None,
        single_camera: bool = False,
        focals: Mapping[str, Focal] | None = None,
    ) -> None:
        self.path, self._names = path, names
        self._focals = focals or {}
        self._camera, self._single = camera, single_camera or camera is not None
        if path.is_dir():
            raise DataError(f"{path} is a folder; expected a database file, or --format hloc")
        if camera is not None:
            known_camera(camera, 1, 1)  # refuses what COLMAP does not have
        path.parent.mkdir(parents=True, exist_ok=True)
        # pairs that are to be written, by their numbers: matches, and a geometry or None
        self._waiting: dict[int, tuple[tuple[Any, ...], tuple[Any, ...] | None]] = {}
        self._file: sqlite3.Connection | None = None
        real = Path(os.path.realpath(path))
        self._lock = RunLock(real.with_name(f".{real.name}.lock"), path)
        try:
            with self._reported():
                self._file = sqlite3.connect(path, isolation_level=None, timeout=30)
            with self._writing() as file:
                self._open(file, settings)
        except BaseException:
            self.close()
            raise

    def _open(self, file: sqlite3.Connection, settings: Mapping[str, object]) -> None:
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not {_RECORD, _STAMPS} <= tables:
            raise DataError(f"{self.path} is a database of something else; expected one of this command, or a new name")
        if not tables:
            for statement in _SCHEMA:
                file.execute(statement)
            file.execute(f"PRAGMA user_version = {_VERSION}")
        self._ids: dict[str, int] = dict(file.execute("SELECT name, image_id FROM images"))
        if not self._ids:
            # settings that nothing was made with bind nobody
            file.execute(f"DELETE FROM {_RECORD}")
            record = [(name, json.dumps(value)) for name, value in settings.items()]
            file.executemany(f"INSERT INTO {_RECORD} VALUES (?, ?)", record)
        before = {name: json.loads(value) for name, value in file.execute(f"SELECT * FROM {_RECORD}")}
        for name, value in settings.items():
            if before.get(name) != value:
                raise DataError(
                    f"{self.path} holds matches made with {name} = {before.get(name)}; got {value} (give another --out)"
                )
        other = set(self._ids).difference(self._names)
        if other:
            raise DataError(f"{self.path} holds image '{min(other)}', of which there are no features (another --out?)")
        new = len(self._names) > len(self._ids)
        if new and "frames" in tables and file.execute("SELECT 1 FROM frames LIMIT 1").fetchone():
            raise DataError(f"{self.path} has COLMAP's frames, so that no image can be added; expected a new --out")

        self._correct_guesses(file)

    def _correct_guesses(self, file: sqlite3.Connection) -> None:
        """Give cameras the focal lengths that their images state, but those that are anything else than a guess."""
        sql = (
            "SELECT camera_id, width, height, params, name FROM cameras JOIN images USING (camera_id)"
            " WHERE model = ? AND prior_focal_length = 0 GROUP BY camera_id"
        )
        guesses = file.execute(sql, (int(CameraModel.SIMPLE_RADIAL),)).fetchall() if self._focals else ()
        for camera_id, width, height, params, name in guesses:
            if params == _params(unknown_camera(width, height)):
                camera = self._uncalibrated(name, width, height)
                sql = "UPDATE cameras SET params = ?, prior_focal_length = ? WHERE camera_id = ?"
                file.execute(sql, (_params(camera), int(camera.prior), camera_id))

    @property
    def _database(self) -> sqlite3.Connection:
        """The file, open."""
        if self._file is None:
            raise DataError(f"database {self.path} is closed; expected it open")
        return self._file

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All that the block writes, or nothing of it, whatever ends it."""
        with self._reported():
            file = self._database
            try:
                file.execute("BEGIN IMMEDIATE")
                yield file
                file.execute("COMMIT")
            except BaseException:
                # a full disk may have ended the transaction by itself
                with suppress(sqlite3.Error):
                    if file.in_transaction:
                        file.execute("ROLLBACK")
                raise

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"database {self.path}: {error}") from None

    def has_image(self, index: int) -> bool:
        """Whether an image is there, given by its place among the names."""
        return self._names[index] in self._ids

    def stamp(self, index: int) -> Stamp | None:
        """The feature file that an image was added from; None where it was added by something else."""
        sql = f"SELECT sha256, size, mtime_ns FROM {_STAMPS} WHERE name = ?"
        with self._reported():
            row = self._database.execute(sql, (self._names[index],)).fetchone()
        return None if row is None else Stamp(*row)

    def add_images(self, images: Iterable[tuple[int, Features, Stamp]]) -> None:
        """Add images that are not there, given by their places among the names, with their cameras and keypoints.

        Raises:
            DataError: one has another size than the other images of the only camera, or the file cannot be written.
        """
        chunk: list[tuple[str, tuple[int, int], tuple[int, bytes | None], Stamp]] = []
        length = 0
        for index, features, stamp in images:
            points = _blob(features.keypoints.astype(np.float64) + PIXEL_CENTRE, "<f4")
            chunk.append((self._names[index], features.image_size, (len(features), points), stamp))
            length += len(points or b"")
            if length >= _CHUNK_BYTES:
                self._add_chunk(chunk)
                chunk, length = [], 0
        self._add_chunk(chunk)

    def _add_chunk(self, images: Sequence[tuple[str, tuple[int, int], tuple[int, bytes | None], Stamp]]) -> None:
        """Add images, each with its size, the number and content of its keypoints' rows, and its feature file."""
        added: dict[str, int] = {}
        with self._writing() as file:
            # added in the order of their names, so that numbers rise with them
            for name, size, keypoints, stamp in images:
                row = (name, self._camera_of(file, name, *size))
                added[name] = int(
                    file.execute("INSERT INTO images (name, camera_id) VALUES (?, ?)", row).lastrowid or 0
                )
                sql = "INSERT INTO keypoints (image_id, rows, cols, data) VALUES (?, ?, 2, ?)"
                file.execute(sql, (added[name], *keypoints))
                file.execute(f"INSERT OR REPLACE INTO {_STAMPS} VALUES (?, ?, ?, ?)", (name, *astuple(stamp)))
        self._ids.update(added)

    def _camera_of(self, file: sqlite3.Connection, name: str, width: int, height: int) -> int:
        """The number of an image's camera, which is added where need be."""
        if self._single:
            held = file.execute("SELECT camera_id, width, height FROM cameras LIMIT 1").fetchone()
            if held is not None:
                if held[1:] != (width, height):
                    raise DataError(
                        f"image {name} has {width} x {height} pixels; expected {held[1]} x {held[2]}, "
                        "which those before have: one camera is to have taken all"
                    )
                return int(held[0])
        camera = self._camera
        row = self._uncalibrated(name, width, height) if camera is None else known_camera(camera, width, height)
        cursor = file.execute(
            "INSERT INTO cameras (model, width, height, params, prior_focal_length) VALUES (?, ?, ?, ?, ?)",
            (int(row.model), width, height, _params(row), int(row.prior)),
        )
        return int(cursor.lastrowid or 0)

    def _uncalibrated(self, name: str, width: int, height: int) -> ColmapCamera:
        """The camera of an image, by what the image says; the only one of all by the first that says it."""
        says = (self._focals[image] for image in (self._names if self._single else (name,)) if image in self._focals)
        focal = next(says, None)
        return unknown_camera(width, height, None if focal is None else focal.pixels(width, height))

    def ordered(self, first: int, second: int) -> tuple[int, int]:
        """A pair of images as COLMAP has it: that with the lower number first."""
        lower = self._ids[self._names[first]] < self._ids[self._names[second]]
        return (first, second) if lower else (second, first)

    def has_pair(self, first: int, second: int) -> bool:
        """Whether a pair of images is there."""
        key, sql = self._pair(first, second), "SELECT 1 FROM matches WHERE pair_id = ?"
        with self._reported():
            return key in self._waiting or self._database.execute(sql, (key,)).fetchone() is not None

    def _pair(self, first: int, second: int) -> int:
        """The number of a pair, which an image that is not there is in none of."""
        ids = [self._ids.get(self._names[index]) for index in (first, second)]
        return -1 if ids[0] is None or ids[1] is None else pair_id(ids[0], ids[1])

    def add_pair(self, first: int, second: int, pair: MatchedPair) -> None:
        """Add a pair that is not there, as :meth:`ordered` gives it; the next :meth:`commit` writes it.

        Without a model COLMAP is told that there is none; where none was asked for it is told nothing.
        """
        key, matches = self._pair(first, second), pair.matches.matches
        geometry = None
        if pair.geometry is not None:
            found = two_view(pair.geometry, self._camera)
            matrices = [_blob(part, "<f8") for part in (found.F, found.E, found.H, found.qvec, found.tvec)]
            geometry = (key, *_rows(matches[pair.geometry.inliers]), int(found.configuration), *matrices)
        self._waiting[key] = ((key, *_rows(matches)), geometry)

    def commit(self) -> None:
        """Make what was added last.

        Raises:
            DataError: the file cannot be written.
        """
        if not self._waiting:
            return
        with self._writing() as file:
            for matches, geometry in self._waiting.values():
                file.execute(_ADD_MATCHES, matches)
                if geometry is not None:
                    file.execute(_ADD_GEOMETRY, geometry)
        self._waiting.clear()

    def finish(self, pairs: object) -> None:
        """The same; there is nothing else to be done."""
        self.commit()

    def close(self) -> None:
        """Leave the file as the last :meth:`commit` made it, to other runs."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()


def _params(camera: ColmapCamera) -> bytes | None:
    """Parameters of a camera as COLMAP stores them."""
    return _blob(np.array(camera.params), "<f8")


def _rows(matches: IntArray) -> tuple[int, bytes | None]:
    """Number and content of rows of matches."""
    return len(matches), _blob(matches, "<u4")
