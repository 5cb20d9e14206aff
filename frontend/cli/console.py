"""The streams that a command is started with, and the one line in which it ends where it cannot go on."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from frontend.errors import FrontendError, is_lack_of_memory
from frontend.terminal import emit, write

BAD_INPUT, INTERRUPTED, READER_GONE = 2, 130, 141


def open_streams() -> None:
    """Make stdout and stderr streams that take any text.

    Where one was closed (``2>&-``), Python has none: it becomes the null device. Characters that the terminal's
    encoding lacks are escaped: a name with one would else be an error, after all of the work.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def tell(command: str, text: str) -> None:
    """Print one line on stderr; where a text has several, they are joined."""
    line = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    with suppress(OSError):  # a full disk: there is nowhere left to say it
        emit(sys.stderr, f"{command}: {line}\n")


def refuse(command: str, reason: str) -> int:
    """Say in one line on stderr why a command ends.

    Returns:
        The exit code of bad input.
    """
    tell(command, reason)
    return BAD_INPUT


def run_command(
    command: str,
    run: Callable[[], int],
    *,
    less_memory: str = "smaller images or batches need less",
    notices: bool = True,
) -> int:
    """Run a command, and tell in one line what ends it.

    Args:
        command: its name, in front of each line.
        run: does the work, and gives the exit code.
        less_memory: what helps where the memory does not suffice.
        notices: whether what the library logs, such as that a network is being prepared, is a line on stderr, too.

    Returns:
        What ``run`` gives; 2 for bad input or too little memory, 130 interrupted, 141 where the reader of stdout has
        gone. Errors of the program are raised.
    """
    try:
        with _telling(command, notices):
            code = run()
        write(sys.stdout, "")  # at exit a failure would be no longer ours to tell
    except FrontendError as error:
        return refuse(command, str(error))
    except KeyboardInterrupt:
        tell(command, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            emit(stream, "")  # what is left in it goes nowhere
        return READER_GONE
    except OSError as error:
        where, reason = error.filename or _failing_stream(), error.strerror or str(error)
        if isinstance(error, FileExistsError):  # of a folder that was to be made
            reason += ", and is no folder; expected one"
        return refuse(command, f"{where}: {reason}" if where else reason)
    except Exception as error:
        if is_lack_of_memory(error):
            return refuse(command, f"out of memory; {less_memory}")
        raise
    return code


def _failing_stream() -> str | None:
    """The name of stdout, where what it holds cannot be written: ``print`` does not tell it."""
    try:
        write(sys.stdout, "")
    except OSError as error:
        return str(error.filename)
    return None


@contextmanager
def _telling(command: str, notices: bool) -> Iterator[None]:
    """Show what the library logs as lines of the command."""
    if not notices:
        yield
        return
    import logging  # not for --help

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(command, record.getMessage())

    log, lines = logging.getLogger("superpoint"), Lines()
    level = log.level
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
