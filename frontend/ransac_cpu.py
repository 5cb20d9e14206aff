"""Robust homography estimation for one pair of images on a CPU: LO-RANSAC as in :mod:`frontend.ransac`, in NumPy.

The same method with the same constants, but samples are drawn in smaller blocks: drawing stops after the fewest that
give the wished confidence, and a block costs less than a millisecond. What is slowest is compiled, in a process that
has loaded numba's kernels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from frontend.homography_cpu import (
    GaussNewton,
    adjugate,
    from_4_points,
    good_samples,
    normalising_transform,
    unit_norm,
)
from frontend.kernels import HomographyKernels, homography_kernels
from frontend.ransac_config import KEPT, SAMPLE_SIZE, RansacConfig
from frontend.types import BoolArray, Float32Array, Float64Array
from frontend.verification_cpu import verify

# (draws, of which scored at most): what most real pairs need, then more
BLOCKS = ((256, 32), (1024, 128), (3072, 384))
REFINED = 2  # hypotheses of a block that are locally optimised
WIDENING = (3.0, 2.0, 1.5, 1.0)  # inlier thresholds of the local optimisation, relative to the final one
POLISH_STEPS = 8
POLISHED = 1e-6  # change of the unit-norm matrix below which polishing ends: some 2e-4 px
TUKEY = 5.0  # zero weight from this many times the median residual of the inliers: 5.9 sigma of Gaussian noise
POLISH_WIDEST = 3.0  # the same, at most this many thresholds
POLISH_NARROWEST = 0.05  # and at least: noise-free matches have no scale


class _Matches(NamedTuple):
    """Normalised matches."""

    points0: Float64Array  # (K, 2)
    points1: Float64Array
    unit0: float  # normalised length of a pixel of image 0
    unit1: float
    low0: Float32Array  # (3, K) homogeneous
    low1: Float32Array


def _prepare(points0: Float64Array, points1: Float64Array) -> tuple[_Matches, Float64Array, Float64Array]:
    """Normalise matches; also the normalising transforms, (3, 3) each."""
    t0, t1 = normalising_transform(points0), normalising_transform(points1)
    x0, x1 = points0 * t0[0, 0] + t0[:2, 2], points1 * t1[0, 0] + t1[:2, 2]
    lows = []
    for x in (x0, x1):
        low = np.ones((3, len(x)), np.float32)
        low[:2] = x.T
        lows.append(low)
    return _Matches(x0, x1, float(t0[0, 0]), float(t1[0, 0]), lows[0], lows[1]), t0, t1


def _sample(matches: _Matches, random: np.random.Generator, draws: int, keep: int) -> tuple[Float32Array, int]:
    """Hypotheses (N, 3, 3) of the first good minimal samples, N up to ``keep``, and how many draws that took."""
    index = random.integers(0, len(matches.points0), (SAMPLE_SIZE, draws))
    sample0, sample1 = matches.low0[:2, index], matches.low1[:2, index]  # (2, 4, draws)
    good = np.flatnonzero(good_samples(sample0, sample1))[:keep]
    drawn = int(good[-1]) + 1 if len(good) == keep else draws
    return from_4_points(sample0[:, :, good], sample1[:, :, good]), drawn


class _Found(NamedTuple):
    h: Float64Array  # (3, 3)
    cost: float
    inliers: int


def _optimise_best(
    h: Float32Array, costs: Float32Array, solver: GaussNewton, threshold: float, least: float
) -> _Found | None:
    """Refine the best few hypotheses and return the winner; None where none can beat the cost ``least``."""
    top = np.argsort(costs, kind="stable")[:REFINED]
    limit = 2 * threshold**2
    state = solver.linearise(unit_norm(h[top].astype(np.float64)))
    # what is twice as far off as the widest weights reach stays an outlier
    near: BoolArray = np.asarray((state.error <= limit * (2 * WIDENING[0]) ** 2).any(axis=0))
    far = int(near.size - near.sum())
    if far == near.size:
        return None
    if far:
        solver = solver.subset(near)
        state = solver.linearise(state.h)
    for widening in WIDENING:
        # falling to zero at the limit, so that matches do not jump in and out
        state = solver.linearise(solver.step(state, np.maximum(1 - state.error / (limit * widening**2), 0.0)))
    refined = np.minimum(state.error / limit, 1.0).sum(axis=1) + far
    winner = int(refined.argmin())
    if not refined[winner] < least:
        return None
    return _Found(state.h[winner], float(refined[winner]), int((state.error[winner] <= limit).sum()))


def _search(
    matches: _Matches, solver: GaussNewton, config: RansacConfig, kernels: HomographyKernels
) -> tuple[_Found | None, int]:
    """The best model of the matches and the samples drawn for it."""
    random = np.random.default_rng(config.seed)
    limit = math.sqrt(2.0) * config.threshold
    limits = limit * matches.unit0, limit * matches.unit1
    best: _Found | None = None
    drawn, iterations, needed, block = 0, 0, math.inf, 0
    while drawn < config.max_iterations and iterations < needed:
        draws, keep = BLOCKS[min(block, len(BLOCKS) - 1)]
        draws = min(draws, config.max_iterations - drawn)
        block, drawn = block + 1, drawn + draws
        h, used = _sample(matches, random, draws, keep)
        iterations += used
        if len(h):
            costs = kernels.score(h, matches.low0, matches.low1, limits)
            found = _optimise_best(h, costs, solver, config.threshold, best.cost if best else math.inf)
            best = found or best
        if best is not None:
            # draws until one sample is free of outliers with the wished confidence
            clean = (best.inliers / len(matches.points0)) ** SAMPLE_SIZE
            needed = 0.0 if clean >= 1 else math.log(1 - config.confidence) / math.log1p(-clean) if clean else math.inf
    return best, iterations


def _lower_median(values: Float64Array) -> float:
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])


def _polish(
    h: Float64Array, solver: GaussNewton, threshold: float, variances: Float64Array | None = None
) -> Float64Array:
    """Iteratively reweighted least squares of Sampson errors, with Tukey's biweight at the scale of the inliers'.

    Args:
        h: (3, 3) unit norm, to start from.
        solver: of K matches.
        threshold: of inliers, pixels.
        variances: (K,) of the matches' residuals, up to a common factor; all equal without.
    """
    limit = 2 * threshold**2
    # what is twice as far off as the widest weights reach stays without one
    near: BoolArray = solver.linearise(h[None]).error[0] <= limit * (2 * POLISH_WIDEST) ** 2
    if not near.any():
        return h
    solver = solver.subset(near)
    variances = np.ones(len(near)) if variances is None else variances
    variances = variances[near]
    # of the Sampson error, which is a quarter of the symmetric one where the images have one scale
    limit = threshold**2 / 2
    state = solver.sampson(h[None])
    for _ in range(POLISH_STEPS):
        inside: BoolArray = state.error[0] <= limit
        if not inside.any():
            break
        relative = variances / _lower_median(variances[inside])
        error = state.error / relative
        median = _lower_median(error[0, inside])
        cut = min(max(median * TUKEY**2, limit * POLISH_NARROWEST**2), limit * POLISH_WIDEST**2)
        updated = solver.sampson_step(state, np.square(np.maximum(1 - error / cut, 0.0)) / relative)
        change = float(np.abs(updated - state.h).max())
        state = solver.sampson(updated)
        if change < POLISHED:
            break
    polished: Float64Array = state.h[0]
    return polished


def _finish(
    h: Float64Array,
    matches: _Matches,
    solver: GaussNewton,
    t0: Float64Array,
    t1: Float64Array,
    config: RansacConfig,
) -> tuple[Float64Array | None, BoolArray]:
    """Verify a model between normalised points; H in pixels with H[2, 2] = 1, or None, and its inliers (K,)."""
    points, units = (matches.points0, matches.points1), (matches.unit0, matches.unit1)
    inliers, ok = verify(h, points, units, config.threshold, config.min_inliers, solver)
    pixels = unit_norm(adjugate(t1) @ h @ t0)
    if not ok or abs(pixels[2, 2]) <= 1e-12:  # or the origin maps to infinity and H[2, 2] cannot be 1
        return None, np.zeros_like(inliers)
    return pixels / pixels[2, 2], inliers


def ransac(
    points0: Float64Array, points1: Float64Array, config: RansacConfig, variances: Float64Array | None = None
) -> tuple[Float64Array | None, BoolArray, int]:
    """Estimate a homography by LO-RANSAC.

    Args:
        points0: (K, 2) float64, finite, K >= 4; matched points of image 0, pixels.
        points1: (K, 2), of image 1.
        config: settings.
        variances: (K,) of the matches' residuals, positive, up to a common factor; all equal without.

    Returns:
        H (3, 3) float64 with H[2, 2] = 1, or None; inliers (K,) bool, all False without a model; and the minimal
        samples drawn.
    """
    kernels = homography_kernels()
    matches, t0, t1 = _prepare(points0, points1)
    solver = kernels.GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    found, iterations = _search(matches, solver, config, kernels)
    if found is None:
        return None, np.zeros(len(points0), np.bool_), iterations
    polished = _polish(found.h, solver, config.threshold, variances)
    H, inliers = _finish(polished, matches, solver, t0, t1, config)
    if inliers.sum() < KEPT * found.inliers:
        # rarely: the last fit may follow an exact few, which do not determine it
        before = _finish(found.h, matches, solver, t0, t1, config)
        if inliers.sum() < KEPT * before[1].sum():
            H, inliers = before
    return H, inliers, iterations


def opencv(
    points0: Float64Array, points1: Float64Array, config: RansacConfig
) -> tuple[Float64Array | None, BoolArray, int]:
    """The same, the model by OpenCV's USAC_MAGSAC."""
    nothing = np.zeros(len(points0), np.bool_)
    found, _ = cv2.findHomography(
        points0,
        points1,
        cv2.USAC_MAGSAC,
        config.threshold,
        maxIters=config.max_iterations,
        confidence=config.confidence,
    )
    if found is None or not np.isfinite(found).all():
        return None, nothing, 0
    matches, t0, t1 = _prepare(points0, points1)
    h = unit_norm(t1 @ np.asarray(found, np.float64) @ adjugate(t0))
    # oriented by the matches that it fits, wherever they are
    solver = homography_kernels().GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    fits = (solver.linearise(np.stack((h, -h))).error <= 2 * config.threshold**2).sum(axis=1)
    return *_finish(-h if fits[1] > fits[0] else h, matches, solver, t0, t1, config), 0
