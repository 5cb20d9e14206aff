"""int8 graphs: calibrated on photographs, measured on others, and refused where they lose accuracy."""

from __future__ import annotations

import gzip
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from frontend.atomic import atomic_write
from frontend.cpu_backend import CpuBackend
from frontend.errors import ConfigError, ImageError, WeightsError
from frontend.evaluation.homography import BenchmarkConfig, PairResult, Summary, evaluate_pair, summarize
from frontend.evaluation.pairs import load_bgr, photo_pairs, reduce_image
from frontend.extraction import ExtractorConfig
from frontend.extractor import SuperPoint
from frontend.image import is_image_name, pad_to_multiple, to_gray
from frontend.runtime import select, store
from frontend.runtime.base import DETECTOR, FINE_BRANCH
from frontend.runtime.privacy import without_telemetry
from frontend.types import Features, Float32Array
from frontend.weights import load_network, resolve, sha256_of

LEAST_PHOTOGRAPHS = 8
"""Half of them calibrate, half of them measure."""

MOST_CALIBRATION = 32
"""Photographs that calibrate; the ranges of activations settle long before."""

_LIGHT = 16384
"""Weights of one of the detector's convolutions, at most, for it to stay in float32: they tell where peaks are."""

# Measured at least, by several changes of each photograph where there are few. Of 100 pairs a point is one, and int8
# wins or loses three by chance.
_PAIRS = 200
_LARGEST_DROP = 0.01


@dataclass(frozen=True)
class Quantised:
    """What came of a quantisation.

    Attributes:
        model: its name.
        pairs: image pairs that were measured.
        float32: accuracy at 1, 3 and 5 px, cosine of 1.
        int8: the same.
        cosine: median cosine of the descriptors of keypoints that both found, int8 with float32.
    """

    model: str
    pairs: int
    float32: Summary
    int8: Summary
    cosine: float

    @property
    def drop(self) -> float:
        """Largest loss of homography accuracy at 1, 3 and 5 px, as a share of the pairs; below 0 for a gain."""
        names = ("homography_accuracy_1", "homography_accuracy_3", "homography_accuracy_5")
        return float(max(getattr(self.float32, name) - getattr(self.int8, name) for name in names))

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"{self.model} in int8: {self.pairs} pairs, descriptors' cosine with float32 {self.cosine:.4f}"]
        for name, of in (("float32", self.float32), ("int8", self.int8)):
            figures = of.homography_accuracy_1, of.homography_accuracy_3, of.homography_accuracy_5
            lines.append(f"  {name:<8} homography accuracy at 1, 3, 5 px: " + ", ".join(f"{f:.3f}" for f in figures))
        return "\n".join(lines)


def quantise_dense(dense: bytes, images: Iterable[Float32Array]) -> bytes:
    """Quantise the dense part's convolutions (static, per channel, by the ranges that images give).

    The first convolution, those that give the outputs, the detector's fine branch and its light convolutions stay in
    float32: they cost little and carry the precision.

    Args:
        dense: the ONNX model.
        images: each (1, 1, H, W) float32 in [0, 1], sides multiples of 8.

    Returns:
        The ONNX model with quantised convolutions.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
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
        model = onnx.load(shaped)
        quantize_static(
            str(shaped),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=_kept_in_float(model),
            per_channel=True,
            # CPUs without VNNI add pairs of products in 16 bits, which weights of 8 bits would overflow
            reduce_range=True,
            # the mean of the images' ranges: those of a single odd one would coarsen the steps for all
            extra_options={"CalibMovingAverage": True},
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return out.read_bytes()


def _kept_in_float(model: Any) -> list[str]:
    """Names of the first convolutions behind the image, the last before the outputs, and the detector's light ones."""
    makers = {output: node for node in model.graph.node for output in node.output}
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def nearest(start: Iterator[str], forward: bool) -> set[str]:
        found, seen, ahead = set(), set(), list(start)
        while ahead:
            name = ahead.pop()
            if name in seen:
                continue
            seen.add(name)
            nodes = users.get(name, []) if forward else [makers[name]] if name in makers else []
            for node in nodes:
                if node.op_type == "Conv":
                    found.add(node.name)
                else:
                    ahead += list(node.output) if forward else list(node.input)
        return found

    first = nearest((value.name for value in model.graph.input), True)
    last = nearest((value.name for value in model.graph.output), False)
    weights = {held.name: math.prod(held.dims) for held in model.graph.initializer}
    detector = [node for node in model.graph.node if node.op_type == "Conv" and DETECTOR in node.name]
    light = {node.name for node in detector if FINE_BRANCH in node.name or weights[node.input[1]] <= _LIGHT}
    return sorted(first | last | light)


def quantise_model(
    name_or_path: str | Path, folder: Path, *, runtime: str = "onnxruntime", out: Path | None = None
) -> Quantised:
    """Make the int8 graph of a model, and store it in the cache where it is as accurate as float32.

    Args:
        name_or_path: see :func:`frontend.weights.load_network`.
        folder: of photographs; every second one that can be read calibrates, the others measure.
        runtime: that measures.
        out: a file to write it to as well; ends in .onnx, or in .onnx.gz for a third less.

    Returns:
        The accuracies.

    Raises:
        ConfigError: there are too few photographs; or homography accuracy drops by more than a point.
        WeightsError: there are no such weights.
    """
    name, path = resolve(name_or_path)
    if out is not None and (not out.name.endswith((".onnx", ".onnx.gz")) or not out.parent.is_dir()):
        raise ConfigError(f"{out}: expected a file that ends in .onnx or .onnx.gz, in a folder that is there")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; expected one of photographs")
    files = sorted(file for file in folder.iterdir() if file.is_file() and is_image_name(file))
    photographs = [file for file in files if _readable(file)]
    if len(photographs) < LEAST_PHOTOGRAPHS:
        raise ConfigError(f"{folder}: has {len(photographs)} photographs; expected {LEAST_PHOTOGRAPHS} or more")
    digest = sha256_of(path)
    graphs = store.load(digest) or select.export(load_network(name_or_path)[1])
    if sha256_of(path) != digest:
        raise WeightsError(f"weights {path} were replaced meanwhile; expected a file that stays")
    dense = quantise_dense(graphs.files["dense"], _inputs(photographs[::2][:MOST_CALIBRATION]))
    graphs = replace(graphs, files={**graphs.files, "dense-int8": dense})
    result = measure(name, graphs, photographs[1::2], runtime)
    if result.drop > _LARGEST_DROP + 1e-9:  # a difference of shares, which are rounded
        raise ConfigError(
            f"int8 is refused: homography accuracy drops by {100 * result.drop:.1f} points; expected at most "
            f"{100 * _LARGEST_DROP:.0f}\n{result.summary()}"
        )
    if not store.save(digest, graphs, new=("dense-int8",)):
        raise ConfigError(f"{store.cache_dir()}: cannot be written; expected a cache for the int8 graph")
    if out is not None:
        atomic_write(out, gzip.compress(dense, mtime=0) if out.suffix == ".gz" else dense)
    return result


def _readable(path: Path) -> bool:
    try:
        load_bgr(path)
    except ImageError:
        return False
    return True


def _inputs(photographs: Iterable[Path]) -> Iterator[Float32Array]:
    for path in photographs:
        image, _ = reduce_image(load_bgr(path), 640)
        yield np.ascontiguousarray(pad_to_multiple(to_gray(image))[None, None])


def measure(name: str, graphs: store.Graphs, photographs: list[Path], runtime: str) -> Quantised:
    """Compare the int8 graph with float32 on seeded changes of photographs.

    Args:
        name: of the model.
        graphs: with "dense-int8".
        photographs: not those of the calibration.
        runtime: that runs both.
    """
    config = ExtractorConfig()
    extractors = [
        SuperPoint.of(CpuBackend(select.build(graphs, runtime, precision)), name=name, config=config)
        for precision in ("float32", "int8")
    ]
    results: tuple[list[PairResult], list[PairResult]] = ([], [])
    cosines: list[Float32Array] = []
    for seed in range(max(1, math.ceil(_PAIRS / (2 * len(photographs))))):
        for pair in photo_pairs(photographs, seed=seed):
            found = [(e.extract(pair.image0), e.extract(pair.image1)) for e in extractors]
            for kept, (features0, features1) in zip(results, found, strict=True):
                kept.append(evaluate_pair(pair, features0, features1, BenchmarkConfig(geometry_method="ransac")))
            cosines += [_cosines(a, b) for a, b in zip(*found, strict=True)]
    together = np.concatenate(cosines)
    cosine = float(np.median(together)) if len(together) else 0.0
    return Quantised(name, len(results[0]), summarize(results[0]), summarize(results[1]), cosine)


def _cosines(expected: Features, got: Features) -> Float32Array:
    """Of the descriptors of keypoints that both have, within half a pixel."""
    if not len(expected) or not len(got):
        return np.zeros(0, np.float32)
    apart = np.linalg.norm(expected.keypoints[:, None] - got.keypoints, axis=2)
    nearest, same = apart.argmin(axis=1), apart.min(axis=1) < 0.5
    rows: Float32Array = np.einsum("nd,nd->n", expected.descriptors, got.descriptors[nearest])[same]
    return rows
