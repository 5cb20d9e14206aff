"""Clients that hang up, dawdle, lie or send too much, over real connections."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus

import cv2
import httpx
import numpy as np
import pytest
from live import Live, live, post_bytes, wait_until
from problems import check_problem
from starlette.types import Message, Receive, Scope, Send

from service.app import create_app
from service.bodies import Budget
from service.gate import Gate
from service.metrics import Metrics
from service.settings import Settings

PNG = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))[1].tobytes()
DROPPED = 'superpoint_dropped_total{reason="cancelled"}'


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(max_queue=8, max_bodies_mb=2.5) as made:
        yield made


@pytest.fixture(scope="module")
def brisk() -> Iterator[Live]:
    with live(deadline_s=1.5, max_requests=3) as made:
        yield made


def hung_up(server: Live) -> float:
    return server.metric('superpoint_requests_total{route="/v1/features",status="499"}')


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read until the server closes: status, headers, body."""
    data = b""
    while part := connection.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


def test_a_queued_image_of_a_client_that_hangs_up_never_reaches_the_device(server: Live) -> None:
    dropped, gone = server.metric(DROPPED), hung_up(server)
    batches = server.metric("superpoint_batch_size_sum")
    with server.held():
        connections = [server.connect() for _ in range(3)]
        for connection in connections:
            connection.sendall(post_bytes("/v1/features", PNG))
        wait_until(lambda: server.core.engine.depth == 3)
        time.sleep(0.1)  # decoded, and waiting for the device
        for connection in connections[:2]:
            connection.close()
        wait_until(lambda: hung_up(server) == gone + 2)
        assert server.core.engine.depth == 1  # their places are free at once, though the device is busy
    status, _, _ = answer_of_length(connections[2])
    assert status == 200
    assert server.metric(DROPPED) == dropped + 2
    assert server.metric("superpoint_batch_size_sum") == batches + 1
    connections[2].close()


def answer_of_length(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer of a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, body


PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(("kind", "start"), [("image/png", b""), ("multipart/form-data; boundary=b", PART)])
def test_hanging_up_amid_a_body_frees_its_bytes(server: Live, kind: str, start: bytes) -> None:
    gone = hung_up(server)
    connection = server.connect()
    connection.sendall(post_bytes("/v1/features", start + PNG[:100], f"Content-Type: {kind}", length=len(PNG)))
    wait_until(lambda: server.core.bodies.used == len(start) + 100)
    connection.close()
    wait_until(lambda: hung_up(server) == gone + 1)
    wait_until(lambda: server.core.bodies.used == server.core.engine.depth == 0)
    assert httpx.post(f"{server.base}/v1/features", content=PNG).status_code == 200


def test_hanging_up_while_matching_waits_for_the_device(server: Live) -> None:
    name = 'superpoint_requests_total{route="/v1/homography",status="499"}'
    body = json.dumps({"points0": [[0, 0]] * 4, "points1": [[0, 0]] * 4}).encode()
    with server.held():
        connection = server.connect()
        connection.sendall(post_bytes("/v1/homography", body, "Content-Type: application/json"))
        wait_until(lambda: server.core.engine.depth == 1)
        connection.close()
        wait_until(lambda: server.metric(name) == 1)
    wait_until(lambda: server.core.engine.depth == 0)


def test_a_body_that_does_not_arrive_is_not_waited_for_for_long(brisk: Live) -> None:
    connections = [brisk.connect() for _ in range(2)]
    began = time.monotonic()
    for connection in connections:
        connection.sendall(post_bytes("/v1/features", PNG[:100], length=len(PNG)))
    wait_until(lambda: brisk.core.bodies.used == 200)
    for _ in range(3):  # a byte now and then does not help
        time.sleep(0.1)
        connections[1].sendall(b"x")
    for connection in connections:
        status, headers, body = answer(connection)
        assert (status, headers["connection"], json.loads(body)["code"]) == (408, "close", "body_timeout")
    assert 1.4 < time.monotonic() - began < 15
    assert brisk.core.engine.depth == 0
    wait_until(lambda: brisk.core.bodies.used == 0)


def test_headers_that_do_not_arrive_end_the_connection(brisk: Live) -> None:
    for start in (b"", b"POST /v1/features HTTP/1.1\r\nHost:"):
        connection = brisk.connect()
        connection.sendall(start)
        assert connection.recv(100) == b""
    # a connection that is kept and then starts a request that never ends
    connection = brisk.connect()
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
    assert answer_of_length(connection)[0] == 200
    connection.sendall(b"GET /hea")
    began = time.monotonic()
    assert connection.recv(100) == b""
    assert 1.0 < time.monotonic() - began < 15


def test_the_rest_of_a_refused_body_is_not_waited_for_without_end(brisk: Live) -> None:
    """Each of its bytes ends the wait for the next request, in which a connection is closed."""
    connection = brisk.connect()
    connection.sendall(post_bytes("/nowhere", b"", length=1000))
    assert answer_of_length(connection)[0] == 404
    began = time.monotonic()
    for _ in range(3):
        time.sleep(0.1)
        connection.sendall(b"x")
    with suppress(ConnectionError):  # closed while a byte was on its way
        assert connection.recv(100) == b""
    assert 1.0 < time.monotonic() - began < 15


def test_a_connection_whose_refused_body_arrives_is_kept(brisk: Live) -> None:
    connection = brisk.connect()
    connection.sendall(post_bytes("/nowhere", b"", length=1000))
    assert answer_of_length(connection)[0] == 404
    time.sleep(0.8)
    connection.sendall(bytes(1000))
    time.sleep(0.9)  # longer, all in all, than the rest was to take
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
    assert answer_of_length(connection)[0] == 200


def test_a_client_that_does_not_read_is_let_go(brisk: Live) -> None:
    scene = np.random.default_rng(1).integers(0, 256, (480, 640), dtype=np.uint8)
    body = cv2.imencode(".jpg", cv2.GaussianBlur(scene, (0, 0), 1.5))[1].tobytes()
    # until the network has seen this size and is within the deadline
    wait_until(lambda: httpx.post(f"{brisk.base}/v1/features", content=body, timeout=20).status_code == 200)
    served = 'superpoint_requests_total{route="/v1/features",status="200"}'
    before = brisk.metric(served)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", brisk.port))
    for _ in range(12):  # more than what the kernel takes for the client
        connection.sendall(post_bytes("/v1/features", body))
    wait_until(lambda: brisk.metric(served) > before)
    wait_until(lambda: not brisk.server.server_state.connections)
    connection.close()


def test_what_the_headers_say_is_not_believed(server: Live) -> None:
    connection = server.connect()
    connection.sendall(post_bytes("/v1/features", b"", length=2_000_000))
    status, headers, _ = answer(connection)  # refused before a byte of the body
    assert (status, headers["connection"]) == (413, "close")

    connection = server.connect()
    connection.sendall(b"POST /v1/features HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(OSError):  # noqa: PT012
        for _ in range(100):
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            time.sleep(0.002)
    wait_until(lambda: server.core.engine.depth == 0)

    for wrong in (
        post_bytes("/v1/features", PNG, length=-1),
        post_bytes("/v1/features", PNG, "Content-Length: 5"),
        post_bytes("/v1/features", PNG, "X-Large: " + "x" * 200_000),
        b"POST /v1/features HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01 this is TLS\r\n\r\n",
    ):
        connection = server.connect()
        try:
            connection.sendall(wrong)
            status = answer(connection)[0]
        except ConnectionError:
            continue  # the rest of what was sent met a closed connection
        assert status == 400, wrong[:80]

    # shorter than declared: the rest is the next request, and no request
    connection = server.connect()
    connection.sendall(post_bytes("/v1/features", PNG, length=len(PNG) - 10))
    status, _, _ = answer_of_length(connection)
    assert status == 422
    connection.close()


def test_a_large_declared_body_is_refused_in_words(server: Live) -> None:
    response = httpx.post(f"{server.base}/v1/features", content=bytes(3_000_000))
    check_problem(response, 413, "too_large", "3000000 bytes")


def test_bodies_have_a_limit_together(server: Live) -> None:
    body = PNG + bytes(900_000)
    with ThreadPoolExecutor(3) as threads, server.held():
        requests = [threads.submit(httpx.post, f"{server.base}/v1/features", content=body, timeout=20) for _ in "123"]
        wait_until(lambda: any(request.done() for request in requests))
        (refused,) = (request.result() for request in requests if request.done())
        check_problem(refused, 429, "overloaded", "2500000 bytes")
    assert sorted(request.result().status_code for request in requests) == [200, 200, 429]
    assert httpx.post(f"{server.base}/v1/features", content=body).status_code == 200


def test_a_refused_body_counts_no_more_while_its_refusal_is_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run(settings: Settings) -> list[int]:
        gate, refusing, sent = Gate(app, settings, Metrics(), Budget(100)), asyncio.Event(), asyncio.Event()
        statuses: list[int] = []

        async def request(*messages: tuple[int, bool, asyncio.Event | None]) -> None:
            left = iter(messages)

            async def receive() -> Message:
                size, more, awaited = next(left, (0, False, asyncio.Event()))
                if awaited is not None:
                    await awaited.wait()
                return {"type": "http.request", "body": bytes(size), "more_body": more}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])
                    if message["status"] == HTTPStatus.TOO_MANY_REQUESTS:
                        refusing.set()
                        await sent.wait()  # a client that reads slowly

            headers = [(b"content-length", b"80")]
            scope = {"type": "http", "method": "POST", "path": "/v1/features", "client": ("127.0.0.1", 1)}
            await gate({**scope, "headers": headers}, receive, send)

        whole = asyncio.create_task(request((40, True, None), (40, False, refusing)))
        await asyncio.sleep(0)
        refused = asyncio.create_task(request((70, True, None)))
        await asyncio.wait_for(whole, 10)
        sent.set()
        await asyncio.wait_for(refused, 10)
        return statuses

    assert asyncio.run(run(Settings())) == [429, 200]


def test_a_cancellation_that_is_swallowed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As asyncio.wait_for swallows one before Python 3.12, where a result comes at the same time."""
    monkeypatch.setattr("service.gate._AGAIN_S", 0.05)
    swallowed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            swallowed.append("once")
        await asyncio.sleep(20)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there")

    async def run() -> float:
        began = time.monotonic()
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [], "client": ("127.0.0.1", 1)}
        await Gate(app, Settings(), Metrics(), Budget(100))(scope, receive, send)
        return time.monotonic() - began

    assert asyncio.run(run()) < 10
    assert swallowed == ["once"]


@pytest.mark.anyio
async def test_what_is_refused_early_counts_for_its_route() -> None:
    app = create_app(Settings(device="cpu", api_keys=("secret",), max_body_mb=1.0))
    routes = {
        "/v1/models": "/v1/models",
        "/v1/features": "/v1/features",
        "/v1/features/abc": "/v1/features/{feature_id}",
        "/v1/sequences/a/frames": "/v1/sequences/{sequence_id}/frames",
        "/metrics": "/metrics",
        "/v1/no": "unknown",
        "/v1/features/abc/def": "unknown",
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in routes:
            check_problem(await client.get(path), 401, "unauthorized")
        known = {"x-api-key": "secret"}
        check_problem(await client.post("/v1/features", content=bytes(1_000_001), headers=known), 413, "too_large")
        check_problem(await client.post("/", content=bytes(1_000_001)), 413, "too_large")
        text = (await client.get("/metrics", headers=known)).text
    counted = re.findall(r'^superpoint_requests_total{route="(.*)",status="(.*)"} (.*)$', text, re.MULTILINE)
    expected = {(route, "401", "2.0" if route == "unknown" else "1.0") for route in routes.values()}
    assert set(counted) == {*expected, ("/v1/features", "413", "1.0"), ("/", "413", "1.0")}
    seconds = set(re.findall(r'^superpoint_request_seconds_count{route="(.*)"}', text, re.MULTILINE))
    assert seconds == {*routes.values(), "/"}


def test_a_stream_that_is_refused_early_counts_for_its_route() -> None:
    metrics, sent, path = Metrics(), [], "/v1/sequences/{sequence_id}/stream"

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/sequences/a/stream", "headers": [], "client": ("192.0.2.1", 1)}
    gate = Gate(None, Settings(), metrics, routes=("/v1/sequences/{sequence_id}", path))  # type: ignore[arg-type]
    asyncio.run(gate(scope, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert f'superpoint_requests_total{{route="{path}",status="401"}} 1.0' in metrics.text().decode()


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"cors_origins": "https://ours.example"}], indirect=True)
async def test_pages_of_other_origins_have_nothing_done(client: httpx.AsyncClient) -> None:
    """A browser sends a form without asking before, and without a key where none is wanted."""
    files = {"image": PNG}
    for origin in ("https://elsewhere.example", "null", "http://test:81", "http://[", ""):
        headers = {"origin": origin}
        for method, path in (("POST", "/v1/features"), ("PUT", "/v1/sequences/a/mask"), ("DELETE", "/v1/features/a")):
            answer = await client.request(method, path, headers=headers, files=files if method == "POST" else None)
            check_problem(answer, 403, "forbidden_origin", f"origin {origin!r} may not ask; expected this host")
        assert (await client.get("/v1/models", headers=headers)).status_code == 200  # which the page cannot read
    for headers in ({}, {"origin": "http://test"}, {"origin": "https://test"}, {"origin": "https://ours.example"}):
        assert (await client.post("/v1/features", headers=headers, files=files)).status_code == 200


def test_requests_at_a_time_have_a_limit(brisk: Live) -> None:
    connections = [brisk.connect() for _ in range(3)]
    for connection in connections:
        connection.sendall(post_bytes("/v1/features", PNG[:50], length=len(PNG)))
    wait_until(lambda: brisk.core.bodies.used == 150)
    check_problem(httpx.get(f"{brisk.base}/v1/models"), 429, "overloaded", "3 requests")
    assert httpx.get(f"{brisk.base}/healthz").status_code == 200  # who looks after the service is let in
    for connection in connections:
        connection.close()
    wait_until(lambda: brisk.core.bodies.used == 0)
    assert httpx.get(f"{brisk.base}/v1/models").status_code == 200


def test_shutting_down_finishes_what_was_accepted() -> None:
    with live() as server:
        images = 6
        with ThreadPoolExecutor(images) as threads:
            with server.held():
                requests = [
                    threads.submit(httpx.post, f"{server.base}/v1/features", content=PNG, timeout=30)
                    for _ in range(images)
                ]
                wait_until(lambda: server.core.engine.depth == images)
                server.server.should_exit = True
                wait_until(lambda: not server.server.servers[0].is_serving())
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"{server.base}/healthz")
            assert [request.result(30).status_code for request in requests] == [200] * images


def test_log_lines_are_records_without_content(server: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="superpoint"):
        headers = {"x-request-id": "mine", "x-api-key": "secret"}
        httpx.post(f"{server.base}/v1/features?descriptors=none", content=PNG, headers=headers)
        wait_until(lambda: caplog.messages)
    record = json.loads(caplog.messages[-1])
    assert (record["id"], record["method"], record["path"], record["status"]) == ("mine", "POST", "/v1/features", 200)
    assert record["ms"] > 0
    assert "secret" not in caplog.text
    assert len(caplog.messages[-1]) < 200
    assert threading.active_count() < 50
