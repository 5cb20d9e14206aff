"""Settings of robust estimation, and matches as it takes them; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike

from frontend.errors import ConfigError, ShapeError
from frontend.types import Float64Array

SAMPLE_SIZE = 4
"""Matches that define a homography."""
LEAST_THRESHOLD = 1e-3
"""Least threshold, pixels."""
FARTHEST = 1e7
"""Largest coordinate of a point, pixels, that a model is computed from: at ten times that, float32 cannot tell the
other matches apart once all are normalised alike."""
MOST_ITERATIONS = 2**31 - 1
"""Most samples: OpenCV counts them in 32 bits."""
KEPT = 0.95
"""Share of a model's inliers that its refinement keeps at least: one that loses more has left its basin."""


@dataclass(frozen=True)
class RansacConfig:
    """Settings of the robust estimation.

    Attributes:
        threshold: largest RMS of an inlier's two transfer errors, pixels; ``LEAST_THRESHOLD`` to ``FARTHEST``.
        confidence: probability of having drawn one outlier-free sample, in (0, 1), at which drawing stops.
        max_iterations: samples drawn at most; 1 to ``MOST_ITERATIONS``.
        min_inliers: inliers below which there is no model; at least 4.
        seed: of the random generator, 0 or more.
    """

    threshold: float = 3.0
    confidence: float = 0.999
    max_iterations: int = 10_000
    min_inliers: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(
            self, whole=("max_iterations", "min_inliers", "seed"), real=("threshold", "confidence"), of="RANSAC "
        )
        # squares of less are lost in float32, and no image is as exact; no point that counts is farther away than that
        if not LEAST_THRESHOLD <= self.threshold <= FARTHEST:
            expected = f"{LEAST_THRESHOLD:g} to {FARTHEST:g} pixels"
            raise ConfigError(f"RANSAC threshold is {self.threshold}; expected {expected}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"RANSAC confidence is {self.confidence}; expected a value between 0 and 1")
        if not 1 <= self.max_iterations <= MOST_ITERATIONS:
            raise ConfigError(f"RANSAC max_iterations is {self.max_iterations}; expected 1 to {MOST_ITERATIONS}")
        if self.min_inliers < SAMPLE_SIZE:
            raise ConfigError(f"RANSAC min_inliers is {self.min_inliers}; expected {SAMPLE_SIZE} or more")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"RANSAC seed is {self.seed}; expected an integer from 0 to 2^63 - 1")


def check_numbers(config: object, *, whole: tuple[str, ...], real: tuple[str, ...], of: str = "") -> None:
    """Refuse settings that are no numbers, which would fail only where they are used.

    Args:
        config: that has them as attributes.
        whole: names of those that are integers.
        real: names of those that are any real numbers.
        of: before a name in the error.

    Raises:
        ConfigError: one is of another type.
    """
    for names, kind, expected in ((whole, Integral, "a whole number"), (real, Real, "a number")):
        for name in names:
            if not isinstance(value := getattr(config, name), kind):
                raise ConfigError(f"{of}{name} is {value!r:.64}; expected {expected}")


def as_matches(points0: ArrayLike, points1: ArrayLike) -> tuple[Float64Array, Float64Array]:
    """Matched points as two (M, 2) float64 arrays.

    Raises:
        ShapeError: they are not two real (M, 2) arrays.
    """
    try:
        arrays = [np.asarray(points) for points in (points0, points1)]
    except ValueError:  # rows of several lengths
        raise ShapeError("points0 or points1 has rows of several lengths; expected (M, 2) for both") from None
    if arrays[0].ndim != 2 or arrays[0].shape[1] != 2 or arrays[1].shape != arrays[0].shape:
        raise ShapeError(f"points0 is {arrays[0].shape} and points1 {arrays[1].shape}; expected (M, 2) for both")
    if any(array.dtype.kind not in "fiu" for array in arrays):
        raise ShapeError(f"points0 is {arrays[0].dtype} and points1 {arrays[1].dtype}; expected real numbers")
    return arrays[0].astype(np.float64), arrays[1].astype(np.float64)


def as_variances(sigmas: ArrayLike, count: int) -> Float64Array:
    """Variances (M,) float64 of matches from their standard deviations.

    Raises:
        ShapeError: they are not M = ``count`` positive numbers.
    """
    values = np.asarray(sigmas)
    if values.shape != (count,) or values.dtype.kind not in "fiu":
        raise ShapeError(f"sigmas is {values.shape} {values.dtype}; expected ({count},) real numbers")
    squared: Float64Array = np.square(values.astype(np.float64))
    if not (np.isfinite(squared) & (squared > 0) & (values > 0)).all():
        raise ShapeError("sigmas has values that are not positive and finite; expected standard deviations in pixels")
    return squared
