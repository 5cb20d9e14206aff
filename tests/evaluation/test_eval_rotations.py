"""In-plane rotation by angle, and pictures of the worst pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.cli.main import main
from frontend.evaluation.homography import PairResult
from frontend.evaluation.rotations import ZOOM, rotation_pairs
from frontend.evaluation.worst import worst_pairs

Scene = Callable[..., np.ndarray]


@pytest.fixture
def photographs(make_scene: Scene, tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in (1, 2):
        cv2.imwrite(str(folder / f"{number}.png"), make_scene(192, 256, number))
    return folder


def test_pairs_are_turned_by_their_angle_and_differ_in_nothing_else(photographs: Path) -> None:
    photos = sorted(photographs.iterdir())
    pairs = list(rotation_pairs(photos, (0.0, 30.0, 90.0, 180.0), seed=2))
    assert [pair.kind for pair in pairs[:4]] == ["rotation 0", "rotation 30", "rotation 90", "rotation 180"]
    for first in (0, 4):
        group = pairs[first : first + 4]
        scales = []
        for pair, angle in zip(group, (0, 30, 90, 180), strict=True):
            assert pair.image0 is group[0].image0
            np.testing.assert_allclose(pair.H[2], [0, 0, 1], atol=1e-12)
            turned = np.degrees(np.arctan2(pair.H[1, 0], pair.H[0, 0]))
            assert abs(turned) == pytest.approx(angle, abs=1e-6)
            scales.append(np.sqrt(np.linalg.det(pair.H[:2, :2])))
            assert ZOOM[0] <= scales[-1] <= ZOOM[1]
            # the image is where the homography says: the same corners of the scene
            warped = cv2.warpPerspective(pair.image0, pair.H, pair.image1.shape[1::-1], flags=cv2.INTER_AREA)
            seen = cv2.warpPerspective(np.ones(pair.image0.shape[:2], np.uint8), pair.H, pair.image1.shape[1::-1])
            inner = cv2.erode(seen, np.ones((9, 9), np.uint8), borderValue=0).astype(bool)
            assert np.corrcoef(warped[inner].ravel(), pair.image1[inner].ravel())[0, 1] > 0.9
        assert np.ptp(scales) < 1e-9


def test_table_by_angle_and_pictures_of_the_worst(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "homography", str(photographs), "--methods", "sift,orb", "--max-keypoints", "300"]
    more = ["--rotations", "0,90", "--json", str(tmp_path / "out.json"), "--worst", "3", "--pictures"]
    assert main([*command, *more, str(tmp_path / "worst")]) == 0
    out = capsys.readouterr().out
    assert "MMA@3 by in-plane rotation in degrees, 2 pairs each" in out
    assert [line.split() for line in out.splitlines() if line.startswith("method")] == [["method", "0", "90"]] * 3
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(document["metrics"]["sift"]) == {"rotation 0", "rotation 90"}
    # SIFT does not mind being turned
    assert document["metrics"]["sift"]["rotation 90"]["mma_3"] > 0.3
    pictures = sorted((tmp_path / "worst").iterdir())
    assert len(pictures) == 6
    assert sum(path.name.startswith("sift_0") for path in pictures) == 3
    errors = {pair["name"]: pair["corner_error"] or np.inf for pair in document["pairs"]["orb"]}
    worst = max(errors, key=lambda name: errors[name])
    assert any(path.name.startswith("orb_01_") and path.name.endswith(f"_{worst}.jpg") for path in pictures)
    picture = cv2.imread(str(pictures[0]))
    assert picture.shape[1] > 2 * 256
    assert np.ptp(picture.astype(int), axis=2).max() > 60


def test_the_worst_come_first() -> None:
    def result(name: str, error: float, matches: int, share: float) -> PairResult:
        return PairResult(name, "viewpoint", 9, 9, matches, 0, 0, 0, 0, 0, np.full(10, share), error)

    results = [
        result("good", 0.5, 10, 1.0),
        result("lost", np.inf, 10, 0.5),
        result("off", 40.0, 10, 0.5),
        result("gone", np.inf, 10, 0.0),
    ]
    assert [pair.name for pair in worst_pairs(results, 3)] == ["gone", "lost", "off"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rotations", "10,10"], "expected different angles"),
        (["--rotations", "270"], "expected different angles"),
        (["--rotations", "left"], "expected different angles"),
        (["--rotations", "10", "--limit", "0"], "limit is 0"),
        (["--worst", "3"], "expected both, or neither"),
        (["--rotations", "0", "--plot", "a.png"], "was given with --rotations"),
        (["--rotations", "0", "--kind", "hpatches"], "--kind hpatches was given with --rotations, which takes photo"),
        (["--rotations", "0", "--pairs", "both"], "--pairs both was given with --rotations; expected one of them"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], message: str, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "homography", str(photographs), "--methods", "orb", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
