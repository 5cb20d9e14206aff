"""A server of scripted answers, down to the bytes: each connection gets the next one of the script."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from service.wire import MSGPACK, encode

Action = Callable[[socket.socket], None]
HOMOGRAPHY = {"homography": np.eye(3), "inliers": np.array([True, False]), "status": "ok"}


def says(status: int, body: bytes, kind: str, *headers: str) -> Action:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", f"content-type: {kind}", "connection: close"]
    head = "\r\n".join([*lines, *headers]) + "\r\n\r\n"
    return lambda connection: connection.sendall(head.encode() + body)


def result(document: dict[str, object] | None = None) -> Action:
    """A result, by default that of a homography."""
    return says(200, encode(HOMOGRAPHY if document is None else document, MSGPACK), MSGPACK)


def problem(status: int, code: str, *headers: str) -> Action:
    """A refusal."""
    document = {"status": status, "code": code, "detail": f"{code} it is", "request_id": "r1"}
    return says(status, json.dumps(document).encode(), "application/problem+json", *headers)


def hangs_up(_: socket.socket) -> None:
    """No answer at all."""


def drips(connection: socket.socket) -> None:
    """An answer of one byte each 50 ms, for 5 s."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\ncontent-type: application/json\r\n\r\n")
    with contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)


def stalls(connection: socket.socket) -> None:
    """No answer for 5 s, or until the other side hangs up."""
    connection.settimeout(5)
    with contextlib.suppress(OSError):
        connection.recv(1)


class RawServer:
    """See above.

    Args:
        script: what each connection gets, in order; further ones get the last.

    Attributes:
        url: of it.
        requests: head and body of each request.
        times: when they came, seconds.
    """

    def __init__(self, *script: Action) -> None:
        self._script = script
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        workers: list[threading.Thread] = []
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                break
            action = self._script[min(len(self.requests), len(self._script) - 1)]
            self.times.append(time.monotonic())
            self.requests.append(_read_request(connection))
            workers.append(threading.Thread(target=self._answer, args=(action, connection)))
            workers[-1].start()
        for worker in workers:
            worker.join()

    @staticmethod
    def _answer(action: Action, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            action(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def raw_server(*script: Action) -> Iterator[RawServer]:
    """A server while it is needed."""
    server = RawServer(*script)
    try:
        yield server
    finally:
        server.close()
