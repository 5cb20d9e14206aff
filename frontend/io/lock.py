"""One run at a time: a lock on what a run writes to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from frontend.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """Held from here to :meth:`release`; the system lets go of it where the process is killed.

    Args:
        path: of the lock's own file, which is made, and removed in the end; its folder exists.
        out: what is locked, for the error.

    Raises:
        DataError: another run holds it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        while self._file is None:
            file = open(path, "ab")  # noqa: SIM115
            try:
                _lock(file, out)
                # its holder may have removed the file between our opening and our locking of it
                self._file = file if _is_at(file, path) else None
            finally:
                if self._file is None:
                    file.close()

    def release(self) -> None:
        """Let others go on; once is enough."""
        if self._file is not None:
            with suppress(OSError):  # removed while it is held: nobody else's can be at this path
                self._path.unlink()
            self._file.close()
            self._file = None


def _lock(file: IO[bytes], out: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another run is writing to {out}; expected one at a time") from None
    except OSError:  # some network file systems have no locks
        return


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
