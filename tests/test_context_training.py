"""MagicPoint training of context modules that learn more than corners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from frontend.cli.main import main
from frontend.model import ModelConfig, SuperPointNet
from frontend.training.datasets import Sample, SyntheticShapes
from frontend.training.tasks import MagicPointTask, shape_raster
from frontend.weights import load_network


def batch_of(regions: bool, count: int = 4) -> Sample:
    data = SyntheticShapes(0, (64, 48), regions=regions)
    samples = [data[i] for i in range(count)]
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def network_of(contexts: str) -> SuperPointNet:
    torch.manual_seed(0)
    config = ModelConfig(f"compact(width=0.5)+{contexts}", "paper", "paper", 32)
    return SuperPointNet(config).train()


def test_rasters_of_shapes() -> None:
    regions = torch.tensor([[[0, 1, 3], [2, 0, 3]]], dtype=torch.uint8)
    assert shape_raster(regions, 1).tolist() == [[[[0, 1, 1], [1, 0, 1]]]]
    assert shape_raster(regions, 2).tolist() == [[[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]]]


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        ("strip_pooling", {"loss/detector"}),
        ("ocr", {"loss/detector", "loss/regions"}),
        ("map_fusion", {"loss/detector", "loss/map"}),
        ("ocr+map_fusion(layers=3)", {"loss/detector", "loss/regions", "loss/map"}),
    ],
)
def test_each_module_has_its_loss(contexts: str, expected: set[str]) -> None:
    network, batch = network_of(contexts), batch_of(regions=True)
    task = MagicPointTask(SyntheticShapes(0), auxiliary_weight=0.25)
    total, logged = task.loss(task.forward(network, batch), batch)
    assert set(logged) == expected
    weights = {"loss/detector": 1.0}
    assert total.item() == pytest.approx(sum(weights.get(k, 0.25) * float(v) for k, v in logged.items()), rel=1e-5)


def test_without_regions_the_corners_alone_teach() -> None:
    network, batch = network_of("ocr"), batch_of(regions=False)
    task = MagicPointTask(SyntheticShapes(0))
    total, logged = task.loss(task.forward(network, batch), batch)
    assert set(logged) == {"loss/detector"}
    assert total.item() == pytest.approx(float(logged["loss/detector"]))


def test_about_every_other_batch_comes_with_the_map() -> None:
    network, task = network_of("map_fusion"), MagicPointTask(SyntheticShapes(0))
    seen: list[bool] = []

    def note(module: torch.nn.Module, given: tuple[Tensor, Tensor | None]) -> None:
        seen.append(given[1] is not None)

    network.contexts[0].register_forward_pre_hook(note)  # type: ignore[arg-type]
    batches = [{k: v[i : i + 2] for k, v in batch_of(True, 24).items()} for i in range(0, 24, 2)]
    for _ in range(2):
        for batch in batches:
            task.forward(network, batch)
    assert 2 < sum(seen[:12]) < 10
    assert seen[:12] == seen[12:]  # the batch decides, not chance: a resumed run sees the same


def test_the_command_trains_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "3", "--batch-size", "2", "--width", "32", "--height", "32", "--workers", "0"]
    encoder = ["--model", "edge-dense", "--encoder", "compact(width=0.5)+ocr+map_fusion", "--device", "cpu"]
    assert main(["train", "magicpoint", "--out", str(tmp_path), *small, *encoder, "--log-every", "1"]) == 0
    captured = capsys.readouterr()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss/regions", "loss/map"} <= set(events.Tags()["scalars"])
    _, network = load_network(captured.out.strip())
    assert network.map_layers == 1
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        with_map = network(image, torch.ones(1, 1, 32, 32)).logits
        without = network(image).logits
    assert np.isfinite(with_map.numpy()).all()
    assert with_map.shape == without.shape
