"""Networks and whole extractors as ONNX, OpenVINO or torch.export files."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from frontend import __version__
from frontend.atomic import atomic_path, atomic_write
from frontend.converters import original_state_dict
from frontend.end_to_end import FeatureGraph, PairGraph
from frontend.errors import ConfigError
from frontend.extraction import ExtractorConfig
from frontend.model import SuperPointNet
from frontend.runtime.graphs import OPSET, DenseGraph, RefineGraph, info_of, to_onnx
from frontend.runtime.privacy import without_telemetry

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "superpoint-v1": ".pth"}
"""Formats and the endings of their files."""


@dataclass(frozen=True)
class ExportConfig:
    """What to export.

    Attributes:
        format: "onnx", "openvino", "torch-export", or "superpoint-v1": no graph, but the weights of the paper's network
            under the names that other implementations load.
        size: (height, width) of the images, multiples of 8; any where None.
        batch: images of a batch; any where None.
        postprocessing: whether detection, top-K, refinement and the sampling of descriptors are in the graph.
        matching: whether the graph takes two images and matches them; implies ``postprocessing``.
        extractor: settings of the postprocessing.
    """

    format: str = "onnx"
    size: tuple[int, int] | None = None
    batch: int | None = None
    postprocessing: bool = False
    matching: bool = False
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"export format is '{self.format}'; expected one of: {', '.join(FORMATS)}")
        if self.size is not None and (min(self.size) < 16 or self.size[0] % 8 or self.size[1] % 8):
            raise ConfigError(f"export size is {self.size[0]}x{self.size[1]}; expected multiples of 8, 16 or more")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"export batch is {self.batch}; expected 1 or more")
        if self.format == "superpoint-v1" and (self.size or self.batch or self.postprocessing or self.matching):
            raise ConfigError(
                "export format superpoint-v1 has weights alone; expected no size, batch or post-processing"
            )


@dataclass(frozen=True)
class _Graph:
    """A module with what an exporter has to know of it."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    dynamic: dict[str, dict[int, str]]  # dimensions of any size of inputs and outputs


def _graphs(network: SuperPointNet, config: ExportConfig) -> dict[str, _Graph]:
    """What is to be written, by the suffix of the file's name."""
    info = info_of(network)
    height, width = config.size or (64, 96)
    image = torch.rand(config.batch or 2, 1, height, width)
    many = {0: "batch"} if config.batch is None else {}
    axes = many | ({2: "height", 3: "width"} if config.size is None else {})
    if config.postprocessing or config.matching:
        features = FeatureGraph(network, config.extractor)
        module = PairGraph(features) if config.matching else features
        names = ["image0", "image1"] if config.matching else ["image"]
        dynamic = dict.fromkeys(names, axes) | dict.fromkeys(module.outputs, many)
        return {"": _Graph(module, dict.fromkeys(names, image), module.outputs, dynamic)}
    free = config.size is None
    heat = many | ({1: "height", 2: "width"} if free else {})
    cells = many | ({1: "rows", 2: "columns"} if free else {})
    outputs = ["heat", "descriptors"]
    dynamic = {"image": axes, "heat": heat, "descriptors": cells}
    graphs = {"": _Graph(DenseGraph(network), {"image": image}, outputs, dynamic)}
    if info.patch:
        inputs = {"patches": torch.rand(3, 1, info.patch, info.patch), "scores": torch.rand(3)}
        count = {name: {0: "count"} for name in ("patches", "scores", "position", "local")}
        refiner = RefineGraph(cast(Any, network.refiner))
        graphs["-refiner"] = _Graph(refiner, inputs, ["position", "local"], count)
    return graphs


def export_network(network: SuperPointNet, path: Path, config: ExportConfig, name: str = "custom") -> list[Path]:
    """Write a network's graph, and its refiner's beside it where the graph has no post-processing.

    Args:
        network: folded, in evaluation mode.
        path: of the file; its ending is that of the format.
        config: what to write.
        name: of the model, stored in the file.

    Returns:
        The files.

    Raises:
        ConfigError: what it takes is not installed, or the network cannot be exported.
    """
    ending = FORMATS[config.format]
    if path.suffix != ending:
        raise ConfigError(f"{path}: expected a name that ends in {ending} for the format {config.format}")
    if config.format == "superpoint-v1":
        state = original_state_dict(network)
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
        return [path]
    if network.map_layers:
        raise ConfigError("a network that takes a map cannot be exported")
    # not the caller's own: a backend may have brought its weights to another memory layout, or to a GPU
    network = copy.deepcopy(network).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    written: list[Path] = []
    for suffix, graph in _graphs(network, config).items():
        target = path.with_name(f"{path.stem}{suffix}{ending}")
        facts = {"model": name, "version": __version__, "opset": str(OPSET)}
        if network.refiner is not None:
            facts["refiner_passes"] = str(network.config.refiner_passes)
        if config.postprocessing or config.matching:
            facts |= {key: str(value) for key, value in vars(config.extractor).items() if key != "resize"}
        written += _WRITERS[config.format](graph, target, facts)
    return written


def _onnx_bytes(graph: _Graph, facts: Mapping[str, str]) -> bytes:
    inputs = tuple(graph.inputs.values())
    dynamic = {key: axes for key, axes in graph.dynamic.items() if axes}
    data = to_onnx(graph.module, inputs, (list(graph.inputs), graph.outputs), dynamic or None)
    import onnx

    model = onnx.load_from_string(data)
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _write_onnx(graph: _Graph, path: Path, facts: Mapping[str, str]) -> list[Path]:
    atomic_write(path, _onnx_bytes(graph, facts))
    return [path]


def _write_openvino(graph: _Graph, path: Path, facts: Mapping[str, str]) -> list[Path]:
    without_telemetry()
    try:
        import openvino
    except ImportError:
        raise ConfigError("format openvino needs: pip install 'superpoint-frontend[openvino]'") from None
    model = openvino.Core().read_model(_onnx_bytes(graph, facts))
    for key, value in facts.items():
        model.set_rt_info(value, ["superpoint", key])
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".bin"), path]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # whole files only, and the weights before the graph that names them
        openvino.save_model(model, str(Path(folder) / path.name), compress_to_fp16=False)
        for file in files:
            (Path(folder) / file.name).replace(file)
    return files[::-1]


def _write_torch(graph: _Graph, path: Path, facts: Mapping[str, str]) -> list[Path]:
    dimensions: dict[str, Any] = {}

    def dimension(label: str) -> Any:
        if label in ("height", "width"):
            # cells of 8 pixels
            return 8 * dimensions.setdefault(label, torch.export.Dim(f"{label}_cells", min=2, max=1024))
        return dimensions.setdefault(label, torch.export.Dim(label, min=1, max=1 << 16))

    shapes = tuple({axis: dimension(label) for axis, label in graph.dynamic[name].items()} for name in graph.inputs)
    try:
        with torch.no_grad():
            program = torch.export.export(graph.module.eval(), tuple(graph.inputs.values()), dynamic_shapes=shapes)
    except Exception as error:  # torch's exporter raises what its user errors are made of, of many types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"torch.export cannot export this network: {reason}") from None
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files=dict(facts))
    return [path]


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch-export": _write_torch}
