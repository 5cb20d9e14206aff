"""Requests made from the service's own OpenAPI document, what it allows and what it does not: each gets an answer that
the document tells of, and never a failure of the server.

A longer run: ``SUPERPOINT_FUZZ_EXAMPLES=500 pytest tests/service/test_fuzz.py``, for each operation so many requests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import hypothesis
import numpy as np
import pytest
import schemathesis
from hypothesis import strategies
from live import Live, live
from odd_images import encoded, scene
from schemathesis import checks

from service.app import create_app
from service.settings import Settings
from service.wire import MSGPACK, NPZ, encode

EXAMPLES = int(os.environ.get("SUPERPOINT_FUZZ_EXAMPLES", "5"))
SETTINGS = {"device": "cpu", "max_pixels_mp": 1.0, "max_body_mb": 1.0, "max_keypoints": 256}
IMAGE = encoded(".png", scene(np.random.default_rng(0), 64, 48))
# what makes bytes an image, or an id one of stored features, a schema cannot tell: not all it allows is accepted
NOT_CHECKED = [checks.positive_data_acceptance]

POINTS = {f"points{i}": np.random.default_rng(i).uniform(0, 600, (9, 2)) for i in (0, 1)}
BODIES = [IMAGE, *(encode(POINTS, kind) for kind in (MSGPACK, NPZ))]


@schemathesis.serializer(MSGPACK, NPZ)
def serialize(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


schemathesis.openapi.format("binary", strategies.sampled_from(BODIES) | strategies.binary(max_size=64))
schema = schemathesis.openapi.from_dict(create_app(Settings(**SETTINGS)).openapi())
schema.config.phases.coverage.enabled = EXAMPLES > 20  # hundreds of requests, each with one thing at its limit


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(**SETTINGS) as made:
        yield made


def stored(server: Live) -> str:
    """The id of features that are stored."""
    response = httpx.post(f"{server.base}/v1/features?store=true&descriptors=none", content=IMAGE)
    return str(response.json()["feature_id"])


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_every_request_gets_an_answer_that_is_documented(case: schemathesis.Case, server: Live) -> None:
    response = case.call(base_url=server.base, timeout=20)
    case.validate_response(response, excluded_checks=NOT_CHECKED)
    assert response.status_code < 500
    if response.status_code >= 400:
        problem = response.json()
        assert problem["status"] == response.status_code
        assert "\n" not in problem["detail"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_stored_features_answer_as_documented(method: str, server: Live) -> None:
    operation = schema["/v1/features/{feature_id}"][method]
    for status in (200 if method == "GET" else 204, 404):
        name = stored(server) if status != 404 else "nobody"
        case = operation.Case(path_parameters={"feature_id": name})
        response = case.call(base_url=server.base)
        assert response.status_code == status
        case.validate_response(response)


def test_the_service_is_as_it_was(server: Live) -> None:
    assert httpx.get(f"{server.base}/readyz").status_code == 200
    assert server.metric("superpoint_queue_depth") == 0
    response = httpx.post(f"{server.base}/v1/match", files={"image0": IMAGE, "image1": IMAGE})
    assert response.json()["status"] == "ok"
