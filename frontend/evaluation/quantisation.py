"""int8 graphs: calibrated on photographs, measured on others, and refused where they lose accuracy."""

from __future__ import annotations

import gzip
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from frontend.atomic import atomic_write
from frontend.cpu_backend import CpuBackend
from frontend.errors import ConfigError, ImageError, WeightsError
from frontend.evaluation.homography import BenchmarkConfig, PairResult, Summary, evaluate_pair, summarize
from frontend.evaluation.int8_graph import convolution_steps, quantise_dense
from frontend.evaluation.pairs import load_bgr, photo_pairs, reduce_image
from frontend.extraction import ExtractorConfig
from frontend.extractor import SuperPoint
from frontend.image import is_image_name, pad_to_multiple, to_gray
from frontend.runtime import select, store
from frontend.types import Features, Float32Array
from frontend.weights import load_network, resolve, sha256_of

LEAST_PHOTOGRAPHS = 8
"""Half of them calibrate, half of them measure."""

MOST_CALIBRATION = 32
"""Photographs that calibrate; the ranges of activations settle long before."""

MOST_TUNING = 128
"""Photographs that the network is tuned on, those that calibrate among them."""

TUNING_STEPS = 300
"""Steps of tuning; more gain nothing."""

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
        same: share of the keypoints of float32 that int8 finds within half a pixel.
    """

    model: str
    pairs: int
    float32: Summary
    int8: Summary
    cosine: float
    same: float

    @property
    def drop(self) -> float:
        """Largest loss of homography accuracy at 1, 3 and 5 px, as a share of the pairs; below 0 for a gain."""
        names = ("homography_accuracy_1", "homography_accuracy_3", "homography_accuracy_5")
        return float(max(getattr(self.float32, name) - getattr(self.int8, name) for name in names))

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.model} in int8: {self.pairs} pairs, {100 * self.same:.1f} % of float32's keypoints, "
            f"descriptors' cosine with float32 {self.cosine:.4f}"
        ]
        for name, of in (("float32", self.float32), ("int8", self.int8)):
            figures = of.homography_accuracy_1, of.homography_accuracy_3, of.homography_accuracy_5
            lines.append(f"  {name:<8} homography accuracy at 1, 3, 5 px: " + ", ".join(f"{f:.3f}" for f in figures))
        return "\n".join(lines)


def quantise_model(
    name_or_path: str | Path,
    folder: Path,
    *,
    runtime: str = "onnxruntime",
    out: Path | None = None,
    keep_float: Collection[str] = (),
    tuning_steps: int = TUNING_STEPS,
) -> Quantised:
    """Make the int8 graph of a model, and store it in the cache where it is as accurate as float32.

    Args:
        name_or_path: see :func:`frontend.weights.load_network`.
        folder: of photographs; every second one that can be read calibrates and tunes, the others measure.
        runtime: that measures.
        out: a file to write it to as well; ends in .onnx, or in .onnx.gz for a third less.
        keep_float: modules whose convolutions stay in float32, see
            :func:`frontend.evaluation.int8_graph.quantise_dense`.
        tuning_steps: see :func:`frontend.training.int8_tuning.tune_for_int8`; 0 leaves the weights as they are.

    Returns:
        The accuracies.

    Raises:
        ConfigError: there are too few photographs; a module is none, or the steps are below 0; or homography accuracy
            drops by more than a point.
        WeightsError: there are no such weights.
    """
    name, path = resolve(name_or_path)
    if out is not None and (not out.name.endswith((".onnx", ".onnx.gz")) or not out.parent.is_dir()):
        raise ConfigError(f"{out}: expected a file that ends in .onnx or .onnx.gz, in a folder that is there")
    if tuning_steps < 0:
        raise ConfigError(f"tuning steps are {tuning_steps}; expected 0 or more")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; expected one of photographs")
    files = sorted(file for file in folder.iterdir() if file.is_file() and is_image_name(file))
    photographs = [file for file in files if _readable(file)]
    if len(photographs) < LEAST_PHOTOGRAPHS:
        raise ConfigError(f"{folder}: has {len(photographs)} photographs; expected {LEAST_PHOTOGRAPHS} or more")
    digest = sha256_of(path)
    network = load_network(name_or_path)[1]
    graphs = store.load(digest) or select.export(network)
    if sha256_of(path) != digest:
        raise WeightsError(f"weights {path} were replaced meanwhile; expected a file that stays")
    images = list(_inputs(photographs[::2][:MOST_TUNING]))
    dense = quantise_dense(graphs.files["dense"], images[:MOST_CALIBRATION], keep_float)
    if tuning_steps:
        from frontend.runtime.graphs import export_parts
        from frontend.training.int8_tuning import TuningConfig, tune_for_int8

        tuned = tune_for_int8(network, convolution_steps(dense), images, TuningConfig(tuning_steps))
        dense = quantise_dense(export_parts(tuned)["dense"], images[:MOST_CALIBRATION], keep_float)
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
    keypoints = 0
    for seed in range(max(1, math.ceil(_PAIRS / (2 * len(photographs))))):
        for pair in photo_pairs(photographs, seed=seed):
            found = [(e.extract(pair.image0), e.extract(pair.image1)) for e in extractors]
            for kept, (features0, features1) in zip(results, found, strict=True):
                kept.append(evaluate_pair(pair, features0, features1, BenchmarkConfig(geometry_method="ransac")))
            cosines += [_cosines(a, b) for a, b in zip(*found, strict=True)]
            keypoints += sum(map(len, found[0]))
    together = np.concatenate(cosines)
    cosine = float(np.median(together)) if len(together) else 0.0
    same = len(together) / max(1, keypoints)
    return Quantised(name, len(results[0]), summarize(results[0]), summarize(results[1]), cosine, same)


def _cosines(expected: Features, got: Features) -> Float32Array:
    """Of the descriptors of keypoints that both have, within half a pixel."""
    if not len(expected) or not len(got):
        return np.zeros(0, np.float32)
    apart = np.linalg.norm(expected.keypoints[:, None] - got.keypoints, axis=2)
    nearest, same = apart.argmin(axis=1), apart.min(axis=1) < 0.5
    rows: Float32Array = np.einsum("nd,nd->n", expected.descriptors, got.descriptors[nearest])[same]
    return rows
