"""Matching over HTTP with stored features, calibrated cameras, and one image against many."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from problems import check_problem
from test_features_routes import FIRST, SECOND, SMALL, store

from frontend import SuperPoint, read_image
from frontend.extractor import ExtractorConfig
from frontend.pipeline import MatchPipeline
from service.core import Core
from service.wire import FORMATS, MSGPACK, NPZ, decode, encode

CAMERA = "525,525,319.5,213"


def view(seed: int, share: float = 1.0) -> bytes:
    """A view of the first sample from elsewhere; of the right part of it alone where the share is below 1."""
    image = cv2.imread(str(FIRST))
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    H = cv2.getPerspectiveTransform(corners, (corners + rng.uniform(-30, 30, (4, 2))).astype(np.float32))
    seen = cv2.warpPerspective(image, H, (width, height))
    seen[:, : int(width * (1 - share))] = 0
    return bytes(cv2.imencode(".jpg", seen)[1])


async def post(client: httpx.AsyncClient, url: str, status: int = 200, **kwargs: Any) -> Any:
    response = await client.post(url, **kwargs)
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.anyio
async def test_stored_features_match_like_their_images(client: httpx.AsyncClient) -> None:
    params = {"max_keypoints": 512}
    files = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
    expected = await post(client, "/v1/match", files=files, params=params)
    ids = [await store(client, path, max_keypoints=512, resize=None) for path in (FIRST, SECOND)]
    first, second = {"features0": ids[0]}, {"features1": ids[1]}
    for given, body in (
        ({**first, **second}, {}),
        (first, {"files": {"image1": files["image1"]}}),
        (second, {"files": {"image0": files["image0"]}}),
        (first, {"content": files["image1"]}),
        (second, {"content": files["image0"]}),
    ):
        found = await post(client, "/v1/match", params={**params, **given}, **body)
        assert found["image0"] == expected["image0"]
        assert found["image1"] == expected["image1"]
        # descriptors rounded to float16 may decide a tie in another way
        same = {tuple(row) for row in found["matches"]} & {tuple(row) for row in expected["matches"]}
        assert len(same) > 0.99 * len(expected["matches"])
        np.testing.assert_allclose(found["homography"], expected["homography"], rtol=0.02, atol=0.5)
        assert {"matching", "geometry", "total"} == set(found["timings_ms"])


@pytest.mark.anyio
@pytest.mark.parametrize("kind", FORMATS)
async def test_calibrated_images_give_a_pose(client: httpx.AsyncClient, kind: str) -> None:
    files = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
    params = {**SMALL, "max_keypoints": 512, "geometry": "essential", "camera0": CAMERA}
    response = await client.post("/v1/match", files=files, params=params, headers={"accept": kind})
    found = decode(response.content, kind)
    assert found["status"] == "ok"
    assert not {"homography", "fundamental"} & set(found)
    E, R, t = (np.array(found[name], np.float64) for name in ("essential", "R", "t"))
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(t), 1, atol=1e-6)
    # E = [t]x R, up to its scale and sign
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]]) @ R
    np.testing.assert_allclose(abs((E * cross).sum()), np.linalg.norm(E) * np.linalg.norm(cross), rtol=1e-5)
    black = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    response = await client.post("/v1/match", files={"image0": black, "image1": black}, params=params)
    document = response.json()
    assert [document[name] for name in ("status", "essential", "R", "t")] == ["too_few_matches", None, None, None]


@pytest.mark.anyio
async def test_each_image_has_its_own_camera(client: httpx.AsyncClient) -> None:
    extractor = SuperPoint.from_pretrained(device="cpu", config=ExtractorConfig(max_keypoints=256))
    from frontend.camera import Camera
    from frontend.pipeline import PipelineConfig

    texts = {"camera0": "500,510,320,214,0.1,-0.02,0.001,0.002", "camera1": "610,600,300,200"}
    cameras = (Camera.parse(texts["camera0"]), Camera.parse(texts["camera1"]))
    features = [extractor.extract(read_image(path)) for path in (FIRST, SECOND)]
    expected = MatchPipeline(extractor, PipelineConfig(geometry="essential"), cameras=cameras).match_features(*features)
    files = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
    params = {"geometry": "essential", "max_keypoints": 256, **texts}
    found = await post(client, "/v1/match", files=files, params=params)
    np.testing.assert_allclose(found["essential"], expected.geometry.matrix, atol=1e-3)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", FORMATS)
async def test_an_image_finds_its_place_among_many(client: httpx.AsyncClient, kind: str) -> None:
    params = {"max_keypoints": 256}
    black = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    bodies = {"part": view(1, 0.4), "none": black, "whole": view(2), "half": view(3, 0.7)}
    ids = {}
    for name, body in bodies.items():
        document = await post(client, "/v1/features", params={**params, "store": True, "collection": "m"}, content=body)
        ids[document["feature_id"]] = name
    await store(client)  # in the default collection, so not looked at
    headers = {"accept": kind}
    response = await client.post(
        "/v1/match/many", params={**params, "collection": "m"}, files={"image": FIRST.read_bytes()}, headers=headers
    )
    assert response.status_code == 200, response.text
    document = decode(response.content, kind)
    assert [ids[found["feature_id"]] for found in document["results"]] == ["whole", "half", "part", "none"]
    files = {"image0": FIRST.read_bytes()}
    for found in document["results"]:
        assert found["num_matches"] == len(found["matches"]) == len(found["inliers"]) == len(found["match_scores"])
        assert found["num_inliers"] == np.sum(found["inliers"])
        given = {**params, "features1": found["feature_id"]}
        alone = decode((await client.post("/v1/match", params=given, files=files, headers=headers)).content, kind)
        for name in ("matches", "inliers", "status", "homography"):
            np.testing.assert_array_equal(found[name], alone[name])
    assert len(document["image"]["keypoints"]) == 256
    assert {"matching", "geometry", "total"} == set(document["timings_ms"])


@pytest.mark.anyio
async def test_the_best_of_named_candidates(client: httpx.AsyncClient) -> None:
    url, params = "/v1/match/many", {**SMALL, "geometry": "none"}
    first = await store(client, collection="x")
    second = await store(client, SECOND, collection="y")
    third = await store(client, SECOND, collection="y")
    named = {**params, "against": [third, first, second, third]}
    document = await post(client, url, params=named, content=FIRST.read_bytes())
    # without a geometry the number of matches counts; of equals the first named is first
    assert [found["feature_id"] for found in document["results"]] == [first, third, second]
    assert [found["num_inliers"] for found in document["results"]] == [0, 0, 0]
    assert document["results"][0]["status"] == "not_requested"
    assert len((await post(client, url, params={**named, "limit": 1}, content=FIRST.read_bytes()))["results"]) == 1
    # a stored image is not found as itself, unless it is named
    document = await post(client, url, params={**params, "features": third, "collection": "y"})
    assert [found["feature_id"] for found in document["results"]] == [second]
    document = await post(client, url, params={**params, "features": third, "against": third})
    assert [found["feature_id"] for found in document["results"]] == [third]
    # a collection is what is in it
    assert (await post(client, url, params={**params, "features": first}))["results"] == []
    assert (await post(client, url, params={**params, "features": first, "collection": "unknown"}))["results"] == []


@pytest.mark.anyio
async def test_other_geometries_of_many(client: httpx.AsyncClient) -> None:
    feature_id = await store(client, SECOND, max_keypoints=512)
    params = {**SMALL, "max_keypoints": 512, "against": feature_id}
    for given, names in (
        ({"geometry": "fundamental"}, {"fundamental"}),
        ({"geometry": "essential", "camera0": CAMERA}, {"essential", "R", "t"}),
    ):
        document = await post(client, "/v1/match/many", params={**params, **given}, content=FIRST.read_bytes())
        found = document["results"][0]
        assert set(found) & {"homography", "fundamental", "essential", "R", "t"} == names


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [MSGPACK, NPZ])
async def test_many_results_are_sent_in_few_bytes(client: httpx.AsyncClient, kind: str) -> None:
    params: dict[str, Any] = {"max_keypoints": 512, "descriptors": "float16"}
    for seed in range(4):
        await post(client, "/v1/features", params={**params, "store": True}, content=view(seed))
    response = await client.post("/v1/match/many", params=params, content=FIRST.read_bytes(), headers={"accept": kind})
    document = decode(response.content, kind)
    assert len(document["results"]) == 4

    def raw(value: Any) -> int:
        if isinstance(value, dict):
            return sum(raw(item) for item in value.values())
        if isinstance(value, list):
            return sum(raw(item) for item in value)
        return value.nbytes if isinstance(value, np.ndarray) else 0

    assert raw(document) < len(response.content) < 1.05 * raw(document)


@pytest.mark.anyio
async def test_descriptors_of_another_model_are_refused(client: httpx.AsyncClient, core: Core) -> None:
    feature_id = await store(client)
    packed = core.store.get(feature_id).packed
    other = core.store.put(dataclasses.replace(packed, model="other"), "default").feature_id
    body = {"content": FIRST.read_bytes()}
    for url, params, given in (
        ("/v1/match", {"features0": other}, body),
        ("/v1/match", {"features0": feature_id, "features1": other}, {}),
        ("/v1/match/many", {}, body),
        ("/v1/match/many", {"features": feature_id}, {}),
        ("/v1/match/many", {"features": other, "against": feature_id}, {}),
    ):
        response = await client.post(url, params=params, **given)
        check_problem(response, 400, "bad_request", "model", "expected")
    # two of them go together, though they are not of the default model
    assert (await client.post("/v1/match", params={"features0": other, "features1": other})).status_code == 200


@pytest.mark.anyio
async def test_malformed_matches_are_refused(client: httpx.AsyncClient) -> None:
    image, feature_id = FIRST.read_bytes(), await store(client)
    one, both = {"image0": image}, {"image0": image, "image1": image}
    match, many = "/v1/match", "/v1/match/many"
    for url, params, body, part in (
        (match, {"features0": feature_id}, {"files": both}, "expected only: image1"),
        (match, {"features0": feature_id, "features1": feature_id}, {"files": one}, "expected none"),
        (match, {"features0": feature_id}, {}, "empty"),
        (match, {"features0": feature_id}, {"files": one}, "0 files 'image1'"),
        (match, {}, {"files": one}, "0 files 'image1'"),
        (match, {}, {}, "image0, image1"),
        (match, {}, {"files": [("image0", image), ("image0", image)]}, "2 files 'image0'"),
        (match, {}, {"data": {"image0": "text", "image1": "text"}}, "multipart/form-data"),
        (match, {"geometry": "essential"}, {"files": both}, "camera0"),
        (match, {"geometry": "essential", "camera1": CAMERA}, {"files": both}, "camera0"),
        (match, {"geometry": "affine"}, {"files": both}, "geometry"),
        (match, {"ratio": "nan"}, {"files": both}, "ratio"),
        (match, {"threshold": "inf"}, {"files": both}, "threshold"),
        (many, {}, {}, "empty"),
        (many, {"features": feature_id}, {"content": image}, "expected none"),
        (many, {"collection": "a b"}, {"content": image}, "collection"),
        (many, {"collection": "a", "against": feature_id}, {"content": image}, "expected one of them"),
        (many, {"limit": 0}, {"content": image}, "limit"),
        (many, {"geometry": "essential"}, {"content": image}, "camera0"),
        *(
            (url, {"geometry": "essential", name: text, **more}, {"files": both}, name)
            for url in (match, many)
            for text in ("", "x", "1,2,3", "0,1,2,3", "nan,1,2,3", "500,500,320,240,0.1", "1,2,3,4,", "1;2;3;4")
            for name, more in (("camera0", {}), ("camera1", {"camera0": CAMERA}))
        ),
    ):
        check_problem(await client.post(url, params=params, **body), 400, "bad_request", part)  # type: ignore[arg-type]
    for url, params in (
        (match, {"features0": "nobody"}),
        (match, {"features0": feature_id, "features1": "nobody\n"}),
        (many, {"features": "nobody"}),
        (many, {"against": [feature_id, "nobody"]}),
    ):
        check_problem(await client.post(url, params=params, content=image), 404, "features_not_found", "nobody")
    metrics = (await client.get("/metrics")).text
    assert "superpoint_queue_depth 0.0" in metrics


@pytest.mark.anyio
async def test_images_of_forms_are_not_written_to_disk(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", None)
    noise = np.random.default_rng(0).integers(0, 256, (700, 1000), dtype=np.uint8)
    data = cv2.imencode(".png", noise)[1].tobytes()
    # as if the image were larger than what is kept in memory by default
    monkeypatch.setattr("starlette.formparsers.MultiPartParser.spool_max_size", len(data) // 2)
    response = await client.post("/v1/features?descriptors=none", files={"image": data})
    assert response.status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("client", [{"max_body_mb": 4.0}], indirect=True)
async def test_homographies_that_would_take_minutes_are_refused(client: httpx.AsyncClient) -> None:
    points = np.random.default_rng(0).uniform(0, 1000, (200_001, 2)).astype(np.float16)
    for count, query, part in (
        (200_001, "", "there are 200001 matches; expected at most 200000"),
        (30_000, "?max_iterations=100000", "max_iterations is 100000 for 30000 matches; expected at most 66666"),
    ):
        body = encode({"points0": points[:count], "points1": points[:count]}, MSGPACK)
        response = await client.post(f"/v1/homography{query}", content=body, headers={"content-type": MSGPACK})
        check_problem(response, 400, "bad_request", part)


@pytest.mark.anyio
@pytest.mark.parametrize("scale", [1e308, 1e12, 1e7])
@pytest.mark.parametrize("method", ["ransac", "opencv"])
async def test_coordinates_out_of_this_world_have_no_homography(
    client: httpx.AsyncClient, scale: float, method: str
) -> None:
    points = (np.random.default_rng(0).uniform(0, scale, (2, 50, 2))).tolist()
    body = {"points0": points[0], "points1": points[1]}
    response = await client.post("/v1/homography", json=body, params={"method": method, "threshold": 0.001})
    assert response.status_code == 200, response.text
    assert response.json()["status"] in ("no_model", "too_few_matches")


@pytest.mark.anyio
async def test_points_that_are_no_points_are_refused(client: httpx.AsyncClient) -> None:
    good = [[1.0, 2.0]] * 8
    for points in (
        *([[1.0, bad]] * 8 for bad in (None, "2", [2], {}, 10**400)),
        *(
            [[True, False]] * 8,
            good[:7],
            [good],
            [1.0, 2.0],
            [[1, 2, 3]] * 8,
            [*good, [1]],
            "points",
            5,
            None,
            {"dtype": "<f4"},
        ),
    ):
        response = await client.post("/v1/homography", json={"points0": good, "points1": points})
        check_problem(response, 400, "bad_request")
    for body in (b'{"points0": [[NaN, 1]], "points1": [[1, 1]]}', b'{"points0": [[1e999, 1]], "points1": [[1, 1]]}'):
        response = await client.post("/v1/homography", content=body, headers={"content-type": "application/json"})
        check_problem(response, 400, "bad_request")
    for sigmas in ([1.0] * 7, [0.0] * 8, [[1.0]] * 8, "a", [1.0] * 7 + [None], 5):
        response = await client.post("/v1/homography", json={"points0": good, "points1": good, "sigmas": sigmas})
        check_problem(response, 400, "bad_request", "sigmas")
    for bad in (np.nan, np.inf):
        body = encode({"points0": np.full((8, 2), bad), "points1": np.ones((8, 2))}, MSGPACK)
        response = await client.post("/v1/homography", content=body, headers={"content-type": MSGPACK})
        check_problem(response, 400, "bad_request", "not finite")
