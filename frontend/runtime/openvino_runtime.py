"""Exported graphs in OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from frontend.runtime.base import Maps, NetworkInfo, Refined
from frontend.runtime.threads import settle_threads
from frontend.types import Float32Array

_HINTS = {"float32": "f32", "int8": "f32", "bf16": "bf16", "fp16": "f16"}


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def native_precisions() -> tuple[str, ...]:
    """Precisions that the CPU computes by instructions of its own, of "float32", "bf16" and "fp16"."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", *(ours for ours, theirs in (("bf16", "BF16"), ("fp16", "FP16")) if theirs in capabilities))


class OpenVinoRuntime:
    """See :class:`frontend.runtime.base.Runtime`.

    The models are compiled for any size: on CPUs that is no slower than one compiled for each size.

    Args:
        info: of the network.
        parts: ONNX models by name, see :func:`frontend.runtime.graphs.export_parts`.
        precision: "float32", "bf16", "fp16", or "int8" with a part "dense-int8".
    """

    name = "openvino"

    def __init__(self, info: NetworkInfo, parts: Mapping[str, bytes], precision: str = "float32") -> None:
        self.info = info
        self.precision = precision
        threads = settle_threads()

        def compiled(part: str, hint: str) -> Any:
            settings = {
                "INFERENCE_PRECISION_HINT": hint,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
            }
            return _core().compile_model(_core().read_model(parts[part]), "CPU", settings)

        self._mine = threading.local()  # a request serves one thread at a time
        self._dense = compiled("dense-int8" if precision == "int8" else "dense", _HINTS[precision])
        # positions in half precision would be hundredths of a pixel off
        self._refine = compiled("refine", "f32") if info.patch else None

    def dense(self, images: Float32Array, raster: Float32Array | None = None) -> Maps:
        found = self._request("dense", self._dense).infer({"image": images}, share_inputs=True, share_outputs=True)
        return Maps(found["heat"], found["descriptors"])

    def refine(self, patches: Float32Array, scores: Float32Array) -> Refined:
        if self._refine is None:
            raise TypeError("this network has no refiner")
        inputs = {"patches": patches, "scores": scores}
        found = self._request("refine", self._refine).infer(inputs, share_inputs=True, share_outputs=True)
        return Refined(found["position"], found["local"])

    def _request(self, name: str, model: Any) -> Any:
        """This thread's own request of a compiled model."""
        made = getattr(self._mine, name, None)
        if made is None:
            made = model.create_infer_request()
            setattr(self._mine, name, made)
        return made
