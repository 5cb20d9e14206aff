"""A calibrated camera: pixels to undistorted normalised coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from frontend.errors import ConfigError, ShapeError
from frontend.types import Float64Array

# OpenCV's default of five steps leaves errors of a tenth of a pixel at the corners of a wide lens
_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-10)
CAMERA_MODELS = {"opencv": (0, 4, 5, 8, 12, 14), "fisheye": (4,)}
"""Models of distortion, and how many parameters each may have."""
_FOCAL = (1e-3, 1e9)  # pixels; beyond, products of them leave the range of numbers
_LARGEST_ERROR_PX = 0.1  # of a point that is distorted again


@dataclass(frozen=True)
class Camera:
    """Pinhole camera with one of OpenCV's distortion models.

    Attributes:
        K: (3, 3) float64 intrinsics, pixels, without skew.
        distortion: k1, k2, p1, p2[, k3[, k4, k5, k6[, s1..s4[, tx, ty]]]], empty for none; of a fisheye k1, k2, k3, k4.
        model: "opencv", radial and tangential; or "fisheye" (Kannala and Brandt 2006: the radius is a polynomial of the
            angle to the axis; Kalibr and ROS call it equidistant), whose rays beside or behind the camera have no
            normalised coordinates.
    """

    K: Float64Array
    distortion: tuple[float, ...] = ()
    model: str = "opencv"
    _fold: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        K = _as_numbers(self.K, "K", "(3, 3) intrinsics").copy()  # which nobody else changes
        distortion = tuple(_as_numbers(self.distortion, "distortion", "numbers").ravel().tolist())
        K.flags.writeable = False
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "distortion", distortion)
        if K.shape != (3, 3):
            raise ConfigError(f"K has shape {K.shape}; expected (3, 3) intrinsics")
        if not K.any():
            raise ConfigError("K is all zero, which means that it is not calibrated; expected (3, 3) intrinsics")
        if not np.isfinite(K).all():
            raise ConfigError(f"K has the rows {K.tolist()}; expected finite intrinsics")
        if not (_FOCAL[0] <= min(K[0, 0], K[1, 1]) and max(K[0, 0], K[1, 1]) <= _FOCAL[1]):
            raise ConfigError(
                f"K has focal lengths of {K[0, 0]:g} and {K[1, 1]:g} pixels; expected {_FOCAL[0]:g} to {_FOCAL[1]:g}"
            )
        if K[1, 0] != 0 or (K[2] != (0, 0, 1)).any():
            raise ConfigError(f"K has the rows {K.tolist()}; expected an upper triangle with 1 in the corner")
        if K[0, 1] != 0:
            raise ConfigError(f"K has a skew of {K[0, 1]:g}; expected 0")
        if not isinstance(self.model, str) or self.model not in CAMERA_MODELS:
            raise ConfigError(f"camera model is {self.model!r:.60}; expected one of: {', '.join(CAMERA_MODELS)}")
        counts = CAMERA_MODELS[self.model]
        if len(self.distortion) not in counts or not np.isfinite(self.distortion).all():
            given = f"distortion of the model '{self.model}' has {len(self.distortion)} values"
            raise ConfigError(f"{given}; expected one of {counts}, finite")
        object.__setattr__(self, "_fold", _fold(self.distortion, self.model))

    @classmethod
    def parse(cls, text: str) -> Camera:
        """Read ``fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]]`` or ``fisheye:fx,fy,cx,cy,k1,k2,k3,k4``: numbers, pixels first.

        Raises:
            ConfigError: the text is not of this form, or no camera has these values.
        """
        expected = "expected fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]], or fisheye:fx,fy,cx,cy,k1,k2,k3,k4"
        given, _, numbers = text.rpartition(":")
        try:
            values = [float(part) for part in numbers.split(",")]
        except ValueError:
            raise ConfigError(f"camera is {text[:80]!r}; {expected}") from None
        if len(values) < 4:
            raise ConfigError(f"camera has {len(values)} numbers; {expected}")
        fx, fy, cx, cy, *distortion = values
        return cls(np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]), tuple(distortion), given or "opencv")

    def same_as(self, other: Camera) -> bool:
        """Whether it is the same camera, to the last bit."""
        lenses = [(tuple(camera.distortion), camera.model) for camera in (self, other)]
        return bool((self.K == other.K).all()) and lenses[0] == lenses[1]

    @property
    def focal(self) -> float:
        """Geometric mean of the focal lengths, pixels."""
        return float(np.sqrt(self.K[0, 0] * self.K[1, 1]))

    def normalise(self, points: np.ndarray) -> Float64Array:
        """Undistort and divide by the focal length.

        Args:
            points: (N, 2) pixels.

        Returns:
            (N, 2) float64: x/z, y/z in the camera's frame; NaN where the distortion is found to have no inverse, as in
            the corners of a wide lens.

        Raises:
            ShapeError: the points are not (N, 2).
        """
        pixels = _as_points(points)
        if not len(pixels):
            return np.zeros((0, 2))
        given = np.ascontiguousarray(pixels)[:, None]
        distortion = np.asarray(self.distortion, np.float64) if self.distortion else None
        if self.model == "fisheye":
            found = cv2.fisheye.undistortPoints(given, self.K, np.asarray(self.distortion), criteria=_CRITERIA)
        else:
            found = cv2.undistortPoints(given, self.K, distortion, criteria=_CRITERIA)
        flat: Float64Array = np.array(found[:, 0], np.float64)
        if distortion is not None:
            # where there is no inverse OpenCV leaves what its iteration came to
            error = np.linalg.norm(self._distort(flat) - given[:, 0], axis=1)
            # and beyond where the polynomial turns back there are pixels that it comes to once more
            beyond = np.linalg.norm(flat, axis=1) > self._fold
            flat[beyond | ~(error <= _LARGEST_ERROR_PX)] = np.nan
        return flat

    def undistort(self, points: np.ndarray) -> Float64Array:
        """Pixels of the same camera without distortion, (N, 2) float64; NaN and errors as for :meth:`normalise`."""
        if not self.distortion:
            return _as_points(points).copy()
        flat = self.normalise(points)
        return np.asarray(flat * (self.K[0, 0], self.K[1, 1]) + self.K[:2, 2], np.float64)

    def _distort(self, flat: Float64Array) -> Float64Array:
        """Pixels (N, 2) of normalised points."""
        rays = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)[:, None]
        still, distortion = np.zeros(3), np.asarray(self.distortion, np.float64)
        project = cv2.fisheye.projectPoints if self.model == "fisheye" else cv2.projectPoints
        pixels = project(rays, still, still, self.K, distortion)[0]
        return np.asarray(pixels, np.float64).reshape(-1, 2)


def _as_numbers(values: object, name: str, expected: str) -> Float64Array:
    """An array of real numbers; the error has one line, whatever was given."""
    try:
        given = np.asarray(values)
        if given.dtype.kind == "c":  # of which a conversion would drop a part
            raise TypeError
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        shown = " ".join(repr(values).split())
        raise ConfigError(f"{name} is {shown:.60}; expected {expected}") from None


def _as_points(points: np.ndarray) -> Float64Array:
    """Points as (N, 2) float64; an empty list has no other shape to give."""
    try:
        given = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        raise ShapeError(f"points are {points!r:.60}; expected numbers, (N, 2)") from None
    if given.size and (given.ndim != 2 or given.shape[1] != 2):
        raise ShapeError(f"points have shape {given.shape}; expected (N, 2)")
    return given.reshape(-1, 2)


def _fold(distortion: tuple[float, ...], model: str) -> float:
    """The undistorted radius, x/z and y/z, up to which the distorted one grows; inf where it always does.

    Beyond, a lens would put two rays on one pixel, so that the model holds only up to there. Tangential and thin-prism
    terms, and a tilt, are small beside the radial ones and left out.
    """
    if not distortion:
        return math.inf
    k = np.zeros(8)
    k[: min(len(distortion), 8)] = distortion[:8]
    if model == "fisheye":
        above, below = [1.0, *k[:4]], [1.0]  # theta (1 + k1 theta^2 + ...)
    else:
        above, below = [1.0, k[0], k[1], k[4]], [1.0, *k[5:8]]  # r (1 + k1 r^2 + ...) / (1 + k4 r^2 + ...)
    powers = np.polynomial.polynomial
    numerator, denominator = np.zeros(2 * len(above)), np.zeros(2 * len(below) - 1)
    numerator[1::2], denominator[::2] = above, below
    slope = powers.polysub(
        powers.polymul(powers.polyder(numerator), denominator), powers.polymul(numerator, powers.polyder(denominator))
    )
    roots = np.concatenate([powers.polyroots(powers.polytrim(p)) for p in (slope, denominator)])
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    least = float(real.min()) if len(real) else math.inf
    if model != "fisheye":
        return least
    return math.tan(least) if least < math.pi / 2 else math.inf  # an angle to the axis
