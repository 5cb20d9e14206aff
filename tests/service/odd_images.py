"""Images that are unusual yet right, with the pictures that they show: depths, colour models, pages, orientations."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

ORIENTATIONS = range(1, 9)
"""Values of EXIF's orientation."""


@dataclass(frozen=True)
class Odd:
    """One such image.

    Attributes:
        name: what is odd.
        data: the file.
        picture: (H, W) or (H, W, 3) BGR uint8, what it shows.
        exact: whether a decoder gives that to the last bit, or to the loss of its format.
    """

    name: str
    data: bytes
    picture: np.ndarray
    exact: bool = True


def scene(rng: np.random.Generator, width: int = 120, height: int = 88) -> np.ndarray:
    """(H, W, 3) uint8 BGR: random rectangles, full of corners, no edge or colour twice the same."""
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(14):
        x, y = int(rng.integers(width - 12)), int(rng.integers(height - 12))
        w, h = rng.integers(10, 40, 2)
        image[y : y + int(h), x : x + int(w)] = rng.integers(0, 256, 3)
    return image


def encoded(suffix: str, image: np.ndarray, *parameters: int) -> bytes:
    """An image as OpenCV writes it."""
    return bytes(cv2.imencode(suffix, image, parameters)[1])


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def to_pillow(image: np.ndarray) -> Image.Image:
    """An image of (H, W, 3) BGR for Pillow."""
    return Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """A JPEG file with EXIF data (TIFF's layout) in its first segment."""
    body = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def orientation_exif(orientation: int, padding: int = 0) -> bytes:
    """EXIF data of one tag, the orientation, and ``padding`` bytes of nothing."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0) + bytes(padding)


def shown(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What an image of an orientation shows, by the EXIF standard's words: where row 0 and column 0 are."""
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: np.swapaxes(stored, 0, 1),
        6: np.swapaxes(stored[::-1], 0, 1),
        7: np.swapaxes(stored[::-1, ::-1], 0, 1),
        8: np.swapaxes(stored[:, ::-1], 0, 1),
    }[orientation]
    return np.ascontiguousarray(turned)


def odd_images(rng: np.random.Generator) -> Iterator[Odd]:
    """One image of each kind, of a random scene."""
    bgr = scene(rng)
    gray = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    pillow = to_pillow(bgr)
    deep = gray.astype(np.uint16) * 257
    deep[0, 0] = 65535  # 16 bits by its largest value
    narrow = gray.copy()
    narrow[0, 0] = 255
    yield Odd("16-bit gray PNG", encoded(".png", deep), narrow)
    deep_bgr, full = bgr.astype(np.uint16) * 257, bgr.copy()
    deep_bgr[0, 0], full[0, 0] = 65535, 255
    yield Odd("16-bit colour PNG", encoded(".png", deep_bgr), full)
    yield Odd("16-bit TIFF", encoded(".tiff", deep), narrow)
    yield Odd("float TIFF", encoded(".tiff", narrow.astype(np.float32) / 255), narrow)
    yield Odd("float PFM", encoded(".pfm", narrow.astype(np.float32) / 255), narrow)
    palette = pillow.quantize(32)
    shades = np.asarray(palette.convert("RGB"))[:, :, ::-1].copy()
    yield Odd("palette PNG", saved(palette, "PNG"), shades)
    yield Odd("palette GIF", saved(palette, "GIF"), shades)
    yield Odd("palette BMP", saved(palette, "BMP"), shades)
    bits = pillow.convert("1", dither=Image.Dither.NONE)
    black = np.asarray(bits).astype(np.uint8) * 255
    yield Odd("1-bit PNG", saved(bits, "PNG"), black)
    yield Odd("1-bit TIFF", saved(bits, "TIFF"), black)
    yield Odd("1-bit PBM", saved(bits, "PPM"), black)
    # the matte would draw edges of its own
    alpha = np.dstack([bgr, np.where(gray > 128, 255, 0).astype(np.uint8)])
    yield Odd("PNG with alpha", encoded(".png", alpha), bgr)
    yield Odd("gray PNG with alpha", saved(Image.fromarray(gray).convert("LA"), "PNG"), gray)
    other = to_pillow(scene(rng))
    yield Odd("TIFF of pages", saved(pillow, "TIFF", save_all=True, append_images=[other, other]), bgr)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Odd(f"TIFF by {compression}", saved(pillow, "TIFF", compression=compression), bgr)
    yield Odd("animated GIF", saved(palette, "GIF", save_all=True, append_images=[other.quantize(32)]), shades)
    frames = {"save_all": True, "append_images": [other, other], "duration": 40}
    yield Odd("APNG", saved(pillow, "PNG", **frames), bgr)
    yield Odd("animated WebP", saved(pillow, "WEBP", lossless=True, **frames), bgr)
    yield Odd("interlaced PNG", _interlaced(gray), gray)
    yield Odd("progressive JPEG", encoded(".jpg", bgr, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), bgr, exact=False)
    yield Odd("CMYK JPEG", saved(pillow.convert("CMYK"), "JPEG", quality=95), bgr, exact=False)
    jpeg = encoded(".jpg", bgr, cv2.IMWRITE_JPEG_QUALITY, 95)
    yield Odd("JPEG and bytes after its end", jpeg + bytes(500), bgr, exact=False)
    yield Odd("JPEG with 60 kB of EXIF", with_exif(jpeg, orientation_exif(1, 60_000)), bgr, exact=False)
    for orientation in ORIENTATIONS:
        data = with_exif(jpeg, orientation_exif(orientation))
        yield Odd(f"JPEG of orientation {orientation}", data, shown(bgr, orientation), exact=False)


def _interlaced(gray: np.ndarray) -> bytes:
    """A PNG in Adam7's seven passes."""
    raw = b""
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        raw += b"".join(b"\0" + row.tobytes() for row in gray[y0::dy, x0::dx])
    height, width = gray.shape
    return png(struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1), zlib.compress(raw))


def png(header: bytes, pixels: bytes, *further: bytes) -> bytes:
    """A PNG file of a header, compressed pixels, and chunks between."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(further) + chunk(b"IDAT", pixels) + chunk(b"IEND")


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
