"""Lists of a data set's images and their stamps.

``data.csv`` is EuRoC's, ``rgb.txt`` TUM's, ``times.txt`` that of KITTI's odometry, ``timestamps.txt`` of its raw data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path

from frontend.errors import DataError
from frontend.folders import is_file_or_dangling
from frontend.image import is_image_name

FARTHEST_NS = 2**63 - 1
"""Largest stamp, nanoseconds."""

KITTI_RAW = "timestamps.txt"
"""Name of the list of a camera in KITTI's raw data."""

_EUROC, _TUM, _KITTI = "data.csv", "rgb.txt", "times.txt"
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_Rows = list[tuple[Path, int | None]]


def images_in(folder: Path) -> list[Path]:
    """Images of a folder, by the numbers in their names; a link to nothing is one, too, that cannot be read."""
    found = (path for path in folder.iterdir() if is_image_name(path) and not path.name.startswith("."))
    return sorted((path for path in found if is_file_or_dangling(path)), key=_natural)


def _natural(path: Path) -> tuple[list[str | int], str]:
    """``img2`` before ``img10``."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)], path.name


def find_list(folder: Path) -> Path | None:
    """The list that has the stamps of a folder's images, or of those of a camera below it.

    Where the folder is that of the images, the list is above it, whatever name the folder is given by: ``.``, or a
    link.
    """
    homes = [Path(name) for name in dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder)))]
    places = [folder / _EUROC, folder / "cam0" / _EUROC, folder / "mav0" / "cam0" / _EUROC, folder / _TUM]
    places += [home.parent / _EUROC for home in homes if home.name == "data"]
    places += [home.parent / _TUM for home in homes if home.name == "rgb"]
    cameras = [folder, folder / "image_00", folder / "image_02"]
    cameras += [home.parent for home in homes if home.name == "data"]
    places += [camera / KITTI_RAW for camera in cameras if (camera / "data").is_dir()]
    places.append(folder / _KITTI)
    places += [home.parent / _KITTI for home in homes if home.name.startswith("image_")]
    return next((place for place in places if place.is_file()), None)


def read_list(listed: Path, folder: Path, stamped: bool = True) -> tuple[Path, _Rows]:
    """The images that a list names, and their stamps.

    Args:
        listed: as :func:`find_list` gives it.
        folder: that it was found for.
        stamped: whether stamps are read; without, it does not matter what they are.

    Returns:
        The folder of the images; each with its stamp, nanoseconds, or None where these are not read.

    Raises:
        DataError: the list cannot be read, or is not as it should be.
    """
    if listed.name == KITTI_RAW:
        return _by_lines(listed, [listed.parent / "data"], _nanoseconds_of_date if stamped else None)
    if listed.name == _KITTI:
        candidates = [folder] if listed.parent != folder else [folder / "image_0", folder / "image_2", folder]
        return _by_lines(listed, candidates, partial(_nanoseconds, unit=10**9) if stamped else None)
    if listed.name == _EUROC:
        home, unit = listed.parent / "data", 1
        rows = _rows(listed, ",", "nanoseconds, a comma and a file name")
    else:
        home, unit = listed.parent, 10**9
        rows = _rows(listed, None, "seconds, a space and a file name")
    return home, [(home / name, _nanoseconds(listed, stamp, unit) if stamped else None) for stamp, name in rows]


def _by_lines(listed: Path, candidates: list[Path], stamp_of: Callable[[Path, str], int] | None) -> tuple[Path, _Rows]:
    """Images of a list that has a line for each, as KITTI's: see :func:`read_list`.

    Where there are as many lines as images they go by their order, whatever number names begin with; where images are
    missing, by their names, which are the lines' numbers, from 0.

    Args:
        listed: the list.
        candidates: folders, the first with an image is taken; the last exists.
        stamp_of: the nanoseconds of a line of the list; None where stamps are not read.
    """
    images, paths = candidates[-1], list[Path]()
    for candidate in candidates:
        if candidate.is_dir() and not paths:
            images, paths = candidate, images_in(candidate)
    if stamp_of is None:
        return images, [(path, None) for path in paths]
    stamps = [stamp_of(listed, line) for line in _lines(listed)]
    if len(stamps) == len(paths):
        return images, list(zip(paths, stamps, strict=True))
    lines = [int(path.stem) if path.stem.isdecimal() else len(stamps) for path in paths]
    if not paths or max(lines) >= len(stamps):  # they are not named by their lines
        raise DataError(f"{listed}: has {len(stamps)} stamps for {len(paths)} images in {images}; expected as many")
    return images, [(path, stamps[line]) for path, line in zip(paths, lines, strict=True)]


def _lines(listed: Path) -> list[str]:
    """Lines that say something."""
    try:
        text = listed.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{listed}: cannot be read ({error.strerror})") from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _rows(listed: Path, separator: str | None, expected: str) -> list[tuple[str, str]]:
    """Stamps and names, as they stand there."""
    rows = []
    for number, line in enumerate(_lines(listed)):
        stamp, *rest = (part.strip() for part in line.split(separator, 1))
        if number == 0 and "stamp" in stamp:
            continue  # a heading
        if not rest or not rest[0]:
            raise DataError(f"{listed}: has the line '{line[:60]}'; expected {expected}")
        rows.append((stamp, rest[0]))
    return rows


def _nanoseconds(listed: Path, text: str, unit: int) -> int:
    """A stamp in a list; exact: seconds since 1970 with six digits do not fit into a float."""
    try:
        value = Decimal(text)
        if not value.is_finite() or abs(value) * unit > FARTHEST_NS:
            raise InvalidOperation
    except ArithmeticError:  # of decimals: none, or one that is too large for them
        raise DataError(f"{listed}: has the stamp '{text[:60]}'; expected a number of seconds or nanoseconds") from None
    return int((value * unit).to_integral_value())


def _nanoseconds_of_date(listed: Path, line: str) -> int:
    """Nanoseconds since 1970 of a date and a time of day, exact; no zone is told, so it is taken for UTC."""
    try:
        found = _DATE.fullmatch(line)
        if found is None:
            raise ValueError
        *numbers, fraction = found.groups(default="")
        year, month, day, hour, minute, second = map(int, numbers)
        since = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc) - _EPOCH
        stamp = since // timedelta(seconds=1) * 10**9 + int(fraction.ljust(9, "0"))
        if stamp > FARTHEST_NS:
            raise ValueError
    except ValueError:  # of numbers that are no date, too
        expected = "expected a date and a time, such as 2011-09-26 13:02:25.964389445"
        raise DataError(f"{listed}: has the stamp '{line[:60]}'; {expected}") from None
    return stamp
