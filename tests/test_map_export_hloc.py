"""hloc's files: read as hloc reads them, and made by runs that are killed."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from map_scenes import blank, rows_of, stranger, write_views
from processes import finished, kill_when, start_python

from frontend.cli.main import main
from frontend.feature_files import write_features

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("a/one.jpg", "a/two.png", "b.JPG")
# each pair lasts as soon as it is matched, and takes long enough for the run to be killed between two
LASTING = """
import sys, time
import frontend.io.match_folder as module
from frontend.cli.main import main
match = module.match_pair
module.COMMIT_S, module.match_pair = 0, lambda *given: (time.sleep(0.01), match(*given))[1]
sys.exit(main())
"""


def run(*arguments: object) -> int:
    return main(["match-features", *(str(argument) for argument in arguments)])


def datasets(path: Path) -> dict[str, Any]:
    """All arrays of an HDF5 file, by the names of their groups and their own."""
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def partners(matches: dict[str, Any], name0: str, name1: str) -> np.ndarray:
    """(M, 2) pairs of keypoints, by the key that hloc looks them up with."""
    row = matches["/".join(name.replace("/", "-") for name in (name0, name1)) + "/matches0"]
    first = np.where(row != -1)[0]
    pairs: np.ndarray = np.stack([first, row[first]], axis=1)
    return pairs


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "features"


def test_files_are_what_hloc_reads(features: Path, tmp_path: Path) -> None:
    views, out = write_views(features, NAMES), tmp_path / "out"
    assert run(features, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["features.h5", "matches.h5", "pairs.txt", "settings.json"]
    held = datasets(out / "features.h5")
    assert len(held) == 4 * len(NAMES)
    for name, view in zip(NAMES, views, strict=True):
        given = view.features
        # to the last bit: hloc would halve them
        assert held[f"{name}/keypoints"].dtype == np.float32
        np.testing.assert_array_equal(held[f"{name}/keypoints"], given.keypoints)
        np.testing.assert_array_equal(held[f"{name}/scores"], given.scores)
        np.testing.assert_array_equal(held[f"{name}/descriptors"], given.descriptors.T)
        assert held[f"{name}/image_size"].tolist() == [640, 480]
    pairs = [line.split() for line in (out / "pairs.txt").read_text().splitlines()]
    assert pairs == [[NAMES[0], NAMES[1]], [NAMES[0], NAMES[2]], [NAMES[1], NAMES[2]]]
    matches = datasets(out / "matches.h5")
    assert len(matches) == 2 * len(pairs)
    for name0, name1 in pairs:
        found = partners(matches, name0, name1)
        point0, point1 = (views[NAMES.index(name)].point for name in (name0, name1))
        assert len(found) > 100
        assert (point0[found[:, 0]] == point1[found[:, 1]]).mean() > 0.95
        key = "/".join(name.replace("/", "-") for name in (name0, name1))
        scores = matches[f"{key}/matching_scores0"]
        assert scores.shape == matches[f"{key}/matches0"].shape == (120,)
        index0, index1 = found.T
        descriptors0, descriptors1 = (held[f"{name}/descriptors"] for name in (name0, name1))
        cosines = (descriptors0[:, index0] * descriptors1[:, index1]).sum(axis=0)
        np.testing.assert_allclose(scores[index0], cosines, atol=1e-5)
        assert (scores[matches[f"{key}/matches0"] == -1] == 0).all()


def test_uncertain_keypoints_are_said_to_be(features: Path, tmp_path: Path) -> None:
    views = write_views(features, NAMES)
    write_features(features / "b.JPG.npz", replace(views[2].features, sigmas=np.full(120, 3.5, np.float32)))
    write_features(features / "a/two.png.npz", replace(views[1].features, sigmas=None))
    assert run(features, "--out", tmp_path / "out") == 0
    with h5py.File(tmp_path / "out" / "features.h5", "r") as file:
        stated = [file[name]["keypoints"].attrs.get("uncertainty") for name in NAMES]
    # never less than what hloc takes by itself
    assert stated == [1.0, None, 3.5]


def test_a_pair_keeps_the_order_of_its_line(features: Path, tmp_path: Path) -> None:
    views, out = write_views(features, NAMES), tmp_path / "out"
    (tmp_path / "pairs.txt").write_text("b.JPG a/one.jpg\na/one.jpg b.JPG\n")
    assert run(features, "--out", out, "--pairs", tmp_path / "pairs.txt") == 0
    found = partners(datasets(out / "matches.h5"), "b.JPG", "a/one.jpg")
    assert (views[2].point[found[:, 0]] == views[0].point[found[:, 1]]).mean() > 0.95
    # the others are added; that pair is there, though the other way around
    assert run(features, "--out", out) == 0
    assert (out / "pairs.txt").read_text().splitlines() == ["b.JPG a/one.jpg", "a/one.jpg a/two.png", "a/two.png b.JPG"]
    assert len(datasets(out / "matches.h5")) == 6


def test_with_a_geometry_its_inliers_alone_are_matches(features: Path, tmp_path: Path) -> None:
    views, out = write_views(features, NAMES), tmp_path / "out"
    write_features(features / "b.JPG.npz", stranger(views[2].features))
    assert run(features, "--out", out, "--geometry", "fundamental") == 0
    matches = datasets(out / "matches.h5")
    assert len(partners(matches, NAMES[0], NAMES[1])) > 100
    assert len(partners(matches, NAMES[0], NAMES[2])) == 0


def test_an_image_without_keypoints_has_no_matches(features: Path, tmp_path: Path) -> None:
    views, out = write_views(features, NAMES), tmp_path / "out"
    write_features(features / "a/one.jpg.npz", blank(views[0].features))
    for _ in range(2):
        assert run(features, "--out", out) == 0
        assert datasets(out / "features.h5")["a/one.jpg/keypoints"].shape == (0, 2)
        matches = datasets(out / "matches.h5")
        assert matches["a-one.jpg/b.JPG/matches0"].shape == (0,)
        assert len(partners(matches, NAMES[1], NAMES[2])) > 100


def test_images_that_come_later_are_added(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views, out = write_views(features, NAMES), tmp_path / "out"
    late = features / "b.JPG.npz"
    late.unlink()
    assert run(features, "--out", out) == 0
    write_features(late, views[2].features)
    assert run(features, "--out", out) == 0
    assert "matched 2 pairs of 3 images" in (printed := capsys.readouterr().out)
    assert "1 had been before" in printed
    assert run(features, "--out", tmp_path / "whole") == 0
    for name in ("features.h5", "matches.h5"):
        assert_same(datasets(out / name), datasets(tmp_path / "whole" / name))
    moved = replace(views[0].features, keypoints=views[0].features.keypoints + 1)
    write_features(features / "a/one.jpg.npz", moved)
    write_features(features / "c.jpg.npz", views[2].features)
    capsys.readouterr()
    assert run(features, "--out", out) == 2
    assert "has other features of image 'a/one.jpg' than the matches that are there" in capsys.readouterr().err
    # with nothing in it there is no journal
    assert not (out / "matches.journal").exists()


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        np.testing.assert_array_equal(array, b[name])


def test_a_killed_run_goes_on_to_the_same_files(features: Path, tmp_path: Path) -> None:
    names = tuple(f"{index:02d}.jpg" for index in range(20))
    write_views(features, names, count=90)
    arguments = ["-c", LASTING, "match-features", str(features), "--geometry", "fundamental", "--out"]
    out = tmp_path / "out"
    journal = out / "matches.journal"

    def pairs() -> int:
        try:
            return int(rows_of(journal, "SELECT COUNT(*) FROM pairs")[0][0]) if journal.exists() else 0
        except Exception:  # not there yet, or being written
            return 0

    running = start_python(*arguments, str(out), PYTHONPATH=str(ROOT))
    kill_when(running, lambda: pairs() >= 5)
    assert not (out / "matches.h5").exists()
    done = pairs()
    assert f"matched {190 - done} pairs" in finished(start_python(*arguments, str(out), PYTHONPATH=str(ROOT)))
    finished(start_python(*arguments, str(tmp_path / "whole"), PYTHONPATH=str(ROOT)))
    for name in ("features.h5", "matches.h5"):
        assert_same(datasets(out / name), datasets(tmp_path / "whole" / name))
    assert (out / "pairs.txt").read_text() == (tmp_path / "whole" / "pairs.txt").read_text()
    assert not journal.exists()


def test_a_run_killed_between_its_files_goes_on(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from frontend.io import hloc

    write_views(features, NAMES)
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(hloc.HlocFolder, "_write_pairs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(features, "--out", out) == 130
    assert (out / "matches.journal").exists()
    before = datasets(out / "matches.h5")
    assert run(features, "--out", out) == 0
    assert "matched 0 pairs of 3 images" in capsys.readouterr().out
    assert_same(datasets(out / "matches.h5"), before)
    assert len((out / "pairs.txt").read_text().splitlines()) == 3
    assert not (out / "matches.journal").exists()


def test_half_of_a_pair_is_no_pair(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a tool leaves it that was killed while it wrote to the file."""
    write_views(features, NAMES)
    out = tmp_path / "out"
    assert run(features, "--out", out) == 0
    whole = datasets(out / "matches.h5")
    for lost in ("matches0", "matching_scores0"):
        with h5py.File(out / "matches.h5", "r+") as file:
            del file[f"a-one.jpg/b.JPG/{lost}"]
        capsys.readouterr()
        assert run(features, "--out", out) == 0
        assert "matched 1 pairs of 3 images" in (printed := capsys.readouterr().out)
        assert "2 had been before" in printed
        assert_same(datasets(out / "matches.h5"), whole)


def test_half_of_an_image_is_refused(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_views(features, NAMES)
    for lost in ("keypoints", "scores", "descriptors", "image_size"):
        out = tmp_path / lost
        assert run(features, "--out", out, "--sequential", 1) == 0
        with h5py.File(out / "features.h5", "r+") as file:
            del file[f"a/one.jpg/{lost}"]
        capsys.readouterr()
        assert run(features, "--out", out) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "has other features of image 'a/one.jpg' than the matches that are there were made of" in line


def test_matches_without_their_features_are_refused(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others could take their place, that the matches are not of."""
    write_views(features, NAMES)
    out = tmp_path / "out"
    assert run(features, "--out", out) == 0
    (out / "features.h5").unlink()
    write_views(features, NAMES, count=80)
    capsys.readouterr()
    assert run(features, "--out", out) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{out} has matches.h5 without features.h5; expected both, or another --out")
    (out / "matches.h5").unlink()
    assert run(features, "--out", out) == 0
    assert datasets(out / "features.h5")["b.JPG/keypoints"].shape == (80, 2)


def test_a_run_killed_before_it_made_anything_binds_nobody(features: Path, tmp_path: Path) -> None:
    write_views(features, NAMES)
    out = tmp_path / "out"
    # killed while it writes the features, which takes minutes where there are many
    code = (
        "import os; from frontend.io.hloc import HlocFolder; from frontend.cli.main import main\n"
        "HlocFolder._add_batch = lambda *_: os._exit(9)\nmain()"
    )
    killed = start_python("-c", code, "match-features", str(features), "--out", str(out), PYTHONPATH=str(ROOT))
    killed.communicate()
    assert killed.returncode == 9
    assert (out / "matches.journal").exists()
    assert run(features, "--out", out, "--ratio", 0.9) == 0
    assert sorted(path.name for path in out.iterdir()) == ["features.h5", "matches.h5", "pairs.txt", "settings.json"]


def test_the_folder_of_the_features_takes_no_matches(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_views(features, NAMES)
    (tmp_path / "link").symlink_to(features)
    before = sorted(features.rglob("*"))
    for out in (features, tmp_path / "link"):
        assert run(features, "--out", out) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.endswith(f"{out} is the folder of the features; expected another --out")
        assert sorted(features.rglob("*")) == before
    assert run(features, "--out", features / "hloc") == 0
    assert run(features, "--out", features / "hloc") == 0


def test_a_list_of_pairs_that_is_no_text_is_refused_before_anything_is_matched(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_views(features, NAMES)
    out = tmp_path / "out"
    assert run(features, "--out", out, "--sequential", 1) == 0
    (out / "pairs.txt").write_bytes(b"\xff\xfe a")
    capsys.readouterr()
    assert run(features, "--out", out) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"superpoint match-features: {out / 'pairs.txt'} cannot be read: ")
    assert len(datasets(out / "matches.h5")) == 4


def test_what_cannot_be_written_is_refused(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views, out = write_views(features, NAMES), tmp_path / "out"

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert run(features, *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    (tmp_path / "file").write_text("")
    assert refused("--out", tmp_path / "file").endswith("is a file; expected a folder, or --format colmap")
    assert "hloc's files hold no camera" in refused("--out", out, "--single-camera")
    assert "hloc's files hold no camera" in refused("--out", out, "--camera", "500,500,320,240")
    assert not out.exists()
    assert run(features, "--out", out) == 0
    assert "holds matches made with ratio = None; got 0.9" in refused("--out", out, "--ratio", 0.9)
    (out / "matches.h5").write_text("no HDF5")
    assert f"{out / 'matches.h5'} cannot be read" in refused("--out", out)
    write_features(features / "a-one.jpg.npz", views[0].features)
    assert "images 'a/one.jpg' and 'a-one.jpg' have one name" in refused("--out", tmp_path / "more")
    (features / "a-one.jpg.npz").rename(features / "c d.jpg.npz")
    assert "image 'c d.jpg' has white space in its name" in refused("--out", tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_without_h5py_one_line_says_what_is_missing(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_views(features, NAMES)
    there = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "h5py":
            raise ModuleNotFoundError("No module named 'h5py'", name="h5py")
        return there(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert run(features, "--out", tmp_path / "out.d", "--format", "hloc") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "superpoint match-features: hloc's files need h5py: pip install 'superpoint-frontend[hloc]'"
    assert not (tmp_path / "out.d").exists()
