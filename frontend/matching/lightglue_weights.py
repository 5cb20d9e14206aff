"""Weight files of learned matchers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frontend.errors import ConfigError, WeightsError
from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
from frontend.weights import MATCHER_FORMAT, read_safetensors, write_safetensors


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


def load_matcher(path: Path) -> LightGlueNet:
    """Load a matcher, strictly.

    Returns:
        The network in evaluation mode, on the CPU, in float32.

    Raises:
        WeightsError: the file is missing, damaged or no matcher of this project.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != MATCHER_FORMAT:
        raise WeightsError(f"weights {path} are no matcher; expected a file of 'superpoint train lightglue'")
    try:
        network = LightGlueNet(LightGlueConfig.from_dict(json.loads(metadata["matcher"])))
        network.load_state_dict(tensors, strict=True)
    except (ConfigError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"weights {path} describe no known matcher: {' '.join(str(error).split())[:200]}") from None
    return network.eval()
