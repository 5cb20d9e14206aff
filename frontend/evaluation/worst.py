"""Pictures of the pairs on which a method does worst, for model cards."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2

from frontend.atomic import atomic_write
from frontend.evaluation import metrics
from frontend.evaluation.homography import CORRECT_PX, MMA_THRESHOLDS, BenchmarkResult, PairResult, match_and_fit
from frontend.evaluation.methods import Method
from frontend.types import MatchResult, Status
from frontend.viz import draw_matches


def worst_pairs(results: list[PairResult], count: int) -> list[PairResult]:
    """The pairs with the largest corner errors, worst first; those without a homography by their matches within 3 px.

    Args:
        results: of one method.
        count: how many, at most.
    """

    def badness(result: PairResult) -> tuple[float, float]:
        correct = result.matches * float(result.matching_accuracy[MMA_THRESHOLDS == CORRECT_PX][0])
        return (-result.corner_error, correct)

    return sorted(results, key=badness)[:count]


def draw_worst(result: BenchmarkResult, methods: Mapping[str, Method], count: int, folder: Path) -> list[Path]:
    """Draw each method's worst pairs: matches within 3 px of the truth in green, others in red.

    Args:
        result: of the run.
        methods: those of the run, by name.
        count: pictures of each method, at most.
        folder: made if missing. A file's name is the method's, the rank, the mean corner error and the pair's.

    Returns:
        The files.
    """
    chosen = {name: worst_pairs(result.pairs[name], count) for name in methods}
    wanted = {pair.name for pairs in chosen.values() for pair in pairs}
    files = []
    for pair in result.dataset:
        if pair.name not in wanted:
            continue
        for name, method in methods.items():
            rank = next((n for n, found in enumerate(chosen[name], 1) if found.name == pair.name), 0)
            if not rank:
                continue
            features = method(pair.image0), method(pair.image1)
            matches, geometry = match_and_fit(*features, result.config, result.matchers.get(name, "mnn"))
            errors = metrics.match_errors(features[0].keypoints, features[1].keypoints, matches.matches, pair.H)
            shown = replace(geometry, inliers=errors <= CORRECT_PX, status=Status.OK)
            picture = draw_matches(pair.image0, pair.image1, MatchResult(*features, matches, shown))
            error = chosen[name][rank - 1].corner_error
            size = f"{error:.1f}px" if math.isfinite(error) else "none"
            label = re.sub(r"[^\w.+-]+", "-", name.removesuffix(".safetensors")).strip("-.")[-100:]
            stem = f"{label}_{rank:02}_{size}_{pair.name}".replace("/", "-")
            files.append(folder / f"{stem}.jpg")
            atomic_write(files[-1], cv2.imencode(".jpg", picture)[1].tobytes())
    return files
