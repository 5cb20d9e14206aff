"""Which images are matched with which: pairs of places in a list of names, made as they are needed."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from frontend.errors import ConfigError, DataError

MOST_EXHAUSTIVE = 300
"""Images of which all pairs are matched without being asked for: 44,850, some minutes on two CPU cores."""

_BLOCK = 32  # images on a side of a block of pairs: what two such blocks take stays in memory


class Pairs(Protocol):
    """Pairs of images, by their places in a list of names; goes through them anew each time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[int, int]]: ...


class Exhaustive:
    """All pairs of ``count`` images, block by block, so that each image is read once for many of its pairs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count * (self.count - 1) // 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        starts = range(0, self.count, _BLOCK)
        for top in starts:
            for left in (start for start in starts if start >= top):
                for first in range(top, min(top + _BLOCK, self.count)):
                    for second in range(max(left, first + 1), min(left + _BLOCK, self.count)):
                        yield first, second


class Sequential:
    """Each of ``count`` images with its next ``following`` ones."""

    def __init__(self, count: int, following: int) -> None:
        self.count, self.following = count, min(following, count - 1)

    def __len__(self) -> int:
        return self.following * self.count - self.following * (self.following + 1) // 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for first in range(self.count):
            for second in range(first + 1, min(first + 1 + self.following, self.count)):
                yield first, second


def choose_pairs(
    names: Sequence[str], *, listed: Path | None = None, exhaustive: bool = False, sequential: int | None = None
) -> Pairs:
    """The pairs that were asked for; all of them where nothing was and there are few images.

    Args:
        names: of the images, in order.
        listed: a file of pairs, see :func:`read_pairs`.
        exhaustive: whether all pairs are wanted, however many.
        sequential: how many of the next images each image is matched with, 1 or more.

    Raises:
        ConfigError: nothing was asked for and there are more than :data:`MOST_EXHAUSTIVE` images, more than one thing
            was, or ``sequential`` is less than 1.
        DataError: there is one image alone, or the file of pairs cannot be used.
    """
    if (listed is not None) + exhaustive + (sequential is not None) > 1:
        raise ConfigError("got more than one choice of pairs; expected one of: a file, exhaustive, sequential")
    if sequential is not None and sequential < 1:
        raise ConfigError(f"sequential is {sequential}; expected 1 or more following images")
    if len(names) < 2:
        raise DataError(f"there are features of one image alone, {names[0]}; expected two or more")
    if listed is not None:
        return read_pairs(listed, names)
    if sequential is not None:
        return Sequential(len(names), sequential)
    every = Exhaustive(len(names))
    if not exhaustive and len(names) > MOST_EXHAUSTIVE:
        raise ConfigError(
            f"{len(names)} images make {len(every):,} pairs; expected --pairs FILE, --sequential N or --exhaustive"
        )
    return every


def read_pairs(path: Path, names: Sequence[str]) -> list[tuple[int, int]]:
    """Read hloc's list of pairs: two names of images on a line, separated by white space; ``#`` starts a comment.

    A line of two names is a pair though the first starts with ``#``. A pair that comes again, either way around, is
    one. Names that have spaces themselves are understood, and letters with accents however they are composed.

    Args:
        path: of the file.
        names: of the images that there are.

    Raises:
        DataError: the file cannot be read or has no pair, or a line has no two different names of images,
            or could be two such pairs.
    """
    try:
        # with the mark that some editors put first; a name may have other ends of lines than these
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"pairs {path} cannot be read: {error}") from None
    places = {**_composed(names), **{name: place for place, name in enumerate(names)}}
    found: dict[tuple[int, int], None] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        known = _split(text, places)
        if not known and (not text or text.startswith("#")):
            continue
        if not known:
            raise DataError(f"{path}, line {number}: {_no_pair(text, places)}")
        if len(known) > 1:
            first, second = (" and ".join(f"'{names[place]}'" for place in pair) for pair in known[:2])
            raise DataError(f"{path}, line {number}: '{text}' is {first} as well as {second}; rename one of them")
        [pair] = known
        if pair[0] == pair[1]:
            raise DataError(f"{path}, line {number}: '{text}' pairs an image with itself")
        if pair[::-1] not in found:
            found[pair] = None
    if not found:
        raise DataError(f"pairs {path} is empty; expected two names of images on each line")
    return list(found)


def _composed(names: Sequence[str]) -> dict[str, int]:
    """Places of names by their composed form, where no two have the same."""
    forms = [unicodedata.normalize("NFC", name) for name in names]
    count = Counter(forms)
    return {form: place for place, form in enumerate(forms) if count[form] == 1}


def _place(name: str, places: dict[str, int]) -> int | None:
    """Where an image is among the names, which may be composed otherwise."""
    place = places.get(name)
    return places.get(unicodedata.normalize("NFC", name)) if place is None else place


def _split(line: str, places: dict[str, int]) -> list[tuple[int, int]]:
    """The two images of a line: none where it has no two names of images, several where there are several ways."""
    found: dict[tuple[int, int], None] = {}
    for at in (at for at, letter in enumerate(line) if letter.isspace()):
        first, second = _place(line[:at].rstrip(), places), _place(line[at:].lstrip(), places)
        if first is not None and second is not None:
            found[first, second] = None
    return list(found)


def _no_pair(line: str, places: dict[str, int]) -> str:
    """What is wrong with a line."""
    words = line.split()
    if len(words) != 2:
        return f"'{line[:200]}' given; expected two names of images"
    unknown = next(word for word in words if _place(word, places) is None)
    return f"no features of '{unknown}'; expected names such as '{next(iter(places))}'"
