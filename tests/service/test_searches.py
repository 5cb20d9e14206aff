"""Searches among stored features, as the device and its queue see them."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from problems import check_problem
from test_features_routes import FIRST, SMALL, store

from frontend.pipeline import MatchPipeline
from frontend.types import Features
from service.core import Core


def before_each_match(monkeypatch: pytest.MonkeyPatch, call: Callable[[Features, Features], object]) -> None:
    """Call something with the features of each match, where it is made."""
    original = MatchPipeline.match_features

    def matching(self: MatchPipeline, first: Features, second: Features, times: Any) -> Any:
        call(first, second)
        return original(self, first, second, times)

    monkeypatch.setattr(MatchPipeline, "match_features", matching)


@pytest.mark.anyio
async def test_a_search_among_many_ends_at_the_deadline(
    client: httpx.AsyncClient, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await store(client)
    matched, end = [], time.monotonic() + 3

    def outlast(*_: Features) -> None:
        matched.append(0)
        time.sleep(max(end - time.monotonic() + 0.1, 0))

    before_each_match(monkeypatch, outlast)
    monkeypatch.setattr(core, "deadline", lambda: end)
    response = await client.post("/v1/match/many", params=SMALL, content=FIRST.read_bytes())
    check_problem(response, 504, "deadline_exceeded")
    await asyncio.sleep(0.3)
    assert len(matched) == 1


@pytest.mark.anyio
async def test_a_search_keeps_no_features_of_what_it_found(
    client: httpx.AsyncClient, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(12):
        await store(client)
    unpacked: list[weakref.ref[Features]] = []
    alive = []

    def count(_: Features, second: Features) -> None:
        unpacked.append(weakref.ref(second))
        alive.append(sum(found() is not None for found in unpacked))

    before_each_match(monkeypatch, count)
    response = await client.post("/v1/match/many", params={**SMALL, "limit": 12}, content=FIRST.read_bytes())
    assert len(response.json()["results"]) == len(alive) == 12
    assert alive == [1] * 12


@pytest.mark.anyio
async def test_images_are_answered_while_searches_run(
    client: httpx.AsyncClient, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(12):
        await store(client)
    matched = []

    def take_time(*_: Features) -> None:
        matched.append(0)
        time.sleep(0.02)

    before_each_match(monkeypatch, take_time)

    async def search() -> None:
        response = await client.post("/v1/match/many", params=SMALL, content=FIRST.read_bytes())
        assert response.status_code == 200

    submit, counts = core.engine.submit, []

    def counting(*args: Any) -> Any:
        if matched:
            counts.append(len(matched))
        future = submit(*args)
        if matched:
            future.add_done_callback(lambda _: counts.append(len(matched)))  # in the device's thread
        return future

    async def image() -> None:
        while not matched or core.engine._admission.images.reserved:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(core.engine, "submit", counting)
        await store(client)

    await asyncio.gather(search(), search(), search(), image())
    assert len(matched) == 36
    sent, answered = counts
    assert answered - sent <= 2


@pytest.mark.anyio
@pytest.mark.parametrize("by_image", [True, False])
async def test_a_search_has_a_place_until_it_ends(
    client: httpx.AsyncClient, core: Core, monkeypatch: pytest.MonkeyPatch, by_image: bool
) -> None:
    features = [await store(client) for _ in range(3)]
    depths = []
    before_each_match(monkeypatch, lambda *_: depths.append(core.engine.depth))
    params, content = (SMALL, FIRST.read_bytes()) if by_image else ({**SMALL, "features": features[0]}, b"")
    response = await client.post("/v1/match/many", params=params, content=content)
    assert response.status_code == 200
    assert depths == [1] * (3 if by_image else 2)
    assert core.engine.depth == 0
