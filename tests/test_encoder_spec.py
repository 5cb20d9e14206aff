"""Encoder specifications: parsing, building, refusing, and encoders of other packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from frontend.cli.main import main
from frontend.cli.options import tomllib
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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("repmlp(partition=0)", "repmlp got partition 0; expected a whole number of 1 or more"),
        ("repmlp(kernels=[1, 0])", "repmlp got kernels [1, 0]; expected a list of whole numbers of 1 or more"),
        ("repmlp(groups=7)", "repmlp got 48 channels; expected a multiple of its 7 groups"),
        ("mlp_mixer(depth=-1)", "mlp_mixer got depth -1; expected a whole number of 0 or more"),
        ("mlp_mixer(dim=12.0)", "mlp_mixer got dim 12.0; expected a whole number of 1 or more"),
        ("lv_vit(dim=True)", "lv_vit got dim True; expected a whole number of 1 or more"),
        ("dbb(channels=[0, 0, 0, 0])", "dbb got channels [0, 0, 0, 0]; expected a list of whole numbers of 1 or more"),
        ("vgg(channels=64)", "vgg got channels 64; expected a list of whole numbers of 1 or more"),
        ("vgg(norm=batch)", "vgg got norm 'batch'; expected one of: none, bn, relu_bn"),
        ("compact(width=-1)", "compact got width -1; expected a positive number"),
        ("compact(width=1e999)", "compact got width inf; expected a positive number"),
        ("compact+strip_pooling(reduction=-2)", "strip_pooling got reduction -2; expected a whole number of 1 or more"),
    ],
)
def test_values_that_no_network_has_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_encoder(spec)
    assert str(caught.value) == message


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


class Plain(nn.Module):
    """No contract."""


class Sized(Plain):
    """A contract, and what breaks it."""

    out_channels: object = 2

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.wrong = wrong
        if wrong == "constructor":
            raise ValueError("it is\nso")
        if wrong == "channels":
            self.out_channels = "two"
        self.quiet = nn.BatchNorm2d(1).eval()

    def forward(self, image: Tensor) -> object:
        assert not self.training
        if self.wrong == "forward":
            raise RuntimeError("no")
        out = nn.functional.avg_pool2d(image, 4 if self.wrong == "stride" else 8)
        return {} if self.wrong == "type" else torch.cat([out, out], dim=1)


class Bare(Doubling):
    def forward(self, features: Tensor, raster: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return features


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("plain", "encoder 'plain' has no out_channels; expected a whole number of 1 or more, see docs/encoders.md"),
        ("nothing", "encoder 'nothing' is of the type list; expected a torch.nn.Module"),
        ("sized(wrong=constructor)", "encoder 'sized(wrong=constructor)' cannot be made: ValueError: it is so"),
        ("sized(wrong=channels)", "encoder 'sized(wrong=channels)' has out_channels 'two'; expected a whole number"),
        ("sized(wrong=forward)", "cannot be run on an input of (1, 1, 16, 24): RuntimeError: no"),
        (
            "sized(wrong=stride)",
            "returns shape (1, 2, 4, 6); expected (1, 2, 2, 3), out_channels at an eighth of the im",
        ),
        ("sized(wrong=type)", "returns a dict; expected (1, 2, 2, 3), out_channels at an eighth of the image's size"),
        ("sized(right=1)", "options of encoder 'sized(right=1)' do not fit: "),
        ("sized+bare", "context module 'bare' returns a Tensor; expected features and a dict of outputs"),
    ],
)
def test_what_is_no_encoder_of_another_package_is_refused(
    spec: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, theirs in (("plain", Plain), ("sized", Sized), ("nothing", list)):
        monkeypatch.setitem(ENCODERS._items, name, theirs)
    monkeypatch.setitem(CONTEXTS._items, "bare", Bare)
    with pytest.raises(ConfigError) as caught:
        build_encoder(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    encoder, _ = build_encoder("sized")
    assert encoder.training
    assert not encoder.get_submodule("quiet").training  # as it was made


def other_package(folder: Path, points: str) -> dict[str, str]:
    """Announce what modules of a folder have; the environment of a process that finds them."""
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    return {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def test_broken_encoders_of_other_packages_are_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "import torch\n"
        "class Plain(torch.nn.Module): 'One.'\n"
        "class Good(torch.nn.Module):\n"
        "    'Another.'\n"
        "    out_channels = 1\n"
        "    def forward(self, image): return torch.nn.functional.avg_pool2d(image, 8)\n"
    )
    points = "[superpoint.encoders]\naaa = theirs:Plain\nbbb = nowhere:X\nvgg = theirs:Good\nzzz = theirs:Good\n"
    environment = other_package(tmp_path, points)
    code = (
        "import json, sys\n"
        "from frontend.cli.main import main\n"
        "main(['encoders', '--json'])\n"
        "print('---')\n"
        "main(['encoders'])\n"
        "print('---')\n"
        "for name in ('aaa', 'bbb'):\n"
        "    print(main(['train', 'magicpoint', '--out', 'x', '--encoder', name]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    document, text, codes = done.stdout.split("---\n")
    problems = {}
    for entry in json.loads(document):
        if entry["problem"]:
            problems[entry["name"]] = entry["problem"]
    contract = "encoder 'aaa' has no out_channels; expected a whole number of 1 or more, see docs/encoders.md"
    missing = "encoder 'bbb' of nowhere:X fails: No module named 'nowhere'"
    assert problems == {"aaa": contract, "bbb": missing, "vgg": "encoder 'vgg' of theirs:Good is registered already"}
    assert f"  aaa\n      cannot be used: {contract}\n" in text
    assert "  zzz\n      Another.\n" in text
    assert "  vgg(channels=[64, 64, 128, 128], " in text
    assert "  strip_pooling(" in text
    assert codes == "2\n2\n"
    assert done.stderr.splitlines() == [f"superpoint train: {contract}", f"superpoint train: {missing}"]


def test_the_document_s_example_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "encoders.md").read_text()
    blocks = dict(re.findall(r"```(python|toml)\n(.*?)```", text, flags=re.DOTALL))
    (tmp_path / "my_encoder.py").write_text(blocks["python"])
    groups = tomllib.loads(blocks["toml"])["project"]["entry-points"]
    points = "".join(f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in one.items()) for group, one in groups.items())
    code = (
        "import torch\n"
        "from frontend.model import ModelConfig, SuperPointNet\n"
        "from frontend.cli.encoders import describe\n"
        "network = SuperPointNet(ModelConfig(encoder='tiny(width=8)+gate'))\n"
        "maps = network(torch.rand(2, 1, 32, 48))\n"
        "maps.logits.sum().backward()\n"
        "print(tuple(maps.descriptors.shape), len(network.contexts))\n"
        "print([(e['name'], e['summary'], e['problem']) for e in describe() if e['name'] in ('tiny', 'gate')])\n"
    )
    environment = other_package(tmp_path, points)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    shape, listed = done.stdout.splitlines()
    assert shape == "(2, 128, 4, 6) 1"
    expected = [
        ("tiny", "Three strided convolutions.", None),
        ("gate", "A gain for each channel, from its mean.", None),
    ]
    assert listed == str(expected)


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
    environment = other_package(tmp_path, "[superpoint.encoders]\ntheirs = their_encoder:Theirs\n")
    code = (
        "import torch\n"
        "from frontend.encoders import ENCODERS, build_encoder\n"
        "assert 'theirs' in ENCODERS\n"
        "encoder, _ = build_encoder('theirs(gain=2.0)')\n"
        "print(encoder(torch.ones(1, 1, 16, 24)).mean().item(), encoder.out_channels)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout == "2.0 1\n"
