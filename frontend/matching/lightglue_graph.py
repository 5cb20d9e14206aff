"""LightGlue as an exported graph: in OpenVINO or ONNX Runtime on a CPU, without torch once the graph is in the cache.

A graph is stored with PyTorch's answer to a probe, in the user's cache directory under the weights' checksum. A runtime
that answers otherwise is passed over.
"""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from frontend.atomic import atomic_write
from frontend.errors import ConfigError
from frontend.runtime.base import loading
from frontend.runtime.store import SHIPPED, folder_of
from frontend.threads import settle_threads
from frontend.weights import sha256_of

Answer = tuple[np.ndarray, np.ndarray]
"""For each keypoint of image 0 its mutual best in image 1 or -1, (K0,) int64; and its probability, (K0,) float32."""
Run = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Answer]
"""Descriptors (K0, D) and positions (K0, 2) of image 0, and those of image 1, float32, to the answer."""

INPUTS = ["descriptors0", "positions0", "descriptors1", "positions1"]
OUTPUTS = ["partner", "probability"]
_FILE = "lightglue-1.npz"  # the number changes with what is stored and with MatchGraph
_TOLERANCE = 1e-2
_COUNTS = (60, 50)  # keypoints of the probe
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class MatcherGraph:
    """An exported matcher.

    Attributes:
        model: ONNX.
        input_dim: D of the descriptors that it takes.
        features: see :class:`frontend.matching.lightglue_network.LightGlueConfig`.
        partner: PyTorch's answer to the probe.
        probability: the same.
    """

    model: bytes
    input_dim: int
    features: str
    partner: np.ndarray
    probability: np.ndarray


def probe(dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What is asked of every runtime: half of the keypoints of image 1 are those of image 0, moved."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(_COUNTS[0], dim))
    second = rng.normal(size=(_COUNTS[1], dim))
    half = _COUNTS[1] // 2
    second[:half] = first[:half] + rng.normal(0, 0.3, (half, dim))
    places = [rng.uniform(-0.7, 0.7, (count, 2)) for count in _COUNTS]
    places[1][:half] = places[0][:half] + 0.1
    described = [d / np.linalg.norm(d, axis=1, keepdims=True) for d in (first, second)]
    parts = (described[0], places[0], described[1], places[1])
    return tuple(np.ascontiguousarray(part, np.float32) for part in parts)  # type: ignore[return-value]


def load_graph(digest: str) -> MatcherGraph | None:
    """The graph of a weight file, from the cache or the package; None where there is none, or it is damaged."""
    for path in (folder_of(digest) / _FILE, folder_of(digest, SHIPPED) / _FILE):
        with suppress(*_UNREADABLE), path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return MatcherGraph(
                held["model"].tobytes(),
                int(held["input_dim"]),
                str(held["features"]),
                held["partner"],
                held["probability"],
            )
    return None


def export_graph(weights: Path, digest: str, root: Path | None = None) -> MatcherGraph:
    """Export a weight file, and store the graph below ``root`` or in the cache, where that can be written.

    Raises:
        WeightsError: the file is no matcher's.
        ConfigError: onnx is not installed.
    """
    import torch

    from frontend.matching.lightglue_network import MatchGraph
    from frontend.matching.lightglue_weights import load_matcher
    from frontend.runtime.graphs import to_onnx

    network = load_matcher(weights)
    module = MatchGraph(network).eval()
    asked = tuple(torch.from_numpy(part)[None] for part in probe(network.config.input_dim))
    with torch.inference_mode():
        partner, probability = (part[0].numpy() for part in module(*asked))
    counts = {name: {1: f"count{name[-1]}"} for name in INPUTS} | {name: {1: "count0"} for name in OUTPUTS}
    model = to_onnx(module, asked, (INPUTS, OUTPUTS), counts)
    graph = MatcherGraph(model, network.config.input_dim, network.config.features, partner, probability)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        model=np.frombuffer(model, np.uint8),
        input_dim=graph.input_dim,
        features=graph.features,
        partner=partner,
        probability=probability,
    )
    if sha256_of(weights) != digest:  # replaced meanwhile
        return graph
    with suppress(OSError):
        folder = folder_of(digest, root)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / _FILE, buffer.getvalue())
    return graph


def open_graph(graph: MatcherGraph, runtime: str) -> Run:
    """A graph in a runtime, checked.

    Args:
        graph: the graph.
        runtime: "openvino" or "onnxruntime", installed.

    Raises:
        ConfigError: it does not compute what PyTorch does, or cannot be loaded.
    """
    with loading(runtime):
        run = (_in_openvino if runtime == "openvino" else _in_onnxruntime)(graph.model)
        partner, probability = run(*probe(graph.input_dim))
    # of an untrained matcher they are tiny; and among the least ones ties fall this way or that
    largest = max(float(graph.probability.max()), 1e-30)
    off = float(np.abs(probability - graph.probability).max()) / largest
    certain = graph.probability > 0.1 * largest
    if not off < _TOLERANCE or not np.array_equal(partner[certain], graph.partner[certain]):
        raise ConfigError(f"runtime '{runtime}' does not compute this matcher: probabilities are off by {off:.2g}")
    return run


def graph_runtimes() -> tuple[str, ...]:
    """Runtimes of graphs that are installed, the fastest first."""
    return tuple(name for name in ("openvino", "onnxruntime") if find_spec(name) is not None)


def _batched(inputs: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(part[None], np.float32) for name, part in zip(INPUTS, inputs, strict=True)}


def _in_openvino(model: bytes) -> Run:
    from frontend.runtime.openvino_runtime import compile_for_any_size

    compiled = compile_for_any_size(model, settle_threads())
    mine = threading.local()  # a request serves one thread at a time

    def run(*inputs: np.ndarray) -> Answer:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        found = mine.request.infer(_batched(inputs), share_inputs=True)
        return found[OUTPUTS[0]][0], found[OUTPUTS[1]][0]

    return run


def _in_onnxruntime(model: bytes) -> Run:
    from frontend.runtime.onnx_runtime import open_session

    session: Any = open_session(model)

    def run(*inputs: np.ndarray) -> Answer:
        partner, probability = session.run(OUTPUTS, _batched(inputs))
        return partner[0], probability[0]

    return run
