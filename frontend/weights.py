"""Weight files: the manifest of released models, checksums, strict loading, saving."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from frontend.errors import ConfigError, RegistryError, WeightsError, is_lack_of_memory

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from torch import Tensor

    from frontend.model import SuperPointNet

FORMAT = "superpoint-frontend"
MATCHER_FORMAT = "superpoint-frontend matcher"
DEFAULT_MODEL = "superpoint-edge"
WEIGHTS_DIR_VARIABLE = "SUPERPOINT_WEIGHTS_DIR"


@dataclass(frozen=True)
class ModelInfo:
    """A released model, as its manifest entry states it.

    Attributes:
        name: what users call it.
        version: of the weights, such as "0.4".
        path: of the weight file.
        sha256: of the weight file, hexadecimal.
        encoder: its encoder's name.
        descriptor_dim: D.
        licence: of the weights, SPDX.
        trained_on: the images it was trained on, and the rights in them.
        recipe: how it was trained.
        figures: what it measures, by name.
        rights: in those images, in a word or two: whose they are; empty where the entry does not say.
        int8: ONNX model of its dense part in int8, compressed by gzip and calibrated on what it was trained on; None
            where none was released.
        int8_sha256: of that file, hexadecimal.
    """

    name: str
    version: str
    path: Path
    sha256: str
    encoder: str
    descriptor_dim: int
    licence: str
    trained_on: str
    recipe: str
    figures: Mapping[str, Any]
    rights: str = ""
    int8: Path | None = None
    int8_sha256: str = ""


def weights_dir() -> Path:
    """Where the released weights lie: $SUPERPOINT_WEIGHTS_DIR, the installed package's, or the checkout's."""
    override = os.environ.get(WEIGHTS_DIR_VARIABLE)
    if override:
        return Path(override)
    package = Path(__file__).resolve().parent
    installed = package / "_weights"
    return installed if installed.is_dir() else package.parent / "weights"


@dataclass(frozen=True)
class MatcherInfo:
    """A released learned matcher, as its manifest entry states it.

    Attributes:
        name: of the entry.
        version: as of :class:`ModelInfo`.
        path: of the weight file.
        sha256: of the weight file, hexadecimal.
        features: name of the released model whose features it matches.
        licence: as of :class:`ModelInfo`.
        trained_on: the same.
        recipe: the same.
        figures: the same.
        rights: the same.
    """

    name: str
    version: str
    path: Path
    sha256: str
    features: str
    licence: str
    trained_on: str
    recipe: str
    figures: Mapping[str, Any]
    rights: str = ""


_Info = TypeVar("_Info")


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}; expected text in quotes")
    return value


def _entries(
    table: str, make: Callable[..., _Info], special: Callable[[Path, Mapping[str, Any]], dict[str, Any]]
) -> dict[str, _Info]:
    """What a table of the manifest lists, by name: what all entries state, and what is special to the table's."""
    path = weights_dir() / "manifest.toml"
    found: dict[str, _Info] = {}
    told = ""  # of which entry an error is to tell
    try:
        for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).get(table, {}).items():
            told = f"'{name}': "
            found[name] = make(
                name=name,
                version=_text(entry, "version"),
                path=path.parent / _text(entry, "file"),
                sha256=_text(entry, "sha256"),
                licence=_text(entry, "licence"),
                trained_on=_text(entry, "trained_on"),
                recipe=_text(entry, "recipe"),
                figures=entry.get("figures", {}),
                rights=_text(entry, "rights") if "rights" in entry else "",
                **special(path.parent, entry),
            )
    except OSError as error:
        raise WeightsError(f"weights manifest {path} cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise WeightsError(f"weights manifest {path} is malformed: {told}there is no {error}") from None
    except (tomllib.TOMLDecodeError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"weights manifest {path} is malformed: {told}{error}") from None
    return found


def list_models() -> dict[str, ModelInfo]:
    """The released models, by name.

    Raises:
        WeightsError: the manifest is missing or malformed.
    """

    def special(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
        facts = {"encoder": _text(entry, "encoder"), "descriptor_dim": int(entry["descriptor_dim"])}
        if "int8" not in entry:
            return facts
        return {**facts, "int8": folder / _text(entry, "int8"), "int8_sha256": _text(entry, "int8_sha256")}

    return _entries("models", ModelInfo, special)


def list_matchers() -> dict[str, MatcherInfo]:
    """The released learned matchers, by name.

    Raises:
        WeightsError: the manifest is missing or malformed.
    """
    return _entries("matchers", MatcherInfo, lambda _, entry: {"features": _text(entry, "features")})


def resolve_matcher(features: str) -> Path:
    """The weight file of the learned matcher for a model's features; it has been checked against the manifest.

    Args:
        features: name of the model.

    Raises:
        WeightsError: there is no matcher for it, its file is missing, or is not the one that was released.
    """
    info = released_matcher(features)
    if not info.path.is_file():
        raise WeightsError(f"weights of matcher '{info.name}' are missing: expected {info.path}")
    _check_released("weights", info.path, sha256_of(info.path), info.sha256)
    return info.path


def find_matcher_file(name_or_path: str | Path) -> Path:
    """A learned matcher's weight file, by its released name, such as "lightglue-edge", or as a path.

    Raises:
        WeightsError: there is no such matcher or file, or the file is not the one that was released.
    """
    matchers = list_matchers()
    if (text := str(name_or_path)) in matchers:
        return resolve_matcher(matchers[text].features)
    if not Path(text).is_file():
        known = ", ".join(sorted(matchers)) or "none released"
        raise WeightsError(f"there is no matcher '{text}': expected a weight file's path or one of: {known}")
    return Path(text)


def released_matcher(features: str) -> MatcherInfo:
    """The learned matcher that was released for a model's features; its file is not looked at.

    Args:
        features: name of the model.

    Raises:
        WeightsError: there is no matcher for it.
    """
    matchers = list_matchers()
    for info in matchers.values():
        if info.features == features:
            return info
    known = ", ".join(sorted(info.features for info in matchers.values())) or "no model"
    raise WeightsError(f"there is no learned matcher for features of '{features}'; expected those of: {known}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_released(what: str, path: Path, digest: str, expected: str) -> None:
    if digest != expected:
        raise WeightsError(f"{what} {path}: sha256 is {digest[:12]}…; the manifest expects {expected[:12]}…")


def resolve(name_or_path: str | Path) -> tuple[str, Path]:
    """Find a model by its released name, or as a file.

    Args:
        name_or_path: a name of the manifest, or the path of a weight file.

    Returns:
        The model's name and its file. The file of a released model has been checked against the manifest.

    Raises:
        WeightsError: there is no such model or file, or the file is not the one that was released.
    """
    models = list_models()
    text = str(name_or_path)
    if text not in models:
        path = Path(text)
        if path.is_file():
            return path.stem, path
        known = ", ".join(sorted(models)) or "none released"
        if path.suffix:
            raise WeightsError(f"there is no weight file '{text}'; nor is it one of: {known}")
        raise WeightsError(f"unknown model '{text}': expected a weight file's path or one of: {known}")
    info = models[text]
    if not info.path.is_file():
        raise WeightsError(f"weights of '{text}' are missing: expected {info.path}")
    _check_released("weights", info.path, sha256_of(info.path), info.sha256)
    return text, info.path


def released_int8_sha256(weights_sha256: str) -> str:
    """The checksum of a released model's int8 graph, by that of its weights; empty where no such file lies there."""
    for info in list_models().values():
        if info.sha256 == weights_sha256 and info.int8 is not None and info.int8.is_file():
            return info.int8_sha256
    return ""


def released_int8(weights_sha256: str) -> bytes | None:
    """The released int8 graph of a released model, by the checksum of its weights; None where there is none.

    Raises:
        WeightsError: it is missing, or not the one that was released.
    """
    for name, info in list_models().items():
        if info.sha256 != weights_sha256 or info.int8 is None:
            continue
        try:
            data = info.int8.read_bytes()
        except OSError:
            raise WeightsError(f"the int8 graph of '{name}' is missing: expected {info.int8}") from None
        _check_released("int8 graph", info.int8, hashlib.sha256(data).hexdigest(), info.int8_sha256)
        return gzip.decompress(data)
    return None


def save_network(path: Path, network: SuperPointNet, training: Mapping[str, Any] | None = None) -> None:
    """Write a network with its configuration to one safetensors file, atomically.

    Args:
        path: of the file; its folder exists.
        network: folded or not; a file of an unfolded one can be trained further.
        training: how it was made; stored as JSON beside the tensors.
    """
    metadata = {
        "format": FORMAT,
        "model": json.dumps(network.config.to_dict()),
        "training": json.dumps(dict(training or {})),
    }
    write_safetensors(path, network.state_dict(), metadata)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file, atomically; the same ones give the same bytes."""
    from safetensors.torch import save

    from frontend.atomic import atomic_write

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, _canonical(save(held, metadata=dict(metadata))))


def _canonical(data: bytes) -> bytes:
    """A safetensors file with the keys of its header in order; the library orders the metadata anew in each run."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata.

    Raises:
        WeightsError: it is missing, cannot be read, is damaged or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"weights {path} are missing; expected a safetensors file") from None
    except (SafetensorError, OSError, ValueError) as error:
        if path.is_dir():
            raise WeightsError(f"weights {path} are a folder; expected a safetensors file") from None
        raise WeightsError(f"weights {path} are corrupt or no safetensors file: {error}") from None


_PICKLES = (b"PK", b"\x80")  # what PyTorch's files begin with: an archive's mark, or a pickle's


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever reading other content as a pickle ends in
        if is_lack_of_memory(error):
            raise
        with path.open("rb") as file:
            head = file.read(16)
        if not head.startswith(_PICKLES):
            found = f"it begins with {head!r}" if head else "it is empty"
            raise WeightsError(
                f"{path} is no weight file: {found}; expected a .safetensors file or a PyTorch state dict (.pth)"
            ) from None
        if isinstance(error, pickle.UnpicklingError):
            # PyTorch's text is paragraphs of advice to unpickle whatever is in the file
            raise WeightsError(
                f"weight file {path} holds more than tensors, or is no PyTorch file; expected a state dict: "
                "torch.save(model.state_dict(), FILE)"
            ) from None
        reason = (str(error).strip().splitlines() or [""])[0]
        told = f"{type(error).__name__}: {reason}" if isinstance(error, LookupError) else reason or type(error).__name__
        raise WeightsError(f"weights {path} are corrupt or no PyTorch state dict: {told}") from None
    if isinstance(state, dict) and isinstance(state.get("model_state_dict"), dict):
        state = state["model_state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"weights {path} hold {type(state).__name__}; expected a state dict of tensors")
    return state


def load_network(name_or_path: str | Path, *, fold: bool = True) -> tuple[str, SuperPointNet]:
    """Load a network, strictly: every tensor is there, has its shape, and none is left over.

    Args:
        name_or_path: a released name, a .safetensors file of this project or of the transformers library, or a
            third-party SuperPoint checkpoint (.pth, see :mod:`frontend.converters`).
        fold: merge batch norms into convolutions.

    Returns:
        The model's name, and the network in evaluation mode, on the CPU, in float32.

    Raises:
        WeightsError: the file is missing, corrupt, not the released one, or of an unknown layout.
    """
    from frontend.converters import convert_state_dict
    from frontend.model import ModelConfig, SuperPointNet

    name, path = resolve(name_or_path)
    with path.open("rb") as file:
        head = file.read(9)
    # a safetensors file starts with the length of its JSON header, and the header with a brace
    is_safetensors = path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{")
    tensors, metadata = read_safetensors(path) if is_safetensors else (_read_pickle(path), {})
    try:
        if metadata.get("format") == FORMAT:
            network = SuperPointNet(ModelConfig.from_dict(json.loads(metadata["model"])))
        else:
            config, tensors = convert_state_dict(tensors, str(path))
            network = SuperPointNet(config)
    except (ConfigError, RegistryError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"weights {path} describe no known network: {error}") from None
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise WeightsError(f"weights {path} do not fit their network: {detail[:200]}") from None
    network.eval()
    return name, network.fold() if fold else network
