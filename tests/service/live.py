"""A real server on a port, in a thread of the test's process, so that a test can hold its device."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from websockets.sync.client import ClientConnection, connect

from service.app import create_app
from service.core import Core
from service.server import GracefulServer, protocols
from service.settings import Settings


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to pass"
        time.sleep(0.005)


class Live:
    def __init__(self, server: uvicorn.Server, core: Core, port: int) -> None:
        self.server, self.core, self.port = server, core, port
        self._connections: list[socket.socket] = []
        self.base = f"http://127.0.0.1:{port}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """The device works on nothing else meanwhile."""
        gate = threading.Event()
        running = self.core.engine.call(lambda: gate.wait(30), time.monotonic() + 60)
        wait_until(running.running)
        try:
            yield
        finally:
            gate.set()

    def metric(self, name: str) -> float:
        text = self.core.metrics.text().decode()
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE))

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port))
        made.settimeout(20)
        self._connections.append(made)
        return made

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def post_bytes(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A request as it goes over the wire."""
    declared = f"Content-Length: {len(body) if length is None else length}"
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: test", declared, *headers, "", ""]).encode() + body


@contextmanager
def live(**settings: Any) -> Iterator[Live]:
    given = Settings(**{"device": "cpu", "warmup": ("64x64",), "max_body_mb": 1.0, "max_batch": 4, **settings})
    app = create_app(given)
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, **protocols(given))
    server = GracefulServer(config, app.state.core)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        made = Live(server, app.state.core, port)
        wait_until(lambda: httpx.get(f"{made.base}/readyz").status_code == 200)
        try:
            yield made
        finally:
            made.close()
    finally:
        server.should_exit = True
        thread.join(40)
        assert not thread.is_alive()


def raw_stream(server: Live, sequence_id: str, query: str = "", **settings: Any) -> ClientConnection:
    """A stream without the client, so that a test can send anything."""
    return connect(f"ws://127.0.0.1:{server.port}/v1/sequences/{sequence_id}/stream{query}", **settings)
