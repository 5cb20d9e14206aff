"""Encoder specifications: parsing, building, refusing, and encoders of other packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from frontend.cli.main import main
from frontend.encoders import CONTEXTS, ENCODERS, Context, Part, TokenEncoder, build_encoder, parse_spec
from frontend.errors import ConfigError, RegistryError
from frontend.model import ModelConfig, SuperPointNet, transfer
from frontend.weights import load_network


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vgg", [Part("vgg")]),
        (" vgg ( ) ", [Part("vgg")]),
        ("vgg+a+b", [Part("vgg"), Part("a"), Part("b")]),
        (
            "vgg(channels=[8, 16, 16, 32], norm=relu_bn, eps=1e-3) + a(x=-2, y=True, z=None, w='b c')",
            [
                Part("vgg", {"channels": [8, 16, 16, 32], "norm": "relu_bn", "eps": 1e-3}),
                Part("a", {"x": -2, "y": True, "z": None, "w": "b c"}),
            ],
        ),
    ],
)
def test_text_and_parts_are_the_same(text: str, parts: list[Part]) -> None:
    assert parse_spec(text) == parts
    assert parse_spec("+".join(map(str, parts))) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vgg+",
        "vgg-a",
        "vgg(64)",
        "vgg(x=open('a'))",
        "vgg(**x)",
        "3",
        "vgg a",
        "a.b",
        "vgg(x=1)(y=2)",
        "vgg(x=b.c)",
    ],
)
def test_what_is_no_specification_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME, NAME\\(option=value"):
        parse_spec(text)


def test_unknown_names_and_options_are_named() -> None:
    with pytest.raises(RegistryError, match=r"unknown encoder 'resnet'; expected one of: .*compact.*vgg"):
        build_encoder("resnet")
    with pytest.raises(RegistryError, match="unknown context module 'vgg'"):
        build_encoder("vgg+vgg")
    with pytest.raises(ConfigError, match="options of encoder 'vgg\\(depth=3\\)' do not fit"):
        build_encoder("vgg(depth=3)")


class Doubling(Context):
    """Repeats its channels; counts the layers of the raster."""

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.out_channels = 2 * channels
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        layers = torch.tensor(0 if raster is None else raster.shape[1])
        return self.gain * torch.cat([features, features], dim=1), {"layers": layers}


class Patches(TokenEncoder):
    """Mean of each cell, then its square."""

    out_channels = 1

    def embed(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 8)

    def encode(self, tokens: Tensor) -> Tensor:
        return tokens.square()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTEXTS._items, "doubling", Doubling)
    monkeypatch.setitem(ENCODERS._items, "patches", Patches)


@pytest.mark.usefixtures("registered")
def test_context_modules_chain_and_report() -> None:
    encoder, contexts = build_encoder("compact(width=0.5)+doubling+doubling(gain=2.0)")
    assert [context.out_channels for context in contexts] == [2 * encoder.out_channels, 4 * encoder.out_channels]
    network = SuperPointNet(ModelConfig(encoder="compact(width=0.5)+doubling+doubling(gain=2.0)")).eval()
    image, raster = torch.rand(1, 1, 16, 24), torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        features, auxiliary = network.encode(image, raster)
        alone = network.encoder(image)
    torch.testing.assert_close(features, 2 * torch.cat([alone] * 4, dim=1))
    assert int(auxiliary["layers"]) == 3
    assert network(image).logits.shape == (1, 65, 2, 3)


@pytest.mark.usefixtures("registered")
def test_a_context_module_is_added_to_trained_weights() -> None:
    plain, enriched = SuperPointNet(ModelConfig()), SuperPointNet(ModelConfig(encoder="compact+doubling"))
    fresh = transfer(plain, enriched)
    assert "contexts.0.gain" in fresh
    assert not any(name.startswith("encoder.") for name in fresh)


@pytest.mark.usefixtures("registered")
def test_tokens_are_mixed_between_embedding_and_encoding() -> None:
    network = SuperPointNet(ModelConfig(encoder="patches", detector="paper", descriptor="paper")).eval()
    image = torch.rand(2, 1, 16, 16)
    features, _ = network.encode(image, mix=lambda tokens: tokens.flip(0))
    torch.testing.assert_close(features, network.encoder(image).flip(0))
    with pytest.raises(ConfigError, match="encoder 'compact' has no tokens to mix"):
        SuperPointNet(ModelConfig()).encode(image, mix=lambda tokens: tokens)


def test_the_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoders", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out) if entry["kind"] == "encoder"}
    assert set(entries) == set(ENCODERS)
    vgg = entries["vgg"]
    assert vgg["options"] == {"channels": [64, 64, 128, 128], "norm": "bn", "eps": 1e-5}
    assert vgg["parameters"] == sum(p.numel() for p in build_encoder("vgg")[0].parameters())
    assert "1712.07629" in vgg["paper"]
    assert main(["encoders"]) == 0
    printed = capsys.readouterr().out
    for name in [*ENCODERS, *CONTEXTS]:
        assert f"\n  {name}" in printed
    # what it prints can be given back
    for line in printed.splitlines():
        if line.startswith("  ") and line[2] != " ":
            parse_spec(line.strip())


def test_training_takes_a_specification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "2", "--batch-size", "2", "--width", "32", "--height", "32", "--workers", "0"]
    command = ["train", "magicpoint", "--out", str(tmp_path), "--model", "edge-dense", "--device", "cpu", *small]
    assert main([*command, "--encoder", "compact(width=0.5)"]) == 0
    _, network = load_network(capsys.readouterr().out.strip())
    assert network.config == ModelConfig(encoder="compact(width=0.5)", detector_options={"fine": 16})
    assert main([*command, "--encoder", "compact(depth=2)"]) == 2
    assert "options of encoder 'compact(depth=2)' do not fit" in capsys.readouterr().err


def test_an_encoder_of_another_package_is_found(tmp_path: Path) -> None:
    (tmp_path / "their_encoder.py").write_text(
        "from frontend.encoders import Encoder\n"
        "import torch\n"
        "class Theirs(Encoder):\n"
        "    'Mean of each cell.'\n"
        "    def __init__(self, gain: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.out_channels, self.gain = 1, gain\n"
        "    def forward(self, image):\n"
        "        return self.gain * torch.nn.functional.avg_pool2d(image, 8)\n"
    )
    info = tmp_path / "their_encoder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-encoder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[superpoint.encoders]\ntheirs = their_encoder:Theirs\n")
    code = (
        "import torch\n"
        "from frontend.encoders import ENCODERS, build_encoder\n"
        "assert 'theirs' in ENCODERS\n"
        "encoder, _ = build_encoder('theirs(gain=2.0)')\n"
        "print(encoder(torch.ones(1, 1, 16, 24)).mean().item(), encoder.out_channels)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout == "2.0 1\n"
