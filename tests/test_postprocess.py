"""The CPU's keypoints against the reference in PyTorch and against plain loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from frontend import keypoints as reference
from frontend import postprocess
from frontend.errors import ConfigError
from frontend.refinement import gather_patches


def heat(height: int = 72, width: int = 104, seed: int = 0, sigma: float = 0.8) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width), np.float32) ** 4
    return np.ascontiguousarray(cv2.GaussianBlur(noise, (0, 0), sigma))


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 8])
def test_suppression_is_that_of_the_reference(radius: int) -> None:
    # steps of a tenth make plateaus, whose pixels are all maxima
    for maps in (heat(), np.round(heat(seed=1), 1), np.zeros((16, 24), np.float32)):
        expected = reference.non_maximum_suppression(torch.from_numpy(maps)[None], radius)[0].numpy()
        got = np.where(postprocess.survivors(maps, radius) > 0, maps, 0)
        np.testing.assert_array_equal(got, expected)


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(ConfigError, match="nms_radius is -1"):
        postprocess.survivors(heat(), -1)


@pytest.mark.parametrize(
    ("radius", "border", "count"), [(3, 4, 40), (0, 0, 500), (4, 7, 10_000), (2, 36, 9), (2, 60, 9)]
)
def test_peaks_are_those_of_the_reference(radius: int, border: int, count: int) -> None:
    maps, size = heat(seed=2), (99, 70)
    tensor = torch.from_numpy(maps)[None]
    kept = reference.inside_border(reference.non_maximum_suppression(tensor, radius), border, torch.tensor([size]))
    expected = reference.top_k(kept, count, 0.05, radius)
    n = int(expected.valid.sum())
    got = postprocess.find_peaks(maps, radius=radius, border=border, size=size, threshold=0.05, count=count)
    assert len(got.x) == n
    assert (n > 0) == (border < 30)
    np.testing.assert_array_equal(got.scores, expected.scores[0, :n].numpy())
    np.testing.assert_array_equal(np.stack([got.x, got.y], 1), expected.keypoints[0, :n].numpy())


def test_equal_scores_come_in_the_order_of_rows() -> None:
    maps = np.zeros((16, 16), np.float32)
    maps[[2, 2, 9, 13], [12, 3, 7, 1]] = [0.5, 0.5, 0.9, 0.5]
    got = postprocess.find_peaks(maps, radius=1, border=0, size=(16, 16), threshold=0.1, count=10)
    assert list(zip(got.x.tolist(), got.y.tolist(), strict=True)) == [(7, 9), (3, 2), (12, 2), (1, 13)]


@pytest.fixture
def peaks() -> postprocess.Peaks:
    random = np.random.default_rng(3)
    x, y = random.integers(0, 104, 50), random.integers(0, 72, 50)
    x[:4], y[:4] = [0, 103, 0, 103], [0, 0, 71, 71]
    return postprocess.Peaks(x, y, np.ones(50, np.float32))


def points_of(peaks: postprocess.Peaks) -> torch.Tensor:
    return torch.from_numpy(np.stack([peaks.x, peaks.y], axis=1).astype(np.float32))[None]


def test_centre_of_mass_is_that_of_the_reference(peaks: postprocess.Peaks) -> None:
    maps = heat(seed=4)
    expected = reference.refine_subpixel(torch.from_numpy(maps)[None], points_of(peaks))[0].numpy()
    np.testing.assert_allclose(postprocess.centre_of_mass(maps, peaks), expected, atol=1e-4)


def test_patches_are_those_of_the_reference(peaks: postprocess.Peaks) -> None:
    gray = heat(seed=5)
    expected = gather_patches(torch.from_numpy(gray)[None, None], points_of(peaks), 17)[:, 0].numpy()
    np.testing.assert_array_equal(postprocess.cut_patches(gray, peaks, 17), expected)


@pytest.mark.parametrize("cells", [(9, 13), (1, 5), (4, 1), (1, 1)])
def test_descriptors_are_those_of_the_reference(cells: tuple[int, int]) -> None:
    random = np.random.default_rng(6)
    maps = random.normal(size=(*cells, 32)).astype(np.float32)
    size = (8 * cells[1], 8 * cells[0])
    points = random.uniform(-0.5, np.array(size) - 0.5, (60, 2)).astype(np.float32)
    points[0], points[1] = (0, 0), (size[0] - 1, size[1] - 1)
    tensor = torch.from_numpy(maps).permute(2, 0, 1)[None].contiguous()
    expected = reference.sample_descriptors(tensor, torch.from_numpy(points)[None], size)[0].numpy()
    np.testing.assert_allclose(postprocess.sample_rows(maps, points, size), expected, atol=2e-5)
