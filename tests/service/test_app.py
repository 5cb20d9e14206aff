"""The application over HTTP: results, formats, limits, refusals; and a real server on a port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from problems import check_problem

import frontend
from frontend import SuperPoint, read_image
from service.access import is_local
from service.core import Core
from service.errors import DeadlineError
from service.server import protocols
from service.settings import Settings
from service.wire import JSON, MSGPACK, NPZ, decode, encode

SAMPLES = Path(frontend.__file__).parent / "samples"
FIRST, SECOND = SAMPLES / "rocket_0.jpg", SAMPLES / "rocket_1.jpg"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [JSON, MSGPACK, NPZ])
async def test_features_are_those_of_the_library(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post(
        "/v1/features",
        params={"max_keypoints": 50},
        content=FIRST.read_bytes(),
        headers={"accept": kind, "content-type": "image/jpeg"},
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == kind
    found = decode(response.content, kind)
    extractor = SuperPoint.from_pretrained(device="cpu")
    expected = extractor.configured(
        type(extractor.config)(**{**extractor.config.__dict__, "max_keypoints": 50})
    ).extract(read_image(FIRST))
    np.testing.assert_allclose(np.array(found["keypoints"]), expected.keypoints, atol=1e-2)
    np.testing.assert_allclose(np.array(found["descriptors"]), expected.descriptors, atol=1e-3)
    np.testing.assert_allclose(np.array(found["sigmas"]), expected.sigmas, atol=1e-3)
    assert found["image_size"] == [640, 427]
    assert found["model"] == "superpoint-edge"


@pytest.mark.anyio
async def test_descriptors_come_in_the_type_that_is_asked_for(client: httpx.AsyncClient) -> None:
    files = {"image": ("a.jpg", FIRST.read_bytes(), "image/jpeg")}
    found = {}
    for kind in ("float32", "float16", "int8", "none"):
        response = await client.post(
            "/v1/features",
            params={"descriptors": kind, "max_keypoints": 20, "resize": 320},
            files=files,
            headers={"accept": MSGPACK},
        )
        found[kind] = decode(response.content, MSGPACK)["descriptors"]
    assert found["none"] is None
    assert found["float16"].dtype == np.float16
    assert found["int8"].dtype == np.int8
    np.testing.assert_allclose(found["float16"].astype(float), found["float32"], atol=1e-3)
    np.testing.assert_allclose(found["int8"] / 127, found["float32"], atol=0.5 / 127 + 1e-6)


@pytest.mark.anyio
async def test_two_images_match(client: httpx.AsyncClient) -> None:
    files = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
    response = await client.post("/v1/match", files=files, params={"max_keypoints": 512})
    document = response.json()
    assert document["status"] == "ok"
    assert sum(document["inliers"]) > 150
    assert len(document["matches"]) == len(document["inliers"]) == len(document["match_scores"])
    assert np.array(document["homography"]).shape == (3, 3)
    assert document["image1"]["image_size"] == [600, 400]
    assert {"matching", "geometry", "total"} <= set(document["timings_ms"])
    response = await client.post("/v1/match", files=files, params={"geometry": "fundamental"})
    assert "fundamental" in response.json()
    black = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    response = await client.post("/v1/match", files={"image0": black, "image1": black})
    assert response.status_code == 200
    assert (response.json()["status"], response.json()["homography"]) == ("too_few_matches", None)


@pytest.mark.anyio
async def test_homography_of_points(client: httpx.AsyncClient) -> None:
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 600, (80, 2))
    points1 = points0 * [1.1, 0.9] + [5, -7]
    points1[60:] = rng.uniform(0, 600, (20, 2))
    for kind in (JSON, MSGPACK, NPZ):
        body = encode({"points0": points0, "points1": points1}, kind)
        headers = {"content-type": kind, "accept": MSGPACK}
        response = await client.post("/v1/homography", content=body, headers=headers)
        found = decode(response.content, MSGPACK)
        assert found["status"] == "ok"
        assert found["inliers"][:60].all()
        np.testing.assert_allclose(found["homography"], [[1.1, 0, 5], [0, 0.9, -7], [0, 0, 1]], atol=1e-3)
    response = await client.post("/v1/homography", json={"points0": [], "points1": []})
    assert response.json() == {"homography": None, "inliers": [], "status": "too_few_matches"}
    for wrong in ({}, {"points0": [[1, 2]], "points1": [[1]]}, {"points0": "x", "points1": "y"}, {"points0": [[1, 2]]}):
        check_problem(await client.post("/v1/homography", json=wrong), 400, "bad_request", "expected")
    check_problem(await client.post("/v1/homography", content=b"{", headers={"content-type": JSON}), 400, "bad_request")
    headers = {"content-type": "text/plain"}
    check_problem(await client.post("/v1/homography", content=b"1", headers=headers), 400, "bad_request", "text/plain")


@pytest.mark.anyio
async def test_bad_images_are_refused_in_one_line(client: httpx.AsyncClient) -> None:
    nan = cv2.imencode(".tiff", np.full((32, 32), np.nan, np.float32))[1].tobytes()
    for body in (b"no image", FIRST.read_bytes()[:5000], nan, b"<svg><!ENTITY a 'b'></svg>"):
        response = await client.post("/v1/features", content=body)
        check_problem(response, 422, "bad_image", "image")
    check_problem(await client.post("/v1/features", content=b""), 400, "bad_request", "empty")
    # nothing has been lost on the way: the queue is empty again
    metrics = (await client.get("/metrics")).text
    assert "superpoint_queue_depth 0.0" in metrics
    assert 'superpoint_requests_total{route="/v1/features",status="422"} 4.0' in metrics


@pytest.mark.anyio
async def test_requests_that_cannot_be_understood(client: httpx.AsyncClient) -> None:
    image = FIRST.read_bytes()
    check_problem(await client.post("/v1/features", files={"other": image}), 400, "bad_request", "0 files 'image'")
    check_problem(await client.post("/v1/match", content=image), 400, "bad_request", "image0, image1")
    for params, part in (
        ({"max_keypoints": 0}, "max_keypoints"),
        ({"max_keypoints": 5000}, "at most 4096"),
        ({"detection_threshold": "nan"}, "detection_threshold"),
        ({"descriptors": "float64"}, "descriptors"),
    ):
        check_problem(await client.post("/v1/features", params=params, content=image), 400, "bad_request", part)
    response = await client.post("/v1/features", params={"model": "nobody"}, content=image)
    check_problem(response, 404, "not_found", "superpoint-edge")
    response = await client.post("/v1/features", content=image, headers={"accept": "text/html"})
    check_problem(response, 400, "bad_request", "application/msgpack")
    check_problem(await client.get("/v1/nothing"), 404, "not_found")
    response = await client.get("/v1/features")
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.anyio
async def test_bodies_have_a_limit_declared_or_not(client: httpx.AsyncClient) -> None:
    check_problem(await client.post("/v1/features", content=bytes(1_000_001)), 413, "too_large", "1000001 bytes")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(100_000)

    check_problem(await client.post("/v1/features", content=endless()), 413, "too_large", "more than 1000000")


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"api_keys": "one, two"}], indirect=True)
async def test_keys_open_what_is_closed(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/v1/models"), 401, "unauthorized")
    check_problem(await client.get("/v1/models", headers={"x-api-key": "onetwo"}), 401, "unauthorized")
    assert (await client.get("/healthz")).status_code == 200
    response = await client.get("/v1/models", headers={"x-api-key": "two", "x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    (model,) = response.json()["models"]
    assert (model["name"], model["descriptor_dim"], model["sigmas"]) == ("superpoint-edge", 128, True)


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"max_queue": 2}], indirect=True)
async def test_more_than_the_queue_holds_is_sent_away(client: httpx.AsyncClient) -> None:
    image = FIRST.read_bytes()
    responses = await asyncio.gather(*(client.post("/v1/features", content=image) for _ in range(8)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    check_problem(refused, 429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.post("/v1/features", content=image)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"deadline_s": 0.001}], indirect=True)
async def test_a_deadline_is_kept(client: httpx.AsyncClient) -> None:
    check_problem(await client.post("/v1/features", content=FIRST.read_bytes()), 504, "deadline_exceeded")


@pytest.mark.anyio
async def test_the_interface_documents_itself(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"/v1/features", "/v1/match", "/v1/homography", "/v1/models"} <= set(document["paths"])
    body = document["paths"]["/v1/match"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"image0", "image1", "mask0", "mask1"}


@pytest.mark.anyio
async def test_work_that_nobody_waits_for_any_more_is_not_begun() -> None:
    core, ran, gate = Core(Settings(device="cpu", decode_threads=1)), [], threading.Event()
    end = time.monotonic() + 30
    busy = asyncio.ensure_future(core.in_thread(lambda: gate.wait(20), end))
    await asyncio.sleep(0)  # it begins
    try:
        with pytest.raises(DeadlineError):
            await core.in_thread(lambda: ran.append("late"), time.monotonic() + 0.05)
        left = asyncio.ensure_future(core.in_thread(lambda: ran.append("left"), end))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
    finally:
        gate.set()
        await busy
    await core.in_thread(lambda: ran.append("next"), end)
    assert ran == ["next"]
    core.stop()


@pytest.mark.anyio
async def test_tracking_does_not_wait_for_images_to_be_decoded() -> None:
    core = Core(Settings(device="cpu", decode_threads=1))
    gate = threading.Event()
    busy = asyncio.ensure_future(core.in_thread(lambda: gate.wait(20), time.monotonic() + 30))
    try:
        assert await core.in_thread(lambda: "tracked", time.monotonic() + 10, tracking=True) == "tracked"
        assert not busy.done()
    finally:
        gate.set()
        await busy
        core.stop()


def test_pings_wait_longer_than_an_answer_may_take() -> None:
    settings = Settings(deadline_s=42.0)
    assert protocols(settings)["ws_ping_timeout"] > settings.deadline_s


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERPOINT_MAX_BATCH", "3")
    monkeypatch.setenv("SUPERPOINT_WARMUP", "640x480, 320x240")
    monkeypatch.setenv("SUPERPOINT_API_KEYS", "secret")
    settings = Settings()
    assert (settings.max_batch, settings.warmup) == (3, ("640x480", "320x240"))
    assert "secret" not in repr(settings)
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        *(True, True, True, False, False)
    ]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "SUPERPOINT_WARMUP": "64x64", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "frontend.cli.main", "serve", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_real_server_serves_and_finishes_what_it_accepted(
    server: subprocess.Popen[bytes], port: int, tmp_path: Path
) -> None:
    base = f"http://127.0.0.1:{port}"
    limit = time.monotonic() + 60
    with httpx.Client(timeout=60) as client:
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < limit
            try:
                if client.get(f"{base}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        files = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
        assert client.post(f"{base}/v1/match", files=files).json()["status"] == "ok"
    whole, told = httpx.Request("POST", f"{base}/v1/match", files=files), threading.Event()
    body = whole.read()

    def halting() -> Iterator[bytes]:
        yield body[:-1]
        assert told.wait(30)
        yield body[-1:]

    with ThreadPoolExecutor(1) as thread, httpx.Client() as other:
        kind = {"content-type": whole.headers["content-type"]}
        request = thread.submit(httpx.post, whole.url, content=halting(), headers=kind, timeout=30)
        while "superpoint_body_bytes 0.0" in other.get(f"{base}/metrics").text:
            assert time.monotonic() < limit
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        told.set()
        assert request.result(30).json()["status"] == "ok"
    server.wait(30)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("arguments", "environment", "part"),
    [
        (["--host", "0.0.0.0"], {}, "SUPERPOINT_API_KEYS, or --no-auth"),
        (["--host", ""], {}, "host '' is open to others"),
        ([], {"SUPERPOINT_MAX_BATCH": "none"}, "SUPERPOINT_MAX_BATCH is 'none'; expected"),
        ([], {"SUPERPOINT_MAX_PIXELS_MP": "inf"}, "SUPERPOINT_MAX_PIXELS_MP is 'inf'; expected"),
        (["--model", "nobody"], {}, "nobody"),
    ],
)
def test_settings_that_are_wrong_end_it_in_one_line(
    arguments: list[str], environment: dict[str, str], part: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frontend.cli.main", "serve", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert part in done.stderr
