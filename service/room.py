"""Memory that requests wait for, instead of being refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Bytes that may be held at a time; who finds no room waits, first come, first served.

    Args:
        limit: bytes; one piece of any size is let in where there is nothing else.

    Attributes:
        used: bytes that are held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, nbytes: int) -> AsyncIterator[None]:
        """Hold so many bytes, once there is room for them."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, granted))
        self._admit()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                self.used -= nbytes
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            nbytes, granted = self._waiting[0]
            if not granted.done():  # else its request has gone
                if self.used and self.used + nbytes > self.limit:
                    return
                self.used += nbytes
                granted.set_result(None)
            self._waiting.popleft()
