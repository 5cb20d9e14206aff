"""Third-party SuperPoint checkpoints: their layouts, recognised by names, renamed to ours, and back.

Only names and shapes are used, which are facts of the file formats.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from frontend.encoders import Part
from frontend.errors import ConfigError, WeightsError
from frontend.model import ModelConfig, SuperPointNet

_PARTS = ("weight", "bias")
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _vgg_targets() -> list[str]:
    stages = [f"encoder.stages.{stage}.{conv}" for stage in range(4) for conv in range(2)]
    return [*stages, "detector.hidden", "detector.out", "descriptor.hidden", "descriptor.out"]


def _magic_leap_names() -> list[str]:
    stages = [f"conv{stage}{letter}" for stage in range(1, 5) for letter in "ab"]
    return [*stages, "convPa", "convPb", "convDa", "convDb"]


def _transformers_names() -> list[str]:
    stages = [f"encoder.conv_blocks.{stage}.conv_{letter}" for stage in range(4) for letter in "ab"]
    heads = ["keypoint_decoder.conv_score_", "descriptor_decoder.conv_descriptor_"]
    return [*stages, *(head + letter for head in heads for letter in "ab")]


def _open_names() -> list[str]:
    stages = [f"backbone.{stage}.{conv}" for stage in range(4) for conv in range(2)]
    return [*stages, *(f"{head}.{conv}" for head in ("detector", "descriptor") for conv in range(2))]


def _plain(names: list[str]) -> dict[str, str]:
    pairs = zip(names, _vgg_targets(), strict=True)
    return {f"{name}.{part}": f"{target}.conv.{part}" for name, target in pairs for part in _PARTS}


def _normalised(names: list[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for name, target in zip(names, _vgg_targets(), strict=True):
        mapping |= {f"{name}.conv.{part}": f"{target}.conv.{part}" for part in _PARTS}
        mapping |= {f"{name}.bn.{part}": f"{target}.norm.{part}" for part in _NORM_PARTS}
    return mapping


def _config(norm: str, eps: float) -> ModelConfig:
    options = {"norm": norm, "eps": eps}
    encoder = str(Part("vgg", options))
    return ModelConfig(encoder, "paper", "paper", 256, dict(options), dict(options))


def convert_state_dict(state: Mapping[str, Tensor], source: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Rename a third-party state dict.

    Known layouts: Magic Leap's ``superpoint_v1`` (``conv1a`` … ``convDb``), the same tensors as the transformers
    library names them, and the batch-normalised ``superpoint_v6_from_tf`` (``backbone.0.0.conv`` …; order
    convolution, ReLU, batch norm, eps 1e-3).

    Args:
        state: the tensors.
        source: what to call them in an error message.

    Returns:
        The network's configuration, and the tensors under our names.

    Raises:
        WeightsError: the layout is none of these.
    """
    layouts = (
        (_plain(_magic_leap_names()), _config("none", 1e-5)),
        (_plain(_transformers_names()), _config("none", 1e-5)),
        (_normalised(_open_names()), _config("relu_bn", 1e-3)),
    )
    for mapping, config in layouts:
        # files saved by old versions of PyTorch have no batch counters
        required = {name for name in mapping if not name.endswith("num_batches_tracked")}
        if required <= set(state) <= set(mapping):
            renamed = {mapping[name]: tensor for name, tensor in state.items()}
            for name, target in mapping.items():
                if target.endswith("num_batches_tracked"):
                    renamed.setdefault(target, state[required_weight(name)].new_zeros(()).long())
            return config, renamed
    first = ", ".join(sorted(state)[:3]) or "nothing"
    raise WeightsError(
        f"weights {source} have an unknown layout of {len(state)} tensors ({first}, …); expected this project's, "
        "superpoint_v1, superpoint_v6_from_tf or the transformers library's"
    )


def original_state_dict(network: SuperPointNet) -> dict[str, Tensor]:
    """The paper's network in the layout of ``superpoint_v1`` (``conv1a`` … ``convDb``), for what others deploy.

    That layout has no place for a refiner: without it keypoints are those of the heat map, and descriptors those of
    the dense map alone.

    Args:
        network: folded, so that its batch norms are part of the convolutions.

    Returns:
        Its tensors, contiguous float32 on the CPU.

    Raises:
        ConfigError: it is another network, or not folded.
    """
    mapping = _plain(_magic_leap_names())
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("refiner.")}
    with torch.device("meta"):
        paper = SuperPointNet(_config("none", 1e-5)).state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in paper.items()}:
        raise ConfigError(
            f"a network of encoder '{network.config.encoder}' has no superpoint_v1 layout; expected the paper's, "
            "folded, such as superpoint-vgg"
        )
    return {name: own[target].detach().to("cpu", torch.float32).contiguous() for name, target in mapping.items()}


def required_weight(counter: str) -> str:
    """The name of a batch norm's weight, from that of its batch counter."""
    return counter.removesuffix("num_batches_tracked") + "weight"
