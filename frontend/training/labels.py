"""Label files: the interest points of one photograph, as ``superpoint label`` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frontend.atomic import atomic_path
from frontend.errors import DataError
from frontend.folders import find_images, output_path, reading_npz
from frontend.image import read_image, rescale_points, resize_to, to_gray
from frontend.types import Float32Array, Float64Array

KEPT_TO = 1.1
"""Images are not reduced that are at most this many times as long as they are to be."""


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """A photograph with its interest points.

    Attributes:
        image: (H, W) uint8.
        points: (N, 2) float64, pixels of ``image``.
        scores: (N,) float32.
        heatmap: (H', W') uint8, coded as :func:`encode_heatmap` does, at the resolution of the labelling: the
            photograph's frame, but another size than ``image`` has; None where there is none.
    """

    image: np.ndarray
    points: Float64Array
    scores: Float32Array
    heatmap: np.ndarray | None = None


def encode_heatmap(heat: Float32Array) -> np.ndarray:
    """Code probabilities in 8 bits by their square root: ``round(255 * sqrt(p))``.

    The square root gives small probabilities, of which there are most, the finer steps. Decoded, a probability p is
    off by at most ``sqrt(p) / 255 + 1 / 510^2``: 0.004 at 1, 0.0013 at 0.1, 0.0004 at 0.01; below 3.8e-6 it is 0.

    Args:
        heat: of any shape, in [0, 1]; what rounding has carried beyond is clipped.

    Returns:
        uint8 of the same shape.
    """
    coded: np.ndarray = np.rint(255 * np.sqrt(np.clip(heat, 0, 1))).astype(np.uint8)
    return coded


def decode_heatmap(coded: np.ndarray) -> Float32Array:
    """Probabilities, float32 in [0, 1], from what :func:`encode_heatmap` made of them."""
    probabilities: Float32Array = np.square(coded.astype(np.float32) / 255)
    return probabilities


def write_labels(
    path: Path,
    points: Float32Array,
    scores: Float32Array,
    image_size: tuple[int, int],
    heat: Float32Array | None = None,
) -> None:
    """Write a label file, atomically.

    Args:
        path: of the file; its folder is made.
        points: (N, 2) float32, pixels of the original image.
        scores: (N,) float32, mean probability over the views.
        image_size: (width, height) of the original image.
        heat: (H', W') float32 in [0, 1], the aggregated heat map, to be stored in 8 bits and compressed.
    """
    size = np.array(image_size, np.int32)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if heat is None:
            np.savez(file, keypoints=points, scores=scores, image_size=size)
        else:
            coded = encode_heatmap(heat)
            np.savez_compressed(file, keypoints=points, scores=scores, image_size=size, heatmap=coded)


def read_labels(path: Path) -> tuple[Float32Array, Float32Array, tuple[int, int]]:
    """Read a label file: points, scores and (width, height), as :func:`write_labels` took them.

    Raises:
        DataError: the file is no label file, or its numbers do not fit together or are not finite.
    """
    with reading_npz(path, "label file") as file:
        width, height = (int(v) for v in file["image_size"])
        points, scores = file["keypoints"], file["scores"]
    if points.ndim != 2 or points.shape[1] != 2 or scores.shape != points.shape[:1]:
        raise DataError(
            f"label file {path} has keypoints {points.shape} and scores {scores.shape}; expected (N, 2) and (N,)"
        )
    for name, values in (("keypoints", points), ("scores", scores)):
        if values.dtype.kind not in "fiu":
            raise DataError(f"label file {path} has {name} of type {values.dtype}; expected numbers")
        if not np.isfinite(values).all():
            raise DataError(f"label file {path} has {name} that are NaN or infinite; expected finite ones")
    return points, scores, (width, height)


def read_heatmap(path: Path) -> np.ndarray | None:
    """The heat map of a label file, (H', W') uint8 to be decoded by :func:`decode_heatmap`; None where it has none.

    Raises:
        DataError: the file is no label file.
    """
    with reading_npz(path, "label file") as file:
        coded: np.ndarray | None = file.get("heatmap")
    if coded is not None and (coded.ndim != 2 or coded.dtype != np.uint8):
        raise DataError(f"label file {path} has a heat map {coded.dtype} {coded.shape}; expected (H, W) uint8")
    return coded


def count_unused(images: Path, labels: Path) -> int:
    """How many label files are of no photograph below a folder.

    Raises:
        DataError: the folder of photographs is missing or has none.
    """
    used = {output_path(labels, name) for name in find_images(images)}
    return sum(path not in used for path in labels.rglob("*.npz") if not path.name.startswith("."))


def content_digest(images: Path, labels: Path, heatmaps: bool = False) -> str:
    """SHA-256 of a set of labelled photographs, hexadecimal: of their files and of the numbers in the label files.

    Args:
        images: folder of photographs.
        labels: folder of label files.
        heatmaps: whether the heat maps are part of it.

    Raises:
        DataError: a folder is missing, or a label file cannot be read.
    """
    digest = hashlib.sha256()
    for name in find_images(images):
        path = output_path(labels, name)
        if not path.is_file():
            continue
        digest.update(hashlib.sha256((images / name).read_bytes()).digest())
        points, scores, size = read_labels(path)
        heatmap = read_heatmap(path) if heatmaps else None
        for array in (points, scores, np.array(size), heatmap):
            if array is not None:
                digest.update(hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest())
    return digest.hexdigest()


def reduced_to(gray: Float32Array, side: int) -> tuple[Float32Array, tuple[float, float]]:
    """An image at the size that it is labelled and learnt at.

    A reduction by a few per cent would blur in a beat, here by two pixels and there by none.

    Args:
        gray: (H, W) float32.
        side: that the longest side is brought to, pixels; up to a tenth longer ones stay as they are.

    Returns:
        The image, and its size divided by the one before, along x and y.
    """
    longest = max(gray.shape)
    return resize_to(gray, longest if side <= longest <= KEPT_TO * side else side)


def _iterate(
    images: Path, labels: Path, longest_side: int, threshold: float, heatmaps: bool
) -> Iterator[LabelledPhoto]:
    for name in find_images(images):
        path = output_path(labels, name)
        if not path.is_file():
            continue
        points, scores, size = read_labels(path)
        image = read_image(images / name)
        gray = to_gray(image)
        if (gray.shape[1], gray.shape[0]) != size:
            raise DataError(
                f"label file {path} was made for {size[0]} x {size[1]}; {name} is {gray.shape[1]} x {gray.shape[0]}"
            )
        resized, scale = reduced_to(gray, longest_side)
        kept = scores >= threshold
        rescaled = rescale_points(points[kept].astype(np.float64), scale)
        heatmap = read_heatmap(path) if heatmaps else None
        if heatmaps and heatmap is None:
            raise DataError(f"label file {path} has no heat map; expected one, as 'superpoint label --heatmaps' writes")
        yield LabelledPhoto(np.rint(resized * 255).astype(np.uint8), rescaled, scores[kept], heatmap)


def load_labelled_photos(
    images: Path, labels: Path, longest_side: int, threshold: float = 0.0, heatmaps: bool = False
) -> list[LabelledPhoto]:
    """Load all photographs that have a label file, gray, into memory.

    Args:
        images: folder of photographs.
        labels: folder of label files.
        longest_side: that the photographs are brought to, pixels; up to a tenth longer ones stay as they are.
        threshold: least score of a label.
        heatmaps: whether the heat maps are loaded too; every label must have one then.

    Raises:
        DataError: a folder is missing, a label does not fit its image or lacks its heat map, no photograph has a
            label, or no label a point.
    """
    photos = list(_iterate(images, labels, longest_side, threshold, heatmaps))
    if not photos:
        raise DataError(f"no photograph of {images} has a label in {labels}; expected NAME.jpg.npz for NAME.jpg")
    if not any(len(photo.points) for photo in photos):
        raise DataError(f"no label in {labels} has a point of score {threshold} or more; expected some to learn from")
    return photos
