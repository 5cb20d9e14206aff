"""``superpoint track --video`` where the video cannot be written to its end: all else is as it would be without one."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from track_standins import BASELINE_M, CAMERA, euroc, run, world_extractor

from frontend.cli.track_outputs import PartFile

FRAMES = 6


class Writer:
    """In the place of OpenCV's, which tells nothing where the disk is full."""

    fourcc = staticmethod(cv2.VideoWriter.fourcc)
    opens, whole, breaks = True, FRAMES, FRAMES

    def __init__(self, *arguments: Any) -> None:
        self._writer = real(*arguments)
        self._count = 0

    def isOpened(self) -> bool:
        return self.opens

    def write(self, picture: np.ndarray) -> None:
        self._count += 1
        if self._count > self.breaks:
            raise cv2.error("error: (-2)\n> it broke\n")
        if self._count <= self.whole:
            self._writer.write(picture)

    def release(self) -> None:
        self._writer.release()


real = cv2.VideoWriter


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.extractor.SuperPoint.from_pretrained", world_extractor)
    monkeypatch.setattr(cv2, "VideoWriter", Writer)


def track(root: Path, *more: object) -> int:
    """Rows, poses and a summary of a pair."""
    calibration = ["--camera", CAMERA, "--baseline", BASELINE_M, "--right", root / "mav0" / "cam1"]
    files = ["--out", root / "t.csv", "--poses", root / "p.tum", "--json", root / "s.json"]
    return run(root, *calibration, *files, *more)


def expected(root: Path, capfd: pytest.CaptureFixture[str]) -> tuple[bytes, bytes]:
    """The rows and the poses without a video; they are there no more."""
    for camera in ("cam0", "cam1"):
        euroc(root, range(FRAMES), camera)
    assert track(root) == 0
    capfd.readouterr()
    found = tuple((root / name).read_bytes() for name in ("t.csv", "p.tum"))
    for name in ("t.csv", "p.tum", "s.json"):
        (root / name).unlink()
    return found


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("codec", "this OpenCV writes no MPEG-4 video of 640 x 480; goes on without the video"),
        ("encoder", "OpenCV ended the video after 2 frames (error: (-2) > it broke); goes on without the video"),
        ("disk", "the video is not whole"),
        ("name", "No space left on device"),
    ],
)
def test_a_video_that_is_lost_costs_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    files = expected(tmp_path, capfd)
    if kind == "codec":
        monkeypatch.setattr(Writer, "opens", False)
    elif kind == "encoder":
        monkeypatch.setattr(Writer, "breaks", 2)
    elif kind == "disk":
        monkeypatch.setattr(Writer, "whole", 3)
    else:
        keep = PartFile.keep

        def full(file: PartFile) -> None:
            if file.name.endswith(".mp4"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.path))
            keep(file)

        monkeypatch.setattr(PartFile, "keep", full)
    video = tmp_path / "v.mp4"
    assert track(tmp_path, "--video", video) == 2
    printed = capfd.readouterr()
    assert printed.err == f"superpoint track: {video}: {reason}\n"
    assert printed.out.startswith(f"tracked {FRAMES} frames")
    assert printed.out.endswith(f"; {tmp_path / 't.csv'}, {tmp_path / 'p.tum'}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mav0", "p.tum", "s.json", "t.csv"]
    assert ((tmp_path / "t.csv").read_bytes(), (tmp_path / "p.tum").read_bytes()) == files
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["outputs"] == [str(tmp_path / "t.csv"), str(tmp_path / "p.tum")]
    assert (summary["ended"], summary["frames"]) == ("finished", FRAMES)
    assert summary["video_failure"] == f"{video}: {reason.partition(';')[0]}"


def test_a_video_that_is_whole_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected(tmp_path, capfd)
    assert track(tmp_path, "--video", tmp_path / "v.mp4") == 0
    assert capfd.readouterr().out.endswith(f"p.tum, {tmp_path / 'v.mp4'}\n")
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["outputs"][2:], summary["video_failure"]) == ([str(tmp_path / "v.mp4")], None)


def test_both_reasons_are_told_where_the_sequence_ends_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected(tmp_path, capfd)
    monkeypatch.setattr(Writer, "whole", 1)
    write, written = Writer.write, iter(range(99))

    def asked_to_end(writer: Writer, picture: np.ndarray) -> None:
        write(writer, picture)
        if next(written) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Writer, "write", asked_to_end)
    video = tmp_path / "v.mp4"
    assert track(tmp_path, "--video", video) == 130
    assert capfd.readouterr().err.splitlines() == [
        f"superpoint track: {video}: the video is not whole",
        "superpoint track: interrupted",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mav0", "p.tum", "s.json", "t.csv"]
