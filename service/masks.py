"""Masks of requests and of sequences: where keypoints of an image may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from frontend.errors import ImageError
from frontend.types import BoolArray
from service.errors import BadImageError

ImageName = Literal["image", "right"]
"""A frame's images by the names of their files: the left one, or the only one, and the right one of a stereo pair."""


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask as a sequence keeps it: a bit for each pixel.

    Attributes:
        size: (width, height), pixels.
        bits: (ceil(width * height / 8),) uint8, row by row, 1 where keypoints may be.
    """

    size: tuple[int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: BoolArray) -> PackedMask:
        """A mask, (H, W) bool."""
        return cls(size_of(mask), np.packbits(mask))

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return self.bits.nbytes

    def unpacked(self) -> BoolArray:
        """The mask, (H, W) bool."""
        width, height = self.size
        return np.unpackbits(self.bits, count=width * height).reshape(height, width).view(np.bool_)


Encoded = tuple[str, bytes]
"""Name, for errors, and an image whose pixels that are not black are where keypoints may be."""
Mask = Encoded | PackedMask


def size_of(image: np.ndarray) -> tuple[int, int]:
    """(width, height) of an image, (H, W) or (H, W, 3)."""
    return image.shape[1], image.shape[0]


def mask_name(of: str) -> str:
    """What the mask of an image of a sequence is called.

    Args:
        of: the image's name, see :data:`ImageName`.
    """
    return "right mask" if of == "right" else "mask"


def check_size(name: str, size: tuple[int, int], expected: tuple[int, int], of: str) -> None:
    """Refuse a mask of another size than its image.

    Args:
        name: of the mask.
        size: (width, height) of the mask.
        expected: the image's.
        of: what it is compared with, for the error.

    Raises:
        BadImageError: they differ.
    """
    if size != expected:
        got, wanted = (f"{width} x {height}" for width, height in (size, expected))
        raise BadImageError(f"{name} is {got}; expected {wanted}, as {of}")


def mask_of(image: NDArray[np.uint8], name: str) -> BoolArray:
    """Where an image is not black, (H, W) bool.

    Args:
        image: (H, W) or (H, W, 3).
        name: for errors.

    Raises:
        ImageError: it is black everywhere.
    """
    mask: BoolArray = (image if image.ndim == 2 else image.max(axis=2)) != 0
    if not mask.any():
        raise ImageError(f"{name}: is black everywhere; expected a mask that is not where keypoints may be")
    return mask


def together(masks: Sequence[BoolArray]) -> BoolArray | None:
    """Where all of the masks of an image allow keypoints, (H, W) bool; None without any."""
    return None if not masks else np.logical_and.reduce(masks) if len(masks) > 1 else masks[0]
