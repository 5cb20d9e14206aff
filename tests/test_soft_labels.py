"""Heat maps in label files, and soft labels, against loops in float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from frontend.errors import DataError
from frontend.training.datasets import PairConfig, WarpedPairs
from frontend.training.labels import (
    LabelledPhoto,
    decode_heatmap,
    encode_heatmap,
    load_labelled_photos,
    read_heatmap,
    read_labels,
    write_labels,
)
from frontend.training.photometric import PhotometricConfig
from frontend.training.soft_labels import soft_labels, warp_probabilities

H = np.array([[0.71, 0.12, -3.0], [-0.08, 0.66, 4.0], [4e-4, -2e-4, 1]])


def test_the_coding_errs_by_no_more_than_it_says() -> None:
    p = np.concatenate([np.linspace(0, 1, 100001), np.geomspace(1e-9, 1, 100001)]).astype(np.float32)
    error = np.abs(decode_heatmap(encode_heatmap(p)).astype(np.float64) - p)
    bound = np.sqrt(p.astype(np.float64)) / 255 + 1 / 510**2
    assert (error <= bound * (1 + 1e-4) + 1e-7).all()
    # and by nearly as much somewhere, so the statement is not idle
    assert (error > 0.95 * bound)[p > 0.5].any()
    for value, stated in ((1.0, 0.004), (0.1, 0.0013), (0.01, 0.0004)):
        assert error[np.abs(p - value) < 0.05 * value].max() <= stated
    assert encode_heatmap(np.array([-0.1, 0, 3.7e-6, 3.9e-6, 1, 1.0001], np.float32)).tolist() == [0, 0, 0, 1, 255, 255]
    assert decode_heatmap(np.array([0, 255], np.uint8)).tolist() == [0, 1]


def test_label_files_hold_a_heat_map_or_none(tmp_path: Path) -> None:
    points, scores = np.array([[10.5, 20.25]], np.float32), np.array([0.5], np.float32)
    heat = np.random.default_rng(0).random((30, 45)).astype(np.float32) ** 6
    path = tmp_path / "a.npz"
    write_labels(path, points, scores, (90, 60))
    assert read_heatmap(path) is None
    write_labels(path, points, scores, (90, 60), heat)
    coded = read_heatmap(path)
    assert coded is not None
    np.testing.assert_array_equal(coded, np.rint(255 * np.sqrt(heat.astype(np.float64))))
    np.testing.assert_array_equal(read_labels(path)[0], points)
    np.savez(path, keypoints=points, scores=scores, image_size=np.array([90, 60]), heatmap=heat)
    with pytest.raises(DataError, match=r"has a heat map float32 \(30, 45\); expected \(H, W\) uint8"):
        read_heatmap(path)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read"):
        read_heatmap(path)


def scattered(heat: np.ndarray, H: np.ndarray, width: int, height: int) -> np.ndarray:
    out = np.zeros((height, width))
    for y, x in np.ndindex(heat.shape):
        a, b, w = H @ [x, y, 1]
        u, v = a / w, b / w
        for j in (int(np.floor(v)), int(np.floor(v)) + 1):
            for i in (int(np.floor(u)), int(np.floor(u)) + 1):
                if 0 <= i < width and 0 <= j < height:
                    out[j, i] += float(heat[y, x]) * (1 - abs(u - i)) * (1 - abs(v - j))
    return out


@pytest.mark.parametrize("zoom", [1.0, 2.3])
def test_warping_scatters_the_mass_of_every_pixel(zoom: float) -> None:
    heat = np.random.default_rng(1).random((110, 95)).astype(np.float32)
    heat[heat < 0.05] = 0
    transform = np.diag([zoom, zoom, 1]) @ H
    found = warp_probabilities(heat, transform, (48, 40))
    np.testing.assert_allclose(found, scattered(heat, transform, 48, 40), rtol=1e-9, atol=1e-12)
    assert found.max() > 0.5


def test_warping_keeps_mass_and_centre_of_a_peak() -> None:
    heat = np.zeros((40, 40), np.float32)
    heat[19:22, 20] = 0.2, 0.5, 0.1
    for scale in (0.4, 1.0, 1.7):
        transform = np.array([[scale, 0, 0.3], [0, scale, -0.4], [0, 0, 1]])
        view = warp_probabilities(heat, transform, (80, 80))
        assert view.sum() == pytest.approx(0.8, abs=1e-6)
        centre = [(view.sum(axis) * np.arange(80)).sum() / view.sum() for axis in (0, 1)]
        source = [20, (19 * 0.2 + 20 * 0.5 + 21 * 0.1) / 0.8]
        np.testing.assert_allclose(centre, [scale * source[0] + 0.3, scale * source[1] - 0.4], atol=1e-6)


def test_soft_labels_are_the_pixels_and_the_rest() -> None:
    values = np.random.default_rng(2).random((16, 24)) ** 3
    values[:8] *= 0.05
    found = soft_labels(values)
    assert found.shape == (65, 2, 3)
    assert found.dtype == np.float32
    for j, i in np.ndindex(2, 3):
        cell = [float(values[8 * j + n // 8, 8 * i + n % 8]) for n in range(64)]
        total = sum(cell)
        assert (total > 1) == (j == 1)
        expected = [*cell, 1 - total] if total <= 1 else [*(value / total for value in cell), 0.0]
        np.testing.assert_allclose(found[:, j, i], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-6)


@pytest.fixture(scope="module")
def photo() -> LabelledPhoto:
    """Labelled points on a flat photograph, and a heat map of half its size with a peak at each."""
    rng = np.random.default_rng(5)
    cells = np.stack(np.meshgrid(np.arange(8, 236, 24), np.arange(8, 176, 24)), -1).reshape(-1, 2)
    cells = cells + rng.integers(-3, 4, cells.shape)
    heat = np.zeros((180, 240), np.float32)
    heat[cells[:, 1], cells[:, 0]] = 0.9
    image = rng.integers(0, 256, (360, 480), dtype=np.uint8)
    return LabelledPhoto(image, (cells + 0.5) * 2 - 0.5, np.ones(len(cells), np.float32), encode_heatmap(heat))


QUIET = PairConfig(size=(256, 192), noise=PhotometricConfig(probability=0.0), label_spacing=0)


def test_samples_have_soft_labels_where_their_points_are(photo: LabelledPhoto) -> None:
    data = WarpedPairs(0, photos=[photo], config=dataclasses.replace(QUIET, soft=True, mirror=0.5))
    on, checked = [], 0
    for index in range(12):
        sample = data[index]
        soft = sample["soft"].double().numpy()
        assert sample["soft"].dtype == torch.float32
        assert soft.shape == (2, 65, 24, 32)
        np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
        for view in range(2):
            points = sample["points"][view][sample["valid"] & sample["labelled"]].double().numpy()
            for x, y in points:
                if 1 < x < 254 and 1 < y < 190:
                    # the peak's mass lies on the four pixels about the point
                    around = 0.0
                    for j in (int(y), int(y) + 1):
                        for i in (int(x), int(x) + 1):
                            around += soft[view, 8 * (j % 8) + i % 8, j // 8, i // 8]
                    on.append(around)
                    checked += 1
    assert checked > 200
    # less than 0.9 only where several points share a cell
    assert np.quantile(on, 0.2) > 0.89


def test_the_rest_of_a_sample_does_not_depend_on_soft_labels_or_mixing(photo: LabelledPhoto) -> None:
    plain = WarpedPairs(3, photos=[photo], config=QUIET)[5]
    config = dataclasses.replace(QUIET, soft=True, mix_tokens=0.7)
    both = [WarpedPairs(3, photos=[photo], config=config)[5] for _ in range(2)]
    assert set(both[0]) - set(plain) == {"soft", "pasted", "partner"}
    assert all(torch.equal(value, both[0][name]) for name, value in plain.items())
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    drawn = [WarpedPairs(3, photos=[photo], config=config)[n]["pasted"] for n in range(20)]
    assert 5 < sum(bool(cells.any()) for view in drawn for cells in view) < 38


def test_soft_labels_need_heat_maps(photo: LabelledPhoto, tmp_path: Path) -> None:
    config = dataclasses.replace(QUIET, soft=True)
    without = dataclasses.replace(photo, heatmap=None)
    with pytest.raises(DataError, match="1 of 2 photographs have no heat map"):
        WarpedPairs(0, photos=[photo, without], config=config)
    cv2.imwrite(str(tmp_path / "a.png"), photo.image)
    write_labels(tmp_path / "a.png.npz", photo.points.astype(np.float32), photo.scores, (480, 360))
    assert len(WarpedPairs(0, tmp_path, tmp_path, QUIET).photos) == 1
    with pytest.raises(DataError, match=r"a\.png\.npz has no heat map"):
        WarpedPairs(0, tmp_path, tmp_path, config)
    assert photo.heatmap is not None
    heat = decode_heatmap(photo.heatmap)
    write_labels(tmp_path / "a.png.npz", photo.points.astype(np.float32), photo.scores, (480, 360), heat)
    (loaded,) = load_labelled_photos(tmp_path, tmp_path, 480, heatmaps=True)
    assert loaded.heatmap is not None
    np.testing.assert_array_equal(loaded.heatmap, photo.heatmap)
