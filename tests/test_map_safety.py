"""What keeps an output from being spoilt: other runs, changed features, full disks, matchers that cannot work."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from map_scenes import LENS, NAMES, View, cloud, rows_of, write_views

from frontend.cli.main import main
from frontend.errors import DataError
from frontend.feature_files import write_features
from frontend.io.colmap import ColmapDatabase
from frontend.io.feature_folder import FeatureFolder
from frontend.io.hdf5 import appending, writing
from frontend.io.hloc import HlocFolder
from frontend.io.lock import RunLock

ROOT = Path(__file__).resolve().parent.parent
HLOC_NAMES = NAMES[:3]  # without white space
BOTH = pytest.mark.parametrize("out_name", ["map.db", "hloc"])


def run(*arguments: object) -> int:
    return main(["match-features", *(str(argument) for argument in arguments)])


def files_of(path: Path) -> dict[str, bytes]:
    """All that is there of an output, byte by byte."""
    if not path.is_dir():
        return {path.name: path.read_bytes()} if path.exists() else {}
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def refused(features: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs, and gives the one line by which it is refused, without its head."""

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert run(features, *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line.removeprefix("superpoint match-features: ")

    return refused


# ---- features that are no longer what they were ---------------------------------------------------------------


@BOTH
def test_changed_features_are_refused_though_every_pair_is_there(
    out_name: str, features: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    views, out = write_views(features, HLOC_NAMES), tmp_path / out_name
    assert run(features, "--out", out) == 0
    before, file = files_of(out), features / "b.JPG.npz"
    # another time alone, or the same written anew, is no change
    write_features(file, views[2].features)
    os.utime(features / "a/one.jpg.npz", ns=(1, 1))
    assert run(features, "--out", out) == 0
    assert files_of(out) == before
    for change in ("keypoints", "scores", "descriptors"):
        turned = np.ascontiguousarray(getattr(views[2].features, change)[::-1])
        write_features(file, replace(views[2].features, **{change: turned}))
        assert refused("--out", out) == (
            f"{file} has other features of image 'b.JPG' than the matches that are there were made of "
            "(give another --out)"
        )
        assert files_of(out) == before
    # with images that are new, too
    write_features(features / "c.jpg.npz", View(cloud(), 3).features)
    assert "has other features of image 'b.JPG'" in refused("--out", out)
    assert files_of(out) == before


def test_unchanged_files_are_not_read_again(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_views(features, HLOC_NAMES)
    folder = FeatureFolder(features)
    stamp = folder.stamp(1)
    monkeypatch.setattr("frontend.io.feature_folder.sha256_of", lambda _: pytest.fail("a file is read again"))
    assert folder.is_as(1, stamp)


def test_a_file_that_changes_while_it_is_used_is_refused(features: Path) -> None:
    views = write_views(features, HLOC_NAMES)
    folder = FeatureFolder(features, memory=0)
    for index in (1, 0, 2):
        folder.read(index)
    os.utime(features / "a/two.png.npz", ns=(1, 1))
    with pytest.raises(DataError, match=r"two\.png\.npz was changed meanwhile; expected it to stay while it is used"):
        folder.stamp(1)
    with pytest.raises(DataError, match="was changed meanwhile"):
        folder.read(1)
    assert (folder.read(0).keypoints == views[0].features.keypoints).all()


def test_images_of_something_else_are_refused(features: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    write_views(features, HLOC_NAMES)
    out = tmp_path / "out"
    assert run(features, "--out", out, "--sequential", 1) == 0
    with h5py.File(out / "features.h5", "r+") as file:
        del file["b.JPG"].attrs["superpoint_frontend"]
    before = files_of(out)
    assert "has other features of image 'b.JPG'" in refused("--out", out)
    assert files_of(out) == before


@pytest.mark.parametrize("name", ["features.h5", "matches.h5", "pairs.txt", "matches.journal"])
def test_files_of_something_else_are_left_alone(
    name: str, features: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    write_views(features, HLOC_NAMES)
    out = tmp_path / "out"
    out.mkdir()
    if name.endswith(".h5"):
        with h5py.File(out / name, "w") as file:
            file["a/one.jpg/keypoints"] = np.zeros((5, 2), np.float16)
    else:
        (out / name).write_text("a/one.jpg b.JPG\n")
    (out / "notes.txt").write_text("mine")
    before = files_of(out)
    line = f"{out} has a {name} of something else; expected a folder of this command, or a new one"
    assert refused("--out", out) == line
    assert files_of(out) == before
    (out / name).unlink()
    assert run(features, "--out", out) == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_images_of_several_sizes_have_not_one_camera(
    features: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    views, out = write_views(features, HLOC_NAMES), tmp_path / "out"
    write_features(features / "b.JPG.npz", replace(views[2].features, image_size=(480, 640)))
    calibrated = ("--geometry", "essential", "--camera", LENS)
    assert refused("--out", out, *calibrated) == (
        "image b.JPG has 480 x 640 pixels; expected 640 x 480, which those before have: one camera is to have taken all"
    )
    assert not out.exists()
    assert run(features, "--out", out) == 0


@BOTH
def test_names_that_are_not_utf8_are_refused(
    out_name: str, features: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    write_views(features, HLOC_NAMES)
    os.rename(features / "b.JPG.npz", os.fsencode(features) + b"/\xff.jpg.npz")
    line = "image '\\udcff.jpg' has a name that is not UTF-8; expected one that map builders can read"
    assert refused("--out", tmp_path / out_name) == line
    assert not (tmp_path / out_name).exists()
    (features / os.fsdecode(b"\xff.jpg.npz")).rename(features / "ä.jpg.npz")
    assert run(features, "--out", tmp_path / out_name) == 0


@BOTH
def test_a_matcher_that_cannot_work_binds_nothing(
    out_name: str, features: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    views, out = write_views(features, HLOC_NAMES), tmp_path / out_name
    assert "there is no learned matcher for features of 'm'" in refused("--out", out, "--matcher", "lightglue")
    assert not out.exists()
    assert run(features, "--out", out) == 0
    for name, view in zip(HLOC_NAMES, views, strict=True):
        write_features(features / f"{name}.npz", replace(view.features, model="superpoint-edge"))
    more = tmp_path / "more" / out_name
    assert "ratio" in refused("--out", more, "--matcher", "lightglue", "--ratio", 0.9)
    assert "16 dimensions" in refused("--out", more, "--matcher", "lightglue")
    assert not more.parent.exists()


# ---- other runs, and runs that end ----------------------------------------------------------------------------


@BOTH
def test_a_second_run_is_refused_for_as_long_as_the_first_one_runs(
    out_name: str, features: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    write_views(features, HLOC_NAMES)
    out = tmp_path / "sub" / out_name
    Store: Any = ColmapDatabase if out.suffix else HlocFolder
    first = Store(out, FeatureFolder(features).names, {"k": 1})
    before = files_of(out)
    assert refused("--out", out) == f"another run is writing to {out}; expected one at a time"
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    assert "another run is writing to" in refused("--out", tmp_path / "link" / out_name)
    assert files_of(out) == before
    first.close()
    first.close()
    assert run(features, "--out", out) == 0
    assert [path.name for path in tmp_path.rglob("*.lock")] == []


def test_a_lock_that_was_left_or_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / ".lock", tmp_path / "out"
    path.write_text("")  # of a process that was killed
    first = RunLock(path, out)
    with pytest.raises(DataError, match=r"another run is writing to .*out; expected one at a time"):
        RunLock(path, out)
    first.release()
    assert not path.exists()
    # the file is removed just after another has opened it: what that locks is no longer at the path
    import fcntl

    real, calls = fcntl.flock, []

    def late(file: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = RunLock(path, out)
    assert len(calls) == 2
    with pytest.raises(DataError, match="another run"):
        RunLock(path, out)
    second.release()


def test_the_database_is_free_while_pairs_are_matched(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_views(features)
    out, add, tried = tmp_path / "map.db", ColmapDatabase.add_pair, []

    def add_and_try(self: ColmapDatabase, *arguments: Any) -> None:
        add(self, *arguments)
        other = sqlite3.connect(out, timeout=0, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        other.close()
        tried.append(arguments)

    monkeypatch.setattr(ColmapDatabase, "add_pair", add_and_try)
    assert run(features, "--out", out) == 0
    assert len(tried) == 6
    assert rows_of(out, "SELECT COUNT(*) FROM matches") == [(6,)]


@pytest.mark.parametrize("statement", ["INSERT OR REPLACE INTO two_view_geometries", "COMMIT", "after COMMIT"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, sqlite3.OperationalError])
def test_a_pair_is_there_with_its_geometry_or_not_at_all(
    statement: str, error: type[BaseException], features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a run between the statements that write it."""
    write_views(features)
    real, seen = sqlite3.connect, []

    class Ending(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            # "COMMIT": the third is that of the first pairs
            ends = sql.startswith(statement.removeprefix("after "))
            seen.extend([sql] * ends)
            due = ends and len(seen) == (2 if sql.startswith("INSERT") else 3)
            if due and not statement.startswith("after"):
                raise error
            found = super().execute(sql, *arguments)
            if due:
                raise error
            return found

    out = tmp_path / "map.db"
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", lambda *given, **named: real(*given, **named, factory=Ending))
        assert run(features, "--out", out) == (130 if error is KeyboardInterrupt else 2)
    # the run writes what is done before it ends, where it can
    matches = rows_of(out, "SELECT pair_id FROM matches ORDER BY 1")
    assert matches == rows_of(out, "SELECT pair_id FROM two_view_geometries ORDER BY 1")
    assert len(matches) == 6
    assert run(features, "--out", out) == 0
    assert len(rows_of(out, "SELECT * FROM two_view_geometries")) == 6


# ---- full disks -----------------------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from frontend.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("stage", ["settings", "journal", "features", "matches"])
def test_a_full_disk_is_told_in_one_line(stage: str, features: Path, tmp_path: Path) -> None:
    write_views(features, HLOC_NAMES, count=400)
    out = tmp_path / "out"
    name = {"settings": "settings.json", "journal": "matches.journal"}.get(stage, f"{stage}.h5")
    if stage == "matches":
        assert run(features, "--out", out, "--sequential", 1) == 0
    limit = {"settings": 10, "journal": 3000, "features": 50_000, "matches": 600_000}[stage]
    before = files_of(out)
    command = [sys.executable, "-c", LIMITED, str(limit), "match-features", str(features), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"superpoint match-features: {out / name}")
    if stage != "journal":
        assert line.endswith(" cannot be written: File too large")
    for file in ("features.h5", "matches.h5", "pairs.txt"):
        assert files_of(out).get(file) == before.get(file)
    assert not list(out.glob(".*"))
    assert run(features, "--out", out) == 0
    assert run(features, "--out", tmp_path / "whole") == 0
    assert sorted(files_of(out)) == sorted(files_of(tmp_path / "whole"))
    for file in ("features.h5", "matches.h5"):
        with h5py.File(out / file) as one, h5py.File(tmp_path / "whole" / file) as two:
            assert sorted(one) == sorted(two)


def test_what_is_taken_for_a_file_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for number in range(3):
        with appending(path) as file, file.batch(10_000_000, ["x"]) as groups:
            groups[f"{number}"] = np.arange(100)
        assert path.stat().st_size < 20_000
    with h5py.File(path) as held:
        assert all((held[str(number)][()] == np.arange(100)).all() for number in range(3))


def test_room_is_looked_for_where_it_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    path = tmp_path / "a.h5"
    with appending(path) as file, file.batch(1000, ["x"]) as groups:
        groups["x"] = np.arange(100)
    before = path.read_bytes()
    with (
        pytest.raises(DataError, match=r"a\.h5 cannot be written: No space left on device"),
        appending(path) as file,
        file.batch(1 << 60, ["y"]) as groups,
    ):
        groups["y"] = np.arange(100)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_errors_of_hdf5_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, writing(tmp_path / "a.h5"):
        raise RuntimeError("Unable to decrement ref count\nand a wall of other lines")
    assert str(caught.value) == f"{tmp_path}/a.h5 cannot be written: Unable to decrement ref count"
