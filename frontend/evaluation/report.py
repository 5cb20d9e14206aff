"""What the homography benchmark says: a table for people, JSON for machines, both with the protocol."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from frontend.evaluation.homography import (
    AUC_THRESHOLD,
    CORRECT_PX,
    HOMOGRAPHY_THRESHOLDS,
    MMA_THRESHOLDS,
    SUMMARY_FIELDS,
    BenchmarkResult,
    PairResult,
)

_ESTIMATORS = {"opencv": "OpenCV USAC_MAGSAC, verified", "ransac": "superpoint-frontend RANSAC"}
_PACKAGES = ("superpoint-frontend", "numpy", "opencv-python", "opencv-python-headless", "torch")

_COLUMNS = (
    ("H@1", "homography_accuracy_1", ".3f"),
    ("H@3", "homography_accuracy_3", ".3f"),
    ("H@5", "homography_accuracy_5", ".3f"),
    ("AUC@5", "auc_5", ".3f"),
    ("MMA@3", "mma_3", ".3f"),
    ("repeat.", "repeatability", ".3f"),
    ("loc.err", "localization_error", ".3f"),
    ("NN mAP", "nn_map", ".3f"),
    ("M.score", "matching_score", ".3f"),
    ("points", "keypoints", ".0f"),
    ("matches", "matches", ".0f"),
    ("inliers", "inliers", ".0f"),
    ("failed", "failures", "d"),
)


def format_table(result: BenchmarkResult) -> str:
    """One block for each kind of pairs, one row for each method."""
    width = max(len("method"), *(len(name) for name in result.pairs))
    lines = [protocol_line(result)]
    for kind in result.kinds():
        lines += ["", f"{kind}, {result.dataset.counts[kind]} pairs"]
        lines.append(f"{'method':<{width}}" + "".join(f"  {title:>7}" for title, _, _ in _COLUMNS))
        for name in result.pairs:
            summary = result.summary(name, kind)
            cells = (format(getattr(summary, field), spec) for _, field, spec in _COLUMNS)
            lines.append(f"{name:<{width}}" + "".join(f"  {cell:>7}" for cell in cells))
    return "\n".join(lines) + "\n"


def format_rotations(result: BenchmarkResult) -> str:
    """Three measures, a column for each angle; for a run on :mod:`frontend.evaluation.rotations` alone."""
    width = max(len("method"), *(len(name) for name in result.pairs))
    kinds = result.kinds()
    lines = [protocol_line(result)]
    for title, field, spec in (_COLUMNS[1], _COLUMNS[4], _COLUMNS[5]):
        lines += ["", f"{title} by in-plane rotation in degrees, {result.dataset.counts[kinds[0]]} pairs each"]
        lines.append(f"{'method':<{width}}" + "".join(f"  {kind.split()[-1]:>7}" for kind in kinds))
        for name in result.pairs:
            cells = (format(getattr(result.summary(name, kind), field), spec) for kind in kinds)
            lines.append(f"{name:<{width}}" + "".join(f"  {cell:>7}" for cell in cells))
    return "\n".join(lines) + "\n"


def protocol_line(result: BenchmarkResult) -> str:
    """The protocol in one line: figures without it compare with nothing."""
    dataset = result.dataset
    size = f"longest side at most {dataset.resize} px" if dataset.resize else "images as they are"
    seed = f", seed {dataset.seed}" if dataset.kind in ("photos", "rotations") else ""
    estimator = _ESTIMATORS[result.config.geometry_method]
    # the line ends up in pictures that are passed on; where the data lies on this machine does not belong there
    name = "/".join(dataset.path.resolve().parts[-2:]).lstrip("/")
    return (
        f"{name} ({dataset.kind}{seed}), {size}, at most {result.max_keypoints} keypoints, "
        f"{matched_by(result.matchers)}, {estimator} {result.config.threshold:g} px, correct within {CORRECT_PX:g} px"
    )


def matched_by(matchers: Mapping[str, str]) -> str:
    """What matches the features of the methods, in words; by name, those that have another matcher than "mnn"."""
    others = ", ".join(f"{name} by {matcher}" for name, matcher in matchers.items())
    return f"mutual nearest neighbours ({others})" if others else "mutual nearest neighbours"


def to_json(result: BenchmarkResult) -> str:
    """The JSON document.

    Returns:
        An object of ``protocol``, ``metrics`` (method, kind of pairs, measure) and ``pairs`` (method, list of pairs
        with their corner error and counts). What is infinite or undefined is null: a corner error where no
        homography was found, a localisation error where no point was repeated.
    """
    methods = list(result.pairs)
    document = {
        "protocol": protocol(result),
        "metrics": {
            name: {
                kind: {field: _number(value) for field, value in _summary_items(result, name, kind)}
                for kind in result.kinds()
            }
            for name in methods
        },
        "pairs": {name: [_pair(pair) for pair in result.pairs[name]] for name in methods},
    }
    return json.dumps(document, indent=1, allow_nan=False)


def protocol(result: BenchmarkResult) -> dict[str, Any]:
    """Everything that the figures depend on."""
    dataset = result.dataset
    return {
        "benchmark": "homography",
        "dataset": str(dataset.path),
        "dataset_kind": dataset.kind,
        "pairs": dataset.counts,
        "seed": dataset.seed,
        "resize": dataset.resize,
        "max_keypoints": result.max_keypoints,
        "methods": list(result.pairs),
        "networks": dict(result.networks),
        "matcher": "mnn",
        "matchers": dict(result.matchers),
        "estimator": _ESTIMATORS[result.config.geometry_method],
        "estimator_threshold_px": result.config.threshold,
        "correct_px": CORRECT_PX,
        "homography_thresholds_px": list(HOMOGRAPHY_THRESHOLDS),
        "auc_threshold_px": AUC_THRESHOLD,
        "mma_thresholds_px": MMA_THRESHOLDS.tolist(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where installed."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **{name: value for name, value in found.items() if value}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _summary_items(result: BenchmarkResult, name: str, kind: str) -> list[tuple[str, Any]]:
    summary = result.summary(name, kind)
    return [(field, getattr(summary, field)) for field in SUMMARY_FIELDS]


def _number(value: Any) -> Any:
    """A value of JSON: arrays as lists, six decimals, what is not finite as null."""
    if isinstance(value, np.ndarray):
        return [_number(entry) for entry in value.tolist()]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _pair(pair: PairResult) -> dict[str, Any]:
    return {
        "name": pair.name,
        "kind": pair.kind,
        "corner_error": _number(pair.corner_error),
        "keypoints0": pair.keypoints0,
        "keypoints1": pair.keypoints1,
        "matches": pair.matches,
        "inliers": pair.inliers,
        "repeatability": _number(pair.repeatability),
        "localization_error": _number(pair.localization_error),
        "nn_ap": _number(pair.nn_ap),
        "matching_score": _number(pair.matching_score),
        "mma_3": _number(float(pair.matching_accuracy[MMA_THRESHOLDS == CORRECT_PX][0])),
    }
