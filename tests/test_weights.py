"""Weight files: round trip, manifest, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from frontend.errors import WeightsError
from frontend.matching.lightglue_weights import load_matcher
from frontend.model import MODEL_PRESETS, SuperPointNet
from frontend.weights import (
    list_matchers,
    list_models,
    load_network,
    released_int8,
    resolve,
    resolve_matcher,
    save_network,
    weights_dir,
)

ENTRY = """
[models.{name}]
file = "{file}"
sha256 = "{sha256}"
version = "1.2"
encoder = "compact"
descriptor_dim = 128
licence = "Apache-2.0"
trained_on = "noise"
recipe = "none"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(tmp_path))
    torch.manual_seed(0)
    save_network(tmp_path / "a.safetensors", SuperPointNet(), {"steps": 3})
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    good = ENTRY.format(name="good", file="a.safetensors", sha256=digest)
    changed = ENTRY.format(name="changed", file="a.safetensors", sha256="0" * 64)
    gone = ENTRY.format(name="gone", file="b.safetensors", sha256=digest)
    (tmp_path / "manifest.toml").write_text(good + changed + gone)
    return tmp_path


@pytest.mark.parametrize("preset", sorted(MODEL_PRESETS))
def test_round_trip(tmp_path: Path, preset: str) -> None:
    network = SuperPointNet(MODEL_PRESETS[preset]).eval()
    save_network(tmp_path / "x.safetensors", network)
    name, loaded = load_network(tmp_path / "x.safetensors", fold=False)
    assert name == "x"
    assert loaded.config == network.config
    for key, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in load_network(tmp_path / "x.safetensors")[1].modules())


def test_names_of_the_manifest(folder: Path) -> None:
    models = list_models()
    assert sorted(models) == ["changed", "gone", "good"]
    assert models["good"].licence == "Apache-2.0"
    assert resolve("good") == ("good", folder / "a.safetensors")
    assert load_network("good")[0] == "good"


def refused(name_or_path: str | Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_network(name_or_path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_wrong_checksum_missing_file_unknown_name(folder: Path) -> None:
    assert "the manifest expects 000000000000" in refused("changed")
    assert "weights of 'gone' are missing" in refused("gone")
    assert "unknown model 'nobody': expected a weight file's path or one of: changed, gone, good" in refused("nobody")


def test_corrupt_files(folder: Path) -> None:
    whole = (folder / "a.safetensors").read_bytes()
    for name, data in [("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"not weights at all")]:
        path = folder / f"{name}.safetensors"
        path.write_bytes(data)
        assert "corrupt" in refused(path)
    torch.save({"a": torch.ones(9)}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    for n in (2, 5, len(whole) // 2, len(whole) - 3):
        (folder / "cut.pth").write_bytes(whole[:n])
        assert "corrupt" in refused(folder / "cut.pth")


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("tracks.csv", b"stamp_ns,frame,track_id,age,x,y\n0,0,1,1,3.5,2.5\n", "begins with b'stamp_ns,frame,t'"),
        ("hello.pth", b"hello", "begins with b'hello'"),
        ("text.pth", b"not weights at all", "begins with b'not weights at a'"),
        ("lines.pth", b"\n\n\n", r"begins with b'\n\n\n'"),
        ("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(40), r"begins with b'\xff\xd8\xff\xe0\x00"),
        ("noise.pth", bytes(range(256)) * 9, r"begins with b'\x00\x01"),
        ("empty.pth", b"", "is empty"),
        *(
            (f"{letter}.pt", letter.encode(), f"begins with b'{letter}'")
            for letter in "0123aceghijlopqrstuxBCFGIKLMNUVX"
        ),
    ],
)
def test_what_is_no_weight_file_is_one_line(folder: Path, name: str, data: bytes, found: str) -> None:
    path = folder / name
    path.write_bytes(data)
    told = refused(path)
    assert told.startswith(f"{path} is no weight file: it {found}")
    assert told.endswith("; expected a .safetensors file or a PyTorch state dict (.pth)")


def test_a_lack_of_memory_is_none_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise MemoryError

    (folder / "large.pth").write_bytes(b"PK")
    monkeypatch.setattr("torch.load", load)
    with pytest.raises(MemoryError):
        load_network(folder / "large.pth")


def test_files_of_other_content(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    assert "unknown layout of 1 tensors (a, …)" in refused(folder / "other.safetensors")
    torch.save([1, 2], folder / "list.pth")
    assert "hold list; expected a state dict" in refused(folder / "list.pth")
    torch.save({"f": Path}, folder / "code.pth")
    # not PyTorch's advice to unpickle whatever is in it, in bold
    assert refused(folder / "code.pth") == (
        f"weight file {folder / 'code.pth'} holds more than tensors, or is no PyTorch file; expected a state dict: "
        "torch.save(model.state_dict(), FILE)"
    )
    network = SuperPointNet()
    del network.descriptor.out
    save_network(folder / "part.safetensors", network)
    assert "do not fit their network" in refused(folder / "part.safetensors")


def test_an_entry_states_its_version(folder: Path) -> None:
    assert {info.version for info in list_models().values()} == {"1.2"}
    path = folder / "manifest.toml"
    good = path.read_text()
    matcher = good.replace("[models.", "[matchers.").replace('encoder = "compact"', 'features = "x"')
    for text, read in ((good, list_models), (matcher, list_matchers)):
        for line, reason in (
            ("", "there is no 'version'"),
            ("version = 0.4", "version is 0.4; expected text in quotes"),
            ("version = ['0.4']", "version is ['0.4']; expected text in quotes"),
        ):
            path.write_text(text.replace('version = "1.2"', line))
            with pytest.raises(WeightsError) as caught:
                read()
            assert str(caught.value) == f"weights manifest {path} is malformed: 'good': {reason}"


@pytest.mark.parametrize("key", ["file", "sha256", "encoder", "licence", "trained_on", "recipe"])
def test_texts_of_the_manifest_are_texts(folder: Path, key: str) -> None:
    path = folder / "manifest.toml"
    path.write_text(re.sub(rf'^{key} = ".*"$', f"{key} = 7", path.read_text(), flags=re.MULTILINE))
    assert f"is malformed: 'good': {key} is 7; expected text in quotes" in refused("good")


def test_malformed_manifest(folder: Path) -> None:
    for text in ("[models.x]\nfile = 3", "[models]\nx = 3", "models = 3", "nonsense ="):
        (folder / "manifest.toml").write_text(text)
        assert "manifest" in refused("good")
    (folder / "manifest.toml").unlink()
    assert "cannot be read" in refused("good")


def test_released_weights_are_those_of_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERPOINT_WEIGHTS_DIR", raising=False)
    models = list_models()
    assert "superpoint-edge" in models
    for name, info in models.items():
        loaded, network = load_network(name)
        assert loaded == name
        assert network.config.descriptor_dim == info.descriptor_dim
        assert network.config.encoder == info.encoder
        assert info.path.stat().st_size <= 6 * 2**20
        assert info.trained_on
        if info.int8 is not None:
            assert released_int8(info.sha256) == gzip.decompress(info.int8.read_bytes())
    matchers = list_matchers()
    assert "superpoint-edge" in {info.features for info in matchers.values()}
    for matcher in matchers.values():
        config = load_matcher(resolve_matcher(matcher.features)).config
        assert (config.features, config.input_dim) == (matcher.features, models[matcher.features].descriptor_dim)
        assert matcher.trained_on
    assert sum(path.stat().st_size for path in weights_dir().rglob("*") if path.is_file()) < 16e6
    assert (weights_dir() / "MODEL_CARD.md").is_file()


def test_versions_are_those_of_the_model_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERPOINT_WEIGHTS_DIR", raising=False)
    card = (weights_dir() / "MODEL_CARD.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^# ([\w-]+) (\d+(?:\.\d+)+)$", card, re.MULTILINE))
    assert told == {name: info.version for name, info in {**list_models(), **list_matchers()}.items()}


def test_recipes_are_scripts_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERPOINT_WEIGHTS_DIR", raising=False)
    for name, info in {**list_models(), **list_matchers()}.items():
        script = weights_dir().parent / info.recipe
        assert script.suffix == ".sh"
        assert f"{name}.safetensors" in script.read_text(encoding="utf-8")


def test_files_of_equal_networks_are_equal_bytes(tmp_path: Path) -> None:
    network = SuperPointNet(MODEL_PRESETS["edge-coarse"])
    path = tmp_path / "a.safetensors"
    files = set()
    for _ in range(8):
        save_network(path, network)
        files.add(path.read_bytes())
    assert len(files) == 1
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert set(file.metadata()) == {"format", "model", "training"}
