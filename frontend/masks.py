"""Masks: images that say where keypoints may be, and which image has which."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frontend.errors import DataError, ImageError
from frontend.image import read_image

Mask = NDArray[np.uint8]
MaskOf = Callable[[Path], "Mask | None"]


def read_mask(path: Path) -> Mask:
    """Where keypoints may be, (H, W) uint8: what is not black in an image.

    Raises:
        ImageError: it cannot be read, or is black everywhere.
    """
    image = read_image(path)
    mask: Mask = image if image.ndim == 2 else image.max(axis=2)
    if not mask.any():
        raise ImageError(f"{path}: is black everywhere; expected a mask that is not where keypoints may be")
    return mask


def masks_of(images: Path, masks: Path) -> tuple[MaskOf, str]:
    """Which mask each image of a folder has.

    Args:
        images: folder of images.
        masks: a mask for all of them; or a folder that has one for ``a/b.jpg`` as ``a/b.jpg.png``, as COLMAP has it, or
            as ``a/b.png``. An image without one has keypoints anywhere.

    Returns:
        What gives an image's mask, or None; and what the masks are, in a word: a file's checksum, or "folder".

    Raises:
        ImageError: the one mask cannot be read.
        DataError: there is no such file.
    """
    if masks.is_file():
        one = read_mask(masks)
        return lambda _: one, sha256(masks.read_bytes()).hexdigest()
    if not masks.is_dir():
        raise DataError(f"masks {masks} are not there; expected an image, or a folder of them")

    def mask_of(path: Path) -> Mask | None:
        name = path.relative_to(images)
        for mask in (masks / f"{name}.png", (masks / name).with_suffix(".png")):
            if mask.is_file():
                return read_mask(mask)
        return None

    return mask_of, "folder"
