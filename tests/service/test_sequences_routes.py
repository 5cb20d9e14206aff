"""Documents of sequences, as OpenAPI tells of them, and refusals over plain HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from live import live
from moving import RIG, K, view
from problems import check_problem

from frontend.tracking import TrackerConfig
from frontend.types import TrackedFrame
from service.client.results import SequenceFrame
from service.sequence_documents import (
    OpenedDocument,
    PolicyDocument,
    SequencesDocument,
    TrackedFrameDocument,
)
from service.wire import MSGPACK, NPZ, decode


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with live() as server, httpx.Client(base_url=server.base, timeout=60) as made:
        yield made


STEREO = {"camera": {"K": K.tolist()}, "R": RIG.R.tolist(), "t": RIG.t.tolist()}


def opened(client: httpx.Client, **document: Any) -> str:
    response = client.post("/v1/sequences", json=document)
    assert response.status_code == 201, response.text
    return str(OpenedDocument.model_validate(response.json()).id)


def test_documents_are_those_of_the_description(client: httpx.Client) -> None:
    name = opened(client, camera={"K": K.tolist()}, stereo=STEREO, camera_id="c", policy={"max_gap": 7})
    path = f"/v1/sequences/{name}"
    for stamp, files in enumerate(({"image": view(0)}, {"image": view(6), "right": view(12)})):
        response = client.post(f"{path}/frames", params={"stamp_ns": stamp, "frame_id": "f"}, files=files)
        assert response.status_code == 200, response.text
        found = response.json()
        TrackedFrameDocument.model_validate(found)
        assert set(found) == set(TrackedFrameDocument.model_fields) == set(SequenceFrame.__dataclass_fields__)
    assert found["pose"] is not None
    assert found["stereo"]["points"]
    response = client.get("/v1/sequences")
    (status,) = [one for one in SequencesDocument.model_validate(response.json()).sequences if one.id == name]
    assert (client.get(path)).json() == {**status.model_dump(), "expires_in_s": pytest.approx(300, abs=30)}
    assert (status.id, status.camera_id, status.frames) == (name, "c", 2)
    assert (client.delete(path)).status_code == 204
    check_problem(client.get(path), 404, "sequence_not_found", name)
    check_problem(client.delete(path), 404, "sequence_not_found", name)
    check_problem(client.post(f"{path}/frames?stamp_ns=9", content=view(0)), 404, "sequence_not_found", name)


@pytest.mark.parametrize("kind", [MSGPACK, NPZ])
def test_binary_answers_have_the_same_names(client: httpx.Client, kind: str) -> None:
    name = opened(client)
    headers = {"accept": kind, "content-type": "image/png"}
    response = client.post(f"/v1/sequences/{name}/frames?stamp_ns=1", content=view(0), headers=headers)
    assert response.headers["content-type"] == kind
    found = decode(response.content, kind)
    assert set(found) == set(TrackedFrameDocument.model_fields)
    assert len(found["track_ids"]) == len(found["keypoints"]) > 30
    assert found["normalised"] is None


def test_an_empty_request_opens_a_sequence_with_defaults(client: httpx.Client) -> None:
    response = client.post("/v1/sequences")
    assert response.status_code == 201
    assert response.json()["policy"] == dataclasses.asdict(TrackerConfig())


def test_refusals_name_what_is_wrong(client: httpx.Client) -> None:
    path = f"/v1/sequences/{opened(client)}/frames"
    check_problem(client.post(path, content=view(0)), 400, "bad_request", "stamp_ns")
    check_problem(client.post(f"{path}?stamp_ns=-1", content=view(0)), 400, "bad_request", "stamp_ns")
    check_problem(client.post(f"{path}?stamp_ns={2**63}", content=view(0)), 400, "bad_request", "stamp_ns")
    check_problem(client.post(f"{path}?stamp_ns=1"), 400, "bad_request", "empty")
    wrong = {"image": view(0), "left": view(0)}
    check_problem(client.post(f"{path}?stamp_ns=1", files=wrong), 400, "bad_request", "left", "image, right")
    only = {"right": view(0)}
    check_problem(client.post(f"{path}?stamp_ns=1", files=only), 400, "bad_request", "0 files 'image'")
    assert (client.post(f"{path}?stamp_ns=5", content=view(0))).status_code == 200
    check_problem(client.post(f"{path}?stamp_ns=5", content=view(0)), 409, "out_of_order", "after 5 ns")
    camera = "expected an object with K, or text: fx,fy,cx,cy"
    for document, told in (
        ({"camera": {"K": [[1]]}}, "body.camera.K.0: List should have at least 3 items"),
        ({"ttl_s": 0}, "body.ttl_s is 0; expected a value greater than 0"),
        ({"ttl_s": 1e999}, "body.ttl_s is Infinity; expected a finite number"),
        ({"unknown": 1}, "body.unknown: Extra inputs are not permitted"),
        ({"policy": {"x": 1}}, "body.policy.x: Extra inputs are not permitted"),
        ({"policy": 5}, "body.policy is 5; expected an object"),
        ({"camera": 5}, f"body.camera is 5; {camera}"),
        ({"camera": [5]}, f"body.camera: {camera}"),
        ({"model": 5}, "body.model is 5; expected a valid string"),
        ([], "body: expected an object"),
    ):
        text = str(document).replace("'", '"').replace("inf", "1e999")
        headers = {"content-type": "application/json"}
        response = client.post("/v1/sequences", content=text, headers=headers)
        check_problem(response, 400, "bad_request")
        assert response.json()["detail"].startswith(told)
    for headers, given in (({}, "missing"), ({"content-type": "text/plain"}, "'text/plain'")):
        response = client.post("/v1/sequences", content=b"{}", headers=headers)
        check_problem(response, 400, "bad_request", f"content type is {given}; expected application/json")
    merged = {"content-type": "application/merge-patch+json"}
    assert client.post("/v1/sequences", content=b"{}", headers=merged).status_code == 201
    check_problem(client.post("/v1/sequences", json={"model": "none"}), 404, "not_found", "none")


def test_a_camera_may_be_text_as_in_a_query(client: httpx.Client) -> None:
    text = f"{K[0, 0]},{K[1, 1]},{K[0, 2]},{K[1, 2]},-0.1,0.01,0,0"
    document = {"K": K.tolist(), "distortion": [-0.1, 0.01, 0, 0]}
    found = []
    for camera, right in ((text, STEREO), (document, {**STEREO, "camera": text})):
        name = opened(client, camera=camera, stereo=right)
        response = client.post(f"/v1/sequences/{name}/frames?stamp_ns=1", content=view(0))
        found.append(response.json()["normalised"])
    assert found[0] == found[1]
    for wrong, part in (
        ("525", "body.camera: camera has 1 numbers; expected fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]], or fisheye:"),
        ("a\nb", "body.camera: camera is 'a\\nb'; expected fx,fy,cx,cy"),
        ("0,0,1,1", "body.camera: K has focal lengths of 0 and 0 pixels; expected"),
    ):
        check_problem(client.post("/v1/sequences", json={"camera": wrong}), 400, "bad_request", part)
    stereo = {**STEREO, "camera": "x"}
    refused = client.post("/v1/sequences", json={"camera": text, "stereo": stereo})
    check_problem(refused, 400, "bad_request", "body.stereo.camera: camera is 'x'; expected fx,fy,cx,cy")
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for schema in (schemas["OpenSequence"]["properties"]["camera"], schemas["StereoDocument"]["properties"]["camera"]):
        kinds = [kind.get("type", kind.get("$ref")) for kind in schema["anyOf"]]
        assert kinds[:2] == ["#/components/schemas/CameraDocument", "string"]


def test_a_frame_of_another_size_is_refused_and_changes_nothing(client: httpx.Client) -> None:
    path = f"/v1/sequences/{opened(client)}/frames"
    other = cv2.imencode(".png", np.zeros((64, 80), np.uint8))[1].tobytes()
    assert (client.post(f"{path}?stamp_ns=1", content=view(0))).status_code == 200
    refused = client.post(f"{path}?stamp_ns=2", content=other)
    check_problem(refused, 422, "bad_image", "frame is 80 x 64; expected 160 x 120, as the frames before")
    assert client.post(f"{path}?stamp_ns=2", content=view(3)).json()["index"] == 1


def test_the_description_is_complete(client: httpx.Client) -> None:
    document = (client.get("/openapi.json")).json()
    paths = {path: set(methods) for path, methods in document["paths"].items() if "sequences" in path}
    assert paths == {
        "/v1/sequences": {"get", "post"},
        "/v1/sequences/{sequence_id}": {"get", "delete"},
        "/v1/sequences/{sequence_id}/frames": {"post"},
        "/v1/sequences/{sequence_id}/mask": {"put", "delete"},
        "/v1/sequences/{sequence_id}/stream": {"get"},
    }
    frames = document["paths"]["/v1/sequences/{sequence_id}/frames"]["post"]
    assert {"200", "404", "409", "422", "429", "504"} <= set(frames["responses"])
    form = frames["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert (set(form["properties"]), form["required"]) == ({"image", "right", "mask"}, ["image"])
    for name in ("TrackedFrameDocument", "OpenedDocument", "OpenSequence", "SequenceDocument"):
        assert "example" in document["components"]["schemas"][name]
    assert "dropped" in document["paths"]["/v1/sequences/{sequence_id}/stream"]["get"]["description"]


def test_documents_have_the_fields_of_the_library() -> None:
    policy = {field.name: field.type for field in dataclasses.fields(TrackerConfig)}
    assert list(PolicyDocument.model_fields) == list(policy)
    PolicyDocument.model_validate(dataclasses.asdict(TrackerConfig()))
    assert {field.name for field in dataclasses.fields(TrackedFrame)} <= set(TrackedFrameDocument.model_fields)
    TrackedFrameDocument.model_validate(TrackedFrameDocument.model_config["json_schema_extra"]["example"])  # type: ignore
