"""Calibration files against the numbers in them, and their reader against a YAML library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from frontend.calibration import read_camera, read_rig, rig_of
from frontend.errors import ConfigError
from frontend.simple_yaml import read_simple_yaml

EUROC = """\
# General sensor definitions.
sensor_type: camera
comment: VI-Sensor cam0 (MT9M034)

# Sensor extrinsics wrt. the body-frame.
T_BS:
  cols: 4
  rows: 4
  data: [0.0148655429818, -0.999880929698, 0.00414029679422, -0.0216401454975,
         0.999557249008, 0.0149672133247, 0.025715529948, -0.064676986768,
        -0.0257744366974, 0.00375618835797, 0.999660727178, 0.00981073058949,
         0.0, 0.0, 0.0, 1.0]

# Camera specific definitions.
rate_hz: 20
resolution: [752, 480]
camera_model: pinhole
intrinsics: [458.654, 457.296, 367.215, 248.375] #fu, fv, cu, cv
distortion_model: radial-tangential
distortion_coefficients: [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]
"""
EUROC_RIGHT = """\
T_BS:
  cols: 4
  rows: 4
  data: [0.0125552670891, -0.999755099723, 0.0182237714554, -0.0198435579556,
         0.999598781151, 0.0130119051815, 0.0251588363115, 0.0453689425024,
        -0.0253898008918, 0.0179005838253, 0.999517347078, 0.00786212447038,
         0.0, 0.0, 0.0, 1.0]
resolution: [752, 480]
camera_model: pinhole
intrinsics: [457.587, 456.134, 379.999, 255.238]
distortion_model: radial-tangential
distortion_coefficients: [-0.28368365, 0.07451284, -0.00010473, -3.55590700e-05]
"""
ROS = """\
image_width: 640
image_height: 480
camera_name: narrow_stereo/left
camera_matrix:
  rows: 3
  cols: 3
  data: [455.0, 0, 319.5, 0, 456, 239.5, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.1, 0.05, 0.001, 0.0, 0]}
"""
ROS_IN_BLOCKS = """\
image_width: 640
image_height: 480
camera_matrix:
  rows: 3
  cols: 3
  data:
  - 455.
  - 0
  - 319.5
  - 0
  - 4.56e+2
  - 239.5
  - 0
  - 0
  - 1
distortion_model: equidistant
distortion_coefficients:
  data:
    - 0.1
    - -0.02
    - 0
    - 0.001
"""
KALIBR = """\
cam0:
  cam_overlaps: [1]
  camera_model: pinhole
  distortion_coeffs: [0.0034823894022493434, 0.0007150348452162257, -0.0020532361418706202,
    0.00020293673591811182]
  distortion_model: equidistant
  intrinsics: [190.97847715128717, 190.9733070521226, 254.93170605935475, 256.8974428996504]
  resolution: [512, 512]
  rostopic: /cam0/image_raw
cam1:
  T_cn_cnm1:
  - [1.0, 0.0, 0.0, -0.10106]
  - [0.0, 1.0, 0.0, 0.0019]
  - [0.0, 0.0, 1.0, 0.001]
  - [0.0, 0.0, 0.0, 1.0]
  camera_model: pinhole
  distortion_coeffs: [0.003, 0.0012, -0.003, 0.0005]
  distortion_model: equidistant
  intrinsics: [190.4, 190.4, 252.6, 255.0]
  resolution: [512, 512]
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_floats(item) for item in value]
    return float(value) if isinstance(value, int) else value


OTHERS = (
    "a:\n- 1\n- 2\nb: 3\n",
    "- - 1\n  - 2\n- a: 1\n  b: [x, 'y z']\n",
    "a:\n  b:\n    c: [[1, 2], [3, 4]]  # why\n  d: {e: 1, f: [2]}\ng: null\n",
    "url: http://robot:8000/x\nname: \"a: b\"\n'k': ~\n",
)


@pytest.mark.parametrize("text", [EUROC, EUROC_RIGHT, ROS, ROS_IN_BLOCKS, KALIBR, *OTHERS])
def test_simple_yaml_is_what_a_library_reads(text: str) -> None:
    assert read_simple_yaml(text) == as_floats(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text", ["x", "a: [1, 2", "a: [1, 2]]", "a: {b}", "a:\n  b: 1\n c: 2", "a: 1\n- 2", "<xml>", "a: [1 2] 3]"]
)
def test_what_is_no_simple_yaml_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_simple_yaml(text)


def test_cameras_of_each_kind_of_file(tmp_path: Path) -> None:
    found = read_camera(write(tmp_path / "sensor.yaml", EUROC))
    assert found.camera.K.tolist() == [[458.654, 0, 367.215], [0, 457.296, 248.375], [0, 0, 1]]
    assert found.camera.distortion == (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)
    assert (found.camera.model, found.size) == ("opencv", (752, 480))
    found = read_camera(write(tmp_path / "info.yml", ROS))
    assert found.camera.K.tolist() == [[455, 0, 319.5], [0, 456, 239.5], [0, 0, 1]]
    assert found.camera.distortion == (-0.1, 0.05, 0.001, 0, 0)
    assert (found.size, found.body) == ((640, 480), None)
    found = read_camera(write(tmp_path / "info.yaml", ROS_IN_BLOCKS))
    assert (found.camera.model, found.camera.distortion) == ("fisheye", (0.1, -0.02, 0, 0.001))
    found = read_camera(write(tmp_path / "camchain.yaml", KALIBR))
    assert (found.camera.model, found.size) == ("fisheye", (512, 512))
    assert found.camera.K[0, 2] == 254.93170605935475
    document = {"K": [[500, 0, 320], [0, 500, 240], [0, 0, 1]], "distortion": [0.1, 0, 0, 0]}
    found = read_camera(write(tmp_path / "camera.JSON", json.dumps(document)))
    assert (found.camera.K[0, 0], found.camera.distortion, found.size) == (500, (0.1, 0, 0, 0), None)
    assert read_camera("500,501,320,240").camera.K[1, 1] == 501


def test_rigs_of_two_cameras(tmp_path: Path) -> None:
    left = read_camera(write(tmp_path / "cam0.yaml", EUROC))
    right = read_camera(write(tmp_path / "cam1.yaml", EUROC_RIGHT))
    rig = rig_of(left, right, None)
    # the baseline of the data set's cameras is 11 cm, the right one along x of the left one
    np.testing.assert_allclose(rig.t, [-0.11, 0, 0], atol=2e-3)
    np.testing.assert_allclose(rig.R, np.eye(3), atol=0.02)
    assert left.body is not None
    assert right.body is not None
    body = np.array([0.3, -0.2, 4.0, 1])
    seen0, seen1 = (np.linalg.inv(camera.body) @ body for camera in (left, right))  # type: ignore[arg-type]
    np.testing.assert_allclose(rig.R @ seen0[:3] + rig.t, seen1[:3], atol=1e-9)
    level = rig_of(left, left, 0.5)
    assert (level.R.tolist(), level.t.tolist()) == (np.eye(3).tolist(), [-0.5, 0, 0])
    with pytest.raises(ConfigError, match="baseline is -1"):
        rig_of(left, left, -1)
    with pytest.raises(ConfigError, match="do not both tell their place"):
        rig_of(left, read_camera("500,500,320,240"), None)


def test_rigs_in_a_file(tmp_path: Path) -> None:
    rig, size = read_rig(Path(write(tmp_path / "camchain.yaml", KALIBR)))
    assert (rig.t.tolist(), rig.left.model, size) == ([-0.10106, 0.0019, 0.001], "fisheye", (512, 512))
    assert rig.right.K[0, 0] == 190.4
    camera = {"K": [[500, 0, 320], [0, 500, 240], [0, 0, 1]]}
    R = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    document = {"camera": camera, "stereo": {"camera": camera, "R": R, "t": [-0.2, 0, 0]}}
    rig, size = read_rig(Path(write(tmp_path / "rig.json", json.dumps(document))))
    assert (rig.t.tolist(), rig.left.K[0, 0], size) == ([-0.2, 0, 0], 500, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no names with values"),
        ("{", "is neither JSON nor simple YAML"),
        ("a: 1", "has a; expected K and distortion"),
        (EUROC.replace("458.654,", ""), "intrinsics have shape"),
        (EUROC.replace("458.654", "x"), "intrinsics is .* expected a list of numbers"),
        (EUROC.replace("458.654", "-1"), "no positive focal lengths"),
        (EUROC.replace("pinhole", "omni"), "is a camera 'omni'"),
        (EUROC.replace("radial-tangential", "fov"), "lens 'fov'"),
        (EUROC.replace("         0.0, 0.0, 0.0, 1.0]", "]"), "T_BS has 12 numbers"),
        (EUROC.replace("-0.28340811, ", ""), "distortion .* has 3 values"),
    ],
)
def test_files_that_are_no_camera(tmp_path: Path, text: str, reason: str) -> None:
    name = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_camera(name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_rig(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*expected a calibration"):
        read_rig(tmp_path / "nowhere.json")
    for text, reason in (
        (EUROC, "expected camera and stereo"),
        (KALIBR.replace("T_cn_cnm1", "T"), "T_cn_cnm1 of cam1"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_rig(Path(write(tmp_path / "rig.yaml", text)))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="neither JSON nor simple YAML"):
        read_camera(str(tmp_path / "binary.yaml"))
