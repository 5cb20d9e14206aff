"""The search of LO-RANSAC for homographies: sampling, scoring, local optimisation and polish, batched in PyTorch.

This is the engine room of :mod:`frontend.ransac`, which describes the method. All functions work on normalised
matches, B sets at a time, on the device of those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frontend.homography_solver import (
    MIN_DEPTH,
    GaussNewton,
    adjugate,
    homogeneous,
    homography_from_4_points,
    is_good_sample,
    normalising_transform,
    unit_norm,
)
from frontend.ransac_config import SAMPLE_SIZE, RansacConfig

# (draws, of which scored at most): the first block is small because it suffices for most real pairs. Only about one
# sample of random matches in ten survives the orientation test.
FIRST_BLOCK = (1024, 128)
BLOCK = (3072, 384)
REFINED = 4  # hypotheses of a block that are locally optimised
WIDENING = (3.0, 2.0, 1.5, 1.0)  # inlier thresholds of the local optimisation, relative to the final one
POLISH_STEPS = 8
TUKEY = 5.0  # zero weight from this many times the median residual of the inliers: 5.9 sigma of Gaussian noise
POLISH_WIDEST = 3.0  # the same, at most this many thresholds
POLISH_NARROWEST = 0.05  # and at least: noise-free matches have no scale
# Hypotheses x matches scored at once, each taking 24 bytes: what a CPU's cache holds, or 400 MiB on a GPU.
SCORE_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 24}


@dataclass(frozen=True, eq=False)
class NormalisedMatches:
    """Valid matches first, normalised; everything has the batch as its first dimension."""

    points0: Tensor  # (B, K, 2) float64, 0 for padding
    points1: Tensor  # (B, K, 2)
    weights: Tensor  # (B, K) float64, 1 or 0 for padding
    variances: Tensor  # (B, K) float64 of their residuals, up to a common factor
    unit0: Tensor  # (B,) float64, normalised length of a pixel of image 0
    unit1: Tensor  # (B,)
    count: Tensor  # (B,) int64
    low0: Tensor  # (B, K, 2) float32 copies, for sampling
    low1: Tensor
    rows_forward: Tensor  # (B, 9, 3K) float32, see _residual_rows
    rows_backward: Tensor

    def select(self, items: Tensor) -> NormalisedMatches:
        """The matches of some items (N,) int64 of the batch."""
        if len(items) == len(self.count):
            return self
        return NormalisedMatches(**{name: value[items] for name, value in vars(self).items()})


def _residual_rows(source: Tensor, target: Tensor, weights: Tensor, limit: Tensor) -> Tensor:
    """What maps the nine entries of H to ``(u - w x')``, ``(v - w y')`` and ``w`` of all matches: one product.

    Args:
        source: (B, K, 2) float32, normalised.
        target: (B, K, 2).
        weights: (B, K), 0 makes a match's rows zero, hence its error.
        limit: (B,) length that the two residuals are divided by, in the unit of target.

    Returns:
        (B, 9, 3K) float32.
    """
    x = homogeneous(source) * weights[..., None]
    zero = torch.zeros_like(x)
    scale = limit.reciprocal()[:, None, None]
    first = torch.cat((x, zero, -target[..., :1] * x), -1) * scale
    second = torch.cat((zero, x, -target[..., 1:] * x), -1) * scale
    return torch.cat((first, second, torch.cat((zero, zero, x), -1)), 1).transpose(1, 2).contiguous()


def prepare(
    points0: Tensor, points1: Tensor, valid: Tensor, threshold: float, variances: Tensor | None = None
) -> tuple[NormalisedMatches, Tensor, Tensor]:
    """Normalise valid matches; also the normalising transforms, (B, 3, 3) each."""
    weights = valid.double()
    sides = []
    for points in (points0, points1):
        transform = normalising_transform(points, weights)
        normalised = points * transform[:, None, :1, 0] + transform[:, None, :2, 2]
        sides.append((transform, normalised * weights[..., None], transform[:, 0, 0]))
    (t0, x0, unit0), (t1, x1, unit1) = sides
    low0, low1, low_weights = x0.float(), x1.float(), weights.float()
    limit = math.sqrt(2.0) * threshold
    forward = _residual_rows(low0, low1, low_weights, (unit1 * limit).float())
    backward = _residual_rows(low1, low0, low_weights, (unit0 * limit).float())
    variances = torch.ones_like(weights) if variances is None else variances
    count = valid.sum(1)
    return NormalisedMatches(x0, x1, weights, variances, unit0, unit1, count, low0, low1, forward, backward), t0, t1


def _score(h: Tensor, matches: NormalisedMatches) -> Tensor:
    """MSAC cost (B, N) of hypotheses (B, N, 3, 3) in float32: the sum of min(error / limit, 1) over the matches."""
    batch, count = h.shape[:2]
    size = matches.rows_forward.shape[2] // 3
    pairs = (
        (h.flatten(-2), matches.rows_forward),
        (unit_norm(adjugate(h)).flatten(-2), matches.rows_backward),
    )
    chunk = max(1, SCORE_ELEMENTS["cuda" if h.is_cuda else "cpu"] // max(1, batch * size))
    costs = []
    for start in range(0, count, chunk):
        total = None
        for flat, rows in pairs:
            residual_u, residual_v, depth = torch.bmm(flat[:, start : start + chunk], rows).tensor_split(3, 2)
            error = residual_u.mul_(residual_u).addcmul_(residual_v, residual_v)
            depth = depth.clamp_(min=MIN_DEPTH)
            error.div_(depth.mul_(depth))
            total = error if total is None else total.add_(error)
        if total is not None:
            costs.append(total.clamp_(max=1.0).sum(-1))
    return torch.cat(costs, 1)


def _sample(matches: NormalisedMatches, uniform: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses of minimal samples.

    Args:
        matches: B sets of matches.
        uniform: (D, 4) float32 in [0, 1), the same for each set.
        keep: samples to keep at most.

    Returns:
        h (B, N, 3, 3) float32 of the first N good samples, used (B, N) bool where there was one, and how many draws
        (B,) int64 that took.
    """
    draws, keep = len(uniform), min(keep, len(uniform))
    count = matches.count[:, None, None]
    index = (uniform * count).long().minimum(count - 1)  # (B, D, 4)
    item = torch.arange(len(count), device=index.device)[:, None]
    sample0, sample1 = matches.low0[item[..., None], index], matches.low1[item[..., None], index]
    good = is_good_sample(sample0, sample1)
    # unique keys make topk a stable selection of the first good ones
    rank, chosen = torch.where(good, torch.arange(draws, 0, -1, device=good.device), 0).topk(keep, dim=1)
    used = rank > 0
    drawn = torch.where(used[:, -1], chosen[:, -1] + 1, draws)
    return homography_from_4_points(sample0[item, chosen], sample1[item, chosen]), used, drawn


def _optimise_best(
    h: Tensor, used: Tensor, matches: NormalisedMatches, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Score hypotheses, refine the best few and return the winner: h (B, 3, 3), cost (B,), inliers (B,)."""
    cost = torch.where(used, _score(h, matches), torch.inf)
    top = cost.topk(min(REFINED, cost.shape[1]), dim=1, largest=False).indices  # (B, T)
    item = torch.arange(len(h), device=h.device)
    identity = torch.eye(3, dtype=torch.float64, device=h.device)
    best = torch.where(used[item[:, None], top][..., None, None], h[item[:, None], top].double(), identity)
    solver = GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    weights = matches.weights[:, None]
    limit = 2 * threshold**2
    state = solver.linearise(unit_norm(best))
    for widening in WIDENING:
        # falling to zero at the limit, so that matches do not jump in and out
        inside = (1 - state.error / (limit * widening**2)).clamp(min=0)
        state = solver.linearise(solver.step(state, inside * weights))
    refined, winner = ((state.error / limit).clamp(max=1) * weights).sum(-1).min(1)
    inliers = ((state.error[item, winner] <= limit) & (matches.weights > 0)).sum(-1)
    return state.h[item, winner], refined, inliers


def search(matches: NormalisedMatches, config: RansacConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The best model (B, 3, 3) float64 of each set of matches, its inliers and the samples drawn, (B,) int64 each."""
    device, total = matches.count.device, len(matches.count)
    generator = torch.Generator(device).manual_seed(config.seed)
    h = torch.eye(3, dtype=torch.float64, device=device).repeat(total, 1, 1)
    cost = torch.full((total,), torch.inf, dtype=torch.float64, device=device)
    inliers = torch.zeros(total, dtype=torch.int64, device=device)
    iterations = torch.zeros(total, dtype=torch.int64, device=device)
    start = 0
    wanted = matches.count >= SAMPLE_SIZE
    while start < config.max_iterations:
        active = wanted.nonzero()[:, 0]  # the only read-back of a block
        if len(active) == 0:
            break
        draws, keep = FIRST_BLOCK if start == 0 else BLOCK
        draws = min(draws, config.max_iterations - start)
        uniform = torch.rand(draws, SAMPLE_SIZE, generator=generator, device=device)
        start += draws
        some = matches.select(active)
        sampled, used, drawn = _sample(some, uniform, keep)
        found, found_cost, found_inliers = _optimise_best(sampled, used, some, config.threshold)
        better = found_cost < cost[active]
        cost[active] = torch.where(better, found_cost, cost[active])
        inliers[active] = torch.where(better, found_inliers, inliers[active])
        h[active] = torch.where(better[:, None, None], found, h[active])
        iterations[active] += drawn
        # Draws until one sample is free of outliers with the wished confidence. At float64's limits log1p gives
        # -0 or -inf, hence inf or 0 draws.
        clean = (inliers / matches.count.clamp(min=1)).double() ** SAMPLE_SIZE
        needed = math.log(1 - config.confidence) / torch.log1p(-clean)
        wanted = wanted & (iterations < needed)
    return h, inliers, iterations


def _masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """Lower median (..., 1) of (..., K) values where mask; inf where the mask is empty."""
    ordered = torch.where(mask, values, torch.inf).sort(-1).values
    return ordered.gather(-1, ((mask.sum(-1, keepdim=True) - 1) // 2).clamp(min=0))


def polish(h: Tensor, matches: NormalisedMatches, threshold: float) -> Tensor:
    """Iteratively reweighted least squares of Sampson errors, with Tukey's biweight at the scale of the inliers'.

    The threshold decides what is an inlier, not how far the noise reaches: weights that follow the residuals use the
    tail beyond a tight threshold, and are not led astray by near misses within a loose one.
    """
    limit = threshold**2 / 2
    solver = GaussNewton(matches.points0, matches.points1, matches.unit0, matches.unit1)
    # what is twice as far off as the widest weights reach stays without one
    near = solver.linearise(h[:, None]).error <= 2 * threshold**2 * (2 * POLISH_WIDEST) ** 2
    state = solver.sampson(h[:, None])
    valid = (matches.weights[:, None] > 0) & near
    variances = matches.variances[:, None]
    for _ in range(POLISH_STEPS):
        inside = valid & (state.error <= limit)
        typical = _masked_median(variances, inside)
        relative = variances / torch.where(typical.isfinite(), typical, 1.0)
        error = state.error / relative
        cut = (_masked_median(error, inside) * TUKEY**2).clamp(
            min=limit * POLISH_NARROWEST**2, max=limit * POLISH_WIDEST**2
        )
        weights = (1 - error / cut).clamp(min=0).square() / relative
        state = solver.sampson(solver.sampson_step(state, torch.where(valid, weights, 0.0)))
    return state.h[:, 0]
