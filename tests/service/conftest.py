"""The application in process, with its models loaded; and engines with stand-ins for extractors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import httpx
import pytest
from engine_stubs import Log

from service import engine as engine_module
from service.app import create_app
from service.core import Core
from service.engine import Engine, EngineConfig
from service.settings import Settings


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    settings = {"device": "cpu", "warmup": ("64x64",), "max_pixels_mp": 1.0, "max_body_mb": 1.0}
    app = create_app(Settings(**{**settings, **getattr(request, "param", {})}))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as made:
            while (await made.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
            yield made


@pytest.fixture
def core(client: httpx.AsyncClient) -> Core:
    """Of the application that the client asks."""
    return cast(Core, cast(Any, client)._transport.app.state.core)


@pytest.fixture
def stubbed_extractors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "extract_prepared", lambda extractor, prepared: extractor.run(prepared))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def engine(log: Log) -> Iterator[Engine]:
    made = Engine(EngineConfig(max_batch=4, max_delay_s=0.02, max_queue=10), log)
    made.start()
    yield made
    assert made.stop(10)
