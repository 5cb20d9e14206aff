"""HDF5 files that are whole or not there, also on a disk that is full.

HDF5 does not get over a write that fails: it goes on to fail when files are closed, and when the process ends. Room is
therefore taken before it opens a file; what is too much it gives back when it closes it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frontend.atomic import atomic_path
from frontend.errors import ConfigError, DataError

BATCH_BYTES = 32 << 20
"""Bytes of arrays that are to be written at a time."""

_VERSION = ("v110", "v110")  # of the format: many small groups take little room, and HDF5 reads it since 2016
_SLACK_BYTES = 1 << 20
_GROUP_BYTES = 4 << 10  # a group with two small arrays takes 1 KiB besides their bytes
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def import_h5py() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise ConfigError("hloc's files need h5py: pip install 'superpoint-frontend[hloc]'") from None
    return h5py


def open_hdf5(path: Path) -> Any:
    """A file to read from; None where it is not there.

    Raises:
        DataError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return import_h5py().File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


class Appending:
    """What is added to a file: batches, of which each has its room before it is written."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary

    @contextmanager
    def batch(self, data_bytes: int, names: list[str]) -> Iterator[Any]:
        """The file, open.

        Args:
            data_bytes: of all arrays that are to be added.
            names: of the groups that are to be.
        """
        room = data_bytes + sum(_GROUP_BYTES + 4 * len(os.fsencode(name)) for name in names)
        _take(self._temporary, room + _SLACK_BYTES)
        with import_h5py().File(self._temporary, "r+", libver=_VERSION) as file:
            yield file


@contextmanager
def appending(path: Path) -> Iterator[Appending]:
    """A copy of a file, or a new one, that takes its place when the block ends well.

    Raises:
        DataError: it cannot be written.
    """
    with writing(path), atomic_path(path) as temporary:
        if path.is_file():
            shutil.copyfile(path, temporary)
        else:
            temporary.write_bytes(_empty())
        yield Appending(temporary)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What keeps a file from being written is told in one line.

    Raises:
        DataError: it cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter is h5py's
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first = reason.splitlines()[0] if reason else type(error).__name__
        raise DataError(f"{path} cannot be written: {first}") from None


def _empty() -> bytes:
    """The content of a file without a group, made in memory."""
    with import_h5py().File("empty", "w", driver="core", backing_store=False, libver=_VERSION) as file:
        file.flush()
        return bytes(file.id.get_file_image())


def _take(path: Path, room: int) -> None:
    """Make a file longer, by bytes that the disk has.

    Raises:
        OSError: it has not as many.
    """
    length = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), length, room)
                return
            except OSError as error:
                if error.errno not in _NO_FALLOCATE:
                    raise
    if shutil.disk_usage(path.parent).free < room:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
