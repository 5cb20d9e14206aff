"""Groups of views, their true matches, and the training of LightGlue on them."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from processes import finished, kill_when, start_python

from frontend.cli.main import main
from frontend.errors import ConfigError, DataError
from frontend.evaluation.methods import METHODS, MethodConfig
from frontend.homography import warp_points
from frontend.matching.lightglue_network import Assignment, LightGlueConfig, LightGlueNet
from frontend.matching.lightglue_weights import load_matcher
from frontend.training.matching_task import (
    MatchingConfig,
    MatchingTask,
    ViewPairs,
    _among,
    _draw,
    matching_loss,
    recall_and_precision,
)
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


def toy_group(rng: np.random.Generator, views: int = 3, count: int = 80, dim: int = 16) -> ViewGroup:
    """Points that move by a shift, with descriptors that stay but for noise; a fifth of them has no match."""
    world = rng.uniform(40, 600, (count, 2))
    described = rng.normal(size=(count, dim))
    points, descriptors, ids = [], [], []
    for view in range(views):
        order = rng.permutation(count)
        points.append(world[order] + 30 * view)
        noisy = described[order] + rng.normal(0, 0.3, (count, dim))
        lost = rng.random(count) < 0.2
        noisy[lost] = rng.normal(size=(int(lost.sum()), dim))
        descriptors.append(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
        ids.append(np.where(lost, -1, order))
    matches = np.full((views, views, count), NO_MATCH, np.int16)
    for i in range(views):
        for j in range(views):
            for k, number in enumerate(ids[i]):
                place = np.flatnonzero(ids[j] == number) if number >= 0 else []
                if i != j and len(place):
                    matches[i, j, k] = place[0]
    return ViewGroup(
        np.stack(points).astype(np.float32),
        np.stack(descriptors).astype(np.float16),
        np.full(views, count),
        np.tile([640, 480], (views, 1)),
        matches,
    )


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    folder = tmp_path / "groups"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        toy_group(rng).save(folder / f"scene-0-3-{n:06}.npz")
    (folder / "settings.json").write_text('{"model": "toy", "max_keypoints": 80}')
    return folder


def test_samples_keep_the_matches_of_their_group(groups: Path) -> None:
    data = ViewPairs(0, groups, MatchingConfig(keypoints=40, strongest=60, least_matches=5))
    held = [ViewGroup.load(path) for path in find_groups(groups)]
    share = []
    for index in range(30):
        sample = data[index]
        assert sample["descriptors"].shape == (2, 40, 16)
        matches = sample["matches"].numpy()
        rows = np.flatnonzero(matches[0] >= 0)
        np.testing.assert_array_equal(matches[1][matches[0][rows]], rows)
        assert len(rows) == (matches[1] >= 0).sum() >= 5
        share.append(len(rows) / 40)
        # the group and views it came from, by their points
        first, second = sample["points"].numpy()
        group, i = next((g, v) for g in held for v in range(3) if all((g.points[v] == p).all(1).any() for p in first))
        j = next(v for v in range(3) if all((group.points[v] == p).all(1).any() for p in second))
        places = [
            [int(np.flatnonzero((group.points[v] == p).all(1))[0]) for p in part]
            for v, part in ((i, first), (j, second))
        ]
        assert max(map(max, places)) < 60
        for k, match in enumerate(matches[0]):
            true = group.matches[i, j, places[0][k]]
            if true in places[1]:
                assert match == places[1].index(true)
            elif true < 0:
                assert match == true
            else:
                apart = np.linalg.norm(group.points[j, true] - group.points[j, places[1]], axis=1).min()
                assert match == (UNKNOWN if apart <= APART_PX else NO_MATCH)
        again = ViewPairs(0, groups, data.config)[index]
        assert all(torch.equal(again[key], sample[key]) for key in sample)
    assert min(share) < 0.4 < max(share)


def test_drawing() -> None:
    rng = np.random.default_rng(0)
    matches = [np.arange(50), np.arange(50)]
    for _ in range(20):
        first, second = _draw(rng, matches, [50, 30], 20)
        assert len(set(first.tolist())) == len(set(second.tolist())) == 20
        assert (np.diff(first) > 0).all()
        assert (np.diff(second) > 0).all()
        assert second.max() < 30
    points = np.arange(20, dtype=np.float32)[:, None] * np.array([10.0, 0], np.float32)
    points[8] = points[5] + 4  # 5.7 px away; 12 is within the limit
    points[12] = points[5] + 3
    matches = np.array([5, 7, 9, UNKNOWN, NO_MATCH, 8, 12])
    expected = [1, NO_MATCH, 2, UNKNOWN, NO_MATCH, NO_MATCH, UNKNOWN]
    assert _among(matches, np.array([2, 5, 9]), points).tolist() == expected


def test_the_loss_in_float64() -> None:
    rng = np.random.default_rng(0)
    similarity, z0, z1 = rng.normal(size=(1, 4, 5)), rng.normal(size=(1, 4)), rng.normal(size=(1, 5))
    matches0, matches1 = np.array([[2, -1, -2, 0]]), np.array([[3, -1, 0, -2, -1]])
    log = Assignment(*(torch.from_numpy(x) for x in (similarity, z0, z1))).log_scores()[0].numpy()
    positive = -(log[0, 2] + log[3, 0]) / 2
    negative = (np.log1p(np.exp(z0[0, 1])) + (np.log1p(np.exp(z1[0, 1])) + np.log1p(np.exp(z1[0, 4]))) / 2) / 2
    layer = Assignment(*(torch.from_numpy(x) for x in (similarity, z0, z1)))
    got = matching_loss(layer, torch.from_numpy(matches0), torch.from_numpy(matches1))
    assert [float(part) for part in got] == pytest.approx([positive, negative], abs=1e-5)


def test_recall_and_precision() -> None:
    similarity = torch.full((1, 4, 4), -20.0)
    for i, j in ((0, 0), (1, 2), (2, 1), (3, 3)):
        similarity[0, i, j] = 20.0
    layer = Assignment(similarity, torch.full((1, 4), 9.0), torch.tensor([[9.0, 9.0, 9.0, -9.0]]))
    # found: 0-0, 1-2, 2-1 (3 is not matchable); true: 0-0, 1-1, 3-3; nothing known of 2
    recall, precision = recall_and_precision(layer, torch.tensor([[0, 1, UNKNOWN, 3]]))
    assert float(recall) == pytest.approx(1 / 3)
    assert float(precision) == pytest.approx(1 / 2)


ARGUMENTS = (
    *("--dim", "32", "--layers", "2", "--heads", "2", "--keypoints", "40", "--strongest", "80", "--batch-size", "8"),
    *("--warmup-steps", "20", "--learning-rate", "0.003", "--precision", "fp32", "--workers", "0", "--steps", "120"),
)


def test_training_survives_a_kill_and_its_matcher_matches(groups: Path, tmp_path: Path) -> None:
    def start(out: str, *more: str) -> subprocess.Popen[str]:
        run = ("--views", str(groups), "--out", str(tmp_path / out))
        return start_python("-m", "frontend.cli.main", "train", "lightglue", *run, *ARGUMENTS, *more)

    finished(start("whole"))
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    kill_when(start("killed", "--checkpoint-seconds", "0.05"), checkpoint.is_file)
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 120
    finished(start("killed"))
    whole, killed = (load_matcher(tmp_path / run / "lightglue.safetensors") for run in ("whole", "killed"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(killed.state_dict()[name], tensor), name
    assert (whole.config.features, whole.config.input_dim) == ("toy", 16)

    from frontend.matching.lightglue import LightGlue

    matcher = LightGlue.of(whole)
    group = toy_group(np.random.default_rng(9))
    pair = [
        Features(group.points[v], np.ones(80, np.float32), group.descriptors[v].astype(np.float32), (640, 480), "toy")
        for v in (0, 1)
    ]
    found, true = matcher.match(*pair), group.matches[0, 1].astype(int)
    right = true[found.matches[:, 0]] == found.matches[:, 1]
    assert right.sum() > 0.6 * (true >= 0).sum()
    assert right.mean() > 0.7  # by chance: 1 in 80


def test_training_errors(groups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["train", "lightglue", "--out", str(tmp_path / "run"), *arguments]) == 2
        return capsys.readouterr().err

    assert "has no groups of views" in refused("--views", str(tmp_path))
    assert "keypoints 90, strongest 80" in refused("--views", str(groups), "--keypoints", "90", "--strongest", "80")
    assert "dim is 30 with 4 heads" in refused("--views", str(groups), "--dim", "30", "--heads", "4")
    for workers in ("0", "1"):
        few = ("--keypoints", "100", "--strongest", "100", "--workers", workers, "--steps", "1")
        told = refused("--views", str(groups), *few).strip().splitlines()[-1]
        assert told.startswith("superpoint train: none of 1000 pairs had 100 keypoints and 10 matches; expected")
    (groups / "settings.json").unlink()
    assert "settings.json cannot be read" in refused("--views", str(groups))


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


def test_another_training_starts_from_a_matcher(
    groups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(out: str, *more: str) -> int:
        return main(["train", "lightglue", "--views", str(groups), "--out", str(tmp_path / out), *ARGUMENTS, *more])

    short = ("--steps", "3", "--warmup-steps", "0", "--ema", "0")
    assert train("first", *short) == 0
    first = tmp_path / "first" / "lightglue.safetensors"
    assert train("second", *short, "--learning-rate", "0", "--init", str(first)) == 0
    for name, tensor in load_matcher(first).state_dict().items():
        assert torch.equal(load_matcher(tmp_path / "second" / "lightglue.safetensors").state_dict()[name], tensor), name
    assert train("third", *short, "--init", str(first), "--layers", "3") == 2
    assert "is a matcher of" in capsys.readouterr().err


def test_a_changed_group_is_noticed(groups: Path, tmp_path: Path) -> None:
    before = ViewPairs(0, groups).content()
    assert ViewPairs(5, groups).content() == before
    path = find_groups(groups)[0]
    size = path.stat().st_size
    toy_group(np.random.default_rng(99)).save(path)
    assert path.stat().st_size == size
    assert ViewPairs(0, groups).content() != before


def test_a_step_in_bf16_is_nearly_that_in_float32() -> None:
    torch.manual_seed(0)
    for input_dim in (16, 32):
        network = LightGlueNet(LightGlueConfig(input_dim, 32, 2, 2))
        described = torch.nn.functional.normalize(torch.randn(2, 2, 30, input_dim), dim=-1)
        batch = {
            "descriptors": described.half(),
            "points": torch.rand(2, 2, 30, 2) * 480,
            "sizes": torch.tensor([640, 480]).expand(2, 2, 2),
            "matches": torch.arange(30).expand(2, 2, 30),
        }
        task = MatchingTask([])  # type: ignore[arg-type]
        losses, gradients = [], []
        for enabled in (False, True):
            network.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                outputs = task.forward(network, batch)
            assert outputs[0].dtype == torch.float32
            loss, _ = task.loss(outputs, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
        assert float(torch.nn.functional.cosine_similarity(*gradients, dim=0)) > 0.98


def test_workers_end_when_the_command_is_killed(tmp_path: Path) -> None:
    def workers() -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(tmp_path).encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from frontend.training.view_groups import make_groups\n"
        "from test_matcher_training import extract\n"
        "if __name__ == '__main__':\n"
        f"    make_groups(Path({str(tmp_path)!r}), extract, scenes=500, photos=None, views=2, seed=0, workers=2)\n"
    )
    (tmp_path / "run.py").write_text(script)
    process = start_python(str(tmp_path / "run.py"), PYTHONPATH=str(Path(__file__).parent), MARK=str(tmp_path))
    kill_when(process, lambda: bool(list(tmp_path.glob("*.npz"))))
    limit = time.monotonic() + 20
    while workers():
        assert time.monotonic() < limit, "workers are still there"
        time.sleep(0.1)
