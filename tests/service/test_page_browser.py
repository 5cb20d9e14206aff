"""The page in a real browser, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from browser import NUMBER, chromium_running, page_of
from live import Live, live

import frontend

SAMPLES = Path(frontend.__file__).parent / "samples"
FIRST, SECOND = SAMPLES / "rocket_0.jpg", SAMPLES / "rocket_1.jpg"
SIZES = ((640, 427), (600, 400))
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
GAP = 12
NONE = "\N{EN DASH}"
MATCHES = "**/v1/match?*"
KEYPOINTS = 384  # fewer than by default: the machine may be slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium_running() as made:
        yield made


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[Live]:
    with live(max_pixels_mp=1.0) as made:
        yield made


@pytest.fixture
def page(browser: Any, server: Live) -> Iterator[Any]:
    with page_of(browser, server.base, viewport=DESKTOP) as made:
        yield made


def text(page: Any, name: str) -> str:
    return str(page.locator(f"#{name}").text_content()).strip()


def settled(page: Any, name: str = "n-matches", pattern: re.Pattern[str] = NUMBER) -> str:
    """What an element says once it says something of this form and nothing is on its way."""
    from playwright.sync_api import expect

    expect(page.locator(f"#{name}")).to_have_text(pattern, timeout=30_000)
    expect(page.locator("#match-busy")).to_be_hidden(timeout=30_000)
    return text(page, name)


def choose(page: Any, slider: str, shown: str) -> None:
    """Move a slider from its beginning, step by step, until it shows a value."""
    found = page.locator(f"#{slider}").evaluate(
        """(input, shown) => {
          const output = input.parentElement.querySelector("output");
          for (let at = 0; at <= Number(input.max); at++) {
            input.value = at;
            input.dispatchEvent(new Event("input", {bubbles: true}));
            if (output.value === shown) return true;
          }
          return false;
        }""",
        shown,
    )
    assert found, f"{slider} never shows {shown}"


def start_with_samples(page: Any, keypoints: int = KEYPOINTS) -> None:
    choose(page, "keypoints", str(keypoints))
    page.click("#sample")
    settled(page, "n-keypoints", re.compile(rf"^{keypoints} \+ {keypoints}$"))


def matched(server: Live, images: tuple[bytes, bytes], **query: Any) -> dict[str, Any]:
    """What the service says of a pair, asked without the page."""
    files = {f"image{index}": data for index, data in enumerate(images)}
    document: dict[str, Any] = httpx.post(f"{server.base}/v1/match", files=files, params=query, timeout=60).json()
    return document


@pytest.fixture(scope="module")
def expected(server: Live) -> dict[str, Any]:
    return matched(server, (FIRST.read_bytes(), SECOND.read_bytes()), max_keypoints=KEYPOINTS)


def gap_rows(page: Any, colour: tuple[int, int, int]) -> int:
    """Rows of the gap between the two images in which something of a colour is drawn: nothing but lines comes there."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )  # it is drawn
    return int(
        page.locator("#pair").evaluate(
            """(canvas, colour) => {
              const {width, height} = canvas;
              const column = new OffscreenCanvas(1, height).getContext("2d", {willReadFrequently: true});
              column.drawImage(canvas, -Math.round(width / 2), 0);
              const {data} = column.getImageData(0, 0, 1, height);
              let rows = 0;
              for (let y = 0; y < height; y++) {
                const near = colour.every((value, i) => Math.abs(data[4 * y + i] - value) < 40);
                if (near && data[4 * y + 3] > 40) rows++;
              }
              return rows;
            }""",
            colour,
        )
    )


def on_canvas(page: Any, side: int, point: list[float], zoom: float = 1.0) -> tuple[float, float]:
    """Where a keypoint is on the page while the images are whole, by the page's layout on a wide screen."""
    box = page.locator("#pair").bounding_box()
    width, height = (box["width"] - GAP) / 2, box["height"]
    scale = min(width / SIZES[side][0], height / SIZES[side][1])
    left = box["x"] + side * (width + GAP) + (width - SIZES[side][0] * scale) / 2
    top = box["y"] + (height - SIZES[side][1] * scale) / 2
    return left + (point[0] + 0.5) * scale, top + (point[1] + 0.5) * scale


INLIER, OUTLIER = (25, 195, 178), (255, 122, 69)


def test_the_sample_pair_is_matched_and_drawn(page: Any, expected: dict[str, Any]) -> None:
    start_with_samples(page)
    inliers, matches = sum(expected["inliers"]), len(expected["matches"])
    assert inliers > 100
    assert settled(page) == str(matches)
    assert text(page, "n-inliers") == str(inliers)
    assert text(page, "n-share") == f"{round(100 * inliers / matches)} %"
    cells = [float(cell) for cell in page.locator("#matrices td").all_text_contents()]
    np.testing.assert_allclose(np.reshape(cells, (3, 3)), expected["homography"], rtol=1e-3, atol=1e-4)
    stages = page.locator("#timings th").all_text_contents()
    assert {"matching", "geometry", "service, total"} <= set(stages)
    assert gap_rows(page, INLIER) > 40
    page.uncheck("#show-lines")
    assert gap_rows(page, INLIER) == 0


def test_hovering_tells_of_the_match_under_the_pointer(page: Any, expected: dict[str, Any]) -> None:
    start_with_samples(page)
    rows = expected["matches"]
    # the end that is farthest from all others is not to be mistaken; not at the edge, where there is no room to pan
    ends = np.array([expected["image0"]["keypoints"][first] for first, _ in rows])
    apart = np.linalg.norm(ends[:, None] - ends[None], axis=-1) + 1e9 * np.eye(len(ends))
    width, height = np.max(expected["image0"]["keypoints"], axis=0)
    middle = (np.abs(ends / [width, height] - 0.5) < 0.25).all(axis=1)
    index = int(np.where(middle, apart.min(axis=1), -1.0).argmax())
    x, y = on_canvas(page, 0, ends[index].tolist())
    page.mouse.move(x, y)
    page.wait_for_timeout(50)
    said = text(page, "picked")
    assert said.startswith(f"match {index + 1}: ({ends[index][0]:.1f}, {ends[index][1]:.1f})"), said
    assert said.endswith("inlier" if expected["inliers"][index] else "outlier")
    # zooming about the pointer keeps what is under it
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(50)
    page.mouse.move(x + 1, y)
    page.wait_for_timeout(50)
    assert text(page, "picked") == said
    page.mouse.move(x, y - 40)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=4)
    page.mouse.up()
    page.keyboard.press("Escape")
    page.wait_for_timeout(50)
    page.mouse.move(x + 40, y + 40)
    page.wait_for_timeout(50)
    assert text(page, "picked") == said  # panned with the pointer


def test_matches_are_reached_by_keys(page: Any, expected: dict[str, Any]) -> None:
    start_with_samples(page)
    page.focus("#pair")
    seen = []
    for key in (".", ".", ","):
        page.keyboard.press(key)
        seen.append(text(page, "picked").partition(":")[0])
    assert seen == ["match 1", "match 2", "match 1"]
    page.keyboard.press("Escape")
    assert text(page, "picked") == ""
    page.keyboard.press("+")
    assert "zoomed" in page.locator("#pair").get_attribute("class")
    page.keyboard.press("0")
    assert "zoomed" not in page.locator("#pair").get_attribute("class")


def test_sliders_obey_keys(page: Any) -> None:
    output = page.locator("#keypoints ~ output")
    page.focus("#keypoints")
    page.keyboard.press("Home")
    assert output.text_content() == "32"
    page.keyboard.press("ArrowRight")
    assert output.text_content() == "64"
    assert page.locator("#keypoints").get_attribute("aria-valuetext") == "64"
    page.keyboard.press("End")
    assert output.text_content() == "4096"  # the service's limit


def test_sliders_and_geometry_ask_again(page: Any, server: Live) -> None:
    start_with_samples(page)
    images = (FIRST.read_bytes(), SECOND.read_bytes())
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response(MATCHES):
        choose(page, "ratio", "0.80")
    strict = matched(server, images, max_keypoints=KEYPOINTS, ratio=0.8)
    assert settled(page) == str(len(strict["matches"]))
    assert len(asked) == 1  # of 30 steps of the slider
    with page.expect_response(MATCHES):
        choose(page, "error-limit", "0.5 px")
    settled(page)
    tight = matched(server, images, max_keypoints=KEYPOINTS, ratio=0.8, threshold=0.5)
    assert text(page, "n-inliers") == str(sum(tight["inliers"]))
    assert sum(tight["inliers"]) < sum(strict["inliers"])
    with page.expect_response(MATCHES):
        choose(page, "threshold", "0.3")
    settled(page)
    assert int(text(page, "n-keypoints").split()[0]) < KEYPOINTS
    choose(page, "threshold", "0.005")
    for kind, name in (("fundamental", "F"), ("essential", "E"), ("none", "")):
        page.select_option("#geometry", kind)
        page.wait_for_timeout(300)
        settled(page)
        found = page.locator("#matrices table").evaluate_all("all => all.map(one => one.dataset.matrix)")
        assert found == {"E": ["E", "R", "t"], "": []}.get(name, [name])
    assert text(page, "n-inliers") == NONE
    assert page.locator("#error").is_hidden()


def test_an_answer_that_is_overtaken_is_not_shown(page: Any, server: Live) -> None:
    start_with_samples(page)
    with server.held():
        for count in ("64", "128"):
            with page.expect_request(MATCHES):
                choose(page, "keypoints", count)
    assert settled(page, "n-keypoints", re.compile(r"^(64|128) \+")) == "128 + 128"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_command_gives_the_same(browser: Any, server: Live, tmp_path: Path) -> None:
    with page_of(browser, server.base, viewport=DESKTOP, permissions=["clipboard-read", "clipboard-write"]) as page:
        start_with_samples(page)
        with page.expect_response(MATCHES):
            choose(page, "ratio", "0.90")
        shown = settled(page)
        page.click("#copy")
        command = page.evaluate("() => navigator.clipboard.readText()")
        assert command == text(page, "curl")
        assert len(run(command, tmp_path)["matches"]) == int(shown)
        # files whose names shells and curl would misread
        names = ['it\'s; a, "pair" $HOME.jpg', "second image.jpg"]
        for name, source in zip(names, (FIRST, SECOND), strict=True):
            (tmp_path / name).write_bytes(source.read_bytes())
        with page.expect_response(MATCHES):
            page.set_input_files("#file0", [tmp_path / name for name in names])
        shown = settled(page)
        assert names[0] in text(page, "names")
        assert len(run(text(page, "curl"), tmp_path)["matches"]) == int(shown) > 100


def run(command: str, folder: Path, **variables: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment.pop("SUPERPOINT_API_KEY", None)
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env={**environment, **variables}, capture_output=True, timeout=60, check=True
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_file_that_is_no_image_has_its_line(browser: Any, server: Live, tmp_path: Path) -> None:
    bad = tmp_path / "notes.jpg"
    bad.write_text("no image")
    detail = matched(server, (bad.read_bytes(), SECOND.read_bytes()))["detail"]
    with page_of(browser, server.base, refused=(422,), viewport=DESKTOP) as page:
        page.set_input_files("#file0", bad)
        page.set_input_files("#file1", SECOND)
        page.locator("#error").wait_for(state="visible")
        assert text(page, "error") == detail
        assert text(page, "n-matches") == NONE
        start_with_samples(page)
        assert page.locator("#error").is_hidden()


def test_what_the_service_would_refuse_is_made_smaller(page: Any, server: Live, tmp_path: Path) -> None:
    """The server takes 1 megapixel and 1 MB; the first image has more pixels, the second more bytes."""
    first, second = cv2.imread(str(FIRST)), cv2.imread(str(SECOND))
    cv2.imwrite(str(tmp_path / "wide.jpg"), cv2.resize(first, (1500, 1000)))
    noisy = cv2.resize(second, (900, 600)).astype(int) + np.random.default_rng(0).integers(-20, 20, (600, 900, 3))
    cv2.imwrite(str(tmp_path / "noisy.png"), noisy.clip(0, 255).astype(np.uint8))
    assert (tmp_path / "noisy.png").stat().st_size > 1_000_000
    choose(page, "keypoints", str(KEYPOINTS))
    page.set_input_files("#file0", [tmp_path / "wide.jpg", tmp_path / "noisy.png"])
    assert int(settled(page)) > 50
    names = text(page, "names")
    width, height = map(int, re.search(r"wide_(\d+)x(\d+)\.jpg", names).groups())  # type: ignore[union-attr]
    assert 0.98e6 < width * height <= 1e6
    assert "noisy_900x600.jpg" in names
    assert "made smaller" in names
    # what is within the limits is sent as it is
    with page.expect_request("**/v1/match?*") as asked:
        page.set_input_files("#file0", [FIRST, SECOND])
    body = asked.value.post_data_buffer
    settled(page)
    assert body is None or FIRST.read_bytes() in body
    assert "made smaller" not in text(page, "names")


def test_two_images_of_the_webcam(page: Any) -> None:
    page.click("#shoot")
    page.click("#take")  # once there is a picture
    page.locator("#camera-title", has_text="second").wait_for()
    page.click("#take")
    assert int(settled(page)) >= 0
    assert "webcam_0.jpg" in text(page, "names")
    assert page.locator("#camera-dialog").is_hidden()
    assert "Save webcam_0.jpg and webcam_1.jpg" in text(page, "curl-note")


def test_a_phone_has_no_sideways_scroll(browser: Any, server: Live) -> None:
    with page_of(browser, server.base, **PHONE) as page:
        page.tap("#sample")
        settled(page)
        wide = "() => [document.documentElement.scrollWidth, innerWidth]"
        assert page.evaluate(wide) == [360, 360]
        box = page.locator("#pair").bounding_box()
        assert box["height"] > 400  # one above the other
        pinch(page, box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
        assert "zoomed" in page.locator("#pair").get_attribute("class")
        assert page.evaluate("() => visualViewport.scale") == 1  # the images grew, not the page
        page.tap("#tab-sequence")
        assert page.evaluate(wide) == [360, 360]
        assert page.locator("#seq-demo").is_visible()
        small = page.locator("button:visible, select:visible").evaluate_all(
            "all => all.filter(one => one.getBoundingClientRect().height < 36).map(one => one.id)"
        )
        assert small == []


def pinch(page: Any, x: float, y: float) -> None:
    """Two fingers that part."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *apart: int) -> None:
        points = [{"x": x + sign * half, "y": y, "id": at} for half in apart for at, sign in enumerate((-1, 1))]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    for half in range(30, 90, 10):
        touch("touchMove", half)
    touch("touchEnd")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, server: Live, scheme: str) -> None:
    with page_of(browser, server.base, color_scheme=scheme) as page:
        colours = page.evaluate(
            """() => {
              const made = getComputedStyle(document.body), hint = getComputedStyle(document.querySelector(".hint"));
              const colours = [made.backgroundColor, made.color, hint.color];
              return colours.map((colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number));
            }"""
        )
    back, ink, soft = (luminance(np.array(colour) / 255) for colour in colours)
    assert (back > 0.5) == (scheme == "light")
    for front in (ink, soft):
        assert (max(front, back) + 0.05) / (min(front, back) + 0.05) >= 4.5  # WCAG 2, level AA


def luminance(rgb: np.ndarray) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_paths_are_not_followed(server: Live) -> None:
    """As no HTTP client would send them."""
    for path in ("/static/../app.py", "/samples/../__init__.py", "/static/x/../../app.py", "//etc/passwd"):
        connection = server.connect()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while part := connection.recv(65536):
            received += part
        assert received.startswith(b"HTTP/1.1 404 "), path
        assert b"import" not in received
        connection.close()
