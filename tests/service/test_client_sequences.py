"""Sequences and streams of both clients, with a service that fails on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from raw_server import hangs_up, problem, raw_server, result
from running import running
from stub_sequences import BROKEN, BUSY, FORGOTTEN, GARBAGE, RESTART, StubSequences

from service.client import (
    AsyncClient,
    BadAnswer,
    BadImage,
    Client,
    Deadline,
    Dropped,
    Refused,
    Retry,
    SequenceFrame,
    SequenceLost,
    Unauthorized,
    Unavailable,
)
from service.client.calls import Context
from service.client.sequence_calls import track, within

K = np.diag([300.0, 300.0, 1.0])


@pytest.fixture(scope="module")
def stub() -> StubSequences:
    return StubSequences()


@pytest.fixture(scope="module")
def url(stub: StubSequences) -> Iterator[str]:
    with running(stub.app) as found:
        yield found


def test_a_sequence_is_open_as_long_as_it_is_used(stub: StubSequences, url: str) -> None:
    with Client(url) as client:
        with client.sequence(camera_id="left", camera=K) as sequence:
            assert sequence.id in stub.alive
            assert stub.opened[-1] == {"camera_id": "left", "camera": {"K": K.tolist(), "distortion": []}}
            first, second = (sequence.track(b"image", stamp, frame_id="f") for stamp in (5, 6))
            assert isinstance(first, SequenceFrame)
            assert (first.index, second.index, second.stamp_ns, second.frame_id) == (0, 1, 6, "f")
            assert sequence.status().mean_track_length == 1.5
            assert stub.frames[-1] == (sequence.id, 6, "f", b"image", None)
        assert sequence.id not in stub.alive
        with pytest.raises(SequenceLost):
            sequence.track(b"image", 7)
        with client.sequence() as sequence:
            sequence.close()  # and leaving does not mind


def test_numbers_of_numpy_are_numbers(stub: StubSequences, url: str) -> None:
    policy = {"max_gap": np.int64(3), "min_similarity": np.float32(0.5)}
    with Client(url) as client, client.sequence(policy=policy, max_keypoints=np.int32(200)):
        opened = stub.opened[-1]
    assert (opened["policy"], opened["max_keypoints"]) == ({"max_gap": 3, "min_similarity": 0.5}, 200)
    with Client(url) as client, pytest.raises(TypeError, match="set is no value of JSON"):
        client.sequence(policy={"max_gap": {1}}).__enter__()


def test_the_same_without_threads(stub: StubSequences, url: str) -> None:
    async def use() -> None:
        async with AsyncClient(url) as client:
            async with client.sequence() as sequence:
                assert sequence.id in stub.alive
                frame = await sequence.track(b"image", 5)
                assert (frame.sequence_id, frame.stamp_ns) == (sequence.id, 5)
                assert (await sequence.status()).tracks == 5
            assert sequence.id not in stub.alive
            with pytest.raises(SequenceLost):
                await sequence.track(b"image", 7)

    asyncio.run(use())


FRAMES = [b"image", BUSY, BROKEN, b"image"]


def check_answers(answers: list[Any]) -> None:
    assert [type(answer) for answer in answers] == [SequenceFrame, Dropped, Refused, SequenceFrame]
    assert [(answer.stamp_ns, answer.frame_id) for answer in answers] == [(stamp, "f") for stamp in range(4)]
    assert isinstance(answers[2].fault, BadImage)


def test_a_stream_answers_each_frame_in_order(stub: StubSequences, url: str) -> None:
    with Client(url) as client, client.sequence() as sequence, sequence.stream() as stream:
        for stamp, image in enumerate(FRAMES):
            stream.send(image, stamp, frame_id="f", right=b"right")
        assert stream.pending == 4
        check_answers([stream.receive() for _ in FRAMES])
        assert stream.pending == 0
        assert stub.frames[-1][3:] == (b"image", b"right")
        began = time.monotonic()
        with pytest.raises(Deadline):
            stream.receive(0.1)
        assert time.monotonic() - began < 15


def test_an_asynchronous_stream_does_so_too(url: str) -> None:
    async def use() -> None:
        async with AsyncClient(url) as client, client.sequence() as sequence, sequence.stream() as stream:
            for stamp, image in enumerate(FRAMES):
                await stream.send(image, stamp, frame_id="f")
            check_answers([await stream.receive() for _ in FRAMES])
            with pytest.raises(Deadline):
                await stream.receive(0.1)
            await stream.send(RESTART, 9)
            with pytest.raises(Unavailable, match="1012 restarting"):
                await anext(aiter(stream))
            with pytest.raises(Unavailable):
                await stream.send(b"image", 10)

    asyncio.run(use())


def test_a_stream_that_the_service_closes_is_unavailable(url: str) -> None:
    with Client(url) as client, client.sequence() as sequence, sequence.stream() as stream:
        stream.send(GARBAGE, 1)
        with pytest.raises(BadAnswer, match="an answer of the stream"):
            stream.receive()
        stream.send(RESTART, 2)
        with pytest.raises(Unavailable, match="1012 restarting") as caught:
            next(iter(stream))
        assert caught.value.maybe_processed
        with pytest.raises(Unavailable):
            stream.send(b"image", 3)


def test_iterating_ends_when_the_stream_is_closed(url: str) -> None:
    with Client(url) as client, client.sequence() as sequence:
        with sequence.stream() as stream:
            stream.send(b"image", 1)
            assert next(iter(stream)).stamp_ns == 1
        assert list(stream) == []
        with pytest.raises(Unavailable, match="stream_closed"):
            stream.receive()


def test_streams_of_lost_sequences_are_refused(stub: StubSequences, url: str) -> None:
    with Client(url) as client, client.sequence() as sequence:
        with sequence.stream() as stream:
            stream.send(FORGOTTEN, 1)
            answer = stream.receive()
            assert isinstance(answer, Refused)
            assert isinstance(answer.fault, SequenceLost)
        with pytest.raises(SequenceLost), sequence.stream():
            pass

    async def use() -> None:
        async with AsyncClient(url) as client, client.sequence() as sequence:
            await sequence.close()
            with pytest.raises(SequenceLost):
                async with sequence.stream():
                    pass

    asyncio.run(use())


def test_the_key_opens_streams() -> None:
    with running(StubSequences(key="secret").app) as url:
        with Client(url, api_key="secret") as client, client.sequence() as sequence, sequence.stream() as stream:
            stream.send(b"image", 1)
            assert stream.receive().stamp_ns == 1
        with Client(url, api_key="other") as client, client.sequence() as sequence:
            stream = sequence.stream()
            with pytest.raises(Unauthorized), stream:
                pass


def test_a_stream_that_nobody_answers_is_unavailable() -> None:
    retry = Retry(attempts=2, base_s=0.01)
    with raw_server(result({"id": "s"}), hangs_up) as server, Client(server.url, retry=retry) as client:
        sequence = client.sequence()
        sequence.open()
        with pytest.raises(Unavailable, match="no_connection"), sequence.stream():
            pass
        assert len(server.requests) == 3


def test_a_frame_is_sent_again_only_where_it_cannot_have_been_tracked() -> None:
    call = track(within(Context(), "s"), b"image", 5)
    with raw_server(problem(503, "unavailable", "retry-after: 0"), problem(404, "sequence_not_found")) as server:
        with Client(server.url) as client, pytest.raises(SequenceLost):
            client.run(call)
        assert len(server.requests) == 2
    with raw_server(hangs_up, problem(404, "sequence_not_found")) as server:
        with Client(server.url) as client, pytest.raises(Unavailable, match="connection_lost"):
            client.run(call)
        assert len(server.requests) == 1
