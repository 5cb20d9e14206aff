"""Reading image files, and refusing those that cannot be used."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from frontend.errors import ImageError
from frontend.image import (
    decode_image,
    quiet_decoders,
    read_image,
    to_gray,
    to_uint8,
)
from frontend.image_header import header_size
from frontend.viz import to_bgr


def encode(extension: str, image: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(extension, image, list(options))
    assert done
    return data.tobytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def as_pil(image: np.ndarray, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(image[..., ::-1] if image.ndim == 3 else image).save(buffer, fmt, **options)
    return buffer.getvalue()


# ---- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".ppm", ".ras", ".pam"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, make_scene, extension: str) -> None:
    image = make_scene(50, 70)
    path = tmp_path / f"a{extension}"
    path.write_bytes(encode(extension, image))
    read = read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, image)


def test_gray_stays_two_dimensional(make_scene) -> None:
    gray = make_scene(40, 60)[..., 0]
    np.testing.assert_array_equal(decode_image(encode(".png", gray), "a"), gray)


def test_alpha_is_dropped_and_colour_kept(make_scene) -> None:
    image = make_scene(40, 60)
    alpha = np.full((40, 60, 1), 0, np.uint8)
    alpha[:, 30:] = 255
    np.testing.assert_array_equal(decode_image(encode(".png", np.dstack([image, alpha])), "a"), image)


def test_sixteen_bit_uses_the_full_scale_of_the_sensor(make_scene) -> None:
    gray = make_scene(40, 60)[..., 0].astype(np.uint16)
    gray[0, 0] = 255
    for bits in (10, 12, 14, 16):
        white = 2**bits - 1
        stored = np.rint(gray * (white / 255)).astype(np.uint16)
        np.testing.assert_array_equal(
            decode_image(encode(".png", stored), "a"), gray.astype(np.uint8), err_msg=str(bits)
        )


def test_white_may_be_said_for_all_frames_of_a_camera(rng: np.random.Generator) -> None:
    """Of a camera of 12 bits: one pixel more than 10 bits hold makes a frame of its own scale four times darker."""
    dark = rng.integers(0, 1000, (40, 60), dtype=np.uint16)
    light = dark.copy()
    light[3, 4], light[5, 6] = 1030, 60_000
    for read in (to_uint8, lambda image, white=None: 255 * to_gray(image, white)):
        assert read(dark).mean() > 3.5 * read(light[:5]).mean()
        one, other = read(dark, white=4095), read(light, white=4095)
        np.testing.assert_allclose(one, dark * (255 / 4095), atol=0.51)
        assert other[5, 6] == 255
        assert (one != other).sum() <= 2
    found = decode_image(cv2.imencode(".png", light)[1].tobytes(), "a", white=4095)
    np.testing.assert_array_equal(found, to_uint8(light, 4095))


def test_alpha_does_not_say_how_deep_the_colours_are(rng: np.random.Generator) -> None:
    colours = rng.integers(0, 4096, (40, 60, 3), dtype=np.uint16)
    opaque = np.dstack([colours, np.full((40, 60, 1), 65535, np.uint16)])
    np.testing.assert_array_equal(to_gray(opaque), to_gray(colours))
    np.testing.assert_array_equal(to_bgr(opaque), to_bgr(colours))
    assert to_bgr(opaque).max() == 255


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_tiff_of_either_range(make_scene, dtype: type, white: float) -> None:
    gray = make_scene(40, 60)[..., 0]
    stored = (gray / 255 * white).astype(dtype)
    np.testing.assert_array_equal(decode_image(encode(".tif", stored), "a"), gray)


def test_values_outside_every_convention_are_stretched() -> None:
    values = np.linspace(-100, 900, 256, dtype=np.float32).reshape(16, 16)
    np.testing.assert_array_equal(to_uint8(values), np.arange(256, dtype=np.uint8).reshape(16, 16))
    np.testing.assert_array_equal(to_uint8(np.full((8, 8), -3.0, np.float32)), np.zeros((8, 8), np.uint8))
    np.testing.assert_array_equal(to_uint8(np.array([[0, 70000]], np.int32)), [[0, 255]])


def test_deep_images_take_little_more_memory_than_their_bytes(rng: np.random.Generator) -> None:
    deep = rng.integers(0, 4096, (600, 800, 3), dtype=np.uint16)
    tracemalloc.start()
    found = to_uint8(deep)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.rint(deep * (255 / 4095)))
    assert peak < 2.5 * deep.size


def oriented(image: np.ndarray, orientation: int) -> np.ndarray:
    """How a viewer shows stored pixels, by the EXIF 2.3 table of orientations."""
    return {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.swapaxes(0, 1),
        6: np.rot90(image, -1),
        7: image[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(image, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(make_scene, orientation: int) -> None:
    image = make_scene(48, 80)
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    stored = decode_image(as_pil(image, "JPEG"), "a")
    np.testing.assert_array_equal(decode_image(as_pil(image, "JPEG", exif=exif), "a"), oriented(stored, orientation))
    tiff = decode_image(as_pil(image, "TIFF", tiffinfo={274: orientation}), "a")
    np.testing.assert_array_equal(tiff, oriented(image, orientation))
    deep = image[..., 0].astype(np.uint16) * 257
    tiff = decode_image(as_pil(deep, "TIFF", tiffinfo={274: orientation}), "a")
    np.testing.assert_array_equal(tiff, oriented(image[..., 0], orientation))
    png = decode_image(as_pil(deep, "PNG", exif=exif), "a")
    np.testing.assert_array_equal(png, oriented(image[..., 0], orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_stay_as_they_are_stored_on_request(make_scene, tmp_path: Path, orientation: int) -> None:
    """As COLMAP reads them."""
    image = make_scene(48, 80)
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    jpeg = as_pil(image, "JPEG", exif=exif)
    stored = decode_image(as_pil(image, "JPEG"), "a")
    np.testing.assert_array_equal(decode_image(jpeg, "a", oriented=False), stored)
    (tmp_path / "a.jpg").write_bytes(jpeg)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", oriented=False), stored)
    deep = image[..., 0].astype(np.uint16) * 257
    for pixels, gray in ((image, image), (deep, image[..., 0])):
        tiff = as_pil(pixels, "TIFF", tiffinfo={274: orientation})
        np.testing.assert_array_equal(decode_image(tiff, "a", oriented=False), gray)
    png = as_pil(deep, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(png, "a", oriented=False), image[..., 0])


# ---- refusals -------------------------------------------------------------------------------------------------


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_missing_file_and_directory(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "no such file")
    refused(tmp_path, "is a directory")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    path.chmod(0)
    refused(path, "cannot be read")


def test_empty_file_and_text(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_text("this is not a picture\n" * 10)
    refused(path, "not an image")


@pytest.mark.parametrize("extension", [".jpg", ".png", ".tif", ".bmp", ".webp", ".ppm", ".gif", ".jp2", ".ras"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_truncated_files(tmp_path: Path, make_scene, extension: str, kept: float) -> None:
    data = encode(extension, make_scene(100, 120))
    path = tmp_path / f"a{extension}"
    path.write_bytes(data[: int(len(data) * kept)])
    with quiet_decoders():
        refused(path, "truncated|corrupt|not an image")


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_checked_to_its_end_marker(make_scene, progressive: bool) -> None:
    # A thumbnail brings an end marker of its own, which must not be taken for the picture's.
    thumbnail = encode(".jpg", make_scene(16, 16))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    plain = encode(".jpg", make_scene(100, 120), cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive))
    data = plain[:2] + segment + plain[2:]
    assert decode_image(data, "a").shape == (100, 120, 3)
    assert decode_image(data + b"\0\1 appended by a camera", "a").shape == (100, 120, 3)
    for cut in (len(data) - 2, len(data) - 40, len(data) // 2, len(segment) + 10):
        with pytest.raises(ImageError, match="truncated"):
            decode_image(data[:cut], "a")


def test_png_with_a_flipped_bit_is_corrupt(make_scene) -> None:
    data = bytearray(encode(".png", make_scene(100, 120)))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(ImageError, match="checksum"):
        decode_image(bytes(data), "a")


def test_tiff_with_header_first_and_strips_missing(make_scene) -> None:
    # Pages that come before their pixels lose nothing of the header when the file is cut.
    data = as_pil(make_scene(100, 120), "TIFF")
    assert decode_image(data, "a").shape == (100, 120, 3)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[: len(data) - 500], "a")


def test_size_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(".png", np.zeros((1, 1), np.uint8)))
    refused(path, "is 1 x 1 pixels, expected at least 8 x 8")
    path.write_bytes(png_bomb(30_000, 30_000))
    refused(path, "is 30000 x 30000 pixels, expected at most")
    data = encode(".png", np.zeros((16, 16), np.uint8))
    assert decode_image(data, "a").shape == (16, 16)
    with pytest.raises(ImageError, match="16 x 16"):
        decode_image(data, "a", max_pixels=255)
    with pytest.raises(ImageError, match="bytes"):
        read_image(_written(tmp_path / "b.bin", bytes(3000)), max_pixels=64)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BIG = 30_000


def jpeg_bomb() -> bytes:
    data = bytearray(encode(".jpg", np.zeros((16, 16), np.uint8)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", BIG, BIG)
    return bytes(data)


def tiff_bomb(end: str, big: bool) -> bytes:
    mark = b"II" if end == "<" else b"MM"
    if big:
        entries = [struct.pack(end + "HHQ", tag, 4, 1) + struct.pack(end + "II", BIG, 0) for tag in (256, 257)]
        return mark + struct.pack(end + "HHHQQ", 43, 8, 0, 16, 2) + b"".join(entries) + bytes(8)
    entries = [struct.pack(end + "HHII", tag, 4, 1, BIG) for tag in (256, 257)]
    return mark + struct.pack(end + "HIH", 42, 8, 2) + b"".join(entries) + bytes(4)


BOMBS = {
    "png": png_bomb(BIG, BIG),
    "jpeg": jpeg_bomb(),
    "tiff": tiff_bomb("<", False),
    "tiff big-endian": tiff_bomb(">", False),
    "bigtiff": tiff_bomb("<", True),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, BIG, -BIG, 1, 24, 0, 0, 0, 0, 0, 0),
    "bmp os/2": b"BM" + struct.pack("<IHHIIHHHH", 26, 0, 0, 26, 12, BIG, BIG, 1, 24),
    "gif": b"GIF89a" + struct.pack("<HHBBB", BIG, BIG, 0, 0, 0) + b";",
    "pgm": b"P5\n# a comment 8 8\n30000 30000\n255\n",
    "pfm": b"Pf\n30000 30000\n-1.0\n",
    "pam": b"P7\nWIDTH 30000\nHEIGHT 30000\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n",
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n",
    "sun": struct.pack(">8I", 0x59A66A95, BIG, BIG, 24, 0, 1, 0, 0),
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x16ihdr" + struct.pack(">IIHBBBB", BIG, BIG, 3, 7, 7, 0, 0),
    "j2k": b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, BIG, BIG, 0, 0),
    "webp lossy": b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + struct.pack("<HH", 16383, 16383),
    "webp lossless": b"RIFF\0\0\0\0WEBPVP8L" + bytes(5) + struct.pack("<I", 16382 | 16382 << 14),
    "webp extended": b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + (BIG - 1).to_bytes(3, "little") * 2,
    "avif": b"\0\0\0\x18ftypavif" + bytes(12) + b"\0\0\0\x14ispe" + struct.pack(">III", 0, BIG, BIG),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_header_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("the decoder was called")

    monkeypatch.setattr(cv2, "imdecode", decode)
    with pytest.raises(ImageError, match=r"is (30000 x 30000|16383 x 16383) pixels, expected at most"):
        decode_image(BOMBS[kind], "bomb")


@pytest.mark.parametrize(
    "extension", [".jpg", ".png", ".tif", ".bmp", ".webp", ".ppm", ".gif", ".jp2", ".ras", ".pam", ".hdr", ".avif"]
)
def test_header_size_is_what_opencv_decodes(make_scene, extension: str) -> None:
    image = make_scene(72, 104)
    try:
        data = encode(extension, image / np.float32(255) if extension == ".hdr" else image)
    except cv2.error:
        pytest.skip(f"this OpenCV writes no {extension}")
    assert header_size(data) == (104, 72)
    for cut in range(0, min(len(data), 400), 7):
        header_size(data[:cut])  # a header cut anywhere raises nothing


def test_broken_headers_never_raise_anything_but_image_errors(rng: np.random.Generator, make_scene) -> None:
    image = make_scene(32, 40)
    for extension in (".jpg", ".png", ".tif", ".bmp", ".webp", ".ppm", ".gif"):
        data = np.frombuffer(encode(extension, image), np.uint8)
        for _ in range(60):
            broken = data.copy()
            broken[rng.integers(0, min(200, len(data)), 4)] = rng.integers(0, 256, 4)
            try:
                with quiet_decoders():
                    decoded = decode_image(broken.tobytes(), "a", max_pixels=10**6)
            except ImageError:
                continue
            assert decoded.dtype == np.uint8


def test_nan_and_infinite_pixels() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        image = np.full((20, 30), 0.5, np.float32)
        image[3, 4] = bad
        with pytest.raises(ImageError, match="1 of 600 values that are NaN or infinite"):
            decode_image(encode(".tif", image), "a")


@pytest.mark.parametrize("code", [-4, -215])  # StsNoMem, StsAssert
def test_a_lack_of_memory_is_not_the_fault_of_the_image(monkeypatch: pytest.MonkeyPatch, make_scene, code: int) -> None:
    def fail(*_: object) -> None:
        raise cv2.error(f"OpenCV(5.0.0) alloc.cpp:73: error: ({code}:Failed) in function 'x'")

    data = encode(".png", make_scene(16, 16))
    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(
        cv2.error if code == -4 else ImageError, match="Failed" if code == -4 else "truncated or corrupt"
    ):
        decode_image(data, "a")


def test_quiet_decoders_keeps_stderr_clean(capfd: pytest.CaptureFixture[str], make_scene) -> None:
    data = bytearray(encode(".jpg", make_scene(100, 120)))
    noisy = bytes(data[:-2]) + b"\x12\x34\x56" * 5 + bytes(data[-2:])
    decode_image(noisy, "a")
    assert "Corrupt JPEG data" in capfd.readouterr().err  # libjpeg does speak, so the next line tests something
    with quiet_decoders():
        decode_image(noisy, "a")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_damage_that_a_decoder_conceals_is_told(capfd: pytest.CaptureFixture[str], make_scene) -> None:
    data = bytearray(encode(".jpg", make_scene(240, 320)))
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    with quiet_decoders() as damage:
        decode_image(bytes(data), "a")
    assert any("Corrupt JPEG data" in line for line in damage)
    with quiet_decoders() as damage:
        decode_image(encode(".jpg", make_scene(240, 320)), "a")
        os.write(2, b"libpng warning: iCCP: known incorrect sRGB profile\n")
    assert not damage
    assert capfd.readouterr().err == ""


def test_quiet_decoders_where_nothing_can_be_written(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with quiet_decoders() as damage:
        os.write(2, b"Corrupt JPEG data\n")
    assert not damage
    assert capfd.readouterr().err == ""


def test_quiet_decoders_with_the_calls_of_opencv_4(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [3]
    monkeypatch.setattr(cv2, "getLogLevel", lambda: levels[-1], raising=False)
    monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    with quiet_decoders():
        assert levels == [3, 0]
    assert levels == [3, 0, 3]
