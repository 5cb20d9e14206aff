"""Networks and whole extractors as ONNX, OpenVINO or torch.export files."""

from __future__ import annotations

import copy
import errno
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from frontend import __version__
from frontend.atomic import atomic_write
from frontend.converters import original_state_dict
from frontend.end_to_end import FeatureGraph, PairGraph
from frontend.errors import ConfigError, is_lack_of_memory
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
        true_size: whether the graph takes the images' sizes before they were padded to multiples of 8, so that there
            are no keypoints in the padding or in the border before it; needs ``postprocessing`` or ``matching``.
    """

    format: str = "onnx"
    size: tuple[int, int] | None = None
    batch: int | None = None
    postprocessing: bool = False
    matching: bool = False
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    true_size: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"export format is '{self.format}'; expected one of: {', '.join(FORMATS)}")
        if self.size is not None and (min(self.size) < 16 or self.size[0] % 8 or self.size[1] % 8):
            raise ConfigError(f"export size is {self.size[0]}x{self.size[1]}; expected multiples of 8, 16 or more")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"export batch is {self.batch}; expected 1 or more")
        if self.true_size and not (self.postprocessing or self.matching):
            raise ConfigError("export takes the images' size without post-processing; expected both or neither")
        if self.format == "superpoint-v1" and (self.size or self.batch or self.postprocessing or self.matching):
            raise ConfigError(
                "export format superpoint-v1 has weights alone; expected no size, batch or post-processing"
            )


@dataclass(frozen=True)
class _Graph:
    """A module with what an exporter has to know of it."""

    module: nn.Module
    inputs: dict[str, Tensor]  # examples
    shapes: dict[str, tuple[int | str, ...]]  # of inputs, then of outputs; a dimension of any size is its name

    @property
    def outputs(self) -> list[str]:
        return [name for name in self.shapes if name not in self.inputs]

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Dimensions of any size of inputs and outputs that have some."""
        free = {name: {i: n for i, n in enumerate(shape) if isinstance(n, str)} for name, shape in self.shapes.items()}
        return {name: axes for name, axes in free.items() if axes}


def _graphs(network: SuperPointNet, config: ExportConfig) -> dict[str, _Graph]:
    """What is to be written, by the suffix of the file's name."""
    info = info_of(network)
    batch = config.batch or "batch"
    examples = config.batch or 2
    if config.postprocessing or config.matching:
        features = FeatureGraph(network, config.extractor)
        module = PairGraph(features) if config.matching else features
        inputs: dict[str, Tensor] = {}
        shapes: dict[str, tuple[int | str, ...]] = {}
        # sides that all differ: a trace may not take one for another
        sides = {"0": (64, 96), "1": (72, 104)} if config.matching else {"": (64, 96)}
        for end, side in sides.items():
            height, width = config.size or side
            inputs[f"image{end}"] = torch.rand(examples, 1, height, width)
            shapes[f"image{end}"] = (batch, 1, *(config.size or (f"height{end}", f"width{end}")))
        for end in sides if config.true_size else ():
            height, width = inputs[f"image{end}"].shape[2:]
            inputs[f"size{end}"] = torch.tensor([[width - 3, height - 5]] * examples)
            shapes[f"size{end}"] = (batch, 2)
        shapes |= {name: (batch, *shape) for name, shape in module.outputs.items()}
        return {"": _Graph(module, inputs, shapes)}
    height, width = config.size or (64, 96)
    shapes = {
        "image": (batch, 1, *(config.size or ("height", "width"))),
        "heat": (batch, *(config.size or ("height", "width"))),
        "descriptors": (
            batch,
            *((height // 8, width // 8) if config.size else ("rows", "columns")),
            info.descriptor_dim,
        ),
    }
    graphs = {"": _Graph(DenseGraph(network), {"image": torch.rand(examples, 1, height, width)}, shapes)}
    if info.patch:
        inputs = {"patches": torch.rand(3, 1, info.patch, info.patch), "scores": torch.rand(3)}
        shapes = {
            "patches": ("count", 1, info.patch, info.patch),
            "scores": ("count",),
            "position": ("count", 4),
            "local": ("count", info.descriptor_dim),
        }
        graphs["-refiner"] = _Graph(RefineGraph(cast(Any, network.refiner)), inputs, shapes)
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
        OSError: a file cannot be written.
    """
    ending = FORMATS[config.format]
    if path.suffix != ending:
        raise ConfigError(f"{path}: expected a name that ends in {ending} for the format {config.format}")
    if config.format == "superpoint-v1":
        data = io.BytesIO()
        torch.save(original_state_dict(network), data)
        atomic_write(path, data.getvalue())
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
    data = to_onnx(graph.module, inputs, (list(graph.inputs), graph.outputs), graph.dynamic or None)
    import onnx

    model = onnx.load_from_string(data)
    for value in model.graph.output:
        # the exporter knows few of the sizes and makes names up
        shape = onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, graph.shapes[value.name])
        value.type.CopyFrom(shape)
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
        try:
            openvino.save_model(model, str(Path(folder) / path.name), compress_to_fp16=False)
        except RuntimeError as error:  # the system's reason is not in it
            if is_lack_of_memory(error):
                raise
            raise OSError(errno.EIO, "OpenVINO could not write it; the disk may be full", str(path)) from None
        for file in files:
            (Path(folder) / file.name).replace(file)
    return files[::-1]


def _write_torch(graph: _Graph, path: Path, facts: Mapping[str, str]) -> list[Path]:
    dimensions: dict[str, Any] = {}

    def dimension(label: str) -> Any:
        if label.startswith(("height", "width")):
            # cells of 8 pixels
            return 8 * dimensions.setdefault(label, torch.export.Dim(f"{label}_cells", min=2, max=1024))
        return dimensions.setdefault(label, torch.export.Dim(label, min=1, max=1 << 16))

    shapes = tuple(
        {axis: dimension(label) for axis, label in graph.dynamic.get(name, {}).items()} for name in graph.inputs
    )
    try:
        with torch.no_grad():
            program = torch.export.export(graph.module.eval(), tuple(graph.inputs.values()), dynamic_shapes=shapes)
    except Exception as error:  # torch's exporter raises what its user errors are made of, of many types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"torch.export cannot export this network: {reason}") from None
    # written to a file that takes no more, PyTorch would end the process
    data = io.BytesIO()
    torch.export.save(program, data, extra_files=dict(facts))
    atomic_write(path, data.getvalue())
    return [path]


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch-export": _write_torch}
