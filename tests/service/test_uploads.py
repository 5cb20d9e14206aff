"""Bodies that come slowly: they hold no place at the device, and are refused early where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import httpx
import numpy as np
import pytest
from live import Live, live, post_bytes, wait_until
from moving import view
from problems import check_problem
from test_gate import answer_of_length

PLACES = 2
PNG = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))[1].tobytes()
PART = b'--b\r\nContent-Disposition: form-data; name="image0"; filename="a.png"\r\n\r\n'
FORM = "Content-Type: multipart/form-data; boundary=b"
JSON = "Content-Type: application/json"
PATHS = ["/v1/features", "/v1/match", "/v1/match/many", "/v1/homography", "frames"]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(max_queue=PLACES) as made:
        yield made


@pytest.fixture
def frames(server: Live) -> str:
    """Path of the frames of a sequence."""
    return f"/v1/sequences/{httpx.post(f'{server.base}/v1/sequences').json()['id']}/frames?stamp_ns=1"


@pytest.mark.parametrize("path", PATHS)
def test_a_body_holds_no_place_while_it_comes(server: Live, frames: str, path: str) -> None:
    headers = {"/v1/match": [FORM], "/v1/homography": [JSON]}.get(path, [])
    start = (PART if path == "/v1/match" else b"") + PNG[:50]
    head = post_bytes(frames if path == "frames" else path, start, *headers, length=100_000)
    connections = [server.connect() for _ in range(PLACES + 1)]
    for connection in connections:
        connection.sendall(head)
    wait_until(lambda: server.core.bodies.used == len(start) * len(connections))
    assert server.core.engine.depth == 0
    assert httpx.post(f"{server.base}/v1/features", content=PNG, timeout=30).status_code == 200
    for connection in connections:
        connection.close()
    wait_until(lambda: server.core.bodies.used == 0)


@pytest.mark.parametrize("path", PATHS)
def test_a_full_queue_refuses_before_it_reads(server: Live, frames: str, path: str) -> None:
    kind = JSON if path == "/v1/homography" else FORM
    slots = server.core.reserve(PLACES)
    connection = server.connect()
    connection.sendall(post_bytes(frames if path == "frames" else path, b"", kind, length=100_000))
    status, headers, body = answer_of_length(connection)  # of a body of which nothing was sent
    assert (status, b"queue of 2 places is full" in body) == (429, True)
    assert int(headers["retry-after"]) >= 1
    connection.close()
    for slot in slots:
        slot.release()
    assert server.core.engine.depth == 0


def test_a_queue_that_fills_while_a_body_comes_refuses_it_and_loses_nothing(server: Live, frames: str) -> None:
    image = view(0)
    for path in ("/v1/features", "/v1/match/many", frames):
        connection = server.connect()
        whole = post_bytes(path, image)
        connection.sendall(whole[:-1])
        wait_until(lambda: server.core.bodies.used == len(image) - 1)
        slots = server.core.reserve(PLACES)
        connection.sendall(whole[-1:])
        assert answer_of_length(connection)[0] == 429
        connection.close()
        for slot in slots:
            slot.release()
        assert server.core.engine.depth == 0
    response = httpx.post(f"{server.base}{frames}", content=image, timeout=30)
    assert response.json()["index"] == 0  # the frame that was refused left no turn behind
    pair = {"image": image, "right": image}
    with_one_place = server.core.reserve(1)
    response = httpx.post(f"{server.base}{frames.replace('=1', '=2')}", files=pair, timeout=30)
    check_problem(response, 429, "overloaded")  # what a pair needs is known when it is there
    with_one_place[0].release()
    assert server.core.engine.depth == 0
