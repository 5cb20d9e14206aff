"""The detector's average precision, and the zoo from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.cli.main import main
from frontend.encoders import build_encoder
from frontend.errors import ConfigError
from frontend.evaluation.detector import match_detections, synthetic_map
from frontend.evaluation.zoo import ENTRIES, HEADS, Zoo, ZooConfig, gmac, slug, table
from frontend.folders import output_path
from frontend.model import ModelConfig, SuperPointNet
from frontend.training.labels import write_labels
from frontend.training.photometric import PhotometricConfig
from frontend.training.synthetic import SHAPES, synthetic_image
from frontend.types import Features

Scene = Callable[..., np.ndarray]


def features(points: np.ndarray, scores: np.ndarray) -> Features:
    return Features(
        points.astype(np.float32), scores.astype(np.float32), np.zeros((len(points), 4), np.float32), (9, 9)
    )


def test_detections_take_corners_best_first() -> None:
    corners = np.array([[10.0, 10], [12, 10], [50, 50]])
    points = np.array([[10.5, 10], [9, 10], [53.1, 50], [13, 10], [50, 52.9]])
    scores = np.array([0.5, 0.9, 0.8, 0.4, 0.1], np.float32)
    # the second takes the first corner, the first the second one; the third is 3.1 px off; nothing is left for the 4th
    assert match_detections(points, scores, corners).tolist() == [True, True, False, False, True]
    assert match_detections(points, scores, np.zeros((0, 2))).tolist() == [False] * 5
    assert match_detections(np.zeros((0, 2)), np.zeros(0, np.float32), corners).shape == (0,)


def test_map_of_detectors_whose_precision_is_known() -> None:
    seeds = [(1_000_003, number, index) for number in range(len(SHAPES)) for index in range(3)]
    truths = {}
    for number, index in ((n, i) for _, n, i in seeds):
        rng = np.random.default_rng((1_000_003, number, index))
        image, corners = synthetic_image(rng, (96, 72), shape=list(SHAPES)[number], noise=PhotometricConfig())
        truths[image.tobytes()] = corners

    def perfect(image: np.ndarray) -> Features:
        corners = truths[image.tobytes()]
        return features(corners, np.linspace(1, 0.5, len(corners)))

    def half(image: np.ndarray) -> Features:
        found = perfect(image)
        far = np.full_like(found.keypoints, -100)
        return features(np.concatenate([found.keypoints, far]), np.concatenate([found.scores, found.scores]))

    whole = synthetic_map(perfect, images=3, size=(96, 72))
    assert set(whole) == {*SHAPES, "mean"} - {"ellipses", "noise"}
    assert whole["mean"] == pytest.approx(1.0, abs=0.05)  # but for corners nearer than 3 px to each other
    # a false detection beside every right one: precision one half all the way
    assert synthetic_map(half, images=3, size=(96, 72))["mean"] == pytest.approx(0.5, abs=0.03)
    nothing = features(np.zeros((0, 2)), np.zeros(0))
    assert synthetic_map(lambda _: nothing, images=3, size=(96, 72))["mean"] == 0


def test_gmac_of_the_papers_network() -> None:
    network = SuperPointNet(ModelConfig("vgg(norm=none)", "paper", "paper", 256, {"norm": "none"}, {"norm": "none"}))
    area, cells = 480 * 640, 60 * 80
    encoder = area * 9 * (1 * 64 + 64 * 64) + area / 4 * 9 * 2 * 64 * 64
    encoder += area / 16 * 9 * (64 * 128 + 128 * 128) + area / 64 * 9 * 2 * 128 * 128
    heads = cells * (9 * 128 * 256 * 2 + 256 * 65 + 256 * 256)
    assert gmac(network) == pytest.approx((encoder + heads) / 1e9, rel=1e-6)


def test_all_entries_can_be_built_and_have_a_folder_each() -> None:
    for spec in ENTRIES:
        build_encoder(spec)
    assert len({slug(spec) for spec in ENTRIES}) == len(ENTRIES)
    assert slug("vgg(channels=[8, 16], norm=bn)+ocr") == "vgg-channels--8-16--norm-bn-+ocr"


@pytest.fixture
def folders(make_scene: Scene, tmp_path: Path) -> tuple[Path, Path, Path]:
    photographs, labels, evaluation = (tmp_path / name for name in ("photographs", "labels", "evaluation"))
    for folder in (photographs, labels, evaluation):
        folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        name = f"{number}.png"
        cv2.imwrite(str(photographs / name), make_scene(150, 200, number))
        points = rng.uniform(0, [199, 149], (60, 2)).astype(np.float32)
        write_labels(output_path(labels, Path(name)), points, np.ones(60, np.float32), (200, 150))
    cv2.imwrite(str(evaluation / "a.png"), make_scene(96, 128, 9))
    return photographs, labels, evaluation


def test_the_zoo_trains_measures_and_goes_on(
    folders: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    small = ["--steps", "4", "5", "--pairs", "1", "--shapes", "1", "--workers", "0", "--device", "cpu"]
    command = ["eval", "zoo", *map(str, folders), "--out", str(out), *small]
    first, second = "compact(width=0.25)", "vgg(channels=[8, 8, 8, 8])"
    assert main([*command, "--encoders", second]) == 0
    capsys.readouterr()
    before = (out / slug(second) / "result.json").stat().st_mtime_ns
    assert main([*command, "--encoders", first, "--encoders", second]) == 0
    printed = capsys.readouterr().out
    assert (out / slug(second) / "result.json").stat().st_mtime_ns == before
    results = json.loads((out / "zoo.json").read_text())
    assert [r["spec"] for r in results] == [first, second]
    assert printed == table(results) == (out / "zoo.md").read_text()
    assert (out / "zoo.png").stat().st_size > 5000
    for result in results:
        assert result["steps"] == {"magicpoint": 4, "superpoint": 5}
        assert result["parameters"] > 5e4
        assert 0.5 < result["gmac"] < 10
        assert 0 <= result["viewpoint"]["h3"] <= 1
    assert main([*command, "--encoders", first, "--seed", "1"]) == 2
    assert "holds a run with" in capsys.readouterr().err
    (folders[2] / "b.png").write_bytes((folders[2] / "a.png").read_bytes())  # results of other photographs are others
    assert main([*command, "--encoders", first]) == 2
    assert "holds a run with" in capsys.readouterr().err


def test_attention_counts_as_arithmetic() -> None:
    """A block more, of 4,800 cells: attention in weights and values, its projections, and the perceptron."""
    counted = [
        gmac(SuperPointNet(replace(HEADS["edge"], encoder=f"lv_vit(dim=32,depth={depth},heads=2)")).eval())
        for depth in (1, 2)
    ]
    expected = 2 * 4800**2 * 32 + 4800 * 32 * (3 * 32 + 32 + 2 * 96)
    assert counted[1] - counted[0] == pytest.approx(expected / 1e9, rel=1e-6)


def test_a_budget_of_seconds_becomes_steps(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    photographs, labels, evaluation = folders
    runner = Zoo(photographs, labels, evaluation, tmp_path, ZooConfig(seconds=0.1, workers=0))
    _, plan, seconds = runner._train("vgg(channels=[8, 8, 8, 8])", tmp_path / "entry")
    assert set(plan) == {"magicpoint", "superpoint"}
    assert min(plan.values()) >= 4
    assert seconds > 0
    for steps in ((3, 0), (-1, 2), (1, 2, 3)):
        with pytest.raises(ConfigError, match="expected two numbers above 0"):
            ZooConfig(steps=steps)  # type: ignore[arg-type]


def test_the_zoo_refuses_at_once(
    folders: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs, labels, evaluation = map(str, folders)
    out = ["--out", str(tmp_path / "out")]
    assert main(["eval", "zoo", photographs, labels, evaluation, *out, "--encoders", "vgg+resnet"]) == 2
    assert "unknown context module 'resnet'" in capsys.readouterr().err
    within = str(Path(photographs).parent)
    for first, second in ((photographs, photographs), (photographs, within), (within, photographs)):
        assert main(["eval", "zoo", first, labels, second, *out, "--encoders", "vgg"]) == 2
        assert "other photographs" in capsys.readouterr().err
