"""The description of the interface, and what probes ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from live import Live, live, raw_stream
from problems import check_problem
from websockets.exceptions import InvalidStatus

from service.app import create_app
from service.schemas import PointsDocument, Problem
from service.settings import Settings


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as made:
        yield made


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_may_ask_for_the_head_alone(server: Live, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with httpx.Client(base_url=server.base) as client:
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
        monkeypatch.setattr(server.core, "ready", False)
        assert client.head(path).status_code == client.get(path).status_code == (503 if path == "/readyz" else 200)
        refused = client.post(path)
        check_problem(refused, 405, "method_not_allowed")
        assert refused.headers["allow"] == "GET, HEAD"


def test_operations_have_names_of_their_own() -> None:
    paths = create_app(Settings(device="cpu")).openapi()["paths"]
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def operations() -> list[tuple[str, str]]:
    paths = create_app(Settings(device="cpu")).openapi()["paths"]
    return [(method, path) for path, methods in paths.items() for method in methods]


@pytest.mark.parametrize(("method", "path"), operations())
def test_parameters_that_a_route_does_not_have_are_refused(server: Live, method: str, path: str) -> None:
    """Of health and metrics they are not: some probes add their own."""
    answer = httpx.request(method, f"{server.base}{path}", params={"fromat": "json"})
    if path.startswith("/v1/"):
        check_problem(answer, 400, "bad_request", "there is no parameter 'fromat'")
    else:
        assert answer.status_code == 200


def test_a_stream_refuses_them_too(server: Live) -> None:
    for query, told in (
        ("?fromat=json", "there is no parameter 'fromat'; expected: format, descriptors"),
        ("?format=json&format=msgpack", "parameter 'format' is given 2 times; expected it once"),
    ):
        with pytest.raises(InvalidStatus) as caught:
            raw_stream(server, "none", query)
        assert caught.value.response.status_code == 400
        assert json.loads(caught.value.response.body)["detail"] == told


def test_a_parameter_that_is_no_list_is_given_once(server: Live) -> None:
    with httpx.Client(base_url=server.base) as client:
        twice = client.post("/v1/features?descriptors=float64&descriptors=none", content=b"x")
        check_problem(twice, 400, "bad_request", "parameter 'descriptors' is given 2 times; expected it once")
        check_problem(client.post("/v1/match/many?against=a&against=b"), 404, "features_not_found")


def test_a_value_that_is_refused_is_told(server: Live) -> None:
    with httpx.Client(base_url=server.base) as client:
        for query, told in (
            ("max_keypoints=0", "query.max_keypoints is '0'; expected a value greater than or equal to 1"),
            ("descriptors=float64", "query.descriptors is 'float64'; expected 'float32', 'float16', 'int8' or 'none'"),
            ("store=maybe", "query.store is 'maybe'; expected a valid boolean, unable to interpret input"),
            (f"resize={'9' * 1000}x", f"query.resize is '{'9' * 64}'; expected a valid integer, "),
        ):
            check_problem(client.post(f"/v1/features?{query}", content=b"x"), 400, "bad_request", told)
        check_problem(client.post("/v1/sequences/a/frames", content=b"x"), 400, "bad_request", "query.stamp_ns: Field")


@pytest.mark.anyio
async def test_requests_do_not_make_the_description_again(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = cast(Any, client)._transport.app
    before = app.openapi()
    for model in (Problem, PointsDocument):
        monkeypatch.setattr(model, "model_json_schema", None)
    check_problem(await client.post("/v1/features?max_keypoint=5"), 400, "bad_request", "'max_keypoint'")
    assert app.openapi() is before
    assert {"Problem", "PointsDocument"} <= set(before["components"]["schemas"])
    assert before["security"]
