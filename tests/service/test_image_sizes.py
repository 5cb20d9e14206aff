"""Limits of an image's pixels, and what it takes while it is decoded and waits for the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from problems import check_problem

from frontend.image_header import decoding_bytes
from service.core import Core
from service.settings import Settings

TINY = cv2.imencode(".png", np.full((8, 8), 90, np.uint8))[1].tobytes()
MEASURE = """
import sys
from types import SimpleNamespace
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.image import decode_image

def held(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def prepare(data):
    extractor.prepare(decode_image(data, "image"))

extractor = SuperPoint.of(SimpleNamespace(), config=ExtractorConfig(resize=int(sys.argv[3]) or None))
tiny, image = (open(path, "rb").read() for path in sys.argv[1:3])  # bodies count elsewhere
prepare(tiny)  # what is loaded once does not count
before = held("VmRSS")
prepare(image)
print(held("VmHWM") - before)
"""


def with_size(png: bytes, width: int, height: int) -> bytes:
    """A PNG whose header lies; its checksum is not looked at before the size."""
    return png[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:]


def extractor(resize: int | None = None) -> Any:
    return SimpleNamespace(config=SimpleNamespace(resize=resize))


@pytest.mark.anyio
async def test_an_image_without_memory_for_it_is_for_later(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("service.decoding.decode_image", exhaust)
    response = await client.post("/v1/features", content=TINY)
    check_problem(response, 503, "unavailable", "image does not fit into the memory that is free now")


@pytest.mark.anyio
async def test_images_over_the_limit_are_refused_by_their_header(client: httpx.AsyncClient) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 1000), dtype=np.uint8)
    right = cv2.imencode(".jpg", noise)[1].tobytes()
    assert (await client.post("/v1/features?descriptors=none", content=right)).status_code == 200
    for path in ("/v1/features", "/v1/match/many"):
        response = await client.post(path, content=with_size(TINY, 30_000, 20_000))
        check_problem(response, 413, "too_large", "image is 30000 x 20000 pixels; expected at most 1 megapixels")
    files = {"image0": right, "image1": with_size(TINY, 1001, 1000)}
    check_problem(await client.post("/v1/match", files=files), 413, "too_large", "image1 is 1001 x 1000 pixels")
    assert "superpoint_queue_depth 0.0" in (await client.get("/metrics")).text


@pytest.mark.anyio
async def test_a_header_that_says_nothing_is_not_believed(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("service.decoding", "frontend.image"):
        monkeypatch.setattr(f"{module}.header_size", lambda _: None)
    large = cv2.imencode(".png", np.zeros((1001, 1000), np.uint8))[1].tobytes()
    response = await client.post("/v1/features", content=large)
    check_problem(response, 413, "too_large", "image is 1000 x 1001 pixels; expected at most 1 megapixels")


@pytest.mark.anyio
async def test_a_resize_beyond_the_largest_image_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/features?resize=1000&descriptors=none", content=TINY)).status_code == 200
    for resize in (1008, 8192):
        response = await client.post(f"/v1/features?resize={resize}", content=TINY)
        check_problem(response, 413, "too_large", "megapixels of image, 8 x 8; expected at most 1")


@pytest.mark.anyio
async def test_an_image_without_pixels_is_none(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/features?resize=64", content=with_size(TINY, 0, 0))
    check_problem(response, 422, "bad_image", "0 x 0")


def test_a_header_that_says_nothing_counts_as_the_largest_image() -> None:
    core = Core(Settings(device="cpu", max_pixels_mp=2))
    for resize in (None, 1000, 5000):
        assert core.decoder.nbytes(extractor(resize), b"no image", "image") == pytest.approx(96e6)
    core.stop()


@pytest.mark.parametrize(
    ("form", "kind", "channels", "resize"),
    [
        (".png", np.uint8, 3, None),
        (".png", np.uint8, 3, 3200),
        (".png", np.uint16, 3, None),
        (".png", np.uint16, 3, 320),
        (".png", np.uint16, 4, None),
        (".jpg", np.uint8, 3, 320),
        (".webp", np.uint8, 3, 320),
        (".bmp", np.uint8, 3, 320),
        (".gif", np.uint8, 3, 320),
        (".avif", np.uint8, 3, 320),
        (".jp2", np.uint16, 3, 320),
        (".hdr", np.float32, 3, 320),
        (".pfm", np.float32, 3, 320),
        (".tif", np.uint16, 3, 320),
        (".tif", np.float32, 3, 320),
        (".tif", np.float64, 3, 320),
    ],
)
def test_what_an_image_takes_is_not_underrated(
    tmp_path: Path, form: str, kind: type[np.generic], channels: int, resize: int | None
) -> None:
    if not cv2.haveImageWriter(f"image{form}"):
        pytest.skip(f"this OpenCV writes no {form}")
    pixels = np.zeros((1201, 1601, channels), kind)  # to be padded
    pixels[::7] = np.iinfo(kind).max if issubclass(kind, np.integer) else 1
    data = cv2.imencode(form, pixels)[1].tobytes()
    tiny = cv2.imencode(form, pixels[:64, :64])[1].tobytes()
    for name, content in (("tiny", tiny), ("image", data)):
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny"), str(tmp_path / "image"), str(resize or 0)]
    measured = int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    core = Core(Settings(device="cpu"))
    expected = core.decoder.nbytes(extractor(resize), data, "image")
    core.stop()
    assert measured < 1.1 * expected
    if kind in (np.float32, np.float64) or (kind is np.uint16 and form == ".png" and resize is None):
        assert measured > 0.8 * expected


def test_a_tiff_of_unknown_depth_counts_as_the_deepest() -> None:
    whole = cv2.imencode(".tif", np.zeros((8, 8, 3), np.uint16))[1].tobytes()
    assert decoding_bytes(whole) == 12
    assert decoding_bytes(whole[:8]) == decoding_bytes(b"no image") == 48
