"""Masks: images that say where keypoints may be, and which image has which."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontend.atomic import atomic_write
from frontend.errors import DataError, ImageError
from frontend.image import read_image

Mask = NDArray[np.uint8]
MaskOf = Callable[[Path], "Mask | None"]

RECORD = ".masks.json"
"""File in a folder of features: the masks that they were made with, image by image."""


def read_mask(path: Path, *, oriented: bool = True) -> Mask:
    """Where keypoints may be, (H, W) uint8: what is not black in an image.

    Args:
        path: of the image.
        oriented: see :func:`frontend.image.decode_image`; as the images that it is for are read.

    Raises:
        ImageError: it cannot be read, or is black everywhere.
    """
    # deeper pixels would be scaled by the largest: of labels in 16 bits the small ones would be black
    image = read_image(path, oriented=oriented, white=255)
    mask: Mask = image if image.ndim == 2 else image.max(axis=2)
    if not mask.any():
        raise ImageError(f"{path}: is black everywhere; expected a mask that is not where keypoints may be")
    return mask


@dataclass(frozen=True)
class Masks:
    """The masks of a folder of images.

    Attributes:
        mask_of: gives an image's mask, or None.
        said: what they are, in a word: a file's checksum, or "folder".
        files: of a folder of masks, the file of each image, by its name with ``/``, or None; None of one mask for all.
    """

    mask_of: MaskOf
    said: str
    files: Mapping[str, Path | None] | None = None

    @property
    def masked(self) -> int | None:
        """Images that have a file in a folder of masks; None of one mask for all."""
        return None if self.files is None else sum(file is not None for file in self.files.values())


def masks_of(images: Path, masks: Path, names: Sequence[Path], *, oriented: bool = True) -> Masks:
    """Which mask each image of a folder has.

    Args:
        images: folder of images.
        masks: a mask for all of them; or a folder that has one for ``a/b.jpg`` as ``a/b.jpg.png``, as COLMAP has it, or
            as ``a/b.png``. An image without one has keypoints anywhere.
        names: of the images, relative to their folder.
        oriented: see :func:`read_mask`.

    Raises:
        ImageError: the one mask cannot be read.
        DataError: there is no such file, or no image has a mask in the folder.
    """
    if masks.is_file():
        one = read_mask(masks, oriented=oriented)
        return Masks(lambda _: one, sha256(masks.read_bytes()).hexdigest())
    if not masks.is_dir():
        raise DataError(f"masks {masks} are not there; expected an image, or a folder of them")

    def file_of(name: Path) -> Path | None:
        choices = (masks / f"{name}.png", (masks / name).with_suffix(".png"))
        return next((file for file in choices if file.is_file()), None)

    files = {name.as_posix(): file_of(name) for name in names}
    if not any(files.values()):
        raise DataError(f"masks {masks} have none for any image of {images}; expected files such as {names[0]}.png")

    def mask_of(path: Path) -> Mask | None:
        file = files[path.relative_to(images).as_posix()]
        return None if file is None else read_mask(file, oriented=oriented)

    return Masks(mask_of, "folder", files)


def check_masks(out: Path, files: Mapping[str, Path | None], kept: Collection[str]) -> None:
    """Record which masks features are made with; of those that are there, compare with the record.

    Files whose size and time are as they were are taken to be the same, others are compared by their checksum.

    Args:
        out: folder of the features; exists.
        files: of the masks, see :attr:`Masks.files`.
        kept: names of the images whose features are there.

    Raises:
        DataError: features were made with another mask, or the record cannot be read.
    """
    record = out / RECORD
    try:
        before: Any = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{record} cannot be read: {error}") from None
    after = dict(before)
    for name, file in files.items():
        held = before.get(name) if name in kept else None
        after[name] = _entry(file, held)
        same = name in before and (held or {}).get("sha256") == (after[name] or {}).get("sha256")
        if name in kept and not same:
            raise DataError(f"{out} holds features of {name} made with another mask, or none (give another --out)")
    if after != before:
        atomic_write(record, json.dumps(after, indent=0) + "\n")


def _entry(file: Path | None, held: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What is recorded of a mask; its checksum is that held where size and time are as they were."""
    if file is None:
        return None
    stat = file.stat()
    entry = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if held is not None and entry == {key: held.get(key) for key in entry}:
        return dict(held)
    return {**entry, "sha256": sha256(file.read_bytes()).hexdigest()}
