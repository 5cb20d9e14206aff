"""Pairs turned in the image plane, by known angles and with a change of scale: like bark and boat of the Oxford set.

A photograph has the same change of scale, shift, camera and direction of rotation at every angle, so that figures of
different angles differ by the angle alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from frontend.errors import ConfigError, DataError
from frontend.evaluation.camera import CameraConfig, expose
from frontend.evaluation.datasets import PairDataset
from frontend.evaluation.pairs import ImagePair, load_bgr, pair_rng, reduce_image, render_view, viewpoint_homography
from frontend.image import is_image_name

ZOOM = (0.6, 1.8)
"""Range of the scale between the two images, drawn uniformly in log."""
SHIFT = 0.05
"""Largest displacement of the centre along an axis, parts of the longest side."""


def parse_angles(text: str) -> tuple[float, ...]:
    """Angles in degrees, from numbers separated by commas.

    Raises:
        ConfigError: there is none, one twice, or one outside [0, 180].
    """
    try:
        angles = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        angles = ()
    if not angles or len(set(angles)) < len(angles) or not all(0 <= angle <= 180 for angle in angles):
        raise ConfigError(f"rotations are '{text}'; expected different angles in [0, 180] such as 0,15,30,45")
    return angles


def kind_of(angle: float) -> str:
    """The kind of the pairs turned by an angle in degrees."""
    return f"rotation {angle:g}"


def rotation_pairs(
    photos: Sequence[Path], angles: Sequence[float], *, seed: int = 0, resize: int | None = 640
) -> Iterator[ImagePair]:
    """The pairs, photograph by photograph; those of one photograph share their ``image0`` array.

    Args:
        photos: image files. Only a file's name enters its pairs.
        angles: degrees, turned to either side.
        seed: of the benchmark.
        resize: longer photographs are reduced to this side, pixels; None for never.

    Raises:
        ImageError: a photograph cannot be read.
    """
    for path in photos:
        image, _ = reduce_image(load_bgr(path), resize)
        size = (image.shape[1], image.shape[0])
        for angle in angles:
            rng = pair_rng(seed, "rotation", path.name)
            side = 1 if rng.random() < 0.5 else -1
            zoom = float(np.exp(rng.uniform(*np.log(ZOOM))))
            shift = (float(rng.uniform(-SHIFT, SHIFT)), float(rng.uniform(-SHIFT, SHIFT)))
            H = viewpoint_homography(size, 0.0, 0.0, side * angle, zoom, shift, 1.1)
            view = expose(rng, render_view(image, H), CameraConfig())
            yield ImagePair(f"r{angle:g}_{path.name}", kind_of(angle), image, view, H)


def rotation_dataset(
    path: Path, angles: Sequence[float], *, seed: int = 0, resize: int | None = 640, limit: int | None = None
) -> PairDataset:
    """The pairs of a folder of photographs.

    Args:
        path: folder, searched without sub-folders.
        angles: see :func:`rotation_pairs`.
        seed: see :func:`rotation_pairs`.
        resize: see :func:`rotation_pairs`.
        limit: only the first so many photographs, in the order of names.

    Raises:
        ConfigError: the limit is below 1, or the size below 32 pixels.
        DataError: the folder is missing or holds no image.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected at least 1")
    if resize is not None and resize < 32:
        raise ConfigError(f"resize is {resize}; expected at least 32 pixels, or none (0)")
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    photos = sorted(entry for entry in path.iterdir() if entry.is_file() and is_image_name(entry))[:limit]
    if not photos:
        raise DataError(f"{path}: holds no photographs; expected some, to be turned")
    counts = {kind_of(angle): len(photos) for angle in angles}

    def make() -> Iterator[ImagePair]:
        return rotation_pairs(photos, angles, seed=seed, resize=resize)

    return PairDataset(path, "rotations", counts, resize, seed, make)
