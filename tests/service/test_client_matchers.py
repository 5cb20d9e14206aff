"""The learned matcher through both clients, over a real port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from clients import BOTH
from live import live
from released import EDGE, SETTINGS, SLIM, release
from test_features_routes import FIRST, SECOND

from frontend.types import MatchResult, Status
from service.client import BadRequest, calls, results
from service.client.calls import Context

Ask = Callable[..., Any]
SMALL: dict[str, Any] = {"max_keypoints": 128, "resize": 320}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in release(tmp_path_factory.mktemp("weights")).items():
            patch.setenv(name, value)
        with live(**SETTINGS) as server:
            yield server.base


@pytest.fixture(params=BOTH)
def ask(request: pytest.FixtureRequest, url: str) -> Ask:
    """A function that asks the service."""
    return lambda what, **settings: request.param(url, what, **settings)


def test_two_images_match_by_the_learned_matcher(ask: Ask, url: str) -> None:
    found: MatchResult = ask(lambda client: client.match(FIRST, SECOND, matcher="lightglue", **SMALL))
    files = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
    document = httpx.post(f"{url}/v1/match", params={"matcher": "lightglue", **SMALL}, files=files).json()
    np.testing.assert_array_equal(found.matches.matches, document["matches"])
    np.testing.assert_allclose(found.matches.match_scores, document["match_scores"], rtol=1e-3)
    assert found.matches.match_scores.min() > 0.1
    assert found.geometry.status is Status.OK
    plain, default = (ask(lambda client, more=more: client.match(FIRST, SECOND, **more, **SMALL)) for more in _PLAIN)
    np.testing.assert_array_equal(plain.matches.matches, default.matches.matches)
    assert plain.matches.matches.tolist() != found.matches.matches.tolist()


_PLAIN: tuple[dict[str, Any], ...] = ({"matcher": "mnn"}, {})


def test_stored_images_match_by_the_learned_matcher(ask: Ask) -> None:
    first, second = (
        ask(lambda client, image=image: client.features(image, store=True, **SMALL)) for image in (FIRST, SECOND)
    )
    pair = ask(lambda client: client.match(first, second, matcher="lightglue"))
    (one,) = ask(lambda client: client.match_many(first, against=[second], matcher="lightglue")).results
    (plain,) = ask(lambda client: client.match_many(first, against=[second])).results
    np.testing.assert_array_equal(one.matches.matches, pair.matches.matches)
    assert len(one.matches) > 40
    assert plain.matches.matches.tolist() != one.matches.matches.tolist()


def test_models_tell_of_their_matchers(ask: Ask) -> None:
    found = {model.name: model.matchers for model in ask(lambda client: client.models())}
    assert found == {EDGE: ("mnn", "lightglue"), SLIM: ("mnn",)}


def test_refusals_are_bad_requests(ask: Ask) -> None:
    for more, part in (
        ({"ratio": 0.9}, "ratio is 0.9"),
        ({"min_similarity": -0.5}, "min_similarity is -0.5"),
        ({"model": SLIM}, f"one of the models: {EDGE}"),
    ):
        with pytest.raises(BadRequest, match=part):
            ask(lambda client, more=more: client.match(FIRST, SECOND, matcher="lightglue", **more))
        with pytest.raises(BadRequest, match=part):
            ask(lambda client, more=more: client.match_many(FIRST, collection="x", matcher="lightglue", **more))


def test_services_without_matchers_are_asked_and_read_as_before() -> None:
    context = Context()
    for build in (calls.match, calls.match_many):
        ids: Any = ("id0", "id1") if build is calls.match else ("id0",)
        named: dict[str, Any]
        for named, sent in (({}, None), ({"matcher": "mnn"}, None), ({"matcher": "lightglue"}, "lightglue")):
            assert dict(build(context, *ids, **named).query).get("matcher") == sent
    old = {"name": "a", "encoder": "compact", "descriptor_dim": 8, "sigmas": True, "device": "cpu"}
    document = {"default": "a", "models": [old, {**old, "name": "b", "matchers": ["mnn", "lightglue", "later"]}]}
    assert [model.matchers for model in results.models(document)] == [("mnn",), ("mnn", "lightglue", "later")]
    assert [model.version for model in results.models(document)] == [None, None]
    for version in ("0.4", None):
        document = {"default": "a", "models": [{**old, "version": version}]}
        assert [model.version for model in results.models(document)] == [version]
