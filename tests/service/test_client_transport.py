"""The clients and what goes wrong on the way: retries, limits of time, faults."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from clients import BOTH
from raw_server import HOMOGRAPHY, drips, hangs_up, problem, raw_server, result, says, stalls

from frontend.errors import ConfigError
from service.client import (
    AsyncClient,
    BadAnswer,
    BadImage,
    BadRequest,
    Client,
    Deadline,
    FeaturesLost,
    NotFound,
    OutOfOrder,
    Overloaded,
    Retry,
    SequenceLost,
    ServiceFault,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from service.client.aio import _repeat as async_repeat
from service.client.faults import seconds_of
from service.client.retry import Attempts
from service.client.sync import _repeat as sync_repeat

Ask = Callable[..., Any]
POINTS = np.zeros((2, 2))


def a_homography(client: Any) -> Any:
    return client.homography(POINTS, POINTS)


def a_stored_image(client: Any) -> Any:
    return client.features(b"image", store=True)


@pytest.fixture(params=BOTH)
def ask(request: pytest.FixtureRequest) -> Ask:
    """A function (url, what, **settings) that makes a client and asks it."""
    function: Ask = request.param
    return function


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_tried_again_after_the_time_it_states(ask: Ask, status: int) -> None:
    with raw_server(problem(status, "overloaded", "retry-after: 1"), result()) as server:
        found = ask(server.url, a_homography)
    np.testing.assert_array_equal(found.H, np.eye(3))
    np.testing.assert_array_equal(found.inliers, HOMOGRAPHY["inliers"])
    assert server.times[1] - server.times[0] >= 1.0


def test_a_refusal_beyond_the_clients_time_is_not_waited_for(ask: Ask) -> None:
    with raw_server(problem(429, "store_full", "retry-after: 30")) as server:
        began = time.monotonic()
        with pytest.raises(Overloaded, match="429 store_full: store_full it is \\(request r1\\)") as caught:
            ask(server.url, a_homography, timeout_s=20)
        assert time.monotonic() - began < 15
        assert len(server.requests) == 1
    assert caught.value.retry_after == 30
    assert not caught.value.maybe_processed


def test_attempts_are_counted(ask: Ask) -> None:
    with raw_server(problem(503, "unavailable")) as server:
        with pytest.raises(Unavailable):
            ask(server.url, a_homography, retry=Retry(attempts=3, base_s=0.01))
        assert len(server.requests) == 3


def test_a_lost_answer_is_asked_for_again_where_that_is_safe(ask: Ask) -> None:
    with raw_server(hangs_up, result()) as server:
        assert ask(server.url, a_homography).status == "ok"
        assert len(server.requests) == 2
    with raw_server(hangs_up, result()) as server:
        with pytest.raises(Unavailable, match="connection_lost") as caught:
            ask(server.url, a_stored_image)
        assert len(server.requests) == 1
    assert caught.value.maybe_processed


@pytest.mark.parametrize(("status", "kind"), [(400, BadRequest), (504, Deadline), (500, ServiceFault)])
def test_what_would_not_help_is_not_tried_again(ask: Ask, status: int, kind: type[ServiceFault]) -> None:
    with raw_server(problem(status, "some_code")) as server:
        with pytest.raises(kind):
            ask(server.url, a_homography)
        assert len(server.requests) == 1


@pytest.mark.parametrize("action", [stalls, drips])
def test_the_whole_call_has_a_limit_of_time(ask: Ask, action: Any) -> None:
    with raw_server(action) as server:
        began = time.monotonic()
        with pytest.raises(Deadline, match="client_timeout") as caught:
            ask(server.url, a_homography, timeout_s=1.0)
        assert 0.9 < time.monotonic() - began < 4.5
        assert len(server.requests) == 1
    assert caught.value.status is None
    assert caught.value.maybe_processed


def test_nobody_there_is_unavailable(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unavailable, match="no_connection") as caught:
        ask(url, a_stored_image, retry=Retry(attempts=2, base_s=0.01))
    assert not caught.value.maybe_processed
    assert ask(url, lambda client: client.ready()) is False
    with pytest.raises(Unavailable):
        ask(url, lambda client: client.wait_ready(2))


def test_no_attempt_is_made_when_a_pause_took_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made, refusal, sleep = [], Unavailable(None, "no_connection", "nobody"), time.sleep
    attempts = Attempts(Retry(attempts=None, base_s=0.01, cap_s=0.01), 0.2, repeatable=True)

    def attempt(_: float) -> None:
        made.append(0)
        raise refusal

    monkeypatch.setattr("service.client.sync.time.sleep", lambda _: sleep(0.3))
    with pytest.raises(Unavailable, match="nobody"):
        sync_repeat(attempts, attempt)
    assert len(made) == 1

    async def attempt_async(_: float) -> None:
        attempt(_)

    async def oversleeps(_: float) -> None:
        sleep(0.3)

    monkeypatch.setattr("service.client.aio.asyncio.sleep", oversleeps)
    attempts = Attempts(Retry(attempts=None, base_s=0.01, cap_s=0.01), 0.2, repeatable=True)
    with pytest.raises(Unavailable, match="nobody"):
        asyncio.run(async_repeat(attempts, attempt_async))
    assert len(made) == 2


def test_readiness_is_waited_for(ask: Ask) -> None:
    not_yet = problem(503, "unavailable", "retry-after: 0")
    with raw_server(*[not_yet] * 6, says(200, b'{"status":"ready"}', "application/json")) as server:
        ask(server.url, lambda client: client.wait_ready(5))
        assert len(server.requests) == 7


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", Unauthorized),
        (404, "not_found", NotFound),
        (404, "features_not_found", FeaturesLost),
        (404, "sequence_not_found", SequenceLost),
        (409, "out_of_order", OutOfOrder),
        (413, "too_large", TooLarge),
        (422, "bad_image", BadImage),
    ],
)
def test_problems_are_typed(ask: Ask, status: int, code: str, kind: type[ServiceFault]) -> None:
    with raw_server(problem(status, code)) as server, pytest.raises(ServiceFault) as caught:
        ask(server.url, a_homography)
    fault = caught.value
    assert type(fault) is kind
    assert (fault.status, fault.code, fault.detail, fault.request_id) == (status, code, f"{code} it is", "r1")


def test_an_answer_that_is_none_is_a_fault(ask: Ask) -> None:
    for action in (
        says(200, b"<html>", "text/html"),
        says(200, b"\xc1", "application/msgpack"),
        result({"homography": None, "status": "ok"}),
        result({**HOMOGRAPHY, "homography": np.eye(2)}),
        result({**HOMOGRAPHY, "status": "unheard of"}),
    ):
        with raw_server(action) as server, pytest.raises(BadAnswer, match="POST /v1/homography: the answer"):
            ask(server.url, a_homography)
    gateway = says(502, b"<html>bad gateway", "text/html", "x-request-id: r2")
    expected = r"502 http_502: no reason was given \(request r2\)"
    with raw_server(gateway) as server, pytest.raises(ServiceFault, match=expected):
        ask(server.url, a_homography)


def test_the_key_is_sent(ask: Ask) -> None:
    with raw_server(result()) as server:
        ask(server.url, a_homography, api_key="secret")
        assert b"x-api-key: secret\r\n" in server.requests[0]


@pytest.mark.parametrize("url", ["robot:8000", "ftp://robot", "http://"])
def test_the_url_is_one_of_http(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
            kind(url)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: list(inspect.signature(f).parameters) for name, f in found if name[0] != "_" and "close" not in name
        }

    assert methods(Client) == methods(AsyncClient)
    assert {"features", "match", "match_many", "homography", "sequence", "wait_ready"} <= set(methods(Client))
    with Client("http://robot") as client:
        assert client.match.__doc__ == Client.match.__doc__
        assert list(inspect.signature(client.match).parameters)[:3] == ["image0", "image1", "mask0"]


def test_pauses_double_are_random_and_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: limits.append(high) or high)
    attempts = Attempts(Retry(attempts=None, base_s=1, cap_s=5), 10, repeatable=False)
    refusal = Overloaded(429, "overloaded", "")
    assert [attempts.pause_s(refusal) for _ in range(5)] == limits == [1, 2, 4, 5, 5]
    attempts = Attempts(Retry(attempts=None, base_s=1, cap_s=5), 4.5, repeatable=False)
    assert attempts.pause_s(Overloaded(429, "overloaded", "", retry_after=3)) == 4
    with pytest.raises(Overloaded):
        attempts.pause_s(Overloaded(429, "overloaded", "", retry_after=4))
    # what would be left for the attempt is too short to tell "nobody there" from "no answer"
    with pytest.raises(Overloaded):
        Attempts(Retry(attempts=None, base_s=1, cap_s=5), 1.03, repeatable=False).pause_s(refusal)
    assert Attempts(Retry(attempts=None, base_s=1, cap_s=5), 1.2, repeatable=False).pause_s(refusal) == 1
    with pytest.raises(ConfigError, match="attempts is 0"):
        Retry(attempts=0)


def test_retry_after_is_a_number_or_a_date() -> None:
    assert seconds_of("2.5") == 2.5
    assert seconds_of("-3") == 0
    assert seconds_of("soon") is seconds_of(None) is seconds_of("nan") is None
    soon = seconds_of(format_datetime(datetime.now(timezone.utc) + timedelta(seconds=20), usegmt=True))
    assert soon is not None
    assert 18 < soon <= 20
