"""Admission: how many may wait for the device, and no longer than is of use to them."""

from __future__ import annotations

import math
import threading

from service.errors import OverloadedError


class _Pace:
    """How long the device works for each place that it serves, lately."""

    _MEMORY = 32  # places after which what was before counts for little

    def __init__(self) -> None:
        self.seconds = 0.0
        self._busy_s = 0.0

    def worked(self, seconds: float, served: int) -> None:
        """The device has worked for some who wait, and so many have been served since the last time."""
        self._busy_s += seconds
        if served:
            weight = 1 - math.exp(-served / self._MEMORY) if self.seconds else 1.0
            self.seconds += weight * (self._busy_s / served - self.seconds)
            self._busy_s = 0.0


class Lane:
    """Places of one kind of work, which has a pace of its own.

    Args:
        what: waits, for errors.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.reserved = 0
        self.pace = _Pace()
        self._served = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> list[Slot]:
        """Places; whether there are as many is asked before."""
        with self._lock:
            self.reserved += count
        return [Slot(self) for _ in range(count)]

    def release(self, served: bool) -> None:
        """A place is given back; ``served``: the device has worked for it."""
        with self._lock:
            self.reserved -= 1
            self._served += served

    def worked(self, seconds: float) -> None:
        """The device has worked for those who have a place."""
        with self._lock:
            served, self._served = self._served, 0
            self.pace.worked(seconds, served)


class Slot:
    """A place in the queue, reserved before any work is done for a request, given back when that is done."""

    def __init__(self, lane: Lane) -> None:
        self._lane: Lane | None = lane

    def release(self, *, served: bool = False) -> None:
        """Give the place back; a second call does nothing.

        Args:
            served: whether the device has worked for it. Those that were refused, or left, tell nothing of its pace.
        """
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.release(served)


class Admission:
    """Gives places to images, and to searches and estimates that bring none.

    Args:
        max_queue: places, of both kinds together.
        max_wait_s: who would have to wait longer, by how fast the last of their kind were, is not let in, seconds.
        always: so many of a kind are let in whatever the pace, and whoever finds none of its kind before it: an
            estimate that is too high would else never be mended.
    """

    def __init__(self, max_queue: int, max_wait_s: float, always: int) -> None:
        self.images, self.searches = Lane("images"), Lane("searches")
        self._max_queue, self._max_wait_s, self._always = max_queue, max_wait_s, always
        self._lock = threading.Lock()

    @property
    def depth(self) -> int:
        """Places that are taken."""
        return self.images.reserved + self.searches.reserved

    def reserve(self, count: int, lane: Lane) -> list[Slot]:
        """Take places, all or none.

        Raises:
            OverloadedError: there are not as many, or the wait would be too long.
        """
        with self._lock:
            each = lane.pace.seconds
            # by then as many places as a batch has are free again, and nobody waits for longer than is of use
            after = max(min(self._always * each, self._max_wait_s), 1.0)
            if self.depth + count > self._max_queue:
                raise OverloadedError(f"the queue of {self._max_queue} places is full", retry_after=after)
            wait = (lane.reserved + count) * each
            if wait > self._max_wait_s and lane.reserved and lane.reserved + count > self._always:
                reason = f"{lane.reserved} {lane.what} are waiting, which takes {wait:.0f} s"
                raise OverloadedError(f"{reason}; the limit is {self._max_wait_s:.0f} s", retry_after=after)
            return lane.take(count)
