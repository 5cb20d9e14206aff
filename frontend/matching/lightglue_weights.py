"""Weight files of learned matchers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.errors import ConfigError, WeightsError
from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
from frontend.weights import MATCHER_FORMAT, read_safetensors, sha256_of, weights_dir, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

_LAYERS = "transformers."
_STEPS = ".steps"  # behind the name of a matrix in int8: the steps of its rows
_LARGEST = 127


def save_matcher(path: Path, network: LightGlueNet, training: Mapping[str, Any] | None = None) -> None:
    """Write a matcher with its configuration to one safetensors file, atomically.

    Args:
        path: of the file; its folder exists.
        network: of any device.
        training: how it was made; stored as JSON beside the tensors.
    """
    metadata = {
        "format": MATCHER_FORMAT,
        "matcher": json.dumps(network.config.to_dict()),
        "training": json.dumps(dict(training or {})),
    }
    write_safetensors(path, network.state_dict(), metadata)


def has_layers_in_int8(path: Path) -> bool:
    """Whether a matcher's file has the matrices of its layers in int8."""
    return any(name.endswith(_STEPS) for name in read_safetensors(path)[0])


def layers_in_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A matcher's tensors with the matrices of its layers in int8, in steps of each row (names with ``.steps``).

    All else is left as it is: the projection of the descriptors, the positions and the assignment are small, and what
    they lose costs most matches.
    """
    found = {}
    for name, tensor in tensors.items():
        if not (name.startswith(_LAYERS) and tensor.ndim == 2):
            found[name] = tensor
            continue
        values = tensor.float()
        steps = (values.abs().amax(dim=1) / _LARGEST).clamp_min(1e-12)
        found[name] = (values / steps[:, None]).round().char()
        found[name + _STEPS] = steps
    return found


def _in_floats(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that :func:`layers_in_int8` wrote, of a file.

    Raises:
        WeightsError: the steps are not those of the matrices.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(_STEPS)}
    for name, steps in tensors.items():
        if not name.endswith(_STEPS):
            continue
        matrix = found.get(name.removesuffix(_STEPS))
        if matrix is None or matrix.ndim != 2 or steps.shape != matrix.shape[:1]:
            raise WeightsError(f"weights {path}: '{name}' is not the steps of a matrix's rows")
        found[name.removesuffix(_STEPS)] = matrix.float() * steps[:, None]
    return found


def read_matcher(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A matcher's tensors and metadata; of one that was written as a difference, with those of its base.

    Matrices in int8 (:func:`layers_in_int8`) are floats again.

    Raises:
        WeightsError: the file is missing, damaged or no matcher of this project, or its base is missing or another.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != MATCHER_FORMAT:
        raise WeightsError(f"weights {path} are no matcher; expected a file of 'superpoint train lightglue'")
    if "base" not in metadata:
        return _in_floats(path, tensors), metadata
    try:
        stated = json.loads(metadata.pop("base"))
        name, digest = Path(stated["file"]).name, str(stated["sha256"])
    except (ValueError, TypeError, KeyError):
        raise WeightsError(f"weights {path} do not say which matcher they differ from") from None
    places = [folder / name for folder in (path.parent, weights_dir())]
    held = {place: sha256_of(place) for place in places if place.is_file()}
    for place, found in held.items():
        if found == digest:
            return _in_floats(path, {**read_safetensors(place)[0], **tensors}), metadata
    told = ", ".join(f"{place} has {found[:12]}…" for place, found in held.items()) or "there is none"
    raise WeightsError(f"weights {path} need {name} beside them, of sha256 {digest[:12]}…: {told}")


def difference(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a matcher has that another one has not: :func:`read_matcher` puts them together.

    Matchers that share all but the projection of their descriptors take the space of one.

    Args:
        tensors: of the matcher, in the precision they are to be stored in.
        metadata: the matcher's.
        base: the other one; a complete file, which is to lie beside the result, or among the released weights.

    Returns:
        The tensors that are to be stored, and the metadata with what the base is.

    Raises:
        WeightsError: the base is damaged, no matcher or itself a difference, it has tensors that the matcher has not,
            or less than half of the values are shared.
    """
    held, stated = read_safetensors(base)
    if metadata.get("format") != MATCHER_FORMAT:
        raise WeightsError(f"these weights are no matcher; expected one to tell from {base}")
    if stated.get("format") != MATCHER_FORMAT or "base" in stated:
        raise WeightsError(f"weights {base} are no complete matcher; expected one to tell the difference from")
    if more := held.keys() - tensors.keys():
        raise WeightsError(f"weights {base} have tensors that the matcher has not, such as '{min(more)}'")
    own = {name: tensor for name, tensor in tensors.items() if not _equal(tensor, held.get(name))}
    if 2 * (differ := _size(own)) > (size := _size(tensors)):
        raise WeightsError(
            f"of the matcher's {size} values {differ} are in other tensors than those of {base}; expected at most half"
        )
    return own, {**metadata, "base": json.dumps({"file": base.name, "sha256": sha256_of(base)})}


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _equal(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.shape == other.shape and bool((tensor == other).all())


def load_matcher(path: Path) -> LightGlueNet:
    """Load a matcher, strictly.

    Returns:
        The network in evaluation mode, on the CPU, in float32.

    Raises:
        WeightsError: as of :func:`read_matcher`, or the tensors are not those of the network.
    """
    tensors, metadata = read_matcher(path)
    try:
        network = LightGlueNet(LightGlueConfig.from_dict(json.loads(metadata["matcher"])))
        network.load_state_dict(tensors, strict=True)
    except (ConfigError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"weights {path} describe no known matcher: {' '.join(str(error).split())[:200]}") from None
    return network.eval()
