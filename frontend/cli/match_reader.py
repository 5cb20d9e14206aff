"""Images of ``superpoint-match``: read, and of many the next one while one is matched."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from frontend.errors import FrontendError, ImageError

_AHEAD = 1  # the next is decoded while one is matched; more would only take memory


class Candidate(NamedTuple):
    """An image that is matched against image 0, as far as it could be read.

    Attributes:
        damage: what its decoder says of parts that are damaged; else empty.
        image: (H, W) or (H, W, 3) uint8; None where there is a problem.
        mask: (H, W) uint8, not 0 where keypoints may be; None without.
        read_ms: milliseconds that reading the image took.
        problem: why it, or its mask, cannot be used; None where both can.
    """

    damage: str
    image: Any = None
    mask: Any = None
    read_ms: float = 0.0
    problem: FrontendError | None = None


def read_mask_for(image: Any, name: str, path: str | None) -> Any:
    """The mask of an image, None without one.

    Raises:
        ImageError: it cannot be read, or has another size than the image.
    """
    if path is None:
        return None
    from frontend.masks import read_mask

    mask = read_mask(Path(path))
    if mask.shape != image.shape[:2]:
        given, expected = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, image.shape))
        raise ImageError(f"{name}: mask {path} is {given}; expected {expected}, as the image")
    return mask


def read_candidate(path: str, white: int | None, mask: str | None) -> Candidate:
    """Read an image and its mask; what is wrong with them is in what comes back."""
    from frontend.folders import read_quietly

    damage, began = "", time.perf_counter()
    try:
        image, damage = read_quietly(path, white=white)
        read_ms = (time.perf_counter() - began) * 1e3
        return Candidate(damage, image, read_mask_for(image, path, mask), read_ms)
    except FrontendError as error:
        return Candidate(damage, problem=error)


def read_candidates(
    paths: Sequence[str], white: int | None, mask: str | None
) -> Generator[tuple[str, Candidate | None], None, None]:
    """Read images in a thread, each while the one before is matched.

    Args:
        paths: of the images.
        white: see :func:`frontend.image.read_image`.
        mask: of each of them; None without.

    Yields:
        Each path with its image, in order; None where it is to be read when it is due: a pipe, which may keep its
        reader waiting, and that Ctrl-C ends in the main thread alone; or what is too large beside the one before it.
    """
    from frontend.folders import read_ahead

    def read(path: str) -> Candidate | None:
        return read_candidate(path, white, mask) if os.path.isfile(path) else None

    for path, found in read_ahead(read, paths, ahead=_AHEAD):
        yield path, found if isinstance(found, Candidate) else None
