"""Exported graphs in OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np

from frontend.postprocess import Gray
from frontend.runtime.base import FINE_BRANCH, Maps, NetworkInfo, Refined
from frontend.runtime.privacy import without_telemetry
from frontend.threads import settle_threads
from frontend.types import Float32Array

_KEPT = 128  # kernels kept for shapes seen before; the default of thousands grows by megabytes with each new shape
_OFTEN = 4  # calls with a size before the model is compiled for it, which takes a tenth of a second
_SIZES = 5  # sizes that a model is compiled for, at most
_EACH_SIZES = 8  # the same in half precision and int8, where the size used longest ago makes room
_REMEMBERED = 1000  # sizes that are counted
_OPEN = 1e-3  # largest difference of a right model's answers for open sizes, as a share of the largest number
_MANY = 64  # patches are filled up to a multiple of this, so that their number takes few values

_HINTS = {"float32": "f32", "int8": "f32", "bf16": "bf16", "fp16": "f16"}
_LEVELS = 255
_LINEAR = ("Reshape", "Transpose", "SpaceToDepth", "Squeeze", "Unsqueeze")  # what may lie before a first convolution
# layers, by parts of their names, that stay in float32 beside half precision
_EXACT = ("/detector/out/", FINE_BRANCH)
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@cache
def _core() -> Any:
    without_telemetry()
    import openvino

    return openvino.Core()


def native_precisions() -> tuple[str, ...]:
    """Precisions that the CPU computes by instructions of its own, of "float32", "bf16" and "fp16"."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", *(ours for ours, theirs in (("bf16", "BF16"), ("fp16", "FP16")) if theirs in capabilities))


def _take_grey_levels(model: Any) -> bool:
    """Change a model that takes images in [0, 1] to one that takes them in [0, 255], where that can be done.

    bf16 has eight significant bits: grey levels of eight bits are exact, and most of them divided by 255 are not, which
    is a third to a half of what bf16 moves the descriptors by (1 - cosine). The weights of the first convolutions take
    the factor; there is nothing to be done where an image goes anywhere else.
    """
    from openvino import opset13

    if len(model.inputs) != 1:
        return False
    convolutions, pending = [], [model.input(0)]
    while pending:
        for reader in pending.pop().get_target_inputs():
            node = reader.get_node()
            kind = node.get_type_name()
            if kind == "ShapeOf":
                continue
            if kind == "Convolution" and node.input_value(1).get_node().get_type_name() == "Constant":
                convolutions.append(node)
            elif kind in _LINEAR and reader.get_index() == 0:
                pending.append(node.output(0))
            else:
                return False
    for node in convolutions:
        weight = node.input_value(1).get_node().data
        node.input(1).replace_source_output(opset13.constant(weight / np.float32(_LEVELS)).output(0))
    return True


def _keep_exact(model: Any, names: tuple[str, ...] = _EXACT) -> Any:
    """The model, with the layers of these names in float32 whatever precision it is compiled for.

    Which pixel is a peak is decided by differences of neighbouring logits, which bf16 rounds away for one or two peaks
    of a hundred; these layers cost little. Python can set this attribute of a layer in a written model alone.
    """
    with TemporaryDirectory() as folder:
        from openvino import Tensor, serialize

        path = Path(folder) / "model.xml"
        serialize(model, str(path))
        root = ElementTree.parse(path).getroot()
        for layer in root.iter("layer"):
            if layer.get("type") != "Const" and any(name in layer.get("name", "") for name in names):
                ElementTree.SubElement(
                    ElementTree.SubElement(layer, "rt_info"), "attribute", name="precise", version="0"
                )
        weights = Tensor(np.fromfile(path.with_suffix(".bin"), np.uint8))
        return _core().read_model(ElementTree.tostring(root), weights)


class _Model:
    """An ONNX model, compiled for any size, and for those few that keep coming.

    Compiled for one size, a network is one to four milliseconds faster: otherwise shapes are worked out and memory is
    planned for each of its layers in every call. In half precision the two differ by what an image's keypoints show, so
    there every size is compiled for at once, and again where it had to make room: the same image always gives the same.
    And so in int8 where open sizes come out wrong, which the first images tell: of superpoint-edge's graph OpenVINO
    2026.4 computes descriptors whose cosine with the right ones is .9, of superpoint-slim's the right ones.

    Args:
        model: in ONNX.
        hint: precision of what is not quantised.
        threads: that compute.
        quantised: whether it has layers in int8.

    Attributes:
        levels: whether it takes images in [0, 255].
        each_size: whether every shape of images is compiled for.
    """

    def __init__(self, model: bytes, hint: str, threads: int, *, quantised: bool = False) -> None:
        self._source = _core().read_model(model)
        self.levels = False
        if hint != "f32":
            self.levels = _take_grey_levels(self._source)
            self._source = _keep_exact(self._source)
        self._settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT,
        }
        self.each_size = quantised or hint != "f32"
        self._any_size: Any = None if hint != "f32" else self._compile({})
        self._untried = quantised
        self._seen: dict[_Shapes, int] = {}
        self._sized: OrderedDict[_Shapes, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._mine = threading.local()  # a request serves one thread at a time

    def _compile(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        model = self._source
        if shapes:
            model = model.clone()
            model.reshape({name: list(shape) for name, shape in shapes.items()})
        return _core().compile_model(model, "CPU", self._settings)

    def __call__(self, inputs: Mapping[str, Float32Array]) -> Any:
        key = tuple((name, value.shape) for name, value in inputs.items())
        compiled = self._for_size(key)
        if self._untried:
            self._try_open_sizes(compiled, inputs)
        if compiled is None:
            key, compiled = (), self._any_size
        requests: dict[_Shapes, tuple[Any, Any]] = self._mine.__dict__  # type: ignore[assignment]
        made = requests.get(key)
        if made is None or made[0] is not compiled:
            for old in [old for old, (model, _) in requests.items() if old and self._sized.get(old) is not model]:
                del requests[old]  # what made room goes once nobody has a request of it
            made = requests[key] = (compiled, compiled.create_infer_request())
        return made[1].infer(inputs, share_inputs=True, share_outputs=True)

    def _try_open_sizes(self, sized: Any, inputs: Mapping[str, Float32Array]) -> None:
        """Whether the model for any size computes what one for these images' size does; if so it serves others, too."""
        with self._lock:
            if not self._untried:
                return
            self._untried = False
            right, tried = (model.create_infer_request().infer(inputs) for model in (sized, self._any_size))
            for a, b in zip(right.to_tuple(), tried.to_tuple(), strict=True):
                if not np.abs(a - b).max() <= _OPEN * np.abs(a).max():
                    self._any_size = None
            self.each_size = self._any_size is None
            if not self.each_size:
                self._sized.clear()  # the probe's size, which does not come again

    def _for_size(self, key: _Shapes) -> Any:
        """What is compiled for a size, now if it has come often enough; None where there is no such."""
        with self._lock:
            found = self._sized.get(key)
            if self.each_size:
                if found is None:
                    if len(self._sized) >= _EACH_SIZES:
                        self._sized.popitem(last=False)
                    found = self._sized[key] = self._compile(dict(key))
                self._sized.move_to_end(key)
            elif found is None and len(self._sized) < _SIZES:
                if len(self._seen) > _REMEMBERED:
                    self._seen.clear()
                self._seen[key] = self._seen.get(key, 0) + 1
                if self._seen[key] >= _OFTEN:
                    found = self._sized[key] = self._compile(dict(key))
            return found


def compile_for_any_size(model: bytes, threads: int) -> Any:
    """An ONNX model in float32 whose dimensions stay open."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "CPU_RUNTIME_CACHE_CAPACITY": _KEPT,
    }
    return _core().compile_model(_core().read_model(model), "CPU", settings)


def _refiner(model: bytes, threads: int) -> Callable[[Float32Array, Float32Array], Refined]:
    """The refiner, in ONNX Runtime where that is installed: it takes half to four fifths of OpenVINO's time."""
    if find_spec("onnxruntime") is not None:
        from frontend.runtime.onnx_runtime import open_refiner

        return open_refiner(model)
    # positions in half precision would be hundredths of a pixel off
    compiled = _Model(model, "f32", threads)

    def refine(patches: Float32Array, scores: Float32Array) -> Refined:
        count = len(patches)
        if missing := -count % _MANY:
            patches = np.concatenate([patches, np.zeros((missing, *patches.shape[1:]), np.float32)])
            scores = np.concatenate([scores, np.zeros(missing, np.float32)])
        found = compiled({"patches": patches, "scores": scores})
        # copies: the next call overwrites what this one gives, and of two passes both answers are needed
        return Refined(found["position"][:count].copy(), found["local"][:count].copy())

    return refine


class OpenVinoRuntime:
    """See :class:`frontend.runtime.base.Runtime`.

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
        quantised = precision == "int8"
        part = parts["dense-int8" if quantised else "dense"]
        self._dense = _Model(part, _HINTS[precision], threads, quantised=quantised)
        self._refine = _refiner(parts["refine"], threads) if info.patch else None
        self.takes_bytes = self._dense.levels

    def dense(self, images: Gray, raster: Float32Array | None = None) -> Maps:
        if images.dtype == np.uint8:
            images = images.astype(np.float32)
        elif self._dense.levels:
            images = images * np.float32(_LEVELS)
        images = np.asarray(images, np.float32)
        if len(images) <= 1 or not self._dense.each_size:
            found = self._dense({"image": images})
            return Maps(found["heat"], found["descriptors"])
        # one by one, which takes no longer: otherwise each number of images would be compiled for, too
        return self._one_by_one(images)

    def _one_by_one(self, images: Float32Array) -> Maps:
        heats, descriptors = [], []
        for index in range(len(images)):
            found = self._dense({"image": images[index : index + 1]})
            heats.append(found["heat"].copy())  # the next call overwrites it
            descriptors.append(found["descriptors"].copy())
        return Maps(np.concatenate(heats), np.concatenate(descriptors))

    def refine(self, patches: Float32Array, scores: Float32Array) -> Refined:
        if self._refine is None:
            raise TypeError("this network has no refiner")
        return self._refine(patches, scores)
