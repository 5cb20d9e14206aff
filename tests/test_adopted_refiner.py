"""A refiner taken from other weights: it sees the image and the scores alone, so it serves any network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from frontend.cli.main import main
from frontend.errors import ConfigError
from frontend.folders import output_path
from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet, adopt_refiner
from frontend.training.labels import write_labels
from frontend.weights import save_network


def network_of(dim: int, refiner: str = "patch", seed: int = 0) -> SuperPointNet:
    torch.manual_seed(seed)
    network = SuperPointNet(ModelConfig(descriptor_dim=dim, refiner=refiner))
    if network.refiner is not None:
        for value in network.refiner.parameters():
            value.data.normal_(0, 0.3)
    return network.eval()


@pytest.mark.parametrize("dim", [48, 16])
def test_it_says_of_any_network_s_keypoints_what_it_said_before(dim: int) -> None:
    """Positions and scores to the same bits; of the local part the common length, and zeros beyond it."""
    source, target = network_of(32), network_of(dim, seed=1)
    adopted = adopt_refiner(source, target).eval()
    patches, scores = torch.rand(5, 1, 17, 17), torch.rand(5)
    with torch.inference_mode():
        theirs, ours = source.refiner.refine_patches(patches, scores), adopted.refiner.refine_patches(patches, scores)
        before, after = target(torch.rand(1, 1, 32, 40).fill_(0.3)), adopted(torch.rand(1, 1, 32, 40).fill_(0.3))
    for a, b in zip(theirs[:3], ours[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    common = min(32, dim)
    assert ours.descriptors.shape == (5, dim)
    assert ours.descriptors[:, :common].abs().max() > 0.1
    torch.testing.assert_close(theirs.descriptors[:, :common], ours.descriptors[:, :common])
    assert not ours.descriptors[:, common:].any()
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_network_without_one_gets_one_of_the_source_s_layers() -> None:
    small = {"size": 15, "channels": [16, 48], "kernels": [5, 3], "strides": [2, 2]}
    source = SuperPointNet(replace(network_of(32).config, refiner_options=small))
    target = network_of(32, refiner="")
    adopted = adopt_refiner(source, target)
    assert target.refiner is None
    assert adopted.config == replace(target.config, refiner="patch", refiner_options=small)
    for name, value in source.refiner.state_dict().items():
        torch.testing.assert_close(adopted.refiner.state_dict()[name], value, rtol=0, atol=0)


def test_there_must_be_one() -> None:
    with pytest.raises(ConfigError, match="have none"):
        adopt_refiner(network_of(32, refiner=""), network_of(32))


def test_training_starts_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8))
    write_labels(
        output_path(tmp_path / "labels", Path("a.png")),
        np.full((1, 2), 10, np.float32),
        np.ones(1, np.float32),
        (48, 40),
    )
    source = network_of(128)
    save_network(tmp_path / "source.safetensors", source, {})
    command = [
        *("train", "superpoint", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")),
        *("--batch-size", "1", "--width", "32", "--height", "32", "--workers", "0", "--precision", "fp32"),
        *("--device", "cpu", "--model", "edge-dense", "--learning-rate", "0", "--steps", "1"),
    ]
    given = ["--refiner", str(tmp_path / "source.safetensors"), "--out", str(tmp_path / "run")]
    assert not MODEL_PRESETS["edge-dense"].refiner
    assert main([*command, *given]) == 0
    trained = load_file(tmp_path / "run" / "superpoint.safetensors")
    for name, value in source.refiner.named_parameters():
        torch.testing.assert_close(trained[f"refiner.{name}"], value, rtol=0, atol=0)
    described = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["described"]
    assert len(described["refiner_sha256"]) == 64
    # the run goes on with the command that began it, and not with another refiner
    assert main([*command, *given]) == 0
    capsys.readouterr()
    save_network(tmp_path / "source.safetensors", network_of(128, seed=2), {})
    assert main([*command, *given]) == 2
    assert "refiner_sha256" in capsys.readouterr().err
    # nor where the run itself says what network it has
    model = command.index("--model")
    assert main([*command[:model], *command[model + 2 :], *given]) == 2
    assert "refiner_sha256" in capsys.readouterr().err
