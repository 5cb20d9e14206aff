"""int8 graphs of a network's dense part: what is quantised and how, and what steps the graph then has."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontend.errors import ConfigError
from frontend.runtime.base import DETECTOR, FINE_BRANCH
from frontend.runtime.privacy import without_telemetry
from frontend.types import Float32Array

WEIGHT_STEPS = 64
"""A weight is a whole number of steps from -64 to 64, the largest of an output channel being 64.

CPUs without VNNI add pairs of products in 16 bits, which weights of 8 bits would overflow.
"""

ACTIVATION_STEPS = 255
"""An activation is a whole number of steps from 0 to 255, less the zero point."""

_LIGHT = 16384
"""Weights of one of the detector's convolutions, at most, for it to stay in float32: they tell where peaks are."""

_NETWORK = "network."  # of the dense part's module, in the names of its tensors
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Steps:
    """How a tensor of activations is quantised: values become whole numbers round(value / scale) + zero_point."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantisedConvolution:
    """The steps on both sides of a convolution in int8.

    Attributes:
        input: of what it reads.
        output: of what it, and the ReLU behind it, gives; a zero point of 0 is that ReLU. None where it gives float32.
    """

    input: Steps
    output: Steps | None


def quantise_dense(dense: bytes, images: Iterable[Float32Array], keep_float: Collection[str] = ()) -> bytes:
    """Quantise the dense part's convolutions (static, per channel, by the ranges that images give).

    The first convolution, those that give the outputs, the detector's fine branch and its light convolutions stay in
    float32: they cost little and carry the precision. A ReLU is one with the convolution in front of it, so that no
    step is spent on what it cuts off; and what is in float32 reads in float32 what was made in it.

    Args:
        dense: the ONNX model.
        images: each (1, 1, H, W) float32 in [0, 1], sides multiples of 8.
        keep_float: modules of the network whose convolutions stay in float32 as well, such as "encoder".

    Returns:
        The ONNX model with quantised convolutions.

    Raises:
        ConfigError: onnx or onnxruntime is not installed; a module has no convolutions; or none is left to quantise.
    """
    without_telemetry()
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ConfigError(f"int8 needs: pip install 'superpoint-frontend[onnx]' ({error})") from None

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, Float32Array] | None:
            return next(({"image": image} for image in self._images), None)

    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        given, shaped, out = (Path(folder) / name for name in ("given.onnx", "shaped.onnx", "int8.onnx"))
        given.write_bytes(dense)
        quant_pre_process(str(given), str(shaped), skip_symbolic_shape=True)
        quantize_static(
            str(shaped),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu"],
            nodes_to_exclude=_kept_in_float(onnx.load(shaped), keep_float),
            per_channel=True,
            reduce_range=True,
            # the mean of the images' ranges: those of a single odd one would coarsen the steps for all
            extra_options={"CalibMovingAverage": True},
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _past_steps(onnx.load(out))


def convolution_steps(int8: bytes) -> dict[str, QuantisedConvolution]:
    """The steps of a quantised graph's convolutions, by the names of their modules, such as "encoder.stem.1.conv".

    One whose weights the graph has computed from others has no such name, and is left out.
    """
    import onnx

    model = onnx.load_model_from_string(int8)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    graph = _Graph(model)

    def steps(node: Any) -> Steps:
        return Steps(float(held[node.input[1]]), int(held[node.input[2]]))

    found = {}
    for node in graph.quantised():
        name = graph.makers[node.input[1]].input[0].removesuffix("_quantized")
        if not (name.startswith(_NETWORK) and name.endswith(_WEIGHT)):
            continue
        behind = graph.users.get(node.output[0], [])
        output = steps(behind[0]) if len(behind) == 1 and behind[0].op_type == "QuantizeLinear" else None
        module = name.removeprefix(_NETWORK).removesuffix(_WEIGHT)
        found[module] = QuantisedConvolution(steps(graph.makers[node.input[0]]), output)
    return found


class _Graph:
    """Who makes each tensor of a model, and who uses it."""

    def __init__(self, model: Any) -> None:
        self.nodes = model.graph.node
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def nearest(self, start: Iterator[str], forward: bool) -> set[str]:
        """Names of the first convolutions that are met from some tensors on, forwards or backwards."""
        found, seen, ahead = set(), set(), list(start)
        while ahead:
            name = ahead.pop()
            if name in seen:
                continue
            seen.add(name)
            nodes = self.users.get(name, []) if forward else [self.makers[name]] if name in self.makers else []
            for node in nodes:
                if node.op_type == "Conv":
                    found.add(node.name)
                else:
                    ahead += list(node.output) if forward else list(node.input)
        return found

    def is_quantised(self, node: Any) -> bool:
        """Whether a node is a convolution with weights in int8."""
        maker = self.makers.get(node.input[1]) if node.op_type == "Conv" else None
        return maker is not None and maker.op_type == "DequantizeLinear"

    def quantised(self) -> list[Any]:
        return [node for node in self.nodes if self.is_quantised(node)]


def _kept_in_float(model: Any, keep_float: Collection[str]) -> list[str]:
    """Names of the nodes that stay in float32: see :func:`quantise_dense`."""
    graph = _Graph(model)
    convolutions = [node for node in graph.nodes if node.op_type == "Conv"]
    first = graph.nearest((value.name for value in model.graph.input), True)
    last = graph.nearest((value.name for value in model.graph.output), False)
    weights = {held.name: math.prod(held.dims) for held in model.graph.initializer}
    detector = [node for node in convolutions if DETECTOR in node.name]
    kept = first | last
    kept |= {node.name for node in detector if FINE_BRANCH in node.name or weights[node.input[1]] <= _LIGHT}
    for module in keep_float:
        inside = {node.name for node in convolutions if node.input[1].startswith(f"{_NETWORK}{module}.")}
        if not inside:
            raise ConfigError(
                f"'{module}' is no module of this network with convolutions; expected one such as encoder"
            )
        kept |= inside
    if all(node.name in kept for node in convolutions):
        raise ConfigError("every convolution would stay in float32; expected one or more to quantise")
    for node in graph.nodes:
        # a ReLU behind what is in float32 needs no steps unless a convolution in int8 reads it
        readers = graph.nearest(iter(node.output), True)
        if node.op_type == "Relu" and readers <= kept and graph.nearest(iter(node.input), False) <= kept:
            kept.add(node.name)
    return sorted(kept)


def _past_steps(model: Any) -> bytes:
    """The model, where what is in float32 reads tensors that were made in float32 as they are, not in steps.

    Quantisation replaces a tensor for all that read it once a single convolution reads it in int8.
    """
    graph = _Graph(model)
    for node in graph.nodes:
        if graph.is_quantised(node) or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for position, name in enumerate(node.input):
            rounded = _rounded_from(graph, name)
            if rounded is not None:
                node.input[position] = rounded
    _remove_unread(model)
    data: bytes = model.SerializeToString()
    return data


def _rounded_from(graph: _Graph, name: str) -> str | None:
    """The tensor in float32 that a tensor was rounded from; None where a convolution in int8 gives the steps itself."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        node = graph.makers.get(name)
        if node is None or node.op_type != kind:
            return None
        name = node.input[0]
    maker = graph.makers.get(name)
    while maker is not None and maker.op_type == "Relu":
        maker = graph.makers.get(maker.input[0])
    return None if maker is not None and graph.is_quantised(maker) else name


def _remove_unread(model: Any) -> None:
    """Remove nodes that nothing reads, and the numbers that only they had."""
    nodes = model.graph.node
    while True:
        read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
        unread = [node for node in nodes if not any(name in read for name in node.output)]
        if not unread:
            break
        for node in unread:
            nodes.remove(node)
    for held in [held for held in model.graph.initializer if held.name not in read]:
        model.graph.initializer.remove(held)
