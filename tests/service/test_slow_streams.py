"""Streams of a real server whose clients stop: in the middle of a frame, or with reading."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import suppress

import msgpack
import pytest
from live import live, raw_stream, wait_until
from moving import view
from websockets.exceptions import ConnectionClosed

from service.client import Client


def test_images_that_do_not_follow_their_header_are_counted_and_not_waited_for_for_ever() -> None:
    with (
        live(deadline_s=1.0) as server,
        Client(server.base) as client,
        client.sequence() as sequence,
        raw_stream(server, sequence.id) as stream,
    ):
        stream.send(json.dumps({"stamp_ns": 1, "right": True}))
        stream.send(view(0))
        wait_until(lambda: server.core.bodies.used == len(view(0)))
        with pytest.raises(ConnectionClosed) as caught:
            stream.recv(20)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "a frame does not arrive")
        assert server.core.bodies.used == 0


def test_a_stream_that_is_not_read_is_not_kept() -> None:
    """Closing it waits until the client has read what was sent; this client never does."""
    with live(deadline_s=1.0) as server, Client(server.base) as client, client.sequence() as sequence:
        for listening in server.server.servers[0].sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection = server.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        upgrade = f"GET /v1/sequences/{sequence.id}/stream?descriptors=float32 HTTP/1.1\r\nHost: test\r\n"
        upgrade += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        connection.sendall((upgrade + "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n").encode())
        wait_until(lambda: server.core.streams)
        with suppress(OSError):  # it may be let go before all are sent
            for stamp_ns in range(1, 30):
                message = msgpack.packb({"stamp_ns": stamp_ns, "image": view(0)})
                # a client's frame: binary, 64 bits of length, masked by zeros
                connection.sendall(b"\x82\xff" + struct.pack(">Q", len(message)) + bytes(4) + message)
                time.sleep(0.02)
        # the engine's client keeps a connection of its own
        wait_until(lambda: len(server.server.server_state.connections) <= 1)
        wait_until(lambda: not server.core.streams)
