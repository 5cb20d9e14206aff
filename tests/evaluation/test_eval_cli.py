"""``superpoint eval homography`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.cli.main import main

Scene = Callable[..., np.ndarray]


@pytest.fixture
def photographs(make_scene: Scene, tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in (1, 2):
        cv2.imwrite(str(folder / f"{number}.png"), make_scene(192, 256, number))
    return folder


def test_table_json_and_plot(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")]
    assert (
        main(["eval", "homography", str(photographs), "--methods", "sift,orb", "--max-keypoints", "200", *files]) == 0
    )
    out = capsys.readouterr().out
    assert "viewpoint, 2 pairs" in out
    assert "illumination, 2 pairs" in out
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert document["protocol"]["methods"] == ["sift", "orb"]
    figures = document["metrics"]["sift"]["viewpoint"]
    assert figures["pairs"] == 2
    assert 0 < figures["keypoints"] <= 200
    assert figures["mma_3"] > 0.2
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_json_on_stdout_is_json_alone(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--methods", "orb", "--pairs", "illumination", "--limit", "1", "--json", "-"]
    assert main(["eval", "homography", str(photographs), *options]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["protocol"]["pairs"] == {"illumination": 1}
    assert "illumination, 1 pairs" in captured.err


def test_runs_are_reproducible(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for _ in range(2):
        assert main(["eval", "homography", str(photographs), "--methods", "rootsift", "--json", "-"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    assert main(["eval", "homography", str(photographs), "--methods", "rootsift", "--json", "-", "--seed", "1"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["metrics"] != documents[0]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/missing"], "no such folder"),
        (["{}/empty"], "is empty"),
        (["{}/photographs", "--methods", "surf"], "unknown method 'surf'"),
        (["{}/photographs", "--methods", ","], "--methods is empty"),
        (["{}/photographs", "--methods", "sift", "--max-keypoints", "0"], "max_keypoints is 0"),
        (["{}/photographs", "--methods", "sift", "--threshold", "-1"], "threshold is -1"),
        (["{}/photographs", "--methods", "sift", "--kind", "oxford"], "kind 'oxford'"),
        (["{}/photographs", "--methods", "sift", "--json", "{}/none/out.json"], "existing folder"),
        (["{}/photographs", "--methods", "sift", "--plot", "{}/out.doc"], "out.doc"),
        (["{}/photographs", "--methods", "sift", "--device", "tpu"], "tpu"),
        (["{}/photographs", "--methods", "superpoint-slim", "--precision", "fp8"], "fp8"),
        (["{}/broken", "--methods", "sift"], "text.png"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "text.png").write_text("no image", encoding="utf-8")
    assert main(["eval", "homography", *(argument.format(tmp_path) for argument in arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("superpoint eval: ")
    assert message in lines[0]
