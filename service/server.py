"""The HTTP server: uvicorn, with limits on clients that send or read too slowly, below where the gate sees them."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

from frontend.errors import ConfigError
from service.app import create_app
from service.core import Core
from service.settings import Settings, unknown_variables

_FRAMING = 65536  # of a message beside its images, bytes
_BACKLOG = 2048  # connections that wait to be accepted, as by uvicorn's default
_LOG = logging.getLogger("superpoint")


class _Timers:
    """Timers by name, each of which aborts a connection."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._running: dict[str, asyncio.TimerHandle] = {}

    def start(self, name: str, transport: asyncio.Transport) -> None:
        if name not in self._running:
            loop = asyncio.get_running_loop()
            self._running[name] = loop.call_later(self._limit_s, transport.abort)

    def stop(self, *names: str) -> None:
        for name in names or tuple(self._running):
            timer = self._running.pop(name, None)
            if timer is not None:
                timer.cancel()


class _Impatient:
    """What both protocols have: a connection whose answer is not read in time is aborted.

    Closing a connection waits for what its client has not read, without end.

    Args:
        limit_s: for that, seconds.
        args: uvicorn's.
        kwargs: uvicorn's.
    """

    transport: asyncio.Transport

    def __init__(self, *args: Any, limit_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers = _Timers(limit_s)

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        # writing is paused as soon as a byte is not taken, and not at 64 kB: less could stay there for ever
        transport.set_write_buffer_limits(0)

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._timers.start("answer", self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        self._timers.stop("answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._timers.stop()
        super().connection_lost(exc)  # type: ignore[misc]


class ImpatientProtocol(_Impatient, H11Protocol):
    """Closes a connection whose request headers, whose rest of a body that was not waited for, or whose reading of an
    answer, take too long.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timers.start("headers", transport)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the headers are complete
            self._timers.stop("headers", "body")
        elif self.conn.their_state is h11.IDLE and (before is None or before.response_complete):
            self._timers.stop("body")
            self._timers.start("headers", self.transport)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # uvicorn waits for the next request, and no more once a byte has come; yet the client may still read and send
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self._timers.start("body", self.transport)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._timers.stop("headers")
        super().handle_websocket_upgrade(event)


class ImpatientWebSocket(_Impatient, AutoWebSocketsProtocol):  # type: ignore[misc, valid-type]
    """Closes the connection of a stream whose client does not read."""

    app: Callable[..., Awaitable[None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._served, self.app = self.app, self._serve

    async def _serve(self, *args: Any) -> None:
        await self._served(*args)
        if getattr(self, "initial_response", None) is not None:
            # refused by an HTTP answer, which uvicorn takes for a handshake that was forgotten, and logs as an error
            self.handshake_complete = True


class GracefulServer(uvicorn.Server):
    """Finishes streams before it closes connections, which uvicorn does to WebSockets at once; and ends where nothing
    works, or no longer.

    A device that has failed works again in another process at best. What was accepted is refused, as under any other
    server, and then whoever supervises this one can start another: many look at its end alone, and not at its health.

    Args:
        config: uvicorn's.
        core: of the application.
    """

    def __init__(self, config: uvicorn.Config, core: Core) -> None:
        super().__init__(config)
        self._core = core
        core.when_start_fails = self._give_up
        core.engine.when_device_fails = self._device_failed
        self.gave_up = False

    def _device_failed(self, reason: str) -> None:
        _LOG.error("the device has failed: %s; ending, as a restarted process may find it working", reason)
        self._give_up()

    def _give_up(self) -> None:
        """End instead of answering that nothing works: whoever supervises the process sees it, and may try again."""
        self.gave_up |= not self.should_exit  # else it was told to end, and that is why
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._core.finish_streams()
        self.config.timeout_graceful_shutdown = math.ceil(self._core.left_to_stop())
        await super().shutdown(sockets)


def _server_at(family: int, address: Any) -> socket.socket | None:
    """A socket that listens at an address; None where this machine has none such: a name may have one of IPv6, too."""
    try:
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at all addresses of a host, as uvicorn would open them once the application has started.

    Args:
        host: a name or an address; empty for all addresses of this machine.
        port: 0 for any that is free.

    Raises:
        ConfigError: there is no such host, it is another machine, or the port is taken or not allowed.
    """
    refused = f"cannot listen on {_shown(host, port)}"
    try:
        known = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{refused}: {getattr(error, 'strerror', None) or error}") from None
    found: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in known):
            made = _server_at(family, address)
            found += [] if made is None else [made]
    except OSError as error:
        for made in found:
            made.close()
        raise ConfigError(f"{refused}: {os.strerror(error.errno or 0)}") from None
    if not found:
        raise ConfigError(f"{refused}: {os.strerror(errno.EADDRNOTAVAIL)}")
    return found


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def protocols(settings: Settings) -> dict[str, Any]:
    """Arguments of ``uvicorn.Config``: our protocols; and for WebSockets, whose messages are bodies with an image each,
    which compression does not make smaller.
    """
    return {
        "http": partial(ImpatientProtocol, limit_s=settings.deadline_s),
        "ws": partial(ImpatientWebSocket, limit_s=settings.deadline_s),
        "ws_max_size": int(settings.max_body_mb * 1e6) + _FRAMING,
        "ws_max_queue": 1,
        "ws_per_message_deflate": False,
        # pongs are not read while the oldest answer is waited for, which may take as long as a request
        "ws_ping_timeout": settings.deadline_s + 20.0,
    }


def run(settings: Settings) -> int:
    """Serve until a signal ends it, and finish what was accepted by then.

    Returns:
        The exit code: 0, or 2 where the server could not start, the models could not be loaded, or the device failed.

    Raises:
        ConfigError: the address cannot be listened at, which shows before anything is loaded; or a setting is wrong.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it quotes bodies
    with ExitStack() as stack:
        sockets = [stack.enter_context(made) for made in listening(settings.host, settings.port)]
        for name in unknown_variables():
            _LOG.warning("%s is no setting; see superpoint serve --help", name)
        app = create_app(settings)
        config = uvicorn.Config(app, access_log=False, backlog=_BACKLOG, **protocols(settings))
        server = GracefulServer(config, app.state.core)
        for made in sockets:
            _LOG.info("listening on http://%s", _shown(*made.getsockname()[:2]))
        server.run(sockets)
    return 0 if server.started and not server.gave_up else 2
