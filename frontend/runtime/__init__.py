"""Runtimes: PyTorch, ONNX Runtime, OpenVINO and ncnn behind one call, on the CPU.

    from frontend.runtime import available_runtimes, load_runtime

    runtime = load_runtime("superpoint-edge", runtime="auto", precision="auto")
    maps = runtime.dense(images)              # (B, 1, H, W) float32 -> heat (B, H, W), descriptors (B, H/8, W/8, D)
    refined = runtime.refine(patches, scores) # where runtime.info.patch > 0

Whole extractors take the same two names, and the GPU's path has them too::

    extractor = SuperPoint.from_pretrained("superpoint-edge", device="cpu", runtime="openvino", precision="float32")
    extractor.runtime, extractor.precision    # what "auto" became
    times = StageTimes()
    extractor.extract_batch(images, times)    # times.ms: preprocess, network, keypoints (and refinement, where a
                                              # network has a refiner; it is part of the network's work)

``runtime_for(network)`` takes a network at hand, of random weights say. ``available_runtimes()`` names what is
installed, ``precisions_of(runtime)`` what this machine computes at speed. Importing this package loads none of them.
"""

from __future__ import annotations

from frontend.runtime.base import PRECISIONS, RUNTIMES, Maps, NetworkInfo, Refined, Runtime, check_names
from frontend.runtime.select import available_runtimes, load_runtime, precisions_of, runtime_for

__all__ = [
    "PRECISIONS",
    "RUNTIMES",
    "Maps",
    "NetworkInfo",
    "Refined",
    "Runtime",
    "available_runtimes",
    "check_names",
    "load_runtime",
    "precisions_of",
    "runtime_for",
]
