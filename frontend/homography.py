"""Homographies: random sampling, warping of points and images, valid masks, errors.

``H`` is a 3 x 3 matrix that maps homogeneous pixel coordinates of a source image to those of a target image;
pixel coordinates follow :mod:`frontend.types`. Robust estimation from matches is in :mod:`frontend.ransac`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

from frontend.errors import ConfigError, ShapeError
from frontend.types import BoolArray, Float64Array

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


# beyond these nothing of an image is left to be seen, or a rotation is more than all
_LARGEST = {"scale": 2.0, "rotation": 2 * np.pi, "perspective": 1.0, "anisotropy": 2.0, "overhang": 1.0}


@dataclass(frozen=True)
class HomographyConfig:
    """Ranges of the random homographies of SuperPoint (DeTone et al. 2018, section 5.2, figure 6).

    Attributes:
        patch: side of the central crop, relative to the image's, before the other transforms; in (0, 1].
        scale: standard deviation of log scale; the draw is truncated at two of them.
        rotation: largest in-plane rotation to either side, radians; uniform.
        perspective: largest displacement of a corner by the two perspective terms, relative to the image's sides;
            a normal draw truncated at this value, with a standard deviation of half of it.
        anisotropy: standard deviation of the log ratio of the scales along a random direction and across it: the
            foreshortening of a tilted plane; truncated at two of them.
        translation: whether the crop moves; uniformly, as far as it stays within the image.
        overhang: how far, relative to the sides, translation may carry the crop beyond the image.
    """

    patch: float = 0.8
    scale: float = 0.12
    rotation: float = 1.2
    perspective: float = 0.2
    anisotropy: float = 0.0
    translation: bool = True
    overhang: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.patch <= 1:
            raise ConfigError(f"homography patch is {self.patch}; expected a value in (0, 1]")
        for name, largest in _LARGEST.items():
            if not 0 <= getattr(self, name) <= largest:
                raise ConfigError(f"homography {name} is {getattr(self, name)}; expected 0 to {largest:.4g}")


def _truncated_normal(rng: np.random.Generator, sigma: float) -> float:
    return float(np.clip(rng.normal(0.0, sigma), -2 * sigma, 2 * sigma)) if sigma > 0 else 0.0


def _rotation(angle: float) -> Float64Array:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def sample_homography(
    rng: np.random.Generator, size: tuple[int, int], config: HomographyConfig | None = None
) -> Float64Array:
    """Draw a random homography (DeTone et al. 2018, figure 6).

    A central crop is deformed by perspective, scaled, rotated and translated; the homography carries that
    quadrilateral of the image to the full frame.

    Args:
        rng: source of randomness.
        size: (width, height) of the image, pixels; the target has the same size.
        config: the ranges.

    Returns:
        (3, 3) float64, image to target, with H[2, 2] = 1.
    """
    config = config or HomographyConfig()
    width, height = size
    half = config.patch / 2
    # unit-square coordinates about the centre, clockwise from the top left
    quad = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    # symmetric perspective: one side grows while the opposite one shrinks, along both axes
    across = _truncated_normal(rng, config.perspective / 2)
    along = _truncated_normal(rng, config.perspective / 2)
    shear = _truncated_normal(rng, config.perspective / 2)
    quad[:, 1] += np.sign(quad[:, 0]) * np.sign(quad[:, 1]) * across / 2
    quad[:, 0] += np.sign(quad[:, 0]) * np.sign(quad[:, 1]) * along / 2
    quad[:, 0] += np.sign(quad[:, 1]) * shear / 2
    quad *= np.exp(_truncated_normal(rng, config.scale))
    extent = np.array([width, height], dtype=np.float64)
    quad *= extent
    if config.anisotropy > 0:
        axes = _rotation(rng.uniform(-np.pi, np.pi))
        stretch = _truncated_normal(rng, config.anisotropy) / 2
        quad = quad @ axes * np.exp([stretch, -stretch]) @ axes.T
    quad = quad @ _rotation(rng.uniform(-config.rotation, config.rotation)).T / extent
    if config.translation:
        room = np.maximum(0.5 + config.overhang - np.abs(quad).max(axis=0), 0.0)
        quad += rng.uniform(-room, room)
    source = (quad + 0.5) * extent - 0.5
    target = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * extent - 0.5
    return solve_corners(source, target)


def solve_corners(source: Float64Array, target: Float64Array) -> Float64Array:
    """The homography through four point pairs, in float64.

    Args:
        source: (4, 2) points.
        target: (4, 2) points.

    Returns:
        (3, 3) float64 with H[2, 2] = 1.
    """
    rows = np.zeros((8, 8))
    x, y = source.T
    u, v = target.T
    rows[:4, 0], rows[:4, 1], rows[:4, 2] = x, y, 1
    rows[4:, 3], rows[4:, 4], rows[4:, 5] = x, y, 1
    rows[:4, 6], rows[:4, 7] = -u * x, -u * y
    rows[4:, 6], rows[4:, 7] = -v * x, -v * y
    return np.append(np.linalg.solve(rows, np.concatenate([u, v])), 1.0).reshape(3, 3)


def scaling(sx: float, sy: float) -> Float64Array:
    """The homography of a resize by (sx, sy): ``(xy + 0.5) * s - 0.5``, as a (3, 3) float64 matrix."""
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]], dtype=np.float64)


def warp_points(points: Array, H: Array) -> Array:
    """Map points by homographies.

    Args:
        points: (..., N, 2) float pixels, NumPy or torch.
        H: (..., 3, 3) of the same library; leading dimensions broadcast with those of ``points``.

    Returns:
        (..., N, 2) of the same library and type. A point on the line that H sends to infinity gives
        non-finite values.

    Raises:
        ShapeError: the shapes are others, or the points are not floats.
    """
    if points.shape[-1] != 2 or tuple(H.shape[-2:]) != (3, 3):
        given = f"points {tuple(points.shape)} and H {tuple(H.shape)}"
        raise ShapeError(f"got {given}; expected (..., N, 2) and (..., 3, 3)")
    # integers would take what they are moved by without its fraction
    floating = points.dtype.kind == "f" if isinstance(points, np.ndarray) else points.is_floating_point()
    if not floating:
        raise ShapeError(f"points are {points.dtype}; expected floats")
    if not isinstance(points, np.ndarray):
        moved = points @ H[..., :2, :2].mT + H[..., None, :2, 2]
        depth = points @ H[..., 2, :2, None] + H[..., None, 2, 2, None]
        return moved / depth
    moved = points @ np.swapaxes(H[..., :2, :2], -1, -2) + H[..., None, :2, 2]
    depth = points @ H[..., 2, :2, None] + H[..., None, 2, 2, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        result: np.ndarray = (moved / depth).astype(points.dtype, copy=False)
    return result


def warp_image(
    image: np.ndarray,
    H: Float64Array,
    size: tuple[int, int],
    *,
    border: int = cv2.BORDER_CONSTANT,
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """Resample an image through a homography.

    Args:
        image: (H, W) or (H, W, C), any type OpenCV warps.
        H: (3, 3), source to target.
        size: (width, height) of the target, pixels.
        border: OpenCV border mode for pixels from outside the source; constant is 0.
        interpolation: OpenCV interpolation flag.

    Returns:
        (size[1], size[0]) or (size[1], size[0], C), type of ``image``.
    """
    return cv2.warpPerspective(image, H, size, flags=interpolation, borderMode=border)


def prefiltered(image: np.ndarray, H: Float64Array, size: tuple[int, int]) -> tuple[np.ndarray, Float64Array]:
    """What to resample where a homography makes an image smaller: bilinear samples would skip pixels between them.

    The image is halved, each pixel the mean of four, as often as leaves it no coarser than the target: while a pixel of
    the target's centre covers more than two of it.

    Args:
        image: (H, W) or (H, W, C) uint8 or float32.
        H: (3, 3), image to target.
        size: (width, height) of the target, pixels.

    Returns:
        The image or a smaller one, and the homography from that to the target.
    """
    inverse = np.linalg.inv(H)
    x, y, w = inverse @ ((size[0] - 1) / 2, (size[1] - 1) / 2, 1.0)
    jacobian = (inverse[:2, :2] - np.outer((x / w, y / w), inverse[2, :2])) / w
    covered = abs(np.linalg.det(jacobian))
    while covered > 2 and min(image.shape[:2]) > 16:
        height, width = image.shape[:2]
        half = ((width + 1) // 2, (height + 1) // 2)
        image = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
        H = H @ np.linalg.inv(scaling(half[0] / width, half[1] / height))
        covered /= 4
    return image, H


def warp_images(images: torch.Tensor, H: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Resample a batch through homographies, on its device; bilinear, 0 outside.

    Args:
        images: (B, C, H, W) float.
        H: (B, 3, 3), source to target.
        size: (width, height) of the targets; as the sources where None.

    Returns:
        (B, C, size[1], size[0]) float.
    """
    import torch
    from torch.nn import functional

    height, width = images.shape[-2:]
    out_width, out_height = size or (width, height)
    grid_x = torch.arange(out_width, device=images.device, dtype=torch.float32)
    grid_y = torch.arange(out_height, device=images.device, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), dim=-1).reshape(1, -1, 2)
    source = warp_points(pixels, torch.linalg.inv(H.double()).to(torch.float32))
    extent = torch.tensor([width, height], device=images.device, dtype=torch.float32)
    # grid_sample with align_corners=False puts -1 and 1 at the outer edges of the border pixels
    grid = ((source * 2 + 1) / extent - 1).reshape(-1, out_height, out_width, 2)
    # points behind the camera are non-finite or huge; outside the frame they read 0
    grid = torch.nan_to_num(grid, nan=4.0, posinf=4.0, neginf=-4.0).clamp(-4, 4)
    return functional.grid_sample(images, grid.to(images.dtype), padding_mode="zeros", align_corners=False)


def valid_mask(H: Float64Array, size: tuple[int, int], out_size: tuple[int, int], erode: int = 0) -> BoolArray:
    """Which pixels of a warped image come from inside the source.

    Args:
        H: (3, 3), source to target.
        size: (width, height) of the source.
        out_size: (width, height) of the target.
        erode: margin to take off the mask's border, pixels of the target; the frame's own edge counts as border.

    Returns:
        (out_size[1], out_size[0]) bool.
    """
    ones = np.ones((size[1], size[0]), np.uint8)
    mask = cv2.warpPerspective(ones, H, out_size, flags=cv2.INTER_NEAREST)
    return erode_mask(mask, erode).astype(bool)


def erode_mask(mask: np.ndarray, margin: int) -> np.ndarray:
    """Take ``margin`` pixels off a (H, W) uint8 mask, also along the frame's edge."""
    if margin <= 0:
        return mask
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    return cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def corner_error(H_estimated: Float64Array, H_true: Float64Array, size: tuple[int, int]) -> float:
    """Mean distance of the four image corners under two homographies, pixels (DeTone et al. 2018, section 6.3).

    Args:
        H_estimated: (3, 3).
        H_true: (3, 3).
        size: (width, height) of image 0.

    Returns:
        The mean over the corners; infinite where a corner maps to infinity.
    """
    w, h = size[0] - 1, size[1] - 1
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], dtype=np.float64)
    difference = warp_points(corners, np.asarray(H_estimated, np.float64)) - warp_points(corners, H_true)
    error = float(np.linalg.norm(difference, axis=-1).mean())
    return error if np.isfinite(error) else float("inf")
