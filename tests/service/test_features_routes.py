"""Features kept on the server, over HTTP: stored, fetched, forgotten, expired, refused."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from problems import check_problem

import frontend
from service.app import create_app
from service.settings import Settings
from service.wire import FORMATS, MSGPACK, decode

SAMPLES = Path(frontend.__file__).parent / "samples"
FIRST, SECOND = (SAMPLES / f"rocket_{index}.jpg" for index in (0, 1))
SMALL = {"max_keypoints": 64, "resize": 320}
TINY = cv2.imencode(".png", np.full((8, 8), 90, np.uint8))[1].tobytes()


async def store(client: httpx.AsyncClient, path: Path = FIRST, **params: object) -> str:
    query = {name: value for name, value in {**SMALL, "store": True, **params}.items() if value is not None}
    response = await client.post("/v1/features", params=query, content=path.read_bytes())
    assert response.status_code == 200, response.text
    return str(response.json()["feature_id"])


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    (value,) = [line.split()[-1] for line in lines if line.rpartition(" ")[0] == name]
    return float(value)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", FORMATS)
async def test_stored_features_are_fetched_as_they_were_made(client: httpx.AsyncClient, kind: str) -> None:
    params = {**SMALL, "store": True}
    response = await client.post("/v1/features", params=params, content=FIRST.read_bytes(), headers={"accept": kind})
    made = decode(response.content, kind)
    assert made["expires_in_s"] == 3600
    found = {}
    for descriptors in ("float32", "float16", "none"):
        response = await client.get(
            f"/v1/features/{made['feature_id']}", params={"descriptors": descriptors}, headers={"accept": kind}
        )
        assert response.headers["content-type"] == kind
        found[descriptors] = decode(response.content, kind)
    for name, value in made.items():
        if name != "descriptors":
            assert np.array_equal(found["float32"][name], value), name
    np.testing.assert_allclose(found["float32"]["descriptors"], made["descriptors"], atol=2**-11)
    np.testing.assert_allclose(found["float16"]["descriptors"], made["descriptors"], atol=2**-10)
    assert found["none"]["descriptors"] is None


@pytest.mark.anyio
async def test_features_are_stored_only_when_asked(client: httpx.AsyncClient) -> None:
    document = (await client.post("/v1/features", params=SMALL, content=FIRST.read_bytes())).json()
    assert (document["feature_id"], document["expires_in_s"]) == (None, None)
    assert await metric(client, "superpoint_store_entries") == 0


@pytest.mark.anyio
async def test_features_are_deleted(client: httpx.AsyncClient) -> None:
    feature_id = await store(client)
    assert await metric(client, "superpoint_store_entries") == 1
    # 64 keypoints: x, y, score and sigma as float32, 128 components as float16
    assert await metric(client, "superpoint_store_bytes") == 64 * (4 * 4 + 128 * 2)
    response = await client.delete(f"/v1/features/{feature_id}", headers={"accept": "text/html"})
    assert (response.status_code, response.content) == (204, b"")
    for again in (client.get, client.delete):
        check_problem(await again(f"/v1/features/{feature_id}"), 404, "features_not_found", feature_id)
    assert await metric(client, "superpoint_store_bytes") == 0
    assert await metric(client, 'superpoint_store_removed_total{reason="deleted"}') == 1


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"store_ttl_s": 30}], indirect=True)
async def test_features_expire(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(client._transport.app.state.core.store, "_clock", lambda: now)
    feature_id = await store(client)
    assert (await client.get(f"/v1/features/{feature_id}")).json()["expires_in_s"] == 30
    now += 30.5
    # nobody has asked for them; a look at the metrics is enough
    assert await metric(client, "superpoint_store_entries") == 0
    assert await metric(client, 'superpoint_store_removed_total{reason="expired"}') == 1
    check_problem(await client.get(f"/v1/features/{feature_id}"), 404, "features_not_found")


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"store_max_entries": 2, "store_ttl_s": 50}], indirect=True)
async def test_a_full_store_refuses_and_forgets_nothing(client: httpx.AsyncClient) -> None:
    ids = [await store(client), await store(client, collection="other")]
    batches = await metric(client, "superpoint_batch_size_count")
    response = await client.post("/v1/features", params={"store": True}, content=FIRST.read_bytes())
    check_problem(response, 429, "store_full", "2 of 2")
    assert 40 < int(response.headers["retry-after"]) <= 50
    # it was refused before any work was done
    assert await metric(client, "superpoint_batch_size_count") == batches
    assert await metric(client, "superpoint_store_full_total") == 1
    for feature_id in ids:
        assert (await client.get(f"/v1/features/{feature_id}")).status_code == 200
    assert (await client.post("/v1/features", params=SMALL, content=FIRST.read_bytes())).status_code == 200
    await client.delete(f"/v1/features/{ids[0]}")
    await store(client)


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"store_max_mb": 0.03}], indirect=True)
async def test_the_stores_memory_is_bounded(client: httpx.AsyncClient) -> None:
    await store(client)  # 17,408 bytes
    params = {**SMALL, "store": True}
    check_problem(await client.post("/v1/features", params=params, content=SECOND.read_bytes()), 429, "store_full")
    params["max_keypoints"] = 512
    response = await client.post("/v1/features", params=params, content=FIRST.read_bytes())
    check_problem(response, 413, "too_large", "at most 30000")


@pytest.mark.anyio
async def test_images_without_keypoints_are_stored(client: httpx.AsyncClient) -> None:
    black = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    made = (await client.post("/v1/features", params={"store": True}, content=black)).json()
    response = await client.get(f"/v1/features/{made['feature_id']}", headers={"accept": MSGPACK})
    assert decode(response.content, MSGPACK)["descriptors"].shape == (0, 128)


@pytest.mark.anyio
async def test_nothing_is_missing_while_models_are_loaded() -> None:
    app = create_app(Settings(device="cpu"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/v1/features", content=TINY)
    check_problem(response, 503, "unavailable", "not ready")
    assert response.headers["retry-after"] == "1"


@pytest.mark.anyio
async def test_documents_that_are_read_on_the_event_loop_are_small(client: httpx.AsyncClient) -> None:
    members = ",".join(f'"member{n}": 1' for n in range(6000))
    response = await client.post("/v1/sequences", content="{" + members + "}")
    check_problem(response, 413, "too_large", "bytes; expected at most 65536")


@pytest.mark.anyio
async def test_malformed_requests_are_refused(client: httpx.AsyncClient) -> None:
    image = FIRST.read_bytes()
    for params, part in (
        ({"store": "perhaps"}, "store"),
        ({"collection": "a/b"}, "collection"),
        ({"collection": ""}, "collection"),
        ({"collection": "a" * 65}, "collection"),
    ):
        check_problem(await client.post("/v1/features", params=params, content=image), 400, "bad_request", part)
    for name in ("nobody", "x" * 5000, "%0Ano", "%00", "%F0%9F%A6%86"):
        for method in ("GET", "DELETE"):
            check_problem(await client.request(method, f"/v1/features/{name}"), 404, "features_not_found", "stored")
    # a format that cannot be answered is refused before anything is stored that nobody could name
    response = await client.post("/v1/features", params={"store": True}, content=image, headers={"accept": "text/html"})
    check_problem(response, 400, "bad_request", "Accept")
    assert await metric(client, "superpoint_store_entries") == 0
    check_problem(await client.post("/v1/features", params={"white": 200}, content=image), 400, "bad_request", "white")
    for params in ({"max_keypoint": 5}, {"treshold": 0.1}, {"model": "superpoint-edge", "Model": "x"}):
        response = await client.post("/v1/features", params=params, content=image)
        check_problem(response, 400, "bad_request", "there is no parameter", "max_keypoints")
    response = await client.post("/v1/features", files={"image": image, "more": image})
    check_problem(response, 400, "bad_request", "'more'", "expected only: image")
    part = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n1\r\n--x--\r\n'
    for content, kind in (
        (b"--x", "multipart/form-data"),
        (b"--x", "multipart/form-data; boundary=x"),
        (part, "multipart/form-data; boundary=x; charset=undefined"),
        (b"", "a/b"),
    ):
        check_problem(
            await client.post("/v1/features", content=content, headers={"content-type": kind}), 400, "bad_request"
        )
