"""A progress bar on stderr: redrawn in place on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from frontend.terminal import emit

_BAR = 24


class Progress:
    """Counts steps and shows how many are done, the rate and the time left.

    Use as a context manager. On a terminal the line is redrawn at most ten times a second and left complete at
    the end; elsewhere a whole line is printed every ``interval_s`` seconds, and one at the end if any was. A reader of
    the stream that has gone ends no work.

    Args:
        total: number of steps; None where it is not known.
        label: what is being done, in front of the bar.
        start: steps done by an earlier run; counted in the bar, not in the rate.
        unit: name of a step, for the rate.
        stream: where to write; stderr by default.
        interval_s: seconds between lines where ``stream`` is no terminal.
        clock: monotonic seconds; for tests.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        *,
        start: int = 0,
        unit: str = "it",
        stream: TextIO | None = None,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = start
        self.note = ""
        self._start = start
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._interval = 0.1 if self._terminal else interval_s
        self._began = self._shown = clock()
        self._any = False

    def __enter__(self) -> Progress:
        self._began = self._shown = self._clock()
        if self._terminal:
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._any:
            self._show()
            if self._terminal:
                self._print("\n")

    def update(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done.

        Args:
            steps: how many.
            note: shown behind the figures until another one is given, such as a loss.
        """
        self.done += steps
        self.note = note or self.note
        if self._clock() - self._shown >= self._interval:
            self._show()

    def write(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self._terminal and self._any:
            self._print("\r\x1b[K" + line + "\n")
            self._show()
        else:
            self._print(line + "\n")

    def _text(self) -> str:
        elapsed = self._clock() - self._began
        rate = (self.done - self._start) / elapsed if elapsed > 0 else 0.0
        speed = f"{rate:.1f} {self.unit}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/{self.unit}"
        if self.total is None:
            parts = [f"{self.label} {self.done}", speed, _clock_time(elapsed)]
        else:
            share = min(1.0, self.done / self.total) if self.total else 1.0
            bar = "#" * round(share * _BAR)
            left = "--:--" if rate == 0 else _clock_time(max(0, self.total - self.done) / rate)
            head = f"{self.label} [{bar:-<{_BAR}}] {self.done}/{self.total}"
            parts = [head, speed, f"{left} left" if self.done < self.total else _clock_time(elapsed)]
        return "  ".join([*parts, self.note] if self.note else parts)

    def _show(self) -> None:
        self._shown = self._clock()
        self._any = True
        if self._terminal:
            # Cut to the width of the terminal: a wrapped line could not be redrawn in place.
            width = shutil.get_terminal_size().columns - 1
            self._print("\r\x1b[K" + self._text()[:width])
        else:
            self._print(self._text() + "\n")

    def _print(self, text: str) -> None:
        emit(self._stream, text)


def _clock_time(seconds: float) -> str:
    """90 -> '1:30', 3700 -> '1:01:40'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
