"""int8 graphs: calibrated on photographs, measured on others, and refused where they lose accuracy."""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from frontend.atomic import atomic_write
from frontend.cpu_backend import CpuBackend
from frontend.errors import ConfigError, ImageError, WeightsError
from frontend.evaluation.homography import (
    HOMOGRAPHY_THRESHOLDS,
    BenchmarkConfig,
    PairResult,
    Summary,
    evaluate_pair,
    summarize,
)
from frontend.evaluation.int8_graph import convolution_steps, quantise_dense
from frontend.evaluation.pairs import load_bgr, photo_pairs, reduce_image
from frontend.extraction import ExtractorConfig
from frontend.extractor import SuperPoint
from frontend.folders import find_images
from frontend.image import pad_to_multiple, to_gray
from frontend.progress import Progress
from frontend.runtime import select, store
from frontend.types import Features, Float32Array, Float64Array
from frontend.weights import load_network, resolve, sha256_of

LEAST_PHOTOGRAPHS = 8
"""Half of them calibrate, half of them measure."""

MOST_CALIBRATION = 32
"""Photographs that calibrate; the ranges of activations settle long before."""

MOST_TUNING = 128
"""Photographs that the network is tuned on, those that calibrate among them."""

TUNING_STEPS = 300
"""Steps of tuning; more gain nothing."""

# Measured at least, by several changes of each photograph where there are few; int8 wins or loses a point or two of
# those by chance. Where that leaves open which side of the largest drop it is on, more are measured.
_PAIRS = 200
_MOST_PAIRS = 1000
_LARGEST_DROP = 0.01
_CERTAIN = 3.0
"""Standard errors from the largest drop that end measuring early."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """What came of a quantisation.

    Attributes:
        model: its name.
        pairs: image pairs that were measured.
        float32: accuracy at 1, 3 and 5 px, cosine of 1.
        int8: the same.
        drops: (3,) loss of accuracy at 1, 3 and 5 px, as a share of the pairs; below 0 for a gain.
        errors: (3,) standard errors of those: of the differences pair by pair, since both saw the same pairs.
        cosine: median cosine of the descriptors of keypoints that both found, int8 with float32.
        same: share of the keypoints of float32 that int8 finds within half a pixel.
    """

    model: str
    pairs: int
    float32: Summary
    int8: Summary
    drops: Float64Array
    errors: Float64Array
    cosine: float
    same: float

    @property
    def drop(self) -> float:
        """Largest of the losses."""
        return float(self.drops.max())

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.model} in int8: {self.pairs} pairs, {100 * self.same:.1f} % of float32's keypoints, "
            f"descriptors' cosine with float32 {self.cosine:.4f}"
        ]
        for name, of in (("float32", self.float32), ("int8", self.int8)):
            figures = of.homography_accuracy_1, of.homography_accuracy_3, of.homography_accuracy_5
            lines.append(f"  {name:<8} homography accuracy at 1, 3, 5 px: " + ", ".join(f"{f:.3f}" for f in figures))
        points = [
            f"{100 * drop:+.1f} ({100 * error:.1f})" for drop, error in zip(-self.drops, self.errors, strict=True)
        ]
        lines.append(f"  difference in points (standard error): {', '.join(points)}")
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
        folder: of photographs, in it and below; every second one that can be read calibrates and tunes, the others
            measure.
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
        DataError: the folder is missing or has no image.
        WeightsError: there are no such weights.
    """
    name, path = resolve(name_or_path)
    if out is not None and (not out.name.endswith((".onnx", ".onnx.gz")) or not out.parent.is_dir()):
        raise ConfigError(f"{out}: expected a file that ends in .onnx or .onnx.gz, in a folder that is there")
    if tuning_steps < 0:
        raise ConfigError(f"tuning steps are {tuning_steps}; expected 0 or more")
    photographs = [folder / image for image in find_images(folder) if _readable(folder / image)]
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
    """Compare the int8 graph with float32 on seeded changes of photographs, with a progress bar on stderr.

    At least 200 pairs are measured and at most 1,000, whole changes of all photographs (of more than 500 of them one).
    It ends before where each loss is three standard errors below the largest that is accepted, or one as far above it.

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
    image0, first = None, []
    changes = 2 * len(photographs)
    with Progress(changes * math.ceil(_MOST_PAIRS / changes), "measure int8", unit="pair") as progress:
        for pair in (pair for seed in itertools.count() for pair in photo_pairs(photographs, seed=seed)):
            if pair.image0 is not image0:  # both pairs of a photograph have the same one
                image0, first = pair.image0, [extractor.extract(pair.image0) for extractor in extractors]
            second = [extractor.extract(pair.image1) for extractor in extractors]
            found = list(zip(first, second, strict=True))
            for kept, (features0, features1) in zip(results, found, strict=True):
                kept.append(evaluate_pair(pair, features0, features1, BenchmarkConfig(geometry_method="ransac")))
            cosines += [_cosines(a, b) for a, b in zip(*found, strict=True)]
            keypoints += sum(map(len, found[0]))
            progress.update()
            measured = len(results[0])
            if measured % changes or measured < _PAIRS:
                continue
            drops, errors = paired_drops(*results)
            if measured >= _MOST_PAIRS or _decided(drops, errors):
                break
    together = np.concatenate(cosines)
    cosine = float(np.median(together)) if len(together) else 0.0
    same = len(together) / max(1, keypoints)
    return Quantised(name, measured, summarize(results[0]), summarize(results[1]), drops, errors, cosine, same)


def paired_drops(float32: list[PairResult], int8: list[PairResult]) -> tuple[Float64Array, Float64Array]:
    """Losses of homography accuracy at 1, 3 and 5 px on the same pairs.

    Args:
        float32: of n pairs, at least two.
        int8: of the same ones.

    Returns:
        The mean of the differences of both outcomes (1 where the corner error is small enough, or 0), (3,), and its
        standard error, (3,).
    """
    outcomes = [
        np.array([result.corner_error for result in results])[:, None] <= HOMOGRAPHY_THRESHOLDS
        for results in (float32, int8)
    ]
    differences = outcomes[0].astype(np.float64) - outcomes[1]
    return differences.mean(axis=0), differences.std(axis=0, ddof=1) / math.sqrt(len(differences))


def _decided(drops: Float64Array, errors: Float64Array) -> bool:
    """Whether chance leaves no doubt that the losses are within what is accepted, or that one is not."""
    margin = _CERTAIN * errors
    return bool((drops - margin > _LARGEST_DROP).any() or (drops + margin <= _LARGEST_DROP).all())


def _cosines(expected: Features, got: Features) -> Float32Array:
    """Of the descriptors of keypoints that both have, within half a pixel."""
    if not len(expected) or not len(got):
        return np.zeros(0, np.float32)
    apart = np.linalg.norm(expected.keypoints[:, None] - got.keypoints, axis=2)
    nearest, same = apart.argmin(axis=1), apart.min(axis=1) < 0.5
    rows: Float32Array = np.einsum("nd,nd->n", expected.descriptors, got.descriptors[nearest])[same]
    return rows
