"""Samples of groups of views, the loss, and the training of LightGlue on them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import finished, kill_when, start_python
from toy_matchers import toy_group, write_groups

from frontend.cli.main import main
from frontend.errors import ConfigError
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
from frontend.training.state import read_checkpoint
from frontend.training.view_groups import (
    APART_PX,
    NO_MATCH,
    UNKNOWN,
    ViewGroup,
    find_groups,
)
from frontend.types import Features
from frontend.weights import sha256_of


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "groups")


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


def test_of_several_pairs_of_views_the_hardest_is_taken(groups: Path) -> None:
    """It has the fewest matches of those drawn, unless they are hardly any."""
    group = ViewGroup.load(find_groups(groups)[0])
    matches = np.full_like(group.matches, NO_MATCH)
    for (i, j), count in {(0, 1): 60, (0, 2): 30, (1, 2): 3}.items():
        matches[i, j, :count] = matches[j, i, :count] = np.arange(count)
    group = replace(group, matches=matches)

    def drawn(hardest_of: int) -> dict[tuple[int, ...], int]:
        data = ViewPairs(0, groups, MatchingConfig(least_matches=2, hardest_of=hardest_of))
        found = [tuple(sorted(data._pair(group, np.random.default_rng(seed)))) for seed in range(300)]
        return {pair: found.count(pair) for pair in ((0, 1), (0, 2), (1, 2))}

    assert min(drawn(1).values()) > 70
    hard = drawn(4)
    assert hard[0, 2] > 200 > 80 > hard[0, 1] > 0
    assert hard[1, 2] < 15  # only where all draws were of it
    before = [np.random.default_rng(seed).permutation(3)[:2].tolist() for seed in range(5)]
    data = ViewPairs(0, groups, MatchingConfig())
    assert [list(data._pair(group, np.random.default_rng(seed))) for seed in range(5)] == before
    with pytest.raises(ConfigError, match="hardest_of is 0; expected 1 or more"):
        MatchingConfig(hardest_of=0)


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
    points[8] = points[5] + 0.8 * APART_PX  # along both axes, so beyond the limit; 12 is within it
    points[12] = points[5] + 0.6 * APART_PX
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


def test_a_training_starts_from_a_released_matcher_by_its_name(
    groups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(out: str, *more: str) -> int:
        return main(["train", "lightglue", "--views", str(groups), "--out", str(tmp_path / out), *ARGUMENTS, *more])

    short = ("--steps", "1", "--warmup-steps", "0", "--ema", "0", "--learning-rate", "0")
    assert train("first", *short) == 0
    first = tmp_path / "first" / "lightglue.safetensors"
    facts = {"version": "1", "file": str(first), "sha256": sha256_of(first), "features": "toy"}
    facts |= dict.fromkeys(("licence", "trained_on", "recipe"), "none")
    lines = ["[matchers.lightglue-toy]", *(f'{key} = "{value}"' for key, value in facts.items())]
    (tmp_path / "manifest.toml").write_text("\n".join(lines))
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path))
    assert train("second", *short, "--init", "lightglue-toy") == 0
    second = load_matcher(tmp_path / "second" / "lightglue.safetensors").state_dict()
    assert all(torch.equal(second[name], tensor) for name, tensor in load_matcher(first).state_dict().items())
    assert read_checkpoint(tmp_path / "second")["described"]["init_sha256"] == facts["sha256"]

    capsys.readouterr()
    assert train("third", *short, "--init", "nowhere.safetensors") == 2
    told = "there is no matcher 'nowhere.safetensors': expected a weight file's path or one of: lightglue-toy"
    assert capsys.readouterr().err == f"superpoint train: {told}\n"


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
