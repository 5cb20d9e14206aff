"""The description of the interface, and what probes ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from live import Live, live
from problems import check_problem

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
