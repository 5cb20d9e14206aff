"""Synthetic matches and plain references shared by the tests of homography estimation."""

from __future__ import annotations

import math

import numpy as np
import torch

TURNED = np.array([[0.9, -0.25, 60.0], [0.2, 1.1, -30.0], [2e-4, -1e-4, 1.0]])


def project(h: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Plain loop: (N, 2) points mapped by a homography."""
    out = []
    for x, y in points:
        u, v, w = (row[0] * x + row[1] * y + row[2] for row in h)
        out.append((u / w, v / w))
    return np.array(out)


def symmetric_errors(h: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Squared error of matches in both images: d(x1, H x0)^2 + d(x0, H^-1 x1)^2 (Hartley & Zisserman, eq. 4.7)."""
    forward = ((project(h, points0) - points1) ** 2).sum(1)
    errors: np.ndarray = forward + ((project(np.linalg.inv(h), points1) - points0) ** 2).sum(1)
    return errors


def sampson_covariances(h: np.ndarray, points0: np.ndarray) -> np.ndarray:
    """I + A A^T for each point, A being the derivative of its image under h, by central differences: (N, 2, 2)."""
    step = 1e-4
    columns = [(project(h, points0 + d) - project(h, points0 - d)) / (2 * step) for d in step * np.eye(2)]
    derivative = np.stack(columns, axis=2)
    covariances: np.ndarray = np.eye(2) + derivative @ derivative.transpose(0, 2, 1)
    return covariances


def reference_dlt(points0: np.ndarray, points1: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Normalised DLT in float64 by the SVD of the whole design matrix (Hartley & Zisserman, alg. 4.2)."""
    weights = np.ones(len(points0)) if weights is None else weights

    def normaliser(points: np.ndarray) -> np.ndarray:
        centre = np.average(points, axis=0, weights=weights)
        scale = math.sqrt(2 / np.average(((points - centre) ** 2).sum(1), weights=weights))
        return np.array([[scale, 0, -scale * centre[0]], [0, scale, -scale * centre[1]], [0, 0, 1]])

    t0, t1 = normaliser(points0), normaliser(points1)
    rows = []
    for (x, y), (u, v), weight in zip(project(t0, points0), project(t1, points1), weights, strict=True):
        rows.append(math.sqrt(weight) * np.array([x, y, 1, 0, 0, 0, -u * x, -u * y, -u]))
        rows.append(math.sqrt(weight) * np.array([0, 0, 0, x, y, 1, -v * x, -v * y, -v]))
    h = np.linalg.inv(t1) @ np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3) @ t0
    return h / h[2, 2]


def scene(
    count: int = 120, outliers: float = 0.4, noise: float = 0.5, seed: int = 0, h: np.ndarray = TURNED
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches under h, the last of them outliers: points0, points1, inlier mask."""
    rng = np.random.default_rng(seed)
    points0 = rng.uniform(0, 1, (count, 2)) * [639, 479]
    points1 = project(h, points0) + rng.normal(0, noise, (count, 2))
    good = np.arange(count) < round(count * (1 - outliers))
    points1[~good] = rng.uniform(0, 1, (int((~good).sum()), 2)) * [639, 479]
    return points0, points1, good


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array)[None] for array in arrays]
