"""Bounds of a stream, with a client that sends and does not read."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from service.bodies import Budget
from service.metrics import Metrics
from service.streams import FrameStream, Options


class DeafSocket:
    """Sends a message without end, and reads ``reads`` answers."""

    def __init__(self, message: bytes, reads: int) -> None:
        self.scope = {"path": "/stream", "state": {"request_id": "r"}}
        self._message, self._reads = message, reads
        self.received = 0
        self.sent: list[bytes] = []
        self.closed: list[tuple[int, str]] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        self.received += 1
        return {"type": "websocket.receive", "bytes": self._message}

    async def send_bytes(self, data: bytes) -> None:
        if len(self.sent) == self._reads:
            await asyncio.sleep(60)
        self.sent.append(data)

    async def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))


def made_core(**settings: float) -> Any:
    values = {"max_body_mb": 1.0, "deadline_s": 0.2, "stream_waiting": 2, "shutdown_s": 5.0, **settings}
    return SimpleNamespace(
        settings=SimpleNamespace(**values), bodies=Budget(1000), streams=set(), metrics=Metrics(), stopping=False
    )


def run(core: Any, client: DeafSocket) -> None:
    async def serve() -> None:
        session: Any = SimpleNamespace(gone=asyncio.Event())
        socket: Any = client
        await asyncio.wait_for(FrameStream(core, session, socket, Options(False, "none")).run(), 20)

    asyncio.run(serve())


@pytest.mark.parametrize("reads", [0, 50])
def test_a_client_that_does_not_read_is_not_read_and_then_let_go(reads: int) -> None:
    core, client = made_core(), DeafSocket(b"\xc1", reads)
    run(core, client)
    assert client.closed == [(1008, "answers are not read")]
    assert len(client.sent) == reads
    # one more is on its way
    assert reads + 32 <= client.received <= reads + 33
    assert not core.streams
    assert core.metrics.registry.get_sample_value("superpoint_streams") == 0


def test_bytes_of_waiting_frames_count_among_those_of_all_requests() -> None:
    core = made_core()
    core.bodies.used = 900
    frame = msgpack.packb({"stamp_ns": 1, "frame_id": "f", "image": bytes(101)})
    client = DeafSocket(frame, 1)
    run(core, client)
    answer = msgpack.unpackb(client.sent[0])
    assert (answer["stamp_ns"], answer["frame_id"], answer["problem"]["code"]) == (1, "f", "overloaded")
    assert core.bodies.used == 900


def test_a_client_that_goes_leaves_no_frame_behind_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames whose cancelling is swallowed, as ``wait_for`` of some Pythons does, start no others."""
    tracked = []

    async def track(*_: object) -> dict[str, Any]:
        tracked.append(0)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return {}

    class Leaving(DeafSocket):
        async def receive(self) -> dict[str, Any]:
            await asyncio.sleep(0)
            self.received += 1
            if self.received > 4:
                return {"type": "websocket.disconnect", "code": 1001}
            frame = {"stamp_ns": self.received, "image": bytes(10)}
            return {"type": "websocket.receive", "bytes": msgpack.packb(frame)}

    monkeypatch.setattr("service.streams.track_frame", track)
    core = made_core()

    async def serve() -> None:
        session: Any = SimpleNamespace(gone=asyncio.Event())
        socket: Any = Leaving(b"", 0)
        await asyncio.wait_for(FrameStream(core, session, socket, Options(False, "none")).run(), 20)
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(serve())
    assert len(tracked) == 2
    assert core.bodies.used == 0
