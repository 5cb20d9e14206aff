"""Exported graphs in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from frontend.postprocess import Gray
from frontend.runtime.base import Maps, NetworkInfo, Refined
from frontend.runtime.privacy import without_telemetry
from frontend.threads import settle_threads
from frontend.types import Float32Array


def open_session(model: bytes) -> Any:
    """A session of an ONNX model on the CPU."""
    without_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settle_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # between layers threads wait by spinning, which wakes them soonest; after a call they must not, as they would take
    # the CPU from what comes next: the keypoints
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_refiner(model: bytes) -> Callable[[Float32Array, Float32Array], Refined]:
    """The refiner from its ONNX model, as :meth:`frontend.runtime.base.Runtime.refine`; other runtimes take it too."""
    session = open_session(model)

    def refine(patches: Float32Array, scores: Float32Array) -> Refined:
        return Refined(*session.run(["position", "local"], {"patches": patches, "scores": scores}))

    return refine


class OnnxRuntime:
    """See :class:`frontend.runtime.base.Runtime`.

    Args:
        info: of the network.
        parts: ONNX models by name, see :func:`frontend.runtime.graphs.export_parts`.
        precision: "float32", or "int8" with a part "dense-int8".
    """

    name = "onnxruntime"
    takes_bytes = False

    def __init__(self, info: NetworkInfo, parts: Mapping[str, bytes], precision: str = "float32") -> None:
        self.info = info
        self.precision = precision
        self._dense = open_session(parts["dense-int8" if precision == "int8" else "dense"])
        self._refine = open_refiner(parts["refine"]) if info.patch else None

    def dense(self, images: Gray, raster: Float32Array | None = None) -> Maps:
        return Maps(*self._dense.run(["heat", "descriptors"], {"image": images}))

    def refine(self, patches: Float32Array, scores: Float32Array) -> Refined:
        if self._refine is None:
            raise TypeError("this network has no refiner")
        return self._refine(patches, scores)
