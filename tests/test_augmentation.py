"""Mosaics, rotation and scale of synthetic images, repeat factors, and regions."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from frontend.errors import ConfigError
from frontend.homography import HomographyConfig, warp_points
from frontend.training.augmentation import (
    AugmentationConfig,
    augmented,
    corner_shares,
    mosaic,
    repeat_factors,
    repeated_weights,
    similarity,
    warped,
)
from frontend.training.datasets import SyntheticShapes
from frontend.training.photometric import PhotometricConfig
from frontend.training.synthetic import SHAPE_WEIGHTS, SHAPES, Drawing, synthetic_drawing, synthetic_image
from frontend.training.targets import cell_labels

SIZE = (160, 120)
SILENT = PhotometricConfig(probability=0.0)


def dots(seed: int, regions: bool = False) -> Drawing:
    """Bright dots on dark ground, labelled where they are; the region is a disc about each."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(8, 160, 16), np.arange(8, 120, 16)), -1).reshape(-1, 2)
    points = grid + rng.uniform(-3, 3, grid.shape)
    ys, xs = np.mgrid[:120, :160]
    squared = np.stack([(xs - x) ** 2 + (ys - y) ** 2 for x, y in points])
    image = 20 + 200 * np.exp(-squared / (2 * 1.5**2)).sum(0)
    region = np.where(squared.min(0) <= 9, 1 + seed % 9, 0).astype(np.uint8) if regions else None
    return Drawing(np.clip(image, 0, 255).astype(np.uint8), points, region)


def peaks(image: np.ndarray) -> np.ndarray:
    """Local maxima of an image of dots, (N, 2), by a centre of mass about each."""
    top = (image == cv2.dilate(image, np.ones((5, 5), np.uint8))) & (image > 120)
    found = []
    for y, x in np.argwhere(top):
        if 3 <= x < image.shape[1] - 3 and 3 <= y < image.shape[0] - 3:
            window = image[y - 3 : y + 4, x - 3 : x + 4].astype(float) - 20
            dy, dx = np.mgrid[-3:4, -3:4]
            found.append((x + (window * dx).sum() / window.sum(), y + (window * dy).sum() / window.sum()))
    return np.array(found)


def distance(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From each point to the nearest of the others, (N,) pixels."""
    return np.linalg.norm(points[:, None] - others[None], axis=-1).min(axis=1)


CONFIGS = {
    "mosaic": AugmentationConfig(mosaic=1.0),
    "rotate": AugmentationConfig(rotate=40.0),
    "scale": AugmentationConfig(scale_jitter=0.5),
    "all": AugmentationConfig(mosaic=1.0, rotate=40.0, scale_jitter=0.5),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_labels_are_where_the_dots_are_and_every_dot_is_labelled_or_masked(kind: str) -> None:
    labelled = unlabelled = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        drawn = iter(range(4 * seed, 4 * seed + 4))
        drawing, known = augmented(lambda drawn=drawn: dots(next(drawn)), rng, CONFIGS[kind])  # type: ignore[misc]
        assert drawing.image.shape == known.shape == (120, 160)
        assert ((drawing.points >= 0) & (drawing.points <= (159, 119))).all()
        found = peaks(drawing.image)
        # a dot's window has to lie in what is known for its peak to be that of the dot
        sure = cv2.erode(known.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=0).astype(bool)
        at = np.rint(drawing.points).astype(int)
        inner = drawing.points[sure[at[:, 1], at[:, 0]]]
        assert distance(inner, found).max() < 0.4
        at = np.rint(found).astype(int)
        seen = found[sure[at[:, 1], at[:, 0]]]
        assert distance(seen, drawing.points).max() < 0.4
        labelled += len(inner)
        unlabelled += int((~known).sum())
    assert labelled > 120
    assert unlabelled > 0


def test_without_augmentation_nothing_is_drawn_and_all_is_known() -> None:
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    drawing, known = augmented(lambda: dots(0), rng, AugmentationConfig())
    np.testing.assert_array_equal(drawing.image, dots(0).image)
    assert known.all()
    assert rng.random() == untouched.random()


def test_mosaics_are_as_frequent_as_asked_for() -> None:
    rng, drawn = np.random.default_rng(0), 0

    def draw() -> Drawing:
        nonlocal drawn
        drawn += 1
        return Drawing(np.zeros((16, 16), np.uint8), np.zeros((0, 2)))

    for _ in range(400):
        augmented(draw, rng, AugmentationConfig(mosaic=0.3))
    assert (drawn - 400) / 3 == pytest.approx(0.3 * 400, abs=30)


def test_the_parts_of_a_mosaic_meet_at_its_masked_seams() -> None:
    """Four even greys: every pixel beside another grey is masked, and so is its cell."""
    centres = set()
    for seed in range(30):
        parts = [Drawing(np.full((120, 160), 50 * n + 20, np.uint8), np.zeros((0, 2))) for n in range(4)]
        drawing, known = mosaic(parts, np.random.default_rng(seed))
        image = drawing.image.astype(int)
        assert [image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]] == [20, 70, 120, 170]
        across, along = np.abs(np.diff(image, axis=1)) > 0, np.abs(np.diff(image, axis=0)) > 0
        x, y = int(np.argmax(across[0])) + 1, int(np.argmax(along[:, 0])) + 1
        centres.add((x, y))
        assert 40 <= x <= 120
        assert 30 <= y <= 90
        for j, i in zip(*np.nonzero(across), strict=True):
            assert not known[j, i - 1 : i + 3].any()
        for j, i in zip(*np.nonzero(along), strict=True):
            assert not known[j - 1 : j + 3, i].any()
        assert known.sum() == (160 - 4) * (120 - 4)
    assert len(centres) > 20


class Tiles(SyntheticShapes):
    """Samples of the real data set without noise."""

    def __init__(self, config: AugmentationConfig, regions: bool = False) -> None:
        super().__init__(0, SIZE, SILENT, config, regions=regions)


def test_samples_mask_the_cells_of_the_seams() -> None:
    for index in range(10):
        sample = Tiles(CONFIGS["mosaic"])[index]
        mask = sample["mask"].numpy()
        columns, rows = (~mask).all(axis=0), (~mask).all(axis=1)
        assert 1 <= columns.sum() <= 2
        assert 1 <= rows.sum() <= 2
        # nothing else is masked, and the masked columns and rows lie side by side
        np.testing.assert_array_equal(~mask, columns[None] | rows[:, None])
        assert np.ptp(np.flatnonzero(columns)) <= 1
        assert np.ptp(np.flatnonzero(rows)) <= 1
        again = Tiles(CONFIGS["mosaic"])[index]
        assert all(torch.equal(sample[key], again[key]) for key in sample)


def test_samples_mask_what_a_rotation_brings_in() -> None:
    """Where the frame's corner is off by 40 degrees, there is no image; the cells of the centre stay."""
    shares = []
    for index in range(10):
        mask = Tiles(CONFIGS["rotate"])[index]["mask"]
        shares.append(float(mask.float().mean()))
        assert mask[4:11, 7:13].all()
    assert min(shares) < 0.8
    assert max(shares) > 0.8


def test_corners_of_augmented_shapes_are_corners_of_the_image() -> None:
    found = total = 0
    for index in range(60):
        sample = Tiles(CONFIGS["all"])[index]
        image, labels, mask = (sample[key].numpy() for key in ("image", "labels", "mask"))
        response = cv2.cornerMinEigenVal(cv2.GaussianBlur(image, (0, 0), 0.7), 5)
        response = cv2.dilate(response / max(float(response.max()), 1e-12), np.ones((7, 7), np.uint8))
        for j, i in zip(*np.nonzero((labels < 64) & mask), strict=True):
            total += 1
            found += int(response[8 * j + labels[j, i] // 8, 8 * i + labels[j, i] % 8] > 0.01)
    assert total > 200
    assert found >= 0.9 * total


def test_similarity_turns_and_scales_about_the_centre() -> None:
    H = similarity(math.radians(30), 1.5, SIZE)
    centre = np.array([79.5, 59.5])
    np.testing.assert_allclose(warp_points(centre[None], H)[0], centre)
    moved = warp_points(centre[None] + [10.0, 0.0], H)[0] - centre
    np.testing.assert_allclose(moved, [15 * math.cos(math.radians(30)), 15 * math.sin(math.radians(30))])


def test_rotation_and_scale_stay_within_their_ranges() -> None:
    """Measured on two points that every image has."""
    angles, scales = [], []
    for seed in range(300):
        both = np.array([[70.0, 60.0], [90.0, 60.0]])
        drawing = Drawing(np.zeros((120, 160), np.uint8), both)
        config = AugmentationConfig(rotate=25, scale_jitter=0.5)
        points = augmented(lambda d=drawing: d, np.random.default_rng(seed), config)[0].points  # type: ignore[misc]
        along = points[1] - points[0]
        angles.append(math.degrees(math.atan2(along[1], along[0])))
        scales.append(float(np.hypot(*along)) / 20)
    assert -25 <= min(angles) < -23
    assert 23 < max(angles) <= 25
    assert 1 / 1.5 <= min(scales) < 0.69
    assert 1.45 < max(scales) <= 1.5
    assert np.median(scales) == pytest.approx(1.0, abs=0.06)


def test_regions_follow_mosaic_and_warp() -> None:
    """The discs about the dots stay about the dots."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        drawn = iter(range(4))
        drawing, known = augmented(lambda drawn=drawn: dots(next(drawn), regions=True), rng, CONFIGS["all"])  # type: ignore[misc]
        assert drawing.regions is not None
        assert drawing.regions.dtype == np.uint8
        assert set(np.unique(drawing.regions)) == {0, 1, 2, 3, 4}
        at = np.argwhere((drawing.regions > 0) & known)[:, ::-1]
        away = distance(at.astype(float), drawing.points)
        assert np.quantile(away, 0.9) < 3 * 1.5 + 0.5
        at = np.rint(drawing.points).astype(int)
        sure = known[at[:, 1], at[:, 0]]
        assert (drawing.regions[at[sure, 1], at[sure, 0]] > 0).all()


def test_warped_regions_are_those_of_the_warped_shape() -> None:
    """An image's own bright rectangle as region: the two agree pixel by pixel after the warp, but for its edge."""
    image = np.full((120, 160), 30, np.uint8)
    image[40:80, 50:100] = 230
    regions = (image > 100).astype(np.uint8) * 5
    H = similarity(0.5, 1.2, SIZE)
    drawing, _ = warped(Drawing(image, np.zeros((0, 2)), regions), np.ones((120, 160), bool), H)
    assert drawing.regions is not None
    assert np.mean((drawing.image > 130) != (drawing.regions == 5)) < 0.004


@pytest.mark.parametrize("shape", SHAPES)
def test_regions_are_what_the_shape_changed(shape: str) -> None:
    """They cover the corners, the image is the same with them and without, and noise covers all of it."""
    covered = []
    for seed in range(5):
        plain = synthetic_drawing(np.random.default_rng(seed), shape=shape, warp_probability=0)
        asked = synthetic_drawing(np.random.default_rng(seed), shape=shape, warp_probability=0, regions=True)
        assert plain.regions is None
        np.testing.assert_array_equal(plain.image, asked.image)
        assert asked.regions is not None
        assert asked.regions.shape == (120, 160)
        number = list(SHAPES).index(shape) + 1
        assert set(np.unique(asked.regions)) <= {0, number}
        covered.append(float((asked.regions == number).mean()))
        # corners lie on the border of the region
        around = cv2.dilate(asked.regions, np.ones((5, 5), np.uint8))
        at = np.rint(plain.points).astype(int)
        assert np.mean(around[at[:, 1], at[:, 0]] == number) > 0.95 if len(at) else True
    assert max(covered) > (0.98 if shape == "noise" else 0.005)
    if shape != "noise":
        assert max(covered) < 0.95


def test_the_region_of_a_rectangle_is_the_rectangle(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        canvas[4 * 20 : 4 * 50, 4 * 30 + 1 : 4 * 90 + 3] = np.where(canvas[80:200, 121:363] < 128, 255, 0)
        return np.zeros((0, 2))

    monkeypatch.setitem(SHAPES, "star", draw)
    drawing = synthetic_drawing(np.random.default_rng(0), shape="star", warp_probability=0, regions=True)
    expected = np.zeros((120, 160), np.uint8)
    # three quarters of column 30 and of column 90 are covered
    expected[20:50, 30:91] = 1 + list(SHAPES).index("star")
    np.testing.assert_array_equal(drawing.regions, expected)
    still = HomographyConfig(patch=1.0, scale=0, rotation=0, perspective=0, translation=False)
    again = synthetic_drawing(np.random.default_rng(0), shape="star", warp=still, warp_probability=1, regions=True)
    np.testing.assert_array_equal(again.regions, expected)
    turned = synthetic_drawing(np.random.default_rng(0), shape="star", warp_probability=1, regions=True)
    assert turned.regions is not None
    assert 0.05 < np.mean(turned.regions != expected) < 0.5
    assert set(np.unique(turned.regions)) == {0, 1 + list(SHAPES).index("star")}


def test_samples_have_regions_only_where_asked_for() -> None:
    for config in (AugmentationConfig(), CONFIGS["all"]):
        plain, asked = Tiles(config)[1], Tiles(config, regions=True)[1]
        assert set(asked) - set(plain) == {"regions"}
        assert all(torch.equal(plain[key], asked[key]) for key in plain)
        assert asked["regions"].shape == plain["image"].shape
        assert asked["regions"].dtype == torch.uint8


def test_the_default_samples_are_those_of_the_plain_generator() -> None:
    """Image, noise and labels from one stream of random numbers, in this order."""
    data = SyntheticShapes(5)
    for index in range(12):
        rng = np.random.default_rng((5, index))
        image, points = synthetic_image(rng, noise=PhotometricConfig())
        sample = data[index]
        assert list(sample) == ["image", "labels", "mask"]
        np.testing.assert_array_equal(sample["image"], image)
        np.testing.assert_array_equal(sample["labels"], cell_labels(points, SIZE, rng))
        assert sample["labels"].dtype == torch.uint8
        assert sample["mask"].all()
        assert sample["mask"].dtype == torch.bool


def test_repeat_factors_equal_the_formula() -> None:
    shares = [0.5, 0.25, 0.16, 0.08, 0.01, 0.0]
    expected = [max(1.0, math.sqrt(0.16 / f)) if f > 0 else 1.0 for f in shares]
    got = repeat_factors(np.array(shares), 0.16)
    np.testing.assert_allclose(got, expected)
    np.testing.assert_allclose(got, [1, 1, 1, math.sqrt(2), 4, 1])


def test_corner_shares_are_those_of_default_images() -> None:
    """Against a count over images that the data set itself would draw."""
    size = (64, 48)
    shares = corner_shares(size)
    np.testing.assert_array_equal(shares, corner_shares(size))
    assert shares.sum() == pytest.approx(1)
    counts = dict.fromkeys(SHAPES, 0)
    for seed in range(500):
        drawing = synthetic_drawing(np.random.default_rng((1 << 20, seed)), size, regions=True)
        assert drawing.regions is not None
        number = int(drawing.regions.max())
        if number:
            counts[list(SHAPES)[number - 1]] += len(drawing.points)
    counted = np.array(list(counts.values())) / sum(counts.values())
    np.testing.assert_allclose(shares, counted, atol=0.06)
    assert shares[list(SHAPES).index("ellipses")] == shares[list(SHAPES).index("noise")] == 0
    assert shares.max() == shares[list(SHAPES).index("checkerboard")] > 0.3


def test_rare_shapes_are_drawn_more_often() -> None:
    size = (64, 48)
    weights = repeated_weights(1.0, size)
    np.testing.assert_allclose(weights, SHAPE_WEIGHTS * repeat_factors(corner_shares(size), 1.0))
    assert repeated_weights(0.0, size) is SHAPE_WEIGHTS
    data = SyntheticShapes(0, size, SILENT, repeat_threshold=1.0, regions=True)
    seen = np.zeros(len(SHAPES))
    for index in range(400):
        number = int(data[index]["regions"].max())
        if number:
            seen[number - 1] += 1
    expected = weights / weights.sum()
    assert expected[0] > 1.5 / 8.5
    np.testing.assert_allclose(seen / seen.sum(), expected, atol=0.06)


def test_settings_out_of_range_are_refused() -> None:
    for name, value in (("mosaic", 1.5), ("rotate", -1.0), ("scale_jitter", math.nan)):
        with pytest.raises(ConfigError, match=f"{name} is .*; expected"):
            AugmentationConfig(**{name: value})
    with pytest.raises(ConfigError, match="repeat_threshold is 2"):
        SyntheticShapes(0, repeat_threshold=2.0)
