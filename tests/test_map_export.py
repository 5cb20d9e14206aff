"""COLMAP's database: decoded by hand, against cameras and points that are known."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from map_scenes import (
    LENS,
    NAMES,
    SIZE,
    K,
    blank,
    cloud,
    numbers,
    pose,
    project,
    rows_of,
    stranger,
    write_views,
)

from frontend.camera import Camera
from frontend.cli.main import main
from frontend.errors import ConfigError
from frontend.feature_files import write_features
from frontend.io.colmap import pair_id
from frontend.io.colmap_geometry import CameraModel, known_camera, two_view
from frontend.types import Essential, Status

ROOT = Path(__file__).resolve().parent.parent
# the statements of COLMAP 3.8, in src/base/database.cc
COLMAP = """
CREATE TABLE IF NOT EXISTS cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, model INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, params BLOB, prior_focal_length INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL UNIQUE,
    camera_id INTEGER NOT NULL, prior_qw REAL, prior_qx REAL, prior_qy REAL, prior_qz REAL, prior_tx REAL,
    prior_ty REAL, prior_tz REAL, CONSTRAINT image_id_check CHECK(image_id >= 0 and image_id < 2147483647),
    FOREIGN KEY(camera_id) REFERENCES cameras(camera_id));
CREATE UNIQUE INDEX IF NOT EXISTS index_name ON images(name);
CREATE TABLE IF NOT EXISTS keypoints (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB, FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS descriptors (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB, FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS matches (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB);
CREATE TABLE IF NOT EXISTS two_view_geometries (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
    cols INTEGER NOT NULL, data BLOB, config INTEGER NOT NULL, F BLOB, E BLOB, H BLOB, qvec BLOB, tvec BLOB);
"""
PAIRS = {(first, second): 2147483647 * first + second for first in range(1, 5) for second in range(first + 1, 5)}


def layout(path: Path) -> dict[str, object]:
    """What a database's tables are: their columns, keys, indices, and checks."""
    found: dict[str, object] = {}
    for name, sql in rows_of(path, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
        # (unique, origin, columns); a name is given by COLMAP to one alone
        indices = rows_of(path, f"PRAGMA index_list({name})")
        found[name] = {
            "columns": rows_of(path, f"PRAGMA table_info({name})"),
            "indices": sorted((*row[2:], *rows_of(path, f"PRAGMA index_info({row[1]})")) for row in indices),
            "named": sorted(row[1] for row in indices if row[3] == "c"),
            "foreign keys": rows_of(path, f"PRAGMA foreign_key_list({name})"),
            "numbers are not used again": "AUTOINCREMENT" in sql,
            "checks": re.findall(r"CHECK *\(.*?\)", sql),
        }
    return found


def of_colmap(path: Path) -> dict[str, object]:
    """The layout of a database that COLMAP 3.8 makes."""
    with closing(sqlite3.connect(path)) as file:
        file.executescript(COLMAP)
    return layout(path)


def run(*arguments: object) -> int:
    return main(["match-features", *(str(argument) for argument in arguments)])


def homogeneous(points: np.ndarray) -> np.ndarray:
    return np.c_[points, np.ones(len(points))]


def epipolar_errors(F: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Root mean square of the distances to both epipolar lines, point by point."""
    errors = []
    for x0, x1 in zip(homogeneous(points0), homogeneous(points1), strict=True):
        line1, line0 = F @ x0, F.T @ x1
        squared = (x1 @ line1) ** 2
        errors.append(squared / (line1[0] ** 2 + line1[1] ** 2) + squared / (line0[0] ** 2 + line0[1] ** 2))
    return np.sqrt(np.array(errors) / 2)


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "features"


def test_the_database_holds_what_the_files_do(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views, out = write_views(features), tmp_path / "sub" / "map.db"
    assert run(features, "--out", out) == 0
    assert "matched 6 pairs of 4 images, of which 6 have a fundamental geometry" in capsys.readouterr().out
    assert layout(out).items() >= of_colmap(tmp_path / "colmap.db").items()
    assert rows_of(out, "PRAGMA user_version") == [(3800,)]
    assert rows_of(out, "PRAGMA integrity_check") == [("ok",)]
    assert rows_of(out, "PRAGMA foreign_key_check") == []
    # in the order of extraction, with the endings that the images have in their folder
    assert rows_of(out, "SELECT image_id, name, camera_id FROM images") == [(i + 1, NAMES[i], i + 1) for i in range(4)]
    for camera_id, model, width, height, params, prior in rows_of(out, "SELECT * FROM cameras"):
        assert (model, width, height, prior) == (2, *SIZE, 0)
        np.testing.assert_array_equal(numbers(params, "d", 4), [[1.2 * 640, 320, 240, 0]], str(camera_id))
    for (image_id, rows, columns_, data), view in zip(rows_of(out, "SELECT * FROM keypoints"), views, strict=True):
        assert (rows, columns_) == (120, 2)
        expected = view.features.keypoints.astype(np.float64) + 0.5
        np.testing.assert_array_equal(numbers(data, "f", 2), expected.astype(np.float32), str(image_id))
    assert rows_of(out, "SELECT * FROM descriptors") == []
    with closing(sqlite3.connect(out)) as file:
        for refused in (
            "INSERT INTO images (name, camera_id) VALUES ('b.JPG', 1)",
            "INSERT INTO images (image_id, name, camera_id) VALUES (2147483647, 'x', 1)",
            "UPDATE matches SET rows = NULL",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                file.execute(refused)


def test_matches_and_their_geometry_are_right(features: Path, tmp_path: Path) -> None:
    views, out = write_views(features), tmp_path / "map.db"
    assert run(features, "--out", out, "--threshold", 2) == 0
    matches = {key: numbers(data, "I", 2) for key, _, _, data in rows_of(out, "SELECT * FROM matches")}
    geometry = {row[0]: row[1:] for row in rows_of(out, "SELECT * FROM two_view_geometries")}
    assert set(matches) == set(geometry) == set(PAIRS.values())
    clean = cloud(400, seed=9)
    for (first, second), key in PAIRS.items():
        assert pair_id(second, first) == pair_id(first, second) == key
        view0, view1 = views[first - 1], views[second - 1]
        found = matches[key].astype(int)
        assert len(found) > 100
        assert (view0.point[found[:, 0]] == view1.point[found[:, 1]]).mean() > 0.95
        rows, columns, data, config, F, E, H, qvec, tvec = geometry[key]
        assert (columns, config, E, H, qvec, tvec) == (2, 3, None, None, None, None)
        inliers = numbers(data, "I", 2).astype(int)
        assert rows == len(inliers) > 100
        assert {tuple(pair) for pair in inliers} <= {tuple(pair) for pair in found}
        fundamental = numbers(F, "d", 3)
        # of the pixels that the database has: a matrix of ours would be off by what half a pixel makes
        points = [view.features.keypoints + 0.5 for view in (view0, view1)]
        errors = epipolar_errors(fundamental, points[0][inliers[:, 0]], points[1][inliers[:, 1]])
        assert errors.max() <= 2 * 1.001
        truth = epipolar_errors(fundamental, project(clean, first - 1) + 0.5, project(clean, second - 1) + 0.5)
        assert np.median(truth) < 0.1


def test_a_pair_is_written_with_the_lower_number_first(features: Path, tmp_path: Path) -> None:
    views = write_views(features)
    (tmp_path / "pairs.txt").write_text("# query, database\n\nb.JPG a/one.jpg\na/one.jpg\tb.JPG\n c d.jpg  a/two.png\n")
    assert run(features, "--out", tmp_path / "map.db", "--pairs", tmp_path / "pairs.txt") == 0
    found = {key: numbers(data, "I", 2) for key, _, _, data in rows_of(tmp_path / "map.db", "SELECT * FROM matches")}
    assert set(found) == {PAIRS[1, 3], PAIRS[2, 4]}
    for first, second in ((1, 3), (2, 4)):
        index0, index1 = found[PAIRS[first, second]].astype(int).T
        assert (views[first - 1].point[index0] == views[second - 1].point[index1]).mean() > 0.95


def test_a_known_camera_gives_poses(features: Path, tmp_path: Path) -> None:
    write_views(features)
    out = tmp_path / "map.db"
    assert run(features, "--out", out, "--camera", LENS) == 0
    [(model, width, height, params, prior)] = rows_of(
        out, "SELECT model, width, height, params, prior_focal_length FROM cameras"
    )
    assert (model, width, height, prior) == (1, *SIZE, 1)
    np.testing.assert_array_equal(numbers(params, "d", 4), [[500, 500, 320.5, 240.5]])
    assert rows_of(out, "SELECT DISTINCT camera_id FROM images") == [(1,)]
    clean = cloud(200, seed=9)
    for (first, second), key in PAIRS.items():
        [(rows, config, *blobs)] = rows_of(
            out, f"SELECT rows, config, F, E, H, qvec, tvec FROM two_view_geometries WHERE pair_id = {key}"
        )
        assert (config, blobs[2]) == (2, None)
        assert rows > 100
        F, E = (numbers(blob, "d", 3) for blob in blobs[:2])
        w, x, y, z = numbers(blobs[3], "d", 4)[0]
        t = numbers(blobs[4], "d", 3)[0]
        R = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        (R0, t0), (R1, t1) = pose(first - 1), pose(second - 1)
        true_R = R1 @ R0.T
        true_t = t1 - true_R @ t0
        assert np.degrees(np.linalg.norm(cv2.Rodrigues(R @ true_R.T)[0])) < 0.3
        assert np.degrees(np.arccos(min(1.0, t @ true_t / np.linalg.norm(true_t)))) < 3
        cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
        np.testing.assert_allclose(E / np.linalg.norm(E), cross @ R / np.linalg.norm(cross @ R), atol=1e-9)
        truth = epipolar_errors(F, project(clean, first - 1) + 0.5, project(clean, second - 1) + 0.5)
        assert np.median(truth) < 0.1


def test_a_fisheye_has_no_matrix_of_pixels() -> None:
    """Whatever its parameters: four zeros are a lens, too."""
    R, t = cv2.Rodrigues(np.array([0.02, -0.05, 0.01]))[0], np.array([0.6, 0.0, 0.8])
    essential = Essential(np.array([[0, -0.8, 0], [0.8, 0, -0.6], [0, 0.6, 0]]) @ R, R, t, np.ones(5, bool), Status.OK)
    for text, known in (("", True), (",0,0,0,0", True), (",.1,0,0,0", False)):
        assert (two_view(essential, Camera.parse(LENS + text)).F is not None) == known, text
    assert two_view(essential, Camera.parse(f"fisheye:{LENS},0,0,0,0")).F is None


@pytest.mark.parametrize(
    ("text", "model", "params"),
    [
        ("500,510,320,240", CameraModel.PINHOLE, (500, 510, 320.5, 240.5)),
        ("500,510,320,240,0,0,0,0", CameraModel.PINHOLE, (500, 510, 320.5, 240.5)),
        ("500,510,320,240,.1,.2,.3,.4", CameraModel.OPENCV, (500, 510, 320.5, 240.5, 0.1, 0.2, 0.3, 0.4)),
        (
            "500,510,320,240,.1,.2,.3,.4,.5",
            CameraModel.FULL_OPENCV,
            (500, 510, 320.5, 240.5, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0, 0),
        ),
        (
            "fisheye:500,510,320,240,.1,.2,.3,.4",
            CameraModel.OPENCV_FISHEYE,
            (500, 510, 320.5, 240.5, 0.1, 0.2, 0.3, 0.4),
        ),
    ],
)
def test_cameras_have_the_models_of_colmap(text: str, model: CameraModel, params: tuple[float, ...]) -> None:
    camera = known_camera(Camera.parse(text), 640, 480)
    assert (camera.model, camera.params, camera.prior) == (model, params, True)
    assert {CameraModel.PINHOLE: 1, CameraModel.OPENCV: 4, CameraModel.OPENCV_FISHEYE: 5, CameraModel.FULL_OPENCV: 6}[
        model
    ] == model.value


def test_a_lens_that_colmap_does_not_have_is_refused(features: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="camera has 12 values of distortion; COLMAP's models have 8 at most"):
        known_camera(Camera.parse("500,510,320,240" + ",.1" * 12), 640, 480)
    write_views(features)
    assert run(features, "--out", tmp_path / "map.db", "--camera", "500,510,320,240" + ",.1" * 12) == 2
    assert not (tmp_path / "map.db").exists()


def test_a_camera_comes_from_a_file(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_views(features)
    file = tmp_path / "camera.json"
    file.write_text(json.dumps({"K": K.tolist(), "size": [640, 480]}))
    assert run(features, "--out", tmp_path / "map.db", "--camera", file) == 0
    [(model, params)] = rows_of(tmp_path / "map.db", "SELECT model, params FROM cameras")
    assert model == 1
    np.testing.assert_array_equal(numbers(params, "d", 4), [[500, 500, 320.5, 240.5]])
    file.write_text(
        json.dumps({"camera_matrix": {"data": K.ravel().tolist()}, "image_width": 320, "image_height": 240})
    )
    capsys.readouterr()
    assert run(features, "--out", tmp_path / "other.db", "--camera", file) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("a/one.jpg has 640 x 480 pixels; expected 320 x 240, as the camera has")


def test_with_distortion_there_is_no_matrix_of_pixels(features: Path, tmp_path: Path) -> None:
    write_views(features)
    assert run(features, "--out", tmp_path / "map.db", "--camera", LENS + ",.001,0,0,0") == 0
    rows = rows_of(tmp_path / "map.db", "SELECT config, F IS NULL, E IS NULL FROM two_view_geometries")
    assert rows == [(2, 1, 0)] * 6


def test_a_plane_has_homographies(features: Path, tmp_path: Path) -> None:
    write_views(features, flat=True)
    out = tmp_path / "map.db"
    assert run(features, "--out", out, "--geometry", "homography") == 0
    clean = cloud(100, flat=True, seed=9)
    for (first, second), key in PAIRS.items():
        [(config, F, H)] = rows_of(out, f"SELECT config, F, H FROM two_view_geometries WHERE pair_id = {key}")
        assert (config, F) == (6, None)
        mapped = homogeneous(project(clean, first - 1) + 0.5) @ numbers(H, "d", 3).T
        off = mapped[:, :2] / mapped[:, 2:] - (project(clean, second - 1) + 0.5)
        assert np.linalg.norm(off, axis=1).max() < 0.2


def test_without_geometry_colmap_is_left_to_verify(features: Path, tmp_path: Path) -> None:
    write_views(features)
    assert run(features, "--out", tmp_path / "map.db", "--geometry", "none", "--sequential", 2) == 0
    assert rows_of(tmp_path / "map.db", "SELECT * FROM two_view_geometries") == []
    keys = [key for (key,) in rows_of(tmp_path / "map.db", "SELECT pair_id FROM matches")]
    assert keys == [PAIRS[pair] for pair in ((1, 2), (1, 3), (2, 3), (2, 4), (3, 4))]


def test_what_has_no_model_is_there_as_degenerate(features: Path, tmp_path: Path) -> None:
    views = write_views(features)
    write_features(features / "b.JPG.npz", blank(views[2].features))
    write_features(features / "c d.jpg.npz", stranger(views[3].features))
    out = tmp_path / "map.db"
    for _ in range(2):
        assert run(features, "--out", out) == 0
        assert rows_of(out, "SELECT rows, cols, data FROM keypoints WHERE image_id = 3") == [(0, 2, None)]
        rows = {row[0]: row[1:] for row in rows_of(out, "SELECT * FROM two_view_geometries")}
        for pair, key in PAIRS.items():
            if pair != (1, 2):
                assert rows[key] == (0, 2, None, 1, None, None, None, None, None)
        counts = dict(rows_of(out, "SELECT pair_id, rows FROM matches"))
        assert counts[PAIRS[1, 3]] == counts[PAIRS[3, 4]] == 0
        assert counts[PAIRS[1, 4]] > 0
        assert rows[PAIRS[1, 2]][0] > 100


def test_one_camera_takes_images_of_one_size(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views, out = write_views(features), tmp_path / "map.db"
    assert run(features, "--out", out, "--single-camera") == 0
    assert rows_of(out, "SELECT camera_id, model FROM cameras") == [(1, 2)]
    assert rows_of(out, "SELECT camera_id FROM images") == [(1,)] * 4
    write_features(features / "c d.jpg.npz", replace(views[3].features, image_size=(480, 640)))
    other = tmp_path / "other.db"
    capsys.readouterr()
    for option in (["--single-camera"], ["--camera", LENS]):
        assert run(features, "--out", other, *option) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "image c d.jpg has 480 x 640 pixels; expected 640 x 480, which those before have" in line
    # what nothing was made with binds nobody
    assert run(features, "--out", other) == 0
    assert len(rows_of(other, "SELECT * FROM cameras")) == 4


def test_matching_on_a_cpu_loads_nothing_that_it_does_not_need(features: Path, tmp_path: Path) -> None:
    write_views(features)
    code = (
        "import os, sys; from frontend.cli.main import main\n"
        f"assert main(['match-features', {str(features)!r}, '--out', {str(tmp_path / 'map.db')!r}]) == 0\n"
        "print(sorted({'torch', 'numba', 'h5py', 'openvino', 'onnxruntime'} & set(sys.modules)))\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # a thread for each pair is enough
    assert done.stdout.splitlines()[-2:] == ["[]", "1"]


def test_the_camera_of_the_scene_is_that_of_the_option() -> None:
    """Points go by the option's camera to where the scene shows them: as rays of its camera, and of no other."""
    points = cloud()
    for view in range(4):
        R, t = pose(view)
        seen = points @ R.T + t
        rays = Camera.parse(LENS).normalise(project(points, view))
        np.testing.assert_allclose(rays, seen[:, :2] / seen[:, 2:], atol=1e-9)
        other = Camera.parse("500,500,320.5,240.5").normalise(project(points, view))
        assert np.abs(other - rays).min() > 5e-4
