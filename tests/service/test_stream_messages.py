"""Messages of strangers that would cost more than their bytes, and handshakes that cannot be read."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import msgpack
import pytest
from live import Live, live, raw_stream
from moving import view
from websockets.exceptions import InvalidStatus

from service.client import Client
from service.errors import BadRequestError
from service.stream_messages import BadFrameError, Header, frame_of_message


def tree(depth: int) -> bytes:
    """Maps of four members, which are such maps."""
    return (
        b"\x84" + b"".join(b"\xa1" + name + tree(depth - 1) for name in (b"a", b"b", b"c", b"d")) if depth else b"\x80"
    )


ARRAYS = b"\x82\xa8stamp_ns\x01\xa5image\xdd" + (100_000).to_bytes(4, "big") + b"\x90" * 100_000
MAPS = b"\x82\xa8stamp_ns\x01\xa5image" + tree(7)
# each makes room for as many as it claims, before there are any
CLAIMS = b"\x82\xa8stamp_ns\x01\xa5image" + (b"\xdd" + (2000).to_bytes(4, "big")) * 400


@pytest.mark.parametrize("message", [ARRAYS, MAPS, CLAIMS], ids=["arrays", "maps", "claims"])
def test_a_binary_message_costs_no_more_than_its_bytes(message: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequestError, match=r"^message is no flat map of MessagePack; expected stamp_ns, .*$"):
            frame_of_message(message)
        assert tracemalloc.get_traced_memory()[1] < len(message) + 100_000
    finally:
        tracemalloc.stop()


def test_a_member_too_many_is_named() -> None:
    frame = {"stamp_ns": 1, "frame_id": "f", "image": b"left", "right": b"right"}
    found = frame_of_message(msgpack.packb(frame))
    assert (found.stamp_ns, found.frame_id, found.images) == (1, "f", [("image", b"left"), ("right", b"right")])
    with pytest.raises(BadRequestError, match="a member 'gain'; expected only: frame_id, image, right, stamp_ns"):
        frame_of_message(msgpack.packb({**frame, "gain": 1.5}))


@pytest.mark.parametrize(
    ("frame", "stamp_ns", "frame_id"),
    [
        ({"stamp_ns": 60, "frame_id": "f", "image": b"left", "foo": 1}, 60, "f"),
        ({"stamp_ns": "60", "frame_id": "f"}, 60, "f"),
        ({"stamp_ns": 60, "image": "text"}, 60, None),
        ({"stamp_ns": -1, "frame_id": "f", "image": b"left"}, None, "f"),
        ({"frame_id": "f", "image": b"left"}, None, "f"),
        ({"stamp_ns": 60, "frame_id": 5, "image": b"left"}, 60, None),
        ({"stamp_ns": 60, "frame_id": "f" * 257, "image": b"left"}, 60, None),
    ],
)
def test_a_message_that_is_no_frame_still_tells_which_it_was(
    frame: dict[str, object], stamp_ns: int | None, frame_id: str | None
) -> None:
    with pytest.raises(BadRequestError) as caught:
        frame_of_message(msgpack.packb(frame))
    assert isinstance(caught.value, BadFrameError)
    assert caught.value.echo == {"stamp_ns": stamp_ns, "frame_id": frame_id}


def test_so_does_a_header() -> None:
    for header in ({"foo": 1}, {"right": "yes"}):
        with pytest.raises(BadFrameError) as caught:
            Header.parse(json.dumps({"stamp_ns": "60", "frame_id": "f", **header}))
        assert caught.value.echo == {"stamp_ns": 60, "frame_id": "f"}


def test_a_text_message_has_a_limit() -> None:
    longest = json.dumps({"stamp_ns": str(2**63 - 1), "frame_id": "\U0001f600" * 256, "right": True}, indent=4)
    assert Header.parse(longest) == Header(2**63 - 1, "\U0001f600" * 256, True)
    with pytest.raises(BadRequestError, match=r"^text message has 5015 characters; expected at most 4096$"):
        Header.parse('{"stamp_ns": 1}' + " " * 5000)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as made:
        yield made


def test_a_stream_goes_on_after_them(server: Live) -> None:
    with (
        Client(server.base) as client,
        client.sequence() as sequence,
        raw_stream(server, sequence.id, "?format=json") as stream,
    ):
        for message in (ARRAYS, '{"stamp_ns": 1, "frame_id": [' + "[]," * 100_000 + "[]]}"):
            stream.send(message)
            assert json.loads(stream.recv(20))["problem"]["code"] == "bad_request"
        for wrong in (msgpack.packb({"stamp_ns": 60, "frame_id": "f"}), '{"stamp_ns": "60", "frame_id": "f", "x": 1}'):
            stream.send(wrong)
            answer = json.loads(stream.recv(20))
            assert (answer["stamp_ns"], answer["frame_id"], answer["problem"]["code"]) == (60, "f", "bad_request")
        stream.send(msgpack.packb({"stamp_ns": 2, "image": view(0)}))
        assert json.loads(stream.recv(20))["index"] == 0


def test_an_origin_that_is_no_address_is_a_foreign_one(server: Live) -> None:
    with Client(server.base) as client, client.sequence() as sequence:
        with pytest.raises(InvalidStatus) as caught:
            raw_stream(server, sequence.id, origin="http://[")
        response = caught.value.response
        assert (response.status_code, json.loads(response.body)["code"]) == (403, "forbidden_origin")
