"""Bodies of matched points that would cost more than their bytes, and the largest that are taken."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from typing import Any

import httpx
import msgpack
import numpy as np
import orjson
import pytest
from problems import check_problem

from service.errors import BadRequestError
from service.routes.homography import _matches
from service.wire import FORMATS, JSON, MSGPACK, NPZ, encode

MOST = 200_000


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_as_many_matches_as_are_allowed_fit(kind: str) -> None:
    points = np.arange(2 * MOST).reshape(MOST, 2)
    document: dict[str, Any] = {"points0": points, "points1": points, "sigmas": np.ones(MOST, np.uint8)}
    points0, _, sigmas = _matches(encode(document, kind), kind)
    assert points0.shape == (MOST, 2)
    assert sigmas is not None
    assert sigmas.shape == (MOST,)


NOTHING = b"[]," * 900_000 + b"[]"
TEXTS = orjson.dumps({"points0": ["a" * 20_000, *["b"] * 500], "points1": [[1, 2]]})
SIGMAS = orjson.dumps({"points0": [[1, 2]], "points1": [[1, 2]], "sigmas": ["a" * 20_000, *["b"] * 500]})
LONG = "f4," * 20_000 + "f4"
BODIES = {
    "lists of JSON": (JSON, b'{"points0":[' + NOTHING + b"]}", "1600000 values: it has up to 1800003"),
    "texts": (JSON, TEXTS, "'points0' is no array of numbers"),
    "texts as sigmas": (JSON, SIGMAS, "'sigmas' is no list of numbers"),
    "lists of MessagePack": (MSGPACK, b"\x81\xa1a\xdd\x00\x01\x00\x00" + b"\x90" * 65_536, "at most 64 values"),
    "lists in lists": (MSGPACK, b"\x81\xa1a\x9f" + (b"\x9f" + b"\x90" * 15) * 15, "at most 64 values"),
    "no MessagePack": (MSGPACK, b"\xc1", "beside those in arrays: FormatError"),
    "another member": (
        JSON,
        b'{"points0": [], "points1": [], "sigma": []}',
        "body has a member 'sigma'; expected",
    ),
    "claims": (MSGPACK, b"\x81\xa1a" + (b"\xdd\x00\x00\x08\x00") * 400, "at most 64 values"),
    "a type": (MSGPACK, msgpack.packb({"points0": {"dtype": LONG, "shape": [0], "data": b""}}), "dtype"),
    "members": (NPZ, archive({"meta.npy": array([]), **{str(n): b"" for n in range(5000)}}), "at most 64 values"),
    "lists of NPZ": (
        NPZ,
        archive({"meta.npy": array(np.frombuffer(b'{"a":[' + b"[]," * 5000 + b"[]]}", np.uint8))}),
        "64 values beside those in arrays: it has up to 10003",
    ),
    "small numbers": (
        NPZ,
        encode(dict.fromkeys(("points0", "points1"), np.zeros((MOST + 1, 2), np.uint8)), NPZ),
        "there are 200001 matches; expected at most 200000",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_costs_little_more_than_its_bytes(name: str) -> None:
    kind, body, part = BODIES[name]
    tracemalloc.start()
    try:
        with pytest.raises((BadRequestError, ValueError)) as caught:
            _matches(body, kind)
        # the parser of JSON takes 12 times the bytes while it works
        assert tracemalloc.get_traced_memory()[1] < (14 if kind == JSON else 2.5) * len(body) + 200_000
    finally:
        tracemalloc.stop()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.anyio
async def test_few_exact_matches_are_enough_where_that_is_asked_for(client: httpx.AsyncClient) -> None:
    points0 = [[0, 0], [600, 0], [600, 400], [0, 400], [300, 200], [150, 320], [420, 80]]
    points1 = [[1.1 * x + 5, 0.9 * y - 7] for x, y in points0]
    url = "/v1/homography"
    for count, params, status in (
        (7, {}, "no_model"),
        (7, {"min_inliers": 7}, "ok"),
        (6, {"min_inliers": 7}, "no_model"),
        (6, {"min_inliers": 4}, "ok"),
        (4, {"min_inliers": 4}, "no_model"),  # four always fit
        (3, {"min_inliers": 4}, "too_few_matches"),
        (3, {}, "too_few_matches"),
    ):
        body = {"points0": points0[:count], "points1": points1[:count]}
        found = (await client.post(url, json=body, params=params)).json()
        assert (count, params, found["status"]) == (count, params, status)
        assert found["inliers"] == [status == "ok"] * count
        if status == "ok":
            np.testing.assert_allclose(found["homography"], [[1.1, 0, 5], [0, 0.9, -7], [0, 0, 1]], atol=1e-6)
    for wrong in (3, 4.5, 200_001):
        response = await client.post(url, json=body, params={"min_inliers": wrong})
        check_problem(response, 400, "bad_request", "min_inliers")
    operation = (await client.get("/openapi.json")).json()["paths"][url]["post"]
    (given,) = [parameter for parameter in operation["parameters"] if parameter["name"] == "min_inliers"]
    assert (given["schema"]["default"], given["schema"]["minimum"]) == (8, 4)


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"max_body_mb": 4.0}], indirect=True)
async def test_such_bodies_are_refused_as_documented(client: httpx.AsyncClient) -> None:
    for kind, body, part in BODIES.values():
        response = await client.post("/v1/homography", content=body, headers={"content-type": kind})
        check_problem(response, 400, "bad_request", part)
