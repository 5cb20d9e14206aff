"""Keypoints against plain references: loops over pixels, in float64."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from frontend import keypoints as kp
from frontend.errors import ConfigError, ShapeError
from frontend.model import heatmap


def reference_greedy(scores: np.ndarray, radius: int) -> np.ndarray:
    """Greedy suppression: take the best remaining pixel, drop its square neighbourhood, repeat."""
    left, kept = scores.copy(), np.zeros_like(scores)
    while left.max() > 0:
        y, x = np.unravel_index(left.argmax(), left.shape)
        kept[y, x] = scores[y, x]
        left[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = 0
    return kept


def random_maps(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("radius", [1, 3, 4, 9])
def test_nms_with_enough_rounds_is_greedy(radius: int) -> None:
    maps = random_maps((3, 48, 64))
    got = kp.non_maximum_suppression(maps, radius, iterations=12)
    for one, expected in zip(got, maps, strict=True):
        np.testing.assert_array_equal(one.numpy(), reference_greedy(expected.numpy(), radius))


def test_nms_two_rounds_keep_no_neighbours_and_nearly_all_of_greedy() -> None:
    maps = random_maps((1, 96, 128))
    got = kp.non_maximum_suppression(maps, 4)[0].numpy()
    ys, xs = np.nonzero(got)
    apart = np.maximum(abs(ys[:, None] - ys), abs(xs[:, None] - xs)) + 99 * np.eye(len(ys))
    assert apart.min() > 4
    greedy = reference_greedy(maps[0].numpy(), 4)
    assert (got > 0).sum() >= 0.9 * (greedy > 0).sum()


def test_max_filter_of_opencv_equals_max_pool() -> None:
    maps = random_maps((2, 33, 47))
    pooled = torch.nn.functional.max_pool2d(maps[:, None], 9, 1, 4)[:, 0]
    torch.testing.assert_close(kp.max_filter(maps, 4), pooled, rtol=0, atol=0)
    # float64 takes the separable path
    torch.testing.assert_close(kp.max_filter(maps.double(), 4), pooled.double(), rtol=0, atol=0)


def test_nms_radius_zero_and_negative() -> None:
    maps = random_maps((1, 8, 8))
    assert kp.non_maximum_suppression(maps, 0) is maps
    with pytest.raises(ConfigError, match="nms_radius is -1"):
        kp.non_maximum_suppression(maps, -1)


def test_border_is_that_of_the_image_not_of_the_padding() -> None:
    maps = torch.ones(2, 16, 24)
    kept = kp.inside_border(maps, 3, torch.tensor([[24, 16], [20, 11]]))
    expected = np.zeros((2, 16, 24))
    expected[0, 3:13, 3:21] = 1
    expected[1, 3:8, 3:17] = 1
    np.testing.assert_array_equal(kept.numpy(), expected)
    np.testing.assert_array_equal(kp.inside_border(maps, 3)[1].numpy(), expected[0])


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 7])
def test_top_k_equals_a_full_sort(radius: int) -> None:
    maps = kp.non_maximum_suppression(random_maps((2, 40, 56)), radius)
    found = kp.top_k(maps, 30, 0.2, radius)
    for b in range(2):
        flat = maps[b].numpy().ravel()
        order = np.argsort(-flat, kind="stable")[:30]
        order = order[flat[order] > 0.2]
        assert int(found.valid[b].sum()) == len(order)
        np.testing.assert_array_equal(found.scores[b, : len(order)].numpy(), flat[order])
        expected = np.stack([order % 56, order // 56], axis=1)
        np.testing.assert_array_equal(found.keypoints[b, : len(order)].numpy(), expected)


def test_top_k_pads_with_invalid_zeros() -> None:
    maps = torch.zeros(1, 8, 8)
    maps[0, 2, 5] = 0.7
    found = kp.top_k(maps, 100, 0.1)
    assert found.keypoints.shape == (1, 100, 2)
    assert found.valid.sum() == 1
    assert found.keypoints[0, 0].tolist() == [5, 2]
    assert found.scores[0, 1:].abs().sum() == 0
    with pytest.raises(ShapeError, match="multiples of 8"):
        kp.top_k(torch.zeros(1, 9, 8), 4, 0.1)


def test_subpixel_finds_the_centre_of_a_blob() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(8, 24, (20, 2))
    ys, xs = np.mgrid[:32, :32]
    maps = np.stack([np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 0.8**2)) for x, y in truth]).astype(np.float32)
    start = torch.from_numpy(np.rint(truth)[:, None].astype(np.float32))
    got = kp.refine_subpixel(torch.from_numpy(maps), start)[:, 0].numpy()
    assert np.abs(got - truth).max() < 0.06
    assert np.abs(start[:, 0].numpy() - truth).max() > 0.4


def test_subpixel_equals_a_loop_also_at_the_edge() -> None:
    maps = random_maps((1, 16, 16)).numpy().astype(np.float64)
    points = np.array([[0, 0], [15, 3], [7, 15], [8, 8]])
    got = kp.refine_subpixel(torch.from_numpy(maps).float(), torch.from_numpy(points).float()[None])[0].numpy()
    for (x, y), result in zip(points, got, strict=True):
        total, moment = 0.0, np.zeros(2)
        for v in range(max(y - 2, 0), min(y + 3, 16)):
            for u in range(max(x - 2, 0), min(x + 3, 16)):
                total += maps[0, v, u]
                moment += maps[0, v, u] * np.array([u, v])
        np.testing.assert_allclose(result, moment / total, atol=1e-5)


def test_descriptor_sampling_equals_plain_bilinear() -> None:
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(1, 7, 4, 6))
    points = rng.uniform(0, 1, (30, 2)) * [47, 31]
    got = kp.sample_descriptors(torch.from_numpy(maps).float(), torch.from_numpy(points).float()[None], (48, 32))
    for (x, y), result in zip(points, got[0].numpy(), strict=True):
        # cell n has its centre at pixel 8 n + 3.5
        u, v = np.clip((x - 3.5) / 8, 0, 5), np.clip((y - 3.5) / 8, 0, 3)
        i, j = min(int(u), 4), min(int(v), 2)
        a, b = u - i, v - j
        patch = maps[0, :, j : j + 2, i : i + 2]
        value = patch[:, 0, 0] * (1 - a) * (1 - b) + patch[:, 0, 1] * a * (1 - b)
        value = value + patch[:, 1, 0] * (1 - a) * b + patch[:, 1, 1] * a * b
        np.testing.assert_allclose(result, value / np.linalg.norm(value), atol=1e-5)


def test_heatmap_puts_channels_where_a_loop_puts_them() -> None:
    logits = torch.randn(1, 65, 3, 2, generator=torch.Generator().manual_seed(3)).double()
    heat = heatmap(logits)[0].numpy()
    expected = np.zeros((24, 16))
    for j in range(3):
        for i in range(2):
            exponentials = np.exp(logits[0, :, j, i].numpy())
            for channel in range(64):
                value = exponentials[channel] / exponentials.sum()
                expected[8 * j + channel // 8, 8 * i + channel % 8] = value
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_batch_equals_single() -> None:
    maps = random_maps((5, 64, 64), 7)
    maps = torch.from_numpy(np.stack([cv2.GaussianBlur(m.numpy(), (0, 0), 1.0) for m in maps]))
    together = kp.top_k(kp.non_maximum_suppression(maps, 4), 50, 0.3, 4)
    refined = kp.refine_subpixel(maps, together.keypoints)
    for i in range(5):
        alone = kp.top_k(kp.non_maximum_suppression(maps[i : i + 1], 4), 50, 0.3, 4)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[i])
        assert torch.equal(kp.refine_subpixel(maps[i : i + 1], alone.keypoints)[0], refined[i])
