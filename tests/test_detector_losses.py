"""Detector losses for unequal classes against loops in float64, their randomness, and the training of heads alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from frontend.cli.main import main
from frontend.cli.train import MAGICPOINT_OPTIONS, SUPERPOINT_OPTIONS
from frontend.errors import ConfigError
from frontend.folders import output_path
from frontend.heads import DUSTBIN
from frontend.model import SuperPointNet, heatmap
from frontend.training.augmentation import AugmentationConfig, repeated_weights
from frontend.training.datasets import Sample, SyntheticShapes
from frontend.training.detector_losses import (
    DETECTOR_LOSSES,
    balanced_loss,
    batch_generator,
    equalization_loss,
    group_logits,
    group_softmax_loss,
    make_detector_loss,
    sample_others,
)
from frontend.training.labels import write_labels
from frontend.training.losses import detector_loss
from frontend.training.tasks import MagicPointTask, SuperPointTask
from frontend.training.trainer import TrainConfig, Trainer
from frontend.weights import load_network

SHAPE = (2, 6, 8)
SMALL = ["--batch-size", "2", "--width", "32", "--height", "32", "--workers", "0", "--warmup-steps", "1"]
EXACT = ["--precision", "fp32", "--device", "cpu", "--log-every", "1"]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Logits (2, 65, 6, 8) float64, labels of which a sixth are points, and a mask that takes an eighth away."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 65, 6, 8, generator=generator, dtype=torch.float64)
    points = torch.rand(SHAPE, generator=generator) < 0.1
    labels = torch.where(points, torch.randint(0, 64, SHAPE, generator=generator), DUSTBIN)
    mask = torch.rand(SHAPE, generator=generator) > 0.12
    assert 5 <= int((points & mask).sum()) < int((points).sum()) <= 20
    return logits, labels, mask


def minus_log_softmax(values: np.ndarray, right: int) -> float:
    return math.log(sum(math.exp(v) for v in values)) - float(values[right])


@pytest.mark.parametrize(("threshold", "gamma"), [(0.1, 0.9), (0.033, 0.5), (0.1, 1.0)])
def test_equalization_loss_equals_a_loop(batch: tuple[Tensor, Tensor, Tensor], threshold: float, gamma: float) -> None:
    logits, labels, mask = batch
    labels = labels.clone()
    labels[0, 0, :3], mask[0, 0, :3] = 7, True  # a position that is frequent at the low threshold
    labels[1, 0, :3] = 9  # would be frequent, but for the mask
    mask[1, 0, :3] = torch.tensor([False, True, True])
    draw = torch.rand(logits.shape, generator=batch_generator(labels, mask)).numpy()
    cells = [cell for cell in np.ndindex(*SHAPE) if mask[cell]]
    shares = [sum(int(labels[cell]) == k for cell in cells) / len(cells) for k in range(65)]
    assert (shares[7] < threshold) == (threshold == 0.1)
    assert 0 < shares[9] < threshold
    assert shares[DUSTBIN] > 0.5
    total, ignored = 0.0, 0
    for b, y, x in cells:
        own, denominator = int(labels[b, y, x]), 0.0
        for k in range(65):
            beta = 1 if draw[b, k, y, x] < gamma else 0
            weight = 1 - beta * (1 if shares[k] < threshold else 0) * (0 if k == own else 1)
            denominator += weight * math.exp(logits[b, k, y, x])
            ignored += 1 - weight
        total -= math.log(math.exp(logits[b, own, y, x]) / denominator)
    assert ignored / (64 * len(cells)) == pytest.approx(gamma, abs=0.05)
    got = equalization_loss(logits, labels, mask, threshold=threshold, gamma=gamma)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(total / len(cells), rel=1e-10)


def test_equalization_ignores_gradients_on_rare_classes(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, mask = batch
    found = {}
    for gamma in (0.0, 0.9, 1.0):
        leaf = logits.clone().requires_grad_()
        equalization_loss(leaf, labels, mask, gamma=gamma).backward()
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        found[gamma] = leaf.grad.movedim(1, -1)[(labels == DUSTBIN) & mask][:, :DUSTBIN]
    assert (found[0.0] > 0).all()
    assert float((found[0.9] == 0).float().mean()) == pytest.approx(0.9, abs=0.02)
    assert (found[1.0] == 0).all()
    plain = float(detector_loss(logits, labels, mask))
    assert float(equalization_loss(logits, labels, mask, gamma=0.0)) == pytest.approx(plain, rel=1e-6)


def test_group_softmax_loss_equals_a_loop(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, mask = batch
    taken = sample_others(labels, mask, 2.0)
    binary, position = [], []
    for b, y, x in np.ndindex(*SHAPE):
        if not mask[b, y, x]:
            continue
        values, own = logits[b, :, y, x].numpy(), int(labels[b, y, x])
        others = math.log(1 + sum(math.exp(v) for v in values[:64]))
        binary.append(minus_log_softmax(np.array([values[64], others]), 0 if own == 64 else 1))
        if own != 64 or taken[b, y, x]:
            position.append(minus_log_softmax(np.append(values[:64], 0.0), own))
    got = group_softmax_loss(logits, labels, mask, ratio=2.0)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(np.mean(binary) + np.mean(position), rel=1e-10)


def test_the_remap_of_the_groups_is_what_the_heat_map_shows(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Softmax of each group, positions rescaled by the foreground's probability, all scaled to sum to one."""
    logits = batch[0]
    background, positions = (group.numpy() for group in group_logits(logits))
    heat = heatmap(logits).numpy()
    for b, y, x in np.ndindex(*SHAPE):
        e = np.exp(background[b, :, y, x])
        dustbin, foreground = e / e.sum()
        e = np.exp(positions[b, :, y, x])
        of_positions = e / e.sum()
        remapped = np.append(foreground * of_positions[:64], dustbin)
        # what the paper leaves out is the foreground's own "others"
        assert 1 - remapped.sum() == pytest.approx(foreground * of_positions[64], rel=1e-9)
        remapped /= remapped.sum()
        cell = heat[b, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].ravel()
        np.testing.assert_allclose(cell, remapped[:64], rtol=1e-5)


def test_others_are_as_many_as_the_ratio_allows(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, labels, mask = batch
    points, dustbins = int(((labels < 64) & mask).sum()), int(((labels == 64) & mask).sum())
    for ratio in (0.0, 0.5, 3.0, 1e3):
        taken = sample_others(labels, mask, ratio)
        assert int(taken.sum()) == min(int(ratio * points), dustbins)
        assert (labels[taken] == 64).all()
        assert mask[taken].all()
    assert not sample_others(torch.full_like(labels, 64), mask, 8.0).any()
    # all cells are as likely: no place is preferred
    counts = torch.zeros(SHAPE)
    for n in range(300):
        shuffled = torch.full((96,), DUSTBIN).index_fill_(0, torch.tensor([n % 96, (7 * n + n // 96 + 1) % 96]), 3)
        counts += sample_others(shuffled.reshape(SHAPE), torch.ones(SHAPE, dtype=torch.bool), 8.0)
    assert counts.min() > 20
    assert counts.max() < 90


def test_only_sampled_dustbin_cells_push_positions_down(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, mask = batch
    leaf = logits.clone().requires_grad_()
    group_softmax_loss(leaf, labels, mask, ratio=2.0).backward()
    assert leaf.grad is not None
    taken = sample_others(labels, mask, 2.0)
    gradients = leaf.grad.movedim(1, -1)
    left = (labels == DUSTBIN) & mask & ~taken
    assert int(left.sum()) > 20
    assert (gradients[left][:, :DUSTBIN] == 0).all()
    assert (gradients[taken][:, :DUSTBIN] > 0).all()
    assert (gradients[(labels == DUSTBIN) & mask][:, DUSTBIN] < 0).all()
    assert (gradients[~mask] == 0).all()


def test_balanced_loss_equals_a_loop(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, mask = batch
    kinds: tuple[list[float], list[float]] = ([], [])
    for cell in np.ndindex(*SHAPE):
        if mask[cell]:
            own = int(labels[cell])
            kinds[own == 64].append(minus_log_softmax(logits[cell[0], :, cell[1], cell[2]].numpy(), own))
    expected = (np.mean(kinds[0]) + np.mean(kinds[1])) / 2
    assert float(balanced_loss(logits, labels, mask)) == pytest.approx(expected, rel=1e-10)
    none = torch.full_like(labels, DUSTBIN)
    assert float(balanced_loss(logits, none, mask)) == pytest.approx(
        float(detector_loss(logits, none, mask)) / 2, rel=1e-6
    )


@pytest.mark.parametrize("name", DETECTOR_LOSSES)
def test_losses_are_a_function_of_the_batch_alone(batch: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    loss = make_detector_loss(name)
    torch.manual_seed(1)
    first, state = loss(*batch), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(loss(*batch), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    logits, labels, mask = batch
    assert float(loss(logits, labels, torch.zeros_like(mask))) == 0


def test_the_draw_changes_with_labels_and_with_the_mask(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, labels, mask = batch
    seeds = {
        batch_generator(*pair).initial_seed() for pair in ((labels, mask), (labels.flip(2), mask), (labels, ~mask))
    }
    assert len(seeds) == 3


def test_the_command_line_offers_the_losses_that_there_are() -> None:
    """It imports no torch, so it has the names of its own."""
    for options in (MAGICPOINT_OPTIONS, SUPERPOINT_OPTIONS):
        (option,) = (option for option in options if option.name == "detector_loss")
        assert (option.choices, option.default) == (DETECTOR_LOSSES, DETECTOR_LOSSES[0])


def test_unknown_losses_and_settings_are_refused() -> None:
    assert make_detector_loss("ce") is detector_loss
    with pytest.raises(ConfigError, match="unknown detector loss 'focal'; expected one of: ce, eql, bags, balanced"):
        make_detector_loss("focal")
    for settings in ({"eql_gamma": 1.5}, {"eql_threshold": -0.1}, {"bags_ratio": -1.0}, {"bags_ratio": math.nan}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))} is .*; expected"):
            make_detector_loss("eql", **settings)


def test_tasks_use_the_loss_they_are_given(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, mask = (tensor.clone() for tensor in batch)
    sample = {"image": torch.zeros(2, 48, 64, dtype=torch.uint8), "labels": labels.byte(), "mask": mask}
    data = SyntheticShapes(0)
    for name in DETECTOR_LOSSES:
        loss = make_detector_loss(name)
        got, logged = MagicPointTask(data, loss).loss((logits,), sample)
        assert torch.equal(got, loss(logits, labels, mask))
        assert torch.equal(logged["loss/detector"], got)
        pairs = {
            "image": torch.zeros(1, 2, 48, 64, dtype=torch.uint8),
            "labels": labels.byte()[None],
            "mask": mask[None],
            "H": torch.eye(3)[None],
        }
        joint = SuperPointTask(data, "hinge", detector=loss)
        _, logged = joint.loss((logits, torch.randn(2, 8, 6, 8)), pairs)
        assert torch.equal(logged["loss/detector"], got)


class PowerCutError(Exception):
    """The run ends here."""


class Cut(MagicPointTask):
    """A task that fails at one of its steps."""

    left = 0

    def loss(self, outputs: tuple[Tensor, ...], batch: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        self.left -= 1
        if self.left == 0:
            raise PowerCutError
        return super().loss(outputs, batch)


@pytest.mark.parametrize("name", ["eql", "bags"])
def test_a_training_cut_short_and_resumed_gives_the_same_weights(tmp_path: Path, name: str) -> None:
    config = TrainConfig(steps=5, batch_size=2, precision="fp32", workers=0, checkpoint_seconds=0, log_every=1)

    def run(folder: str, cut: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        task = Cut(SyntheticShapes(0, (32, 32)), make_detector_loss(name))
        task.left = cut
        return load_file(Trainer(task, SuperPointNet(), config, tmp_path / folder, {}).run())

    whole = run("whole", 0)
    with pytest.raises(PowerCutError):
        run("cut", 4)
    torch.rand(3)
    resumed = run("cut", 0)
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


def test_stage_two_trains_the_heads_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    base = ["train", "magicpoint", *SMALL, *EXACT]
    assert main([*base, "--steps", "3", "--model", "edge-dense", "--out", str(first)]) == 0
    weights = str(first / "magicpoint.safetensors")
    stage = [*base, "--steps", "3", "--init", weights, "--freeze", "encoder,contexts", "--detector-loss", "bags"]
    assert main([*stage, "--out", str(second)]) == 0
    before, after = load_file(weights), load_file(second / "magicpoint.safetensors")
    assert before.keys() == after.keys()
    encoder = [name for name in before if name.startswith("encoder.")]
    assert any(name.endswith("running_mean") for name in encoder)
    assert [name for name in encoder if not torch.equal(before[name], after[name])] == []
    heads = [name for name in before if name.startswith("detector.") and name.endswith("weight")]
    assert [name for name in heads if torch.equal(before[name], after[name])] == []
    state = torch.load(second / "checkpoint.pt", weights_only=True)
    assert state["described"]["freeze"] == "encoder,contexts"
    assert state["described"]["detector_loss"] == "bags"
    assert len(state["described"]["init_sha256"]) == 64
    _, network = load_network(weights, fold=False)
    trained = [*network.detector.parameters(), *network.descriptor.parameters()]
    assert len(state["optimiser"]["param_groups"][0]["params"]) == len(trained)
    capsys.readouterr()
    assert main([*stage, "--freeze", "", "--out", str(second)]) == 2
    assert "freeze = encoder,contexts; got None" in capsys.readouterr().err
    assert main([*base, "--steps", "3", "--freeze", "encoder", "--out", str(tmp_path / "third")]) == 2
    assert "freeze was given without weights" in capsys.readouterr().err
    assert (
        main([*base, "--steps", "3", "--init", weights, "--freeze", "encodre", "--out", str(tmp_path / "third")]) == 2
    )
    message = capsys.readouterr().err
    assert "freeze is 'encodre'; expected modules of the network: " in message
    assert "encoder.layers" in message
    assert message.count("\n") == 1


def test_a_frozen_part_of_the_encoder(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    base = ["train", "magicpoint", *SMALL, *EXACT, "--steps", "3"]
    assert main([*base, "--model", "vgg", "--out", str(first)]) == 0
    weights = str(first / "magicpoint.safetensors")
    assert main([*base, "--init", weights, "--freeze", "encoder.stages.0", "--out", str(second)]) == 0
    before, after = load_file(weights), load_file(second / "magicpoint.safetensors")
    frozen = [name for name in before if name.startswith("encoder.stages.0.")]
    assert any(name.endswith("running_mean") for name in frozen)
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    others = [name for name in before if name.startswith("encoder.") and name not in frozen and name.endswith("weight")]
    assert [name for name in others if torch.equal(before[name], after[name])] == []


def test_defaults_describe_a_run_as_before(tmp_path: Path) -> None:
    """So that a run from before these options goes on; one with other options does not."""
    config = tmp_path / "recipe.toml"
    config.write_text('freeze = ""\ndetector_loss = "ce"\n')
    command = ["train", "magicpoint", *SMALL, *EXACT, "--steps", "1", "--config", str(config)]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    described = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["described"]
    new = {"detector_loss", "eql_threshold", "eql_gamma", "bags_ratio", "freeze", "repeat_threshold", "mosaic"}
    assert not new & set(described)
    assert described["model"]["refiner"] == "patch"
    assert main([*command, "--mosaic", "0.5", "--out", str(tmp_path / "run")]) == 2


class Stopped:
    """Stands in for the trainer: notes what it was given."""

    task: Any
    described: dict[str, Any]
    frozen: tuple[Any, ...]

    def __init__(
        self, task: Any, network: Any, config: Any, out: Path, described: Any, frozen: Any, settings: Any
    ) -> None:
        Stopped.task, Stopped.described, Stopped.frozen = task, described, frozen

    def run(self) -> str:
        return "stopped"


@pytest.mark.parametrize("task", ["magicpoint", "superpoint"])
def test_commands_pass_their_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.setattr("frontend.training.trainer.Trainer", Stopped)
    command = ["train", task, *SMALL, *EXACT, "--model", "edge", "--out", str(tmp_path / "run")]
    if task == "superpoint":
        (tmp_path / "images").mkdir()
        cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((40, 48), 90, np.uint8))
        points, scores = np.array([[10.0, 10.0]], np.float32), np.ones(1, np.float32)
        write_labels(output_path(tmp_path / "labels", Path("a.png")), points, scores, (48, 40))
        command += ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    assert main(command) == 0
    assert Stopped.task.detector is detector_loss
    assert Stopped.frozen == ()
    assert not {"detector_loss", "freeze", "bags_ratio", "mosaic"} & set(Stopped.described)
    for name, flags, settings in (
        ("eql", ["--eql-gamma", "0.7", "--eql-threshold", "0.2"], {"gamma": 0.7, "threshold": 0.2}),
        ("bags", ["--bags-ratio", "3"], {"ratio": 3.0}),
    ):
        assert main([*command, "--detector-loss", name, *flags]) == 0
        assert Stopped.task.detector.keywords == settings
        assert Stopped.described["detector_loss"] == name
    assert main([*command, "--detector-loss", "balanced"]) == 0
    assert Stopped.task.detector is balanced_loss
    if task == "magicpoint":
        shapes = ["--mosaic", "0.5", "--rotate", "20", "--scale-jitter", "0.25", "--repeat-threshold", "0.3"]
        assert main([*command, *shapes]) == 0
        data = Stopped.task.data
        assert data.augmentation == AugmentationConfig(mosaic=0.5, rotate=20.0, scale_jitter=0.25)
        np.testing.assert_array_equal(data.weights, repeated_weights(0.3, (32, 32)))
        assert {"mosaic", "rotate", "scale_jitter", "repeat_threshold"} <= set(Stopped.described)
