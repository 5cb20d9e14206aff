"""Images on their way to the service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontend.errors import ConfigError, ImageError

Image = bytes | Path | NDArray[Any]
"""An encoded image, a file with one, or pixels: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16."""


def encoded(image: Image, quality: int | None = None, name: str = "image") -> bytes:
    """An image as the bytes of a file.

    Args:
        image: bytes and files are sent as they are.
        quality: of a JPEG, 1 to 100, for pixels of uint8; where None they become a PNG, which loses nothing.
        name: for errors.

    Raises:
        ImageError: a file cannot be read, or the pixels have another shape or type.
        ConfigError: the quality is out of its range.
    """
    if isinstance(image, bytes):
        if not image:
            raise ImageError(f"{name} is empty (0 bytes)")
        return image
    if isinstance(image, np.ndarray):
        return _from_pixels(image, quality, name)
    if isinstance(image, os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ImageError(f"{image}: cannot be read ({error.strerror})") from None
    raise ImageError(f"{name} is a {type(image).__name__}; expected bytes, a pathlib.Path or a NumPy array")


def encoded_mask(mask: Image) -> bytes:
    """A mask as the bytes of a file, never of a JPEG, which would smear its edges.

    Args:
        mask: an encoded image, a file with one, or pixels of any type, bool too: keypoints may be where they are not 0.

    Raises:
        ImageError: a file cannot be read, or the pixels have another shape.
    """
    return encoded((mask != 0) * np.uint8(255) if isinstance(mask, np.ndarray) else mask, name="mask")


def _from_pixels(pixels: NDArray[Any], quality: int | None, name: str) -> bytes:
    import cv2

    if quality is not None and not 1 <= quality <= 100:
        raise ConfigError(f"quality is {quality}; expected 1 to 100, or None for PNG")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)) or 0 in pixels.shape:
        raise ImageError(f"{name} has shape {pixels.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if pixels.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ImageError(f"{name} is of {pixels.dtype}; expected uint8 or uint16")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    if quality is None:
        # level 1: half the time of the default for a few percent more bytes
        suffix, settings = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
    elif pixels.dtype == np.uint8:
        suffix, settings = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality]
    else:
        raise ImageError(f"{name} is of {pixels.dtype} and the quality {quality}; expected uint8 for a JPEG")
    done, data = cv2.imencode(suffix, pixels, settings)
    if not done:
        raise ImageError(f"{name} of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be encoded as {suffix}")
    return bytes(data)
