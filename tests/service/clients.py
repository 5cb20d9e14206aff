"""Both clients, asked in the same way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from service.client import AsyncClient, Client


def ask_client(url: str, what: Callable[[Any], Any], **settings: Any) -> Any:
    """What the client for threads gives."""
    with Client(url, **settings) as client:
        return what(client)


def ask_async_client(url: str, what: Callable[[Any], Any], **settings: Any) -> Any:
    """What the client for asyncio gives."""

    async def ask() -> Any:
        async with AsyncClient(url, **settings) as client:
            found = what(client)
            return await found if inspect.isawaitable(found) else found

    return asyncio.run(ask())


BOTH = [ask_client, ask_async_client]
