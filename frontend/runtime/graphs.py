"""The two parts of a network as modules that can be exported, and their ONNX files."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from frontend.errors import ConfigError
from frontend.heads import CELL, DUSTBIN
from frontend.model import SuperPointNet
from frontend.refinement import PatchRefiner
from frontend.runtime.base import NetworkInfo

OPSET = 17
"""ONNX operator set of everything that is exported."""


def heat_of(logits: Tensor) -> Tensor:
    """Detector logits (B, 65, h, w) to a heat map (B, 8h, 8w), as :func:`frontend.model.heatmap`.

    The channels go last first: softmax then runs along memory, and the pixel shuffle is one copy.
    """
    batch, _, rows, columns = logits.shape
    cells = logits.float().permute(0, 2, 3, 1).softmax(dim=-1)[..., :DUSTBIN]
    pixels = cells.reshape(batch, rows, columns, CELL, CELL).permute(0, 1, 3, 2, 4)
    return pixels.reshape(batch, rows * CELL, columns * CELL)


class DenseGraph(nn.Module):
    """(B, 1, H, W) to the heat map (B, H, W) and descriptors (B, H/8, W/8, D)."""

    def __init__(self, network: SuperPointNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, raster: Tensor | None = None) -> tuple[Tensor, Tensor]:
        maps = self.network(image, raster)
        return heat_of(maps.logits), maps.descriptors.float().permute(0, 2, 3, 1)


class RefineGraph(nn.Module):
    """Patches (N, 1, S, S) and scores (N,) to position (N, 4) and local descriptors (N, D)."""

    def __init__(self, refiner: PatchRefiner) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(self, patches: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        found = self.refiner.refine_patches(patches, scores)
        rest = torch.stack([found.log_sigmas.exp(), found.logits.sigmoid()], dim=1)
        return torch.cat([found.offsets, rest], dim=1), found.descriptors


def info_of(network: SuperPointNet) -> NetworkInfo:
    """What callers have to know of a network.

    Raises:
        ConfigError: its refiner works on no patches.
    """
    refiner: Any = network.refiner
    if refiner is not None and not hasattr(refiner, "refine_patches"):
        raise ConfigError(f"refiner '{network.config.refiner}' has no refine_patches; it runs on the torch backend")
    config = network.config
    if refiner is None:
        return NetworkInfo(config.encoder, config.descriptor_dim)
    return NetworkInfo(config.encoder, config.descriptor_dim, int(refiner.size), config.refiner_passes)


def to_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[list[str], list[str]],
    dynamic: dict[str, dict[int, str]] | None = None,
) -> bytes:
    """Export a module by tracing.

    Args:
        module: in evaluation mode.
        inputs: examples.
        names: of the inputs and of the outputs.
        dynamic: for each of these its dimensions of any size, with their names; all are fixed where None.

    Returns:
        The ONNX model.

    Raises:
        ConfigError: onnx is not installed, or the network has something that cannot be exported.
    """
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # of traced constants: the parity check is what finds those that matter
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                inputs,
                buffer,  # type: ignore[arg-type]
                input_names=names[0],
                output_names=names[1],
                dynamic_axes=dynamic,
                opset_version=OPSET,
                dynamo=False,
            )
    except (ImportError, torch.onnx.OnnxExporterError) as error:
        raise ConfigError(f"export needs: pip install 'superpoint-frontend[onnx]' ({_first(error)})") from None
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"the network cannot be exported: {_first(error)}") from None
    return buffer.getvalue()


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def export_parts(network: SuperPointNet) -> dict[str, bytes]:
    """ONNX models "dense" and, where there is a refiner, "refine", of any batch and size.

    Raises:
        ConfigError: see :func:`to_onnx`; also for a network that takes a map.
    """
    if network.map_layers:
        raise ConfigError("a network that takes a map runs in torch alone; expected runtime 'torch'")
    info = info_of(network)
    # two images and sides that differ: a trace may not take one for the other
    example = torch.rand(2, 1, 64, 96)
    axes = {
        "image": {0: "batch", 2: "height", 3: "width"},
        "heat": {0: "batch", 1: "height", 2: "width"},
        "descriptors": {0: "batch", 1: "rows", 2: "columns"},
    }
    parts = {"dense": to_onnx(DenseGraph(network), (example,), (["image"], ["heat", "descriptors"]), axes)}
    if info.patch:
        refiner: Any = network.refiner
        inputs = (torch.rand(3, 1, info.patch, info.patch), torch.rand(3))
        many = {name: {0: "count"} for name in ("patches", "scores", "position", "local")}
        parts["refine"] = to_onnx(RefineGraph(refiner), inputs, (["patches", "scores"], ["position", "local"]), many)
    return parts
