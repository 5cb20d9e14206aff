"""What ``superpoint track`` reads and may not touch: lists, calibrations of pairs, videos of pairs, a full disk."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_tracking import SIZE, K
from track_standins import (
    BASELINE_M,
    CAMERA,
    FIRST_NS,
    STEP_M,
    TURN,
    WorldBackend,
    euroc,
    refused,
    run,
    world_extractor,
    write_picture,
    write_video,
)

from frontend.image import read_image

TURNED_SIZE = (SIZE[1], SIZE[0])
TURNED_K = np.array([[500.0, 0, 239.5], [0, 500, 319.5], [0, 0, 1]])


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.extractor.SuperPoint.from_pretrained", world_extractor)


def sensor(path: Path, K: np.ndarray, size: tuple[int, int], body: np.ndarray) -> Path:
    """A camera as EuRoC's sensor.yaml has it."""
    path.write_text(
        f"T_BS:\n  cols: 4\n  rows: 4\n  data: {body.ravel().tolist()}\nresolution: {list(size)}\n"
        f"camera_model: pinhole\nintrinsics: {K[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()}\n"
        "distortion_model: radial-tangential\ndistortion_coefficients: [0, 0, 0, 0]\n"
    )
    return path


def check_way(poses: Path, count: int) -> None:
    """The camera goes to +x and does not turn."""
    values = np.loadtxt(poses)
    assert values.shape == (count, 8)
    np.testing.assert_allclose(values[:, 1], STEP_M * np.arange(count), atol=0.01)
    np.testing.assert_allclose(values[:, 2:4], 0, atol=0.02)
    np.testing.assert_allclose(values[:, 4:], [[0, 0, 0, 1]] * count, atol=0.005)


# ---- outputs that are inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--out", "--json", "--poses", "--video"])
def test_the_list_of_a_data_set_is_no_output(tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str) -> None:
    (tmp_path / "link").symlink_to(euroc(tmp_path, range(2)))
    right = euroc(tmp_path, range(2), "cam1")
    calibration = ["--camera", CAMERA, "--right", right, "--baseline", BASELINE_M]
    others = [] if option == "--out" else ["--out", tmp_path / "t.csv"]
    held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    victim = tmp_path / "link" / "data.csv"
    if option == "--video":
        victim = tmp_path / "v.mp4"
        victim.symlink_to(right / "data.csv")
    line = refused(capfd, tmp_path, *calibration, *others, option, victim)
    assert line == f"superpoint track: {victim}: {option} would overwrite an input\n"
    assert {path: path.read_bytes() for path in held} == held
    assert not (tmp_path / "t.csv").exists()


def test_no_input_is_an_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = euroc(tmp_path, range(2)) / "data" / f"{FIRST_NS}.png"
    kitti = write_picture(tmp_path / "kitti" / "image_0" / "000000.png", 0).parent
    (tmp_path / "kitti" / "times.txt").write_text("0\n")
    (tmp_path / "s.toml").write_text("max_gap = 1\n")
    (tmp_path / "m.safetensors").write_bytes(b"weights")
    video = write_video(tmp_path / "walk.avi", range(2), 20)
    for source, victim, more in (
        ("mav0", image, []),
        (kitti, tmp_path / "kitti" / "times.txt", []),
        ("mav0", "s.toml", ["--config", "s.toml"]),
        ("mav0", "m.safetensors", ["--model", "m.safetensors"]),
        (video, "./walk.avi", []),
    ):
        before = Path(victim).read_bytes()
        assert "would overwrite an input" in refused(capfd, source, *more, "--out", victim)
        assert Path(victim).read_bytes() == before
    assert run("mav0", "--out", "mav0/cam0/tracks.csv", "--config", "s.toml") == 0


# ---- pairs and their calibration -------------------------------------------------------------------------------


def turned_pair(root: Path) -> tuple[Path, np.ndarray]:
    """A pair whose right camera lies on its side, and where the left one is in the right one's frame, (4, 4)."""
    euroc(root, range(8))
    between = np.eye(4)
    between[:3, :3], between[:3, 3] = TURN, TURN @ [-BASELINE_M, 0, 0]
    return euroc(root, range(8), "cam1", TURNED_SIZE), between


def test_a_rig_in_a_file_may_be_turned(tmp_path: Path) -> None:
    right, between = turned_pair(tmp_path)
    pose = {"R": between[:3, :3].tolist(), "t": between[:3, 3].tolist()}
    stereo = {"camera": {"K": TURNED_K.tolist()}, **pose}
    (tmp_path / "rig.json").write_text(json.dumps({"camera": {"K": K.tolist()}, "stereo": stereo}))
    rig, out, poses = (tmp_path / name for name in ("rig.json", "t.csv", "p.tum"))
    assert run(tmp_path, "--right", right, "--rig", rig, "--out", out, "--poses", poses) == 0
    check_way(poses, 8)


def test_two_files_of_cameras_tell_their_place(tmp_path: Path) -> None:
    right, between = turned_pair(tmp_path)
    body = np.eye(4)
    body[:3, :3], body[:3, 3] = cv2.Rodrigues(np.array([0.4, -1.1, 0.7]))[0], [0.3, -0.1, 0.05]
    first = sensor(tmp_path / "0.yaml", K, SIZE, body)
    second = sensor(tmp_path / "1.yaml", TURNED_K, TURNED_SIZE, body @ np.linalg.inv(between))
    poses, summary = tmp_path / "p.tum", tmp_path / "s.json"
    cameras = ["--camera", first, "--right-camera", second]
    assert run(tmp_path, "--right", right, *cameras, "--out", os.devnull, "--poses", poses, "--json", summary) == 0
    check_way(poses, 8)
    assert json.loads(summary.read_text())["stereo_points"] > 8 * 150


def test_right_images_have_the_size_of_their_camera(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    right, between = turned_pair(tmp_path)
    first = sensor(tmp_path / "0.yaml", K, SIZE, np.eye(4))
    second = sensor(tmp_path / "1.yaml", TURNED_K, (320, 240), np.linalg.inv(between))
    cameras = ["--camera", first, "--right-camera", second]
    line = refused(capfd, tmp_path, "--right", right, *cameras, "--out", tmp_path / "t.csv")
    assert line.endswith(f"{FIRST_NS}.png: is 480 x 640; expected 320 x 240, as the calibration says\n")
    pinhole = {"camera_model": "pinhole", "intrinsics": [500, 500, 319.5, 239.5]}
    chain = {
        "cam0": {**pinhole, "resolution": SIZE},
        "cam1": {**pinhole, "resolution": [320, 240], "T_cn_cnm1": between.tolist()},
    }
    (tmp_path / "camchain.json").write_text(json.dumps(chain))
    line = refused(capfd, tmp_path, "--right", right, "--rig", tmp_path / "camchain.json", "--out", tmp_path / "t.csv")
    assert "is 480 x 640; expected 320 x 240" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--camera", "0.yaml", "--baseline", "0.2"], "baseline is given with a camera that tells its place (T_BS)"),
        (["--camera", CAMERA + ",0.1,0,0,0", "--baseline", "0.2"], "camera of a rectified pair has distortion"),
        (["--camera", CAMERA, "--right-camera", "chain.json", "--baseline", "0.2"], "cam0 and cam1; expected one"),
    ],
)
def test_calibrations_that_do_not_go_together(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    euroc(tmp_path, range(2))
    euroc(tmp_path, range(2), "cam1")
    sensor(tmp_path / "0.yaml", K, SIZE, np.eye(4))
    camera = {"intrinsics": [500, 500, 319.5, 239.5]}
    (tmp_path / "chain.json").write_text(json.dumps({"cam0": camera, "cam1": camera}))
    assert reason in refused(capfd, "mav0", "--right", "mav0/cam1", *arguments, "--out", "t.csv")


def test_a_rectified_pair_has_the_camera_that_ros_rectified_it_to(tmp_path: Path) -> None:
    euroc(tmp_path, range(4))
    right = euroc(tmp_path, range(4), "cam1")
    info = {
        "K": [450, 0, 300, 0, 450, 200, 0, 0, 1],
        "D": [-0.3, 0.1, 0, 0, 0],
        "P": [500, 0, 319.5, 0, 0, 500, 239.5, 0, 0, 0, 1, 0],
        **{"width": 640, "height": 480, "distortion_model": "plumb_bob"},
    }
    (tmp_path / "info.json").write_text(json.dumps(info))
    poses = tmp_path / "p.tum"
    calibration = ["--camera", tmp_path / "info.json", "--baseline", BASELINE_M]
    assert run(tmp_path, "--right", right, *calibration, "--out", os.devnull, "--poses", poses) == 0
    check_way(poses, 4)


# ---- videos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_a_right_side_that_ends_first_ends_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    left, right, summary = write_video(tmp_path / "l.avi", range(5), 20), tmp_path / "right", tmp_path / "s.json"
    if kind == "video":
        right = write_video(tmp_path / "r.avi", range(3), 20, right=True)
    else:
        for n in range(3):
            write_picture(right / f"{n}.png", n, right=True)
    assert run(left, "--right", right, "--out", tmp_path / "t.csv", "--json", summary) == 0
    document = json.loads(summary.read_text())
    assert (document["frames"], document["without_right"]) == (5, 2)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"superpoint track: tracked without its right image: {right} has ended"] * 2


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: what is written beyond ``size`` bytes of a file is refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_half_a_video_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    euroc(tmp_path, range(6))
    video = tmp_path / "v.mp4"
    video.write_bytes(b"the one before")
    with files_of_at_most(20_000):
        code = run(tmp_path, "--out", os.devnull, "--video", video)
    printed = capfd.readouterr()
    assert code == 2
    assert printed.err == f"superpoint track: {video}: the video is not whole\n"
    assert printed.out.startswith("tracked 6 frames")
    assert str(video) not in printed.out
    assert video.read_bytes() == b"the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mav0", "v.mp4"]
    assert run(tmp_path, "--out", os.devnull, "--video", video) == 0
    assert cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT) == 6


# ---- lines about frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["read", "extract"])
def test_a_frame_that_is_too_large_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "two\nlines"
    for n in range(3):
        write_picture(folder / f"{n}.png", n)

    def lacking(do: Any, at: int) -> Any:
        calls = iter(range(99))

        def done(*arguments: Any, **named: Any) -> Any:
            if next(calls) == at:
                raise MemoryError
            return do(*arguments, **named)

        return done

    if where == "read":
        monkeypatch.setattr("frontend.sequences.read_image", lacking(read_image, 1))
    else:
        monkeypatch.setattr(WorldBackend, "forward", lacking(WorldBackend.forward, 1))
    assert run(folder, "--out", os.devnull) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"superpoint track: skipped {tmp_path}/two lines/1.png: out of memory"


def test_names_that_are_numbers_but_no_stamps_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    walk = tmp_path / "walk"
    for n in range(3):
        write_picture(walk / f"{50 * n:03}.png", n)
    given = [walk, "--out", tmp_path / "t.csv"]
    assert run(*given) == 0
    printed = capfd.readouterr()
    assert printed.err.startswith(f"superpoint track: {walk}: 050 follows 000, but images are taken to be evenly apart")
    assert printed.err.count("\n") == 1
    assert "; stamps by 30 frames a second; " in printed.out
    assert run(*given, "--fps", 20) == 0
    assert capfd.readouterr().err == ""
