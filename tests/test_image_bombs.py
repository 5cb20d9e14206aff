"""Images that claim one size and hold another, and those that cost far more than their bytes."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest

from frontend.errors import ImageError
from frontend.image import decode_image
from frontend.image_header import header_size

LARGE = np.zeros((1500, 1200), np.uint8)
LIMIT = 1_000_000


def encoded(suffix: str, image: np.ndarray, *parameters: int) -> bytes:
    return bytes(cv2.imencode(suffix, image, parameters)[1])


def jp2_of_two_sizes() -> bytes:
    data = encoded(".jp2", LARGE)
    at = data.index(b"ihdr") + 4
    return data[:at] + struct.pack(">II", 64, 64) + data[at + 8 :]


def jp2_with_a_box_before() -> bytes:
    data = encoded(".jp2", LARGE)
    at = data.index(b"jp2h") - 4
    return data[:at] + struct.pack(">I4s", 5008, b"uuid") + b"ihdr\0\0\0\x40\0\0\0\x40".ljust(5000) + data[at:]


def hdr_with_a_size_as_comment() -> bytes:
    return encoded(".hdr", np.dstack([LARGE] * 3).astype(np.float32)).replace(b"\n", b"\n-Y 64 +X 64\n", 1)


def tiff_with_two_sizes(first: int, second: int) -> bytes:
    pixels = zlib.compress(LARGE.tobytes())
    sizes = [(256, first), (257, first), (256, second), (257, second)]
    rest = [(258, 8), (259, 8), (262, 1), (273, 146), (277, 1), (278, 1500), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sizes + rest)
    return struct.pack("<2sHIH", b"II", 42, 8, 11) + entries + bytes(4) + pixels


@pytest.mark.parametrize("between", [b" ", b"\n", b"#\n", b"# 12\n", b" \t\r\n"])
def test_a_header_of_blanks_takes_no_time(between: bytes) -> None:
    """An expression with two ways to read a blank would take 2^n steps."""
    began = time.perf_counter()
    assert header_size(b"P5" + between * 20_000 + b"x") is None
    assert time.perf_counter() - began < 1
    assert header_size(b"P5" + between * 200 + b"12" + between * 200 + b"34 255\n") == (12, 34)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(jp2_of_two_sizes(), id="JPEG 2000, header box"),
        pytest.param(jp2_with_a_box_before(), id="JPEG 2000, box before"),
        pytest.param(hdr_with_a_size_as_comment(), id="HDR"),
        pytest.param(tiff_with_two_sizes(64, 1200), id="TIFF, small first"),
        pytest.param(tiff_with_two_sizes(1200, 64), id="TIFF, large first"),
    ],
)
def test_the_size_that_a_decoder_goes_by_is_limited(data: bytes) -> None:
    width, height = header_size(data) or (0, 0)
    assert width >= 1200
    assert height >= 1200
    with pytest.raises(ImageError, match=re.escape(f"is {width} x {height} pixels, expected at most {LIMIT}")):
        decode_image(data, "bomb", max_pixels=LIMIT)


def test_sound_files_of_these_formats_are_read() -> None:
    assert decode_image(encoded(".jp2", LARGE), "jp2").shape == LARGE.shape
    assert decode_image(encoded(".hdr", np.dstack([LARGE] * 3).astype(np.float32)), "hdr").shape[:2] == LARGE.shape


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(".jpg", np.zeros((64, 64, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decode_image(data, "progressive").shape == (64, 64, 3)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="JPEG of more than 50 scans"):
        decode_image(data[:last] + data[last:-2] * 60 + b"\xff\xd9", "endless")


def test_the_service_limits_what_decoders_take_as_well() -> None:
    # the size of an image that no header tells of is checked in the decoder
    code = (
        "import argparse, sys; from frontend.cli import serve\n"
        "parser = argparse.ArgumentParser(); serve.add_parser(parser.add_subparsers())\n"
        "import types; stub = types.ModuleType('service.server'); sys.modules['service.server'] = stub\n"
        "def run(settings):\n"
        "    import cv2, numpy\n"
        "    sizes = (100, 99)\n"
        "    for side in sizes:\n"
        "        data = cv2.imencode('.png', numpy.zeros((side, side), numpy.uint8))[1]\n"
        "        try:\n"
        "            print(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) is not None)\n"
        "        except cv2.error:\n"
        "            print(False)\n"
        "    return 0\n"
        "stub.run = run\n"
        "args = parser.parse_args(['serve', '--device', 'cpu']); args.run(args)\n"
    )
    environment = {**os.environ, "SUPERPOINT_MAX_PIXELS_MP": "0.0098011"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"], done.stderr
