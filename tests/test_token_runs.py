"""Training with token labelling, and rounds of self-training, as commands: they survive kill -9."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import token_encoder
import torch
from processes import finished, kill_when, start_python
from safetensors.torch import load_file

from frontend.cli.main import main
from frontend.cli.train import LATER_OPTIONS
from frontend.encoders import ENCODERS
from frontend.model import ModelConfig, SuperPointNet
from frontend.training.labels import read_heatmap, read_labels
from frontend.training.synthetic import synthetic_image
from frontend.weights import save_network

LABEL = ["--homographies", "4", "--side", "96", "--threshold", "0.0001", "--precision", "fp32", "--device", "cpu"]
SMALL = {"batch_size": 2, "width": 48, "height": 32, "workers": 0, "warmup_steps": 2, "photo_side": 96}
EXACT = {"precision": "fp32", "device": "cpu", "log_every": 5, "refined_points": 20}
TOKENS = {"token_weight": 0.5, "mix_tokens": 0.6, "soft_weight": 0.3}


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command, with the encoder of the tests, in a process of its own."""
    return start_python(token_encoder.__file__, *arguments)


def finish(*arguments: str) -> str:
    return finished(start(*arguments))


def toml(path: Path, **settings: object) -> Path:
    path.write_text("".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in settings.items()))
    return path


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for n in range(6):
        image, _ = synthetic_image(np.random.default_rng(n), (96, 72), shape="polygons")
        cv2.imwrite(str(folder / f"{n}.png"), image)
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with tokens and random weights."""
    path = tmp_path_factory.mktemp("detector") / "random.safetensors"
    torch.manual_seed(0)
    name = token_encoder.register()
    network = SuperPointNet(ModelConfig(encoder=name, descriptor_dim=16, detector_options={"fine": 4}, refiner="patch"))
    del ENCODERS._items[name]
    save_network(path, network)
    return path


@pytest.fixture(scope="module")
def labels(photographs: Path, detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels")
    finish("label", str(photographs), "--model", str(detector), "--out", str(out), "--heatmaps", *LABEL)
    return out


def test_heat_maps_lie_beside_the_points_at_the_resolution_of_the_labelling(
    photographs: Path, detector: Path, labels: Path, tmp_path: Path
) -> None:
    plain = ["label", str(photographs), "--model", str(detector), "--out", str(tmp_path), *LABEL]
    finish(*plain)
    for n in range(6):
        heat = read_heatmap(labels / f"{n}.png.npz")
        assert heat is not None
        assert heat.shape == (72, 96)
        assert heat.max() > 0
        points, scores, _ = read_labels(labels / f"{n}.png.npz")
        # a point's score is the heat map's value at its pixel
        xy = np.rint(points).astype(int)
        near = [(heat[y - 2 : y + 3, x - 2 : x + 3] / 255.0).max() ** 2 for x, y in xy]
        assert (np.array(near) >= scores * 0.9).all()
        assert read_heatmap(tmp_path / f"{n}.png.npz") is None
        np.testing.assert_array_equal(read_labels(tmp_path / f"{n}.png.npz")[0], points)
    process = start(*plain, "--heatmaps")
    assert "holds labels made with heatmaps = False; got True" in process.communicate(timeout=200)[1]
    assert process.returncode == 2
    # a folder of a version that had no heat maps goes on
    settings = tmp_path / "settings.json"
    settings.write_text(settings.read_text().replace(',\n "heatmaps": false', ""))
    assert "heatmaps" not in settings.read_text()
    assert "6 had labels" in finish(*plain)


def test_training_with_all_of_it_resumes_to_the_same_weights(
    photographs: Path, detector: Path, labels: Path, tmp_path: Path
) -> None:
    config = toml(tmp_path / "all.toml", steps=40, **SMALL, **EXACT, **TOKENS)
    folders = ["--images", str(photographs), "--labels", str(labels), "--init", str(detector)]
    command = ["train", "superpoint", *folders, "--config", str(config)]
    finish(*command, "--out", str(tmp_path / "whole"))
    out = tmp_path / "out"
    kill_when(start(*command, "--out", str(out), "--checkpoint-seconds", "0.01"), (out / "checkpoint.pt").is_file)
    before = torch.load(out / "checkpoint.pt", weights_only=True)
    assert 0 < before["step"] < 40
    assert set(before["auxiliary"]) == {"head.weight", "head.bias"}
    finish(*command, "--out", str(out))
    assert_same_weights(tmp_path / "whole" / "superpoint.safetensors", out / "superpoint.safetensors")
    ends = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (tmp_path / "whole", out)]
    for name, value in ends[0]["auxiliary"].items():
        assert torch.equal(value, ends[1]["auxiliary"][name])
        assert not torch.equal(value, before["auxiliary"][name])
    # the weights are those of the network alone
    assert load_file(out / "superpoint.safetensors").keys() == load_file(detector).keys()
    # without mixing, or with other weights, it is another training
    process = start(*command, "--out", str(out), "--mix-tokens", "0")
    assert "was trained with mix_tokens = 0.6; got None" in process.communicate(timeout=200)[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toml(
        tmp_path_factory.mktemp("recipe") / "train.toml", steps=12, checkpoint_seconds=0.0, **SMALL, **EXACT, **TOKENS
    )


@pytest.fixture(scope="module")
def two_rounds(photographs: Path, detector: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds that were never interrupted."""
    out = tmp_path_factory.mktemp("rounds")
    text = finish(*rounds_command(photographs, detector, recipe, out))
    assert text.count("labelled 6 images") == 2
    return out


def rounds_command(photographs: Path, detector: Path, recipe: Path, out: Path) -> list[str]:
    options = ["--rounds", "2", "--train-config", str(recipe), "--heatmaps"]
    return ["label", str(photographs), "--model", str(detector), "--out", str(out), *options, *LABEL]


def test_each_round_labels_with_the_network_of_the_last(
    two_rounds: Path, photographs: Path, detector: Path, recipe: Path, labels: Path, tmp_path: Path
) -> None:
    """Round by round, the same as the commands by themselves."""
    model = detector
    for number in (1, 2):
        folder = two_rounds / f"round{number}"
        by_hand = tmp_path / f"labels{number}"
        finish("label", str(photographs), "--model", str(model), "--out", str(by_hand), "--heatmaps", *LABEL)
        for n in range(6):
            assert (by_hand / f"{n}.png.npz").read_bytes() == (folder / "labels" / f"{n}.png.npz").read_bytes()
        folders = ["--images", str(photographs), "--labels", str(by_hand), "--init", str(model)]
        run = tmp_path / f"train{number}"
        finish("train", "superpoint", *folders, "--config", str(recipe), "--out", str(run))
        assert_same_weights(run / "superpoint.safetensors", folder / "train" / "superpoint.safetensors")
        model = folder / "train" / "superpoint.safetensors"
    one, two = (read_heatmap(two_rounds / f"round{n}" / "labels" / "0.png.npz") for n in (1, 2))
    assert not np.array_equal(one, two)  # type: ignore[arg-type]


def test_rounds_killed_anywhere_and_resumed_end_the_same(
    two_rounds: Path, photographs: Path, detector: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = rounds_command(photographs, detector, recipe, out)
    kill_when(start(*command), lambda: len(list(out.rglob("round1/labels/*.npz"))) >= 2)
    kill_when(start(*command), (out / "round1" / "train" / "checkpoint.pt").is_file)
    kill_when(start(*command), lambda: len(list(out.rglob("round2/labels/*.npz"))) >= 2)
    finished = {path: path.stat().st_mtime_ns for path in (out / "round1").rglob("*") if path.is_file()}
    assert finished
    kill_when(start(*command), (out / "round2" / "train" / "checkpoint.pt").is_file)
    text = finish(*command)
    assert "round 1: finished before" in text
    assert {path: path.stat().st_mtime_ns for path in (out / "round1").rglob("*") if path.is_file()} == finished
    for number in (1, 2):
        place = Path(f"round{number}") / "train" / "superpoint.safetensors"
        assert_same_weights(out / place, two_rounds / place)
    text = finish(*command)
    assert text.splitlines() == ["round 1: finished before", "round 2: finished before"]


def test_rounds_with_settings_that_do_not_fit_are_refused(
    two_rounds: Path,
    photographs: Path,
    detector: Path,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["label", str(photographs), "--model", str(detector), "--out", str(tmp_path / "out")]
    wrong = toml(tmp_path / "wrong.toml", stepz=2)
    low = toml(tmp_path / "low.toml", temperature=-1.0)
    frozen = toml(tmp_path / "frozen.toml", freeze="tail")
    released = ["--model", "superpoint-slim"]
    for options, message in [
        (["--rounds", "2"], "--rounds is 2, --train-config None; expected both, or neither"),
        (["--train-config", str(recipe)], "--rounds is 0"),
        (["--rounds", "1", "--train-config", str(wrong), "--heatmaps"], "unknown setting 'stepz'"),
        (["--rounds", "1", "--train-config", str(low), *released], "temperature is -1.0; expected more than 0"),
        (["--rounds", "1", "--train-config", str(frozen), *released], "freeze is 'tail'; expected modules of"),
        (["--rounds", "1", "--train-config", str(recipe)], "asks for soft labels; they need labels with heat maps"),
    ]:
        assert main([*base, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    other = toml(tmp_path / "other.toml", steps=13, **SMALL, **EXACT, **TOKENS)
    command = rounds_command(photographs, detector, other, two_rounds)
    process = start(*command)
    assert "made with training's steps = 12; got 13" in process.communicate(timeout=200)[1]


def test_rounds_state_no_later_option_at_its_default(two_rounds: Path) -> None:
    """So that rounds go on that an earlier version began."""
    (file,) = two_rounds.glob("*.json")
    settings = json.loads(file.read_text())
    assert "training's steps" in settings
    assert not {f"training's {name}" for name in LATER_OPTIONS} & set(settings)
