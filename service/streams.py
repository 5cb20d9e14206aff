"""The WebSocket of a sequence: frames in, tracks out, the oldest waiting frame dropped under load.

The protocol is told by :func:`service.routes.sequences.stream_frames`. Three parties share a stream: a reader takes
frames as they come, a few tasks track the oldest of them, and a writer sends the answers in the order of the frames.
Memory is bounded: so many frames wait, so many have no answer yet, and their bytes count among those of all requests.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from starlette.websockets import WebSocket, WebSocketDisconnect

from service.access import check_key, check_origin
from service.core import STOPPED, Core
from service.errors import (
    BadRequestError,
    OutOfOrderError,
    OverloadedError,
    ServiceError,
    TooLargeError,
    problem_document,
)
from service.gate import deny
from service.routes.common import Encoding, parameters_known
from service.sequence_work import Given, track_frame
from service.sessions import Session
from service.stream_messages import BadFrameError, Header, frame_of_header, frame_of_message, may_be_frame
from service.wire import JSON, MSGPACK, encode

ROUTE = "/v1/sequences/{sequence_id}/stream"
_PROTOCOL = "superpoint"
_AHEAD = 2  # frames on their way at a time: features of one are extracted while the one before is tracked
_UNANSWERED = 32  # a client that sends more without reading is not read
_EXPIRED, _REPLACED, _TOO_SLOW = 4404, 4409, 1008
_LOG = logging.getLogger("superpoint")


@dataclass(frozen=True)
class Options:
    """What the query of a stream asks for.

    Attributes:
        text: whether answers are JSON in text messages, not MessagePack in binary ones.
        descriptors: their type in the answers.
    """

    text: bool
    descriptors: Encoding


def _options(websocket: WebSocket) -> Options:
    query = websocket.query_params
    form, descriptors = query.get("format", "msgpack"), query.get("descriptors", "none")
    if form not in ("msgpack", "json"):
        raise BadRequestError(f"format is {form[:64]!r}; expected msgpack or json")
    if descriptors not in get_args(Encoding):
        raise BadRequestError(f"descriptors is {descriptors[:64]!r}; expected one of: {', '.join(get_args(Encoding))}")
    return Options(form == "json", cast(Encoding, descriptors))


def _key(websocket: WebSocket) -> str | None:
    """The key of the header, or of a subprotocol ``key.BASE64URL``, which is what a browser can send."""
    given = websocket.headers.get("x-api-key")
    for protocol in websocket.scope.get("subprotocols", ()):
        name, _, value = protocol.partition(".")
        if given is None and name == "key":
            with suppress(binascii.Error, ValueError):
                given = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()
    return given


async def serve_stream(core: Core, websocket: WebSocket, sequence_id: str) -> None:
    """Run the stream of a sequence, from its handshake to its end.

    Args:
        core: of the application.
        websocket: that has not been accepted.
        sequence_id: of the sequence.
    """
    try:
        check_key(core.settings, _key(websocket))
        check_origin(core.settings, websocket.headers)
        await parameters_known(websocket)
        options = _options(websocket)
        core.require_ready()
        session = core.sessions.get(sequence_id)
    except ServiceError as error:
        core.metrics.requests.labels(ROUTE, str(int(error.status))).inc()
        await deny(websocket.scope, websocket.receive, websocket.send, error)
        return
    core.metrics.requests.labels(ROUTE, "101").inc()
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(_PROTOCOL if _PROTOCOL in offered else None)
    await FrameStream(core, session, websocket, options).run()


@dataclass
class _Entry:
    """A frame that has no answer yet."""

    echo: dict[str, Any]
    nbytes: int = 0
    answer: asyncio.Future[dict[str, Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FrameStream:
    """A stream that has been accepted, see above.

    Args:
        core: of the application.
        session: whose frames come.
        websocket: that has been accepted.
        options: of its query.
    """

    def __init__(self, core: Core, session: Session, websocket: WebSocket, options: Options) -> None:
        self.core, self.session, self._websocket, self._options = core, session, websocket, options
        self._limit = int(core.settings.max_body_mb * 1e6)
        self._entries: deque[_Entry] = deque()
        self._waiting: deque[tuple[_Entry, Given]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ending: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._draining = False
        self._last_stamp_ns = -1
        self._early: str | None = None  # a header that came where an image should have
        self._outcomes = {"tracked": 0, "dropped": 0, "refused": 0}

    def end(self, code: int, reason: str) -> None:
        """Read no more, answer what has been read, and close."""
        if not self._ending.done():
            self._ending.set_result((code, reason))

    async def run(self) -> None:
        """Until either side ends it."""
        began = time.perf_counter()
        for other in self.core.streams:
            if isinstance(other, FrameStream) and other.session is self.session:
                other.end(_REPLACED, "another stream of the sequence was opened")
        self.core.streams.add(self)
        self.core.metrics.streams.inc()
        code = 1000
        try:
            if self.core.stopping:  # it was not there to be told
                self.end(*STOPPED)
            code = await self._serve()
        finally:
            self._waiting.clear()  # a task that ends now would start the next frame
            for task in self._tasks:
                task.cancel()
            for entry in self._entries:
                self._settle(entry)
            self.core.streams.discard(self)
            self.core.metrics.streams.dec()
            line = {"id": self._websocket.scope["state"]["request_id"], "path": self._websocket.scope["path"]}
            seconds = round(time.perf_counter() - began, 1)
            _LOG.info("%s", json.dumps({**line, "stream": self._outcomes, "code": code, "s": seconds}))

    async def _serve(self) -> int:
        """The code that it was closed with."""
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        gone = asyncio.create_task(self.session.gone.wait())
        gone.add_done_callback(lambda task: None if task.cancelled() else self.end(_EXPIRED, "sequence_not_found"))
        try:
            parties: set[asyncio.Future[Any]] = {reader, writer, self._ending}
            await asyncio.wait(parties, return_when=asyncio.FIRST_COMPLETED)
            if self._ending.done():
                code, reason = self._ending.result()
                reader.cancel()
                self._draining = True
                self._changed.set()
                if code != _REPLACED:  # an old connection may be dead, and the new one waits for its frames' turns
                    await asyncio.wait({writer}, timeout=self.core.settings.shutdown_s)
                return await self._close(code, reason)
            if writer.done() and isinstance(writer.exception(), asyncio.TimeoutError):
                return await self._close(_TOO_SLOW, "answers are not read")
            if reader.done() and isinstance(reader.exception(), asyncio.TimeoutError):
                return await self._close(_TOO_SLOW, "a frame does not arrive")
            for task in (reader, writer):
                error = task.exception() if task.done() else None
                if isinstance(error, WebSocketDisconnect):
                    return error.code
                if error is not None and not isinstance(error, RuntimeError):  # what a send after the end raises
                    _LOG.error("stream %s failed", self._websocket.scope["state"]["request_id"], exc_info=error)
                    return await self._close(1011, "the stream failed")
            return 1006
        finally:
            for ended in (reader, writer, gone):
                if not ended.cancel() and not ended.cancelled():
                    ended.exception()  # looked at: a client that goes while answers are sent is nothing to log

    async def _close(self, code: int, reason: str) -> int:
        with suppress(RuntimeError, WebSocketDisconnect, asyncio.TimeoutError):
            await asyncio.wait_for(self._websocket.close(code, reason), 5)
        return code

    async def _read(self) -> None:
        """Take frames as they come; TimeoutError where the images of a header do not."""
        skipped = 0  # images that are to come of a header that was refused: it has had its answer
        while True:
            await self._room.wait()
            header: Header | None = None
            message = await self._next()
            if skipped and isinstance(message, bytes) and not may_be_frame(message):
                skipped -= 1
                continue
            skipped = 0
            try:
                if isinstance(message, str):
                    skipped = 2 if '"right"' in message else 1
                    header = Header.parse(message)
                    skipped = 0
                    given = frame_of_header(header, await self._images(2 if header.right else 1))
                else:
                    given = frame_of_message(message)
            except ServiceError as error:
                echo = {"stamp_ns": header and header.stamp_ns, "frame_id": header and header.frame_id}
                if isinstance(error, BadFrameError):
                    echo = error.echo
                self._refuse(self._enter(_Entry(echo)), error)
                continue
            self._accept(given)

    async def _images(self, count: int) -> list[bytes | str]:
        """The messages that follow a header, counted as they come, within the time of a request.

        A text message ends them: the header lacks an image, and is refused; the text is read as another.
        """
        found: list[bytes | str] = []
        try:
            while len(found) < count and self._early is None:
                found.append(message := await asyncio.wait_for(self._next(), self.core.settings.deadline_s))
                self.core.bodies.used += len(message)
                self._early = message if isinstance(message, str) else None
        finally:  # a complete frame is counted when it is accepted
            self.core.bodies.used -= sum(len(message) for message in found)
        return found

    async def _next(self) -> bytes | str:
        if self._early is not None:
            text, self._early = self._early, None
            return text
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        data: bytes | None = message.get("bytes")
        return message["text"] if data is None else data

    def _enter(self, entry: _Entry) -> _Entry:
        self._entries.append(entry)
        if len(self._entries) >= _UNANSWERED:
            self._room.clear()
        self._changed.set()
        return entry

    def _accept(self, given: Given) -> None:
        nbytes = sum(len(data) for _, data in given.images)
        entry = self._enter(_Entry({"stamp_ns": given.stamp_ns, "frame_id": given.frame_id}))
        budget = self.core.bodies
        if nbytes > self._limit:
            self._refuse(entry, TooLargeError(f"frame has {nbytes} bytes; expected at most {self._limit}"))
        elif given.stamp_ns <= self._last_stamp_ns:
            detail = f"frame has the stamp {given.stamp_ns} ns; expected one after {self._last_stamp_ns} ns"
            self._refuse(entry, OutOfOrderError(detail))
        elif budget.used + nbytes > budget.limit:
            detail = f"bodies of all requests have over {budget.limit} bytes"
            self._refuse(entry, OverloadedError(detail, retry_after=1))
        else:
            self._last_stamp_ns = given.stamp_ns
            entry.nbytes = nbytes
            budget.used += nbytes
            self._waiting.append((entry, given))
            self._start()
            while len(self._waiting) > self.core.settings.stream_waiting:
                oldest, _ = self._waiting.popleft()
                self._resolve(oldest, {**oldest.echo, "dropped": True}, "dropped")

    def _start(self) -> None:
        while self._waiting and len(self._tasks) < _AHEAD:
            entry, given = self._waiting.popleft()
            task = asyncio.create_task(self._track(entry, given))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._start()

    async def _track(self, entry: _Entry, given: Given) -> None:
        try:
            found = await track_frame(self.core, self.session, given, self._options.descriptors)
        except ServiceError as error:
            self._refuse(entry, error)
        except Exception as error:
            request_id = self._websocket.scope["state"]["request_id"]
            _LOG.error("a frame of stream %s failed", request_id, exc_info=error)
            self._refuse(entry, ServiceError("the frame failed; the log has the reason under the stream's id"))
        else:
            self._resolve(entry, found, "tracked")

    def _refuse(self, entry: _Entry, error: ServiceError) -> None:
        scope = self._websocket.scope
        document = problem_document(error, scope["path"], scope["state"]["request_id"])
        self._resolve(entry, {**entry.echo, "problem": document}, "refused")

    def _resolve(self, entry: _Entry, document: dict[str, Any], outcome: str) -> None:
        self._settle(entry)
        self._outcomes[outcome] += 1
        self.core.metrics.stream_frames.labels(outcome).inc()
        if not entry.answer.done():
            entry.answer.set_result(document)

    def _settle(self, entry: _Entry) -> None:
        """Give back the bytes of a frame; a second call does nothing."""
        self.core.bodies.used -= entry.nbytes
        entry.nbytes = 0

    async def _write(self) -> None:
        """Send answers; TimeoutError where the client does not read them."""
        while True:
            while not self._entries:
                if self._draining:
                    return
                self._changed.clear()
                await self._changed.wait()
            document = await self._entries[0].answer
            data = encode(document, JSON if self._options.text else MSGPACK)
            sending = (
                self._websocket.send_text(data.decode()) if self._options.text else self._websocket.send_bytes(data)
            )
            await asyncio.wait_for(sending, self.core.settings.deadline_s)
            self._entries.popleft()
            self._room.set()
