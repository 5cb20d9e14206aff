"""Sequences of a real server: both clients and streams against the library itself, and faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import httpx
import msgpack
import numpy as np
import pytest
from live import Live, live, raw_stream, wait_until
from moving import CAMERA, HEIGHT, RIG, STEP, WIDTH, check_same, in_process, view, views
from websockets.exceptions import ConnectionClosed, InvalidStatus

from frontend.tracking import TrackerConfig
from service.client import (
    AsyncClient,
    BadImage,
    BadRequest,
    Client,
    Dropped,
    OutOfOrder,
    Refused,
    Retry,
    SequenceFrame,
    SequenceLost,
)
from service.client.sequence_calls import stream_message
from service.wire import MSGPACK, decode

ONCE = Retry(attempts=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(warmup=(f"{WIDTH}x{HEIGHT}",), stream_waiting=2, max_queue=64) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Client]:
    with Client(server.base, retry=ONCE) as made:
        yield made


def test_tracks_over_rest_are_those_of_the_library(client: Client) -> None:
    config = TrackerConfig(max_gap=1, threshold=2.0)
    images = [*views(5), view(100, seed=7), *views(2)]
    expected = in_process(images, config=config, max_keypoints=200)
    with client.sequence(camera_id="left", camera=CAMERA, policy=config, max_keypoints=200) as sequence:
        for n, image in enumerate(images):
            frame = sequence.track(image, n * STEP, frame_id=f"f{n}", descriptors="float16")
            check_same(frame, expected[n])
            assert (frame.sequence_id, frame.camera_id, frame.frame_id) == (sequence.id, "left", f"f{n}")
            assert frame.descriptors is not None
            assert frame.descriptors.shape == (len(frame.track_ids), 128)
            assert {"features", "tracking", "total"} <= set(frame.timings_ms)
        status = sequence.status()
        assert (status.frames, status.last_stamp_ns) == (len(images), (len(images) - 1) * STEP)
        assert status.tracks == 1 + max(int(frame.track_ids.max()) for frame in expected)
        seen = sum(len(frame.track_ids) for frame in expected)
        assert status.mean_track_length == pytest.approx(seen / status.tracks)
        assert status.bytes > 0
        assert sequence.id in [found.id for found in client.sequences()]
    assert sequence.id not in [found.id for found in client.sequences()]
    assert expected[1].motion == "homography"
    assert expected[5].new.all()  # a cut


def test_frames_of_sixteen_bits_have_one_white(client: Client) -> None:
    """The second frame's largest value takes more bits than the first one's."""
    frames = [4 * cv2.imdecode(np.frombuffer(image, np.uint8), 0).astype(np.uint16) for image in views(2)]
    frames = [np.minimum(frames[0], 1000), frames[1] + 16]
    images = [cv2.imencode(".png", frame)[1].tobytes() for frame in frames]
    expected = in_process(images, max_keypoints=100, white=4095)
    with client.sequence(camera=CAMERA, max_keypoints=100, white=4095) as sequence:
        for n, frame in enumerate(frames):
            check_same(sequence.track(frame, n * STEP), expected[n])
    apart = in_process(images, max_keypoints=100)
    assert [np.array_equal(a.keypoints, b.keypoints) for a, b in zip(apart, expected, strict=True)] == [False, True]


def test_the_stream_gives_the_same_tracks_and_so_does_asyncio(server: Live) -> None:
    images = views(6)
    expected = in_process(images)

    async def use() -> None:
        async with AsyncClient(server.base, retry=ONCE) as client:
            async with client.sequence(camera=CAMERA) as sequence, sequence.stream(descriptors="int8") as stream:
                for n, image in enumerate(images):
                    await stream.send(image, n * STEP, frame_id=f"f{n}")
                    if stream.pending > 2:
                        await receive(stream)
                while stream.pending:
                    await receive(stream)
            async with client.sequence(camera=CAMERA) as sequence:
                for n, image in enumerate(images[:3]):
                    check_same(await sequence.track(image, n * STEP), expected[n])

    async def receive(stream: Any) -> None:
        n = stream.received
        answer = await stream.receive()
        assert isinstance(answer, SequenceFrame)
        assert answer.frame_id == f"f{n}"
        check_same(answer, expected[n])
        assert answer.descriptors is not None
        np.testing.assert_allclose(np.linalg.norm(answer.descriptors, axis=1), 1, atol=0.02)

    asyncio.run(use())


def test_stereo_pairs_come_with_points(client: Client) -> None:
    # a wall at 150 px * 0.1 m / 6 px = 2.5 m
    lefts, rights = [view(20 + 3 * n) for n in range(3)], [view(26 + 3 * n) for n in range(3)]
    expected = in_process(lefts, rights)
    with client.sequence(camera=CAMERA, stereo=RIG) as sequence:
        frames = [sequence.track(lefts[n], n * STEP, right=rights[n]) for n in range(2)]
        with sequence.stream() as stream:
            stream.send(lefts[2], 2 * STEP, right=rights[2])
            frames.append(stream.receive())
        for got, want in zip(frames, expected, strict=True):
            check_same(got, want)
    stereo = frames[0].stereo
    assert stereo is not None
    assert len(stereo.rows) > 30
    assert np.median(stereo.points[:, 2]) == pytest.approx(2.5, rel=0.1)
    with client.sequence() as sequence:
        stereo = sequence.track(lefts[0], 0, right=rights[0]).stereo
        assert stereo is not None
        assert stereo.points is None
        assert len(stereo.rows) > 30


def test_stamps_must_rise(client: Client) -> None:
    with client.sequence() as sequence:
        sequence.track(view(0), 5)
        for stamp in (5, 4):
            with pytest.raises(OutOfOrder, match=f"stamp {stamp} ns; expected one after 5 ns") as caught:
                sequence.track(view(3), stamp)
            assert caught.value.status == 409
        with sequence.stream() as stream:
            for stamp in (5, 9, 9, 8, 10):
                stream.send(view(3), stamp)
                answer = stream.receive()
                assert answer.stamp_ns == stamp
                assert isinstance(answer, SequenceFrame) == (stamp in (9, 10) and stream.sent != 3)
                if isinstance(answer, Refused):
                    assert isinstance(answer.fault, OutOfOrder)
        assert sequence.status().frames == 3


def test_a_refused_frame_leaves_the_sequence_as_it_was(client: Client) -> None:
    expected = in_process(views(2))
    with client.sequence(camera=CAMERA) as sequence:
        check_same(sequence.track(view(0), 0), expected[0])
        with pytest.raises(BadImage):
            sequence.track(b"no image", STEP // 2)
        with pytest.raises(BadImage):
            sequence.track(view(0), STEP // 2, right=b"no image")
        with sequence.stream() as stream:
            stream.send(b"no image", STEP // 2, frame_id="bad")
            refused = stream.receive()
            assert isinstance(refused, Refused)
            assert (refused.stamp_ns, refused.frame_id, type(refused.fault)) == (STEP // 2, "bad", BadImage)
            stream.send(view(3), STEP)
            check_same(stream.receive(), expected[1])


def test_a_stream_goes_on_after_a_frame_of_another_size(client: Client) -> None:
    expected = in_process(views(2))
    with client.sequence(camera=CAMERA) as sequence, sequence.stream() as stream:
        for n, image in enumerate((view(0), np.zeros((64, 80), np.uint8), view(3))):
            stream.send(image, n * STEP // 2)
        answers = [stream.receive() for _ in range(3)]
        assert isinstance(answers[1], Refused)
        assert (type(answers[1].fault), answers[1].fault.status) == (BadImage, 422)
        assert answers[1].fault.detail == "frame is 80 x 64; expected 160 x 120, as the frames before"
        check_same(answers[2], expected[1])


def test_sequences_that_make_no_sense_are_refused(client: Client) -> None:
    with pytest.raises(BadRequest, match="stereo is given without camera"):
        client.sequence(stereo=RIG).open()
    with pytest.raises(BadRequest, match=r"policy\.max_tracks"):
        client.sequence(policy={"max_tracks": 10**9}).open()
    with pytest.raises(BadRequest, match="serach_radius"):
        client.sequence(policy={"serach_radius": 0.1}).open()
    with pytest.raises(BadRequest, match="distortion of the model 'opencv' has 3 values"):
        client.sequence(camera=CAMERA.K, distortion=(0.1, 0.2, 0.3)).open()
    with pytest.raises(BadRequest, match="max_keypoints is 100000"):
        client.sequence(max_keypoints=100_000).open()


def test_the_oldest_waiting_frames_are_dropped(server: Live, client: Client) -> None:
    dropped = 'superpoint_stream_frames_total{outcome="dropped"}'
    before = server.metric(dropped)
    with client.sequence() as sequence, sequence.stream() as stream:
        with server.held():
            for n, image in enumerate(views(9)):
                stream.send(image, n, frame_id=f"f{n}")
            wait_until(lambda: server.metric(dropped) == before + 5)
        answers = [stream.receive() for _ in range(9)]
    assert [(answer.stamp_ns, answer.frame_id) for answer in answers] == [(n, f"f{n}") for n in range(9)]
    # two were on their way, the two newest waited
    kinds = [type(answer) for answer in answers]
    assert kinds == [SequenceFrame] * 2 + [Dropped] * 5 + [SequenceFrame] * 2
    assert [answer.index for answer in answers if isinstance(answer, SequenceFrame)] == [0, 1, 2, 3]


def test_another_sequence_is_not_held_up(server: Live, client: Client) -> None:
    # the tracker of one hangs in its thread
    gate, begun = threading.Event(), threading.Event()
    with client.sequence() as slow, client.sequence() as quick:
        session = server.core.sessions.get(slow.id)
        update = session.tracker.update

        def hang(*args: Any) -> Any:
            begun.set()
            gate.wait(20)
            return update(*args)

        session.tracker.update = hang  # type: ignore[method-assign]
        order: list[int] = []

        def send(stamp: int) -> None:
            slow.track(view(3 * stamp), stamp)
            order.append(stamp)

        threads = [threading.Thread(target=send, args=(stamp,)) for stamp in range(3)]
        try:
            threads[0].start()
            assert begun.wait(20)
            # stamps that come in the wrong order while an earlier frame is being tracked are put right
            for thread in (threads[2], threads[1]):
                thread.start()
                wait_until(lambda: len(session._turns) == 1 + sum(t.is_alive() for t in threads[1:]))
            began = time.monotonic()
            for stamp in range(3):
                quick.track(view(stamp), stamp)
            assert httpx.get(f"{server.base}/healthz").status_code == 200
            assert time.monotonic() - began < 10
            assert not order
        finally:
            gate.set()
            for thread in threads:
                thread.join(20)
        assert sorted(order) == [0, 1, 2]
        assert slow.status().frames == 3


def test_a_client_that_hangs_up_leaves_the_sequence_whole(server: Live, client: Client) -> None:
    with client.sequence() as sequence:
        with server.held(), sequence.stream() as stream:
            for n in range(4):
                stream.send(view(3 * n), n)
        wait_until(lambda: not server.core.streams and not server.core.engine.depth)
        session = server.core.sessions.get(sequence.id)
        wait_until(lambda: not session._turns)
        assert server.core.bodies.used == 0
        assert sequence.track(view(30), 100).stamp_ns == 100


def test_deleted_and_unknown_sequences_are_lost(server: Live, client: Client) -> None:
    sequence = client.sequence()
    sequence.open()
    with sequence.stream() as stream:
        sequence.close()
        with pytest.raises(ConnectionClosed) as caught:
            stream._connection.recv(10)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4404, "sequence_not_found")
    for call in (lambda: sequence.track(view(0), 1), sequence.status, sequence.close):
        with pytest.raises(SequenceLost):
            call()
    with pytest.raises(SequenceLost), sequence.stream():
        pass
    answer = httpx.get(f"{server.base}/v1/sequences/{sequence.id}/stream")
    assert (answer.status_code, answer.json()["code"]) == (426, "upgrade_required")


def test_another_stream_takes_the_place_of_the_first(server: Live, client: Client) -> None:
    with client.sequence() as sequence, sequence.stream() as first, sequence.stream() as second:
        with pytest.raises(ConnectionClosed) as caught:
            first._connection.recv(10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4409
        second.send(view(0), 1)
        assert isinstance(second.receive(), SequenceFrame)


def test_a_browser_speaks_json(server: Live, client: Client) -> None:
    (expected,) = in_process(views(1))
    with (
        client.sequence(camera=CAMERA, stereo=RIG) as sequence,
        raw_stream(server, sequence.id, "?format=json", subprotocols=["superpoint"]) as stream,
    ):
        assert stream.subprotocol == "superpoint"
        stream.send(json.dumps({"stamp_ns": "1403636579763555584", "frame_id": "a"}))
        stream.send(view(0))
        text = stream.recv(20)
        assert isinstance(text, str)
        document = json.loads(text)
        assert (document["stamp_ns"], document["frame_id"]) == (1403636579763555584, "a")
        assert document["track_ids"] == expected.track_ids.tolist()
        np.testing.assert_allclose(document["keypoints"], expected.keypoints, atol=1e-2)
        stream.send(json.dumps({"stamp_ns": 1403636579863555600.0, "right": True}))
        for shift in (3, 9):
            stream.send(view(shift))
        assert json.loads(stream.recv(20))["stereo"]["rows"]
        stream.send(msgpack.packb({"stamp_ns": 1403636579963555584, "image": view(6)}))
        assert json.loads(stream.recv(20))["index"] == 2


@pytest.mark.parametrize(
    ("message", "stamp_ns"),
    [
        (b"\xc1", None),
        (msgpack.packb([1]), None),
        (msgpack.packb({"stamp_ns": 1}), 1),
        (msgpack.packb({"stamp_ns": -1, "image": b"x"}), None),
        (msgpack.packb({"stamp_ns": True, "image": b"x"}), None),
        (msgpack.packb({"stamp_ns": 2**63, "image": b"x"}), None),
        (msgpack.packb({"stamp_ns": 1, "image": "text"}), 1),
        (msgpack.packb({"stamp_ns": 1, "image": b"x", "left": b"y"}), 1),
        (msgpack.packb({"stamp_ns": 1, "image": b"x", "frame_id": "a" * 300}), 1),
        ("no json", None),
        ("[]", None),
        ('{"stamp_ns": 1.5}', None),
        ('{"stamp_ns": 1, "right": 1}', 1),
    ],
)
def test_a_message_that_is_no_frame_is_refused_and_the_stream_goes_on(
    server: Live, client: Client, message: Any, stamp_ns: int | None
) -> None:
    with client.sequence() as sequence, raw_stream(server, sequence.id) as stream:
        stream.send(message)
        answer = decode(stream.recv(20), MSGPACK)
        assert (answer["stamp_ns"], answer["frame_id"]) == (stamp_ns, None)
        assert (answer["problem"]["status"], answer["problem"]["code"]) == (400, "bad_request")
        stream.send(msgpack.packb({"stamp_ns": 2, "image": view(0)}))
        assert decode(stream.recv(20), MSGPACK)["index"] == 0


@pytest.mark.parametrize("header", [{"stamp_ns": -1}, {"stamp_ns": 1, "left": 2}, {"stamp_ns": -1, "right": True}])
def test_a_refused_header_has_one_answer(server: Live, client: Client, header: dict[str, Any]) -> None:
    with client.sequence() as sequence, raw_stream(server, sequence.id, "?format=json") as stream:
        stream.send(json.dumps(header))
        for _ in range(2 if "right" in header else 1):
            stream.send(view(0))
        stream.send(json.dumps({"stamp_ns": 7}))
        stream.send(view(0))
        assert json.loads(stream.recv(20))["problem"]["code"] == "bad_request"
        assert json.loads(stream.recv(20))["stamp_ns"] == 7


@pytest.mark.parametrize("images", [0, 1])
def test_a_header_without_its_images_does_not_take_the_next(server: Live, client: Client, images: int) -> None:
    with client.sequence() as sequence, raw_stream(server, sequence.id, "?format=json") as stream:
        stream.send(json.dumps({"stamp_ns": 5, "right": True}))
        for _ in range(images):
            stream.send(view(0))
        for stamp_ns in (6, 7):
            stream.send(json.dumps({"stamp_ns": stamp_ns}))
        stream.send(view(0))
        for stamp_ns in (5, 6):
            refused = json.loads(stream.recv(20))
            assert (refused["stamp_ns"], refused["problem"]["code"]) == (stamp_ns, "bad_request")
            assert "text message follows a header" in refused["problem"]["detail"]
        tracked = json.loads(stream.recv(20))
        assert (tracked["stamp_ns"], tracked["index"]) == (7, 0)


def test_frames_over_the_limit_are_refused(server: Live, client: Client) -> None:
    with client.sequence() as sequence, raw_stream(server, sequence.id) as stream:
        stream.send(msgpack.packb({"stamp_ns": 1, "frame_id": "big", "image": bytes(1_000_001)}))
        answer = decode(stream.recv(20), MSGPACK)
        assert (answer["frame_id"], answer["problem"]["code"]) == ("big", "too_large")
        # larger than a body and its frame: the server does not read it
        with contextlib.suppress(ConnectionClosed):
            stream.send(bytes(2_000_000))
        with pytest.raises(ConnectionClosed) as caught:
            stream.recv(20)
        # a connection that is closed while its client still sends is reset, and may lose what was to be read
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


def test_a_full_engine_refuses_frames_of_streams(server: Live, client: Client) -> None:
    with client.sequence() as sequence, sequence.stream() as stream:
        # whatever its pace has been
        slots = server.core.engine._admission.images.take(server.core.engine.config.max_queue)
        stream.send(view(0), 1)
        answer = stream.receive()
        assert isinstance(answer, Refused)
        assert answer.fault.code == "overloaded"
        for slot in slots:
            slot.release()
        stream.send(view(0), 2)
        assert isinstance(stream.receive(), SequenceFrame)


def test_bad_queries_and_foreign_pages_open_no_stream(
    server: Live, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with client.sequence() as sequence:
        for query, origin, status, code in (
            ("?format=xml", None, 400, "bad_request"),
            ("?descriptors=float64", None, 400, "bad_request"),
            ("", "https://elsewhere.example", 403, "forbidden_origin"),
        ):
            with pytest.raises(InvalidStatus) as caught:
                raw_stream(server, sequence.id, query, origin=origin)
            response = caught.value.response
            assert (response.status_code, json.loads(response.body)["code"]) == (status, code)
        with raw_stream(server, sequence.id, origin=server.base):
            pass
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_message_of_the_client_is_the_one_of_the_docstring(client: Client) -> None:
    message = msgpack.unpackb(stream_message(client.context, b"left", 5, "f", b"right"))
    assert message == {"stamp_ns": 5, "frame_id": "f", "image": b"left", "right": b"right"}
