"""Networks as ncnn models, converted by pnnx."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.errors import ConfigError
from frontend.heads import CELL, DUSTBIN
from frontend.model import SuperPointNet

_TIMEOUT_S = 300


class _NcnnGraph(nn.Module):
    """As :class:`frontend.runtime.graphs.DenseGraph`, in operators that ncnn has: the heat map is (1, 1, H, W)."""

    def __init__(self, network: SuperPointNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network(image)
        heat = functional.pixel_shuffle(maps.logits.softmax(dim=1)[:, :DUSTBIN], CELL)
        return heat, maps.descriptors.permute(0, 2, 3, 1)


def export_ncnn(network: SuperPointNet) -> dict[str, bytes]:
    """The dense part of a network as an ncnn model of one image of any size.

    Args:
        network: folded, in evaluation mode, on the CPU.

    Returns:
        Its layers, a text, as "ncnn-param", and their weights as "ncnn-bin".

    Raises:
        ConfigError: pnnx is not installed, or the network cannot be converted.
    """
    try:
        from pnnx import EXEC_PATH
    except ImportError:
        raise ConfigError("conversion to ncnn needs: pip install 'superpoint-frontend[ncnn]'") from None
    if network.map_layers:
        raise ConfigError("a network that takes a map runs in torch alone; expected runtime 'torch'")
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "dense.pt"
        try:
            with warnings.catch_warnings(), torch.no_grad():
                # of traced constants: the parity check is what finds those that matter
                warnings.simplefilter("ignore")
                torch.jit.trace(  # type: ignore[no-untyped-call]
                    _NcnnGraph(network).eval(), torch.rand(1, 1, 64, 96), check_trace=False
                ).save(str(traced))
            # two shapes: what differs between them is of any size
            shapes = ("inputshape=[1,1,64,96]", "inputshape2=[1,1,72,104]")
            subprocess.run(
                [EXEC_PATH, str(traced), *shapes, "fp16=0"],
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=_TIMEOUT_S,
            )
            layers = traced.with_suffix(".ncnn.param").read_bytes()
            weights = traced.with_suffix(".ncnn.bin").read_bytes()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(f"the network cannot be converted to ncnn: {reason}") from None
    # what pnnx found no counterpart for keeps PyTorch's name, which has a dot
    kinds = {line.split()[0] for line in layers.decode().splitlines()[2:] if line.strip()}
    foreign = sorted(kind for kind in kinds if "." in kind)
    if foreign:
        raise ConfigError(f"the network cannot be converted to ncnn, which has no {', '.join(foreign)}")
    return {"ncnn-param": layers, "ncnn-bin": weights}
