"""The network in PyTorch on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from frontend.model import SuperPointNet
from frontend.postprocess import Gray
from frontend.runtime.base import Maps, Refined
from frontend.runtime.graphs import DenseGraph, RefineGraph, info_of
from frontend.threads import settle_threads
from frontend.types import Float32Array


class TorchRuntime:
    """See :class:`frontend.runtime.base.Runtime`.

    Args:
        network: is brought to evaluation mode, to the CPU and to channels-last memory.
        precision: "float32" or "bf16".
    """

    name = "torch"
    takes_bytes = False

    def __init__(self, network: SuperPointNet, precision: str = "float32") -> None:
        settle_threads()
        self.precision = precision
        self.info = info_of(network)
        self.network: SuperPointNet = network.eval().to("cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._dense = DenseGraph(self.network)
        refiner: Any = self.network.refiner
        self._refine = None if refiner is None else RefineGraph(refiner)
        self._cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    @torch.inference_mode()
    def dense(self, images: Gray, raster: Float32Array | None = None) -> Maps:
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        with self._cast:
            heat, descriptors = self._dense(batch, None if raster is None else torch.from_numpy(raster))
        return Maps(heat.contiguous().numpy(), descriptors.contiguous().numpy())

    @torch.inference_mode()
    def refine(self, patches: Float32Array, scores: Float32Array) -> Refined:
        if self._refine is None:
            raise TypeError("this network has no refiner")
        position, local = self._refine(torch.from_numpy(patches), torch.from_numpy(scores))
        return Refined(position.numpy(), local.numpy())
