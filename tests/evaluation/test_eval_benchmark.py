"""The whole benchmark on oracles whose figures are known beforehand, and its reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from frontend.errors import ConfigError
from frontend.evaluation.datasets import PairDataset
from frontend.evaluation.homography import BenchmarkConfig, BenchmarkResult, run_benchmark
from frontend.evaluation.pairs import ImagePair, viewpoint_homography
from frontend.evaluation.plot import check_plot_path, save_plot
from frontend.evaluation.report import format_table, to_json
from frontend.types import Features

SIZE = (320, 240)
PAIRS = 4


class Oracle:
    """Knows the points of every image: those of image 1 are carried by H and then shifted to the right.

    Images are recognised by the value of their first pixel: 2 i for image 0 of pair i, 2 i + 1 for image 1.
    """

    def __init__(self, shift: float = 0.0, wrong: float = 0.0, blind: tuple[int, ...] = ()) -> None:
        self.shift, self.wrong, self.blind = shift, wrong, blind
        self.calls: list[int] = []

    def __call__(self, image: np.ndarray) -> Features:
        code = int(image[0, 0, 0])
        self.calls.append(code)
        number, second = divmod(code, 2)
        rng = np.random.default_rng(number)
        points = rng.uniform((110, 80), (210, 160), (100, 2))
        descriptors = rng.normal(size=(100, 32))
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        if second:
            homogeneous = np.concatenate([points, np.ones((100, 1))], axis=1) @ homography(number).T
            points = homogeneous[:, :2] / homogeneous[:, 2:] + [self.shift, 0.0]
            count = round(self.wrong * 100)
            points[:count] += 20.0
        if number in self.blind:
            points, descriptors = points[:2], descriptors[:2]
        scores = np.linspace(1.0, 0.5, len(points), dtype=np.float32)
        return Features(points.astype(np.float32), scores, descriptors.astype(np.float32), SIZE)


def homography(number: int) -> np.ndarray:
    return viewpoint_homography(SIZE, 5.0 * number, 40.0 * number, 10.0, 1.0, (0.02, 0.01), 1.1)


def images(number: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.full((SIZE[1], SIZE[0], 3), 2 * number, np.uint8)
    return first, first + np.uint8(1)


def dataset(kinds: tuple[str, ...] = ("viewpoint",), pairs: int = PAIRS) -> PairDataset:
    def make() -> Iterator[ImagePair]:
        for number in range(pairs):
            image0, image1 = images(number)
            for kind in kinds:
                yield ImagePair(f"{kind}{number}", kind, image0, image1, homography(number))

    return PairDataset(Path("folder"), "photos", dict.fromkeys(kinds, pairs), 640, 7, make)


def run(oracle: Oracle, **settings: object) -> BenchmarkResult:
    return run_benchmark(dataset(), {"oracle": oracle}, BenchmarkConfig(**settings), max_keypoints=100)  # type: ignore[arg-type]


def test_perfect_matches_give_perfect_figures() -> None:
    summary = run(Oracle()).summary("oracle", "viewpoint")
    assert (summary.homography_accuracy_1, summary.homography_accuracy_3, summary.homography_accuracy_5) == (1, 1, 1)
    assert summary.auc_5 > 0.99
    assert summary.mma_3 == summary.mma[0] == 1.0
    assert summary.repeatability == summary.nn_map == summary.matching_score == 1.0
    assert summary.localization_error < 1e-3
    assert (summary.keypoints, summary.matches, summary.failures, summary.pairs) == (100, 100, 0, PAIRS)


def test_a_shift_of_two_pixels_shows_between_the_thresholds() -> None:
    result = run(Oracle(shift=2.0))
    summary = result.summary("oracle", "viewpoint")
    assert (summary.homography_accuracy_1, summary.homography_accuracy_3, summary.homography_accuracy_5) == (0, 1, 1)
    assert [pair.corner_error for pair in result.pairs["oracle"]] == pytest.approx([2.0] * PAIRS, abs=0.01)
    # recall rises to 1 / P on the way to 2 px, is 1 from there
    assert summary.auc_5 == pytest.approx((2.0 / PAIRS / 2 + 3.0) / 5.0, abs=0.005)
    assert summary.mma[0] == 0.0
    assert summary.mma_3 == 1.0
    assert 1.5 < summary.localization_error < 2.2


def test_wrong_matches_lower_mma_but_not_a_robust_homography() -> None:
    summary = run(Oracle(wrong=0.3)).summary("oracle", "viewpoint")
    assert summary.mma_3 == pytest.approx(0.7)
    assert summary.mma[-1] == pytest.approx(0.7)
    assert summary.matching_score == pytest.approx(0.7)
    assert 0.4 < summary.nn_map < 0.8
    assert summary.homography_accuracy_1 == 1.0
    assert summary.inliers == pytest.approx(70, abs=1)


def test_pairs_without_a_homography_are_failures() -> None:
    result = run(Oracle(blind=(1,)))
    summary = result.summary("oracle", "viewpoint")
    assert summary.failures == 1
    assert summary.homography_accuracy_5 == pytest.approx((PAIRS - 1) / PAIRS)
    assert np.isinf(result.pairs["oracle"][1].corner_error)
    assert json.loads(to_json(result))["pairs"]["oracle"][1]["corner_error"] is None


def test_a_shared_reference_is_extracted_once() -> None:
    oracle = Oracle()
    run_benchmark(dataset(("viewpoint", "illumination"), 2), {"oracle": oracle}, max_keypoints=100)
    assert oracle.calls == [0, 1, 1, 2, 3, 3]


def test_the_budget_is_enforced() -> None:
    with pytest.raises(ConfigError, match="'oracle' returned 100 keypoints; expected at most 99"):
        run_benchmark(dataset(), {"oracle": Oracle()}, max_keypoints=99)


def test_reports_hold_the_protocol_and_the_figures(tmp_path: Path) -> None:
    kinds = ("viewpoint", "illumination")
    methods = {"good": Oracle(), "shifted": Oracle(shift=2.0)}
    result = run_benchmark(dataset(kinds), methods, max_keypoints=100)
    document = json.loads(to_json(result))
    protocol = document["protocol"]
    assert protocol["pairs"] == {"viewpoint": PAIRS, "illumination": PAIRS}
    assert (protocol["seed"], protocol["resize"], protocol["max_keypoints"]) == (7, 640, 100)
    assert (protocol["matcher"], protocol["matchers"]) == ("mnn", {})
    assert protocol["estimator"] == "OpenCV USAC_MAGSAC, verified"
    assert {"python", "numpy", "torch"} <= set(protocol["versions"])
    assert document["metrics"]["good"]["illumination"]["homography_accuracy_1"] == 1.0
    assert document["metrics"]["shifted"]["viewpoint"]["homography_accuracy_1"] == 0.0
    assert len(document["metrics"]["good"]["viewpoint"]["mma"]) == 10
    assert [entry["kind"] for entry in document["pairs"]["shifted"]] == list(kinds) * PAIRS
    assert document["pairs"]["shifted"][0]["corner_error"] == pytest.approx(2.0, abs=0.01)

    lines = format_table(result).splitlines()
    assert [line for line in lines if "pairs" in line] == ["viewpoint, 4 pairs", "illumination, 4 pairs"]
    row = next(line for line in lines if line.startswith("shifted")).split()
    assert row[1:4] == ["0.000", "1.000", "1.000"]

    save_plot(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"curves\.txt"):
        check_plot_path(tmp_path / "curves.txt")


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"threshold": float("nan")}, {"geometry_method": "magic"}])
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        BenchmarkConfig(**settings)  # type: ignore[arg-type]
