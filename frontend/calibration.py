"""Cameras and stereo rigs in files: EuRoC's ``sensor.yaml``, ROS's ``camera_info``, Kalibr's ``camchain.yaml``, and
JSON as the service takes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frontend.camera import Camera
from frontend.errors import ConfigError
from frontend.simple_yaml import read_simple_yaml
from frontend.stereo import StereoRig
from frontend.types import Float64Array

_OPENCV = ("", "none", "opencv", "radtan", "radial-tangential", "plumb_bob", "rational_polynomial")
_LENSES = {**dict.fromkeys(_OPENCV, "opencv"), **dict.fromkeys(("equidistant", "fisheye"), "fisheye")}
_CAMERA_FILE = "K and distortion, EuRoC's or Kalibr's intrinsics, or ROS's camera_matrix"
_RIG_FILE = "camera and stereo as the service takes them, or Kalibr's cam0 and cam1"
_LARGEST = 1 << 20  # bytes
_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class CalibratedCamera:
    """A camera, and what else a file says of it.

    Attributes:
        camera: its intrinsics and distortion.
        size: (width, height) of its images, pixels; None where it is not said.
        body: (4, 4) float64, EuRoC's T_BS: from the camera's frame to that of the body; None where it is not said.
    """

    camera: Camera
    size: tuple[int, int] | None = None
    body: Float64Array | None = None


def read_camera(text: str) -> CalibratedCamera:
    """A camera by its numbers (see :meth:`frontend.camera.Camera.parse`), or from a file.

    Args:
        text: numbers, or the name of a file that ends in .yaml, .yml or .json. Of Kalibr's file, cam0 is taken.

    Raises:
        ConfigError: the numbers are no camera, or the file cannot be read or has none.
    """
    path = Path(text)
    if not text.lower().endswith(_SUFFIXES):
        return CalibratedCamera(Camera.parse(text))
    document = _read(path)
    return _camera_of(document.get("cam0", document), str(path))


def read_rig(path: Path) -> tuple[StereoRig, tuple[int, int] | None]:
    """A stereo rig from a file, and the size of its left images where the file tells it.

    Args:
        path: JSON with ``camera`` and ``stereo`` as ``POST /v1/sequences`` has them, or Kalibr's ``camchain.yaml`` with
            cam0 on the left and cam1.

    Raises:
        ConfigError: the file cannot be read, or has no rig.
    """
    document = _read(path)
    stereo, second = document.get("stereo"), document.get("cam1")
    if "camera" in document and isinstance(stereo, dict):
        left, right = document["camera"], stereo.get("camera")
        R, t = (_numbers(stereo.get(name), f"{path}: {name}") for name in ("R", "t"))
    elif "cam0" in document and isinstance(second, dict):
        left, right = document["cam0"], second
        pose = _transform(second.get("T_cn_cnm1"), f"{path}: T_cn_cnm1 of cam1")
        R, t = pose[:3, :3], pose[:3, 3]
    else:
        raise ConfigError(f"{path}: has {_keys(document)}; expected {_RIG_FILE}")
    first, other = _camera_of(left, f"{path}: left camera"), _camera_of(right, f"{path}: right camera")
    return _rig(first, other, R, t, str(path)), first.size


def rig_of(left: CalibratedCamera, right: CalibratedCamera, baseline: float | None) -> StereoRig:
    """A stereo rig of two cameras.

    Args:
        left: of the sequence.
        right: the other one.
        baseline: distance of a rectified pair, whose right camera is at x = baseline of the left one and turned alike,
            metres; where None, both tell their place in the body.

    Raises:
        ConfigError: the baseline is no distance, or there is none and a camera does not tell its place.
    """
    if baseline is not None:
        if not (np.isfinite(baseline) and baseline > 0):
            raise ConfigError(f"baseline is {baseline:g}; expected metres, more than 0")
        return StereoRig(left.camera, right.camera, np.eye(3), np.array([-baseline, 0.0, 0.0]))
    if left.body is None or right.body is None:
        raise ConfigError("cameras of a pair do not both tell their place (T_BS); expected that, a baseline, or a rig")
    between = np.linalg.inv(right.body) @ left.body
    return _rig(left, right, between[:3, :3], between[:3, 3], "T_BS of both cameras")


def _rig(left: CalibratedCamera, right: CalibratedCamera, R: Float64Array, t: Float64Array, where: str) -> StereoRig:
    try:
        return StereoRig(left.camera, right.camera, R, t)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _camera_of(document: Any, where: str) -> CalibratedCamera:
    if not isinstance(document, Mapping):
        raise ConfigError(f"{where}: is no camera; expected {_CAMERA_FILE}")
    lens = str(document.get("model", document.get("distortion_model", "")) or "")
    kind = str(document.get("camera_model", "pinhole"))
    if lens not in _LENSES or kind != "pinhole":
        known = ", ".join(name for name in _LENSES if name)
        raise ConfigError(f"{where}: is a camera '{kind}' with lens '{lens}'; expected pinhole with one of: {known}")
    size = None
    if "K" in document:
        K = _numbers(document["K"], f"{where}: K")
        distortion = document.get("distortion", [])
    elif "intrinsics" in document:
        values = _numbers(document["intrinsics"], f"{where}: intrinsics")
        if values.shape != (4,):
            raise ConfigError(f"{where}: intrinsics have shape {values.shape}; expected fx, fy, cx, cy")
        fx, fy, cx, cy = values.tolist()
        K = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
        distortion = document.get("distortion_coefficients", document.get("distortion_coeffs", []))
        size = _size(document.get("resolution"), where)
    elif "camera_matrix" in document:
        K = _data(document["camera_matrix"], f"{where}: camera_matrix")
        K = K.reshape(3, 3) if K.size == 9 else K
        distortion = document.get("distortion_coefficients", [])
        size = _size([document.get("image_width"), document.get("image_height")], where)
    else:
        raise ConfigError(f"{where}: has {_keys(document)}; expected {_CAMERA_FILE}")
    values = _data(distortion, f"{where}: distortion").ravel()
    if lens == "none" or not values.any():
        values = values[:0] if _LENSES[lens] == "opencv" else values
    body = None if "T_BS" not in document else _transform(document["T_BS"], f"{where}: T_BS")
    try:
        return CalibratedCamera(Camera(K, tuple(values.tolist()), _LENSES[lens]), size, body)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _data(value: Any, where: str) -> Float64Array:
    """Numbers, as they are or as the ``data`` of a matrix."""
    return _numbers(value.get("data") if isinstance(value, Mapping) else value, where)


def _transform(value: Any, where: str) -> Float64Array:
    matrix = _data(value, where)
    if matrix.size != 16:
        raise ConfigError(f"{where} has {matrix.size} numbers; expected a matrix of 4 x 4")
    return matrix.reshape(4, 4)


def _numbers(value: Any, where: str) -> Float64Array:
    try:
        found = np.array(value if isinstance(value, list) else None, np.float64)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    if not found.ndim or not np.isfinite(found).all():
        raise ConfigError(f"{where} is {str(value)[:60]}; expected a list of numbers")
    return found


def _size(value: Any, where: str) -> tuple[int, int] | None:
    if value is None or value == [None, None]:
        return None
    width, height = (*_numbers(value, f"{where}: resolution").ravel().tolist(), 0, 0)[:2]
    return (int(width), int(height)) if width > 0 and height > 0 else None


def _keys(document: Mapping[str, Any]) -> str:
    return ", ".join(str(key)[:30] for key in list(document)[:6]) or "nothing"


def _read(path: Path) -> dict[str, Any]:
    """A document of JSON or simple YAML.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")
        if len(data) > _LARGEST:
            raise ConfigError(f"{path}: has more than {_LARGEST} bytes; expected a calibration")
        found = json.loads(text) if text.lstrip().startswith("{") else read_simple_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a calibration") from None
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8, too
        raise ConfigError(f"{path}: is neither JSON nor simple YAML ({error}); expected a calibration") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: has no names with values; expected a calibration")
    return found
