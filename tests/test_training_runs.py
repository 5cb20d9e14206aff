"""Training and labelling as commands: they end, they resume after kill -9, and they lose nothing."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from processes import finished, kill_when, start_python
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset

from frontend.cli.main import main
from frontend.model import MODEL_PRESETS, SuperPointNet
from frontend.training.datasets import VIEWS, Sample, SyntheticShapes
from frontend.training.labels import read_labels
from frontend.training.synthetic import synthetic_image
from frontend.training.tasks import MagicPointTask
from frontend.training.trainer import TrainConfig, Trainer
from frontend.weights import load_network

SMALL = ["--batch-size", "2", "--width", "32", "--height", "32", "--workers", "0", "--warmup-steps", "5"]
EXACT = ["--precision", "fp32", "--device", "cpu", "--log-every", "5"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return start_python("-m", "frontend.cli.main", *arguments)


def finish(*arguments: str) -> str:
    return finished(start(*arguments))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for n in range(40):
        image, _ = synthetic_image(np.random.default_rng(n), (96, 72), shape="polygons")
        (folder / f"set{n % 2}").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"set{n % 2}" / f"{n:03}.png"), image)
    (folder / "set0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 120 steps that was never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    finish("train", "magicpoint", "--out", str(out), "--steps", "120", *SMALL, *EXACT)
    return out / "magicpoint.safetensors"


def test_training_killed_and_resumed_gives_the_same_weights(detector: Path, tmp_path: Path) -> None:
    command = ["train", "magicpoint", "--out", str(tmp_path), "--steps", "120", *SMALL, *EXACT]
    checkpoint = tmp_path / "checkpoint.pt"
    kill_when(start(*command, "--checkpoint-seconds", "0.05"), checkpoint.is_file)
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < step < 120
    assert not (tmp_path / "magicpoint.safetensors").exists()
    finish(*command)
    resumed, whole = load_file(tmp_path / "magicpoint.safetensors"), load_file(detector)
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert any(path.name.startswith("events") for path in (tmp_path / "tensorboard").iterdir())


def test_a_finished_run_is_not_run_again(detector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = detector.stat().st_mtime_ns
    assert main(["train", "magicpoint", "--out", str(detector.parent), "--steps", "120", *SMALL, *EXACT]) == 0
    assert detector.stat().st_mtime_ns == before
    assert str(detector) in capsys.readouterr().out


def test_other_settings_are_refused(detector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "magicpoint", "--out", str(detector.parent), "--steps", "120", *SMALL, *EXACT]
    assert main([*command, "--seed", "9"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "was trained with seed = 0; got 9" in error


def label_command(photographs: Path, detector: Path, out: Path) -> list[str]:
    options = ["--homographies", "6", "--side", "96", "--threshold", "0.0001", "--precision", "fp32"]
    return ["label", str(photographs), "--model", str(detector), "--out", str(out), "--device", "cpu", *options]


def test_labelling_killed_and_resumed_is_whole_and_labels_nothing_twice(
    photographs: Path, detector: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    text = finish(*label_command(photographs, detector, whole))
    assert text.startswith("labelled 40 images")
    assert "1 skipped as unreadable" in text
    command = label_command(photographs, detector, out)
    kill_when(start(*command), lambda: len(list(out.rglob("*.npz"))) >= 5)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert 5 <= len(first) < 40
    for path in first:
        read_labels(path)
    text = finish(*command)
    assert f"labelled {40 - len(first)} images" in text
    assert f"{len(first)} had labels" in text
    assert {path: path.stat().st_mtime_ns for path in first} == first
    names = sorted(path.relative_to(whole) for path in whole.rglob("*.npz"))
    assert len(names) == 40
    assert sorted(path.relative_to(out) for path in out.rglob("*.npz")) == names
    points = 0
    for name in names:
        a, b = read_labels(whole / name), read_labels(out / name)
        np.testing.assert_array_equal(a[0], b[0])
        points += len(a[0])
    assert points > 40


def test_labels_of_other_settings_are_refused(
    photographs: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    cv2.imwrite(str(few / "a.png"), np.full((40, 40), 90, np.uint8))
    command = label_command(few, detector, tmp_path / "out")
    assert main(command) == 0
    assert main([*command, "--homographies", "7"]) == 2
    assert "holds labels made with homographies = 6; got 7" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["dual_softmax", "hinge"])
def test_joint_training_from_labels(photographs: Path, detector: Path, tmp_path: Path, loss: str) -> None:
    labels = tmp_path / "labels"
    assert main(label_command(photographs, detector, labels)) == 0
    folders = ["--images", str(photographs), "--labels", str(labels), "--init", str(detector)]
    command = ["train", "superpoint", *folders, "--out", str(tmp_path / "run"), "--steps", "4", *SMALL, *EXACT]
    assert main([*command, "--descriptor-loss", loss, "--photo-side", "96"]) == 0
    name, network = load_network(tmp_path / "run" / "superpoint.safetensors")
    assert name == "superpoint"
    maps = network(torch.rand(1, 1, 32, 32))
    assert torch.isfinite(maps.descriptors).all()
    before, after = load_file(detector), load_file(tmp_path / "run" / "superpoint.safetensors")
    assert not torch.equal(before["descriptor.out.conv.weight"], after["descriptor.out.conv.weight"])


def test_joint_training_with_other_views_and_descriptors(
    photographs: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels"
    assert main(label_command(photographs, detector, labels)) == 0
    folders = ["--images", str(photographs), "--labels", str(labels)]
    command = ["train", "superpoint", *folders, "--model", "slim", "--steps", "2", *SMALL, *EXACT, "--photo-side", "96"]
    changes = {
        "plain": [],
        "dim": ["--descriptor-dim", "24"],
        "dark": ["--exposure", "4"],
        "labels": ["--random-points", "0"],
        "near": ["--near-weight", "4"],
        "peaks": ["--peak-weight", "1"],
    }
    runs = {name: [*command, "--out", str(tmp_path / name), *flags] for name, flags in changes.items()}
    for run in runs.values():
        assert main(run) == 0
    weights = {name: load_file(tmp_path / name / "superpoint.safetensors") for name in runs}
    assert len({str(sum(float(t.double().sum()) for t in tensors.values())) for tensors in weights.values()}) == 6
    _, network = load_network(tmp_path / "dim" / "superpoint.safetensors")
    assert network.config == dataclasses.replace(MODEL_PRESETS["slim"], descriptor_dim=24)
    assert network(torch.rand(1, 1, 32, 32)).descriptors.shape == (1, 24, 4, 4)
    capsys.readouterr()
    for name, held in (("dim", "descriptor_dim': 24"), ("dark", "exposure = 4.0; got None")):
        assert main([*command, "--out", str(tmp_path / name)]) == 2
        assert held in capsys.readouterr().err
    for flag in ("--descriptor-dim", "--exposure", "--random-points", "--near-weight", "--scale", "--peak-weight"):
        assert main([*command, "--out", str(tmp_path / "wrong"), flag, "-1"]) == 2
        error = capsys.readouterr().err
        assert "expected 0 " in error
        assert error.count("\n") == 1
    # a run of a version whose seeds made other views
    state = torch.load(tmp_path / "plain" / "checkpoint.pt", weights_only=True)
    del state["described"]["views"]
    torch.save(state, tmp_path / "plain" / "checkpoint.pt")
    (tmp_path / "plain" / "superpoint.safetensors").unlink()
    assert main(runs["plain"]) == 2
    assert f"views = None; got {VIEWS}" in capsys.readouterr().err


class FourImages(Dataset[Sample]):
    """The same four images again and again."""

    def __init__(self) -> None:
        shapes = SyntheticShapes(0, (64, 64))
        self.samples = [shapes[n] for n in range(4)]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index % 4]


def test_training_learns_where_the_corners_are(tmp_path: Path) -> None:
    """The loss falls far below what knowing the frequencies of the classes gives."""
    data = FourImages()
    counts = np.bincount(np.concatenate([s["labels"].numpy().ravel() for s in data.samples]), minlength=65)
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    config = TrainConfig(steps=60, batch_size=4, precision="fp32", workers=0, warmup_steps=5, log_every=5)
    torch.manual_seed(0)
    Trainer(MagicPointTask(data), SuperPointNet(), config, tmp_path, {}).run()
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    values = [event.value for event in log.Scalars("loss/detector")]
    assert values[0] > entropy > 0.1
    assert values[-1] < 0.4 * entropy


def test_training_without_tensorboard_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.training.trainer.find_spec", lambda name: None)
    for command in (["magicpoint"], ["superpoint", "--images", "none", "--labels", "none"]):
        assert main(["train", *command, "--out", str(tmp_path / "run")]) == 2
        assert "training needs tensorboard: pip install 'superpoint-frontend[train]'" in capsys.readouterr().err


def test_configuration_file_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('steps = 2\nbatch_size = 1\nprecision = "fp32"\nlearning_rate = 1\nwidth = 32\nheight = 32\n')
    base = ["train", "magicpoint", "--config", str(config), "--workers", "0", "--device", "cpu"]
    assert main([*base, "--learning-rate", "1e-4", "--out", str(tmp_path / "run")]) == 0
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert state["described"]["learning_rate"] == 1e-4
    for text, message in [
        ("stepz = 2", "unknown setting 'stepz'"),
        ("steps = 2.5", "steps is 2.5; expected int"),
        ('precision = "fp8"', "precision is 'fp8'; expected auto or bf16 or fp32"),
        ('model = "foo"', "model is 'foo'; expected edge or edge-dense or"),
        ("steps = ", "no valid TOML"),
        ("width = 36", "views are 36 x 120; expected multiples of 8"),
        ("seed = -1", "seed is -1; expected 0 or more"),
        ("learning_rate = -1.0", "learning_rate is -1.0; expected 0 or more"),
        ('encoder = "compact+ocr(regions=6)"', "ocr has 6 regions; expected more than the 9 kinds of shapes"),
    ]:
        config.write_text(text)
        assert main([*base, "--out", str(tmp_path / "other")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
