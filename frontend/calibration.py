"""Cameras and stereo rigs in files: EuRoC's ``sensor.yaml``, ROS's ``camera_info`` (a file of its calibration, or a
message as ``rostopic echo`` and ``ros2 topic echo`` print it), Kalibr's ``camchain.yaml``, and JSON as the service
takes it.
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
_UNSAID = ("", "none", "opencv")  # lenses that may have no parameters
_MATRIX = ("K", "k", "camera_matrix")
_DISTORTION = (
    *("distortion", "distortion_coefficients", "distortion_coeffs", "distortion_coeff", "distortion_coefs"),
    *("distortion_coef", "dist_coeffs", "dist_coeff", "dist_coefs", "dist_coef", "D", "d"),
)
_PROJECTION = ("projection_matrix", "P", "p")
_SIDES = (("width", "height"), ("image_width", "image_height"))
_RIGID = 1e-3  # a rotation in a file has three digits or more
_CAMERA_FILE = "K and distortion, EuRoC's or Kalibr's intrinsics, or ROS's camera_matrix"
_RIG_FILE = "camera and stereo as the service takes them, or Kalibr's cam0 and cam1"
_LARGEST = 1 << 20  # bytes
_SUFFIXES = (".yaml", ".yml", ".json")

Size = tuple[int, int]
"""(width, height) of images, pixels."""


@dataclass(frozen=True, eq=False)
class CalibratedCamera:
    """A camera, and what else a file says of it.

    Attributes:
        camera: its intrinsics and distortion.
        size: (width, height) of its images, pixels; None where it is not said.
        body: (4, 4) float64, EuRoC's T_BS: from the camera's frame to that of the body; None where it is not said.
        rectified: the camera of images that ROS has rectified, its projection matrix; None where it is not said.
    """

    camera: Camera
    size: Size | None = None
    body: Float64Array | None = None
    rectified: Camera | None = None


def read_camera(text: str, *, single: bool = False) -> CalibratedCamera:
    """A camera by its numbers (see :meth:`frontend.camera.Camera.parse`), or from a file.

    Args:
        text: numbers, or the name of a file that ends in .yaml, .yml or .json. Of Kalibr's file, cam0 is taken.
        single: whether a file of several cameras is refused.

    Raises:
        ConfigError: the numbers are no camera, or the file cannot be read or has none.
    """
    path = Path(text)
    if not text.lower().endswith(_SUFFIXES):
        return CalibratedCamera(Camera.parse(text))
    document = _read(path)
    if single and "cam1" in document:
        raise ConfigError(f"{path}: has cam0 and cam1; expected one camera, or the file for --rig")
    return _camera_of(document.get("cam0", document), str(path))


def read_rig(path: Path) -> tuple[StereoRig, tuple[Size | None, Size | None]]:
    """A stereo rig from a file, and the sizes of its left and right images where the file tells them.

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
    return _rig(first.camera, other.camera, R, t, str(path)), (first.size, other.size)


def rig_of(left: CalibratedCamera, right: CalibratedCamera, baseline: float | None) -> StereoRig:
    """A stereo rig of two cameras.

    Args:
        left: of the sequence.
        right: the other one.
        baseline: distance of a rectified pair, whose right camera is at x = baseline of the left one and turned alike,
            metres; where None, both tell their place in the body. A rectified pair has the cameras that ROS's files
            tell of rectified images, where they do.

    Raises:
        ConfigError: the baseline is no distance, a camera is none of a rectified pair, or there is no baseline and a
            camera does not tell its place.
    """
    if baseline is not None:
        if not (np.isfinite(baseline) and baseline > 0):
            raise ConfigError(f"baseline is {baseline:g}; expected metres, more than 0")
        if left.body is not None or right.body is not None:
            raise ConfigError(
                "baseline is given with a camera that tells its place (T_BS); expected the files of both cameras "
                "without a baseline, or a rectified pair's fx,fy,cx,cy with it"
            )
        flat = [camera.rectified or camera.camera for camera in (left, right)]
        if any(camera.model != "opencv" or any(camera.distortion) for camera in flat):
            raise ConfigError(
                "camera of a rectified pair has distortion; expected none, or a rig instead of a baseline for images "
                "as the cameras took them"
            )
        return _rig(flat[0], flat[1], np.eye(3), np.array([-baseline, 0.0, 0.0]), "baseline")
    if left.body is None or right.body is None:
        raise ConfigError("cameras of a pair do not both tell their place (T_BS); expected that, a baseline, or a rig")
    between = np.linalg.inv(right.body) @ left.body
    return _rig(left.camera, right.camera, between[:3, :3], between[:3, 3], "T_BS of both cameras")


def _rig(left: Camera, right: Camera, R: Float64Array, t: Float64Array, where: str) -> StereoRig:
    try:
        return StereoRig(left, right, R, t)
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
    matrix = next((name for name in _MATRIX if name in document), None)
    if matrix is not None:
        K = _data(document[matrix], f"{where}: {matrix}")
        K = K.reshape(3, 3) if K.size == 9 else K
    elif "intrinsics" in document:
        values = _numbers(document["intrinsics"], f"{where}: intrinsics")
        if values.shape != (4,):
            raise ConfigError(f"{where}: intrinsics have shape {values.shape}; expected fx, fy, cx, cy")
        fx, fy, cx, cy = values.tolist()
        K = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    else:
        raise ConfigError(f"{where}: has {_keys(document)}; expected {_CAMERA_FILE}")
    distortion = _distortion(document, lens, where)
    body = None if "T_BS" not in document else _transform(document["T_BS"], f"{where}: T_BS")
    camera = _camera(K, distortion, _LENSES[lens], where)
    return CalibratedCamera(camera, _size_of(document, where), body, _rectified(document, where))


def _camera(K: Float64Array, distortion: Float64Array, model: str, where: str) -> Camera:
    try:
        return Camera(K, tuple(distortion.tolist()), model)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _distortion(document: Mapping[str, Any], lens: str, where: str) -> Float64Array:
    """The parameters of a lens, under whatever name they stand; none is passed over."""
    known = (*_DISTORTION, "distortion_model")
    strange = [key for key in document if str(key).lower().startswith(("distor", "dist_")) and key not in known]
    if strange:
        raise ConfigError(f"{where}: has {strange[0][:30]}; expected one of {', '.join(_DISTORTION)}")
    names = [name for name in _DISTORTION if name in document]
    if not names:
        if lens not in _UNSAID:
            raise ConfigError(f"{where}: has lens '{lens}' without parameters; expected {_DISTORTION[0]}")
        return np.zeros(0)
    found = [_data(document[name], f"{where}: {name}").ravel() for name in names]
    for name, values in zip(names, found, strict=True):
        if not np.array_equal(values, found[0]):
            raise ConfigError(f"{where}: has {names[0]} and {name}, which differ; expected one of them")
    if not found[0].any():
        return found[0][:0] if _LENSES[lens] == "opencv" else found[0]
    if lens == "none":
        raise ConfigError(f"{where}: has lens 'none' with parameters {found[0].tolist()}; expected none of them")
    return found[0]


def _rectified(document: Mapping[str, Any], where: str) -> Camera | None:
    """The camera of ROS's rectified images; a file of one that is not calibrated has zeros there."""
    name = next((name for name in _PROJECTION if name in document), None)
    if name is None:
        return None
    matrix = _data(document[name], f"{where}: {name}")
    if matrix.size != 12:
        raise ConfigError(f"{where}: {name} has {matrix.size} numbers; expected 12")
    if not matrix.any():
        return None
    return _camera(matrix.reshape(3, 4)[:, :3], np.zeros(0), "opencv", f"{where}: {name}")


def _data(value: Any, where: str) -> Float64Array:
    """Numbers, as they are or as the ``data`` of a matrix."""
    return _numbers(value.get("data") if isinstance(value, Mapping) else value, where)


def _transform(value: Any, where: str) -> Float64Array:
    found = _data(value, where)
    if found.size != 16:
        raise ConfigError(f"{where} has {found.size} numbers; expected a matrix of 4 x 4")
    matrix = found.reshape(4, 4)
    R = matrix[:3, :3]
    turns = np.abs(R @ R.T - np.eye(3)).max() < _RIGID and np.linalg.det(R) > 0
    if not turns or (matrix[3] != (0, 0, 0, 1)).any():
        raise ConfigError(f"{where} is no rigid transform; expected a rotation, a translation and the row 0, 0, 0, 1")
    return matrix


def _numbers(value: Any, where: str) -> Float64Array:
    try:
        found = np.array(value if isinstance(value, list) else None, np.float64)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    if not found.ndim or not np.isfinite(found).all():
        raise ConfigError(f"{where} is {str(value)[:60]}; expected a list of numbers")
    return found


def _size_of(document: Mapping[str, Any], where: str) -> Size | None:
    """(width, height) of the images, where it is said, and is not 0 as in ROS's messages of cameras without one."""
    value = document.get("resolution")
    for names in _SIDES:
        if value is None and all(document.get(name) is not None for name in names):
            value = [document[name] for name in names]
    if value is None:
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
