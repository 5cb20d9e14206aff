"""A calibrated camera: pixels to undistorted normalised coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from frontend.errors import ConfigError
from frontend.types import Float64Array

# OpenCV's default of five steps leaves errors of a tenth of a pixel at the corners of a wide lens
_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-10)
_DISTORTIONS = (0, 4, 5, 8, 12, 14)
_FOCAL = (1e-3, 1e9)  # pixels; beyond, products of them leave the range of numbers
_LARGEST_ERROR_PX = 0.1  # of a point that is distorted again


@dataclass(frozen=True)
class Camera:
    """Pinhole camera with OpenCV's distortion model.

    Attributes:
        K: (3, 3) float64 intrinsics, pixels, without skew.
        distortion: k1, k2, p1, p2[, k3[, k4, k5, k6[, s1..s4[, tx, ty]]]]; empty for none.
    """

    K: Float64Array
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        K = np.asarray(self.K, np.float64)
        object.__setattr__(self, "K", K)
        if K.shape != (3, 3) or not np.isfinite(K).all() or not (K[0, 0] > 0 and K[1, 1] > 0):
            raise ConfigError(f"K has shape {K.shape} or no positive focal lengths; expected (3, 3) intrinsics")
        if not (_FOCAL[0] <= min(K[0, 0], K[1, 1]) and max(K[0, 0], K[1, 1]) <= _FOCAL[1]):
            raise ConfigError(
                f"K has focal lengths of {K[0, 0]:g} and {K[1, 1]:g} pixels; expected {_FOCAL[0]:g} to {_FOCAL[1]:g}"
            )
        if K[1, 0] != 0 or (K[2] != (0, 0, 1)).any():
            raise ConfigError(f"K has the rows {K.tolist()}; expected an upper triangle with 1 in the corner")
        if K[0, 1] != 0:
            raise ConfigError(f"K has a skew of {K[0, 1]:g}; expected 0")
        if len(self.distortion) not in _DISTORTIONS or not np.isfinite(self.distortion).all():
            raise ConfigError(f"distortion has {len(self.distortion)} values; expected one of {_DISTORTIONS}, finite")

    @classmethod
    def parse(cls, text: str) -> Camera:
        """Read ``fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]]``: comma-separated numbers, pixels first.

        Raises:
            ConfigError: the text is not of this form, or no camera has these values.
        """
        expected = "expected fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]]"
        try:
            values = [float(part) for part in text.split(",")]
        except ValueError:
            raise ConfigError(f"camera is '{text[:80]}'; {expected}") from None
        if len(values) < 4:
            raise ConfigError(f"camera has {len(values)} numbers; {expected}")
        fx, fy, cx, cy, *distortion = values
        return cls(np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]), tuple(distortion))

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
        """
        if not len(points):
            return np.zeros((0, 2))
        distortion = np.asarray(self.distortion, np.float64) if self.distortion else None
        given = np.ascontiguousarray(points, np.float64)[:, None]
        flat = np.asarray(cv2.undistortPoints(given, self.K, distortion, criteria=_CRITERIA)[:, 0], np.float64)
        if distortion is not None:
            # where there is no inverse OpenCV leaves what its iteration came to
            rays = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
            again, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), self.K, distortion)
            error = np.linalg.norm(again[:, 0] - given[:, 0], axis=1)
            flat[~(error <= _LARGEST_ERROR_PX)] = np.nan
        return flat
