"""Gray values, and the geometry of resizing and padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from frontend.errors import ConfigError, ImageError, ShapeError
from frontend.image import (
    MAX_PIXELS,
    is_image_name,
    pad_to_multiple,
    rescale_points,
    resize_to,
    to_gray,
)

# ---- gray -----------------------------------------------------------------------------------------------------


def test_gray_weights_against_plain_arithmetic(make_scene) -> None:
    image = make_scene(30, 40)
    expected = (image.astype(np.float64) @ [0.114, 0.587, 0.299]) / 255
    for given, tolerance in (
        (image, 0.51 / 255),  # OpenCV rounds 8-bit gray to 8 bit
        (image.astype(np.uint16) * 257, 1e-4),
        (image / np.float32(255), 1e-6),
        (image / 255.0, 1e-6),
        (np.dstack([image, np.zeros((30, 40), np.uint8)]), 0.51 / 255),
    ):
        gray = to_gray(given)
        assert gray.dtype == np.float32
        assert gray.shape == (30, 40)
        if given.dtype == np.uint16:
            expected_here = expected * 255 * 257 / 65535
        else:
            expected_here = expected
        np.testing.assert_allclose(gray, expected_here, atol=tolerance)


def test_gray_accepts_views_and_foreign_byte_order(make_scene) -> None:
    image = make_scene(30, 40)
    np.testing.assert_array_equal(to_gray(image[:, ::-1]), to_gray(image)[:, ::-1])
    wide = image[..., 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(to_gray(wide.astype(">u2")), to_gray(wide))
    np.testing.assert_array_equal(to_gray(image[..., :1]), to_gray(image[..., 0]))


def test_gray_range_and_overshoot() -> None:
    assert to_gray(np.full((8, 8), 255, np.uint8)).max() == 1.0
    assert to_gray(np.full((8, 8), 4095, np.uint16)).max() == 1.0
    clipped = to_gray(np.array([[-0.1, 0.5, 1.2]], np.float32))
    np.testing.assert_array_equal(clipped, np.array([[0, 0.5, 1]], np.float32))
    with pytest.raises(ImageError, match=r"\[0, 255\], expected \[0, 1\]"):
        to_gray(np.array([[0.0, 255.0]]))
    with pytest.raises(ImageError, match="NaN"):
        to_gray(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize("shape", [(8,), (8, 8, 2), (8, 8, 5), (1, 8, 8, 3), (0, 8), (8, 0, 3)])
def test_gray_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected"):
        to_gray(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.bool_, np.complex64, object])
def test_gray_refuses_other_types(dtype: type) -> None:
    with pytest.raises(ShapeError, match="expected uint8, uint16 or float"):
        to_gray(np.zeros((8, 8), dtype))


# ---- geometry of resizing -------------------------------------------------------------------------------------


def blob(size: tuple[int, int], centre: tuple[float, float], sigma: float) -> np.ndarray:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2)).astype(np.float32)


def centroid(image: np.ndarray) -> np.ndarray:
    weights = image.astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("longest", [160, 213, 301, 320, 500, 640, 999])
@pytest.mark.parametrize("size", [(320, 240), (241, 319)])
def test_rescaled_point_is_where_the_blob_goes(longest: int, size: tuple[int, int]) -> None:
    centre = np.array([[113.3, 96.8]], np.float32)
    resized, scale = resize_to(blob(size, (113.3, 96.8), 6.0), longest)
    assert max(resized.shape) == longest
    assert resized.dtype == np.float32
    expected = rescale_points(centre, scale)
    assert np.abs(centroid(resized) - expected[0]).max() < 0.05
    back = rescale_points(expected, (1 / scale[0], 1 / scale[1]))
    np.testing.assert_allclose(back, centre, atol=1e-4)


def test_rescaling_keeps_the_outline_and_the_type() -> None:
    # The corners of the image area, half a pixel outside the outer pixel centres, go to the corners again.
    corners = np.array([[-0.5, -0.5], [639.5, 479.5]])
    np.testing.assert_allclose(rescale_points(corners, (0.5, 0.25)), [[-0.5, -0.5], [319.5, 119.5]])
    assert rescale_points(corners.astype(np.float32), (0.5, 0.25)).dtype == np.float32
    tensor = rescale_points(torch.from_numpy(corners), (0.5, 0.25))
    assert tensor.dtype == torch.float64
    np.testing.assert_allclose(tensor.numpy(), [[-0.5, -0.5], [319.5, 119.5]])
    assert rescale_points(np.zeros((0, 2), np.float32), (2.0, 2.0)).shape == (0, 2)
    with pytest.raises(ShapeError, match="floats"):
        rescale_points(np.zeros((3, 2), np.int64), (2.0, 2.0))
    with pytest.raises(ShapeError, match=r"\(3, 3\)"):
        rescale_points(np.zeros((3, 3)), (2.0, 2.0))


def test_resize_edges() -> None:
    gray = np.zeros((10, 1000), np.float32)
    resized, scale = resize_to(gray, 100)
    assert resized.shape == (8, 100)
    assert scale == (0.1, 0.8)
    same, scale = resize_to(gray, 1000)
    assert same is gray
    assert scale == (1.0, 1.0)
    with pytest.raises(ConfigError, match="7"):
        resize_to(gray, 7)
    with pytest.raises(ShapeError, match="expected"):
        resize_to(np.zeros((8, 8, 3), np.float32), 100)


@pytest.mark.parametrize("shape", [(8, 8), (9, 15), (16, 17), (1, 1)])
def test_padding_repeats_the_edge(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    gray = rng.random(shape, dtype=np.float32)
    padded = pad_to_multiple(gray)
    height, width = (-(-side // 8) * 8 for side in shape)
    expected = np.pad(gray, ((0, height - shape[0]), (0, width - shape[1])), mode="edge")
    np.testing.assert_array_equal(padded, expected)
    assert (padded is gray) == (shape == (8, 8))


def test_constants_and_names() -> None:
    assert MAX_PIXELS < 30_000 * 30_000
    assert is_image_name(Path("a/B.JPG"))
    assert not is_image_name(Path("notes.txt"))
