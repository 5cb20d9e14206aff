"""Groups of views: what is made, what is kept, and the true matches of their keypoints."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import kill_when, start_python

from frontend.cli.main import main
from frontend.errors import ConfigError, DataError
from frontend.evaluation.methods import METHODS, MethodConfig
from frontend.homography import warp_points
from frontend.training.scene_views import scene_views
from frontend.training.view_groups import (
    APART_PX,
    MATCHED_PX,
    NO_MATCH,
    UNKNOWN,
    Projected,
    ViewGroup,
    find_groups,
    group_of_photo,
    group_of_scene,
    make_groups,
    true_matches,
    warped_views,
)
from frontend.types import Features


def extract(image: np.ndarray) -> Features:
    """SIFT: a real detector that needs no weights."""
    color = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return METHODS.get("sift")(MethodConfig(max_keypoints=200))(color)


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (size[1] // 6, size[0] // 6), dtype=np.uint8), size)
    for _ in range(12):
        corner = rng.integers(0, size[0], 2)
        cv2.rectangle(image, corner.tolist(), (corner + rng.integers(6, 40, 2)).tolist(), int(rng.integers(256)), -1)
    return image


def by_loops(
    points0: np.ndarray, points1: np.ndarray, there: Projected, back: Projected
) -> tuple[np.ndarray, np.ndarray]:
    """The rule, one pair at a time."""
    n0, n1 = len(points0), len(points1)
    forward = [[float(np.hypot(*(there.points[i] - points1[j]))) for j in range(n1)] for i in range(n0)]
    backward = [[float(np.hypot(*(back.points[j] - points0[i]))) for j in range(n1)] for i in range(n0)]

    def far(i: int, j: int) -> float:
        return max(forward[i][j], backward[i][j]) if there.seen[i] and back.seen[j] else np.inf

    first, second = np.full(n0, UNKNOWN), np.full(n1, UNKNOWN)
    for i in range(n0):
        alone = all(min(forward[i][j], backward[i][j]) > APART_PX for j in range(n1))
        if there.outside[i] or (there.seen[i] and alone):
            first[i] = NO_MATCH
    for j in range(n1):
        alone = all(min(forward[i][j], backward[i][j]) > APART_PX for i in range(n0))
        if back.outside[j] or (back.seen[j] and alone):
            second[j] = NO_MATCH
    for i in range(n0):
        for j in range(n1):
            own = far(i, j)
            least = min(own, *(far(k, j) for k in range(n0)), *(far(i, k) for k in range(n1)))
            if own < MATCHED_PX and own == least:
                first[i], second[j] = j, i
    return first, second


def test_true_matches_are_those_of_the_loops() -> None:
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 100, (70, 2)).astype(np.float32)
    points1 = np.concatenate([points0[:50] + rng.normal(0, 2.0, (50, 2)), rng.uniform(0, 100, (15, 2))])
    points1 = points1.astype(np.float32) + 30
    there = Projected(points0.astype(np.float64) + 30, rng.random(70) < 0.8, rng.random(70) < 0.1)
    back = Projected(
        points1.astype(np.float64) - 30 + rng.normal(0, 0.5, (65, 2)), rng.random(65) < 0.8, np.zeros(65, bool)
    )
    there.points[0] = 1e9  # a point that the other camera sees nowhere
    expected = by_loops(points0, points1, there, back)
    got = true_matches(points0, points1, there, back)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert {NO_MATCH, UNKNOWN} < set(a.tolist())
        assert (a >= 0).sum() > 10


@pytest.mark.parametrize(("n0", "n1"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_true_matches_of_few(n0: int, n1: int) -> None:
    points0, points1 = np.full((n0, 2), 5.0, np.float32), np.full((n1, 2), 5.0, np.float32)
    ways = [Projected(p.astype(np.float64), np.ones(len(p), bool), np.zeros(len(p), bool)) for p in (points0, points1)]
    first, second = true_matches(points0, points1, *ways)
    expected = [0] if n0 and n1 else [NO_MATCH]
    assert (first.tolist(), second.tolist()) == (expected * n0, expected * n1)


def test_a_photographs_matches_obey_its_homographies() -> None:
    images, homographies = warped_views(picture(0), np.random.default_rng(3), 4)
    np.testing.assert_array_equal(homographies[0], np.eye(3))
    group = group_of_photo(images, homographies, extract)
    total = 0
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 1)):
        relative = homographies[j] @ np.linalg.inv(homographies[i])
        matches = group.matches[i, j, : group.counts[i]]
        rows = np.flatnonzero(matches >= 0)
        errors = warp_points(group.points[i, rows].astype(np.float64), relative) - group.points[j, matches[rows]]
        assert (np.linalg.norm(errors, axis=1) < MATCHED_PX + 1e-3).all()
        np.testing.assert_array_equal(group.matches[j, i][matches[rows]], rows)
        total += len(rows)
        alone = np.flatnonzero(matches == NO_MATCH)
        where = warp_points(group.points[i, alone].astype(np.float64), relative)
        nearest = np.linalg.norm(where[:, None] - group.points[j, None, : group.counts[j]], axis=2).min(1)
        inside = ((where >= 0) & (where <= [159, 119])).all(axis=1)
        assert (nearest[inside] > APART_PX - 1e-3).all()
        assert len(alone) > 3
    assert total > 60


def test_a_scenes_matches_look_alike() -> None:
    group = group_of_scene(scene_views(0, 3, 3, (320, 240)), extract)
    similar, others = [], []
    for i, j in ((0, 1), (1, 2), (2, 0)):
        matches = group.matches[i, j].astype(int)
        rows = np.flatnonzero(matches >= 0)
        own = group.descriptors[i].astype(np.float32) @ group.descriptors[j].astype(np.float32).T
        similar += own[rows, matches[rows]].tolist()
        others += own[rows, (matches[rows] + 1) % group.counts[j]].tolist()
    assert len(similar) > 30
    assert np.median(similar) > np.median(others) + 0.1


def test_groups_are_made_once(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    cv2.imwrite(str(photos / "a.png"), picture(1))
    cv2.imwrite(str(photos / "sub" / "a.png"), picture(2))
    out = tmp_path / "groups"
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")

    def make(workers: int) -> tuple[int, int, int]:
        report = make_groups(out, extract, scenes=2, photos=photos, views=2, seed=0, workers=workers)
        assert all("broken.jpg" in line for line in report.skipped)
        return report.made, report.kept, len(report.skipped)

    assert make(0) == (4, 0, 1)
    times = {path.name: path.stat().st_mtime_ns for path in find_groups(out)}
    assert len(times) == 4
    before = ViewGroup.load(out / "scene-0-2-000001.npz")
    (out / "scene-0-2-000001.npz").unlink()
    assert make(1) == (1, 3, 1)
    again = ViewGroup.load(out / "scene-0-2-000001.npz")
    for name in ("points", "descriptors", "counts", "sizes", "matches"):
        np.testing.assert_array_equal(getattr(again, name), getattr(before, name))
    now = {path.name: path.stat().st_mtime_ns for path in find_groups(out)}
    assert {name for name in times if now[name] != times[name]} == {"scene-0-2-000001.npz"}
    # another photograph under a name that was there
    cv2.imwrite(str(photos / "a.png"), picture(3))
    assert make(0) == (1, 3, 1)
    assert len(find_groups(out)) == 5


def test_groups_errors(tmp_path: Path) -> None:
    for wrong in ({"views": 1}, {"scenes": 0}, {"workers": -1}, {"seed": -1}):
        settings = {"scenes": 1, "photos": None, "views": 2, "seed": 0, "workers": 0, **wrong}
        with pytest.raises(ConfigError, match="expected 2 or more views, no negative number, and scenes or "):
            make_groups(tmp_path, extract, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no groups of views; expected a folder that 'superpoint make-views' made"):
        find_groups(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(DataError, match=r"group of views .*x.npz cannot be read"):
        ViewGroup.load(tmp_path / "x.npz")


def test_views_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*more: str) -> int:
        views = ("make-views", str(tmp_path / "groups"), "--scenes", "1", "--views", "2", "--workers", "0")
        return main([*views, "--device", "cpu", "--max-keypoints", "300", *more])

    assert run("--model", "superpoint-slim") == 0
    assert "made 1 groups, 0 were there, 0 images skipped" in capsys.readouterr().out
    group = ViewGroup.load(next((tmp_path / "groups").glob("*.npz")))
    assert group.descriptors.shape[2] == 96
    assert group.counts.max() <= 300
    assert (group.matches[0, 1] >= 0).sum() > 20
    assert run("--model", "superpoint-slim") == 0
    assert "made 0 groups, 1 were there" in capsys.readouterr().out
    assert main(["make-views", str(tmp_path / "none"), "--model", "superpoint-slim"]) == 2
    assert not (tmp_path / "none").exists()
    assert run("--model", "superpoint-synthetic") == 2
    assert (
        "holds groups of views made with model = superpoint-slim; got superpoint-synthetic" in capsys.readouterr().err
    )


VIEWS = "make_groups(out, extract, scenes=500, photos=None, views=2, seed=0, workers=2)"
SCENES = "make_scenes(out, 500, workers=2)"


@pytest.mark.parametrize("made", [VIEWS, SCENES])
def test_workers_end_when_the_command_is_killed(made: str, tmp_path: Path) -> None:
    def workers() -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(tmp_path).encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from frontend.training.scenes import make_scenes\n"
        "from frontend.training.view_groups import make_groups\n"
        "from test_view_groups import extract\n"
        "if __name__ == '__main__':\n"
        f"    out = Path({str(tmp_path)!r}); {made}\n"
    )
    (tmp_path / "run.py").write_text(script)
    process = start_python(str(tmp_path / "run.py"), PYTHONPATH=str(Path(__file__).parent), MARK=str(tmp_path))
    kill_when(process, lambda: bool([*tmp_path.glob("*.npz"), *tmp_path.glob("*.jpg")]))
    limit = time.monotonic() + 20
    while workers():
        assert time.monotonic() < limit, "workers are still there"
        time.sleep(0.1)


def test_some_views_are_from_one_place_under_changing_light() -> None:
    image = picture(0)
    corners = np.array([[0, 0], [159, 0], [159, 119], [0, 119.0]])
    moved, changed = [], []
    for seed in range(60):
        images, homographies = warped_views(image, np.random.default_rng(seed), 3)
        far = max(np.abs(warp_points(corners, H) - corners).max() for H in homographies)
        moved.append(far)
        changed.append(np.abs(images[0].astype(float) - images[1]).mean())
    still = np.array(moved) < 40
    assert 10 <= still.sum() <= 27  # 30 % of 60
    assert np.array(moved)[~still].min() > 40
    # what moves little changes by its light, not by its place
    assert np.array(changed)[still].mean() > 20
