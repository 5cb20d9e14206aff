"""What the relative-pose benchmark says: a table for people, JSON for machines, both with the protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frontend.evaluation.pose import AUC_THRESHOLDS, EPIPOLAR_THRESHOLD, PoseConfig, PosePairResult, auc
from frontend.evaluation.report import matched_by, versions

Results = Mapping[str, Sequence[PosePairResult]]


def summarize(results: Sequence[PosePairResult], estimator: str) -> dict[str, float]:
    """One method with one estimator on all pairs.

    Args:
        results: of each pair; at least one.
        estimator: its name.

    Returns:
        AUC of the pose error at 5, 10 and 20 degrees: mean over the seeds ("auc_5", ...) and half the range of the
        seeds' values ("auc_5_spread", ...); "rotation_median" and "translation_median", degrees over pairs and seeds,
        infinite where most have no pose; "failures", part of the estimations without a pose; and means over the pairs
        of "keypoints", "matches", "inliers", "correct" (matches) and "precision".
    """
    errors = [result.errors[estimator] for result in results]
    by_seed = auc(errors)
    found: dict[str, float] = {}
    for column, limit in enumerate(AUC_THRESHOLDS):
        found[f"auc_{limit:g}"] = float(by_seed[:, column].mean())
        found[f"auc_{limit:g}_spread"] = float(np.ptp(by_seed[:, column]) / 2)
    rotations, translations = (np.concatenate([getattr(e, k) for e in errors]) for k in ("rotation", "translation"))
    found["rotation_median"] = _median(rotations)
    found["translation_median"] = _median(translations)
    found["failures"] = float(np.isinf(rotations).mean())
    found["keypoints"] = float(np.mean([(r.keypoints0 + r.keypoints1) / 2 for r in results]))
    found["matches"] = float(np.mean([r.matches for r in results]))
    found["inliers"] = float(np.mean([e.inliers.mean() for e in errors]))
    found["correct"] = float(np.mean([r.correct for r in results]))
    found["precision"] = float(np.mean([r.precision for r in results]))
    return found


def _median(values: np.ndarray) -> float:
    """The upper median: unlike the mean of two it exists beside infinities."""
    return float(np.sort(values)[len(values) // 2])


_COLUMNS = (
    ("AUC@5", "auc_5", ".3f"),
    ("AUC@10", "auc_10", ".3f"),
    ("+-", "auc_10_spread", ".3f"),
    ("AUC@20", "auc_20", ".3f"),
    ("rot.", "rotation_median", ".2f"),
    ("transl.", "translation_median", ".2f"),
    ("failed", "failures", ".2f"),
    ("points", "keypoints", ".0f"),
    ("matches", "matches", ".0f"),
    ("inliers", "inliers", ".0f"),
    ("correct", "correct", ".0f"),
    ("precis.", "precision", ".3f"),
)


def protocol_line(
    folder: Path, results: Results, config: PoseConfig, max_keypoints: int, matchers: Mapping[str, str]
) -> str:
    """The protocol in one line: figures without it compare with nothing."""
    count = len(next(iter(results.values())))
    size = f"longest side at most {config.resize} px" if config.resize else "images as they are"
    name = "/".join(folder.resolve().parts[-2:]).lstrip("/")
    return (
        f"{name}, {count} pairs, {size}, at most {max_keypoints} keypoints, {matched_by(matchers)}, "
        f"threshold {config.threshold:g} px, {config.seeds} orders of the matches; error: the larger of the angles of "
        f"rotation and of translation (up to sign); correct within {EPIPOLAR_THRESHOLD:g}"
    )


def format_table(
    folder: Path, results: Results, config: PoseConfig, max_keypoints: int, matchers: Mapping[str, str]
) -> str:
    """One block for each estimator, one row for each method. Angles in degrees; +- is half the range over the seeds."""
    width = max(len("method"), *(len(name) for name in results))
    lines = [protocol_line(folder, results, config, max_keypoints, matchers)]
    for estimator in config.estimators:
        lines += ["", f"estimator {estimator}"]
        lines.append(f"{'method':<{width}}" + "".join(f"  {title:>7}" for title, _, _ in _COLUMNS))
        for name, pairs in results.items():
            summary = summarize(pairs, estimator)
            lines.append(f"{name:<{width}}" + "".join(f"  {summary[key]:>7{spec}}" for _, key, spec in _COLUMNS))
    return "\n".join(lines) + "\n"


def to_json(
    folder: Path,
    results: Results,
    config: PoseConfig,
    max_keypoints: int,
    networks: Mapping[str, str],
    matchers: Mapping[str, str],
) -> str:
    """The JSON document: ``protocol``, ``metrics`` (method, estimator, measure) and ``pairs``; infinite is null."""
    document = {
        "protocol": {
            "benchmark": "pose",
            "dataset": str(folder),
            "pairs": len(next(iter(results.values()))),
            "resize": config.resize,
            "max_keypoints": max_keypoints,
            "methods": list(results),
            "matcher": "mnn",
            "matchers": dict(matchers),
            "estimators": list(config.estimators),
            "estimator_threshold_px": config.threshold,
            "seeds": config.seeds,
            "auc_thresholds_deg": list(AUC_THRESHOLDS),
            "epipolar_threshold": EPIPOLAR_THRESHOLD,
            "networks": dict(networks),
            "versions": versions(),
        },
        "metrics": {
            name: {
                estimator: {key: _number(value) for key, value in summarize(pairs, estimator).items()}
                for estimator in config.estimators
            }
            for name, pairs in results.items()
        },
        "pairs": {name: [_pair(pair) for pair in pairs] for name, pairs in results.items()},
    }
    return json.dumps(document, indent=1, allow_nan=False)


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _pair(pair: PosePairResult) -> dict[str, Any]:
    return {
        "name": pair.name,
        "keypoints0": pair.keypoints0,
        "keypoints1": pair.keypoints1,
        "matches": pair.matches,
        "correct": pair.correct,
        "errors": {
            name: {
                "rotation": [_number(value) for value in errors.rotation.tolist()],
                "translation": [_number(value) for value in errors.translation.tolist()],
                "inliers": errors.inliers.tolist(),
            }
            for name, errors in pair.errors.items()
        },
    }
