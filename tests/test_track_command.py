"""``superpoint track`` from end to end: what it writes is what the tracker gives."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from processes import LONGEST_S, start_python
from test_tracking import SIZE
from track_standins import (
    BASELINE_M,
    CAMERA,
    FIRST_NS,
    STEP_M,
    STEP_NS,
    WorldBackend,
    euroc,
    refused,
    run,
    world_extractor,
    write_picture,
    write_video,
)

from frontend.camera import Camera
from frontend.cli.track import TRACK_OPTIONS
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.image import read_image
from frontend.track_files import COLUMNS, STEREO_COLUMNS
from frontend.tracking import Tracker, TrackerConfig
from frontend.types import TrackedFrame


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.extractor.SuperPoint.from_pretrained", world_extractor)


def read_rows(path: Path) -> dict[int, list[dict[str, str]]]:
    """Rows by frame."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("ascii")
    frames: dict[int, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        assert None not in row
        assert None not in row.values()
        frames.setdefault(int(row["frame"]), []).append(row)
    return frames


def check_rows(rows: list[dict[str, str]], frame: TrackedFrame) -> None:
    """Against what the tracker gave."""

    def column(*names: str) -> np.ndarray:
        return np.array([[float(row[name]) for name in names] for row in rows])

    assert {int(row["stamp_ns"]) for row in rows} == {frame.stamp_ns}
    assert [int(row["track_id"]) for row in rows] == frame.track_ids.tolist()
    assert [int(row["age"]) for row in rows] == frame.ages.tolist()
    assert [row["new"] == "1" for row in rows] == frame.new.tolist()
    assert {row["keyframe"] for row in rows} == {str(int(frame.keyframe))}
    np.testing.assert_allclose(column("x", "y"), frame.keypoints, atol=1e-4)
    np.testing.assert_allclose(column("vx", "vy"), frame.velocities, atol=1e-3)
    np.testing.assert_allclose(column("score")[:, 0], frame.scores, rtol=1e-5)
    if frame.sigmas is not None:
        np.testing.assert_allclose(column("sigma")[:, 0], frame.sigmas, atol=1e-4)
    if frame.normalised is not None:
        np.testing.assert_allclose(column("xn", "yn"), frame.normalised, atol=1e-8)


def tracked(paths: list[Path], extractor: SuperPoint, **settings: Any) -> list[TrackedFrame]:
    """By the tracker itself."""
    tracker = Tracker(**settings)
    return [tracker.update(extractor.extract(read_image(path)), FIRST_NS + n * STEP_NS) for n, path in enumerate(paths)]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["tracks.csv", "tracks.csv.gz"])
def test_rows_are_what_the_tracker_gives(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = euroc(tmp_path)
    out = tmp_path / "made" / name
    assert run(tmp_path, "--camera", CAMERA, "--out", out, "--json", tmp_path / "s.json", "--max-gap", 1) == 0
    found = read_rows(out)
    expected = tracked(
        sorted((folder / "data").iterdir()),
        world_extractor(),
        config=TrackerConfig(max_gap=1),
        camera=Camera.parse(CAMERA),
    )
    assert list(found) == list(range(12))
    for frame in expected:
        check_rows(found[frame.index], frame)
    # nothing but the files that were asked for
    assert sorted(path.name for path in out.parent.iterdir()) == [name]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["frames"] == 12
    assert summary["ended"] == "finished"
    assert summary["tracks"] == len({row["track_id"] for rows in found.values() for row in rows})
    assert summary["keyframes"] == sum(frame.keyframe for frame in expected)
    assert summary["motion_share"] == 1
    assert summary["image_size"] == list(SIZE)
    printed = capfd.readouterr().out
    assert printed.startswith("tracked 12 frames of 640 x 480 at ")
    assert printed.count("\n") == 1


def test_the_real_network_gives_what_it_gives_by_itself(tmp_path: Path, make_scene: Any) -> None:
    scene = make_scene(300, 400)
    for n in range(4):
        cv2.imwrite(str(tmp_path / f"{FIRST_NS + n * STEP_NS}.png"), scene[5 * n : 5 * n + 200, 8 * n : 8 * n + 260])
    paths = sorted(tmp_path.glob("*.png"))
    settings = {"runtime": "torch", "precision": "float32"}
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    out = tmp_path / "tracks.csv"
    options = ["--model", "superpoint-slim", "--max-keypoints", 150, "--device", "cpu"]
    assert run(tmp_path, "--out", out, *options, *flags) == 0
    extractor = SuperPoint.from_pretrained(
        "superpoint-slim", config=ExtractorConfig(max_keypoints=150), device="cpu", **settings
    )
    found = read_rows(out)
    for frame in tracked(paths, extractor):
        check_rows(found[frame.index], frame)
    assert {row["xn"] for row in found[0]} == {""}
    assert len({row["track_id"] for row in found[3]} & {row["track_id"] for row in found[0]}) > 10


@pytest.mark.usefixtures("stand_in")
def test_stereo_has_points_and_poses_in_metres(tmp_path: Path) -> None:
    euroc(tmp_path)
    right = euroc(tmp_path, range(12), "cam1")
    stamp = FIRST_NS + 5 * STEP_NS
    (right / "data" / f"{stamp}.png").write_bytes(b"")
    out, poses, summary = (tmp_path / name for name in ("t.csv", "p.tum", "s.json"))
    calibration = ["--camera", CAMERA, "--baseline", BASELINE_M]
    code = run(tmp_path, "--right", right, *calibration, "--out", out, "--poses", poses, "--json", summary)
    assert code == 0
    heading, *lines = poses.read_text().splitlines()
    assert heading == "# timestamp tx ty tz qx qy qz qw"
    values = np.array([[float(value) for value in line.split()] for line in lines])
    assert values.shape == (12, 8)
    # the camera goes to +x and does not turn
    np.testing.assert_allclose(values[:, 1], STEP_M * np.arange(12), atol=0.01)
    np.testing.assert_allclose(values[:, 2:4], 0, atol=0.02)
    np.testing.assert_allclose(values[:, 4:], [[0, 0, 0, 1]] * 12, atol=0.005)
    assert lines[1].split()[0] == "1403636579.813555584"
    found = read_rows(out)
    assert out.read_text().splitlines()[0] == COLUMNS + STEREO_COLUMNS
    world = WorldBackend().world
    for number, rows in found.items():
        seen = [row for row in rows if row["pz"]]
        assert (len(seen) > 150) == (number != 5)
        if seen:
            depths = np.array([float(row["pz"]) for row in seen])
            assert 2 < np.median(depths) < 8
            disparity = np.array([float(row["x"]) - float(row["xr"]) for row in seen])
            np.testing.assert_allclose(disparity, 500 * BASELINE_M / depths, atol=3)
    assert world.points[:, 2].min() > 1.9
    document = json.loads(summary.read_text())
    assert (document["poses"], document["lost_at_frame"], document["without_right"]) == (12, None, 1)
    assert document["stereo_points"] == sum(bool(row["pz"]) for rows in found.values() for row in rows)


@pytest.mark.usefixtures("stand_in")
def test_kitti_has_a_line_for_each_frame(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    left, right = euroc(tmp_path), euroc(tmp_path, range(12), "cam1")
    # the first has no points, the fourth cannot be read
    (right / "data" / f"{FIRST_NS}.png").write_bytes(b"")
    (left / "data" / f"{FIRST_NS + 3 * STEP_NS}.png").write_bytes(b"")
    given = [tmp_path, "--right", right, "--camera", CAMERA, "--baseline", BASELINE_M, "--out", tmp_path / "t.csv"]
    assert run(*given, "--poses", tmp_path / "p.txt", "--poses-format", "kitti") == 0
    assert "10 poses" in capfd.readouterr().out
    lines = (tmp_path / "p.txt").read_text().splitlines()
    poses = np.array([[float(value) for value in line.split()] for line in lines]).reshape(12, 3, 4)
    np.testing.assert_array_equal(poses[:2], [np.eye(4)[:3]] * 2)
    assert lines[3] == lines[2] != lines[4]
    expected = STEP_M * np.maximum(np.arange(12) - 1, 0)
    expected[3] = expected[2]
    np.testing.assert_allclose(poses[:, 0, 3], expected, atol=0.01)
    np.testing.assert_allclose(poses[:, :, :3], [np.eye(3)] * 12, atol=0.01)
    # the same poses as TUM's file has
    assert run(*given, "--poses", tmp_path / "p.tum") == 0
    tum = np.array([line.split()[1:4] for line in (tmp_path / "p.tum").read_text().splitlines()[1:]], float)
    np.testing.assert_allclose(np.delete(poses, [0, 3], axis=0)[:, :, 3], tum, atol=1e-8)


@pytest.mark.usefixtures("stand_in")
def test_a_principal_point_outside_the_images_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    euroc(tmp_path, range(3))
    right = euroc(tmp_path, range(3), "cam1")
    told = "lies outside its images of 640 x 480; is this the calibration of another resolution?"
    out = ["--out", tmp_path / "t.csv"]
    assert run(tmp_path, "--camera", "500,500,2400,200", *out) == 0
    line = f"superpoint track: the principal point (2400, 200) of the camera {told}\n"
    assert capfd.readouterr().err == line
    assert run(tmp_path, "--camera", "500,500,-1,200", "--right", right, "--baseline", "0.2", *out) == 0
    printed = capfd.readouterr().err.splitlines()
    assert printed == [
        f"superpoint track: the principal point (-1, 200) of the {name} {told}" for name in ("camera", "right camera")
    ]
    assert run(tmp_path, "--camera", CAMERA, *out) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("stand_in")
def test_a_pair_without_calibration_has_pixels_alone(tmp_path: Path) -> None:
    euroc(tmp_path, range(3))
    out = tmp_path / "t.csv"
    assert run(tmp_path, "--right", euroc(tmp_path, range(3), "cam1"), "--out", out) == 0
    rows = read_rows(out)[2]
    assert sum(bool(row["xr"]) for row in rows) > 100
    assert {row["pz"] for row in rows} == {""}


@pytest.mark.usefixtures("stand_in")
def test_a_video_in_and_a_video_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a walk.avi", range(8), 20)
    out, drawn = tmp_path / "t.csv", tmp_path / "drawn.mp4"
    assert run(path, "--out", out, "--video", drawn, "--every", 2, "--limit", 3) == 0
    found = read_rows(out)
    backend = WorldBackend()
    tracker = Tracker()
    for n in range(3):
        seen = world_extractor().extract(read_image(write_picture(tmp_path / "p.png", 2 * n)))
        check_rows(found[n], tracker.update(seen, 2 * n * STEP_NS))
    assert len(found) == 3
    assert len(backend.seen[0, False]) == len(found[0])
    capture = cv2.VideoCapture(str(drawn))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (3, 10)


@pytest.mark.usefixtures("stand_in")
def test_frames_that_cannot_be_read_are_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = euroc(tmp_path) / "data"
    names = sorted(folder.iterdir())
    names[2].write_bytes(names[2].read_bytes()[:60])
    names[5].unlink()
    out = tmp_path / "t.csv"
    assert run(tmp_path, "--out", out) == 0
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    assert [line for line in lines if "skipped" in line] == lines[:2]
    for line, path in zip(lines, (names[2], names[5]), strict=False):
        assert line.startswith(f"superpoint track: skipped {path}: ")
    assert "2 skipped as unreadable" in printed.out
    found = read_rows(out)
    assert len(found) == 10
    assert int(found[2][0]["stamp_ns"]) == FIRST_NS + 3 * STEP_NS
    assert sum(row["new"] == "1" for row in found[2]) < 40


@pytest.mark.usefixtures("stand_in")
def test_a_frame_of_another_size_ends_it_and_what_is_done_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = euroc(tmp_path) / "data"
    write_picture(sorted(folder.iterdir())[4], 4, size=(320, 240))
    line = refused(capfd, tmp_path, "--out", tmp_path / "t.csv", "--json", tmp_path / "s.json")
    assert line.endswith(": is 320 x 240; expected 640 x 480, as the frames before\n")
    assert len(read_rows(tmp_path / "t.csv")) == 4
    assert "is 320 x 240" in json.loads((tmp_path / "s.json").read_text())["ended"]


@pytest.mark.usefixtures("stand_in")
def test_nothing_is_left_where_nothing_was_tracked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"x")
    out = tmp_path / "t.csv"
    out.write_text("from before")
    assert run(folder, "--out", out, "--json", tmp_path / "s.json") == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith("no frame of it can be read; expected one at least")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "t.csv"]
    assert out.read_text() == "from before"


@pytest.mark.usefixtures("stand_in")
def test_the_mask_is_of_the_frames(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    euroc(tmp_path, range(3))
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[:, :320] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    assert run(tmp_path, "--out", tmp_path / "t.csv", "--mask", tmp_path / "mask.png") == 0
    xs = [float(row["x"]) for rows in read_rows(tmp_path / "t.csv").values() for row in rows]
    assert len(xs) > 200
    assert max(xs) < 320
    cv2.imwrite(str(tmp_path / "mask.png"), mask[:, :300])
    capfd.readouterr()
    line = refused(capfd, tmp_path, "--out", tmp_path / "t.csv", "--mask", tmp_path / "mask.png")
    assert "is 640 x 480; expected 300 x 480, as the mask is" in line


@pytest.mark.usefixtures("stand_in")
def test_stdout_takes_rows_or_the_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    euroc(tmp_path, range(3))
    assert run(tmp_path, "--out", "-") == 0
    printed = capfd.readouterr()
    assert printed.out.startswith(COLUMNS + "\n")
    assert len(list(csv.DictReader(io.StringIO(printed.out)))) > 500
    assert printed.err.startswith("tracked 3 frames")
    assert run(tmp_path, "--out", tmp_path / "t.csv", "--json", "-") == 0
    assert json.loads(capfd.readouterr().out)["frames"] == 3


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "nowhere: no such folder or file"),
        (["empty"], "empty: has no image"),
        (["mav0", "--poses", "p.tum"], "--poses is given without a stereo rig"),
        (["mav0", "--poses", "p.tum", "--camera", CAMERA, "--right", "mav0/cam1"], "--poses is given without a stereo"),
        (["mav0", "--poses-format", "kitti"], "--poses-format is kitti without --poses; expected both or neither"),
        (["mav0", "--baseline", "0.1", "--camera", CAMERA], "--baseline is given without --right"),
        (["mav0", "--baseline", "0.1", "--right", "mav0/cam1"], "--baseline is given without --camera"),
        (["mav0", "--baseline", "-1", "--right", "mav0/cam1", "--camera", CAMERA], "baseline is -1"),
        (["mav0", "--right", "mav0/cam1", "--right-camera", CAMERA, "--camera", CAMERA], "do not both tell"),
        (["mav0", "--rig", "rig.json", "--right", "mav0/cam1", "--camera", CAMERA], "--rig is given with another"),
        (["mav0", "--rig", "rig.json", "--right", "mav0/cam1"], "rig.json: No such file"),
        (["mav0", "--camera", "1,2,3"], "camera has 3 numbers"),
        (["mav0", "--camera", "x.yaml"], "x.yaml: No such file"),
        (["mav0", "--every", "0"], "--every is 0; expected 1 or more"),
        (["mav0", "--limit", "-1"], "--limit is -1"),
        (["mav0", "--fps", "-2"], "frame rate is -2"),
        (["mav0", "--fps", "0"], "frame rate is 0; expected a number above 0"),
        (["mav0", "--fps", "x"], "invalid float value: 'x'"),
        (["mav0", "--max-keypoints", "0"], "max_keypoints is 0"),
        (["mav0", "--threshold", "0"], "threshold is 0"),
        (["mav0", "--video", "v.avi"], "v.avi: is no name of a video; expected one that ends in .mp4"),
        (["mav0", "--video", "nowhere/../mav0"], "is no name of a video"),
        (["mav0", "--json", "mav0"], "mav0: is a folder; expected a file name for --json"),
        (["mav0", "--json", "t.csv"], "t.csv: --json would overwrite an input or another output"),
        (["mav0", "--json", "walk.txt/s.json"], "walk.txt is a file; expected a folder"),
        (["mav0", "--mask", "walk.txt"], "walk.txt: is not an image"),
        (["walk.txt"], "walk.txt: is no video"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    euroc(tmp_path, range(2))
    euroc(tmp_path, range(2), "cam1")
    (tmp_path / "walk.txt").write_text("no images\n")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    assert reason in refused(capfd, *arguments, "--out", "t.csv")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "/dev/full"])
def test_a_disk_that_is_full_is_told_with_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Or with a file that may not become larger, which is no device."""
    euroc(tmp_path)
    out = tmp_path / name
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        told = refused(capfd, tmp_path / "mav0", "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told in {f"superpoint track: {out}: {os.strerror(code)}\n" for code in (errno.ENOSPC, errno.EFBIG)}
    assert not list(tmp_path.glob("t.*"))


def test_settings_of_the_tracker_have_its_defaults() -> None:
    defaults = TrackerConfig()
    named = {option.name: option.default for option in TRACK_OPTIONS}
    for name in TrackerConfig.__dataclass_fields__:
        assert named[name] == getattr(defaults, name)


SLOW = """\
import signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
import frontend.extractor
from track_standins import WorldBackend, world_extractor
forward = WorldBackend.forward
def slow(self, batch):
    time.sleep(0.1)
    return forward(self, batch)
WorldBackend.forward = slow
frontend.extractor.SuperPoint.from_pretrained = world_extractor
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits "ignore"
from frontend.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_is_kept_when_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(20):
        write_picture(tmp_path / f"{n}.png", n)
    for n in range(2000):  # forth and back
        (source / f"{n}.png").symlink_to(tmp_path / f"{min(n % 38, 38 - n % 38)}.png")
    names = ["--out", "made/t.csv", "--video", "made/v.mp4", "--json", "made/s.json"]
    paths = [str(tmp_path / name) if name.startswith("made") else name for name in names]
    process = start_python("-c", SLOW, str(Path(__file__).parent), "track", str(source), *paths)
    limit = time.monotonic() + LONGEST_S
    part = tmp_path / "made" / f"t.{process.pid}.part.csv"
    while not part.is_file() or part.read_text().count("\n") < 1500:  # five frames
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "superpoint track: interrupted"
    assert out.startswith("tracked ")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["s.json", "t.csv", "v.mp4"]
    found = read_rows(tmp_path / "made" / "t.csv")
    assert list(found) == list(range(len(found)))
    assert min(len(rows) for rows in found.values()) > 200
    summary = json.loads((tmp_path / "made" / "s.json").read_text())
    assert (summary["ended"], summary["frames"]) == ("interrupted", len(found))
    assert cv2.VideoCapture(str(tmp_path / "made" / "v.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == len(found)
