"""Images that are broken on purpose: cut, flipped, bombs, lies in headers, and forms that carry them. All seeded."""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from odd_images import chunk, encoded, orientation_exif, png, saved, scene, to_pillow, with_exif

FORM = "multipart/form-data; boundary=b0undary"


@dataclass(frozen=True)
class Broken:
    """A body to post.

    Attributes:
        name: what is wrong with it.
        data: the body.
        kind: its Content-Type.
    """

    name: str
    data: bytes
    kind: str = "application/octet-stream"


Maker = Callable[[random.Random], Broken]


_Files = dict[str, bytes]


@functools.cache
def _files(seed: int) -> _Files:
    """A small sound image in each format."""
    rng = np.random.default_rng(seed)
    bgr = scene(rng)
    pillow = to_pillow(bgr)
    files = {
        suffix: encoded(f".{suffix}", bgr)
        for suffix in ("jpg", "png", "tiff", "bmp", "webp", "gif", "ppm", "pam", "jp2", "avif", "sr")
    }
    files["pfm"] = encoded(".pfm", bgr.astype(np.float32) / 255)
    files["hdr"] = encoded(".hdr", bgr.astype(np.float32) / 255)
    files["progressive jpg"] = encoded(".jpg", bgr, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    files["lossless webp"] = encoded(".webp", bgr, cv2.IMWRITE_WEBP_QUALITY, 101)
    files["lzw tiff"] = saved(pillow, "TIFF", compression="tiff_lzw")
    files["deflated tiff"] = saved(pillow, "TIFF", compression="tiff_adobe_deflate")
    files["animated gif"] = saved(pillow, "GIF", save_all=True, append_images=[to_pillow(scene(rng))])
    files["animated webp"] = saved(pillow, "WEBP", save_all=True, append_images=[to_pillow(scene(rng))])
    files["apng"] = saved(pillow, "PNG", save_all=True, append_images=[to_pillow(scene(rng))])
    files["cmyk jpg"] = saved(pillow.convert("CMYK"), "JPEG")
    files["palette png"] = saved(pillow.quantize(16), "PNG")
    files["pages tiff"] = saved(pillow, "TIFF", save_all=True, append_images=[to_pillow(scene(rng))])
    return files


def _cut(chance: random.Random) -> Broken:
    name, data = chance.choice(list(_files(chance.randrange(4)).items()))
    # the beginning is where headers are, the end where checks forget to look
    place = chance.choice((chance.randrange(0, 64), chance.randrange(len(data)), len(data) - chance.randrange(1, 40)))
    return Broken(f"{name} cut at {place}", data[: max(place, 0)])


def _flipped(chance: random.Random) -> Broken:
    name, data = chance.choice(list(_files(chance.randrange(4)).items()))
    changed = bytearray(data)
    span = chance.choice((40, 200, len(data)))
    for _ in range(chance.choice((1, 1, 3, 20))):
        at = chance.randrange(min(span, len(data)))
        changed[at] ^= 1 << chance.randrange(8)
    return Broken(f"{name} with bits flipped", bytes(changed))


def _spliced(chance: random.Random) -> Broken:
    (first, a), (second, b) = chance.sample(list(_files(chance.randrange(4)).items()), 2)
    if chance.random() < 0.5:
        return Broken(f"magic of {first} on {second}", a[: chance.choice((2, 4, 8, 12, 30))] + b)
    at = chance.randrange(len(a))
    return Broken(f"{first} that goes on as {second}", a[:at] + b[chance.randrange(len(b)) :])


def _overwritten(chance: random.Random) -> Broken:
    name, data = chance.choice(list(_files(chance.randrange(4)).items()))
    at, width = chance.randrange(min(len(data) - 8, chance.choice((60, 300)))), chance.choice((1, 2, 4))
    value = chance.choice(
        (b"\xff" * width, b"\0" * width, b"\x7f" + b"\xff" * (width - 1), b"\x80" + b"\0" * (width - 1))
    )
    return Broken(f"{name} with {value.hex()} at {at}", data[:at] + value + data[at + width :])


def _noise(chance: random.Random) -> Broken:
    magics = (
        b"",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"GIF89a",
        b"BM",
        b"P6\n",
        b"RIFF\x24\0\0\0WEBP",
    )
    data = chance.choice(magics) + chance.randbytes(chance.choice((0, 1, 7, 100, 5000, 100_000)))
    return Broken(f"{len(data)} bytes of noise", data)


def _text(chance: random.Random) -> Broken:
    entities = "".join(f"<!ENTITY e{i} '{f'&e{i - 1};' * 10}'>" for i in range(1, 10))
    texts = {
        "svg with entities": f"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY e0 'x'>{entities}]><svg>&e9;</svg>",
        "svg with a file": "<!DOCTYPE svg [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><svg><text>&f;</text></svg>",
        "svg with a link": "<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:1/a.png'/></svg>",
        "page": "<html><img src=x onerror=alert(1)></html>",
        "postscript": "%!PS-Adobe-3.0\n{} loop\n",
        "object of json": '{"image": "' + "A" * 1000 + '"}',
        "data url": "data:image/png;base64,iVBORw0KGgo=",
        "zeros": "\0" * 3000,
    }
    name = chance.choice(list(texts))
    return Broken(name, texts[name].encode())


def _png_bomb(chance: random.Random) -> Broken:
    side = chance.choice((20_000, 60_000, 2**31 - 1))
    header = struct.pack(">IIBBBBB", side, side, chance.choice((1, 8, 16)), 0, 0, 0, 0)
    small = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    return chance.choice(
        (
            lambda: Broken(f"PNG of {side} x {side}", png(header, zlib.compress(bytes(10_000_000), 9))),
            lambda: Broken("PNG with more pixels than its size", png(small, zlib.compress(bytes(30_000_000), 9))),
            lambda: Broken("PNG of few pixels", png(small, zlib.compress(bytes(64)))),
            lambda: Broken("PNG with a bomb as text", _png_with(small, b"zTXt", b"a\0\0")),
            lambda: Broken("PNG with a bomb as profile", _png_with(small, b"iCCP", b"a\0\0")),
            lambda: Broken("PNG of 0 x 0", png(struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0), b"")),
            lambda: Broken("PNG with 100,000 chunks", png(small, b"", *[chunk(b"teSt")] * 100_000)),
        )
    )()


def _png_with(header: bytes, kind: bytes, head: bytes) -> bytes:
    pixels = zlib.compress(bytes(65 * 64))
    return png(header, pixels, chunk(kind, head + zlib.compress(bytes(50_000_000), 9)))


def _tiff(entries: dict[int, tuple[int, int, int]], *, tail: bytes = b"", following: int = 0) -> bytes:
    """A TIFF file of one directory: tag -> (type, count, value)."""
    body = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + struct.pack("<I", following) + tail


def _tiff_lie(chance: random.Random) -> Broken:
    sane = {
        256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, 200), 277: (3, 1, 1), 278: (4, 1, 64), 279: (4, 1, 4096),
    }  # fmt: skip
    tiled = {**sane, 322: (4, 1, 2**31 - 16), 323: (4, 1, 2**31 - 16), 324: (4, 1, 200), 325: (4, 1, 4096)}
    deflated = {**sane, 256: (4, 1, 60_000), 257: (4, 1, 60_000), 278: (4, 1, 60_000), 259: (3, 1, 8)}
    changes: dict[str, dict[int, tuple[int, int, int]]] = {
        "of 60,000 x 60,000": {**sane, 256: (4, 1, 60_000), 257: (4, 1, 60_000)},
        "deflated, of 60,000 x 60,000": deflated,
        "with tiles of 2 billion pixels": tiled,
        "with 65,535 samples": {**sane, 277: (3, 1, 65_535)},
        "with 2,000 samples of 2,000 x 2,000": {**sane, 256: (4, 1, 2000), 257: (4, 1, 2000), 277: (3, 1, 2000)},
        "of 64 bits": {**sane, 258: (3, 1, 64)},
        "of 3 bits": {**sane, 258: (3, 1, 3)},
        "of an unknown compression": {**sane, 259: (3, 1, 34_999)},
        "with strips of 4 billion rows": {**sane, 278: (4, 1, 2**32 - 1)},
        "with a million strips": {**sane, 273: (4, 1_000_000, 8), 279: (4, 1_000_000, 8)},
        "without strips": {tag: value for tag, value in sane.items() if tag not in (273, 279)},
        "whose directory follows itself": sane,
        "of JPEG without tables": {**sane, 259: (3, 1, 7)},
    }
    name = chance.choice(list(changes))
    following = 8 if "follows" in name else 0
    tail = bytes(200) + zlib.compress(bytes(3_600_000), 9) + bytes(4096)
    return Broken(f"TIFF {name}", _tiff(changes[name], tail=tail, following=following))


def _not_finite(chance: random.Random) -> Broken:
    rng = np.random.default_rng(chance.randrange(2**32))
    image = rng.random((48, 64)).astype(np.float32)
    value = chance.choice((np.nan, np.inf, -np.inf, 3e38))
    image[tuple(rng.integers(0, 48, 2))] = value
    image = chance.choice((image, np.full_like(image, value)))
    suffix = chance.choice((".tiff", ".pfm"))
    return Broken(f"{suffix} with {value}", encoded(suffix, image))


def _lie(chance: random.Random) -> Broken:
    """Sizes in headers that are not those of the pixels."""
    files = _files(chance.randrange(4))
    side = chance.choice((0, 1, 7, 3000, 30_000, 65_535))
    two, four = struct.pack("<HH", side, side), struct.pack("<II", side, side)
    big = struct.pack(">II", side, side)
    jpg, gif, webp, jp2, avif = (files[kind] for kind in ("jpg", "gif", "animated webp", "jp2", "avif"))
    frame, image, siz, ispe = (
        jpg.index(b"\xff\xc0"), gif.index(b"\x2c"), jp2.index(b"\xff\x51"), avif.index(b"ispe")
    )  # fmt: skip
    box = jp2.index(b"ihdr")
    lies = {
        "JPEG": jpg[: frame + 5] + struct.pack(">HH", side, side) + jpg[frame + 9 :],
        "JPEG with two frames": jpg[:frame] + jpg[frame : frame + 19] * 2 + jpg[frame + 19 :],
        "GIF screen": gif[:6] + two + gif[10:],
        "GIF frame": gif[: image + 5] + two + gif[image + 9 :],
        "BMP": files["bmp"][:18] + four + files["bmp"][26:],
        "BMP upside down": files["bmp"][:22] + struct.pack("<i", -(2**31)) + files["bmp"][26:],
        "WebP canvas": webp[:24] + struct.pack("<I", side)[:3] * 2 + webp[30:],
        "JPEG 2000 box": jp2[: box + 4] + big + jp2[box + 12 :],
        "JPEG 2000 stream": jp2[: siz + 6] + big + jp2[siz + 14 :],
        "JPEG 2000 tiles": jp2[: siz + 22] + struct.pack(">II", 1, 1) + jp2[siz + 30 :],
        "AVIF": avif[: ispe + 8] + big + avif[ispe + 16 :],
        "PPM": b"P6\n%d %d\n255\n" % (side, side) + bytes(300),
        "PGM in text": b"P2\n%d %d\n255\n" % (side, side) + b"1 " * 300,
        "PPM of no depth": b"P6\n64 64\n0\n" + bytes(64 * 64 * 3),
        "PPM of huge numbers": b"P6\n" + b"9" * 400 + b" 64\n255\n",
        "PAM": b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 70000\nMAXVAL 255\nENDHDR\n" % (side, side) + bytes(300),
        "HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (side, side) + bytes(300),
        "HDR of one axis": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-X %d +X %d\n" % (side, side) + bytes(300),
        "BigTIFF with its tags nowhere": b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 1 - side),
        "Sun raster": files["sr"][:4] + big + files["sr"][12:],
    }
    name = chance.choice(list(lies))
    return Broken(f"{name} of {side}", lies[name])


def _exif(chance: random.Random) -> Broken:
    jpeg = _files(chance.randrange(4))["jpg"]
    exif = orientation_exif(chance.choice((0, 9, 255, 65_535)), 60_000)
    if chance.random() < 0.5:
        changed = bytearray(exif)
        changed[chance.randrange(26)] = chance.randrange(256)
        exif = bytes(changed)
    return Broken("JPEG with EXIF that is wrong", with_exif(jpeg, exif))


def _scans(chance: random.Random) -> Broken:
    """A progressive JPEG whose last scan comes again and again: each costs a pass over all pixels."""
    side, again = chance.choice(((64, 20_000), (1500, 2000)))
    jpeg = encoded(".jpg", np.zeros((side, side, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = jpeg.rindex(b"\xff\xda")
    return Broken(f"JPEG of {again} scans", jpeg[:last] + jpeg[last:-2] * again + b"\xff\xd9")


def _form(chance: random.Random) -> Broken:
    jpeg = _files(chance.randrange(4))["jpg"]
    part = b'--b0undary\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    whole = part + b"Content-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n--b0undary--\r\n"
    forms = {
        "cut": whole[: chance.randrange(len(whole))],
        "without its end": whole[:-16],
        "of another boundary": whole.replace(b"b0undary", b"boundary"),
        "without a name": whole.replace(b' name="image";', b""),
        "with two images": whole[:-14] + b"\r\n" + whole,
        "of text": whole.replace(b' filename="a.jpg"', b""),
        "with a long name": whole.replace(b"a.jpg", b"a" * 20_000),
        "with a path": whole.replace(b"a.jpg", b"../../etc/passwd\0.jpg"),
        "with a long header": part + b"X-Header: " + b"a" * 100_000 + b"\r\n\r\n" + jpeg + b"\r\n--b0undary--\r\n",
        "of many headers": part + b"X-Header: a\r\n" * 5000 + b"\r\n" + jpeg + b"\r\n--b0undary--\r\n",
        "of many fields": b'--b0undary\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 2000 + whole,
        "of line feeds": whole.replace(b"\r\n", b"\n"),
        "of boundaries": b"--b0undary\r\n" * 5000,
        "empty": b"",
    }
    name = chance.choice(list(forms))
    kind = chance.choice((FORM, FORM, FORM, "multipart/form-data", "multipart/form-data; boundary=" + "b" * 300))
    return Broken(f"form {name}", forms[name], kind)


_MAKERS: tuple[tuple[Maker, int], ...] = (
    (_cut, 5), (_flipped, 5), (_spliced, 2), (_overwritten, 4), (_noise, 1), (_text, 1), (_png_bomb, 1),
    (_tiff_lie, 2), (_not_finite, 1), (_lie, 4), (_exif, 1), (_scans, 1), (_form, 2),
)  # fmt: skip


def broken_images(count: int, seed: int = 0) -> Iterator[Broken]:
    """So many of them, of all kinds in turn; the same for the same seed.

    Args:
        count: how many.
        seed: of what is random in them.
    """
    turns = [maker for maker, weight in _MAKERS for _ in range(weight)]
    chance = random.Random(seed)
    chance.shuffle(turns)
    for index in range(count):
        yield turns[index % len(turns)](random.Random(seed * 1_000_003 + index))
