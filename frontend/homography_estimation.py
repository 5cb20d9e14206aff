"""The homography between matched points of two images, by one call; torch is loaded only for a GPU."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from frontend import ransac_cpu
from frontend.device import Device, pick_name
from frontend.errors import ConfigError
from frontend.ransac_config import FARTHEST, SAMPLE_SIZE, RansacConfig, as_matches, as_variances
from frontend.types import BoolArray, Features, Float64Array, Homography, Matches, Status

LEAST_SIGMA = 1e-2
"""Standard deviation of a match, pixels, below which none is taken for more exact: no image is."""


def estimate_homography(
    points0: ArrayLike,
    points1: ArrayLike,
    *,
    sigmas: ArrayLike | None = None,
    method: Literal["ransac", "opencv"] = "ransac",
    threshold: float = 3.0,
    confidence: float = 0.999,
    max_iterations: int = 10_000,
    min_inliers: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> Homography:
    """Estimate the homography between matched points of two images.

    Both methods share the definition of an inlier and the checks of
    :func:`frontend.verification.verify_homography`, so that unrelated images give NO_MODEL with either. On a CPU the
    last digits depend on whether the process has loaded compiled kernels, as one with an extractor has where numba is
    installed; of hypotheses that are equally good it may take another one then.

    Args:
        points0: (M, 2) matched points of image 0, pixels.
        points1: (M, 2) of image 1. A match with a coordinate that is not finite, or beyond ``FARTHEST``, is an outlier.
        sigmas: (M,) standard deviations of the matches' positions, of which only the ratios matter, such as those of
            :func:`match_sigmas`: exact matches count for more. What is an inlier is still a matter of pixels. "opencv"
            has no use for them.
        method: "ransac" is LO-RANSAC: :func:`frontend.ransac_cpu.ransac` on a CPU, and
            :func:`frontend.ransac.batched_ransac` on another device; "opencv" is USAC_MAGSAC, whose random generator
            OpenCV seeds with a constant: it is deterministic and ignores seed and device.
        threshold: largest RMS of an inlier's two transfer errors, pixels.
        confidence: probability of having drawn one outlier-free sample at which drawing stops, in (0, 1).
        max_iterations: samples drawn at most.
        min_inliers: at least 4.
        seed: of the random generator.
        device: where it runs: "auto", "cpu", "cuda" or "cuda:N".

    Returns:
        The homography: OK; TOO_FEW_MATCHES below four matches; or NO_MODEL.

    Raises:
        ShapeError: points0 and points1 are not both (M, 2) and real, or sigmas not (M,) and positive.
        ConfigError: a setting is out of its range, or there is no such device.
    """
    config = RansacConfig(threshold, confidence, max_iterations, min_inliers, seed)
    if method not in ("ransac", "opencv"):
        raise ConfigError(f"homography method is '{method}'; expected 'ransac' or 'opencv'")
    # at once: a name that is wrong is so with few matches, too
    there = pick_name(device) if method == "ransac" else Device("cpu")
    x0, x1 = as_matches(points0, points1)
    variances = None if sigmas is None or method == "opencv" else as_variances(sigmas, len(x0))
    # also False for NaN
    finite: BoolArray = np.asarray((np.abs(np.hstack((x0, x1))) <= FARTHEST).all(axis=1))
    inliers = np.zeros(len(x0), dtype=np.bool_)
    if finite.sum() < SAMPLE_SIZE:
        return Homography(None, inliers, Status.TOO_FEW_MATCHES)
    if variances is not None:
        variances = variances[finite]
    if method == "opencv":
        H, found, _ = ransac_cpu.opencv(x0[finite], x1[finite], config)
    elif there.type == "cpu":
        H, found, _ = ransac_cpu.ransac(x0[finite], x1[finite], config, variances)
    else:
        H, found = _on_device(x0[finite], x1[finite], config, variances, there)
    if H is None:
        return Homography(None, inliers, Status.NO_MODEL)
    inliers[finite] = found
    return Homography(H, inliers, Status.OK)


def match_sigmas(features0: Features, features1: Features, matches: Matches) -> Float64Array | None:
    """Standard deviations (M,) of matches' positions along an axis, pixels; None where an extractor has none.

    Those of both keypoints, which are independent: ``sqrt(sigma0^2 + sigma1^2)``.
    """
    if features0.sigmas is None or features1.sigmas is None:
        return None
    first, second = matches.matches.T
    together = np.hypot(features0.sigmas[first].astype(np.float64), features1.sigmas[second])
    result: Float64Array = np.maximum(together, LEAST_SIGMA)
    return result


def _on_device(
    points0: Float64Array,
    points1: Float64Array,
    config: RansacConfig,
    variances: Float64Array | None,
    device: Device,
) -> tuple[Float64Array | None, BoolArray]:
    import torch

    from frontend.ransac import batched_ransac

    there = str(device)
    batch0, batch1 = (torch.from_numpy(points)[None].to(there) for points in (points0, points1))
    weights = None if variances is None else torch.from_numpy(variances)[None].to(there)
    result = batched_ransac(batch0, batch1, torch.ones_like(batch0[..., 0], dtype=torch.bool), config, weights)
    if not bool(result.ok[0]):
        return None, np.zeros(len(points0), np.bool_)
    return result.H[0].cpu().numpy(), result.inliers[0].cpu().numpy()
