"""Focal lengths by EXIF, in COLMAP's database: of files whose tags Pillow has written."""

from __future__ import annotations

import math
import sqlite3
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from map_scenes import LENS, NAMES, numbers, rows_of, write_views
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from frontend.cli.main import main
from frontend.errors import DataError
from frontend.feature_files import write_features
from frontend.io.exif import Focal, focal_of, read_focals

EXIF, FILM, FOCAL, X_RESOLUTION, UNIT, WIDTH, HEIGHT = 0x8769, 0xA405, 0x920A, 0xA20E, 0xA210, 0xA002, 0xA003
ORIENTATION = 0x0112
DIAGONAL = math.hypot(640, 480)
GUESS = 1.2 * 640


def save(path: Path, exif: dict[int, Any] | None = None, main_tags: dict[int, Any] | None = None) -> None:
    """An image of 640 x 480 pixels, with tags of the EXIF directory, and of the main one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    for tag, value in (exif or {}).items():
        tags.get_ifd(EXIF)[tag] = IFDRational(round(1000 * value), 1000) if tag in (FOCAL, X_RESOLUTION) else value
    for tag, value in (main_tags or {ORIENTATION: 1}).items():  # with none Pillow writes no block to a PNG
        tags[tag] = value
    picture = Image.new("RGB", (640, 480), (90, 120, 60))
    if path.suffix == ".tif":
        directory = ImageFileDirectory_v2()
        directory.update(main_tags or {})
        directory[EXIF] = dict(tags.get_ifd(EXIF))
        picture.save(path, tiffinfo=directory)
    else:
        picture.save(path, exif=tags)


def run(*arguments: object) -> int:
    return main(["match-features", *(str(argument) for argument in arguments)])


def cameras(path: Path) -> list[tuple[float, int]]:
    """Focal length and whether it is known, of each image's camera; the rest is as it always is."""
    sql = "SELECT model, width, height, params, prior_focal_length FROM images JOIN cameras USING (camera_id)"
    found = []
    for model, width, height, params, prior in rows_of(path, sql + " ORDER BY image_id"):
        [(focal, *rest)] = numbers(params, "d", 4).tolist()
        assert (model, rest) == (2, [width / 2, height / 2, 0])
        found.append((focal, prior))
    return found


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_tags_of_each_format_are_read(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    save(path, {FILM: 27}, {ORIENTATION: 6})
    found = focal_of(path)
    assert found is not None
    assert found.pixels(640, 480) == pytest.approx(27 / 43.27 * DIAGONAL)
    # a photograph in portrait is as far from its lens, whether its pixels are turned or not
    assert found.pixels(480, 640) == found.pixels(640, 480)
    save(path, main_tags={ORIENTATION: 6})
    assert focal_of(path) is None


# 1,000 pixels on 12.5 mm: 80 a millimetre
@pytest.mark.parametrize(("resolution", "unit"), [(2032, 2), (800, 3), (80, 4), (0.08, 5)])
def test_a_sensor_has_pixels_for_each_millimetre(resolution: float, unit: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    tags: dict[int, Any] = {FOCAL: 4.5, X_RESOLUTION: resolution, UNIT: unit, WIDTH: 640, HEIGHT: 480}
    save(path, tags)
    found = focal_of(path)
    assert found is not None
    assert found.pixels(640, 480) == pytest.approx(4.5 * 80)
    # made smaller since, and turned
    assert found.pixels(240, 320) == pytest.approx(4.5 * 40)
    # what the whole camera would have on film comes first, as COLMAP has it
    save(path, {**tags, FILM: 50})
    assert focal_of(path) == Focal(diagonals=pytest.approx(50 / 43.27))


def test_a_tiff_has_the_size_of_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    save(path, {FOCAL: 4.5, X_RESOLUTION: 2032, UNIT: 2})
    found = focal_of(path)
    assert found is not None
    assert found.pixels(640, 480) == pytest.approx(360)
    assert found.pixels(320, 240) == pytest.approx(180)
    # a JPEG may not say it: then they are the image's
    save(path.with_suffix(".jpg"), {FOCAL: 4.5, X_RESOLUTION: 2032, UNIT: 2})
    found = focal_of(path.with_suffix(".jpg"))
    assert found is not None
    assert found.pixels(320, 240) == pytest.approx(360)


@pytest.mark.parametrize(
    "tags",
    [
        {FILM: 0},
        {FOCAL: 4.5},
        {X_RESOLUTION: 2032, UNIT: 2},
        {FOCAL: 0, X_RESOLUTION: 2032, UNIT: 2},
        {FOCAL: 4.5, X_RESOLUTION: 0, UNIT: 2},
        {FOCAL: 4.5, X_RESOLUTION: 2032},
        {FOCAL: 4.5, X_RESOLUTION: 2032, UNIT: 1},
        {FOCAL: 4.5, X_RESOLUTION: 2032, UNIT: 9},
    ],
)
def test_tags_that_do_not_suffice_say_nothing(tags: dict[int, Any], tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", tags)
    assert focal_of(tmp_path / "a.jpg") is None


def test_a_division_by_zero_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    save(path, {FOCAL: 4.5, X_RESOLUTION: 2032, UNIT: 2})
    data = path.read_bytes()
    whole = struct.pack("<LL", 2032, 1), struct.pack(">LL", 2032, 1)
    for given in whole:
        data = data.replace(given, bytes(8))
    path.write_bytes(data)
    assert focal_of(path) is None


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_files_that_are_cut_or_changed_are_no_error(ending: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / f"a.{ending}"
    save(path, {FILM: 27, FOCAL: 4.5, X_RESOLUTION: 2032, UNIT: 2})
    data = path.read_bytes()
    for length in (*range(0, min(len(data), 400), 7), len(data) // 2):
        path.write_bytes(data[:length])
        focal_of(path)
    for _ in range(300):
        changed = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0, min(len(changed), 500), 4)
        changed[where] = rng.integers(0, 256, 4)
        path.write_bytes(changed.tobytes())
        found = focal_of(path)
        assert found is None or 0 < found.pixels(640, 480) < np.inf


def test_cameras_have_the_focal_lengths_of_their_images(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views, images, out = write_views(features), tmp_path / "photos", tmp_path / "map.db"
    # in portrait, its features on pixels that were turned
    write_features(features / "b.JPG.npz", replace(views[2].features, image_size=(480, 640)))
    save(images / NAMES[0], {FILM: 27})
    save(images / NAMES[1])
    save(images / NAMES[2], {FOCAL: 4.5, X_RESOLUTION: 2032, UNIT: 2, WIDTH: 640, HEIGHT: 480}, {ORIENTATION: 6})
    (images / NAMES[3]).write_bytes(b"no image")
    assert run(features, "--out", out, "--images", images) == 0
    assert capsys.readouterr().out.endswith("; EXIF says the focal lengths of 2 of 4 images\n")
    assert cameras(out) == [(pytest.approx(27 / 43.27 * DIAGONAL), 1), (GUESS, 0), (pytest.approx(360), 1), (GUESS, 0)]
    assert rows_of(out, "SELECT width, height FROM cameras WHERE camera_id = 3") == [(480, 640)]


def test_a_guess_becomes_what_images_say_and_nothing_is_matched_again(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_views(features)
    images, out = tmp_path / "photos", tmp_path / "map.db"
    for name, film in zip(NAMES, (27, 28, 29, 0), strict=True):
        save(images / name.replace(".png", ".jpg"), {FILM: film})
    (images / "a/two.jpg").rename(images / "a/two.png")  # told by its content
    assert run(features, "--out", out) == 0
    assert cameras(out) == [(GUESS, 0)] * 4
    mine = struct.pack("<4d", 700, 320, 240, 0)
    with closing(sqlite3.connect(out)) as file, file:
        file.execute("UPDATE cameras SET params = ? WHERE camera_id = 3", (mine,))
    geometry = rows_of(out, "SELECT * FROM two_view_geometries")
    capsys.readouterr()
    for _ in range(2):
        assert run(features, "--out", out, "--images", images) == 0
        assert "matched 0 pairs" in capsys.readouterr().out
        known = [(pytest.approx(film / 43.27 * DIAGONAL), 1) for film in (27, 28)]
        # what somebody has set stays
        assert cameras(out) == [*known, (700, 0), (GUESS, 0)]
    assert run(features, "--out", out) == 0
    assert cameras(out)[:2] == known
    assert rows_of(out, "SELECT * FROM two_view_geometries") == geometry


def test_the_only_camera_has_the_first_focal_length_that_is_said(features: Path, tmp_path: Path) -> None:
    write_views(features)
    images = tmp_path / "photos"
    for name, film in zip(NAMES, (0, 28, 29, 30), strict=True):
        save(images / name, {FILM: film})
    known = [(pytest.approx(28 / 43.27 * DIAGONAL), 1)] * 4
    assert run(features, "--out", tmp_path / "a.db", "--single-camera", "--images", images) == 0
    assert cameras(tmp_path / "a.db") == known
    assert run(features, "--out", tmp_path / "b.db", "--single-camera") == 0
    assert cameras(tmp_path / "b.db") == [(GUESS, 0)] * 4
    assert run(features, "--out", tmp_path / "b.db", "--single-camera", "--images", images) == 0
    assert cameras(tmp_path / "b.db") == known
    assert len(rows_of(tmp_path / "b.db", "SELECT * FROM cameras")) == 1


def test_images_that_are_not_there_or_of_no_use_are_refused(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_views(features, NAMES[:3])
    images, out = tmp_path / "photos", tmp_path / "map.db"

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert run(features, *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert not out.exists()
        return line.removeprefix("superpoint match-features: ")

    assert refused("--out", out, "--images", images) == f"image folder {images} is missing"
    save(images / NAMES[0])
    save(images / NAMES[2])
    assert refused("--out", out, "--images", images) == (
        f"{images} has no image 'a/two.png', of which there are features; expected the folder that they were made of"
    )
    save(images / NAMES[1])
    assert refused("--out", out, "--images", images, "--camera", LENS) == (
        "got --camera and --images; expected one of them: the camera says the focal length"
    )
    assert refused("--out", tmp_path / "hloc", "--images", images) == (
        "hloc's files hold no camera; expected --images with a .db alone"
    )
    assert not (tmp_path / "hloc").exists()
    assert run(features, "--out", out, "--images", images) == 0


def test_an_image_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.jpg", {FILM: 27})
    assert read_focals(tmp_path, ["a.jpg"]) == {"a.jpg": Focal(diagonals=pytest.approx(27 / 43.27))}

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(DataError, match=r"image .*a\.jpg cannot be read: Permission denied"):
        read_focals(tmp_path, ["a.jpg"])


def test_what_is_read_of_a_file_is_little(tmp_path: Path, rng: np.random.Generator) -> None:
    """A photograph's megabytes are left where they are."""
    path = tmp_path / "a.jpg"
    save(path, {FILM: 27})
    # a file with a hole of a gibibyte, which would be read before the test is over
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    assert focal_of(path) is not None
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(path), noise)
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    assert focal_of(path) is None
