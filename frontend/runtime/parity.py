"""Whether a runtime computes what PyTorch computes: a small probe whose answers are stored with the graphs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from frontend.postprocess import find_peaks
from frontend.runtime.base import Maps, Refined, Runtime
from frontend.types import Float32Array

TRIAL = (240, 320)
"""Height and width of the images on which "auto" compares the best keypoints."""

HALF_COSINE = 0.999
"""Smallest cosine between descriptors in half precision and in float32."""

INT8_COSINE = 0.98
"""The same in int8."""

# Largest difference of heat, and smallest cosine of descriptors, with float32 in PyTorch. The probe is no image like
# those that int8 was calibrated on: there the check only tells a broken graph from a whole one.
_LIMITS = {"float32": (2e-3, 0.9999), "bf16": (0.1, 0.99), "fp16": (0.02, HALF_COSINE), "int8": (0.6, 0.9)}
_TRIALS = 5
_SHARE = 0.99  # of the keypoints, and of the descriptors in int8, that "auto" insists on
_HEIGHT, _WIDTH = 72, 104


class Probe(NamedTuple):
    """Answers of PyTorch in float32 to :func:`probe_images` and :func:`probe_patches`.

    Attributes:
        heat: (2, 72, 104) float32.
        descriptors: (2, 9, 13, D) float32.
        position: (7, 4) float32, or empty without a refiner.
        local: (7, D) float32, the same.
    """

    heat: Float32Array
    descriptors: Float32Array
    position: Float32Array
    local: Float32Array


def scene(height: int, width: int, seed: int = 0) -> Float32Array:
    """An image (height, width) float32 in [0, 1] of overlapping polygons, full of corners."""
    random = np.random.default_rng(seed)
    image = np.full((height, width), 128, np.uint8)
    for _ in range(80):
        corners = random.uniform((0, 0), (width, height)) + random.uniform(-0.2, 0.2, (4, 2)) * max(width, height)
        cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], int(random.integers(0, 256)))
    blurred = cv2.GaussianBlur(image, (0, 0), 0.8)
    return np.asarray(blurred, np.float32) / np.float32(255)


def probe_images() -> Float32Array:
    """(2, 1, 72, 104) float32 in [0, 1]."""
    return np.stack([scene(_HEIGHT, _WIDTH, seed) for seed in (1, 2)])[:, None]


def probe_patches(side: int) -> tuple[Float32Array, Float32Array]:
    """Patches (7, 1, side, side) float32 and scores (7,) float32."""
    patches = np.stack([scene(side, side, seed) for seed in range(7)])[:, None]
    return patches, np.linspace(0.1, 0.9, 7, dtype=np.float32)


def ask(runtime: Runtime) -> Probe:
    """A runtime's answers."""
    maps = Maps(*(np.array(value, np.float32) for value in runtime.dense(probe_images())))
    refined = Refined(np.zeros((0, 4), np.float32), np.zeros((0, runtime.info.descriptor_dim), np.float32))
    if runtime.info.patch:
        refined = Refined(
            *(np.array(value, np.float32) for value in runtime.refine(*probe_patches(runtime.info.patch)))
        )
    return Probe(*maps, *refined)


def difference(expected: Probe, got: Probe, precision: str) -> str | None:
    """What is wrong with answers; None where they agree as far as the precision allows."""
    if [value.shape for value in expected] != [value.shape for value in got]:
        return f"shapes are {[value.shape for value in got]}; expected {[value.shape for value in expected]}"
    heat, cosine = _LIMITS[precision]
    off = float(np.abs(expected.heat - got.heat).max())
    if not off <= heat:
        return f"heat is off by {off:.2g}; expected at most {heat:g}"
    least = least_cosine(expected.descriptors, got.descriptors)
    if not least >= cosine:
        return f"descriptors have a cosine of {least:.4f} to the reference's; expected at least {cosine:g}"
    # the refiner is in float32 everywhere
    for name in ("position", "local"):
        a, b = getattr(expected, name), getattr(got, name)
        if a.size and not np.abs(a - b).max() <= 1e-3 * max(1.0, float(np.abs(a).max())):
            return f"{name} of the refiner is off by {float(np.abs(a - b).max()):.2g}; expected at most 1e-3"
    return None


def least_cosine(a: Float32Array, b: Float32Array) -> float:
    """The smallest cosine between (..., D) vectors; those of no length count as alike."""
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    product = np.einsum("...d,...d->...", a, b)
    return float(np.where(length > 1e-12, product / np.maximum(length, 1e-12), 1.0).min())


def trial_images() -> list[Float32Array]:
    """Images (1, 1, 240, 320) on which "auto" compares what precisions find: of one alone chance would decide."""
    return [scene(*TRIAL, seed)[None, None] for seed in range(_TRIALS)]


def finds_the_same(expected: Sequence[Maps], got: Sequence[Maps], precision: str) -> bool:
    """Whether a precision finds what float32 finds: at least 99 % of the images' best keypoints.

    In int8 also 99 % of the cells' descriptors, with a cosine of :data:`INT8_COSINE` and more.

    Args:
        expected: maps of the trial images in float32; where there are none, only float32 is the same.
        got: in the precision.
        precision: its name.
    """
    if not expected:
        return precision == "float32"
    counts = [common_keypoints(a, b) for a, b in zip(expected, got, strict=True)]
    same = sum(common for common, _ in counts) >= _SHARE * sum(of for _, of in counts)
    alike = precision != "int8" or all(same_descriptors(a, b) for a, b in zip(expected, got, strict=True))
    return same and alike


def common_keypoints(expected: Maps, got: Maps, count: int = 500) -> tuple[int, int]:
    """How many of the best keypoints of image 0 are at the same pixels, and how many there are."""
    found = []
    for maps in (expected, got):
        heat = np.ascontiguousarray(maps.heat[0])
        size = (heat.shape[1], heat.shape[0])
        peaks = find_peaks(heat, radius=3, border=4, size=size, threshold=0.0, count=count)
        found.append(set(zip(peaks.x.tolist(), peaks.y.tolist(), strict=True)))
    return len(found[0] & found[1]), len(found[0])


def same_keypoints(expected: Maps, got: Maps) -> bool:
    """Whether at least 99 % of the best keypoints of image 0 are the same pixels."""
    common, of = common_keypoints(expected, got)
    return common >= _SHARE * of


def same_descriptors(expected: Maps, got: Maps) -> bool:
    """Whether at least 99 % of the cells' descriptors have a cosine of :data:`INT8_COSINE` and more."""
    a, b = expected.descriptors, got.descriptors
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    near = np.einsum("...d,...d->...", a, b) >= INT8_COSINE * length
    return bool(near.mean() >= _SHARE)


def pack(probe: Probe) -> bytes:
    """Answers as a file."""
    buffer = io.BytesIO()
    np.savez(buffer, **probe._asdict())
    return buffer.getvalue()


def unpack(data: bytes) -> Probe:
    """The answers of :func:`pack`.

    Raises:
        ValueError, OSError, KeyError: they are none.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Probe(**{name: arrays[name] for name in Probe._fields})
