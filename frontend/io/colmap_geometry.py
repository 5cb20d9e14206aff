"""Cameras and two-view geometry in COLMAP's terms: (0.5, 0.5) is the centre of an image's first pixel.

Numbers of camera models and of kinds of geometry are those of COLMAP's documentation ("Camera Models", "Database
Format"); its matrices are row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from frontend.camera import Camera
from frontend.errors import ConfigError
from frontend.relative_pose import quaternion_of
from frontend.types import Essential, Float64Array, Fundamental, Homography

PIXEL_CENTRE = 0.5
"""What COLMAP adds to our coordinates."""

DEFAULT_FOCAL = 1.2
"""Focal length of an unknown camera in units of the image's longer side, as COLMAP assumes it."""

_TO_COLMAP = np.array([[1.0, 0.0, PIXEL_CENTRE], [0.0, 1.0, PIXEL_CENTRE], [0.0, 0.0, 1.0]])
_FROM_COLMAP = np.linalg.inv(_TO_COLMAP)


class CameraModel(IntEnum):
    """COLMAP's camera models that cameras here may have."""

    PINHOLE = 1
    SIMPLE_RADIAL = 2
    OPENCV = 4
    OPENCV_FISHEYE = 5
    FULL_OPENCV = 6


class Configuration(IntEnum):
    """COLMAP's kinds of two-view geometry that are written."""

    DEGENERATE = 1
    CALIBRATED = 2
    UNCALIBRATED = 3
    PLANAR_OR_PANORAMIC = 6


@dataclass(frozen=True)
class ColmapCamera:
    """A row of COLMAP's cameras.

    Attributes:
        model: of the lens.
        width: of its images.
        height: the same.
        params: focal lengths, principal point and distortion in the model's order, pixels.
        prior: whether the focal length is known.
    """

    model: CameraModel
    width: int
    height: int
    params: tuple[float, ...]
    prior: bool


def unknown_camera(width: int, height: int, focal: float | None = None) -> ColmapCamera:
    """What COLMAP itself assumes of images: SIMPLE_RADIAL, to be refined by the map builder.

    Args:
        width: of an image.
        height: the same.
        focal: length in pixels, as the image says; its guess where None.
    """
    params = (DEFAULT_FOCAL * max(width, height) if focal is None else focal, width / 2, height / 2, 0.0)
    return ColmapCamera(CameraModel.SIMPLE_RADIAL, width, height, params, focal is not None)


def known_camera(camera: Camera, width: int, height: int) -> ColmapCamera:
    """A calibrated camera: PINHOLE, OPENCV, FULL_OPENCV or OPENCV_FISHEYE.

    Raises:
        ConfigError: COLMAP has no model with such distortion.
    """
    distortion = camera.distortion
    if camera.model == "fisheye":
        model = CameraModel.OPENCV_FISHEYE
    elif len(distortion) <= 4:
        model = CameraModel.OPENCV if any(distortion) else CameraModel.PINHOLE
        distortion = distortion if any(distortion) else ()
    elif len(distortion) <= 8:
        model = CameraModel.FULL_OPENCV
        distortion += (0.0,) * (8 - len(distortion))
    else:
        raise ConfigError(f"camera has {len(distortion)} values of distortion; COLMAP's models have 8 at most")
    K = camera.K
    params = (K[0, 0], K[1, 1], K[0, 2] + PIXEL_CENTRE, K[1, 2] + PIXEL_CENTRE, *distortion)
    return ColmapCamera(model, width, height, tuple(float(value) for value in params), True)


@dataclass(frozen=True, eq=False)
class TwoView:
    """COLMAP's geometry of two images.

    Attributes:
        configuration: its kind.
        F: (3, 3) float64 of COLMAP's pixels, x1^T F x0 = 0; None where it is of another kind.
        E: (3, 3) float64 of normalised coordinates.
        H: (3, 3) float64 of COLMAP's pixels, image 0 to image 1.
        qvec: (4,) float64, the rotation from camera 0 to camera 1 as a quaternion, real part first.
        tvec: (3,) float64, the translation, of unit length.
    """

    configuration: Configuration
    F: Float64Array | None = None
    E: Float64Array | None = None
    H: Float64Array | None = None
    qvec: Float64Array | None = None
    tvec: Float64Array | None = None


def two_view(geometry: Homography | Fundamental | Essential, camera: Camera | None = None) -> TwoView:
    """Geometry between images, pixels with (0, 0) the centre of the first, in COLMAP's terms.

    Args:
        geometry: between image 0 and image 1.
        camera: of both images, for an essential matrix.
    """
    if geometry.matrix is None:
        return TwoView(Configuration.DEGENERATE)
    if isinstance(geometry, Homography):
        return TwoView(Configuration.PLANAR_OR_PANORAMIC, H=_TO_COLMAP @ geometry.matrix @ _FROM_COLMAP)
    if isinstance(geometry, Fundamental):
        return TwoView(Configuration.UNCALIBRATED, F=_FROM_COLMAP.T @ geometry.matrix @ _FROM_COLMAP)
    F = None
    if camera is not None and camera.model == "opencv" and not any(camera.distortion):
        # with distortion there is no such matrix of pixels; a fisheye has some whatever its parameters
        back = np.linalg.inv(_TO_COLMAP @ camera.K)
        F = back.T @ geometry.matrix @ back
        F /= np.linalg.norm(F)
    qvec = None if geometry.R is None else np.roll(quaternion_of(geometry.R), 1)
    return TwoView(Configuration.CALIBRATED, F=F, E=geometry.matrix, qvec=qvec, tvec=geometry.t)
