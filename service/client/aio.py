"""The client for asyncio; what is not said here is as in ``service.client.sync``."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from service.client import calls, sequence_calls
from service.client.calls import Call, Context, Encoding, result_of
from service.client.faults import ServiceFault, Unavailable
from service.client.images import Image
from service.client.methods import Method
from service.client.results import Answer
from service.client.retry import LEAST_ATTEMPT_S, Attempts, Retry
from service.client.streams import StreamState
from service.client.transport import (
    STREAM_CLOSED,
    fault_of_closing,
    fault_of_connecting,
    fault_of_http,
    headers_of,
    http_settings,
    http_timeout,
    late,
    stream_settings,
    stream_url,
)

T = TypeVar("T")


async def _run_now(subject: AsyncClient | AsyncSequence, build: Callable[[], Call[T]]) -> T:
    # files are read and pixels encoded in a thread
    return await subject.run(await asyncio.to_thread(build))


def _run(subject: AsyncClient | AsyncSequence, build: Callable[[], Call[T]]) -> Coroutine[Any, Any, T]:
    return _run_now(subject, build)


def _sequence(client: AsyncClient, build: Callable[[], Call[str]]) -> AsyncSequence:
    return AsyncSequence(client, build)


class AsyncClient:
    """Client of a service, for any number of tasks of one event loop.

    Args:
        url: see :class:`service.client.sync.Client`, and the following.
        api_key: see there.
        timeout_s: of a call, retries and their pauses included.
        retry: see there.
        quality: see there.
        max_connections: see there.
        ssl_context: see there.
        transport: of httpx, instead of the network.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        quality: int | None = None,
        max_connections: int = 32,
        ssl_context: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.context = Context(quality)
        self.timeout_s = timeout_s
        self._retry = retry or Retry()
        self._headers = headers_of(api_key)
        self._ssl = ssl_context
        settings = http_settings(url, api_key, max_connections)
        self._http = httpx.AsyncClient(**settings, verify=ssl_context or True, transport=transport)

    features = Method(calls.features, _run)
    get_features = Method(calls.get_features, _run)
    delete_features = Method(calls.delete_features, _run)
    match = Method(calls.match, _run)
    match_many = Method(calls.match_many, _run)
    homography = Method(calls.homography, _run)
    models = Method(calls.models, _run)
    sequence = Method(sequence_calls.open_sequence, _sequence)
    sequences = Method(sequence_calls.sequences, _run)

    async def ready(self) -> bool:
        """Whether the service is ready, as it says now."""
        try:
            await self.run(calls.readiness(), retry=Retry(attempts=1))
        except Unavailable:
            return False
        return True

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the service is ready.

        Raises:
            Unavailable: it is not within this time.
            Deadline: it accepts connections, and does not answer.
        """
        await self.run(calls.readiness(), retry=Retry(attempts=None, cap_s=1.0), timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def run(self, call: Call[T], *, retry: Retry | None = None, timeout_s: float | None = None) -> T:
        """Make a call.

        Args:
            call: of ``service.client.calls``.
            retry: the client's where None.
            timeout_s: the client's where None.

        Raises:
            ServiceFault: it has no result.
        """
        left = self.timeout_s if timeout_s is None else timeout_s
        attempts = Attempts(retry or self._retry, left, repeatable=call.repeatable)
        return await _repeat(attempts, lambda remaining_s: self._send(call, remaining_s))

    async def _send(self, call: Call[T], remaining_s: float) -> T:
        request = self._http.request(**call.request(), timeout=http_timeout(remaining_s))
        try:
            # the limits of the connection end first: they tell whether anything was sent
            response = await asyncio.wait_for(request, remaining_s + LEAST_ATTEMPT_S)
        except asyncio.TimeoutError:
            raise late() from None
        except httpx.HTTPError as error:
            raise fault_of_http(error) from error
        return result_of(call, response.status_code, response.headers, response.content)

    @asynccontextmanager
    async def open_stream(self, context: Context, descriptors: Encoding) -> AsyncIterator[AsyncStream]:
        """The stream of a sequence; see :meth:`AsyncSequence.stream`."""
        url = stream_url(self.url, sequence_calls.stream_path(context, descriptors))
        tls = self._ssl if url.startswith("wss:") else None

        async with AsyncExitStack() as stack:

            async def attempt(remaining_s: float) -> ClientConnection:
                try:
                    made = connect(url, **stream_settings(self._headers, remaining_s, tls))
                    return await stack.enter_async_context(made)
                except (InvalidHandshake, OSError) as error:
                    raise fault_of_connecting(error) from error

            connection = await _repeat(Attempts(self._retry, self.timeout_s, repeatable=True), attempt)
            yield AsyncStream(connection, context, self.timeout_s)


async def _repeat(attempts: Attempts, attempt: Callable[[float], Awaitable[T]]) -> T:
    while True:
        try:
            return await attempt(attempts.remaining_s)
        except ServiceFault as fault:  # noqa: PERF203
            await asyncio.sleep(attempts.pause_s(fault))
            attempts.after_pause(fault)


class AsyncSequence:
    """A sequence of frames, opened and closed by ``async with``; its frames are sent by one task at a time.

    Args:
        client: that it belongs to.
        build: makes the call that opens it.
    """

    def __init__(self, client: AsyncClient, build: Callable[[], Call[str]]) -> None:
        self._client = client
        self._opening = build()
        self.context = client.context

    track = Method(sequence_calls.track, _run)
    set_mask = Method(sequence_calls.set_mask, _run)
    status = Method(sequence_calls.sequence_status, _run)
    close = Method(sequence_calls.close_sequence, _run)

    @property
    def id(self) -> str:
        """Of the service; empty before it is opened."""
        return self.context.sequence_id

    async def run(self, call: Call[T]) -> T:
        """Make a call of this sequence."""
        return await self._client.run(call)

    async def open(self) -> None:
        """Open it, without ``async with``."""
        self.context = sequence_calls.within(self.context, await self.run(self._opening))
        try:
            for then in self._opening.then:
                await self.run(await asyncio.to_thread(then, self.id))
        except BaseException:
            await self.__aexit__()
            raise

    async def __aenter__(self) -> AsyncSequence:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        # what cannot be closed now, the service forgets by itself
        with suppress(ServiceFault):
            await self._client.run(sequence_calls.close_sequence(self.context), retry=Retry(attempts=1))

    def stream(self, *, descriptors: Encoding = "none") -> AbstractAsyncContextManager[AsyncStream]:
        """Frames at camera rate over a WebSocket: ``async with sequence.stream() as stream``.

        Args:
            descriptors: how they are sent.

        Raises:
            ServiceFault: it cannot be opened; SequenceLost where the sequence is gone.
        """
        return self._client.open_stream(self.context, descriptors)


class AsyncStream(StreamState):
    """Frames out and answers in, in the same order; one task may send while another receives.

    Args:
        connection: that is open.
        context: of the sequence.
        timeout_s: of an answer.
    """

    def __init__(self, connection: ClientConnection, context: Context, timeout_s: float) -> None:
        super().__init__(context)
        self._connection = connection
        self._timeout_s = timeout_s

    async def send(
        self, image: Image, stamp_ns: int, *, frame_id: str | None = None, right: Image | None = None
    ) -> None:
        """Send a frame, without waiting for its answer; see :meth:`AsyncSequence.track`.

        Raises:
            Unavailable: the stream is closed.
        """
        message = await asyncio.to_thread(self._message, image, stamp_ns, frame_id, right)
        try:
            await self._connection.send(message)
        except ConnectionClosed as error:
            raise fault_of_closing(error) from error
        self.sent += 1

    async def receive(self, timeout_s: float | None = None) -> Answer:
        """The answer to the first frame that has none yet.

        Args:
            timeout_s: to wait for it; the client's where None.

        Raises:
            Deadline: it did not come within this time.
            Unavailable: the stream is closed.
            BadAnswer: it cannot be read.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        try:
            data = await asyncio.wait_for(self._connection.recv(), limit)
        except asyncio.TimeoutError:
            raise late("no answer of the stream within the client's time") from None
        except ConnectionClosed as error:
            raise fault_of_closing(error) from error
        return self._answer(data)

    async def __aiter__(self) -> AsyncIterator[Answer]:
        """Answers until the stream is closed; Deadline where one does not come in time."""
        while True:
            try:
                found = await self.receive()
            except Unavailable as fault:
                if fault.code == STREAM_CLOSED:
                    return
                raise
            yield found
