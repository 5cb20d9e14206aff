"""How likely a model's inliers are an accident; needs no torch. See :mod:`frontend.verification`."""

from __future__ import annotations

import math

import numpy as np

from frontend.types import Float64Array

# Expected number of accidental models that is tolerated. Far below 1, because real keypoints are not spread uniformly:
# they lie in clusters and along edges, which makes accidents likelier than the formula says.
MAX_LOG10_NFA = -4.0

# A match as one number, to count different ones: factors of its normalised x0, y0, x1 and y1, without simple ratios;
# and the largest difference between two that are the same, which rounding makes.
KEY = (1.0, 1.7724538509, 0.5772156649, 2.6651441427)
SAME = 1e-9

MIDDLE = (0.02, 0.98)
"""Quantiles of the coordinates between which matches are said to lie."""


def middle_extent(points: Float64Array) -> Float64Array:
    """Width and height of the area that points lie in, but for the outermost on each side.

    A single one far away would make the area so large that accidents seemed impossible.

    Args:
        points: (N, 2) float64, at least one.

    Returns:
        (2,) float64: between the quantiles ``MIDDLE``, and as much larger as that leaves out.
    """
    ordered = np.sort(points.T, axis=1)  # a quarter of the time of np.quantile
    ends = []
    for quantile in MIDDLE:
        below, part = divmod(quantile * (len(points) - 1), 1.0)
        low = ordered[:, int(below)]
        ends.append(low + part * (ordered[:, min(int(below) + 1, len(points) - 1)] - low))
    extent: Float64Array = (ends[1] - ends[0]) / (MIDDLE[1] - MIDDLE[0])
    return extent


def log10_false_alarms(matches: int, inliers: int, probability: float, sample: int, models: int = 1) -> float:
    """:func:`frontend.verification.log10_false_alarms` of one model.

    Args:
        matches: number n of matches.
        inliers: number k of those that fit the model.
        probability: chance that a random match fits a given model, in (0, 1].
        sample: matches that define a model.
        models: models that one sample may give.

    Returns:
        log10 of ``models (n - sample) C(n, k) C(k, sample) p^(k - sample)``; inf for k <= sample.
    """
    n, k = matches, inliers
    if k <= sample:
        return math.inf
    # C(n, k) C(k, s) = n! / ((n - k)! (k - s)! s!)
    choices = math.lgamma(n + 1) - math.lgamma(n - k + 1) - math.lgamma(k - sample + 1) - math.lgamma(sample + 1)
    log = choices + math.log(models) + math.log(max(n - sample, 1)) + (k - sample) * math.log(probability)
    return log / math.log(10)
