"""``superpoint label``: what it says of photographs that are damaged, or none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from frontend.folders import output_path
from frontend.model import ModelConfig, SuperPointNet
from frontend.training.labels import read_labels
from frontend.training.synthetic import synthetic_image
from frontend.weights import save_network

ROOT = Path(__file__).resolve().parent.parent


def test_damaged_photographs_are_named_and_counted(tmp_path: Path) -> None:
    """In a process of its own, whose stderr is what libjpeg writes to."""
    photographs, out = tmp_path / "photographs", tmp_path / "labels"
    photographs.mkdir()
    image, _ = synthetic_image(np.random.default_rng(1), (96, 72), shape="polygons")
    noise = np.random.default_rng(2).integers(0, 256, image.shape, np.uint8)
    for n in range(3):
        cv2.imwrite(str(photographs / f"{n}.jpg"), cv2.addWeighted(image, 0.8, noise, 0.2, 0))
    damaged = bytearray((photographs / "1.jpg").read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 40] = bytes(range(1, 41))
    (photographs / "1.jpg").write_bytes(damaged)
    (photographs / "3.png").write_bytes(b"no image")
    torch.manual_seed(0)
    save_network(tmp_path / "net.safetensors", SuperPointNet(ModelConfig(descriptor_dim=16)).eval(), {})
    options = ["--homographies", "2", "--side", "96", "--threshold", "0", "--device", "cpu", "--precision", "fp32"]
    command = ["label", str(photographs), "--model", str(tmp_path / "net.safetensors"), "--out", str(out), *options]
    done = subprocess.run(
        [sys.executable, "-m", "frontend.cli.main", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # on a slow machine the bar is shown, too
    first, second = (line for line in done.stderr.splitlines() if not line.startswith("label ["))
    assert first.startswith(f"damaged: {photographs}/1.jpg: ")
    assert "JPEG" in first
    assert second == f"skipped: {photographs}/3.png: is not an image in a format that OpenCV reads"
    assert re.fullmatch(
        r"labelled 3 images with \d+ points each; 0 had labels; 1 skipped as unreadable; parts of 1 are damaged\n",
        done.stdout,
    )
    assert len(read_labels(output_path(out, Path("1.jpg")))[0]) > 0
