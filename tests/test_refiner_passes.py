"""Several passes of the refiner: where keypoints go between them, what becomes of those that meet, and who says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from frontend.cli.main import main
from frontend.cli.train import _continued, _model_config
from frontend.end_to_end import settle_pixels
from frontend.errors import ConfigError
from frontend.extraction import ExtractorConfig, candidates
from frontend.extractor import SuperPoint
from frontend.keypoints import BatchedKeypoints
from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet, adopt_refiner
from frontend.postprocess import Peaks
from frontend.postprocess import settle as settle_peaks
from frontend.refinement import Refinement, settle
from frontend.weights import load_network, save_network


def plain(
    points: np.ndarray, offsets: np.ndarray, ranks: np.ndarray, size: tuple[int, int], count: int
) -> list[tuple[int, int, int]]:
    """Rows and pixels of what stays, best first, one keypoint after the other."""
    pixels = []
    for point, offset in zip(points, offsets, strict=True):
        x, y = (round(float(np.float32(point[axis] + offset[axis]))) for axis in (0, 1))
        pixels.append((min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)))
    stays = []
    for row, (x, y) in enumerate(pixels):
        near = [n for n, (u, v) in enumerate(pixels) if abs(u - x) <= 1 and abs(v - y) <= 1]
        if all(ranks[n] <= ranks[row] for n in near):
            stays.append((row, x, y))
    return sorted(stays, key=lambda one: -ranks[one[0]])[:count]


@pytest.mark.parametrize("count", [1, 20, 90])
def test_all_three_ways_to_settle_are_the_plain_one(count: int) -> None:
    rng = np.random.default_rng(count)
    n, size, padded = 90, (45, 37), (48, 40)
    place = rng.choice(size[0] * size[1], n, replace=False)
    points = np.stack([place % size[0], place // size[0]], axis=1).astype(np.float32)
    # whole and half pixels among them: rounded to even, like all else
    offsets = (rng.integers(-12, 13, (n, 2)) / 4).astype(np.float32)
    logits = rng.permutation(np.linspace(-3, 3, n)).astype(np.float32)
    scores = rng.uniform(0.01, 1, n).astype(np.float32)
    valid = np.arange(n) < 80
    expected = plain(points[:80], offsets[:80], logits[:80], size, count)
    assert len(expected) == min(count, len(expected)) > 0
    assert count != 90 or 20 < len(expected) < 75  # some do meet
    rows, pixels = np.array([e[0] for e in expected]), np.array([e[1:] for e in expected], np.float32)

    ours = settle_peaks(
        Peaks(points[:80, 0].astype(np.int64), points[:80, 1].astype(np.int64), scores[:80]),
        np.column_stack([offsets, np.ones(n), 1 / (1 + np.exp(-logits))]).astype(np.float32)[:80],
        size,
        count,
    )
    np.testing.assert_array_equal(ours.rows, rows)
    np.testing.assert_array_equal(np.stack([ours.peaks.x, ours.peaks.y], axis=1), pixels)
    np.testing.assert_array_equal(ours.peaks.scores, scores[rows])
    np.testing.assert_array_equal(ours.moved, (pixels != points[rows]).any(axis=1))

    refinement = Refinement(
        torch.from_numpy(offsets)[None], torch.zeros(1, n), torch.from_numpy(logits)[None], torch.zeros(1, n, 4)
    )
    masked = torch.from_numpy(scores * valid)[None]
    given = torch.from_numpy(points * valid[:, None])[None]
    found = settle(
        BatchedKeypoints(given, masked, torch.from_numpy(valid)[None]), refinement, torch.tensor([size]), padded, count
    )
    # the graph has no sizes of its images: here the image is all of it
    there, values = settle_pixels(given, masked, refinement, size[1], size[0], count)
    for keypoints, left, stays in (
        (found.keypoints[0], found.scores[0], found.valid[0]),
        (there[0], values[0], values[0] > 0),
    ):
        assert keypoints.shape == (count, 2)
        assert stays.tolist() == [True] * len(rows) + [False] * (count - len(rows))
        np.testing.assert_array_equal(keypoints[: len(rows)].numpy(), pixels)
        np.testing.assert_array_equal(left[: len(rows)].numpy(), scores[rows])
        assert not left[len(rows) :].any()


def test_images_of_a_batch_settle_alone() -> None:
    """Equal pixels of two images do not meet."""
    points = torch.tensor([[[4.0, 4.0], [6.0, 4.0]], [[4.0, 4.0], [9.0, 9.0]]])
    refinement = Refinement(torch.zeros(2, 2, 2), torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2, 4))
    found = BatchedKeypoints(points, torch.full((2, 2), 0.5), torch.ones(2, 2, dtype=torch.bool))
    settled = settle(found, refinement, torch.tensor([[16, 16], [8, 8]]), (16, 16), 2)
    assert settled.valid.all()
    # the second image ends at its own seventh pixel, not at the padding's
    assert settled.keypoints.tolist() == [[[4, 4], [6, 4]], [[4, 4], [7, 7]]]


def test_more_are_looked_for_only_where_some_may_meet() -> None:
    assert [candidates(count, 1) for count in (1, 1024)] == [1, 1024]
    assert [candidates(count, 2) for count in (1, 5, 1024)] == [2, 7, 1280]


class Snap(torch.nn.Module):
    """Draws keypoints to the nearest centre of a grid of 6 pixels, by two pixels along an axis at most."""

    def forward(self, images: Tensor, keypoints: Tensor, scores: Tensor) -> Refinement:
        centre = (keypoints / 6).round() * 6 + 0.25
        offsets = (centre - keypoints).clamp(-2, 2)
        local = torch.zeros(*keypoints.shape[:2], 128)
        return Refinement(offsets, torch.zeros_like(scores), torch.logit(scores, 1e-4), local)


def snapping(passes: int) -> SuperPoint:
    torch.manual_seed(0)
    network = SuperPointNet(replace(MODEL_PRESETS["edge"], refiner_passes=passes)).eval()
    network.refiner = Snap()
    return SuperPoint(network, config=ExtractorConfig(max_keypoints=60, detection_threshold=0.0), device="cpu")


def test_each_pass_begins_where_the_last_one_ended() -> None:
    """One pass leaves those that are three pixels off on their way; of those that meet between passes one is left."""
    image = np.random.default_rng(0).integers(0, 256, (96, 128), dtype=np.uint8)
    shares, different = [], []
    for passes in (1, 2, 3):
        features = snapping(passes).extract(image)
        steps = (features.keypoints - 0.25) / 6
        shares.append((np.abs(steps - np.rint(steps)) < 1e-3).all(axis=1).mean())
        different.append(len(np.unique(features.keypoints, axis=0)) == len(features))
        assert (np.diff(features.scores) <= 0).all()
        assert 30 < len(features) <= 60
    assert shares[0] < 0.9
    assert shares[1:] == [1.0, 1.0]
    assert different[2]


def test_a_number_of_passes_is_checked_stored_and_adopted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refiner_passes is 0; expected 1 or more"):
        ModelConfig(refiner_passes=0)
    torch.manual_seed(0)
    network = SuperPointNet(ModelConfig(descriptor_dim=16, refiner="patch", refiner_passes=3)).eval()
    save_network(tmp_path / "a.safetensors", network)
    assert load_network(tmp_path / "a.safetensors")[1].config.refiner_passes == 3
    plain_network = SuperPointNet(ModelConfig(descriptor_dim=16)).eval()
    assert adopt_refiner(network, plain_network).config.refiner_passes == 3


def test_one_pass_is_not_stated_and_more_survive_a_preset() -> None:
    """Runs and readers of earlier versions know of no passes; presets do not know the weights' own number."""
    slim = MODEL_PRESETS["slim"]
    assert "refiner_passes" not in slim.to_dict()
    twice = replace(slim, refiner_passes=2)
    assert ModelConfig.from_dict(twice.to_dict()) == twice
    assert _model_config(twice, {"model": "slim"}) == twice
    assert _model_config(twice, {"model": ""}) == twice
    # another refiner has its own
    assert _model_config(twice, {"model": "edge"}) == MODEL_PRESETS["edge"]
    # a run that goes on has the refiner that it adopted, and its passes
    edge = replace(MODEL_PRESETS["edge"], refiner_options=slim.refiner_options, refiner_passes=2)
    assert _continued(edge, {"model": "edge"}, {"refiner_sha256": "abc"}) == edge


def test_the_command_sets_them_in_a_weight_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, refiner in (("with", "patch"), ("without", "")):
        torch.manual_seed(0)
        save_network(tmp_path / f"{name}.safetensors", SuperPointNet(ModelConfig(descriptor_dim=16, refiner=refiner)))
    half = ["export", "--format", "weights-float16", "--model"]
    out = ["--out", str(tmp_path / "out.safetensors"), "--refiner-passes"]
    assert main([*half, str(tmp_path / "with.safetensors"), *out, "2"]) == 0
    assert load_network(tmp_path / "out.safetensors")[1].config.refiner_passes == 2
    # and it stays what it was where nothing is said
    assert main([*half, str(tmp_path / "out.safetensors"), "--out", str(tmp_path / "again.safetensors")]) == 0
    assert load_network(tmp_path / "again.safetensors")[1].config.refiner_passes == 2
    for model, passes, message in (
        ("without", "2", "have no refiner; expected refiner_passes 0, got 2"),
        ("with", "-1", "--refiner-passes is -1; expected 1 or more"),
    ):
        assert main([*half, str(tmp_path / f"{model}.safetensors"), *out, passes]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", "--model", str(tmp_path / "with.safetensors"), *out, "2"]) == 2
    assert "--refiner-passes without --format weights-*" in capsys.readouterr().err
