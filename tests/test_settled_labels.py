"""Labels at the fixed points of a refiner: where it answers that a point may stay."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from frontend.cli.main import main
from frontend.folders import output_path
from frontend.model import ModelConfig, SuperPointNet
from frontend.refinement import Refinement
from frontend.training.adaptation import AdaptationConfig, label_image, settle
from frontend.training.labels import read_labels
from frontend.training.synthetic import synthetic_image
from frontend.weights import save_network


class Pull(nn.Module):
    """Draws every keypoint to one place, by no more than three pixels along an axis, and by half of the way."""

    def __init__(self, to: tuple[float, float]) -> None:
        super().__init__()
        self.to_ = torch.tensor(to)

    def forward(self, images: Tensor, keypoints: Tensor, scores: Tensor) -> Refinement:
        way = self.to_ - keypoints
        # half of the way, but all of it from a pixel's distance: it ends at the place, between pixels
        offsets = torch.where(way.abs() <= 1, way, (way / 2).clamp(-3, 3))
        return Refinement(offsets, scores, scores, keypoints)


def pulling(to: tuple[float, float]) -> SuperPointNet:
    network = SuperPointNet(ModelConfig(descriptor_dim=16, refiner="patch")).eval()
    network.refiner = Pull(to)
    return network


def test_points_end_where_the_refiner_lets_them_stay() -> None:
    image, to = torch.rand(40, 60), (20.3, 10.6)
    near = torch.tensor([[21.0, 11.0], [18.2, 9.7], [26.0, 14.0], [20.3, 10.6]])
    settled = settle(pulling(to), image, near, torch.full((4,), 0.5))
    torch.testing.assert_close(settled, torch.tensor([to]).expand(4, 2))
    # four moves of three pixels at most: what lies far away only comes nearer
    far = settle(pulling(to), image, torch.tensor([[50.0, 10.0]]), torch.tensor([0.5]))
    torch.testing.assert_close(far[0, 0], torch.tensor(38.0))


def test_points_stay_inside_the_image() -> None:
    settled = settle(pulling((-5.0, 45.0)), torch.rand(40, 60), torch.tensor([[1.0, 38.0]]), torch.tensor([0.5]))
    assert settled.tolist() == [[0.0, 39.0]]


def test_no_points_are_no_trouble() -> None:
    assert settle(pulling((5.0, 5.0)), torch.rand(40, 60), torch.zeros(0, 2), torch.zeros(0)).shape == (0, 2)


def test_a_photograph_s_labels_are_settled_in_its_own_pixels() -> None:
    """Twice as large as it is labelled, the place is where pixel centres say: 2 (p + 1/2) - 1/2."""
    torch.manual_seed(0)
    detector = SuperPointNet(ModelConfig(descriptor_dim=16)).eval()
    image, _ = synthetic_image(np.random.default_rng(3), (160, 120), shape="polygons")
    settings = AdaptationConfig(homographies=2, side=80, threshold=0.0, max_points=40, precision="fp32")
    plain, _, _ = label_image(detector, image, settings, np.random.default_rng(0))
    settled, scores, _ = label_image(detector, image, settings, np.random.default_rng(0), pulling((40.0, 30.0)))
    close = np.abs(plain - (80.5, 60.5)).max(axis=1) <= 14
    apart = np.abs(settled[:, None] - settled).max(axis=2) + 9 * np.eye(len(settled))
    assert close.sum() > 1
    assert np.abs(settled - (80.5, 60.5)).max(axis=1).min() < 2.5
    # those that met are one
    assert apart.min() > 2
    assert 5 < len(settled) == len(scores) <= len(plain) - close.sum() + 1
    assert (np.diff(scores) <= 0).all()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settled")
    (folder / "photographs").mkdir()
    image, _ = synthetic_image(np.random.default_rng(1), (96, 72), shape="polygons")
    cv2.imwrite(str(folder / "photographs" / "a.png"), image)
    for name, refiner in (("plain", ""), ("refined", "patch")):
        torch.manual_seed(0)
        network = SuperPointNet(ModelConfig(descriptor_dim=16, refiner=refiner))
        if network.refiner is not None:
            network.refiner.position_out.bias.data[:2] = 1.25
        save_network(folder / f"{name}.safetensors", network.eval(), {})
    return folder


def label(files: Path, out: Path, *more: str) -> int:
    options = ["--homographies", "2", "--side", "96", "--threshold", "0", "--device", "cpu", "--precision", "fp32"]
    model = ["--model", str(files / "plain.safetensors"), "--out", str(out)]
    return main(["label", str(files / "photographs"), *model, *options, *more])


def test_the_command_settles_labels_and_records_by_what(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refiner = ["--refiner", str(files / "refined.safetensors")]
    assert label(files, tmp_path / "plain") == 0
    assert label(files, tmp_path / "settled", *refiner) == 0
    before, after = (read_labels(output_path(tmp_path / kind, Path("a.png")))[0] for kind in ("plain", "settled"))
    inside = (np.abs(before - (48, 36)) < (36, 24)).all(axis=1)
    moved = np.array([min(after - point, key=lambda way: np.abs(way - 4).max()) for point in before[inside]])
    # four moves of 1.25 (less the tanh's part) from whole pixels, each rounded but for the last
    assert len(moved) > 5
    assert (np.abs(moved - 4) < 0.8).all()
    capsys.readouterr()
    assert label(files, tmp_path / "plain", *refiner) == 2
    assert "holds labels made with refiner_crc32 = None" in capsys.readouterr().err


def test_what_cannot_settle_them_is_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label(files, tmp_path / "a", "--refiner", str(files / "plain.safetensors")) == 2
    assert "have no refiner; expected a network with one" in capsys.readouterr().err
    assert label(files, tmp_path / "b", "--refiner", "superpoint-edge", "--rounds", "2", "--train-config", "x") == 2
    assert "--rounds 2; expected one of them" in capsys.readouterr().err
