"""What an image file says of itself before it is decoded: its size, and whether its bytes are all there.

Decoders allocate what a header asks for, and some hand back a half-gray picture for half a file. Both are
settled here on the raw bytes, by the layout that each format's specification gives. A format that is not
listed answers None: the decoder then decides alone.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

Size = tuple[int, int]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not a stuffed 0xFF, not a restart, not a fill byte
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNM_FIELD = re.compile(rb"(?:\s|#[^\n]*\n)*(\d+)")
_PAM_SIZE = re.compile(rb"^(WIDTH|HEIGHT)\s+(\d+)\s*$", re.MULTILINE)
_HDR_SIZE = re.compile(rb"\n\n([-+][XY]) (\d+) ([-+][XY]) (\d+)\n")  # before the empty line are comments
_JP2_SIZE = re.compile(b"ihdr")
_AVIF_SIZE = re.compile(b"ispe")
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
_MAX_SCANS = 50  # of a JPEG; encoders write ten or so, and each costs a pass over all pixels
_TIFF_TYPES = {1: "B", 3: "H", 4: "L", 16: "Q"}


class HeaderError(ValueError):
    """The bytes contradict the format they start as; the message is the reason, without a file name."""


def header_size(data: bytes) -> Size | None:
    """Read (width, height) in pixels from an encoded image without decoding it.

    Args:
        data: the whole file.

    Returns:
        (width, height) as stored, before any EXIF rotation; None where the format is not known here or the
        header is too short to say.
    """
    for known in _FORMATS:
        if known.matches(data):
            try:
                return known.size(data)
            except (struct.error, LookupError, ValueError, OverflowError):
                return None
    return None


def decoding_bytes(data: bytes) -> int:
    """The most bytes a pixel that OpenCV's decoder holds at once for an image of colours: pixels, and their copies.

    Measured with OpenCV 5: in most formats twice what a pixel of the file becomes.

    Args:
        data: the whole file.

    Returns:
        Of a format that is not known here the most of all.
    """
    for known in _FORMATS:
        if known.matches(data):
            return known.held(data) if callable(known.held) else known.held
    return _MOST_HELD


def is_heif(data: bytes) -> bool:
    """Whether a file starts as phones' images do, coded by HEVC: HEIC, or HEIF in general, which AVIF may be, too."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def check_complete(data: bytes) -> None:
    """Refuse a PNG, JPEG or TIFF file of which a part is missing or damaged.

    Args:
        data: the whole file. Bytes after its end (as some cameras append) are allowed.

    Raises:
        HeaderError: with the reason.
    """
    for known in _FORMATS:
        if known.matches(data):
            if known.check is not None:
                try:
                    known.check(data)
                except (struct.error, LookupError, OverflowError):
                    raise HeaderError("is truncated") from None
            return


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, offset of the content, its length) of each chunk; struct.error where the file ends early."""
    at = len(_PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, length
        at += 12 + length


def _png_size(data: bytes) -> Size:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _png_held(data: bytes) -> int:
    return 12 if data[24:25] == b"\x10" else 6


def _png_check(data: bytes) -> None:
    view = memoryview(data)
    for kind, start, length in _png_chunks(data):
        (expected,) = struct.unpack_from(">I", data, start + length)
        critical = not kind[0] & 0x20  # lower case: a decoder may ignore the chunk, and so its checksum
        if critical and zlib.crc32(view[start - 4 : start + length]) != expected:
            raise HeaderError(f"is corrupt (checksum of PNG chunk {kind.decode('latin-1')!r} is wrong)")
        if kind == b"IEND":
            return


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, offset after the marker) up to the end-of-image marker, entropy-coded data skipped."""
    at = 2
    while True:
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            raise HeaderError("is truncated (JPEG without an end-of-image marker)")
        marker, at = data[found.end() - 1], found.end()
        yield marker, at
        if marker == 0xD9:
            return
        if marker not in (0x01, 0xD8):  # those two have no length; after a scan's header its data is searched
            at += int(struct.unpack_from(">H", data, at)[0])


def _jpeg_size(data: bytes) -> Size:
    for marker, at in _jpeg_segments(data):
        if marker in _JPEG_SOF:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
    raise HeaderError("is a JPEG file without a frame")


def _jpeg_check(data: bytes) -> None:
    scans = 0
    for marker, _ in _jpeg_segments(data):
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise HeaderError(f"is a JPEG of more than {_MAX_SCANS} scans")


def _tiff_values(data: bytes) -> dict[int, tuple[int, ...]]:
    """Read the integer tags of the first page (size, depth, orientation, strips or tiles); TIFF and BigTIFF."""
    end = "<" if data[:2] == b"II" else ">"
    wanted = {256, 257, 258, 273, 274, 279, 324, 325}
    big = struct.unpack_from(end + "H", data, 2)[0] == 43
    offset_code, entry_size, inline = ("Q", 20, 8) if big else ("L", 12, 4)
    (at,) = struct.unpack_from(end + offset_code, data, 8 if big else 4)
    (entries,) = struct.unpack_from(end + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    tags: dict[int, tuple[int, ...]] = {}
    for i in range(min(entries, 4096)):
        tag, kind, count = struct.unpack_from(end + "HH" + offset_code, data, at + i * entry_size)
        code = _TIFF_TYPES.get(kind)
        if tag not in wanted or code is None:
            continue
        where = at + (i + 1) * entry_size - inline
        if count * struct.calcsize(end + code) > inline:
            (where,) = struct.unpack_from(end + offset_code, data, where)
        if where + count * struct.calcsize(end + code) > len(data):
            raise HeaderError("is truncated (a TIFF tag points past the end of the file)")
        values = struct.unpack_from(f"{end}{count}{code}", data, where)
        # of a tag that is there twice readers take the one or the other: the larger size has to pass
        tags[tag] = max(values, tags[tag]) if tag in tags else values
    return tags


def _tiff_size(data: bytes) -> Size:
    tags = _tiff_values(data)
    if 256 not in tags or 257 not in tags:
        raise HeaderError("is a TIFF file without a size")
    return tags[256][0], tags[257][0]


def _tiff_held(data: bytes) -> int:
    try:
        deepest = max(_tiff_values(data).get(258, (1,)))  # 1 bit is what a file has that does not say
    except (HeaderError, struct.error, LookupError, OverflowError, ValueError):
        return _MOST_HELD
    return 12 if deepest <= 16 else 24 if deepest <= 32 else _MOST_HELD


def tiff_orientation(data: bytes) -> int:
    """EXIF's number of how a TIFF file's pixels are stored, 1 to 8; 1, upright, where it does not say, or is none."""
    try:
        (value, *_) = _tiff_values(data).get(274, (1,)) if _is_tiff(data) else (1,)
    except (HeaderError, struct.error, LookupError, OverflowError):
        return 1
    return value if 1 <= value <= 8 else 1


def _tiff_check(data: bytes) -> None:
    tags = _tiff_values(data)
    for starts, counts in ((273, 279), (324, 325)):
        for start, count in zip(tags.get(starts, ()), tags.get(counts, ()), strict=False):
            if start + count > len(data):
                raise HeaderError("is truncated (TIFF pixel data lies past the end of the file)")


def _bmp_size(data: bytes) -> Size:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2 header: 16-bit sizes
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height means rows from top to bottom


def _webp_size(data: bytes) -> Size:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _gif_size(data: bytes) -> Size:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _pnm_size(data: bytes) -> Size:
    """PBM, PGM, PPM (P1 to P6) and PFM (Pf, PF): width and height follow the magic, comments between."""
    first = _PNM_FIELD.match(data, 2)
    second = _PNM_FIELD.match(data, first.end()) if first else None
    if first is None or second is None:
        raise HeaderError("is a PNM file without a size")
    return int(first[1]), int(second[1])


def _pam_size(data: bytes) -> Size:
    fields = {name: int(value) for name, value in _PAM_SIZE.findall(data[:4096])}
    if len(fields) != 2:
        raise HeaderError("is a PAM file without a size")
    return fields[b"WIDTH"], fields[b"HEIGHT"]


def _hdr_size(data: bytes) -> Size:
    found = _HDR_SIZE.search(data[:65536])
    if found is None:
        raise HeaderError("is a Radiance file without a size")
    sizes = {found[1][1:]: int(found[2]), found[3][1:]: int(found[4])}
    return sizes[b"X"], sizes[b"Y"]


def _sun_size(data: bytes) -> Size:
    width, height = struct.unpack_from(">II", data, 4)
    return width, height


def _jp2_size(data: bytes) -> Size:
    """The larger of the header box's size and the codestream's: decoders go by the latter, whatever the former says."""
    sizes = [struct.unpack_from(">II", data, at.end())[::-1] for at in _JP2_SIZE.finditer(data[:4096])]
    at = 0
    while at + 16 <= len(data):
        length, kind, long = struct.unpack_from(">I4sQ", data, at)
        head, length = (16, long) if length == 1 else (8, length)
        if kind == b"jp2c":
            sizes.append(_j2k_size(data, at + head))
        if length < head:  # 0: up to the end of the file
            break
        at += length
    if not sizes:
        raise HeaderError("is a JPEG 2000 file without a size")
    return _largest(sizes)


def _j2k_size(data: bytes, start: int = 0) -> Size:
    x1, y1, x0, y0 = struct.unpack_from(">IIII", data, start + 8)
    return x1 - x0, y1 - y0


def _avif_size(data: bytes) -> Size:
    # Several images may be declared (tiles, alpha, thumbnails): the largest counts.
    found = [struct.unpack_from(">II", data, at.end() + 4) for at in _AVIF_SIZE.finditer(data[:65536])]
    if not found:
        raise HeaderError("is an AVIF file without a size")
    return _largest(found)


def _largest(sizes: list[Size]) -> Size:
    return max(sizes, key=lambda size: size[0] * size[1])


_Matcher = Callable[[bytes], bool]


def _starts(*magics: bytes) -> _Matcher:
    return lambda data: data.startswith(magics)


class _Format(NamedTuple):
    """A format of image files.

    Attributes:
        matches: whether a file is of it.
        size: reads (width, height).
        check: refuses what is not whole; None leaves that to the decoder.
        held: see :func:`decoding_bytes`.
    """

    matches: _Matcher
    size: Callable[[bytes], Size]
    check: Callable[[bytes], None] | None = None
    held: int | Callable[[bytes], int] = 12


_MOST_HELD = 48  # three channels of float64, twice
_is_tiff = _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FORMATS = (
    _Format(_starts(_PNG), _png_size, _png_check, _png_held),
    _Format(_starts(b"\xff\xd8\xff"), _jpeg_size, _jpeg_check, 6),
    _Format(_is_tiff, _tiff_size, _tiff_check, _tiff_held),
    _Format(_starts(b"BM"), _bmp_size, None, 6),
    _Format(lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp_size, None, 8),
    _Format(_starts(b"GIF8"), _gif_size),
    _Format(_starts(b"Pf", b"PF"), _pnm_size, None, 24),
    _Format(_starts(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), _pnm_size),
    _Format(_starts(b"P7"), _pam_size),
    _Format(_starts(b"#?RADIANCE", b"#?RGBE"), _hdr_size, None, 24),
    _Format(_starts(b"\x59\xa6\x6a\x95"), _sun_size),
    _Format(_starts(b"\0\0\0\x0cjP  "), _jp2_size, None, 24),
    _Format(_starts(b"\xff\x4f\xff\x51"), _j2k_size, None, 24),
    _Format(lambda data: data[4:8] == b"ftyp", _avif_size, None, 24),
)
