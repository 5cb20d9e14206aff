"""``superpoint-match`` one against many, and where its outputs go, with a stand-in for the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from match_standins import FakePipeline, image_file, refused, run

from frontend.cli import match as command
from frontend.types import Features, MatchResult


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_load", lambda args, brief: FakePipeline(args.geometry))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, and the one that is matched against them."""
    for name, level in (("a", 50), ("b", 160), ("c", 70), ("d", 90)):
        image_file(tmp_path / "many" / f"{name}.png", level)
    image_file(tmp_path / "query.png", 200)
    return tmp_path


def failing_at(nth: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nth image's match raises."""
    match, calls = FakePipeline.match, [0]

    def fail(self: FakePipeline, *images: np.ndarray | Features | None, **masks: object) -> MatchResult:
        calls[0] += 1
        if calls[0] == nth:
            raise error
        return match(self, *images, **masks)  # type: ignore[arg-type]

    monkeypatch.setattr(FakePipeline, "match", fail)


def names(text: str) -> list[str]:
    return [line.rsplit("/", 1)[1] for line in text.splitlines()[1:]]


# ---- what is done is not lost --------------------------------------------------------------------------------------


def test_what_was_done_before_an_interruption_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing_at(3, KeyboardInterrupt(), monkeypatch)
    assert run(folder / "query.png", folder / "many", "--json", folder / "r.json") == 130
    out, err = capfd.readouterr()
    assert names(out) == ["b.png", "a.png"]
    assert err == "superpoint-match: interrupted\n"
    assert [Path(entry["image1"]["path"]).name for entry in json.loads((folder / "r.json").read_text())] == [
        "b.png",
        "a.png",
    ]


def test_an_interruption_before_the_first_image_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing_at(1, KeyboardInterrupt(), monkeypatch)
    assert run(folder / "query.png", folder / "many", "--json", folder / "r.json") == 130
    assert capfd.readouterr() == ("", "superpoint-match: interrupted\n")
    assert not (folder / "r.json").exists()


def test_what_was_done_before_a_disk_was_full_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing_at(3, OSError(28, "No space left on device", "c.png"), monkeypatch)
    assert run(folder / "query.png", folder / "many", "-o", folder / "out", "--json", "-") == 2
    out, err = capfd.readouterr()
    assert len(json.loads(out)) == 2
    assert err.splitlines()[-1] == "superpoint-match: c.png: No space left on device"


def test_an_image_too_large_for_the_memory_is_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing_at(2, MemoryError(), monkeypatch)
    assert run(folder / "query.png", folder / "many") == 0
    out, err = capfd.readouterr()
    assert names(out) == ["d.png", "c.png", "a.png"]
    reason = "out of memory; a smaller --resize needs less"
    assert err == f"superpoint-match: skipped {folder}/many/b.png: {reason}\n"


def test_damaged_images_are_named_where_the_bar_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(60, 255, (120, 160, 3), dtype=np.uint8)
    data = bytearray(cv2.imencode(".jpg", noise)[1].tobytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(range(1, 41))
    (folder / "many" / "e.jpg").write_bytes(data)
    written: list[str] = []
    monkeypatch.setattr("frontend.progress.Progress.write", lambda _, line: written.append(line))
    assert run(folder / "query.png", folder / "many") == 0
    (line,) = written
    assert line.startswith(f"superpoint-match: {folder}/many/e.jpg: parts of it are damaged (")
    assert capfd.readouterr().err == ""


def test_documents_are_kept_as_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Numbers in nested lists take seven times the memory."""
    kept: list[object] = []
    write = command.write_json

    def spy(name: str, documents: list[str], many: bool) -> list[str]:
        kept.extend(documents)
        return write(name, documents, many)

    monkeypatch.setattr(command, "write_json", spy)
    assert run(folder / "query.png", folder / "many", "--json", "-") == 0
    assert [type(document) for document in kept] == [str] * 4
    assert [len(entry["matches"]) for entry in json.loads(capfd.readouterr().out)] == [16, 9, 7, 5]


# ---- where the outputs go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["many", "--json", "afile/x.json"], "{}/afile is a file, expected a folder"),
        (["many", "-o", "afile/pics"], "{}/afile is a file, expected a folder"),
        (["many", "-o", "afile"], "{}/afile is a file, expected a folder"),
        (["many", "--warp", "afile/more/pics/"], "{}/afile is a file, expected a folder"),
        (["many/a.png", "-o", "afile/x.png"], "{}/afile is a file, expected a folder"),
        (["many", "--json", "many"], "is a directory, expected a file name for --json"),
        (["many", "-o", "new.png"], "is named like a file; -o is a folder where many images are matched"),
        (["many/*.png", "--warp", "new.JPG"], "--warp is a folder where many images are matched"),
        (["many/a.png", "-o", "pics/", "--warp", "w.png"], "--warp is a folder where many images are matched"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    folder: Path, arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_load", None)
    monkeypatch.chdir(folder)
    (folder / "afile").write_text("")
    assert reason.format(folder) in refused(capfd, "query.png", *arguments)


def test_a_folder_that_may_not_be_written_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != folder)
    for option, name in (("-o", "new/pics"), ("--json", "r.json")):
        reason = refused(capfd, folder / "query.png", folder / "many", option, folder / name)
        assert f"{folder} cannot be written, expected a folder that can" in reason


def test_pipes_and_devices_need_no_folder_that_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert run(folder / "query.png", folder / "many", "--json", "/dev/null") == 0


@pytest.mark.parametrize("form", ["existing", "new/"])
def test_a_folder_for_pictures_makes_one_image_many(folder: Path, form: str, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "existing").mkdir()
    out = f"{folder}/{form}"
    assert run(folder / "query.png", folder / "many" / "a.png", "-o", out, "--warp", out, "--json", "-") == 0
    assert len(json.loads(capfd.readouterr().out)) == 1
    assert sorted(path.name for path in Path(out).iterdir()) == ["a.png", "a_warp.png"]


def test_a_name_that_ends_in_a_slash_is_a_folder_whatever_else_it_is_like(folder: Path) -> None:
    assert run(folder / "query.png", folder / "many", "-o", f"{folder}/new.png/") == 0
    assert len(list((folder / "new.png").iterdir())) == 4


@pytest.mark.parametrize("name", ["o.pgm", "o.pbm", "o.exr", "o", "o.p\udce9g", "o.pn\u011f"])
def test_endings_that_hold_no_colours_are_refused_before_the_work(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_load", None)
    for option in ("-o", "--warp"):
        reason = refused(capfd, folder / "query.png", folder / "many" / "a.png", option, folder / name)
        assert "OpenCV writes no colour images with the ending" in reason


@pytest.mark.parametrize("ending", [".jp2", ".ppm", ".webp", ".TIF"])
def test_other_endings_are_written(folder: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    image_file(folder / "large.png", 60, (100, 90))
    assert run(folder / "query.png", folder / "large.png", "-o", folder / f"o{ending}") == 0
    assert (folder / f"o{ending}").stat().st_size > 0
    assert capfd.readouterr().err == ""


def test_a_picture_that_cannot_be_encoded_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """JPEG holds no more than 65,500 pixels along a side, which OpenCV tells in lines of its own."""
    monkeypatch.setattr("frontend.viz.draw_matches", lambda *_: np.zeros((8, 70_000, 3), np.uint8))
    reason = refused(capfd, folder / "query.png", folder / "many" / "a.png", "-o", folder / "o.jpg")
    assert "OpenCV could not encode a picture of 70000 x 8" in reason


def test_no_overlay_without_a_homography(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dark = image_file(folder / "dark.png", 0)
    assert run(folder / "query.png", dark, "--warp", folder / "w.png") == 3
    assert capfd.readouterr().out.splitlines()[-1] == "no overlay: no homography"
    assert run(folder / "query.png", dark, folder / "many" / "a.png", "--warp", folder / "pics") == 0
    assert capfd.readouterr().err == "superpoint-match: no overlay of 1 of 2 images: no homography\n"
    assert [path.name for path in (folder / "pics").iterdir()] == ["a_warp.png"]


def test_the_help_says_what_makes_many(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    assert "given as a file is a pair" in " ".join(capfd.readouterr().out.split())
