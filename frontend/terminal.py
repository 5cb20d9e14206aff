"""Writing to a terminal whose reader may have gone, and while others are kept from writing to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_STDERR = 2


def emit(stream: TextIO, text: str) -> None:
    """Write and flush; a reader that has gone away (``| head``) is no error and ends no work.

    Raises:
        OSError: it cannot be written for another reason, such as a full disk; with the stream's name.
    """
    with suppress(BrokenPipeError):
        write(stream, text)


def write(stream: TextIO, text: str) -> None:
    """The same, where a reader that has gone is an error.

    Raises:
        OSError: it cannot be written; with the stream's name.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        drop(stream)
        names = {id(sys.stdout): "standard output", id(sys.stderr): "standard error"}
        error.filename = names.get(id(stream)) or getattr(stream, "name", None)
        raise


def drop(stream: TextIO) -> None:
    """Send what a stream holds, and all that follows, nowhere.

    What is left in its buffer would fail again, loudly, when Python closes it at exit.
    """
    with suppress(OSError):  # no stream of a file
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def own_stderr() -> Iterator[None]:
    """Give ``sys.stderr`` a file descriptor of its own.

    What Python writes, such as a progress bar, is then seen while another thread holds file descriptor 2 aside, see
    :func:`frontend.image.quiet_decoders`. A stream that does not write to that descriptor stays.
    """
    before = sys.stderr
    try:
        before.flush()
        own = os.dup(_STDERR) if before.fileno() == _STDERR else None
    except (OSError, ValueError, AttributeError):  # closed, no file, or none at all
        own = None
    if own is None:
        yield
        return
    with open(own, "w", buffering=1, encoding=before.encoding, errors=before.errors) as stream:
        sys.stderr = stream
        try:
            yield
        finally:
            sys.stderr = before
