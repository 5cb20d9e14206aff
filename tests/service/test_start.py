"""A service that starts: stopped before it is ready, and what cannot be loaded."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn

from frontend.errors import ConfigError
from service.app import create_app
from service.core import Core
from service.engine import Engine
from service.errors import UnavailableError
from service.server import GracefulServer, listening, run
from service.settings import Settings


@pytest.mark.anyio
async def test_a_service_that_is_stopped_while_it_starts_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def warm_up(engine: Engine, *_: object) -> None:
        for _ in range(1000):
            engine.call(lambda: time.sleep(0.02), time.monotonic() + 60).result()
            steps.append(0)

    monkeypatch.setattr("service.core.warm_up", warm_up)
    app = create_app(Settings(device="cpu", warmup=("64x64",)))
    async with app.router.lifespan_context(app):
        while not steps:
            await asyncio.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 10  # all steps take 20 seconds
    assert len(steps) < 500
    assert not app.state.core.ready


def test_a_load_that_takes_long_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loading, gate = threading.Event(), threading.Event()
    monkeypatch.setattr(Core, "_load", lambda _: (loading.set(), gate.wait(20)))

    async def start_and_stop() -> None:
        async with (app := create_app(Settings(device="cpu", shutdown_s=0.1))).router.lifespan_context(app):
            assert await asyncio.to_thread(loading.wait, 20)

    began = time.monotonic()
    try:
        asyncio.run(start_and_stop())
        assert time.monotonic() - began < 15
    finally:
        gate.set()
    assert not caplog.records


@pytest.mark.parametrize("variable", ["RUNTIME", "PRECISION"])
def test_what_cannot_be_loaded_ends_the_process(variable: str) -> None:
    settings = {f"SUPERPOINT_{variable}": "nonsense", "SUPERPOINT_PORT": "0", "SUPERPOINT_MAXBATCH": "3"}
    command = [sys.executable, "-m", "frontend.cli.main", "serve"]
    ended = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "start failed: " in ended.stderr
    assert "nonsense" in ended.stderr
    assert "SUPERPOINT_MAXBATCH is no setting" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("free", [False, True])
def test_an_address_that_cannot_be_had_ends_it_in_one_line(free: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # 192.0.2.0/24 is for documents, and no machine's
        host, reason = ("192.0.2.1", errno.EADDRNOTAVAIL) if free else ("127.0.0.1", errno.EADDRINUSE)
        command = [sys.executable, "-m", "frontend.cli.main", "serve", "--host", host, "--port", str(port), "--no-auth"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == f"superpoint serve: cannot listen on {host}:{port}: {os.strerror(reason)}\n"


def test_nothing_is_loaded_before_there_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.server.create_app", None)
    for host, reason in (("no host", ""), ("." * 300, ""), ("192.0.2.1", os.strerror(errno.EADDRNOTAVAIL))):
        with pytest.raises(ConfigError, match=f"^cannot listen on {host}:8000: .*{reason}.*$"):
            run(Settings(device="cpu", host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
def test_all_addresses_of_a_host_are_listened_at(host: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    try:
        found = listening(host, 0)
    except ConfigError:
        assert host == "::1"
        pytest.skip("there is no IPv6 here")
    try:
        addresses = {address[4][0] for address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
        assert {made.getsockname()[0] for made in found} <= addresses
        for made in found:
            with socket.create_connection(made.getsockname()[:2], timeout=5), pytest.raises(ConfigError):
                listening(host, made.getsockname()[1])
    finally:
        for made in found:
            made.close()


def test_a_signal_while_it_starts_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(Settings(device="cpu"))
    told = GracefulServer(uvicorn.Config("none:none"), core)
    monkeypatch.setattr(core, "_load", lambda: (_ for _ in ()).throw(UnavailableError("the device is not available")))
    told.should_exit = True
    with pytest.raises(UnavailableError):
        core.start()
    assert not told.gave_up
    alone = GracefulServer(uvicorn.Config("none:none"), core)
    with pytest.raises(UnavailableError):
        core.start()
    assert alone.gave_up
    assert alone.should_exit
