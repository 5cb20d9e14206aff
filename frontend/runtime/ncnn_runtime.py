"""Converted models in ncnn on the CPU; what is left of the network, the refiner, in ONNX Runtime.

ncnn computes dense 3 x 3 convolutions by Winograd's minimal filtering (Lavin and Gray 2016, 1509.09308), which takes
less than half of the multiplications: the paper's network is twice as fast as where each is computed as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import ncnn
import numpy as np

from frontend.errors import ConfigError
from frontend.postprocess import Gray
from frontend.runtime.base import Maps, NetworkInfo, Refined
from frontend.runtime.onnx_runtime import open_refiner
from frontend.threads import settle_threads
from frontend.types import Float32Array


class NcnnRuntime:
    """See :class:`frontend.runtime.base.Runtime`.

    Args:
        info: of the network.
        parts: "ncnn-param" and "ncnn-bin", see :func:`frontend.runtime.ncnn_graph.export_ncnn`, and the ONNX model
            "refine" where the network has a refiner.
        precision: "float32".

    Raises:
        ConfigError: ncnn lacks a layer of the network.
    """

    name = "ncnn"
    takes_bytes = False

    def __init__(self, info: NetworkInfo, parts: Mapping[str, bytes], precision: str = "float32") -> None:
        self.info = info
        self.precision = precision
        # ncnn reads the weights where they are
        self._weights = parts["ncnn-bin"]
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = settle_threads()
        options.use_vulkan_compute = False
        for half in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(options, half, False)
        if self._net.load_param_mem(parts["ncnn-param"].decode()):
            raise ConfigError("ncnn cannot load this network: it lacks one of its layers")
        self._net.load_model_mem(self._weights)
        self._refine = open_refiner(parts["refine"]) if info.patch else None

    def dense(self, images: Gray, raster: Float32Array | None = None) -> Maps:
        found = [self._one(image) for image in images]
        if len(found) == 1:
            return Maps(found[0].heat, found[0].descriptors[None])
        return Maps(np.concatenate([maps.heat for maps in found]), np.stack([maps.descriptors for maps in found]))

    def _one(self, image: Float32Array) -> Maps:
        """Heat (1, H, W) and descriptors (h, w, D) of an image (1, H, W), in ncnn's memory, which they keep alive."""
        with self._net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(image))
            outputs = [extractor.extract(name) for name in ("out0", "out1")]
        if any(code for code, _ in outputs):
            raise MemoryError("ncnn could not compute the network")
        return Maps(*(np.ascontiguousarray(np.asarray(mat)) for _, mat in outputs))

    def refine(self, patches: Float32Array, scores: Float32Array) -> Refined:
        if self._refine is None:
            raise TypeError("this network has no refiner")
        return self._refine(patches, scores)
