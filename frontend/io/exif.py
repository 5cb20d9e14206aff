"""Focal lengths that image files state by EXIF, as COLMAP takes them: of JPEG, TIFF, PNG and WebP.

Tags and their meanings are those of EXIF 2.32; where its block lies is told by the specification of each format. Only
the few bytes on the way there are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frontend.errors import DataError
from frontend.progress import Progress

_FILM_DIAGONAL_MM = 43.27  # of 36 x 24, which FocalLengthIn35mmFilm is about (CIPA DCG-001)
_UNITS_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of FocalPlaneResolutionUnit: inch, cm; cameras also write mm and um

_FOCAL, _FILM, _RESOLUTION, _UNIT = 0x920A, 0xA405, 0xA20E, 0xA210
_SIDES = ((0xA002, 0xA003), (0x0100, 0x0101))  # as the camera took it; of a TIFF, its own
_EXIF = 0x8769  # where EXIF's own directory lies
_TAGS = frozenset({_FOCAL, _FILM, _RESOLUTION, _UNIT, *_SIDES[0], *_SIDES[1], _EXIF})
_MAGIC = b"Exif\0\0"

_Read = Callable[[int, int], bytes]
"""Bytes of a file: from where, and how many; fewer where it ends."""


@dataclass(frozen=True)
class Focal:
    """A focal length in one of three units, each of the image; the others are 0.

    Attributes:
        diagonals: in its diagonal, as what is said of film is.
        sides: in its longer side, as what is said of a sensor is, of which the camera took so many pixels.
        absolute: in pixels, where it is not known how many those were.
    """

    diagonals: float = 0.0
    sides: float = 0.0
    absolute: float = 0.0

    def pixels(self, width: int, height: int) -> float:
        """In pixels of an image of this size, whichever way it is turned."""
        return self.diagonals * math.hypot(width, height) + self.sides * max(width, height) + self.absolute


def read_focals(folder: Path, names: Sequence[str]) -> dict[str, Focal]:
    """Focal lengths of the images that state them.

    Args:
        folder: of the images.
        names: of the images, relative to it; they must all be there.

    Raises:
        DataError: the folder or an image is missing, or cannot be opened.
    """
    if not folder.is_dir():
        raise DataError(f"image folder {folder} is {'a file' if folder.is_file() else 'missing'}")
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise DataError(
            f"{folder} has no image '{missing}', of which there are features; "
            "expected the folder that they were made of"
        )
    found: dict[str, Focal] = {}
    with Progress(len(names), "EXIF", unit="image") as progress:
        for name in names:
            focal = focal_of(folder / name)
            if focal is not None:
                found[name] = focal
            progress.update()
    return found


def focal_of(path: Path) -> Focal | None:
    """The focal length that an image file states; None where it states none, or is damaged, or of another format.

    Raises:
        DataError: it cannot be opened or read.
    """
    try:
        with open(path, "rb", buffering=0) as file:

            def read(at: int, count: int) -> bytes:
                file.seek(at)
                return file.read(count)

            try:
                start = _exif_start(read)
                return None if start is None else _focal(_tags(read, start))
            except (struct.error, ValueError, OverflowError):
                return None
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}") from None


def _focal(tags: dict[int, float]) -> Focal | None:
    film, focal, resolution = (tags.get(tag, 0.0) for tag in (_FILM, _FOCAL, _RESOLUTION))
    if film > 0:
        return Focal(diagonals=film / _FILM_DIAGONAL_MM)
    unit = _UNITS_MM.get(int(tags.get(_UNIT, 0)))
    pixels = focal * resolution / unit if unit else 0.0
    if pixels <= 0:
        return None
    side = next((max(tags[x], tags[y]) for x, y in _SIDES if x in tags and y in tags), 0.0)
    return Focal(sides=pixels / side) if side > 0 else Focal(absolute=pixels)


def _tags(read: _Read, start: int) -> dict[int, float]:
    """Those of the numbers wanted that a block of EXIF holds, which is a TIFF file of its own."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(read(start, 4))
    if order is None:
        return {}
    (at,) = struct.unpack(f"{order}L", read(start + 4, 4))
    tags = _directory(read, start, at, order)
    if _EXIF in tags:
        tags.update(_directory(read, start, int(tags[_EXIF]), order))
    return tags


def _directory(read: _Read, start: int, at: int, order: str) -> dict[int, float]:
    (entries,) = struct.unpack(f"{order}H", read(start + at, 2))
    tags: dict[int, float] = {}
    for tag, kind, count, value in struct.iter_unpack(f"{order}HHL4s", read(start + at + 2, 12 * entries)):
        if tag not in _TAGS or count < 1:
            continue
        if kind == 3:
            (tags[tag],) = struct.unpack(f"{order}H", value[:2])
        elif kind == 4:
            (tags[tag],) = struct.unpack(f"{order}L", value)
        elif kind == 5:
            (where,) = struct.unpack(f"{order}L", value)
            above, below = struct.unpack(f"{order}LL", read(start + where, 8))
            if below:
                tags[tag] = above / below
    return tags


def _exif_start(read: _Read) -> int | None:
    """Where the block of EXIF begins; None where there is none."""
    head = read(0, 12)
    if head.startswith((b"II*\0", b"MM\0*")):
        return 0
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg_exif(read)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _chunk(read, 8, b"eXIf", ">L4s", 4)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        start = _chunk(read, 12, b"EXIF", "<4sL", 0)
        # some writers put JPEG's mark before it
        return start if start is None or read(start, 6) != _MAGIC else start + 6
    return None


def _jpeg_exif(read: _Read) -> int | None:
    at = 2
    while True:
        fill, marker, length = struct.unpack(">BBH", read(at, 4))
        if marker == 0xFF:  # any number of them may come before a marker
            at += 1
        elif fill != 0xFF or length < 2 or marker in (0xD9, 0xDA):
            return None
        elif marker == 0xE1 and read(at + 4, 6) == _MAGIC:
            return at + 10
        else:
            at += 2 + length


def _chunk(read: _Read, at: int, wanted: bytes, layout: str, after: int) -> int | None:
    """Where the content of a PNG's or WebP's chunk begins; ``after`` it are so many bytes, a WebP's are even."""
    while len(head := read(at, 8)) == 8:
        first, second = struct.unpack(layout, head)
        kind, length = (second, first) if isinstance(first, int) else (first, second)
        if kind == wanted:
            return at + 8
        at += 8 + length + (after or length % 2)
    return None
