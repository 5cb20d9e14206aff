"""Stated against measured standard deviations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.cli.main import main
from frontend.errors import ConfigError
from frontend.evaluation.uncertainty import calibration, displacements
from frontend.types import Features

H = np.array([[1.0, 0.1, 5], [-0.1, 1.0, 20], [0, 0, 1]])


def features(points: np.ndarray, sigmas: np.ndarray | None) -> Features:
    count = len(points)
    given = None if sigmas is None else sigmas.astype(np.float32)
    zeros = np.zeros((count, 4), np.float32)
    return Features(points.astype(np.float32), np.ones(count, np.float32), zeros, (640, 480), "test", given)


def test_keypoints_of_known_noise_are_measured_as_stated() -> None:
    rng = np.random.default_rng(0)
    truth = np.stack(np.meshgrid(np.arange(40, 600, 12.0), np.arange(60, 420, 12.0)), axis=-1).reshape(-1, 2)
    sigmas = rng.permutation(np.linspace(0.1, 0.7, len(truth)))
    noise0, noise1 = rng.normal(0, 1, (2, len(truth), 2)) * sigmas[:, None]
    order = rng.permutation(len(truth))
    there = truth @ H[:2, :2].T + H[:2, 2] + noise1
    # a few in image 1 that show nothing of image 0
    there = np.concatenate([there[order], [[5.0, 400], [635, 10]]])
    sigmas1 = np.concatenate([sigmas[order], [0.1, 0.1]])
    differences, stated = displacements(features(truth + noise0, sigmas), features(there, sigmas1), H)
    assert len(differences) == len(truth)
    found = calibration(differences, stated, bins=4)
    assert [part.pairs for part in found] == [len(part) for part in np.array_split(np.arange(len(truth)), 4)]
    assert found[0].stated < 0.3
    assert found[-1].stated > 0.8
    for part in found:
        assert part.measured == pytest.approx(part.stated, rel=0.1)


def test_far_and_one_sided_neighbours_are_no_pairs() -> None:
    one = np.ones(3)
    first = features(np.array([[10.0, 10], [50, 50], [52, 50]]), one)
    second = features(np.array([[10.0, 14.1], [51.5, 50], [300, 300]]), one)
    differences, stated = displacements(first, second, np.eye(3))
    np.testing.assert_allclose(differences, [[0.5, 0]])
    np.testing.assert_allclose(stated, [np.sqrt(2)])
    nothing = features(np.zeros((0, 2)), np.zeros(0))
    assert len(displacements(first, nothing, np.eye(3))[0]) == 0
    assert calibration(np.zeros((0, 2)), np.zeros(0)) == []


def test_a_model_without_a_refiner_is_refused() -> None:
    points = features(np.zeros((2, 2)), None)
    with pytest.raises(ConfigError, match="model 'test' states no uncertainties"):
        displacements(points, points, np.eye(3))


def test_the_command_prints_both(
    make_scene: Callable[..., np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), make_scene(192, 256, 1))
    assert main(["eval", "uncertainty", str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "viewpoint"
    assert lines[1].split() == ["pairs", "stated", "px", "measured", "px"]
    assert len(lines) == 14
    assert all(float(line.split()[1]) > 0 for line in lines[2:7])
    assert main(["eval", "uncertainty", str(tmp_path), "--model", "sift"]) == 2
    assert "states no uncertainties" in capsys.readouterr().err
