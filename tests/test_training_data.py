"""Synthetic shapes, photometric noise, targets and warped pairs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from frontend.errors import DataError
from frontend.folders import find_images, output_path
from frontend.homography import warp_points
from frontend.keypoints import non_maximum_suppression
from frontend.training.datasets import PairConfig, SyntheticShapes, WarpedPairs
from frontend.training.labels import (
    LabelledPhoto,
    load_labelled_photos,
    read_labels,
    write_labels,
)
from frontend.training.photometric import PhotometricConfig, motion_kernel, photometric_noise
from frontend.training.synthetic import SHAPES, synthetic_image
from frontend.training.targets import cell_labels, cell_mask, spaced


def corner_response(image: np.ndarray) -> np.ndarray:
    """Least eigenvalue of the structure tensor, relative to its maximum."""
    response = cv2.cornerMinEigenVal(cv2.GaussianBlur(image, (0, 0), 0.7), 5)
    return response / max(float(response.max()), 1e-12)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s not in ("ellipses", "noise")])
def test_labelled_corners_are_corners_of_the_image(shape: str) -> None:
    found, total = 0, 0
    for seed in range(12):
        image, points = synthetic_image(np.random.default_rng(seed), shape=shape, warp_probability=0.5)
        response = cv2.dilate(corner_response(image), np.ones((7, 7), np.uint8))
        inside = points[((points > 6) & (points < np.array([153, 113]))).all(axis=1)]
        xy = np.rint(inside).astype(int)
        total += len(xy)
        found += int((response[xy[:, 1], xy[:, 0]] > 0.01).sum())
        # away from the corners the response is weaker
    assert total > 20
    assert found >= 0.9 * total


@pytest.mark.parametrize("shape", ["ellipses", "noise"])
def test_shapes_without_corners_have_none(shape: str) -> None:
    image, points = synthetic_image(np.random.default_rng(0), shape=shape)
    assert points.shape == (0, 2)
    assert image.std() > 1


def test_polygon_corners_are_placed_to_a_fraction_of_a_pixel() -> None:
    """The corner, refined by OpenCV from the image alone, is where the label says."""
    errors = []
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 0.001)
    for seed in range(40):
        image, points = synthetic_image(np.random.default_rng(seed), shape="checkerboard", warp_probability=0)
        start = points[((points > 12) & (points < np.array([147, 107]))).all(axis=1)].astype(np.float32)
        if len(start):
            refined = cv2.cornerSubPix(image, start[:, None].copy(), (3, 3), (-1, -1), criteria)[:, 0]
            errors.append(np.linalg.norm(refined - start, axis=1))
    assert np.median(np.concatenate(errors)) < 0.35


def test_photometric_noise_keeps_geometry_and_type() -> None:
    ys, xs = np.mgrid[:60, :80]
    image = (((xs // 10 + ys // 10) % 2) * 160 + 40).astype(np.uint8)
    changed = 0
    for seed in range(30):
        noisy = photometric_noise(image, np.random.default_rng(seed), PhotometricConfig())
        assert noisy.shape == image.shape
        assert noisy.dtype == np.uint8
        changed += int(not np.array_equal(noisy, image))
        if noisy.std() > 20:
            assert np.corrcoef(noisy.ravel(), image.ravel())[0, 1] > 0.4
    assert changed > 20
    none = PhotometricConfig(probability=0.0)
    np.testing.assert_array_equal(photometric_noise(image, np.random.default_rng(0), none), image)


def test_cell_labels_of_whole_pixels() -> None:
    rng = np.random.default_rng(0)
    labels = cell_labels(np.array([[0.0, 0], [7, 7], [8, 3], [15, 15], [16, 0], [-1, 4]]), (16, 16), rng)
    assert labels[0, 1] == 3 * 8 + 0
    assert labels[1, 1] == 63
    assert labels[1, 0] == 64
    assert labels[0, 0] in (0, 63)
    best = cell_labels(np.array([[1.0, 1], [5, 5]]), (8, 8), rng, np.array([0.9, 0.1]))
    assert best[0, 0] == 9


def test_cell_labels_of_fractions_are_right_on_average() -> None:
    point, seen = np.array([[3.25, 4.75]]), np.zeros(2)
    for seed in range(2000):
        label = int(cell_labels(point, (8, 8), np.random.default_rng(seed))[0, 0])
        seen += [label % 8, label // 8]
    np.testing.assert_allclose(seen / 2000, point[0], atol=0.04)


def test_cell_mask_needs_the_whole_cell() -> None:
    mask = np.ones((16, 24), bool)
    mask[3, 9] = False
    np.testing.assert_array_equal(cell_mask(mask), [[True, False, True], [True, True, True]])


def test_samples_are_a_function_of_their_number() -> None:
    a, b = SyntheticShapes(3), SyntheticShapes(3)
    for i in (0, 5):
        assert all(torch.equal(a[i][k], b[i][k]) for k in ("image", "labels", "mask"))
    assert not torch.equal(a[0]["image"], a[1]["image"])
    assert not torch.equal(a[0]["image"], SyntheticShapes(4)[0]["image"])


@pytest.fixture(scope="module")
def photo() -> LabelledPhoto:
    """Bright dots on dark ground, labelled where they are."""
    rng = np.random.default_rng(0)
    points = np.stack(np.meshgrid(np.arange(12, 470, 24), np.arange(12, 350, 24)), -1).reshape(-1, 2)
    points = points + rng.uniform(-4, 4, points.shape)
    ys, xs = np.mgrid[:360, :480]
    image = np.full((360, 480), 20.0)
    for x, y in points:
        image += 200 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 1.6**2))
    return LabelledPhoto(np.clip(image, 0, 255).astype(np.uint8), points, np.ones(len(points), np.float32))


def test_pairs_put_labels_and_correspondences_on_the_dots(photo: LabelledPhoto) -> None:
    config = PairConfig(noise=PhotometricConfig(probability=0.0), random_points=0)
    data = WarpedPairs(0, photos=[photo], config=config)
    checked = 0
    for index in range(12):
        sample = data[index]
        images, points, valid = sample["image"].numpy(), sample["points"].numpy(), sample["valid"].numpy()
        assert valid.sum() > 3
        H = sample["H"].numpy().astype(np.float64)
        both = points[:, valid].astype(np.float64)
        np.testing.assert_allclose(warp_points(both[0], H), both[1], atol=2e-2)
        for view in range(2):
            peak = cv2.dilate(images[view], np.ones((3, 3), np.uint8))
            xy = np.rint(both[view]).astype(int)
            assert np.median(peak[xy[:, 1], xy[:, 0]]) > 120
            labels, mask = sample["labels"][view].numpy(), sample["mask"][view].numpy()
            for j, i in zip(*np.nonzero((labels < 64) & mask), strict=True):
                x, y = 8 * i + labels[j, i] % 8, 8 * j + labels[j, i] // 8
                checked += 1
                assert images[view][max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].max() > 60
    assert checked > 500


def test_pairs_mask_what_lies_beyond_the_photograph(photo: LabelledPhoto) -> None:
    data = WarpedPairs(0, photos=[photo], config=PairConfig(noise=PhotometricConfig(probability=0.0)))
    shares = [float(data[i]["mask"].float().mean()) for i in range(20)]
    assert min(shares) < 0.97
    assert max(shares) == 1.0
    assert np.mean(shares) > 0.7


def test_every_photograph_is_seen_once_in_an_epoch(photo: LabelledPhoto) -> None:
    marked = [LabelledPhoto(np.full((60, 80), 10 * n, np.uint8), photo.points[:0], photo.scores[:0]) for n in range(7)]
    data = WarpedPairs(0, photos=marked)
    for epoch in range(2):
        seen = [data._photo(7 * epoch + i, np.random.default_rng(0)).image[0, 0] for i in range(7)]
        assert sorted(seen) == [10 * n for n in range(7)]


def test_label_files_round_trip_and_are_checked(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "sub").mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)
    cv2.imwrite(str(images / "sub" / "a.png"), picture)
    cv2.imwrite(str(images / "b.png"), picture)
    (images / ".hidden.png").write_bytes(b"")
    assert find_images(images) == [Path("b.png"), Path("sub/a.png")]
    points, scores = np.array([[10.5, 20.25], [89, 59]], np.float32), np.array([0.5, 0.1], np.float32)
    path = output_path(labels, Path("sub/a.png"))
    write_labels(path, points, scores, (90, 60))
    assert path == labels / "sub" / "a.png.npz"
    got = read_labels(path)
    np.testing.assert_array_equal(got[0], points)
    np.testing.assert_array_equal(got[1], scores)
    assert got[2] == (90, 60)
    (photo,) = load_labelled_photos(images, labels, 180)
    assert photo.image.shape == (120, 180)
    np.testing.assert_allclose(photo.points, (points + 0.5) * 2 - 0.5)
    write_labels(path, points, scores, (91, 60))
    with pytest.raises(DataError, match="was made for 91 x 60"):
        load_labelled_photos(images, labels, 180)
    for data in (b"no zip", b""):
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            read_labels(path)
    with pytest.raises(DataError, match="is missing"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no image"):
        find_images(labels)
    with pytest.raises(DataError, match="no photograph of"):
        load_labelled_photos(images, tmp_path / "empty", 180)


def test_spaced_labels_are_those_of_greedy_suppression() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-5, 85, 150), rng.uniform(-5, 65, 150)], axis=1)
    scores = rng.permutation(np.linspace(0.01, 1, 150)).astype(np.float32)
    taken: list[int] = []
    for n in np.argsort(-scores):
        pixel = np.rint(points[n])
        inside = (pixel >= 0).all() and (pixel < [80, 60]).all()
        if inside and all(np.abs(pixel - np.rint(points[m])).max() > 4 for m in taken):
            taken.append(int(n))
    kept = np.flatnonzero(spaced(points, scores, (80, 60), 4))
    assert set(kept.tolist()) <= set(taken)
    assert len(kept) >= 0.95 * len(taken) > 20
    assert not spaced(points[:0], scores[:0], (80, 60), 4).any()


def test_spaced_labels_are_those_that_the_network_s_suppression_keeps() -> None:
    rng = np.random.default_rng(1)
    points = np.stack([rng.uniform(-5, 85, 300), rng.uniform(-5, 65, 300)], axis=1)
    scores = (np.ceil(rng.uniform(0, 20, 300)) / 20).astype(np.float32)  # with ties
    pixels = np.rint(points).astype(int)
    inside = ((pixels >= 0) & (pixels < [80, 60])).all(axis=1)
    drawn = np.zeros((64, 80), np.float32)
    for (x, y), score in zip(pixels[inside], scores[inside], strict=True):
        drawn[y, x] = max(drawn[y, x], score)
    kept = non_maximum_suppression(torch.from_numpy(drawn[None, :60]), 4)[0].numpy()
    expected = [bool(i) and kept[y, x] == s for i, (x, y), s in zip(inside, pixels, scores, strict=True)]
    assert spaced(points, scores, (80, 60), 4).tolist() == expected
    assert 20 < sum(expected) < 200


def test_a_distant_view_keeps_fewer_labels_when_they_are_spaced(photo: LabelledPhoto) -> None:
    dense = LabelledPhoto(photo.image, np.repeat(photo.points, 2, axis=0), np.repeat(photo.scores, 2))
    dense.points[1::2] += 5
    dense.scores[1::2] *= 0.5
    counts = []
    for spacing in (0, 8):
        data = WarpedPairs(0, photos=[dense], config=PairConfig(label_spacing=spacing))
        counts.append(sum(int((data[i]["labels"] < 64).sum()) for i in range(6)))
    assert counts[1] < 0.8 * counts[0]


def test_motion_blur_does_not_move_the_image(rng: np.random.Generator) -> None:
    for _ in range(200):
        kernel = motion_kernel(rng, 5)
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        centre = (len(kernel) - 1) / 2
        ys, xs = np.mgrid[: len(kernel), : len(kernel)] - centre
        assert abs((kernel * xs).sum()) < 1e-5
        assert abs((kernel * ys).sum()) < 1e-5


def test_photographs_of_about_the_wanted_size_are_not_resampled(tmp_path: Path, rng: np.random.Generator) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    gray = rng.integers(0, 256, (64, 105), dtype=np.uint8)
    cv2.imwrite(str(images / "a.png"), gray)
    label = output_path(labels, Path("a.png"))
    label.parent.mkdir(parents=True, exist_ok=True)
    write_labels(label, np.array([[3.0, 4.0]], np.float32), np.ones(1, np.float32), (105, 64))
    (photo,) = load_labelled_photos(images, labels, 100)
    np.testing.assert_array_equal(photo.image, gray)
    np.testing.assert_allclose(photo.points, [[3, 4]])
    (smaller,) = load_labelled_photos(images, labels, 80)
    assert max(smaller.image.shape) == 80
