"""Calibration files against the numbers in them, and their reader against a YAML library."""

from __future__ import annotations

import json
import re
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
    with pytest.raises(ConfigError, match="do not both tell their place"):
        rig_of(left, read_camera("500,500,320,240"), None)


def test_a_baseline_is_of_a_rectified_pair(tmp_path: Path) -> None:
    flat, right = read_camera("500,500,320,240"), read_camera("501,501,321,241,0,0,0,0")
    level = rig_of(flat, right, 0.5)
    assert (level.R.tolist(), level.t.tolist()) == (np.eye(3).tolist(), [-0.5, 0, 0])
    assert (level.left.K[0, 0], level.right.K[0, 0]) == (500, 501)
    with pytest.raises(ConfigError, match="baseline is -1"):
        rig_of(flat, flat, -1)
    placed = read_camera(write(tmp_path / "cam0.yaml", EUROC))
    with pytest.raises(ConfigError, match=r"baseline is given with a camera that tells its place \(T_BS\); expected"):
        rig_of(placed, placed, 0.5)
    for text in ("500,500,320,240,0.1,0,0,0", "fisheye:500,500,320,240,0,0,0,0"):
        for left, right in ((read_camera(text), flat), (flat, read_camera(text))):
            with pytest.raises(ConfigError, match="camera of a rectified pair has distortion; expected none"):
                rig_of(left, right, 0.5)
    # ROS tells the camera that images have after they were rectified
    projection = "projection_matrix:\n  rows: 3\n  cols: 4\n  data: [440, 0, 322, 0, 0, 441, 242, 0, 0, 0, 1, 0]\n"
    info = read_camera(write(tmp_path / "info.yaml", ROS + projection))
    assert info.camera.K[0, 0] == 455
    rig = rig_of(info, info, 0.5)
    assert rig.left.K.tolist() == rig.right.K.tolist() == [[440, 0, 322], [0, 441, 242], [0, 0, 1]]
    assert (rig.left.distortion, rig.left.model) == ((), "opencv")
    with pytest.raises(ConfigError, match="projection_matrix has 11 numbers; expected 12"):
        read_camera(write(tmp_path / "bad.yaml", ROS + projection.replace("440, ", "")))


K = [[500.0, 0.0, 320.0], [0.0, 510.0, 240.0], [0.0, 0.0, 1.0]]
FLAT_K = [500, 0, 320, 0, 510, 240, 0, 0, 1]
LENS = [0.1, -0.2, 0.01, 0.02]
ECHOED = """\
header:
  seq: 0
  stamp:
    secs: 12
    nsecs: 34
  frame_id: "camera"
height: 480
width: 640
distortion_model: "plumb_bob"
D: [0.1, -0.2, 0.01, 0.02]
K: [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
R: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
P: [480.0, 0.0, 319.0, 0.0, 0.0, 480.0, 239.0, 0.0, 0.0, 0.0, 1.0, 0.0]
binning_x: 0
binning_y: 0
roi:
  x_offset: 0
  do_rectify: False
---
"""


def in_lines(name: str, values: str) -> str:
    return "\n".join([f"{name}:", *(f"- {value}" for value in values.split(", "))])


ECHOED_2 = re.sub(r"^([DKRP]): \[(.*)\]$", lambda m: in_lines(m[1].lower(), m[2]), ECHOED, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"K": K, "D": LENS, "width": 640, "height": 480}),
        json.dumps({"K": K, "dist_coeffs": LENS, "image_width": 640, "image_height": 480}),
        json.dumps({"K": FLAT_K, "distortion_coef": LENS, "resolution": [640, 480]}),
        json.dumps({"intrinsics": [500, 510, 320, 240], "distortion": LENS, "width": 640, "height": 480}),
        json.dumps({"intrinsics": [500, 510, 320, 240], "d": LENS, "resolution": [640, 480]}),
        json.dumps({"camera_matrix": K, "distortion_coeffs": [LENS], "resolution": [640, 480]}),
        json.dumps({"camera_matrix": {"data": FLAT_K}, "D": {"data": LENS}, "image_width": 640, "image_height": 480}),
        json.dumps({"K": K, "distortion": LENS, "D": LENS, "resolution": [640, 480], "model": "opencv"}),
        ECHOED,
        ECHOED_2,
    ],
)
def test_a_lens_is_found_by_any_of_its_names(tmp_path: Path, text: str) -> None:
    found = read_camera(write(tmp_path / "c.yaml", text))
    assert (found.camera.K.tolist(), found.camera.distortion) == (K, tuple(LENS))
    assert (found.camera.model, found.size) == ("opencv", (640, 480))
    if "plumb_bob" in text:
        assert found.rectified is not None
        assert found.rectified.K.tolist() == [[480, 0, 319], [0, 480, 239], [0, 0, 1]]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"distortion_model": "plumb_bob"}, "has lens 'plumb_bob' without parameters"),
        ({"distortion_model": "equidistant"}, "has lens 'equidistant' without parameters"),
        ({"model": "fisheye"}, "has lens 'fisheye' without parameters"),
        ({"distorsion": LENS}, "has distorsion; expected one of distortion, "),
        ({"distortion": LENS, "D": [0, 0, 0, 0]}, "has distortion and D, which differ"),
        ({"distortion": LENS, "distortion_model": "none"}, "has lens 'none' with parameters"),
    ],
)
def test_no_lens_is_dropped(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    for camera in ({"K": K}, {"intrinsics": [500, 500, 320, 240]}, {"camera_matrix": {"data": FLAT_K}}):
        name = write(tmp_path / "c.json", json.dumps({**camera, **more}))
        with pytest.raises(ConfigError, match=reason) as caught:
            read_camera(name)
        assert str(caught.value).startswith(f"{name}: {reason}")


def test_a_camera_may_have_no_lens(tmp_path: Path) -> None:
    for more in ({}, {"distortion_model": "none"}, {"distortion_model": "", "D": []}, {"model": "opencv"}):
        assert read_camera(write(tmp_path / "c.json", json.dumps({"K": K, **more}))).camera.distortion == ()


@pytest.mark.parametrize("kind", ["zeros", "last row", "mirror", "stretched"])
def test_places_that_are_none(tmp_path: Path, kind: str) -> None:
    matrix = np.eye(4)
    if kind == "zeros":
        matrix[:] = 0
    elif kind == "last row":
        matrix[3, 3] = 2
    elif kind == "mirror":
        matrix[0, 0] = -1
    else:
        matrix[1, 1] = 1.01
    name = write(tmp_path / "c.json", json.dumps({"K": K, "T_BS": {"data": matrix.ravel().tolist()}}))
    with pytest.raises(ConfigError, match="T_BS is no rigid transform; expected a rotation, a translation and the row"):
        read_camera(name)
    chain = {"cam0": {"K": K}, "cam1": {"K": K, "T_cn_cnm1": matrix.tolist()}}
    with pytest.raises(ConfigError, match="T_cn_cnm1 of cam1 is no rigid transform"):
        read_rig(Path(write(tmp_path / "chain.json", json.dumps(chain))))


def test_of_several_cameras_one_has_to_be_chosen(tmp_path: Path) -> None:
    name = write(tmp_path / "camchain.yaml", KALIBR)
    with pytest.raises(ConfigError, match="has cam0 and cam1; expected one camera, or the file for --rig"):
        read_camera(name, single=True)
    assert read_camera(name).camera.K[0, 0] == 190.97847715128717
    one = write(tmp_path / "one.yaml", KALIBR.partition("cam1:")[0])
    assert read_camera(one, single=True).size == (512, 512)


def test_rigs_in_a_file(tmp_path: Path) -> None:
    (c, s) = np.cos(0.3), np.sin(0.3)
    R = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    text = KALIBR.replace("[1.0, 0.0, 0.0, -0.10106]", f"[{c}, {-s}, 0.0, -0.10106]")
    text = text.replace("[0.0, 1.0, 0.0, 0.0019]", f"[{s}, {c}, 0.0, 0.0019]").replace("190.4, 190.4", "191, 192")
    text = text[: text.rindex("512")] + "500]\n"
    rig, sizes = read_rig(Path(write(tmp_path / "camchain.yaml", text)))
    assert (rig.t.tolist(), rig.left.model, sizes) == ([-0.10106, 0.0019, 0.001], "fisheye", ((512, 512), (512, 500)))
    assert (rig.R.tolist(), rig.right.K[1, 1]) == (R, 192)
    camera, other = ({"K": [[focal, 0, 320], [0, focal, 240], [0, 0, 1]]} for focal in (500, 510))
    document = {"camera": camera, "stereo": {"camera": other, "R": R, "t": [-0.2, 0, 0]}}
    rig, sizes = read_rig(Path(write(tmp_path / "rig.json", json.dumps(document))))
    assert (rig.t.tolist(), rig.R.tolist(), sizes) == ([-0.2, 0, 0], R, (None, None))
    assert (rig.left.K[0, 0], rig.right.K[0, 0]) == (500, 510)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no names with values"),
        ("{", "is neither JSON nor simple YAML"),
        ("a: 1", "has a; expected K and distortion"),
        (EUROC.replace("458.654,", ""), "intrinsics have shape"),
        (EUROC.replace("458.654", "x"), "intrinsics is .* expected a list of numbers"),
        (EUROC.replace("458.654", "-1"), "focal lengths of -1 and"),
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
