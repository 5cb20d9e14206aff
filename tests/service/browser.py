"""Headless Chromium, and pages of it that may not complain and may not ask anybody else."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NUMBER = re.compile(r"^\d+$")


def chromium() -> str | None:
    """The path of a Chromium of the system, or the one that CHROMIUM names; None without."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def chromium_running() -> Iterator[Any]:
    """Playwright's browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Any, base: str, *, refused: tuple[int, ...] = (), **context: Any) -> Iterator[Any]:
    """The page of a service.

    Args:
        browser: see :func:`chromium_running`.
        base: URL of the service.
        refused: HTTP statuses that the test provokes, which Chromium writes to its console.
        context: of Playwright's ``new_context``.
    """
    complaints: list[str] = []
    hosts: set[str] = set()
    with browser.new_context(**context) as opened:
        page = opened.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: hosts.add(urlsplit(socket.url).netloc))
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def heard(message: Any) -> None:
            expected = any(f"status of {status} " in message.text for status in refused)
            if message.type in ("error", "warning") and not expected:
                complaints.append(message.text)

        page.on("console", heard)
        page.goto(base + "/")
        yield page
    assert complaints == [], complaints
    assert hosts - {""} == {urlsplit(base).netloc}, hosts  # "" is of blob:
