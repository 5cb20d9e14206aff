"""``superpoint-match`` one against many reads the next image while one is matched, and nobody sees a difference."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from match_standins import FakePipeline, image_file, run

from frontend import image
from frontend.cli import match as command
from frontend.types import Features, MatchResult

ROOT = Path(__file__).resolve().parent.parent
LEVELS = {"a.png": 50, "b.png": 160, "c.png": 70, "d.png": 90}
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_load", lambda args, brief: FakePipeline(args.geometry))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, and the one that is matched against them."""
    for name, level in LEVELS.items():
        image_file(tmp_path / "many" / name, level)
    image_file(tmp_path / "query.png", 200)
    return tmp_path


def names(text: str) -> list[str]:
    return [line.rsplit("/", 1)[1] for line in text.splitlines()[1:]]


def damaged_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(60, 255, (120, 160, 3), dtype=np.uint8)
    data = bytearray(cv2.imencode(".jpg", noise)[1].tobytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(range(1, 41))
    return bytes(data)


def test_the_next_image_is_decoded_while_one_is_matched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decoded = {name: threading.Event() for name in LEVELS}
    order = list(LEVELS)
    read, match, matched, early = image.read_image, FakePipeline.match, list[str](), list[str]()

    def reading(path: Path, **options: Any) -> np.ndarray:
        found = read(path, **options)
        if Path(path).name in decoded:
            decoded[Path(path).name].set()
        return found

    def matching(
        self: FakePipeline, image0: np.ndarray, image1: np.ndarray, *rest: Features | None, **_: object
    ) -> Any:
        (name,) = (name for name, level in LEVELS.items() if level == image1.flat[0])
        matched.append(name)
        following = order[order.index(name) + 1 :]
        assert not following or decoded[following[0]].wait(WAIT_S), f"{following[0]} waits for {name}"
        early.extend(later for later in following[1:] if decoded[later].is_set())
        return match(self, image0, image1, *rest)

    monkeypatch.setattr(image, "read_image", reading)
    monkeypatch.setattr(FakePipeline, "match", matching)
    assert run(folder / "query.png", folder / "many", "--json", folder / "r.json") == 0
    assert matched == order
    assert not early  # each waits in the memory
    out, err = capfd.readouterr()
    assert names(out) == ["b.png", "d.png", "c.png", "a.png"]
    assert err == ""
    assert all(entry["timings_ms"]["read"] > 0 for entry in json.loads((folder / "r.json").read_text()))


@pytest.mark.parametrize("pictures", [False, True])
def test_what_is_wrong_with_images_is_told_in_their_order(
    folder: Path, pictures: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    many, match = folder / "many", FakePipeline.match
    (many / "a_broken.png").write_bytes(b"no picture")
    for name in ("b_damaged.jpg", "e_damaged.jpg"):
        (many / name).write_bytes(damaged_jpeg())

    def fail_at_c(self: FakePipeline, image0: np.ndarray, image1: np.ndarray, *rest: Features | None, **_: Any) -> Any:
        if image1.flat[0] == LEVELS["c.png"]:
            raise MemoryError
        return match(self, image0, image1, *rest)

    monkeypatch.setattr(FakePipeline, "match", fail_at_c)
    assert run(folder / "query.png", many, *(["-o", folder / "out"] if pictures else [])) == 0
    err = capfd.readouterr().err.splitlines()
    start = f"superpoint-match: {many}"
    expected = [
        f"superpoint-match: skipped {many}/a_broken.png: is not an image",
        f"{start}/b_damaged.jpg: parts of it are damaged (",
        f"superpoint-match: skipped {many}/c.png: out of memory; a smaller --resize needs less",
        f"{start}/e_damaged.jpg: parts of it are damaged (",
    ]
    assert len(err) == len(expected), err
    for line, beginning in zip(err, expected, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize("ahead_only", [True, False])
def test_what_is_too_large_beside_another_is_read_when_it_is_due(
    folder: Path, ahead_only: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, tries = image.read_image, list[bool]()

    def reading(path: Path, **options: Any) -> np.ndarray:
        if Path(path).name == "b.png":
            tries.append(threading.current_thread() is threading.main_thread())
            if not (ahead_only and tries[-1]):
                raise MemoryError
        return read(path, **options)

    monkeypatch.setattr(image, "read_image", reading)
    assert run(folder / "query.png", folder / "many") == 0
    assert tries == [False, True]
    out, err = capfd.readouterr()
    assert names(out) == [*(["b.png"] if ahead_only else []), "d.png", "c.png", "a.png"]
    line = f"superpoint-match: skipped {folder}/many/b.png: out of memory; a smaller --resize needs less\n"
    assert err == ("" if ahead_only else line)


def test_masks_are_told_of_each_image_after_its_damage(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "many" / "b.jpg").write_bytes(damaged_jpeg())
    mask = image_file(folder / "mask.png", 255)
    assert run(folder / "query.png", folder / "many", "--mask1", mask) == 0
    out, err = capfd.readouterr()
    assert names(out) == ["b.png", "d.png", "c.png", "a.png"]
    damage, skipped = err.splitlines()
    assert damage.startswith(f"superpoint-match: {folder}/many/b.jpg: parts of it are damaged (")
    assert skipped == (
        f"superpoint-match: skipped {folder}/many/b.jpg: mask {mask} is 40 x 30; expected 160 x 120, as the image"
    )


def test_a_reading_error_of_another_kind_ends_it_where_it_is_due(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read = image.read_image

    def reading(path: Path, **options: Any) -> np.ndarray:
        if Path(path).name == "c.png":
            raise OSError(errno.EIO, "Input/output error", "c.png")
        return read(path, **options)

    monkeypatch.setattr(image, "read_image", reading)
    assert run(folder / "query.png", folder / "many", "--json", folder / "r.json") == 2
    out, err = capfd.readouterr()
    assert names(out) == ["b.png", "a.png"]
    assert len(json.loads((folder / "r.json").read_text())) == 2
    assert err == "superpoint-match: c.png: Input/output error\n"


def script_of(*arguments: object) -> str:
    """A script that matches with the stand-in."""
    return (
        "import sys, match_standins as tests; from frontend.cli import match\n"
        "match._load = lambda args, brief: tests.FakePipeline(args.geometry)\n"
        f"sys.exit(match.main({[str(argument) for argument in arguments]}))"
    )


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_the_wait_for_a_pipe_and_keeps_what_is_done(folder: Path) -> None:
    pipe, many = folder / "pipe", folder / "many"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-c", script_of(folder / "query.png", many / "a.png", pipe, many / "b.png", "--json", "-")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background inherits "ignore"
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        writing = os.open(pipe, os.O_WRONLY)  # when it has been opened to be read: what comes before is done
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        os.close(writing)
    finally:
        process.kill()
    assert process.returncode == 130
    assert [Path(entry["image1"]["path"]).name for entry in json.loads(out)] == ["a.png"]
    assert err.splitlines()[-1] == "superpoint-match: interrupted"
    assert "Traceback" not in err


def test_ctrl_c_while_the_next_is_read_keeps_what_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard error is whole again when the line is told, whatever was being decoded."""
    begun, interrupted = threading.Event(), threading.Event()
    read, match = image.read_image, FakePipeline.match

    def reading(path: Path, **options: Any) -> np.ndarray:
        if Path(path).name == "c.png":
            begun.set()
            assert interrupted.wait(WAIT_S)
        return read(path, **options)

    def matching(self: FakePipeline, image0: np.ndarray, image1: np.ndarray, *rest: Any, **_: Any) -> MatchResult:
        if image1.flat[0] == LEVELS["b.png"]:
            assert begun.wait(WAIT_S)
            interrupted.set()
            raise KeyboardInterrupt
        return match(self, image0, image1, *rest)

    monkeypatch.setattr(image, "read_image", reading)
    monkeypatch.setattr(FakePipeline, "match", matching)
    assert run(folder / "query.png", folder / "many", "--json", folder / "r.json") == 130
    out, err = capfd.readouterr()
    assert names(out) == ["a.png"]
    assert len(json.loads((folder / "r.json").read_text())) == 1
    assert err == "superpoint-match: interrupted\n"


def test_threads_take_turns_in_keeping_decoders_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """Else whoever leaves last puts back what the other had turned stderr to."""
    inside, other_inside, left = threading.Event(), threading.Event(), threading.Event()
    damages: list[list[str]] = []
    level = cv2.utils.logging.getLogLevel() if not hasattr(cv2, "getLogLevel") else cv2.getLogLevel()

    def other() -> None:
        assert inside.wait(WAIT_S)
        with image.quiet_decoders() as damage:
            other_inside.set()
            assert left.wait(WAIT_S)
        damages.append(damage)

    thread = threading.Thread(target=other)
    thread.start()
    with image.quiet_decoders() as damage:
        inside.set()
        assert not other_inside.wait(0.3)
        os.write(2, b"Corrupt JPEG data\n")
    left.set()
    thread.join()
    os.write(2, b"after\n")
    assert (damage, damages) == (["Corrupt JPEG data"], [[]])
    assert capfd.readouterr().err == "after\n"
    assert level == (cv2.utils.logging.getLogLevel() if not hasattr(cv2, "getLogLevel") else cv2.getLogLevel())
