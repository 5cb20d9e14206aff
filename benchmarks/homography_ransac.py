"""Robust homography estimation on synthetic matches: the batched estimator beside OpenCV's USAC_MAGSAC.

Each trial is a random view change of a 640 x 480 image: corners moved by up to 15 % of the sides, then a rotation of
up to 34 degrees, a scale of 0.6 to 1.7 and a shift of up to 15 %; at least 30 % of the image stays in view. Inliers
are uniform in the overlap, with Gaussian noise of 1 px per coordinate in image 1 (``--noise both``: in both images);
outliers are uniform in both images. Both methods see the same matches, the same threshold (3 px), confidence (0.999)
and largest number of samples (10,000). OpenCV's model is taken as it comes, without this library's checks.

Accuracy is the mean distance of the image's four corners under the estimated and the true homography; a failure is
a corner error above ``--failure`` px (5), or no model. Times are medians of wall-clock time per trial.

    python benchmarks/homography_ransac.py --trials 1000 --json results.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from frontend.homography import corner_error, solve_corners, warp_points
from frontend.kernels import load_kernels
from frontend.ransac import BatchedHomography, batched_ransac
from frontend.ransac_config import RansacConfig
from frontend.ransac_cpu import ransac

SIZE = (640, 480)
CONFIG = RansacConfig()
Array = np.ndarray


@dataclass(frozen=True)
class Trial:
    """Matches (M, 2) float64 in pixels, the homography (3, 3) behind the inliers, and which these are (M,)."""

    points0: Array
    points1: Array
    H: Array
    inliers: Array


@dataclass(frozen=True)
class Row:
    """One line of the table; errors in pixels, times in milliseconds per trial."""

    outliers: float
    trials: int
    opencv_error: float
    ransac_error: float
    opencv_failures: float
    ransac_failures: float
    opencv_ms: float
    ransac_single_ms: float
    ransac_batched_ms: float


def _inside(points: Array) -> Array:
    inside: Array = np.all((points >= 0) & (points <= np.array(SIZE) - 1), axis=1)
    return inside


def _uniform(rng: np.random.Generator, count: int) -> Array:
    points: Array = rng.uniform(0, 1, (count, 2)) * (np.array(SIZE) - 1)
    return points


def random_homography(rng: np.random.Generator) -> Array:
    """A view change as described above, (3, 3) float64."""
    extent = np.array(SIZE, dtype=np.float64) - 1
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * extent
    while True:
        angle, scale = rng.uniform(-0.6, 0.6), np.exp(rng.uniform(np.log(0.6), np.log(1.7)))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = corners + rng.uniform(-0.15, 0.15, (4, 2)) * extent
        moved = (moved - extent / 2) @ turn.T + extent / 2 + rng.uniform(-0.15, 0.15, 2) * extent
        if not cv2.isContourConvex(moved.astype(np.float32)):
            continue
        homography = solve_corners(corners, moved)
        if _inside(warp_points(_uniform(rng, 400), homography)).mean() > 0.3:
            return homography


def make_trial(seed: int, outliers: float, matches: tuple[int, int], *, noise_in_both: bool = False) -> Trial:
    """The trial of a seed.

    Args:
        seed: of all that is random in it.
        outliers: fraction of the matches, in [0, 1).
        matches: smallest and largest number of matches; uniform.
        noise_in_both: whether the points of image 0 are noisy too.
    """
    rng = np.random.default_rng(seed)
    homography = random_homography(rng)
    count = int(rng.integers(matches[0], matches[1] + 1))
    good = round(count * (1 - outliers))
    points0 = np.zeros((0, 2))
    while len(points0) < good:
        points = _uniform(rng, 4 * count)
        points0 = np.concatenate((points0, points[_inside(warp_points(points, homography))]))
    points0 = points0[:good]
    points1 = warp_points(points0, homography) + rng.normal(0, 1, (good, 2))
    if noise_in_both:
        points0 = points0 + rng.normal(0, 1, (good, 2))
    points0 = np.concatenate((points0, _uniform(rng, count - good)))
    points1 = np.concatenate((points1, _uniform(rng, count - good)))
    order = rng.permutation(count)
    return Trial(points0[order], points1[order], homography, (np.arange(count) < good)[order])


def stack(trials: list[Trial], device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trials as a padded batch: points (B, K, 2) float32 twice and the valid mask (B, K)."""
    size = max(len(trial.points0) for trial in trials)
    points = torch.zeros(2, len(trials), size, 2)
    valid = torch.zeros(len(trials), size, dtype=torch.bool)
    for item, trial in enumerate(trials):
        count = len(trial.points0)
        points[0, item, :count] = torch.from_numpy(trial.points0)
        points[1, item, :count] = torch.from_numpy(trial.points1)
        valid[item, :count] = True
    return points[0].to(device), points[1].to(device), valid.to(device)


def errors_of(result: BatchedHomography, trials: list[Trial]) -> list[float]:
    """Corner errors, infinite where there is no model."""
    homographies, ok = result.H.cpu().numpy(), result.ok.cpu().numpy()
    return [
        corner_error(homographies[item], trial.H, SIZE) if ok[item] else np.inf for item, trial in enumerate(trials)
    ]


def run_opencv(trial: Trial) -> float:
    """Corner error of OpenCV's USAC_MAGSAC with the same settings."""
    found: Array | None
    found, _ = cv2.findHomography(
        trial.points0,
        trial.points1,
        cv2.USAC_MAGSAC,
        CONFIG.threshold,
        maxIters=CONFIG.max_iterations,
        confidence=CONFIG.confidence,
    )
    return np.inf if found is None else corner_error(np.asarray(found), trial.H, SIZE)


def timed(function: Callable[[], object], device: str) -> float:
    """Wall-clock milliseconds of one call, the device's work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def run_level(
    outliers: float,
    trials: int,
    matches: tuple[int, int],
    *,
    noise_in_both: bool = False,
    failure: float = 5.0,
    batch: int = 32,
    device: str = "cpu",
    timed_trials: int = 100,
) -> Row:
    """Both methods on the trials of one outlier level."""
    cases = [make_trial(seed, outliers, matches, noise_in_both=noise_in_both) for seed in range(trials)]
    opencv_errors: list[float] = []
    opencv_ms = [timed(lambda case=case: opencv_errors.append(run_opencv(case)), "cpu") for case in cases]  # type: ignore[misc]
    for warm_up in (cases[:1], cases[:batch]):
        batched_ransac(*stack(warm_up, device), CONFIG)
    ransac_errors: list[float] = []
    batched_ms, single_ms = [], []
    for start in range(0, trials, batch):
        some = cases[start : start + batch]
        inputs = stack(some, device)
        results: list[BatchedHomography] = []
        batched_ms.append(timed(lambda: results.append(batched_ransac(*inputs, CONFIG)), device) / len(some))  # noqa: B023
        ransac_errors += errors_of(results[0], some)
    for case in cases[:timed_trials]:
        if device == "cpu":  # what one pair gets there; the same models, see tests/test_ransac_cpu.py
            single_ms.append(timed(lambda: ransac(case.points0, case.points1, CONFIG), device))  # noqa: B023
            continue
        inputs = stack([case], device)
        single_ms.append(timed(lambda: batched_ransac(*inputs, CONFIG), device))  # noqa: B023
    return Row(
        outliers=outliers,
        trials=trials,
        opencv_error=float(np.median(opencv_errors)),
        ransac_error=float(np.median(ransac_errors)),
        opencv_failures=float(np.mean(np.array(opencv_errors) > failure)),
        ransac_failures=float(np.mean(np.array(ransac_errors) > failure)),
        opencv_ms=float(np.median(opencv_ms)),
        ransac_single_ms=float(np.median(single_ms)),
        ransac_batched_ms=float(np.median(batched_ms)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="per outlier level")
    parser.add_argument("--matches", type=int, nargs=2, default=(200, 500), metavar=("MIN", "MAX"))
    parser.add_argument("--outliers", type=float, nargs="+", default=(0.3, 0.5, 0.7, 0.8))
    parser.add_argument("--noise", choices=("second", "both"), default="second", help="where the 1 px noise is")
    parser.add_argument("--failure", type=float, default=5.0, help="corner error of a failure, pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    parser.add_argument("--json", type=Path, help="write settings and rows here")
    args = parser.parse_args()
    load_kernels()  # as an extractor does
    torch.set_num_threads(args.threads)
    protocol = {
        "trials": args.trials,
        "matches": list(args.matches),
        "noise": f"1 px, {args.noise}",
        "failure_px": args.failure,
        "batch": args.batch,
        "threads": args.threads,
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else platform.machine(),
        "config": asdict(CONFIG),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }
    print(json.dumps(protocol))
    print("outliers | median corner error, px | failures          | ms per trial")
    print("         | opencv  ours   ratio    | opencv   ours     | opencv  ours, batch 1  ours, batched")
    rows = []
    for outliers in args.outliers:
        row = run_level(
            outliers,
            args.trials,
            tuple(args.matches),
            noise_in_both=args.noise == "both",
            failure=args.failure,
            batch=args.batch,
            device=args.device,
        )
        rows.append(row)
        ratio = row.ransac_error / row.opencv_error
        print(
            f"  {row.outliers:4.0%}   | {row.opencv_error:6.3f} {row.ransac_error:6.3f}  {ratio:5.3f}    "
            f"| {row.opencv_failures:6.2%}  {row.ransac_failures:6.2%}    "
            f"| {row.opencv_ms:6.2f}  {row.ransac_single_ms:12.2f}  {row.ransac_batched_ms:13.2f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({**protocol, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
