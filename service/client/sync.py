"""The client for threads."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TypeVar

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from service.client import calls, sequence_calls
from service.client.calls import Call, Context, Encoding, result_of
from service.client.faults import ServiceFault, Unavailable
from service.client.images import Image
from service.client.methods import Method
from service.client.results import Answer
from service.client.retry import Attempts, Retry
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


def _run(subject: Client | Sequence, build: Callable[[], Call[T]]) -> T:
    return subject.run(build())


def _sequence(client: Client, build: Callable[[], Call[str]]) -> Sequence:
    return Sequence(client, build)


class Client:
    """Client of a service, for any number of threads.

    Images are bytes of a file, a ``pathlib.Path``, or pixels; results are those of ``frontend.types``.

    Args:
        url: of the service, ``http://HOST:PORT``.
        api_key: sent as X-API-Key.
        timeout_s: of a call, retries and their pauses included. An answer that drips in byte by byte may take twice
            as long.
        retry: see there.
        quality: of the JPEGs that pixels become, 1 to 100; None for PNG.
        max_connections: that are open at once, and kept for later calls.
        ssl_context: for https; the system's authorities where None.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self.context = Context(quality)
        self.timeout_s = timeout_s
        self._retry = retry or Retry()
        self._headers = headers_of(api_key)
        self._ssl = ssl_context
        settings = http_settings(url, api_key, max_connections)
        self._http = httpx.Client(**settings, verify=ssl_context or True, transport=transport)

    features = Method(calls.features, _run)
    get_features = Method(calls.get_features, _run)
    delete_features = Method(calls.delete_features, _run)
    match = Method(calls.match, _run)
    match_many = Method(calls.match_many, _run)
    homography = Method(calls.homography, _run)
    models = Method(calls.models, _run)
    sequence = Method(sequence_calls.open_sequence, _sequence)
    sequences = Method(sequence_calls.sequences, _run)

    def ready(self) -> bool:
        """Whether the service is ready, as it says now."""
        try:
            self.run(calls.readiness(), retry=Retry(attempts=1))
        except Unavailable:
            return False
        return True

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the service is ready.

        Raises:
            Unavailable: it is not within this time.
            Deadline: it accepts connections, and does not answer.
        """
        self.run(calls.readiness(), retry=Retry(attempts=None, cap_s=1.0), timeout_s=timeout_s)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, call: Call[T], *, retry: Retry | None = None, timeout_s: float | None = None) -> T:
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
        return _repeat(attempts, lambda remaining_s: self._send(call, remaining_s))

    def _send(self, call: Call[T], remaining_s: float) -> T:
        end = time.monotonic() + remaining_s
        chunks: list[bytes] = []
        try:
            with self._http.stream(**call.request(), timeout=http_timeout(remaining_s)) as response:
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    if time.monotonic() > end:
                        raise late()
        except httpx.HTTPError as error:
            raise fault_of_http(error) from error
        return result_of(call, response.status_code, response.headers, b"".join(chunks))

    @contextmanager
    def open_stream(self, context: Context, descriptors: Encoding) -> Iterator[Stream]:
        """The stream of a sequence; see :meth:`Sequence.stream`."""
        url = stream_url(self.url, sequence_calls.stream_path(context, descriptors))
        tls = self._ssl if url.startswith("wss:") else None

        with ExitStack() as stack:

            def attempt(remaining_s: float) -> ClientConnection:
                try:
                    made = connect(url, **stream_settings(self._headers, remaining_s, tls))
                    opened: ClientConnection = stack.enter_context(made)
                    return opened
                except (InvalidHandshake, OSError) as error:
                    raise fault_of_connecting(error) from error

            connection = _repeat(Attempts(self._retry, self.timeout_s, repeatable=True), attempt)
            yield Stream(connection, context, self.timeout_s)


def _repeat(attempts: Attempts, attempt: Callable[[float], T]) -> T:
    while True:
        try:
            return attempt(attempts.remaining_s)
        except ServiceFault as fault:  # noqa: PERF203
            time.sleep(attempts.pause_s(fault))
            attempts.after_pause(fault)


class Sequence:
    """A sequence of frames, opened and closed by ``with``; its frames are sent by one thread at a time.

    Args:
        client: that it belongs to.
        build: makes the call that opens it.
    """

    def __init__(self, client: Client, build: Callable[[], Call[str]]) -> None:
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

    def run(self, call: Call[T]) -> T:
        """Make a call of this sequence."""
        return self._client.run(call)

    def open(self) -> None:
        """Open it, without ``with``."""
        self.context = sequence_calls.within(self.context, self.run(self._opening))
        try:
            for then in self._opening.then:
                self.run(then(self.id))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Sequence:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        # what cannot be closed now, the service forgets by itself
        with suppress(ServiceFault):
            self._client.run(sequence_calls.close_sequence(self.context), retry=Retry(attempts=1))

    def stream(self, *, descriptors: Encoding = "none") -> AbstractContextManager[Stream]:
        """Frames at camera rate over a WebSocket: ``with sequence.stream() as stream``.

        Args:
            descriptors: how they are sent.

        Raises:
            ServiceFault: it cannot be opened; SequenceLost where the sequence is gone.
        """
        return self._client.open_stream(self.context, descriptors)


class Stream(StreamState):
    """Frames out and answers in, in the same order; one thread may send while another receives.

    Args:
        connection: that is open.
        context: of the sequence.
        timeout_s: of an answer.
    """

    def __init__(self, connection: ClientConnection, context: Context, timeout_s: float) -> None:
        super().__init__(context)
        self._connection = connection
        self._timeout_s = timeout_s

    def send(self, image: Image, stamp_ns: int, *, frame_id: str | None = None, right: Image | None = None) -> None:
        """Send a frame, without waiting for its answer; see :meth:`Sequence.track`.

        Raises:
            Unavailable: the stream is closed.
        """
        message = self._message(image, stamp_ns, frame_id, right)
        try:
            self._connection.send(message)
        except ConnectionClosed as error:
            raise fault_of_closing(error) from error
        self.sent += 1

    def receive(self, timeout_s: float | None = None) -> Answer:
        """The answer to the first frame that has none yet.

        Args:
            timeout_s: to wait for it; the client's where None.

        Raises:
            Deadline: it did not come within this time.
            Unavailable: the stream is closed.
            BadAnswer: it cannot be read.
        """
        try:
            data = self._connection.recv(self._timeout_s if timeout_s is None else timeout_s)
        except TimeoutError:
            raise late("no answer of the stream within the client's time") from None
        except ConnectionClosed as error:
            raise fault_of_closing(error) from error
        return self._answer(data)

    def __iter__(self) -> Iterator[Answer]:
        """Answers until the stream is closed, or a frame's answer does not come in time."""
        while True:
            try:
                found = self.receive()
            except Unavailable as fault:
                if fault.code == STREAM_CLOSED:
                    return
                raise
            yield found
