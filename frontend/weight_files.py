"""Weight files made of weight files: in half the size and less, means of two, and what differs from another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.errors import ConfigError, RegistryError, WeightsError
from frontend.matching.lightglue_network import LightGlueConfig
from frontend.matching.lightglue_weights import difference, has_layers_in_int8, layers_in_int8, read_matcher
from frontend.model import ModelConfig, SuperPointNet
from frontend.weights import (
    FORMAT,
    MATCHER_FORMAT,
    find_matcher_file,
    list_matchers,
    read_safetensors,
    resolve,
    write_safetensors,
)

if TYPE_CHECKING:
    from torch import Tensor


def write_small(
    name_or_path: str | Path,
    path: Path,
    bits: int = 16,
    refiner_passes: int = 0,
    average: str | Path | None = None,
    average_share: float = 0.5,
    base: str | Path | None = None,
) -> None:
    """Write a weight file again in less space, atomically: kernels and matrices in float16, vectors as they are.

    Running variances and the like have ranges that float16 has not. Loading gives float32, of the rounded values. A
    network trained with branches is written as the plain one that they fold to.

    Args:
        name_or_path: a released model or matcher, or a weight file of this project.
        path: of the file to write; its folder is made if missing.
        bits: 16, or 8 for a matcher: the matrices of its layers in int8, a third of float32's space (of
            lightglue-edge's matches 99.7 % stay).
        refiner_passes: how often the network is to refine keypoints, see :class:`frontend.model.ModelConfig`; 0 leaves
            what the file says.
        average: another weight file (or released model) of the same network. The mean of both is written (Wortsman et
            al., Robust fine-tuning of zero-shot models, CVPR 2022): of weights and what they became when they were
            trained on, it often keeps what each is good at.
        average_share: of the other file in that mean, in [0, 1].
        base: of a matcher: a complete one, by its released name or as a file, of which only what differs is written,
            see :func:`frontend.matching.lightglue_weights.difference`; its layers are then in 8 or 16 bits as there.

    Raises:
        WeightsError: there are no such weights, they are not of this project or not of one network, or a value is too
            large for float16.
        ConfigError: they have no refiner that could pass more than once, they are to be in 8 bits and no matcher, the
            share is out of its range, or the base has the name of the file to write.
    """
    import torch

    if not 0 <= average_share <= 1:
        raise ConfigError(f"average_share is {average_share}; expected a number from 0 to 1")

    source, tensors, metadata = _read(name_or_path)
    if average is not None:
        tensors, metadata = _mean((source, tensors, metadata), _read(average), average_share)
    file = None if base is None else find_matcher_file(base)
    if metadata.get("format") == MATCHER_FORMAT:
        # a difference is told from what the base stores
        if bits == 8 if file is None else has_layers_in_int8(file):
            tensors = layers_in_int8(tensors)
    elif bits != 8:
        tensors, metadata = _without_branches(source, tensors, metadata)
    else:
        raise ConfigError(f"weights {source} are no matcher; expected one for 8 bits, or 'export --precision int8'")
    for name, tensor in tensors.items():
        if tensor.ndim >= 2 and tensor.is_floating_point():
            tensors[name] = tensor.to(torch.float16)
            if not torch.isfinite(tensors[name]).all():
                raise WeightsError(f"weights {source}: '{name}' has values that float16 has not")
    if refiner_passes:
        model = json.loads(metadata.get("model", "{}"))
        if not model.get("refiner"):
            raise ConfigError(f"weights {source} have no refiner; expected refiner_passes 0, got {refiner_passes}")
        metadata = {**metadata, "model": json.dumps({**model, "refiner_passes": refiner_passes})}
    if file is not None:
        if file.name == path.name:  # it would be looked for, and found, in its own place
            raise ConfigError(f"the base {file} has the name of the file to write, {path}; expected another name")
        tensors, metadata = difference(tensors, metadata, file)
    write_safetensors(path, tensors, metadata)


_Read = tuple[Path, "dict[str, Tensor]", dict[str, str]]


def _read(name_or_path: str | Path) -> _Read:
    path = find_matcher_file(name_or_path) if str(name_or_path) in list_matchers() else resolve(name_or_path)[1]
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") == MATCHER_FORMAT:
        return path, *read_matcher(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"weights {path} are not of this project; expected a file that it trained")
    return path, tensors, metadata


def _without_branches(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A network as :meth:`frontend.model.SuperPointNet.reparameterize` leaves it.

    Raises:
        WeightsError: the tensors are not those of the network that the file describes.
    """
    _, described, _ = _kind(path, tensors, metadata)
    network = SuperPointNet(ModelConfig.from_dict(described or {}))
    if network.reparameterize().config == network.config:
        return tensors, metadata
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise WeightsError(f"weights {path} do not fit their network: {' '.join(str(error).split())[:200]}") from None
    plain = network.reparameterize()
    return plain.state_dict(), {**metadata, "model": json.dumps(plain.config.to_dict())}


def _kind(path: Path, _: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[Any, ...]:
    """Format and configuration; earlier versions knew fewer settings, so that texts say little."""
    try:
        model = ModelConfig.from_dict(json.loads(metadata["model"])).to_dict() if "model" in metadata else None
        matcher = (
            LightGlueConfig.from_dict(json.loads(metadata["matcher"])).to_dict() if "matcher" in metadata else None
        )
    except (ConfigError, RegistryError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"weights {path} describe no known network: {error}") from None
    return metadata.get("format"), model, matcher


def _mean(one: _Read, other: _Read, share: float) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mean of two files' floats, the rest of the first's; and metadata that says how both were trained.

    The other counts with its share, the first with the rest.

    Raises:
        WeightsError: they are of different networks.
    """
    for key, ours, theirs in zip(("format", "model", "matcher"), _kind(*one), _kind(*other), strict=True):
        if ours != theirs:
            raise WeightsError(
                f"weights {other[0]} cannot be averaged with {one[0]}: {key} is {theirs}; expected {ours}"
            )
    if {name: tensor.shape for name, tensor in one[1].items()} != {name: t.shape for name, t in other[1].items()}:
        raise WeightsError(f"weights {other[0]} have other tensors than {one[0]}; expected those of the same network")
    means = {
        name: tensor.double().lerp(other[1][name].double(), share).float() if tensor.is_floating_point() else tensor
        for name, tensor in one[1].items()
    }
    training = [json.loads(metadata.get("training", "{}")) for _, _, metadata in (one, other)]
    told = {"average_of": training, "shares": [1 - share, share]}
    return means, {**one[2], "training": json.dumps(told)}
