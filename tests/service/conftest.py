"""The application in process, with its models loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from service.app import create_app
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
