"""Images in: decoding with refusals worth reading, gray conversion, resizing, and the way back to original pixels.

Coordinates: (0, 0) is the centre of the top-left pixel, so a resize by s maps x to (x + 0.5) * s - 0.5; that
equation lives in :func:`rescale_points` and nowhere else.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.errors import ConfigError, ImageError, ShapeError, is_lack_of_memory
from frontend.image_header import HeaderError, check_complete, header_size, is_heif, tiff_orientation
from frontend.types import Float32Array

Image = NDArray[Any]
Points = TypeVar("Points")
Pixels = TypeVar("Pixels", bound=NDArray[Any])

MAX_PIXELS = 64 * 1024 * 1024
"""Largest image accepted unless a caller says otherwise: 8192 x 8192 pixels."""

MIN_SIDE = 8
"""Smallest side accepted, in pixels: one cell of the network."""

_MAX_BYTES_PER_PIXEL = 32  # four channels of float64; a larger file cannot be one image within the pixel limit
_BIT_DEPTHS = (8, 10, 12, 14, 16)
_PART = 1 << 20  # bytes of a file read at a time
_STRIP = 1 << 16  # values brought to 8 bits at a time
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".avif", ".gif", ".jp2"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pam", ".pfm", ".hdr", ".pic", ".exr", ".ras", ".sr"),
)
_QUIETED = threading.RLock()  # held by the thread that keeps decoders quiet
_FLOAT_SLACK = 0.25  # what interpolation may overshoot [0, 1] by before the range is taken for a mistake


def read_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, white: int | None = None, oriented: bool = True
) -> NDArray[np.uint8]:
    """Read an image file in any format that OpenCV reads.

    Args:
        path: the file.
        max_pixels: refuse larger images, by their header, before memory is spent on them.
        white: of deep pixels, see :func:`to_uint8`.
        oriented: see :func:`decode_image`.

    Returns:
        See :func:`decode_image`.

    Raises:
        ImageError: the file is missing, a directory, unreadable, or not a usable image; one line with its name.
    """
    name = os.fspath(path)
    limit = max_pixels * _MAX_BYTES_PER_PIXEL
    try:
        with open(name, "rb") as file:
            data = _read_parts(file, limit)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a directory, expected an image file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{name}: cannot be read ({reason})") from None
    if len(data) > limit:
        raise ImageError(f"{name}: has more than {limit} bytes, too many for an image of {max_pixels} pixels")
    return decode_image(data, name, max_pixels=max_pixels, white=white, oriented=oriented)


def _read_parts(file: IO[bytes], limit: int) -> bytes:
    """All of a file, or what is just more than a limit: asked for at once, the limit's memory would be taken."""
    parts: list[bytes] = []
    left = limit + 1
    while left > 0 and (part := file.read(min(left, _PART))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def decode_image(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, white: int | None = None, oriented: bool = True
) -> NDArray[np.uint8]:
    """Decode an image held in memory.

    Alpha is dropped, not blended: a matte would draw edges that are not in the scene. Of a file with several pages the
    first is read. Deeper pixels become 8 bit as :func:`to_uint8` says.

    Args:
        data: the encoded file.
        name: what to call it in an error message.
        max_pixels: see :func:`read_image`.
        white: the same.
        oriented: whether EXIF (or TIFF) orientation is applied, as viewers do; else pixels stay as they are stored.
            Those of AVIF, which OpenCV does not turn, always do.

    Returns:
        (H, W) uint8 for a gray image, (H, W, 3) uint8 BGR for a colour one.

    Raises:
        ImageError: one line that names ``name`` and the reason.
    """
    if not data:
        raise ImageError(f"{name}: is empty (0 bytes)")
    size = header_size(data)
    if size is not None:
        _check_size(size, name, max_pixels)
    try:
        check_complete(data)
    except HeaderError as error:
        raise ImageError(f"{name}: {error}") from None
    # not IMREAD_UNCHANGED, which keeps alpha, and takes another way through some decoders
    how = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | (0 if oriented else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        if is_lack_of_memory(error):
            raise
        decoded = None
    if decoded is None:
        if is_heif(data):
            raise ImageError(f"{name}: is HEIC/HEIF, which OpenCV does not read; convert it to JPEG or PNG")
        if size is None:
            raise ImageError(f"{name}: is not an image in a format that OpenCV reads")
        raise ImageError(f"{name}: is truncated or corrupt (a header of {size[0]} x {size[1]} without its pixels)")
    # OpenCV's TIFF decoder orients whatever it is told
    image: Image = decoded if oriented else _stored(decoded, tiff_orientation(data))
    _check_size((image.shape[1], image.shape[0]), name, max_pixels)
    try:
        return to_uint8(image, white)
    except (ImageError, ShapeError) as error:
        raise ImageError(f"{name}: {error}") from None


def _stored(image: Image, orientation: int) -> Image:
    """Pixels as they were before they were oriented by one of EXIF's numbers, 1 to 8."""
    if orientation in (2, 3, 6, 7):  # columns from the right
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):  # rows from below
        image = image[::-1]
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    return np.ascontiguousarray(image)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: is {width} x {height} pixels, expected at least {MIN_SIDE} x {MIN_SIDE}")
    if width * height > max_pixels:
        raise ImageError(f"{name}: is {width} x {height} pixels, expected at most {max_pixels} pixels in all")


def _sink() -> IO[bytes]:
    """Takes what is written, to be read again; where nothing can be written anywhere, it is lost."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "r+b")


@contextmanager
def quiet_decoders() -> Iterator[list[str]]:
    """Keep OpenCV, libpng and libjpeg from writing to stderr while an image is decoded.

    For command lines, whose user should see one line for a bad file. It acts on the whole process (the C
    libraries write to file descriptor 2 directly), so a server with threads must not use it. Threads take turns:
    whoever left first would put back what another has turned away.

    Yields:
        A list, which at the end holds the lines by which libjpeg tells that pixels are damaged.
    """
    damage: list[str] = []
    with _QUIETED:
        logging = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # OpenCV 4, and 5
        level = logging.getLogLevel()
        logging.setLogLevel(0)  # silent
        try:
            saved = os.dup(2)
        except OSError:  # started with stderr closed: nothing to keep quiet
            saved = -1
        with _sink() as sink:
            try:
                if saved >= 0:
                    os.dup2(sink.fileno(), 2)
                yield damage
            finally:
                if saved >= 0:
                    os.dup2(saved, 2)
                    os.close(saved)
                logging.setLogLevel(level)
                sink.seek(0)
                damage += [line for line in sink.read().decode(errors="replace").splitlines() if "JPEG" in line]


def _full_scale(peak: float) -> float:
    """Largest value of the smallest of 8, 10, 12, 14, 16 bits that holds ``peak``."""
    return next((float(2**bits - 1) for bits in _BIT_DEPTHS if peak < 2**bits), peak)


def to_uint8(image: Image, white: int | None = None) -> NDArray[np.uint8]:
    """Bring pixels of any depth to 8 bit.

    - uint8: as they are.
    - other integers without negative values: full scale is that of the smallest of 8, 10, 12, 14 or 16 bits
      that holds the largest value, as cameras of 10 to 14 bits store their values in 16 unscaled and
      65535 as white would leave them black. Beyond 16 bits the largest value is white. Or ``white`` is, where given.
    - float: [0, 1] is full scale when nothing exceeds 1, else [0, 255] when nothing exceeds 255.
    - anything else (negative values, floats beyond 255): stretched linearly from its minimum to its maximum.

    Args:
        image: (H, W) or (H, W, C), numeric.
        white: value of white in integers beyond 8 bits; what is above is white, too.

    Returns:
        uint8 array of the same shape.

    Raises:
        ImageError: pixels that are NaN or infinite.
        ShapeError: pixels that are not real numbers.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind not in "uif":
        raise ShapeError(f"pixels are {image.dtype}, expected integers or floats")
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN and infinities propagate through min and max
        bad = int(np.count_nonzero(~np.isfinite(image)))
        raise ImageError(f"has {bad} of {image.size} values that are NaN or infinite, expected finite pixels")
    floating = image.dtype.kind == "f"
    if low < 0 or (floating and high > 255):
        offset, full = low, (high - low) or 1.0
    elif floating:
        offset, full = 0.0, 1.0 if high <= 1 else 255.0
    else:
        offset, full = 0.0, _full_scale(high) if white is None else float(white)
    found = np.empty(image.shape, np.uint8)
    rows = max(1, _STRIP // (image.size // len(image)))
    for top in range(0, len(image), rows):  # doubles take eight times the memory of what comes out
        scaled = (image[top : top + rows].astype(np.float64) - offset) * (255.0 / full)
        found[top : top + rows] = np.rint(np.minimum(scaled, 255.0, out=scaled), out=scaled)
    return found


def check_pixels(image: Image) -> None:
    """Refuse what has not the shape of an image, such as the None that OpenCV gives for a missing file.

    Raises:
        ShapeError: it is no array, or not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with a pixel at least.
    """
    if not isinstance(image, np.ndarray):
        raise ShapeError(f"image is a {type(image).__name__}, expected a NumPy array")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise ShapeError(f"image has shape {image.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")


def _luminance(pixels: Image) -> Image:
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY if pixels.shape[2] == 3 else cv2.COLOR_BGRA2GRAY)


def to_gray_bytes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luminance of an image of 8 bits, (H, W) uint8: 255 times what :func:`to_gray` gives; never the image itself.

    Raises:
        ShapeError: another shape or data type.
    """
    check_pixels(image)
    if image.dtype != np.uint8:
        raise ShapeError(f"image is of {image.dtype}, expected uint8")
    gray = np.asarray(_luminance(np.ascontiguousarray(image)), np.uint8)
    return gray.copy() if np.may_share_memory(gray, image) else gray


def to_gray(image: Image, white: int | None = None) -> Float32Array:
    """Luminance of an image, in [0, 1].

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA (alpha ignored); uint8, uint16 (full scale as
            in :func:`to_uint8`), or float in [0, 1]; a float overshoot of up to 0.25, as interpolation leaves,
            is clipped.
        white: see :func:`to_uint8`.

    Returns:
        (H, W) float32 in [0, 1], contiguous; 0.114 B + 0.587 G + 0.299 R for colour.

    Raises:
        ShapeError: another shape or data type.
        ImageError: float pixels that are not finite, or clearly not in [0, 1].
    """
    check_pixels(image)
    kind = image.dtype.newbyteorder("=")
    if kind.type not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise ShapeError(f"image is of {image.dtype}, expected uint8, uint16 or float")
    full = 1.0
    if kind.kind == "f":
        kind = np.dtype(np.float32)
    elif kind == np.uint8:
        full = 255.0
    else:
        # what 16 bits are filled to is told by the colours: alpha may fill them whatever the camera's depth
        colours = image[:, :, :3] if image.ndim == 3 else image
        full = _full_scale(float(colours.max())) if white is None else float(white)
    pixels = _luminance(np.ascontiguousarray(image, dtype=kind))
    if kind.kind != "f":
        gray = np.multiply(pixels, np.float32(1.0 / full), dtype=np.float32)
        return gray if white is None else np.minimum(gray, np.float32(1.0), out=gray)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("image has values that are NaN or infinite, expected finite pixels")
    if low < -_FLOAT_SLACK or high > 1.0 + _FLOAT_SLACK:
        raise ImageError(f"float image lies in [{low:.4g}, {high:.4g}], expected [0, 1]")
    return np.clip(pixels, 0.0, 1.0)


def resize_to(gray: Float32Array, longest_side: int) -> tuple[Float32Array, tuple[float, float]]:
    """Resize so that the longest side has exactly the given length, larger or smaller.

    Reduces by area averaging and enlarges by linear interpolation. The aspect ratio is kept but for rounding;
    a side never falls below 8 pixels.

    Args:
        gray: (H, W) float32.
        longest_side: pixels, >= 8.

    Returns:
        The resized image, (H', W') float32, and (W'/W, H'/H): the scale for :func:`rescale_points` from the
        given image to the resized one.

    Raises:
        ConfigError: ``longest_side`` below 8.
        ShapeError: not (H, W).
    """
    if gray.ndim != 2:
        raise ShapeError(f"image has shape {gray.shape}, expected (H, W)")
    if longest_side < MIN_SIDE:
        raise ConfigError(f"longest side is {longest_side}, expected at least {MIN_SIDE}")
    height, width = gray.shape
    ratio = longest_side / max(width, height)
    new_width = max(MIN_SIDE, round(width * ratio))
    new_height = max(MIN_SIDE, round(height * ratio))
    if (new_width, new_height) == (width, height):
        return gray, (1.0, 1.0)
    interpolation = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(gray, (new_width, new_height), interpolation=interpolation)
    return np.asarray(resized, np.float32), (new_width / width, new_height / height)


def rescale_points(xy: Points, scale_xy: tuple[float, float]) -> Points:
    """Carry points from an image to its resized version: (xy + 0.5) * s - 0.5, on pixel centres.

    Args:
        xy: (..., 2) float array or tensor, pixels of the image before.
        scale_xy: (s_x, s_y), size after divided by size before. For the way back pass the reciprocals.

    Returns:
        The points in pixels of the image after; same type, shape and data type.

    Raises:
        ShapeError: the last axis is not 2, or the points are integers.
    """
    points: Any = xy
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ShapeError(f"points have shape {tuple(points.shape)}, expected (..., 2)")
    if isinstance(points, np.ndarray):
        if points.dtype.kind != "f":
            raise ShapeError(f"points are {points.dtype}, expected floats")
        scale: Any = np.asarray(scale_xy, points.dtype)
    else:
        scale = points.new_tensor(scale_xy)  # a torch tensor, on its own device; torch is not imported here
    result: Points = (points + 0.5) * scale - 0.5
    return result


def pad_to_multiple(gray: Pixels, multiple: int = 8) -> Pixels:
    """Extend an image to the right and below until both sides are multiples, repeating its last pixels.

    Coordinates stay as they are, and a repeated edge makes no corner where a black one would.

    Args:
        gray: (H, W) float32 or uint8.
        multiple: pixels.

    Returns:
        (H', W') of the same type; the given array itself where nothing is to be added.

    Raises:
        ShapeError: not (H, W).
    """
    if gray.ndim != 2:
        raise ShapeError(f"image has shape {gray.shape}, expected (H, W)")
    height, width = gray.shape
    right, below = -width % multiple, -height % multiple
    if not right and not below:
        return gray
    padded: Any = cv2.copyMakeBorder(gray, 0, below, 0, right, cv2.BORDER_REPLICATE)
    result: Pixels = padded
    return result


def is_image_name(path: Path) -> bool:
    """Whether a file name ends like an image that OpenCV reads (for listing folders, not a promise)."""
    return path.suffix.lower() in _SUFFIXES
