"""The page's sequences in a real browser, against a real server; and its key."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import NUMBER, chromium_running, page_of
from live import Live, live, wait_until

KEY = "a key/with?odd+signs~"
DESKTOP = {"width": 1000, "height": 900}
# of the tails, from new to old: the page's colours, with room for the edges of lines
TAILS = ((79, 140, 255), (33, 199, 192), (143, 220, 75), (255, 210, 61), (255, 122, 61))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium_running() as made:
        yield made


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[Live]:
    with live() as made:
        yield made


@pytest.fixture
def page(browser: Any, server: Live) -> Iterator[Any]:
    with page_of(browser, server.base, viewport=DESKTOP) as made:
        opened(made)
        yield made


def opened(page: Any) -> None:
    """The tab of sequences, with frames that even a busy machine tracks at some rate."""
    page.click("#tab-sequence")
    page.select_option("#seq-side", "320")
    page.locator("#seq-keypoints").evaluate("e => { e.value = 3; e.dispatchEvent(new Event('input')); }")


def text(page: Any, name: str) -> str:
    return str(page.locator(f"#{name}").text_content()).strip()


def said(page: Any, name: str, pattern: str) -> str:
    """What an element says once it says something of this form."""
    from playwright.sync_api import expect

    expect(page.locator(f"#{name}")).to_have_text(re.compile(pattern), timeout=30_000)
    return text(page, name)


def colour_counts(page: Any) -> list[int]:
    """Pixels of the canvas near each colour of the tails."""
    counts: list[int] = page.locator("#tracks").evaluate(
        """(canvas, colours) => {
          const {width, height} = canvas;
          const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
          copy.drawImage(canvas, 0, 0);
          const {data} = copy.getImageData(0, 0, width, height);
          const counts = colours.map(() => 0);
          for (let i = 0; i < data.length; i += 4) colours.forEach((colour, at) => {
            if (colour.every((value, c) => Math.abs(data[i + c] - value) < 25)) counts[at]++;
          });
          return counts;
        }""",
        TAILS,
    )
    return counts


def test_the_sample_motion_is_tracked(page: Any, server: Live) -> None:
    streams: list[str] = []
    page.on("websocket", lambda socket: streams.append(socket.url))
    assert colour_counts(page) == [0] * len(TAILS)
    page.click("#seq-demo")
    said(page, "s-frames", r"^([89]|\d\d+)$")
    assert len(streams) == 1
    assert "WebSocket" in text(page, "s-state")
    assert int(text(page, "s-tracks")) == 128
    assert 0 < int(text(page, "s-new")) < 128
    assert float(text(page, "s-age")) > 2
    assert int(text(page, "s-keyframes")) >= 1
    assert re.fullmatch(r"\d+ ms", text(page, "s-latency"))
    assert float(text(page, "s-fps")) > 0
    new, older, *_ = colour_counts(page)
    assert new > 200
    assert older > 200
    bars = page.locator("#timeline").evaluate(
        """canvas => {
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
          copy.drawImage(canvas, 0, 0);
          const {data} = copy.getImageData(canvas.width - 3, 0, 1, canvas.height);
          return data.filter((value, i) => i % 4 === 3 && value > 100).length;
        }"""
    )
    assert bars > 30
    assert len(server.core.sessions.all()) == 1
    page.click("#seq-stop")
    wait_until(lambda: not server.core.sessions.all())
    assert text(page, "s-state") == "Stopped."


def test_leaving_the_tab_closes_the_sequence(page: Any, server: Live) -> None:
    page.click("#seq-demo")
    said(page, "s-frames", r"^\d+$")
    wait_until(lambda: server.core.sessions.all())
    page.click("#tab-match")
    wait_until(lambda: not server.core.sessions.all())


def write_moves(folder: Path, scene: np.ndarray) -> list[Path]:
    """Four frames of a scene that moves 5 pixels a frame; the third is no image."""
    paths = []
    for index in range(4):
        paths.append(folder / f"frame_{index}.png")
        cv2.imwrite(str(paths[-1]), scene[20:220, 5 * index : 5 * index + 260])
    paths[2].write_text("no image")
    return paths


def test_files_are_tracked_in_their_order(
    browser: Any, server: Live, tmp_path: Path, make_scene: Callable[..., np.ndarray]
) -> None:
    paths = write_moves(tmp_path, make_scene())
    with page_of(browser, server.base, viewport=DESKTOP) as page:
        opened(page)
        page.set_input_files("#seq-files", paths[::-1])
        said(page, "s-state", r"^All frames are done\.$")
        assert text(page, "s-frames") == "3"
        assert text(page, "error").startswith("frame_2.png: image")
        assert float(text(page, "s-age")) > 2  # most tracks are in all three
        assert page.locator("#seq-stop").is_disabled()


def test_where_no_stream_opens_each_frame_is_a_request(page: Any, server: Live) -> None:
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if "/frames?" in request.url else None)
    # as behind a proxy that answers the handshake with something else; a socket of its own would be on the console
    page.evaluate(
        "() => { window.WebSocket = class { constructor() { setTimeout(() => this.onclose({code: 1006})); } }; }"
    )
    page.click("#seq-demo")
    said(page, "s-frames", r"^([4-9]|\d\d+)$")
    assert "HTTP requests" in text(page, "s-state")
    assert len(posted) >= 4
    assert float(text(page, "s-age")) > 1
    assert text(page, "s-dropped") == "0"  # this source waits
    page.click("#seq-stop")
    wait_until(lambda: not server.core.sessions.all())


def test_the_webcam_does_not_wait_for_the_service(page: Any, server: Live) -> None:
    page.click("#seq-webcam")
    said(page, "s-frames", NUMBER.pattern)
    with server.held():
        said(page, "s-dropped", r"^\d\d+$")
    before = int(text(page, "s-frames"))
    said(page, "s-frames", rf"^(?!{before}$)\d+$")
    assert int(text(page, "s-tracks")) > 20
    page.click("#seq-stop")


def test_a_sequence_that_is_gone_is_told(page: Any, server: Live) -> None:
    page.click("#seq-demo")
    said(page, "s-frames", r"^[2-9]|\d\d+$")
    (session,) = server.core.sessions.all()
    page.request.delete(f"{server.base}/v1/sequences/{session.id}")
    page.locator("#error").wait_for(state="visible")
    # by the answer to a frame that was on its way, or by the end of the stream
    assert re.search("forgotten the sequence|sequence .* is not open", text(page, "error"))
    assert text(page, "s-state") == "Stopped."


def test_a_key_is_asked_for_and_used(browser: Any, tmp_path: Path) -> None:
    with live(api_keys=(KEY,)) as server, page_of(browser, server.base, refused=(401,), viewport=DESKTOP) as page:
        page.locator("#key-form").wait_for(state="visible")
        page.click("#sample")
        page.locator("#error").wait_for(state="visible")
        assert text(page, "error") == "X-API-Key is missing or unknown"
        for given in ("wrong", KEY):
            page.fill("#key", given)
            page.keyboard.press("Enter")
            page.wait_for_timeout(500)
            page.locator("#error").wait_for(state="visible" if given == "wrong" else "hidden")
        assert int(said(page, "n-matches", NUMBER.pattern)) > 100
        assert page.locator("#key-form").is_hidden()
        command = text(page, "curl")
        assert KEY not in command
        if shutil.which("curl"):
            environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
            environment["SUPERPOINT_API_KEY"] = KEY
            done = subprocess.run(
                ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=True
            )
            assert str(len(json.loads(done.stdout)["matches"])) == text(page, "n-matches")
        page.reload()  # the tab keeps it
        opened(page)
        page.click("#seq-demo")
        said(page, "s-frames", r"^[2-9]|\d\d+$")
        assert "WebSocket" in text(page, "s-state")
        page.click("#seq-stop")
        wait_until(lambda: not server.core.sessions.all())
