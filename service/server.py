"""The HTTP server: uvicorn, with limits on clients that send or read too slowly, below where the gate sees them."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.app import create_app
from service.core import Core
from service.settings import Settings

_FRAMING = 65536  # of a message beside its images, bytes


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request headers, or whose reading of an answer, take too long.

    Args:
        limit_s: for each of the two, seconds.
        args: uvicorn's.
        kwargs: uvicorn's.
    """

    def __init__(self, *args: Any, limit_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit_s = limit_s
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def _start(self, name: str) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(self._limit_s, self.transport.abort)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start("headers")

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the headers are complete
            self._stop("headers")
        elif self.conn.their_state is h11.IDLE and (before is None or before.response_complete):
            self._start("headers")

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop("headers")
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("answer")

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)


class GracefulServer(uvicorn.Server):
    """Finishes streams before it closes connections, which uvicorn does to WebSockets at once.

    Args:
        config: uvicorn's.
        core: of the application.
    """

    def __init__(self, config: uvicorn.Config, core: Core) -> None:
        super().__init__(config)
        self._core = core

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._core.finish_streams()
        await super().shutdown(sockets)


def stream_limits(settings: Settings) -> dict[str, Any]:
    """Arguments of ``uvicorn.Config`` for WebSockets: a message is a body, and images do not get smaller."""
    return {
        "ws_max_size": int(settings.max_body_mb * 1e6) + _FRAMING,
        "ws_max_queue": 1,
        "ws_per_message_deflate": False,
    }


def run(settings: Settings) -> int:
    """Serve until a signal ends it, and finish what was accepted by then.

    Returns:
        The exit code: 0, or 2 where the server could not start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it quotes bodies
    app = create_app(settings)
    server = GracefulServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=partial(ImpatientProtocol, limit_s=settings.deadline_s),  # type: ignore[arg-type]
            access_log=False,
            timeout_graceful_shutdown=int(settings.shutdown_s),
            **stream_limits(settings),
        ),
        app.state.core,
    )
    server.run()
    return 0 if server.started else 2
