"""Where ``superpoint-match`` writes: checks before the work, pictures and JSON after it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.errors import ConfigError, is_lack_of_memory
from frontend.terminal import emit

if TYPE_CHECKING:
    from frontend.cli.report import Report

_SEPARATORS = ("/", os.sep)


def names_folder(name: str | None) -> bool:
    """Whether an output is a folder, by its trailing slash or since it is there."""
    return bool(name) and (str(name).endswith(_SEPARATORS) or os.path.isdir(str(name)))


def check_outputs(args: argparse.Namespace, inputs: list[str], many: bool) -> None:
    """Refuse outputs that cannot be written, before any work is done for them.

    Args:
        args: ``output``, ``warp`` and ``json``.
        inputs: all images, the first one first.
        many: whether pictures go to folders.

    Raises:
        ConfigError: with the file and the reason.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for option, name in (("-o", args.output), ("--warp", args.warp), ("--json", args.json)):
        if not name or (option == "--json" and name == "-"):
            continue
        outputs = [name]
        if many and option != "--json":
            _check_folder(option, name)
            outputs = list(picture_paths(name, inputs[1:], option == "--warp").values())
        elif names_folder(name):
            raise ConfigError(f"{name}: is a directory, expected a file name for {option}")
        elif option != "--json":
            _check_ending(name)
        _check_parent(outputs[0])
        for output in outputs:
            if os.path.realpath(output) in taken:
                raise ConfigError(f"{output}: {option} would overwrite an input or another output")
            taken.add(os.path.realpath(output))


def _check_folder(option: str, name: str) -> None:
    """A mistaken file name would become a folder of that name."""
    from frontend.image import is_image_name

    if not names_folder(name) and not os.path.exists(name) and is_image_name(Path(name)):
        raise ConfigError(
            f"{name}: is named like a file; {option} is a folder where many images are matched, expected one that "
            "is there, or a name that ends in '/'"
        )


def _check_parent(output: str) -> None:
    path = Path(os.path.realpath(output))
    if path.exists() and not path.is_file():
        return  # a device or a pipe is written to where it is
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise ConfigError(f"{output}: {parent} is a file, expected a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{output}: {parent} cannot be written, expected a folder that can")


def _check_ending(name: str) -> None:
    import numpy as np

    suffix = Path(name).suffix
    # OpenCV does not survive an ending that is no UTF-8; JPEG 2000 needs more than 8 pixels
    if not (suffix.isascii() and suffix and _encoded(suffix, np.zeros((64, 64, 3), np.uint8))):
        raise ConfigError(f"{name}: OpenCV writes no colour images with the ending '{suffix}'")


def picture_paths(folder: str, paths: Sequence[str], warped: bool = False) -> dict[str, str]:
    """Where the picture of each image goes: by its stem, with what it takes to tell two apart."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for path in paths:
        stem = Path(path).stem
        name, tries = stem, 1
        while name in used:
            tries += 1
            name = f"{stem}_{tries}"
        used.add(name)
        names[path] = str(Path(folder) / f"{name}{'_warp' if warped else ''}.png")
    return names


def write_matches(name: str, image0: Any, image1: Any, report: Report) -> str:
    """Draw the matches of a pair to a file.

    Returns:
        The file's name.

    Raises:
        ConfigError: the picture cannot be encoded or written.
    """
    from frontend.viz import draw_matches

    return _write_picture(name, draw_matches(image0, image1, report.result))


def write_overlay(name: str, image0: Any, image1: Any, report: Report) -> bool:
    """Lay image 0, warped by the homography, over image 1, and write that to a file.

    Returns:
        False where there is no homography, and so no picture.

    Raises:
        ConfigError: the picture cannot be encoded or written.
    """
    from frontend.types import Homography
    from frontend.viz import warp_overlay

    geometry = report.result.geometry
    if not isinstance(geometry, Homography) or geometry.H is None:
        return False
    _write_picture(name, warp_overlay(image0, image1, geometry.H))
    return True


def _encoded(suffix: str, picture: Any) -> bytes | None:
    """The file of a picture; None where OpenCV cannot make it, which it says in lines of its own."""
    import cv2

    from frontend.image import quiet_decoders

    with quiet_decoders():
        try:
            encoded, data = cv2.imencode(suffix, picture)
        except cv2.error as error:
            if is_lack_of_memory(error):
                raise
            return None
    return data.tobytes() if encoded else None


def _write_picture(name: str, picture: Any) -> str:
    data = _encoded(Path(name).suffix, picture)
    if data is None:
        raise ConfigError(f"{name}: OpenCV could not encode a picture of {picture.shape[1]} x {picture.shape[0]}")
    _save(name, [data])
    return name


def write_json(name: str, documents: Sequence[str], many: bool) -> list[str]:
    """Write documents of JSON.

    Args:
        name: of the file, or "-" for stdout.
        documents: JSON, each.
        many: whether they are a list, or the only one stands for itself.

    Returns:
        The name of the file, where there is one.

    Raises:
        ConfigError: it cannot be written.
    """
    if name == "-":
        for part in _parts(documents, many):
            emit(sys.stdout, part)
        return []
    _save(name, (part.encode() for part in _parts(documents, many)))
    return [name]


def _parts(documents: Sequence[str], many: bool) -> Iterator[str]:
    """The text in parts, as all of it at once would take as much memory again."""
    for i, document in enumerate(documents):
        yield ("[" if i == 0 else ", ") + document if many else document
    yield "]\n" if many else "\n"


def _save(name: str, parts: Sequence[bytes] | Iterator[bytes]) -> None:
    from frontend.atomic import atomic_path

    try:
        with atomic_path(name) as temporary, temporary.open("wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be written ({error.strerror or error})") from None
