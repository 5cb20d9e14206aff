"""Files that are whole or not there: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

_SUFFIX = ".tmp"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name to write to; rename it to ``path`` when the block ends well, else remove it.

    The temporary file is hidden, lies in the same folder (created if need be), and ends in ``.tmp`` whatever
    ``path`` ends in, so that a search for ``*.npz`` never finds half a file. Writers that add an ending of
    their own (``numpy.savez``) are to be given an open file. A symbolic link stays: what it names is replaced. What is
    there and no regular file (a device, a pipe) stays too, and is written to.

    Args:
        path: the file to appear, replaced if it exists.

    Yields:
        The temporary path.

    Raises:
        OSError: the folder cannot be made or written, or the block left no file.
    """
    special = Path(path)
    if special.exists() and not (special.is_file() or special.is_dir()):
        with TemporaryDirectory() as folder, _naming(path, temporary := Path(folder) / f"content{_SUFFIX}"):
            yield temporary
            special.write_bytes(temporary.read_bytes())
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # without the target's name, which may be as long as a name may be
    temporary = target.with_name(f".{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}")
    try:
        with _naming(path, temporary):
            yield temporary
            # Renamed before its content is on the disk, a file could be empty after a power cut.
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def _naming(path: str | os.PathLike[str], temporary: Path) -> Iterator[None]:
    """Have errors of a temporary file tell the name that the caller knows; where a write fails, they tell none."""
    try:
        yield
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno is not None):
            error.filename = os.fspath(path)
            error.filename2 = None
        raise


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file at once; text is encoded as UTF-8.

    Args:
        path: the file to appear, replaced if it exists.
        data: its content.

    Raises:
        OSError: as :func:`atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def remove_leftovers(folder: str | os.PathLike[str], *, older_than_s: float = 3600.0) -> int:
    """Remove temporary files that killed processes left in a folder.

    Args:
        folder: searched without its sub-folders; may be missing.
        older_than_s: seconds since the last write; 0 only where no other process writes to the folder.

    Returns:
        How many were removed.
    """
    removed = 0
    newest = time.time() - older_than_s
    for file in Path(folder).glob(f".*{_SUFFIX}"):
        with suppress(OSError):
            if file.stat().st_mtime <= newest:
                file.unlink()
                removed += 1
    return removed
