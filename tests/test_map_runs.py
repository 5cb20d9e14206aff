"""Runs that add to COLMAP's database, are killed, or are refused."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from map_scenes import NAMES, View, cloud, content, numbers, rows_of, write_views
from processes import finished, kill_when, start_python

from frontend.cli.main import main
from frontend.feature_files import write_features

ROOT = Path(__file__).resolve().parent.parent
FIRST = 2147483647  # of COLMAP: the pair (a, b) has the number FIRST a + b


def run(*arguments: object) -> int:
    return main(["match-features", *(str(argument) for argument in arguments)])


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "features"


def test_choices_of_pairs_add_up(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_views(features)
    assert run(features, "--out", tmp_path / "map.db", "--sequential", 1) == 0
    assert "matched 3 pairs" in capsys.readouterr().out
    before = content(tmp_path / "map.db")
    assert run(features, "--out", tmp_path / "map.db", "--exhaustive") == 0
    assert "matched 3 pairs of 4 images" in (out := capsys.readouterr().out)
    assert "3 had been before" in out
    assert run(features, "--out", tmp_path / "whole.db") == 0
    whole = content(tmp_path / "whole.db")
    assert content(tmp_path / "map.db") == whole
    assert set(before["matches"]) < set(whole["matches"])


def test_images_that_come_later_are_added(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views, out = write_views(features), tmp_path / "map.db"
    assert run(features, "--out", out) == 0
    # before all others in the order of names, and after them in that of numbers
    write_features(features / "0.jpg.npz", View(cloud(), 4).features)
    assert run(features, "--out", out) == 0
    assert rows_of(out, "SELECT image_id FROM images WHERE name = '0.jpg'") == [(5,)]
    found = {key: numbers(data, "I", 2) for key, _, _, data in rows_of(out, "SELECT * FROM matches")}
    assert len(found) == 10
    index0, index1 = found[2147483647 * 2 + 5].astype(int).T
    assert (views[1].point[index0] == View(cloud(), 4).point[index1]).mean() > 0.95
    with sqlite3.connect(out) as colmap:
        colmap.execute("CREATE TABLE frames (frame_id INTEGER PRIMARY KEY NOT NULL, rig_id INTEGER NOT NULL)")
        colmap.execute("INSERT INTO frames VALUES (1, 1)")
    colmap.close()
    assert run(features, "--out", out) == 0
    write_features(features / "1.jpg.npz", View(cloud(), 5).features)
    capsys.readouterr()
    assert run(features, "--out", out) == 2
    assert "has COLMAP's frames, so that no image can be added" in capsys.readouterr().err


# each pair lasts as soon as it is matched, and takes long enough for the run to be killed between two
LASTING = """
import sys, time
import frontend.io.match_folder as module
from frontend.cli.main import main
match = module.match_pair
module.COMMIT_S, module.match_pair = 0, lambda *given: (time.sleep(0.01), match(*given))[1]
sys.exit(main())
"""


def test_a_killed_run_goes_on_to_the_same_content(features: Path, tmp_path: Path) -> None:
    names = tuple(f"{index:02d}.jpg" for index in range(24))
    write_views(features, names, count=90)
    arguments = ["-c", LASTING, "match-features", str(features), "--out"]

    def pairs(path: Path) -> int:
        try:
            return int(rows_of(path, "SELECT COUNT(*) FROM matches")[0][0])
        except sqlite3.OperationalError:  # not there yet, or being written
            return 0

    out = tmp_path / "map.db"
    for least in (3, 40):
        running = start_python(*arguments, str(out), PYTHONPATH=str(ROOT))
        kill_when(running, lambda least=least: pairs(out) >= least)
        assert least <= pairs(out) < 276
        assert rows_of(out, "PRAGMA integrity_check") == [("ok",)]
    before = set(rows_of(out, "SELECT * FROM matches"))
    done = pairs(out)
    assert f"matched {276 - done} pairs" in finished(start_python(*arguments, str(out), PYTHONPATH=str(ROOT)))
    finished(start_python(*arguments, str(tmp_path / "whole.db"), PYTHONPATH=str(ROOT)))
    assert content(out) == content(tmp_path / "whole.db")
    assert before < set(rows_of(out, "SELECT * FROM matches"))


def test_an_interrupted_run_keeps_what_is_done(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frontend.io.colmap import ColmapDatabase

    write_views(features)
    add = ColmapDatabase.add_pair

    def interrupt(self: ColmapDatabase, first: int, second: int, pair: object) -> None:
        if (first, second) == (1, 2):
            raise KeyboardInterrupt
        add(self, first, second, pair)  # type: ignore[arg-type]

    monkeypatch.setattr(ColmapDatabase, "add_pair", interrupt)
    assert run(features, "--out", tmp_path / "map.db") == 130
    for table in ("matches", "two_view_geometries"):
        keys = [key for (key,) in rows_of(tmp_path / "map.db", f"SELECT pair_id FROM {table} ORDER BY 1")]
        assert keys == [FIRST + 2, FIRST + 3, FIRST + 4], table
    monkeypatch.undo()
    assert run(features, "--out", tmp_path / "map.db") == 0
    assert run(features, "--out", tmp_path / "whole.db") == 0
    assert content(tmp_path / "map.db") == content(tmp_path / "whole.db")


def test_features_of_two_models_are_refused(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views, out = write_views(features), tmp_path / "map.db"
    write_features(features / "b.JPG.npz", replace(views[2].features, model="other"))
    assert run(features, "--out", out) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"superpoint match-features: {features / 'b.JPG.npz'} holds features of model 'other' with 16 dimensions; "
        f"expected 'm' with 16, as {features / 'a/one.jpg.npz'} has"
    )
    write_features(features / "b.JPG.npz", views[2].features)
    assert run(features, "--out", out) == 0
    for name in NAMES:
        features_of = views[NAMES.index(name)].features
        write_features(features / f"{name}.npz", replace(features_of, model="other"))
    capsys.readouterr()
    assert run(features, "--out", out) == 2
    assert "holds matches made with model = m; got other (give another --out)" in capsys.readouterr().err


def test_what_was_made_otherwise_is_refused(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views, out = write_views(features), tmp_path / "map.db"
    (features / "settings.json").write_text('{"resize": 640}')
    assert run(features, "--out", out, "--min-similarity", 0.5, "--ratio", 0.9) == 0

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert run(features, "--out", out, *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    same = ("--min-similarity", 0.5, "--ratio", 0.9)
    assert "min_similarity = 0.5; got None" in refused("--ratio", 0.9)
    assert "ratio = 0.9; got None" in refused("--min-similarity", 0.5)
    assert "threshold = 3.0; got 2.0" in refused(*same, "--threshold", 2)
    assert "geometry = fundamental; got none" in refused(*same, "--geometry", "none")
    assert "single_camera = False; got True" in refused(*same, "--single-camera")
    (features / "settings.json").write_text('{"resize": 800}')
    assert "features: resize = 640; got 800" in refused(*same)
    (features / "settings.json").write_text('{"resize": 640}')
    moved = replace(views[0].features, keypoints=views[0].features.keypoints + 1)
    write_features(features / "a/one.jpg.npz", moved)
    # though nothing is left to be matched
    assert "has other features of image 'a/one.jpg' than the matches that are there" in refused(*same)
    (features / "a/one.jpg.npz").unlink()
    assert "holds image 'a/one.jpg', of which there are no features" in refused(*same)


@pytest.mark.parametrize("kind", ["text", "other", "folder", "below a file"])
def test_what_is_no_database_of_ours_is_left_alone(
    kind: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_views(features)
    out = tmp_path / "map.db"
    if kind == "text":
        out.write_text("no database, but a text of some length " * 20)
        expected = f"database {out}: file is not a database"
    elif kind == "other":
        connection = sqlite3.connect(out)
        connection.execute("CREATE TABLE images (image_id INTEGER)")
        connection.close()
        expected = f"{out} is a database of something else; expected one of this command, or a new name"
    elif kind == "folder":
        out.mkdir()
        expected = f"{out} is a folder; expected a database file, or --format hloc"
    else:
        out.write_text("")
        out = out / "map.db"
        expected = "File exists"
    before = None if out.is_dir() or kind == "below a file" else out.read_bytes()
    assert run(features, "--out", out) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert expected in line
    assert before is None or out.read_bytes() == before


def test_the_ending_of_a_database_may_be_in_capitals(features: Path, tmp_path: Path) -> None:
    write_views(features)
    assert run(features, "--out", tmp_path / "MAP.DB") == 0
    assert rows_of(tmp_path / "MAP.DB", "SELECT COUNT(*) FROM matches") == [(6,)]


def test_bad_requests_are_refused_in_one_line(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert run(features, "--out", tmp_path / "map.db", *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "map.db").exists()
        return line

    assert refused().endswith(f"feature folder {features} is missing")
    features.mkdir()
    assert "has no feature file; expected those of 'superpoint extract'" in refused()
    write_features(features / "a.jpg.npz", View(cloud(), 0).features)
    assert refused().endswith("there are features of one image alone, a.jpg; expected two or more")
    write_views(features)
    assert "geometry is 'essential' without a camera" in refused("--geometry", "essential")
    assert "ratio is 1.5; expected a value in (0, 1]" in refused("--ratio", 1.5)
    assert "RANSAC threshold is 0.0" in refused("--threshold", 0)
    assert "unknown matcher 'glue'" in refused("--matcher", "glue")
    assert "sequential is 0; expected 1 or more" in refused("--sequential", 0)
    assert "camera is 'x'" in refused("--camera", "x")
    assert "cannot be read" in refused("--pairs", tmp_path / "none.txt")
    (features / "b.JPG.npz").write_bytes(b"PK")
    capsys.readouterr()
    assert run(features, "--out", tmp_path / "map.db") == 2
    assert f"feature file {features / 'b.JPG.npz'} cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run(features, "--out", tmp_path / "map.db", "--exhaustive", "--sequential", 2)
    assert caught.value.code == 2
