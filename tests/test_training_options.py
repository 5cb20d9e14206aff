"""Settings of trainings and labellings, and labels, that nothing could be learnt from are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from training_machine import EXACT, PAIRS, TINY, pairs_command, write_photographs

from frontend.cli.main import main
from frontend.errors import ConfigError, DataError
from frontend.folders import output_path
from frontend.homography import HomographyConfig
from frontend.model import SuperPointNet
from frontend.training.labels import load_labelled_photos, read_labels
from frontend.training.token_labelling import TokenLabelling
from frontend.weights import save_network

HUGE = str(1 << 63)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("data"))


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main(list(command)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.partition(": ")[2].strip()


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("exposure", ("nan", "1e9", "-1"), "exposure is {}; expected 0 to 16 stops"),
        ("rotation", ("nan", "7"), "homography rotation is {}; expected 0 to 6.283"),
        ("scale", ("nan", "100"), "homography scale is {}; expected 0 to 2"),
        ("anisotropy", ("50", "inf"), "homography anisotropy is {}; expected 0 to 2"),
        ("temperature", ("0", "-1", "nan", "inf"), "temperature is {}; expected more than 0, finite"),
        ("descriptor-weight", ("-1", "nan"), "descriptor_weight is {}; expected 0 or more, finite"),
        ("position-weight", ("-1", "nan"), "position_weight is {}; expected 0 or more, finite"),
        ("lambda-d", ("-1", "nan", "inf"), "lambda_d is {}; expected 0 or more, finite"),
        ("near-weight", ("nan",), "near_weight is {}; expected 0 or more, finite"),
        ("peak-weight", ("nan",), "peak_weight is {}; expected 0 or more, finite"),
        ("any-rotation", ("-0.1", "1.1", "nan"), "any_rotation is {}; expected a value in [0, 1]"),
        ("label-threshold", ("-0.1", "1.5", "nan"), "label_threshold is {}; expected a value in [0, 1]"),
        ("checkpoint-seconds", ("nan", "-1"), "checkpoint_seconds is {}; expected 0 or more, finite"),
        ("refined-points", ("0", "100000"), "refined_points is {}; expected 1 to 4096"),
        ("label-spacing", ("-1",), "label_spacing is {}; expected 0 or more"),
        ("photo-side", ("0",), "photo_side is {}; expected 16 pixels or more"),
        ("seed", (HUGE, "-1", str(1 << 70)), "seed is {}; expected 0 or more, below 2^63"),
    ],
)
def test_settings_of_pairs_that_are_out_of_range(
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    values: tuple[str, ...],
    message: str,
) -> None:
    for value in values:
        given = value if option in ("refined-points", "label-spacing", "photo-side", "seed") else str(float(value))
        error = refusal(capsys, *pairs_command(photographs, tmp_path, *PAIRS, *EXACT, f"--{option}={value}"))
        assert error == message.format(given)


def test_labels_whose_photographs_are_gone_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path)
    command = pairs_command(tmp_path, tmp_path / "whole", *PAIRS, *EXACT, "--stop", "1")
    assert main(command) == 0
    assert "photograph" not in capsys.readouterr().err
    for name in ("001.png", "004.png"):
        (tmp_path / "images" / name).unlink()
    command[command.index(str(tmp_path / "whole"))] = str(tmp_path / "fewer")
    told = f"2 labels of {tmp_path}/labels have no photograph in {tmp_path}/images"
    assert main(command) == 0
    assert capsys.readouterr().err.splitlines()[0] == told
    # told once: a run that goes on was begun with what there is
    assert main(command) == 0
    assert told not in capsys.readouterr().err


def test_settings_of_other_trainings_that_are_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["train", "magicpoint", "--out", str(tmp_path), *EXACT]
    assert refusal(capsys, *shapes, "--seed", HUGE) == f"seed is {HUGE}; expected 0 or more, below 2^63"
    assert "auxiliary_weight is nan; expected 0 or more" in refusal(capsys, *shapes, "--auxiliary-weight", "nan")
    assert "bags_ratio is inf; expected 0 or more" in refusal(capsys, *shapes, "--bags-ratio", "inf")
    assert "learning_rate is inf; expected 0 or more" in refusal(capsys, *shapes, "--learning-rate", "inf")
    matcher = ["train", "lightglue", "--views", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert refusal(capsys, *matcher, "--seed", HUGE) == f"seed is {HUGE}; expected 0 or more, below 2^63"
    with pytest.raises(ConfigError, match="token_weight is nan; expected 0 or more, finite"):
        TokenLabelling(SuperPointNet(TINY), token_weight=float("nan"))


@pytest.mark.parametrize("name", ["scale", "rotation", "perspective", "anisotropy", "overhang"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_homographies_have_ranges(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^homography {name} is {value}; expected 0 to "):
        HomographyConfig(**{name: value})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("threshold", "nan", "threshold is nan; expected a probability in [0, 1]"),
        ("threshold", "1.5", "threshold is 1.5; expected a probability in [0, 1]"),
        ("threshold", "-0.5", "threshold is -0.5; expected a probability in [0, 1]"),
        ("rotation", "nan", "homography rotation is nan; expected 0 to 6.283"),
        ("nms-radius", "-1", "nms_radius is -1; expected 0 or more"),
    ],
)
def test_settings_of_labels_that_are_out_of_range(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    torch.manual_seed(0)
    save_network(tmp_path / "net.safetensors", SuperPointNet(TINY))
    folders = [str(photographs / "images"), "--out", str(tmp_path / "labels")]
    command = ["label", *folders, "--model", str(tmp_path / "net.safetensors"), "--device", "cpu"]
    assert refusal(capsys, *command, f"--{option}={value}") == message
    assert not (tmp_path / "labels").exists()


POINTS, SCORES = np.full((3, 2), 5, np.float32), np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: (POINTS, SCORES[:2]), r"has keypoints \(3, 2\) and scores \(2,\); expected \(N, 2\) and \(N,\)$"),
        (lambda: (POINTS[:, :1], SCORES), r"has keypoints \(3, 1\) and scores \(3,\); expected \(N, 2\) and \(N,\)$"),
        (lambda: (POINTS * np.float32("nan"), SCORES), "has keypoints that are NaN or infinite; expected finite ones$"),
        (lambda: (POINTS, SCORES * np.float32("inf")), "has scores that are NaN or infinite; expected finite ones$"),
        (lambda: (POINTS.astype(str), SCORES), "has keypoints of type <U32; expected numbers$"),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: Callable[[], tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    points, scores = change()
    np.savez(tmp_path / "a.png.npz", keypoints=points, scores=scores, image_size=np.array([96, 72]))
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "a.png.npz")


def test_labels_without_any_point_are_refused(tmp_path: Path) -> None:
    write_photographs(tmp_path)
    for label in (tmp_path / "labels").iterdir():
        points, scores, size = read_labels(label)
        np.savez(label, keypoints=points, scores=scores / 2, image_size=np.array(size))
    with pytest.raises(DataError, match=r"has a point of score 1\.0 or more; expected some to learn from$"):
        load_labelled_photos(tmp_path / "images", tmp_path / "labels", 96, threshold=1.0)
    # one with points is enough
    points, scores, size = read_labels(first := output_path(tmp_path / "labels", Path("003.png")))
    np.savez(first, keypoints=points, scores=np.ones_like(scores), image_size=np.array(size))
    photos = load_labelled_photos(tmp_path / "images", tmp_path / "labels", 96, threshold=1.0)
    assert sum(len(photo.points) for photo in photos) == len(points)


def test_help_shows_no_empty_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "superpoint", "--help"])
    text = capsys.readouterr().out
    assert "--model {edge,edge-dense," in text
    assert "(default: )" not in text
