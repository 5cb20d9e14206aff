"""Pairs with a known homography from folders: HPatches, Oxford affine covariant regions, or plain photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frontend.errors import ConfigError, DataError
from frontend.evaluation.pairs import KINDS, ImagePair, PairConfig, load_bgr, photo_pairs, reduce_image
from frontend.image import is_image_name
from frontend.types import Float64Array

OXFORD_ILLUMINATION = frozenset({"bikes", "trees", "leuven", "ubc"})
"""Oxford sequences of photometric change (blur, light, JPEG); the others change the viewpoint."""

_LAYOUTS = "v_*/i_* folders with 1.ppm and H_1_2 (HPatches), img1.ppm and H1to2p (Oxford), or photographs"


@dataclass(frozen=True)
class Sequence1toN:
    """A reference image and the images related to it by homographies.

    Attributes:
        name: of the folder.
        kind: "viewpoint" or "illumination".
        reference: file of image 0.
        others: (number, image file, homography file).
    """

    name: str
    kind: str
    reference: Path
    others: tuple[tuple[int, Path, Path], ...]


@dataclass(frozen=True)
class PairDataset:
    """Image pairs, read or made one at a time.

    Attributes:
        path: the folder.
        kind: "hpatches", "oxford" or "photos".
        counts: number of pairs by kind of change.
        resize: longest side, pixels; None where images keep their size.
        seed: of the pairs made from photographs.
        make: starts an iteration.
    """

    path: Path
    kind: str
    counts: dict[str, int]
    resize: int | None
    seed: int
    make: Callable[[], Iterator[ImagePair]]

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[ImagePair]:
        """Pairs in a fixed order; those that follow each other with one ``image0`` share its array."""
        return self.make()


def open_dataset(
    path: Path,
    *,
    kind: str = "auto",
    pairs: str = "both",
    seed: int = 0,
    resize: int | None = 640,
    limit: int | None = None,
    config: PairConfig | None = None,
) -> PairDataset:
    """Find the pairs of a folder.

    Args:
        path: HPatches (v_*/i_* folders), Oxford (one sequence or a folder of them), or photographs (searched
            without sub-folders).
        kind: "auto" (by content), "hpatches", "oxford" or "photos".
        pairs: "viewpoint", "illumination" or "both".
        seed: of the pairs made from photographs.
        resize: images with a longer side are reduced to it, the homography with them; None for never.
        limit: only the first so many sequences of each kind of change, or photographs, in the order of names.
        config: difficulty of the pairs made from photographs; the published one by default.

    Raises:
        ConfigError: a setting is out of its range.
        DataError: the folder is missing, empty, or of an unknown layout.
    """
    if kind not in ("auto", "hpatches", "oxford", "photos"):
        raise ConfigError(f"dataset kind is '{kind}'; expected auto, hpatches, oxford or photos")
    if pairs != "both" and pairs not in KINDS:
        raise ConfigError(f"pairs is '{pairs}'; expected viewpoint, illumination or both")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected at least 1")
    if resize is not None and resize < 32:
        raise ConfigError(f"resize is {resize}; expected at least 32 pixels, or none (0)")
    if not path.exists():
        raise DataError(f"{path}: no such folder")
    if not path.is_dir():
        raise DataError(f"{path}: is a file, expected a folder")
    wanted = KINDS if pairs == "both" else (pairs,)
    if kind in ("auto", "hpatches") and (sequences := _find_hpatches(path)):
        return _sequences(path, "hpatches", sequences, wanted, seed, resize, limit)
    if kind in ("auto", "oxford") and (sequences := _find_oxford(path)):
        return _sequences(path, "oxford", sequences, wanted, seed, resize, limit)
    if kind in ("auto", "photos"):
        photos = sorted(entry for entry in path.iterdir() if entry.is_file() and is_image_name(entry))[:limit]
        if photos:
            counts = {change: len(photos) for change in wanted}

            def make() -> Iterator[ImagePair]:
                return photo_pairs(photos, kinds=wanted, seed=seed, resize=resize, config=config)

            return PairDataset(path, "photos", counts, resize, seed, make)
    if not any(path.iterdir()):
        raise DataError(f"{path}: is empty; expected {_LAYOUTS}")
    raise DataError(f"{path}: has no pairs of kind '{kind}'; expected {_LAYOUTS}")


def _image(folder: Path, stem: str) -> Path | None:
    """The image of this stem, whatever its format."""
    found = sorted(file for file in folder.glob(f"{stem}.*") if is_image_name(file))
    return found[0] if found else None


def _find_hpatches(path: Path) -> list[Sequence1toN]:
    folders = sorted(folder for prefix in ("v_", "i_") for folder in path.glob(f"{prefix}*") if folder.is_dir())
    found = [
        _find_sequence(folder, "viewpoint" if folder.name.startswith("v_") else "illumination", "{}", "H_1_{}")
        for folder in folders
    ]
    return [sequence for sequence in found if sequence is not None]


def _find_oxford(path: Path) -> list[Sequence1toN]:
    found = []
    for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        kind = "illumination" if folder.resolve().name.lower() in OXFORD_ILLUMINATION else "viewpoint"
        sequence = _find_sequence(folder, kind, "img{}", "H1to{}p")
        if sequence is not None:
            found.append(sequence)
    return found


def _find_sequence(folder: Path, kind: str, image_stem: str, homography: str) -> Sequence1toN | None:
    """A sequence; None where the folder has no reference image or no homography at all.

    Raises:
        DataError: an image is there without its homography, or the reverse.
    """
    numbers = range(2, 7)
    reference = _image(folder, image_stem.format(1))
    if reference is None or not any((folder / homography.format(number)).is_file() for number in numbers):
        return None
    others = []
    for number in numbers:
        image = _image(folder, image_stem.format(number))
        matrix = folder / homography.format(number)
        if image is None and not matrix.is_file():
            continue
        if image is None or not matrix.is_file():
            raise DataError(f"{folder}: image {number} and {matrix.name} are expected both, only one is there")
        others.append((number, image, matrix))
    return Sequence1toN(folder.resolve().name, kind, reference, tuple(others))


def read_homography(path: Path) -> Float64Array:
    """Read three rows of three numbers.

    Returns:
        (3, 3) float64.

    Raises:
        DataError: the file holds anything else.
    """
    try:
        numbers = np.array(path.read_text(encoding="utf-8").split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a homography ({error})") from None
    if numbers.size != 9 or not np.isfinite(numbers).all() or np.linalg.det(numbers.reshape(3, 3)) == 0:
        raise DataError(f"{path}: expected 3 x 3 finite numbers of an invertible homography, found {numbers.size}")
    return numbers.reshape(3, 3)


def _sequences(
    path: Path,
    kind: str,
    sequences: Sequence[Sequence1toN],
    wanted: Sequence[str],
    seed: int,
    resize: int | None,
    limit: int | None,
) -> PairDataset:
    chosen = [
        sequence
        for change in wanted
        for sequence in [candidate for candidate in sequences if candidate.kind == change][:limit]
    ]
    if not chosen:
        raise DataError(f"{path}: {kind} folder has no {' or '.join(wanted)} sequences")
    counts = {change: sum(len(s.others) for s in chosen if s.kind == change) for change in wanted}
    counts = {change: count for change, count in counts.items() if count}

    def make() -> Iterator[ImagePair]:
        return (pair for sequence in chosen for pair in _sequence_pairs(sequence, resize))

    return PairDataset(path, kind, counts, resize, seed, make)


def _sequence_pairs(sequence: Sequence1toN, resize: int | None) -> Iterator[ImagePair]:
    image0, map0 = reduce_image(load_bgr(sequence.reference), resize)
    back0 = np.linalg.inv(map0)
    for number, file, matrix in sequence.others:
        image1, map1 = reduce_image(load_bgr(file), resize)
        H = map1 @ read_homography(matrix) @ back0
        yield ImagePair(f"{sequence.name}/{number}", sequence.kind, image0, image1, np.asarray(H / H[2, 2], np.float64))
