"""Cameras on their way to the service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from frontend.errors import ConfigError
from frontend.types import Float64Array


class CameraLike(Protocol):
    """What ``frontend.camera.Camera`` has."""

    @property
    def K(self) -> Float64Array:
        """(3, 3) intrinsics, pixels."""

    @property
    def distortion(self) -> Sequence[float]:
        """In OpenCV's order: k1, k2, p1, p2[, k3[, ...]]; and where there is an attribute ``model``, of that model."""


class StereoLike(Protocol):
    """What ``frontend.stereo.StereoRig`` has: X_right = R X_left + t, metres."""

    @property
    def right(self) -> CameraLike:
        """The right camera."""

    @property
    def R(self) -> Float64Array:
        """(3, 3) rotation."""

    @property
    def t(self) -> Float64Array:
        """(3,) metres."""


Calibration = CameraLike | ArrayLike | str
"""A camera, its (3, 3) intrinsics alone, or text as ``frontend.camera.Camera.parse`` reads it: ``"fx,fy,cx,cy"``."""


def camera_document(camera: Calibration, distortion: Sequence[float] = ()) -> dict[str, Any]:
    """A camera in a JSON body.

    Args:
        camera: a camera, K, or text.
        distortion: with K; a camera has its own.

    Raises:
        ConfigError: K is no (3, 3) array of finite numbers, the text is no camera, or the distortion is given twice.
    """
    if isinstance(camera, str):
        from frontend.camera import Camera  # with OpenCV, which nothing else of the client has to load

        camera = Camera.parse(camera)
    own = getattr(camera, "distortion", None)
    if own is not None and len(distortion):
        raise ConfigError("distortion is given beside a camera that has its own; expected one of them")
    try:
        K = np.asarray(getattr(camera, "K", camera), np.float64)
        values = [float(value) for value in (distortion if own is None else own)]
    except (TypeError, ValueError):
        raise ConfigError(f"camera is a {type(camera).__name__}; expected one with K and distortion, or K") from None
    if K.shape != (3, 3) or not np.isfinite(K).all() or not np.isfinite(values).all():
        raise ConfigError(f"K has shape {K.shape} or values that are not finite; expected (3, 3) intrinsics")
    model = getattr(camera, "model", "opencv")
    document: dict[str, Any] = {"K": K.tolist(), "distortion": values}
    # services before this version know of no other
    return document if model == "opencv" else {**document, "model": model}


def camera_query(camera: Calibration) -> str:
    """A camera in a query, as :meth:`frontend.camera.Camera.parse` reads it.

    Raises:
        ConfigError: see :func:`camera_document`; or K has a skew, which has no place here.
    """
    document = camera_document(camera)
    (fx, skew, cx), (_, fy, cy), _ = document["K"]
    if skew:
        raise ConfigError(f"K has a skew of {skew}; expected 0")
    # repr: the shortest decimals that give the same number back
    numbers = ",".join(repr(value) for value in (fx, fy, cx, cy, *document["distortion"]))
    return f"{document['model']}:{numbers}" if "model" in document else numbers


def stereo_document(stereo: StereoLike) -> dict[str, Any]:
    """A stereo rig in a JSON body.

    Raises:
        ConfigError: R is not (3, 3) or t is not (3,); see :func:`camera_document`.
    """
    R, t = np.asarray(stereo.R, np.float64), np.asarray(stereo.t, np.float64)
    if R.shape != (3, 3) or t.shape != (3,):
        raise ConfigError(f"R has shape {R.shape} and t {t.shape}; expected (3, 3) and (3,)")
    return {"camera": camera_document(stereo.right), "R": R.tolist(), "t": t.tolist()}
