"""Folders of images: what is in them, reading ahead of use, and outputs that say what they were made with."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from frontend import image as image_files
from frontend.atomic import atomic_write
from frontend.errors import DataError, FrontendError, ImageError, is_lack_of_memory
from frontend.image import is_image_name

SETTINGS = "settings.json"
"""Name of the file that records what a folder was made with."""

# what NumPy raises for a file that is empty, cut, or something else, and for what is missing in it
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def read_quietly(path: str | Path, *, white: int | None = None, oriented: bool = True) -> tuple[NDArray[np.uint8], str]:
    """An image, and what its decoder says of parts that are damaged; "" where none are.

    Args:
        path: of the image.
        white: see :func:`frontend.image.read_image`.
        oriented: the same.

    Raises:
        ImageError: the same.
    """
    with image_files.quiet_decoders() as damage:
        image = image_files.read_image(path, white=white, oriented=oriented)
    return image, damage[0] if damage else ""


def is_file_or_dangling(path: Path) -> bool:
    """Whether it is a file, or a link to nothing, which is to be reported as unreadable rather than passed over."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def find_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted, as paths relative to it; those in folders behind symbolic links, too.

    Raises:
        DataError: the folder is missing or has none.
    """
    if not folder.is_dir():
        raise DataError(f"image folder {folder} is {'a file' if folder.is_file() else 'missing'}")
    found = (path for path in _files_below(folder) if is_image_name(path) and path.is_file())
    images = sorted(path.relative_to(folder) for path in found if not path.name.startswith("."))
    if not images:
        raise DataError(f"image folder {folder} has no image")
    return images


def _files_below(folder: Path) -> Iterator[Path]:
    """What is in a folder and below, behind links too, though no folder twice: links may lead back.

    A folder that is found by its own name keeps that, whatever links lead to it.
    """
    seen: set[str] = set()
    tops = [os.fspath(folder)]
    while tops:
        links: list[str] = []
        for top in tops:
            for here, folders, files in os.walk(top):
                real = os.path.realpath(here)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                yield from (Path(here, name) for name in files)
                links += (path for name in folders if os.path.islink(path := os.path.join(here, name)))
        tops = sorted(links)


def output_path(out: Path, image: Path) -> Path:
    """The file that goes with an image, given by its path relative to the image folder.

    The image's own ending stays in the name: ``a.jpg`` and ``a.png`` of one folder have a file each.
    """
    return out / image.with_name(image.name + ".npz")


def read_ahead(
    read: Callable[[_Item], _Made],
    items: Iterable[_Item],
    ahead: int = 4,
    name: Callable[[_Item], str] = str,
) -> Iterator[tuple[_Item, _Made | FrontendError]]:
    """Make something of each item in a thread, a few ahead of their use.

    Args:
        read: what to do; its FrontendErrors are handed on, and a lack of memory as one; others are raised where the
            item is due.
        items: in order; taken as they are needed.
        ahead: items at most that are being made or wait.
        name: of an item, for the line about a lack of memory.

    Yields:
        Each item with what was made of it, in order.
    """

    def guarded(item: _Item) -> _Made | FrontendError:
        try:
            return read(item)
        except FrontendError as error:
            return error
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            return ImageError(f"{name(item)}: out of memory")

    rest = iter(items)
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = deque((item, pool.submit(guarded, item)) for item in islice(rest, ahead))
        try:
            while waiting:
                item, future = waiting.popleft()
                made = future.result()
                waiting.extend((following, pool.submit(guarded, following)) for following in islice(rest, 1))
                yield item, made
        finally:
            # whoever stops early does not wait for what nobody will use
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def reading_npz(path: Path, what: str) -> Iterator[Any]:
    """Open an NPZ file; give its arrays by name.

    Args:
        path: of the file.
        what: it is, for the error.

    Raises:
        DataError: it cannot be read, or what is asked of it within the block is not there.
    """
    try:
        # opened here: NumPy leaves a file open that turns out to be none of its own
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not hasattr(file, "files"):
                raise ValueError("it is no archive of arrays")
            with file:
                yield file
    except _UNREADABLE as error:
        raise DataError(f"{what} {path} cannot be read: {error}") from None


def check_settings(
    out: Path, settings: Mapping[str, object], what: str, unstated: Mapping[str, object] | None = None
) -> None:
    """Record what a folder is made with, or compare with the record that it has and that something was made by.

    Args:
        out: the folder; exists.
        settings: values that JSON has, by name.
        what: the folder holds, for the error.
        unstated: settings that folders of earlier versions do not state, and what they were.

    Raises:
        DataError: the folder was made with another value of one of them, or its record cannot be read.
    """
    path = out / SETTINGS
    if not path.is_file() or not _binds(out):
        atomic_write(path, json.dumps(dict(settings), indent=1) + "\n")
        return
    before = read_settings(out)
    for key, value in settings.items():
        held = before.get(key, (unstated or {}).get(key))
        if held != value:
            raise DataError(f"{out} holds {what} made with {key} = {held}; got {value} (give another --out)")


def _binds(folder: Path) -> bool:
    """Whether a folder's record is of anything: some other file is there, and not only half of one."""
    return any(not path.name.startswith(".") and path.name != SETTINGS and path.is_file() for path in folder.rglob("*"))


def recorded_settings(out: Path) -> dict[str, Any]:
    """What a folder's contents were made with, as far as it is recorded.

    Raises:
        DataError: the record cannot be read.
    """
    return read_settings(out) if (out / SETTINGS).is_file() and _binds(out) else {}


def read_settings(folder: Path) -> dict[str, Any]:
    """The record of :func:`check_settings`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = folder / SETTINGS
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return held if isinstance(held, dict) else {}
