"""Views of photographs made on the network's device: the warp and the photometric noise of training pairs, in batches.

What is drawn at random is drawn with the sample, from its number, and travels with it as numbers; nothing here has a
random state. The geometry is that of the path through OpenCV. The noise is of the same kinds and ranges, but not the
same: shadows have analytic soft edges, and compression is the quantised cosine transform of JPEG alone.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from frontend.homography import warp_points
from frontend.training.photometric import PhotometricConfig, motion_kernel
from frontend.types import Float32Array

# columns of the vector of a view's noise; then seven for each shadow
_CONTRAST, _GAIN, _SHIFT, _EXPONENT, _NOISE, _QUALITY = range(6)
_COLUMNS = 6
# ISO/IEC 10918-1, table K.1: steps of the quantisation of luminance
_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def draw_noise(
    rng: np.random.Generator, size: tuple[int, int], config: PhotometricConfig
) -> tuple[Float32Array, Float32Array]:
    """Draw the photometric noise of a view, with the probabilities of :func:`photometric.photometric_noise`.

    Args:
        rng: source of randomness.
        size: (width, height) of the view, pixels.
        config: ranges.

    Returns:
        Numbers for :func:`add_noise`: (6 + 7 shadows,) float32, and the blur's kernel, (k, k) float32 of sum 1, k the
        same for all draws of one config.
    """
    p = config.probability
    shadows = np.tile(np.array([0, 0, 1, 1, 0, 1, 1], np.float32), (config.shadows, 1))
    if config.shadows and rng.random() < p:
        for n in range(rng.integers(1, config.shadows + 1)):
            strength = rng.uniform(config.shadow_strength, 1.0)
            factor = strength if rng.random() < 0.7 else 1 / max(strength, 0.5)
            centre, axes = rng.uniform(0, 1, 2) * size, rng.uniform(8, max(size[0] / 2, 9) + 8, 2)
            shadows[n] = (*centre, *axes, rng.uniform(0, np.pi), rng.uniform(2, 24), factor)
    row = np.array([1, 1, 0, 1, 0, 0], np.float32)
    if rng.random() < p:
        row[_CONTRAST] = np.exp(rng.uniform(*np.log(config.contrast)))
    if config.exposure and rng.random() < 0.5:
        row[_GAIN] = 2 ** (rng.uniform(-config.exposure, config.exposure) / 2.2)
    elif rng.random() < p:
        row[_SHIFT] = rng.uniform(-config.brightness, config.brightness)
    if config.gamma > 1 and rng.random() < p:
        row[_EXPONENT] = np.exp(rng.uniform(-np.log(config.gamma), np.log(config.gamma)))
    reach = max(int(np.ceil(4 * config.blur)), config.motion // 2, 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    kernel[reach, reach] = 1
    if config.motion > 1 and rng.random() < p / 3:
        motion = motion_kernel(rng, config.motion)
        side = len(motion) // 2
        kernel[reach - side : reach + side + 1, reach - side : reach + side + 1] = motion
    elif config.blur > 0 and rng.random() < p:
        profile = cv2.getGaussianKernel(2 * reach + 1, float(rng.uniform(0.2, config.blur)), cv2.CV_32F)
        kernel = profile @ profile.T
    if config.noise > 0 and rng.random() < p:
        row[_NOISE] = rng.uniform(0, config.noise)
    if config.jpeg and rng.random() < p / 2:
        row[_QUALITY] = rng.integers(config.jpeg, 96)
    return np.concatenate([row, shadows.ravel()]).astype(np.float32), kernel


def render(photos: Tensor, back: Tensor, extent: Tensor, reflect: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample photographs through homographies, bilinearly.

    Args:
        photos: (B, S, T) uint8, each padded with zeros at the right and the bottom.
        back: (B, V, 3, 3) float32, pixels of each view to pixels of its photograph.
        extent: (B, 2) integer, (width, height) of each photograph without the padding.
        reflect: (B,) bool; beyond the photograph is its mirror image, the outermost pixel not repeated, or black.
        size: (width, height) of the views.

    Returns:
        (B, V, height, width) float32 grey levels.
    """
    count, views = back.shape[:2]
    width, height = size
    x = torch.arange(width, device=photos.device, dtype=torch.float32)
    y = torch.arange(height, device=photos.device, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 2)
    source = warp_points(pixels, back.flatten(0, 1)).reshape(count, -1, 2)
    source = torch.nan_to_num(source, nan=-1e6, posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6)
    last = (extent[:, None] - 1).float()
    period = (2 * last).clamp_min(1)
    folded = source.remainder(period)
    source = torch.where(reflect[:, None, None], torch.minimum(folded, period - folded), source)
    # with corners aligned, -1 and 1 are the centres of the outermost pixels
    frame = torch.tensor([photos.shape[2] - 1, photos.shape[1] - 1], device=photos.device, dtype=torch.float32)
    grid = (source * (2 / frame) - 1).clamp(-3, 3).reshape(count, views * height, width, 2)
    values = functional.grid_sample(photos[:, None].float(), grid, padding_mode="zeros", align_corners=True)
    return values.reshape(count, views, height, width)


def hash_normal(seeds: Tensor, count: int) -> Tensor:
    """Standard normal values, a function of the seed and the place alone (a mixing of bits, then Box & Muller 1958).

    Args:
        seeds: (N,) int64.
        count: values for each.

    Returns:
        (N, count) float32, the same on every device to the rounding of logarithm and cosine.
    """
    low = (1 << 32) - 1
    place = torch.arange(2 * count, device=seeds.device)
    bits = (place + seeds[:, None] * 0x9E3779B1) & low
    # the finaliser of MurmurHash3
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ((bits ^ (bits >> shift)) * factor) & low
    uniform = ((bits ^ (bits >> 16)).double() + 0.5) / (1 << 32)
    first, second = uniform.float().chunk(2, dim=1)
    return (-2 * first.clamp_max(1 - 2**-24).log()).sqrt() * torch.cos(2 * torch.pi * second)


def _cosines(device: torch.device) -> Tensor:
    """The 8 x 8 matrix of the orthonormal discrete cosine transform."""
    k = torch.arange(8, device=device, dtype=torch.float32)
    matrix = torch.cos((2 * k[None] + 1) * k[:, None] * (torch.pi / 16)) / 2
    matrix[0] /= 2**0.5
    return matrix


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """What a JPEG compression leaves of gray images: their 8 x 8 cosine transforms, quantised.

    Args:
        images: (N, H, W) float32 grey levels, H and W multiples of 8.
        quality: (N,) float32 in [1, 100], as libjpeg counts it; 0 leaves an image as it is.

    Returns:
        (N, H, W) float32.
    """
    count, height, width = images.shape
    q = quality.clamp_min(1)
    scale = torch.where(q < 50, 5000 / q, 200 - 2 * q)[:, None, None]
    table = torch.tensor(_STEPS, device=images.device, dtype=torch.float32)
    steps = ((table * scale + 50) / 100).floor().clamp(1, 255)[:, None, None]
    matrix = _cosines(images.device)
    blocks = (images - 128).reshape(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    spectrum = matrix @ blocks @ matrix.T
    blocks = matrix.T @ ((spectrum / steps).round() * steps) @ matrix
    restored = (blocks.transpose(2, 3).reshape(images.shape) + 128).round().clamp(0, 255)
    return torch.where((quality > 0)[:, None, None], restored, images)


def _shade(images: Tensor, shadows: Tensor) -> Tensor:
    """Multiply by soft elliptical shadows and lights, (N, S, 7)."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device, dtype=torch.float32)
    y = torch.arange(height, device=images.device, dtype=torch.float32)[:, None]
    for number in range(shadows.shape[1]):
        cx, cy, a, b, angle, softness, factor = shadows[:, number, :, None, None].unbind(1)
        cosine, sine = angle.cos(), angle.sin()
        u, v = (x - cx) * cosine + (y - cy) * sine, (y - cy) * cosine - (x - cx) * sine
        distance = (1 - torch.hypot(u / a, v / b)) * torch.minimum(a, b)
        images = images * (1 + (factor - 1) * torch.sigmoid(2 * distance / softness))
    return images


def add_noise(images: Tensor, rows: Tensor, kernels: Tensor, seeds: Tensor) -> Tensor:
    """Change images as light, optics, sensor and compression might, in this order.

    Args:
        images: (N, H, W) float32 grey levels.
        rows: (N, 6 + 7 S) float32 of :func:`draw_noise`.
        kernels: (N, k, k) float32 of :func:`draw_noise`.
        seeds: (N,) int64, of the sensor's noise.

    Returns:
        (N, H, W) uint8.
    """
    column = {n: rows[:, n, None, None] for n in range(_COLUMNS)}
    out = images
    if rows.shape[1] > _COLUMNS:
        out = _shade(out, rows[:, _COLUMNS:].reshape(len(rows), -1, 7))
    mean = out.mean(dim=(1, 2), keepdim=True)
    out = (out - mean) * column[_CONTRAST] + mean
    gain = column[_GAIN]
    out = torch.where(gain != 1, (out * gain).clamp(0, 255), out + column[_SHIFT])
    exponent = column[_EXPONENT]
    out = torch.where(exponent != 1, (out.clamp(0, 255) / 255) ** exponent * 255, out)
    reach = kernels.shape[-1] // 2
    padded = functional.pad(out[None], (reach, reach, reach, reach), mode="reflect")
    out = functional.conv2d(padded, kernels[:, None], groups=len(out))[0]
    out = out + hash_normal(seeds, out[0].numel()).reshape(out.shape) * column[_NOISE]
    out = out.round().clamp(0, 255)
    return compress(out, rows[:, _QUALITY]).to(torch.uint8)


@torch.no_grad()
def finish_views(batch: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Make the images of a batch of pairs where the batch is.

    Args:
        batch: of :class:`frontend.training.datasets.WarpedPairs` with ``PairConfig(on_device=True)``.
        size: (width, height) of the views.

    Returns:
        The batch with ``image`` (B, 2, H, W) uint8 instead of what it is made from.
    """
    made_from = ("photo", "back", "extent", "reflect", "noise", "kernel", "noise_seed")
    photo, back, extent, reflect, noise, kernel, seed = (batch[name] for name in made_from)
    count, views = back.shape[:2]
    every = reflect.repeat_interleave(views)
    rendered = render(photo.flatten(0, 1), back.flatten(0, 1)[:, None], extent.flatten(0, 1), every, size)
    # OpenCV's warp rounds to whole grey levels
    images = add_noise(rendered[:, 0].round(), noise.flatten(0, 1), kernel.flatten(0, 1), seed.flatten())
    rest = {name: value for name, value in batch.items() if name not in made_from}
    return {**rest, "image": images.reshape(count, views, *images.shape[1:])}
