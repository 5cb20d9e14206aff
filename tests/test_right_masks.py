"""``superpoint track --right-mask``: where keypoints of a stereo pair's right images may be."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_tracking import SIZE
from track_standins import BASELINE_M, CAMERA, euroc, refused, run, world_extractor

HALF = SIZE[0] // 2


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.extractor.SuperPoint.from_pretrained", world_extractor)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """The right images of three pairs, whose left ones are in the folder."""
    euroc(tmp_path, range(3))
    return euroc(tmp_path, range(3), "cam1")


def write_mask(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """Black but for what is left of the middle of frames."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, :HALF] = 255
    assert cv2.imwrite(str(path), mask)
    return path


def columns(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """x of all keypoints, and xr of those that the right images have."""
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([float(row["x"]) for row in rows]), np.array([float(row["xr"]) for row in rows if row["xr"]])


def test_each_mask_is_of_its_camera(tmp_path: Path, pair: Path) -> None:
    out, mask = tmp_path / "t.csv", write_mask(tmp_path / "mask.png")
    whole = ["--right", pair, "--camera", CAMERA, "--baseline", BASELINE_M, "--out", out]
    assert run(tmp_path, *whole) == 0
    every, every_right = columns(out)
    assert run(tmp_path, *whole, "--right-mask", mask) == 0
    found, right = columns(out)
    np.testing.assert_array_equal(found, every)
    assert 50 < len(right) < len(every_right)
    assert right.max() < HALF < every_right.max()
    # and that of the left ones says nothing of the right ones
    assert run(tmp_path, *whole, "--mask", mask) == 0
    found, right = columns(out)
    assert found.max() < HALF
    assert run(tmp_path, *whole, "--mask", mask, "--right-mask", mask) == 0
    assert 50 < len(columns(out)[1]) <= len(right)


@pytest.mark.parametrize(
    ("size", "calibrated", "reason"),
    [
        ((600, 480), False, "is 640 x 480; expected 600 x 480, as the right mask is"),
        ((600, 480), True, "right mask is 600 x 480; expected 640 x 480, as the calibration says"),
    ],
)
def test_a_mask_of_another_size_is_one_line(
    tmp_path: Path,
    pair: Path,
    capfd: pytest.CaptureFixture[str],
    size: tuple[int, int],
    calibrated: bool,
    reason: str,
) -> None:
    mask = write_mask(tmp_path / "mask.png", size)
    calibration = []
    if calibrated:
        camera = tmp_path / "right.yaml"
        camera.write_text(
            "sensor_type: camera\nT_BS:\n  cols: 4\n  rows: 4\n"
            "  data: [1, 0, 0, 0.2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]\nresolution: [640, 480]\n"
            "camera_model: pinhole\nintrinsics: [500, 500, 319.5, 239.5]\ndistortion_model: radial-tangential\n"
            "distortion_coefficients: [0, 0, 0, 0]\n"
        )
        left = tmp_path / "left.yaml"
        left.write_text(camera.read_text().replace("0.2,", "0,"))
        calibration = ["--camera", left, "--right-camera", camera]
    line = refused(capfd, tmp_path, "--right", pair, *calibration, "--right-mask", mask, "--out", tmp_path / "t.csv")
    assert reason in line
    assert not (tmp_path / "t.csv").exists()


def test_it_needs_right_images_and_a_mask(tmp_path: Path, pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, mask = tmp_path / "t.csv", write_mask(tmp_path / "mask.png")
    line = refused(capfd, tmp_path, "--right-mask", mask, "--out", out)
    assert line.endswith("--right-mask is given without --right; expected the right images, too\n")
    write_mask(mask)
    black = tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros(SIZE[::-1], np.uint8))
    assert "black.png: is black everywhere" in refused(
        capfd, tmp_path, "--right", pair, "--right-mask", black, "--out", out
    )
    line = refused(capfd, tmp_path, "--right", pair, "--right-mask", mask, "--out", out, "--json", mask)
    assert "mask.png: --json would overwrite an input" in line
