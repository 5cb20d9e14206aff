"""Small trainings, their data and commands, for tests of what a training does with a machine and of its state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from frontend.folders import output_path
from frontend.model import ModelConfig, SuperPointNet
from frontend.training.datasets import Sample, SyntheticShapes
from frontend.training.labels import write_labels
from frontend.training.state import read_checkpoint
from frontend.training.synthetic import synthetic_image
from frontend.training.tasks import MagicPointTask
from frontend.training.trainer import TrainConfig, Trainer

EXACT = ["--precision", "fp32", "--device", "cpu", "--workers", "0", "--log-every", "2", "--warmup-steps", "3"]
TINY = ModelConfig(
    encoder="vgg(channels=[8,8,8,16])",
    detector="paper",
    descriptor="paper",
    descriptor_dim=16,
    detector_options={"hidden": 16},
    descriptor_options={"hidden": 16},
)


@contextmanager
def single_thread() -> Iterator[None]:
    """As the processes beside: how a sum is cut in pieces decides its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Shapes(Dataset[Sample]):
    """Small synthetic images."""

    def __init__(self, checksum: str = "abc") -> None:
        self.shapes = SyntheticShapes(0, (32, 32))
        self.checksum = checksum

    def __getitem__(self, index: int) -> Sample:
        return self.shapes[index]

    def content(self) -> str:
        return self.checksum


def trainer(out: Path, steps: int = 6, data: Shapes | None = None, **settings: object) -> Trainer:
    torch.manual_seed(0)
    values = {"batch_size": 2, "precision": "fp32", "workers": 0, "warmup_steps": 2, "log_every": 2, **settings}
    config = TrainConfig(steps=steps, **values)  # type: ignore[arg-type]
    return Trainer(MagicPointTask(data or Shapes()), SuperPointNet(TINY), config, out, {})


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def write_photographs(root: Path) -> Path:
    """Write 12 images and their labels below a folder, and return that."""
    for n in range(12):
        image, points = synthetic_image(np.random.default_rng(n), (96, 72), shape="polygons")
        (root / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(root / "images" / f"{n:03}.png"), image)
        path = output_path(root / "labels", Path(f"{n:03}.png"))
        write_labels(path, points.astype(np.float32), np.ones(len(points), np.float32), (96, 72))
    return root


def pairs_command(data: Path, out: Path, *more: str) -> list[str]:
    folders = ["--images", str(data / "images"), "--labels", str(data / "labels"), "--out", str(out)]
    return ["train", "superpoint", *folders, *more]


PAIRS = [
    *["--model", "vgg", "--encoder", "vgg(channels=[8,8,8,16])", "--steps", "8", "--batch-size", "4"],
    *["--width", "64", "--height", "64", "--photo-side", "96"],
]


def step_of(run: Path) -> int:
    return int(read_checkpoint(run)["step"]) if (run / "checkpoint.pt").is_file() else 0
