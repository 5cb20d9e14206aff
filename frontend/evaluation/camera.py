"""What a camera and the light do to a picture of a plane: exposure, shadows, noise, defocus, JPEG.

The chain follows the light: scene radiance (linear) x illumination field x exposure -> optics (blur) -> sensor
(clipping, shot and read noise) -> tone curve -> JPEG. Nothing here moves a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.types import Float32Array

UInt8Image = NDArray[np.uint8]
Range = tuple[float, float]

DISPLAY_GAMMA = 2.2
"""Exponent between stored grey levels and linear light."""


@dataclass(frozen=True)
class CameraConfig:
    """Ranges from which one exposure of one camera is drawn, uniformly.

    Attributes:
        exposure: stops off the metered exposure (the one that keeps the picture's mean light); highlights clip.
        tone_gamma: exponent of the tone curve on top of the display gamma; above 1 darkens the mid-tones.
        color_cast: largest gain or loss of a colour channel, in stops.
        defocus: standard deviation of the optical blur, pixels.
        read_noise: standard deviation in 8-bit grey levels of the stored picture, the same everywhere.
        shot_noise: standard deviation in 8-bit grey levels at full brightness; grows with the root of the light.
        jpeg_quality: OpenCV's quality, 0-100.
    """

    exposure: Range = (-0.8, 0.8)
    tone_gamma: Range = (0.8, 1.25)
    color_cast: float = 0.2
    defocus: Range = (0.0, 1.0)
    read_noise: Range = (1.0, 5.0)
    shot_noise: Range = (1.0, 5.0)
    jpeg_quality: Range = (45.0, 88.0)


@dataclass(frozen=True)
class LightConfig:
    """Ranges from which the light on the scene is drawn.

    Attributes:
        gradient: fall-off of a directional light from one side of the image to the other, stops.
        max_shadows: largest number of cast shadows (their number is uniform in 1..max_shadows).
        shadow_depth: darkening inside a shadow, stops.
        shadow_softness: standard deviation of a shadow's penumbra as a part of the longest image side.
        shadow_color: largest colour shift inside a shadow, stops a channel.
    """

    gradient: Range = (1.0, 4.5)
    max_shadows: int = 6
    shadow_depth: Range = (1.5, 4.5)
    shadow_softness: Range = (0.002, 0.02)
    shadow_color: float = 0.3


def illumination_field(rng: np.random.Generator, size: tuple[int, int], config: LightConfig) -> Float32Array:
    """Draw the light that falls on each pixel: a directional gradient times coloured soft shadows.

    Args:
        rng: source of randomness.
        size: (width, height) of the image, pixels.
        config: ranges.

    Returns:
        (H, W, 3) float32 factors > 0 on linear light; the gradient is 1 at the image centre.
    """
    width, height = size
    longest = max(width, height)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    fall = rng.uniform(*config.gradient)
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / longest
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / longest
    gradient = np.float32(fall) * (np.float32(np.cos(angle)) * x[None, :] + np.float32(np.sin(angle)) * y[:, None])
    stops = np.repeat(gradient[:, :, None], 3, axis=2)
    for _ in range(int(rng.integers(1, config.max_shadows + 1))):
        mask = _shadow_mask(rng, size, rng.uniform(*config.shadow_softness) * longest)
        tint = rng.uniform(-config.shadow_color, config.shadow_color, size=3)
        depth = np.asarray(rng.uniform(*config.shadow_depth) + tint, dtype=np.float32)
        stops -= mask[:, :, None] * depth
    return np.asarray(np.exp2(stops), dtype=np.float32)


def _shadow_mask(rng: np.random.Generator, size: tuple[int, int], softness: float) -> Float32Array:
    """One cast shadow: a polygon, an ellipse or a set of parallel bars (blinds), blurred. (H, W) in [0, 1]."""
    width, height = size
    longest = max(width, height)
    mask = np.zeros((height, width), dtype=np.float32)
    centre = rng.uniform((0.0, 0.0), (width, height))
    shape = int(rng.integers(0, 3))
    if shape == 0:
        angles = np.sort(rng.uniform(0.0, 2.0 * np.pi, size=int(rng.integers(3, 8))))
        radii = rng.uniform(0.15, 0.5, size=len(angles)) * longest
        corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1.0)
    elif shape == 1:
        axes = rng.uniform(0.1, 0.4, size=2) * longest
        tilt = float(rng.uniform(0.0, 180.0))
        box = ((float(centre[0]), float(centre[1])), (2 * float(axes[0]), 2 * float(axes[1])), tilt)
        cv2.ellipse(mask, box, 1.0, -1)
    else:
        period = rng.uniform(0.08, 0.3) * longest
        duty = rng.uniform(0.3, 0.6)
        angle = rng.uniform(0.0, np.pi)
        x = np.arange(width, dtype=np.float32)[None, :]
        y = np.arange(height, dtype=np.float32)[:, None]
        along = np.cos(angle) * (x - centre[0]) + np.sin(angle) * (y - centre[1])
        mask = np.asarray(np.mod(along / period, 1.0) < duty, dtype=np.float32)
    if softness > 0.3:
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), softness), dtype=np.float32)
    return mask


def expose(
    rng: np.random.Generator,
    image: UInt8Image,
    config: CameraConfig,
    light: Float32Array | None = None,
) -> UInt8Image:
    """Photograph an image again: light, exposure, optics, sensor, tone curve and JPEG.

    Args:
        rng: source of randomness.
        image: (H, W, 3) uint8 BGR.
        config: ranges of the camera.
        light: (H, W, 3) float32 factors on linear light, or None for even light.

    Returns:
        (H, W, 3) uint8 BGR, pixel-aligned with ``image``.
    """
    gain = np.exp2(rng.uniform(*config.exposure) + rng.uniform(-config.color_cast, config.color_cast, size=3))
    linear = np.power(image.astype(np.float32) / 255.0, np.float32(DISPLAY_GAMMA))
    if light is not None:
        mean = float(linear.mean())
        linear = linear * light
        # The camera meters: without this a deep shadow would leave a black picture, which tests nothing.
        linear *= np.float32((mean + 1e-3) / (float(linear.mean()) + 1e-3))
    linear *= gain.astype(np.float32)
    sigma = float(rng.uniform(*config.defocus))
    if sigma > 0.2:
        linear = cv2.GaussianBlur(linear, (0, 0), sigma)
    linear = np.clip(linear, 0.0, 1.0)
    gamma = float(rng.uniform(*config.tone_gamma))
    stored = np.power(linear, np.float32(gamma / DISPLAY_GAMMA)) * np.float32(255.0)
    # Noise is stated in stored grey levels, so it stays visible in dark pictures as it does after a camera's gain.
    read = rng.uniform(*config.read_noise)
    shot = rng.uniform(*config.shot_noise)
    deviation = np.sqrt(np.float32(read**2) + np.float32(shot**2) * linear)
    stored += deviation * rng.standard_normal(stored.shape, dtype=np.float32)
    quality = round(float(rng.uniform(*config.jpeg_quality)))
    corner = (int(rng.integers(0, 8)), int(rng.integers(0, 8)))
    return _jpeg(np.clip(np.rint(stored), 0, 255).astype(np.uint8), quality, corner)


def _jpeg(image: UInt8Image, quality: int, corner: tuple[int, int]) -> UInt8Image:
    """JPEG there and back; ``corner`` (x, y) shifts the 8 x 8 grid.

    Without the shift the blocks of both images of an identity pair would coincide, and their edges would count as
    repeatable structure.
    """
    x, y = corner
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, y, 0, x, 0, cv2.BORDER_REPLICATE)
    _, data = cv2.imencode(".jpg", padded, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[y : y + height, x : x + width])
