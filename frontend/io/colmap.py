"""COLMAP's database: images, keypoints, matches and two-view geometry, by the standard library's SQLite.

The layout is that of COLMAP 3.8 ("Database Format" of its documentation), which all versions since then open: from
3.10 on they add the tables and columns that they have besides when they open it, and take each image for a frame, each
camera for a rig of its own. Descriptors are left out: map builders do not read them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from frontend.camera import Camera
from frontend.errors import DataError
from frontend.io.colmap_geometry import (
    PIXEL_CENTRE,
    ColmapCamera,
    TwoView,
    known_camera,
    two_view,
    unknown_camera,
)
from frontend.io.matched_pair import MatchedPair
from frontend.types import Features, IntArray

MAX_IMAGES = 2**31 - 1
"""COLMAP's: the factor of a pair's number, above every image's number."""

_VERSION = 3800  # of COLMAP, in its way of counting
_RECORD = "superpoint_frontend"  # table of our own: what the database was made with; COLMAP leaves it alone

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

    Args:
        path: of the file; its folder is made.
        names: of the images, as COLMAP is to find them in its image folder.
        settings: what the database is made with, values that JSON has.
        camera: of all images, where it is known.
        single_camera: whether one camera took all images; true where ``camera`` is given.

    Raises:
        DataError: the file is none of this command's databases, or was made with other settings or of other images, or
            COLMAP has made frames in it, so that it takes no more images.
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
    ) -> None:
        self.path, self._names = path, names
        self._camera, self._single = camera, single_camera or camera is not None
        if path.is_dir():
            raise DataError(f"{path} is a folder; expected a database file, or --format hloc")
        if camera is not None:
            known_camera(camera, 1, 1)  # refuses what COLMAP does not have
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reported():
            self._file = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            with self._reported():
                self._open(settings)
        except BaseException:
            self._file.close()
            raise

    def _open(self, settings: Mapping[str, object]) -> None:
        self._begin()
        tables = {name for (name,) in self._file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and _RECORD not in tables:
            raise DataError(f"{self.path} is a database of something else; expected one of this command, or a new name")
        if not tables:
            for statement in _SCHEMA:
                self._file.execute(statement)
            self._file.execute(f"PRAGMA user_version = {_VERSION}")
        self._ids: dict[str, int] = dict(self._file.execute("SELECT name, image_id FROM images"))
        if not self._ids:
            # settings that nothing was made with bind nobody
            self._file.execute(f"DELETE FROM {_RECORD}")
            record = [(name, json.dumps(value)) for name, value in settings.items()]
            self._file.executemany(f"INSERT INTO {_RECORD} VALUES (?, ?)", record)
        before = {name: json.loads(value) for name, value in self._file.execute(f"SELECT * FROM {_RECORD}")}
        for name, value in settings.items():
            if before.get(name) != value:
                raise DataError(
                    f"{self.path} holds matches made with {name} = {before.get(name)}; got {value} (give another --out)"
                )
        other = set(self._ids).difference(self._names)
        if other:
            raise DataError(f"{self.path} holds image '{min(other)}', of which there are no features (another --out?)")
        new = len(self._names) > len(self._ids)
        if new and "frames" in tables and self._file.execute("SELECT 1 FROM frames LIMIT 1").fetchone():
            raise DataError(f"{self.path} has COLMAP's frames, so that no image can be added; expected a new --out")
        self.commit()

    def _begin(self) -> None:
        if not self._file.in_transaction:
            self._file.execute("BEGIN IMMEDIATE")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"database {self.path}: {error}") from None

    def has_image(self, index: int) -> bool:
        """Whether an image is there, given by its place among the names."""
        return self._names[index] in self._ids

    def add_images(self, images: Iterable[tuple[int, Features]]) -> None:
        """Add images that are not there, given by their places among the names, with their cameras and keypoints.

        Raises:
            DataError: one has another size than the other images of the only camera, or the file cannot be written.
        """
        with self._reported():
            self._begin()
            for index, features in images:
                name = self._names[index]
                # added in the order of their names, so that numbers rise with them
                sql = "INSERT INTO images (name, camera_id) VALUES (?, ?)"
                image_id = self._file.execute(sql, (name, self._camera_of(name, *features.image_size))).lastrowid
                row = (image_id, len(features), self._keypoints(features))
                self._file.execute("INSERT INTO keypoints (image_id, rows, cols, data) VALUES (?, ?, 2, ?)", row)
                self._ids[name] = int(image_id or 0)
        self.commit()

    @staticmethod
    def _keypoints(features: Features) -> bytes | None:
        return _blob(features.keypoints.astype(np.float64) + PIXEL_CENTRE, "<f4")

    def _camera_of(self, name: str, width: int, height: int) -> int:
        """The number of an image's camera, which is added where need be."""
        if self._single:
            held = self._file.execute("SELECT camera_id, width, height FROM cameras LIMIT 1").fetchone()
            if held is not None:
                if held[1:] != (width, height):
                    raise DataError(
                        f"image {name} has {width} x {height} pixels; expected {held[1]} x {held[2]}, "
                        "which those before have: one camera is to have taken all"
                    )
                return int(held[0])
        camera = self._camera
        row: ColmapCamera = unknown_camera(width, height) if camera is None else known_camera(camera, width, height)
        cursor = self._file.execute(
            "INSERT INTO cameras (model, width, height, params, prior_focal_length) VALUES (?, ?, ?, ?, ?)",
            (int(row.model), width, height, _blob(np.array(row.params), "<f8"), int(row.prior)),
        )
        return int(cursor.lastrowid or 0)

    def check_image(self, index: int, features: Features) -> None:
        """Refuse features that are not those which an image was added with.

        Raises:
            DataError: they are others.
        """
        name = self._names[index]
        with self._reported():
            sql = "SELECT rows, data FROM keypoints WHERE image_id = ?"
            held = self._file.execute(sql, (self._ids[name],)).fetchone()
        if held is None or (held[0], held[1] or None) != (len(features), self._keypoints(features)):
            raise DataError(f"{self.path} holds other keypoints of image '{name}' than its features (another --out?)")

    def ordered(self, first: int, second: int) -> tuple[int, int]:
        """A pair of images as COLMAP has it: that with the lower number first."""
        lower = self._ids[self._names[first]] < self._ids[self._names[second]]
        return (first, second) if lower else (second, first)

    def has_pair(self, first: int, second: int) -> bool:
        """Whether a pair of images is there."""
        key = self._pair(first, second)
        with self._reported():
            return self._file.execute("SELECT 1 FROM matches WHERE pair_id = ?", (key,)).fetchone() is not None

    def _pair(self, first: int, second: int) -> int:
        """The number of a pair, which an image that is not there is in none of."""
        ids = [self._ids.get(self._names[index]) for index in (first, second)]
        return -1 if ids[0] is None or ids[1] is None else pair_id(ids[0], ids[1])

    def add_pair(self, first: int, second: int, pair: MatchedPair) -> None:
        """Add a pair that is not there, as :meth:`ordered` gives it.

        Without a model COLMAP is told that there is none; where none was asked for it is told nothing.

        Raises:
            DataError: the file cannot be written.
        """
        key, matches = self._pair(first, second), pair.matches.matches
        with self._reported():
            self._begin()
            self._file.execute(
                "INSERT INTO matches (pair_id, rows, cols, data) VALUES (?, ?, 2, ?)", (key, *_rows(matches))
            )
            if pair.geometry is not None:
                found = two_view(pair.geometry, self._camera)
                self._add_geometry(key, matches[pair.geometry.inliers], found)

    def _add_geometry(self, key: int, inliers: IntArray, found: TwoView) -> None:
        matrices = [_blob(part, "<f8") for part in (found.F, found.E, found.H, found.qvec, found.tvec)]
        self._file.execute(
            "INSERT INTO two_view_geometries (pair_id, rows, cols, data, config, F, E, H, qvec, tvec)"
            " VALUES (?, ?, 2, ?, ?, ?, ?, ?, ?, ?)",
            (key, *_rows(inliers), int(found.configuration), *matrices),
        )

    def commit(self) -> None:
        """Make what was added last.

        Raises:
            DataError: the file cannot be written.
        """
        with self._reported():
            if self._file.in_transaction:
                self._file.execute("COMMIT")

    def finish(self, pairs: object) -> None:
        """The same; there is nothing else to be done."""
        self.commit()

    def close(self) -> None:
        """Leave the file as the last :meth:`commit` made it."""
        self._file.close()


def _rows(matches: IntArray) -> tuple[int, bytes | None]:
    """Number and content of rows of matches."""
    return len(matches), _blob(matches, "<u4")
