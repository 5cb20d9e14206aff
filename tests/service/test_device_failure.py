"""A device that fails while the service runs: the server ends, so that a supervisor starts another one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from engine_stubs import Stub
from live import Live, live, wait_until
from problems import check_problem

import frontend
from service import server as server_module
from service.core import Core
from service.engine import Engine
from service.errors import UnavailableError
from service.settings import Settings

IMAGE = (Path(frontend.__file__).parent / "samples" / "rocket_0.jpg").read_bytes()
SAID = "the device has failed: an illegal memory access; ending, as a restarted process may find it working"


def fail(monkeypatch: pytest.MonkeyPatch, core: Core) -> None:
    """From now on nothing works on its device."""

    def broken(*_: object) -> None:
        raise RuntimeError("an illegal memory access\nand what CUDA says besides")

    monkeypatch.setattr("service.engine.extract_prepared", broken)
    for extractor in core.models.values():
        monkeypatch.setattr(extractor.backend, "check", broken)


def test_a_device_that_fails_ends_the_server(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def ask(server: Live) -> httpx.Response:
        return httpx.post(f"{server.base}/v1/features", content=IMAGE, timeout=20)

    with live() as server, ThreadPoolExecutor(3) as threads:
        with server.held():
            requests = [threads.submit(ask, server) for _ in range(3)]
            wait_until(lambda: server.core.engine.depth == 3)
            fail(monkeypatch, server.core)
        for request in requests:
            check_problem(request.result(20), 503, "unavailable", "the device ")
        wait_until(lambda: not server.server.servers[0].is_serving())
        assert cast(Any, server.server).gave_up
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [SAID]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("starting", [True, False])
def test_the_exit_code_says_so(monkeypatch: pytest.MonkeyPatch, starting: bool) -> None:
    def warm_up(engine: Engine, *_: object) -> None:
        stub = Stub()
        stub.backend.works = False
        failing = engine.call(lambda: 1 / 0, time.monotonic() + 60, extractor=cast(Any, stub))
        if starting:
            failing.result(20)

    monkeypatch.setattr("service.core.warm_up", warm_up)
    monkeypatch.setattr("uvicorn.Config", partial(uvicorn.Config, log_config=None))
    assert server_module.run(Settings(device="cpu", port=0, warmup=("64x64",))) == 2


@pytest.mark.timeout(60)
def test_a_thread_that_ends_is_a_device_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def warm_up(engine: Engine, *_: object) -> None:
        monkeypatch.setattr(engine, "_ripe", None)
        with pytest.raises(UnavailableError):
            engine.call(lambda: None, time.monotonic() + 60, urgent=False).result(20)

    monkeypatch.setattr("service.core.warm_up", warm_up)
    monkeypatch.setattr("uvicorn.Config", partial(uvicorn.Config, log_config=None))
    assert server_module.run(Settings(device="cpu", port=0, warmup=("64x64",))) == 2


@pytest.mark.anyio
async def test_another_server_goes_on_with_refusals(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    core: Core = cast(Any, client)._transport.app.state.core
    fail(monkeypatch, core)
    for _ in range(2):
        check_problem(await client.post("/v1/features", content=IMAGE), 503, "unavailable", "the device has failed")
    check_problem(await client.get("/readyz"), 503, "unavailable", "the device has failed")
    assert (await client.get("/healthz")).status_code == 200
