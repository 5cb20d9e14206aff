"""The gate: what every request passes, whatever its route.

It gives requests their ids, checks who asks, bounds how many there are and how many bytes they hold and how long a body
may take to arrive, drops the work of clients that hang up, and writes log and metrics. No content of images is logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Iterable
from http import HTTPStatus

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import check_client, check_key, check_origin, is_open
from service.bodies import Budget
from service.errors import (
    PROBLEM_TYPE,
    BodyTimeoutError,
    OverloadedError,
    ServiceError,
    TooLargeError,
    UnauthorizedError,
    problem_document,
)
from service.metrics import Metrics
from service.settings import Settings

_SMALL = {"/v1/sequences": 65_536}
"""Largest body of a path whose documents are parsed on the event loop, bytes."""

_READING = {"GET", "HEAD", "OPTIONS"}
_AGAIN_S = 1.0

HUNG_UP = 499
"""Status in log and metrics of a request whose client did not wait for the answer; it is never sent."""

UNKNOWN = "unknown"
"""Route in the metrics of a path that no route has."""

_LOG = logging.getLogger("superpoint")


def problem(scope: Scope, error: ServiceError) -> Response:
    """The response of a refusal."""
    document = problem_document(error, scope["path"], scope["state"].get("request_id", ""))
    return Response(json.dumps(document), int(error.status), error.headers, media_type=PROBLEM_TYPE)


async def deny(scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
    """Refuse a WebSocket before it is accepted: by an HTTP answer, where the server can give one."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await problem(scope, error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": error.code})


def largest_body(path: str, settings: Settings) -> int:
    """Bytes of the largest body that a path takes."""
    return min(_SMALL.get(path.rstrip("/"), 1 << 62), int(settings.max_body_mb * 1e6))


class Gate:
    """ASGI middleware, see above.

    Args:
        app: what is behind it.
        settings: limits and keys.
        metrics: where requests are counted.
        budget: bytes of bodies, for all requests together; the settings' where None.
        routes: paths of all routes, with parameters in braces: what is refused before it comes to them counts there.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        budget: Budget | None = None,
        routes: Iterable[str] = (),
    ) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self._routes = [(compile_path(route)[0], route) for route in routes]
        self._running = 0
        self._bytes = budget or Budget(int(settings.max_bodies_mb * 1e6))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = HTTPConnection(scope).headers.get("x-request-id", "")
        valid = given.isascii() and given.isprintable() and 0 < len(given) <= 128
        scope.setdefault("state", {})["request_id"] = given if valid else secrets.token_hex(8)
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._websocket(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A stream checks its key itself: a browser cannot send it as a header."""
        try:
            check_client(self.settings, scope.get("client"))
        except UnauthorizedError as error:
            self.metrics.requests.labels(self._route(scope), str(int(error.status))).inc()
            await deny(scope, receive, send, error)
            return
        await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        began = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self.settings, self._bytes)
        self._running += 1
        try:
            self._admit(request)
            await exchange.run(self.app)
        except Exception as error:
            if not isinstance(error, ServiceError):
                _LOG.error("request %s failed", scope["state"]["request_id"], exc_info=error)
                error = ServiceError("the request failed; the log has the reason under its id")
            if exchange.status == 0:
                await problem(scope, error)(scope, receive, exchange.send)
        finally:
            self._running -= 1
            exchange.close()
            status = exchange.status if exchange.complete else HUNG_UP
            seconds = time.perf_counter() - began
            route = self._route(scope)
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            line = {"id": scope["state"]["request_id"], "method": request.method, "path": scope["path"]}
            _LOG.info("%s", json.dumps({**line, "status": status, "ms": round(seconds * 1e3, 1)}))

    def _route(self, scope: Scope) -> str:
        """The path of a request's route, its name in the metrics: paths as they are sent have no bound."""
        found = getattr(scope.get("route"), "path", None)
        if found is None:
            found = next((route for pattern, route in self._routes if pattern.match(scope["path"])), UNKNOWN)
        return str(found)

    def _admit(self, request: Request) -> None:
        """Refuse before anything is read or done.

        Raises:
            UnauthorizedError: the client may not ask.
            ForbiddenError: a page of another origin may not change anything, or have work done.
            TooLargeError: the body is declared larger than the limit.
            OverloadedError: there are too many requests.
        """
        settings = self.settings
        if not is_open(request.scope["path"], settings):  # not of the URL, which a Host header has a part in
            check_client(settings, request.client)
            check_key(settings, request.headers.get("x-api-key"))
            if request.method not in _READING:
                check_origin(settings, request.headers)
            if self._running > settings.max_requests:
                raise OverloadedError(f"{settings.max_requests} requests are being served", retry_after=1)
        declared = request.headers.get("content-length", "")
        limit = largest_body(request.scope["path"], settings)
        if declared.isdigit() and int(declared) > limit:
            raise TooLargeError(f"body has {declared} bytes; expected at most {limit}")


class _Exchange:
    """One request and its response: the body bounded in bytes and time, the client watched.

    What the client sends is read by a task of its own, one message ahead of the application: that is how a hang-up is
    heard while the application works, and how a client that sends faster than it is read is held back.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings, budget: Budget) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._settings, self._budget = settings, budget
        self._deadline = time.monotonic() + settings.deadline_s
        self._messages: asyncio.Queue[Message] = asyncio.Queue(1)
        self._reader: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._received = 0
        self._whole = False
        self._gone = False
        self.status = 0
        self.complete = False

    async def run(self, app: ASGIApp) -> None:
        """Run the application until it has answered, or the client is gone."""
        self._worker = asyncio.create_task(app(self._scope, self.receive, self.send))  # type: ignore[arg-type]
        headers = {name for name, _ in self._scope["headers"]}
        if not headers & {b"content-length", b"transfer-encoding"}:
            self._listen()  # no body: the application may never ask for one, yet the client may hang up
        try:
            await self._worker
        except asyncio.CancelledError:
            if not self._gone:  # not the client: the server ends
                raise

    def close(self) -> None:
        """Stop listening to the client, and give back the bytes of its body."""
        self._give_back()
        if self._stall is not None:
            self._stall.cancel()
        if self._reader is not None:
            self._reader.cancel()

    def _give_back(self) -> None:
        self._budget.used -= self._received
        self._received = 0

    def _listen(self) -> None:
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._hang_up()
                return
            await self._messages.put(message)

    def _hang_up(self) -> None:
        """Cancel the application: what it waits for is dropped, down to the engine's queue."""
        if self._worker is not None and not self._worker.done() and not self.complete:
            self._gone = True
            self._worker.cancel()
            # and again: before Python 3.12 asyncio.wait_for swallows a cancellation that meets a result
            asyncio.get_running_loop().call_later(_AGAIN_S, self._hang_up)

    async def receive(self) -> Message:
        """The application's side: messages of the body.

        Raises:
            BodyTimeoutError: the body has not arrived in time.
            TooLargeError: the body is over its limit.
            OverloadedError: the bodies of all requests together are over theirs.
        """
        self._listen()
        if self._whole:  # only a hang-up can follow, and that cancels whoever waits here
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        left = self._deadline - time.monotonic()
        try:
            message = await asyncio.wait_for(self._messages.get(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise BodyTimeoutError(f"the body did not arrive within {self._settings.deadline_s:g} s") from None
        size = len(message.get("body", b""))
        self._received += size
        self._budget.used += size
        limit = largest_body(self._scope["path"], self._settings)
        if self._received > limit:
            self._give_back()
            raise TooLargeError(f"body has more than {limit} bytes")
        if self._budget.used > self._budget.limit:
            self._give_back()  # now: while the refusal is sent, these bytes must not have others refused
            raise OverloadedError(f"bodies of all requests have over {self._budget.limit} bytes", retry_after=1)
        self._whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """The application's side: the response; a client has as long to read it as it had to be answered."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [(b"x-request-id", self._scope["state"]["request_id"].encode())]
            if self.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
                headers.append((b"connection", b"close"))  # the rest of the body is not waited for
            message = {**message, "headers": [*message.get("headers", []), *headers]}
            self._stall = asyncio.get_running_loop().call_later(self._settings.deadline_s, self._hang_up)
            await self._send(message)
            return
        last = not message.get("more_body", False)
        await self._send(message)
        # the server is done with the request: from here on a disconnect is no hang-up
        self.complete = self.complete or last
