"""The learned matcher over HTTP: what it gives, what is refused, and a service whose matcher is broken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from problems import check_problem
from released import EDGE, MATCHER, SETTINGS, SLIM, dual_softmax, release
from test_features_routes import FIRST, SECOND, metric, store

from frontend.errors import WeightsError
from frontend.matching import match_features
from frontend.matching.lightglue import LightGlue
from frontend.matching.lightglue_weights import save_matcher
from frontend.pipeline import MatchPipeline
from frontend.types import Features, Matches
from frontend.weights import list_models
from service.core import Core
from service.settings import Settings
from service.wire import MSGPACK, decode

MATCH, MANY = "/v1/match", "/v1/match/many"
LIGHTGLUE = {"matcher": "lightglue", "max_keypoints": 128, "resize": 320}
served = pytest.mark.parametrize("client", [{**SETTINGS, "max_keypoints": 512}], indirect=True)
alone = pytest.mark.parametrize("client", [{**SETTINGS, "models": ()}], indirect=True)


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the service finds its weights: of superpoint-edge with a matcher, of superpoint-slim without."""
    for name, value in release(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def core_of(client: httpx.AsyncClient) -> Core:
    return cast(Core, cast(Any, client)._transport.app.state.core)


async def ask(client: httpx.AsyncClient, url: str, **kwargs: Any) -> dict[str, Any]:
    response = await client.post(url, headers={"accept": MSGPACK}, **kwargs)
    assert response.status_code == 200, response.text
    return decode(response.content, MSGPACK)


def features_of(document: dict[str, Any]) -> Features:
    parts = (document[name].copy() for name in ("keypoints", "scores", "descriptors"))  # torch wants them writable
    return Features(*parts, tuple(document["image_size"]), document["model"], document["sigmas"])


def library_matches(first: dict[str, Any], second: dict[str, Any], matcher: str) -> Matches:
    return match_features(features_of(first), features_of(second), matcher=matcher)


@served
@pytest.mark.anyio
async def test_matches_are_those_of_the_library(client: httpx.AsyncClient) -> None:
    files = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
    ids = [await store(client, path, max_keypoints=128) for path in (FIRST, SECOND)]
    params: dict[str, Any] = {**LIGHTGLUE, "descriptors": "float32"}
    for given, body in (
        ({}, {"files": files}),
        ({"features0": ids[0]}, {"content": files["image1"]}),
        # of stored features the model counts, and not that of the query
        ({"features0": ids[0], "features1": ids[1], "model": SLIM}, {}),
    ):
        found = await ask(client, MATCH, params={**params, **given}, **body)
        expected = library_matches(found["image0"], found["image1"], "lightglue")
        np.testing.assert_array_equal(found["matches"], expected.matches)
        np.testing.assert_allclose(found["match_scores"], expected.match_scores, rtol=1e-4)
        assert len(found["matches"]) > 40
        assert np.all((found["match_scores"] > 0.1) & (found["match_scores"] <= 1))
        assert found["status"] == "ok"
        plain = await ask(client, MATCH, params={**params, **given, "matcher": "mnn"}, **body)
        nearest = library_matches(plain["image0"], plain["image1"], "mnn")
        np.testing.assert_array_equal(plain["matches"], nearest.matches)
        assert plain["matches"].tolist() != found["matches"].tolist()
        least = float(np.median(found["match_scores"]))
        sure = await ask(client, MATCH, params={**params, **given, "min_similarity": least}, **body)
        surest = found["matches"][found["match_scores"] > np.float32(least)]
        np.testing.assert_array_equal(sure["matches"], surest)
        assert 10 < len(surest) < len(found["matches"])


@served
@pytest.mark.anyio
async def test_each_of_many_is_matched_as_it_would_be_alone(client: httpx.AsyncClient) -> None:
    ids = [await store(client, path, max_keypoints=128) for path in (SECOND, FIRST)]
    found = await ask(client, MANY, params=LIGHTGLUE, content=FIRST.read_bytes())
    assert [one["feature_id"] for one in found["results"]] == [ids[1], ids[0]]
    for one in found["results"]:
        params = {**LIGHTGLUE, "features1": one["feature_id"]}
        alone = await ask(client, MATCH, params=params, content=FIRST.read_bytes())
        for name in ("matches", "match_scores", "inliers", "homography"):
            np.testing.assert_array_equal(one[name], alone[name])
        assert one["num_matches"] > 40
    plain = await ask(client, MANY, params={**LIGHTGLUE, "matcher": "mnn"}, content=FIRST.read_bytes())
    assert plain["results"][1]["matches"].tolist() != found["results"][1]["matches"].tolist()


@served
@pytest.mark.anyio
async def test_what_cannot_be_matched_so_is_refused_before_the_body_is_read(client: httpx.AsyncClient) -> None:
    edge, slim = await store(client), await store(client, model=SLIM)
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(0)
        yield FIRST.read_bytes()

    lacking = (f"'{SLIM}'", "expected matcher 'mnn'", f"models: {EDGE}")
    for url, params, parts in (
        *((url, {"ratio": 0.9}, ("ratio is 0.9", "'lightglue'", "'mnn'")) for url in (MATCH, MANY)),
        *((url, {"min_similarity": -0.5}, ("min_similarity is -0.5 ", "'lightglue'")) for url in (MATCH, MANY)),
        (MATCH, {"min_similarity": 1}, ("min_similarity is 1 ", "expected a probability below 1")),
        (MATCH, {"features0": edge, "ratio": 1}, ("ratio is 1 ",)),
        (MATCH, {"model": SLIM}, lacking),
        (MANY, {"model": SLIM, "collection": "empty"}, lacking),
        (MATCH, {"model": SLIM, "features0": slim}, lacking),
        *((url, {"matcher": "nearest"}, ("matcher",)) for url in (MATCH, MANY)),
    ):
        response = await client.post(url, params={**LIGHTGLUE, **params}, content=body())
        check_problem(response, 400, "bad_request", *parts)
    # the default model has a matcher, and that of the features has none
    for url, params in (
        (MATCH, {"features0": slim, "features1": slim}),
        (MANY, {"features": slim, "against": slim}),
        (MANY, {"features": slim, "collection": "empty"}),
    ):
        check_problem(await client.post(url, params={**LIGHTGLUE, **params}), 400, "bad_request", *lacking)
    assert read == []
    assert await metric(client, "superpoint_queue_depth") == 0
    response = await client.post(MATCH, params={"ratio": 0.9, "features0": edge}, content=body())
    assert (response.status_code, read) == (200, [0])


@served
@pytest.mark.anyio
async def test_models_tell_of_their_matchers(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/models")).json()
    found = {model["name"]: model["matchers"] for model in document["models"]}
    assert found == {EDGE: ["mnn", "lightglue"], SLIM: ["mnn"]}


@served
@pytest.mark.anyio
async def test_models_tell_of_their_versions(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/models")).json()
    released = list_models()
    assert {model["name"]: model["version"] for model in document["models"]} == {
        name: released[name].version for name in (EDGE, SLIM)
    }


@pytest.mark.parametrize("client", [{**SETTINGS, "model": str(list_models()[SLIM].path), "models": ()}], indirect=True)
@pytest.mark.anyio
async def test_a_weight_file_has_no_version_whatever_its_name(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["models"]
    assert Path(model["name"]).stem == SLIM
    assert model["version"] is None


@pytest.mark.parametrize("client", [{**SETTINGS, "model": SLIM, "models": ()}], indirect=True)
@pytest.mark.anyio
async def test_where_no_model_has_a_matcher_none_is_named(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["models"]
    assert model["matchers"] == ["mnn"]
    response = await client.post(MATCH, params=LIGHTGLUE)
    check_problem(response, 400, "bad_request", f"'{SLIM}' has no learned matcher", "no served model has another")


@alone
@pytest.mark.anyio
async def test_the_interface_documents_the_matcher(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for url in (MATCH, MANY):
        operation = paths[url]["post"]
        (parameter,) = [one for one in operation["parameters"] if one["name"] == "matcher"]
        assert (parameter["in"], parameter["required"]) == ("query", False)
        assert (parameter["schema"]["enum"], parameter["schema"]["default"]) == (["mnn", "lightglue"], "mnn")
        assert "`lightglue`" in parameter["description"]
        assert "`matcher_unavailable`" in operation["responses"]["503"]["description"]


def missing(folder: Path) -> None:
    release(folder, matcher=None)
    (folder / MATCHER).unlink(missing_ok=True)


def no_weights(folder: Path) -> None:
    release(folder, matcher=b"no weights at all")


def changed(folder: Path) -> None:
    release(folder, sha256="1" * 64)


def other_descriptors(folder: Path) -> None:
    save_matcher(folder / MATCHER, dual_softmax(96))
    release(folder, matcher=(folder / MATCHER).read_bytes())


def malformed(folder: Path) -> None:
    release(folder, entry=False)
    with (folder / "manifest.toml").open("a") as file:
        file.write(f'\n[matchers.edge-lightglue]\nfile = "{MATCHER}"\n')


@pytest.fixture(
    params=[
        (missing, "are missing"),
        (no_weights, "corrupt"),
        (changed, "the manifest expects 111111111111"),
        (other_descriptors, "expects 96"),
        (malformed, "malformed"),
    ],
    ids=lambda given: given[0].__name__,
)
def broken(request: pytest.FixtureRequest, weights: Path) -> str:
    """Why the matcher cannot be loaded, as the log should tell; made so before the service starts."""
    make, reason = cast("tuple[Callable[[Path], None], str]", request.param)
    make(weights)
    return reason


@alone
@pytest.mark.anyio
async def test_a_broken_matcher_keeps_nothing_else_from_being_served(
    broken: str, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, weights: Path
) -> None:
    (record,) = [record for record in caplog.get_records("setup") if record.levelname == "ERROR"]
    line = record.getMessage()
    assert record.name == "superpoint"
    assert broken in line
    assert "matcher" in line
    assert "\n" not in line
    (model,) = (await client.get("/v1/models")).json()["models"]
    assert model["matchers"] == ["mnn"]
    assert 'reason="failed"' not in (await client.get("/metrics")).text  # no request has failed
    edge = await store(client)
    for url, params in ((MATCH, {}), (MATCH, {"features0": edge, "features1": edge}), (MANY, {"features": edge})):
        response = await client.post(url, params={**LIGHTGLUE, **params})
        check_problem(response, 503, "matcher_unavailable", f"'{EDGE}'", "log")
        assert str(weights) not in response.text
        assert "retry-after" not in response.headers
    params = {"features0": edge, "features1": edge}
    assert (await client.post(MATCH, params=params)).json()["status"] == "ok"


@alone
@pytest.mark.anyio
async def test_a_matcher_that_breaks_later_is_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    edge = await store(client)
    for error in (FileNotFoundError(2, "No such file", "/weights/secret"), WeightsError("/weights/secret is corrupt")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(MatchPipeline, "match_features", fail)
        caplog.clear()
        response = await client.post(MATCH, params={**LIGHTGLUE, "features0": edge, "features1": edge})
        check_problem(response, 503, "matcher_unavailable", EDGE)
        assert "secret" not in response.text
        assert "/weights/secret" in caplog.text
        # with nearest neighbours it would be a fault of ours
        response = await client.post(MATCH, params={"features0": edge, "features1": edge})
        check_problem(response, 500, "internal_error")


def test_the_matcher_is_loaded_and_warmed_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, str]] = []
    matched: list[tuple[str, int]] = []
    load, match = LightGlue.from_pretrained.__func__, LightGlue.match  # type: ignore[attr-defined]

    def loading(cls: type[LightGlue], path: Path, **kwargs: Any) -> LightGlue:
        loaded.append((threading.current_thread().name, Path(path).name))
        return cast(LightGlue, load(cls, path, **kwargs))

    def matching(self: LightGlue, first: Features, second: Features, **settings: Any) -> Matches:
        matched.append((threading.current_thread().name, len(first)))
        return match(self, first, second, **settings)

    monkeypatch.setattr(LightGlue, "from_pretrained", classmethod(loading))
    monkeypatch.setattr(LightGlue, "match", matching)
    core = Core(Settings(**SETTINGS))  # type: ignore[arg-type]
    try:
        core.start()
        assert core.unready_because() is None
    finally:
        core.stop()
    assert loaded == [("device", MATCHER)]
    assert {thread for thread, _ in matched} == {"device"}
    assert max(count for _, count in matched) > 0


@alone
@pytest.mark.anyio
async def test_a_search_with_it_ends_at_the_deadline(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await store(client)
    matched: list[int] = []
    match, end = LightGlue.match, time.monotonic() + 3

    def slow(self: LightGlue, *args: Features, **settings: Any) -> Matches:
        matched.append(0)
        time.sleep(max(end - time.monotonic() + 0.1, 0))
        return match(self, *args, **settings)

    monkeypatch.setattr(LightGlue, "match", slow)
    core = core_of(client)
    monkeypatch.setattr(core, "deadline", lambda: end)
    response = await client.post(MANY, params=LIGHTGLUE, content=FIRST.read_bytes())
    check_problem(response, 504, "deadline_exceeded")
    await asyncio.sleep(0.3)
    assert len(matched) == 1
