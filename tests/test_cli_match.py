"""What ``superpoint-match`` does around the match itself, with a stand-in for the pipeline."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from match_standins import FakeExtractor, FakePipeline, image_file, refused, run

from frontend.cli import match as command
from frontend.image import read_image
from frontend.types import MatchResult

KEYS = [
    *(
        "image0",
        "image1",
        "keypoints0",
        "keypoints1",
        "scores0",
        "scores1",
        "sigmas0",
        "sigmas1",
        "matches",
        "match_scores",
    ),
    *("inliers", "homography", "status", "timings_ms", "model", "matcher"),
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_load", lambda args, brief: FakePipeline(args.geometry))


def lack_of_memory_of_opencv() -> Exception:
    with pytest.raises(cv2.error) as caught:
        # more than there are addresses; memory of this size cannot be had anywhere
        cv2.resize(np.zeros((1, 1), np.float64), (2**31 - 1, 2**15))
    return caught.value


@pytest.mark.usefixtures("fake")
class TestCommand:
    def test_summary_and_exit_code(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0, image1 = image_file(tmp_path / "a.png", 200), image_file(tmp_path / "b.png", 120, (50, 60))
        assert run(image0, image1) == 0
        out, err = capfd.readouterr()
        assert err == ""
        for part in (
            f"{image0}  40 x 30  20 keypoints",
            f"{image1}  50 x 60  12 keypoints",
            "matches    12",
            "inliers    9 (75 %)",
            "1.001",
            "load ",
            "network 12",
            "model      fake",
        ):
            assert part in out

    def test_json_has_the_documented_keys(self, tmp_path: Path) -> None:
        image0, image1 = image_file(tmp_path / "a.png", 60), image_file(tmp_path / "b.png", 50)
        assert run(image0, image1, "--json", tmp_path / "out" / "r.json") == 0
        document = json.loads((tmp_path / "out" / "r.json").read_text())
        assert list(document) == KEYS
        assert document["image1"] == {"path": str(image1), "width": 40, "height": 30, "num_keypoints": 5}
        expected = FakeExtractor().extract(np.full((30, 40, 3), 50, np.uint8)).keypoints
        np.testing.assert_array_equal(np.array(document["keypoints1"], np.float32), expected)
        assert document["keypoints1"][0][0] == 1.1  # the shortest decimals of the float32
        assert document["matches"] == [[i, i] for i in range(5)]
        assert document["inliers"] == [True, True, True, False, False]
        assert np.array(document["homography"]).shape == (3, 3)
        assert document["status"] == "ok"
        assert document["timings_ms"]["network"] == 12.346
        assert list(document["timings_ms"]) == ["load", "read", "network", "matching"]

    def test_json_to_stdout_is_json_alone(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0, image1 = image_file(tmp_path / "a.png", 60), image_file(tmp_path / "b.png", 10)
        assert run(image0, image1, "--json", "-") == 3
        out, err = capfd.readouterr()
        document = json.loads(out)
        assert document["homography"] is None
        assert document["status"] == "too_few_matches"
        assert "no homography found (too few matches)" in err

    def test_geometry_none_and_fundamental(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0, image1, black = (image_file(tmp_path / f"{i}.png", level) for i, level in enumerate((60, 60, 0)))
        assert run(image0, image1, "--geometry", "none") == 0
        assert run(image0, black, "--geometry", "none") == 3
        capfd.readouterr()
        assert run(image0, black, "--geometry", "fundamental") == 3
        assert "no fundamental matrix found" in capfd.readouterr().out
        assert run(image0, image1, "--geometry", "fundamental", "--json", "-") == 0
        document = json.loads(capfd.readouterr().out)
        assert set(document) == {*KEYS, "fundamental"}
        assert document["homography"] is None
        assert np.array(document["fundamental"]).shape == (3, 3)

    def test_pictures(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0, image1 = image_file(tmp_path / "a.png", 60), image_file(tmp_path / "b.png", 60)
        drawn, warped = tmp_path / "new" / "m.png", tmp_path / "new" / "w.jpg"
        assert run(image0, image1, "-o", drawn, "--warp", warped) == 0
        assert f"wrote      {drawn}\n" in capfd.readouterr().out
        assert read_image(drawn).shape[1] >= 88
        assert read_image(warped).shape == (30, 40, 3)
        assert sorted(path.name for path in drawn.parent.iterdir()) == ["m.png", "w.jpg"]  # nothing temporary left
        assert run(image0, image_file(tmp_path / "c.png", 0), "--warp", tmp_path / "none.png") == 3
        assert not (tmp_path / "none.png").exists()

    @pytest.mark.parametrize("form", ["directory", "glob", "names"])
    def test_one_against_many(self, tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str) -> None:
        folder = tmp_path / "many"
        image0 = image_file(folder / "query.png", 200)
        levels = {"b": 50, "a": 10, "c": 160}
        paths = [image_file(folder / f"{name}.png", level) for name, level in levels.items()]
        image_file(folder / "sub" / "ignored.png", 250)
        (folder / "broken.png").write_bytes(b"no picture")
        (folder / "gone.png").symlink_to("nothing.png")
        (folder / "notes.txt").write_text("no picture and not named like one")
        given = {
            "directory": [folder],
            "glob": [folder / "*.png"],
            "names": [*paths, image0, folder / "broken.png", folder / "missing.png"],
        }[form]
        code = run(image0, *given, "-o", tmp_path / "out", "--warp", tmp_path / "out", "--json", tmp_path / "all.json")
        out, err = capfd.readouterr()
        assert code == 0
        assert [line.rsplit("/", 1)[1] for line in out.splitlines()[1:]] == ["c.png", "b.png", "a.png"]
        skipped = [f"superpoint-match: skipped {folder / 'broken.png'}: is not an image"]
        missing = folder / ("missing.png" if form == "names" else "gone.png")
        skipped.append(f"superpoint-match: skipped {missing}: no such file")
        skipped.append("superpoint-match: no overlay of 1 of 3 images: no homography")
        assert len(err.splitlines()) == len(skipped)
        for line, start in zip(err.splitlines(), skipped, strict=True):
            assert line.startswith(start)
        documents = json.loads((tmp_path / "all.json").read_text())
        assert [Path(entry["image1"]["path"]).name for entry in documents] == ["c.png", "b.png", "a.png"]
        assert all(set(entry) == set(KEYS) for entry in documents)
        pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert pictures == ["a.png", "b.png", "b_warp.png", "c.png", "c_warp.png"]

    def test_many_without_a_match_or_an_image(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0 = image_file(tmp_path / "q.png", 200)
        image_file(tmp_path / "dark" / "a.png", 0)
        assert run(image0, tmp_path / "dark") == 3
        capfd.readouterr()
        (tmp_path / "empty").mkdir()
        assert "without images" in refused(capfd, image0, tmp_path / "empty")
        assert "no file matches" in refused(capfd, image0, tmp_path / "x*.png")
        assert "but" in refused(capfd, image0, tmp_path / "q*.png")
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "a.png").write_bytes(b"")
        assert run(image0, tmp_path / "bad") == 2
        assert capfd.readouterr().err.splitlines()[-1].endswith("none of the 1 images could be read")

    def test_same_stems_do_not_overwrite_each_other(self, tmp_path: Path) -> None:
        image0 = image_file(tmp_path / "q.png", 200)
        for name in ("a.png", "a.jpg", "a_2.png"):
            image_file(tmp_path / "many" / name, 60)
        assert run(image0, tmp_path / "many", "-o", tmp_path / "out") == 0
        assert len(list((tmp_path / "out").iterdir())) == 3

    def test_pictures_beside_the_images_replace_none(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0, folder = image_file(tmp_path / "q.png", 200), tmp_path / "many"
        image1 = image_file(folder / "a.png", 60)
        before = image1.read_bytes()
        assert f"{image1}: -o would overwrite an input" in refused(capfd, image0, folder, "-o", folder)
        assert image1.read_bytes() == before
        assert run(image0, folder, "--warp", folder) == 0
        # now the folder has a_warp.png, whose matches would have the name of the other's warp
        capfd.readouterr()
        out = tmp_path / "out"
        assert "another output" in refused(capfd, image0, folder, "-o", out, "--warp", out)

    def test_names_need_not_be_unicode(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0, image1 = image_file(tmp_path / "a.png", 60), image_file(tmp_path / "b.png", 60)
        strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
        image1.rename(strange)
        assert run(image0, strange, "-o", strange.with_suffix(".jpg")) == 0
        assert "caf\\udce9.png" in capfd.readouterr().out
        assert strange.with_suffix(".jpg").exists()

    def test_names_with_brackets_are_files_first(self, tmp_path: Path) -> None:
        image0, image1 = image_file(tmp_path / "a[1].png", 60), image_file(tmp_path / "b[1].png", 60)
        assert run(image0, image1) == 0

    def test_outputs_are_checked_before_the_work(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        image0, image1 = image_file(tmp_path / "a.png", 60), image_file(tmp_path / "b.png", 60)
        before = image1.read_bytes()
        assert "overwrite an input" in refused(capfd, image0, image1, "-o", image1)
        assert image1.read_bytes() == before
        assert "another output" in refused(
            capfd, image0, image1, "-o", tmp_path / "o.png", "--warp", tmp_path / "o.png"
        )
        assert "ending '.xyz'" in refused(capfd, image0, image1, "-o", tmp_path / "o.xyz")
        assert "ending ''" in refused(capfd, image0, image1, "-o", tmp_path / "o")
        assert "is a directory" in refused(capfd, image0, image1, "--json", tmp_path)
        assert "is a file, expected a folder" in refused(capfd, image0, image1, tmp_path / "c.png", "-o", image1)
        assert "is a file, expected a folder" in refused(capfd, image0, image1, "-o", image1 / "o.png")
        assert "--geometry homography" in refused(capfd, image0, image1, "--warp", "w.png", "--geometry", "none")

    @pytest.mark.parametrize(
        "flags",
        [
            ["--max-keypoints", "0"],
            ["--max-keypoints", "many"],
            ["--detection-threshold", "1.5"],
            ["--detection-threshold", "nan"],
            ["--nms-radius", "-1"],
            ["--resize", "4"],
            ["--geometry", "affine"],
            ["--ransac-threshold", "0"],
            ["--ratio", "0"],
            ["--ratio", "1.5"],
            ["--min-similarity", "-1.01"],
            ["--min-similarity", "nan"],
            ["--device", "gpu"],
            ["--rotations", "2"],
            ["--unknown"],
        ],
    )
    def test_bad_flags(self, capfd: pytest.CaptureFixture[str], flags: list[str]) -> None:
        assert flags[0] in refused(capfd, "a.png", "b.png", *flags)

    def test_bad_flags_without_images(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert "IMG1" in refused(capfd, "a.png")

    def test_interrupt(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> MatchResult:
            raise KeyboardInterrupt

        monkeypatch.setattr(FakePipeline, "match", interrupt)
        image = image_file(tmp_path / "a.png", 60)
        assert run(image, image, "-o", tmp_path / "o.png") == 130
        assert capfd.readouterr().err == "superpoint-match: interrupted\n"
        assert not (tmp_path / "o.png").exists()

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            lack_of_memory_of_opencv(),
        ],
    )
    def test_a_lack_of_memory_is_said(
        self,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
    ) -> None:
        def fail(*_: object, **__: object) -> MatchResult:
            raise error

        monkeypatch.setattr(FakePipeline, "match", fail)
        image = image_file(tmp_path / "a.png", 60)
        assert "out of memory; a smaller --resize needs less" in refused(capfd, image, image)

    def test_bugs_are_not_hidden(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> MatchResult:
            raise RuntimeError("a bug")

        monkeypatch.setattr(FakePipeline, "match", broken)
        image = image_file(tmp_path / "a.png", 60)
        with pytest.raises(RuntimeError, match="a bug"):
            run(image, image)


# ---- bad images ------------------------------------------------------------------------------------------------


def bad_images(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no images for us, with what the message has to say."""
    scene = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", scene)[1].tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )
    nan = np.full((64, 64), 0.5, np.float32)
    nan[5, 6] = np.nan
    contents = {
        "empty.png": (b"", "is empty"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "text.png": (b"only text\n" * 20, "not an image"),
        "one.png": (cv2.imencode(".png", scene[:1, :1])[1].tobytes(), "1 x 1"),
        "bomb.png": (bomb, "30000 x 30000"),
        "nan.tif": (cv2.imencode(".tif", nan)[1].tobytes(), "NaN"),
    }
    found = {"missing.png": (folder / "missing.png", "no such file")}
    for name, (data, reason) in contents.items():
        (folder / name).write_bytes(data)
        found[name] = (folder / name, reason)
    return found


@pytest.mark.parametrize(
    "name", ["missing.png", "empty.png", "truncated.jpg", "text.png", "one.png", "bomb.png", "nan.tif"]
)
def test_bad_images_as_either_image(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: object, brief: bool) -> None:
        raise AssertionError("a model was loaded for a bad image")

    monkeypatch.setattr(command, "_load", load)
    bad, reason = bad_images(tmp_path)[name]
    good = image_file(tmp_path / "good.png", 60)
    for pair in ((good, bad), (bad, good)):
        message = refused(capfd, *pair, "-o", tmp_path / "out.png")
        assert str(bad) in message
        assert reason in message
    assert not (tmp_path / "out.png").exists()


# ---- cameras ---------------------------------------------------------------------------------------------------


def test_cameras_come_from_files_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def pipeline(extractor: object, config: object, cameras: object) -> FakePipeline:
        given.append(cameras)
        return FakePipeline("none")

    stand_in = SimpleNamespace(device="cpu", name="fake", descriptor_dim=4)
    monkeypatch.setattr("frontend.extractor.SuperPoint.from_pretrained", lambda *_, **__: stand_in)
    monkeypatch.setattr("frontend.matching.load_matcher_of", lambda *_, **__: None)
    monkeypatch.setattr("frontend.pipeline.MatchPipeline", pipeline)
    image = image_file(tmp_path / "a.png", 60)
    file = tmp_path / "sensor.yaml"
    file.write_text("intrinsics: [50, 51, 20, 15]\ndistortion_coefficients: [0.1, 0, 0, 0]\nresolution: [40, 30]\n")
    essential = ["--geometry", "essential", "--camera0"]
    assert run(image, image, *essential, file) == 0
    assert run(image, image, *essential, "60,61,20,15", "--camera1", file) == 0
    assert [[(camera.K[0, 0], camera.distortion) for camera in pair] for pair in given] == [
        [(50, (0.1, 0, 0, 0))] * 2,
        [(60, ()), (50, (0.1, 0, 0, 0))],
    ]
    capfd.readouterr()
    assert "nowhere.yaml: No such file" in refused(capfd, image, image, *essential, tmp_path / "nowhere.yaml")
    before = file.read_bytes()
    line = refused(capfd, image, image, *essential, file, "--json", file)
    assert f"{file}: --json would overwrite an input" in line
    assert file.read_bytes() == before
