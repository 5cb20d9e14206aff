"""Photometric noise: what light, optics and sensor do to an image, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from frontend.errors import ConfigError
from frontend.types import Float32Array

GrayImage = np.ndarray  # (H, W) uint8
_MOST_STOPS = 16  # every grey level is white by then


@dataclass(frozen=True)
class PhotometricConfig:
    """Ranges of the photometric noise.

    Attributes:
        contrast: factor about the image's mean, uniform between the two in log.
        brightness: largest shift to either side, grey levels.
        gamma: largest exponent (and the inverse of the smallest), uniform in log.
        shadows: largest number of soft elliptical shadows or lights.
        shadow_strength: darkest factor of a shadow (0 is black); lights use its inverse.
        blur: largest standard deviation of the Gaussian blur, pixels.
        motion: largest length of the motion blur, pixels.
        noise: largest standard deviation of the Gaussian sensor noise, grey levels.
        exposure: largest change of the exposure, stops; it takes the place of the brightness in half of the cases.
        jpeg: lowest quality of a JPEG compression, in [1, 100]; 0 is none.
        probability: of each of the effects.
    """

    contrast: tuple[float, float] = (0.4, 1.6)
    brightness: float = 60.0
    gamma: float = 1.8
    shadows: int = 3
    shadow_strength: float = 0.35
    blur: float = 1.2
    motion: int = 5
    noise: float = 12.0
    exposure: float = 0.0
    jpeg: int = 0
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.exposure <= _MOST_STOPS:
            raise ConfigError(f"exposure is {self.exposure}; expected 0 to {_MOST_STOPS} stops")


def _shadow_map(rng: np.random.Generator, shape: tuple[int, int], config: PhotometricConfig) -> np.ndarray:
    # drawn at a quarter of the size: a shadow's border is soft anyway, and the blur costs a sixteenth
    height, width = max(shape[0] // 4, 1), max(shape[1] // 4, 1)
    gain: np.ndarray = np.ones((height, width), np.float32)
    for _ in range(rng.integers(1, config.shadows + 1)):
        strength = rng.uniform(config.shadow_strength, 1.0)
        layer: np.ndarray = np.zeros((height, width), np.float32)
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(2, width // 2 + 3)), int(rng.integers(2, height // 2 + 3)))
        cv2.ellipse(layer, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        layer = cv2.GaussianBlur(layer, (0, 0), float(rng.uniform(0.5, 6.0)))
        factor = strength if rng.random() < 0.7 else 1 / max(strength, 0.5)
        gain *= 1 + (factor - 1) * layer
    return cv2.resize(gain, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def motion_kernel(rng: np.random.Generator, longest: int) -> Float32Array:
    """Draw the kernel of a motion blur: (k, k) float32 of sum 1, k odd and at most ``longest`` or one more."""
    length = int(rng.integers(2, longest + 1)) | 1
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = (length - 1) / 2
    dx, dy = np.cos(angle) * reach, np.sin(angle) * reach
    start = (round(16 * (reach - dx)), round(16 * (reach - dy)))
    end = (round(16 * (reach + dx)), round(16 * (reach + dy)))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, shift=4)
    kernel = kernel + kernel[::-1, ::-1]  # the line as it is drawn lies off the centre, and would move the image
    return kernel / max(float(kernel.sum()), 1e-6)


def photometric_noise(image: GrayImage, rng: np.random.Generator, config: PhotometricConfig) -> GrayImage:
    """Change an image as light, optics and sensor might.

    Light and exposure come first, then blur, then noise, then compression: the order of the physics.

    Args:
        image: (H, W) uint8.
        rng: source of randomness.
        config: the ranges.

    Returns:
        (H, W) uint8, a new array.
    """
    p = config.probability
    out: np.ndarray = image.astype(np.float32)
    if config.shadows and rng.random() < p:
        out *= _shadow_map(rng, image.shape, config)
    if rng.random() < p:
        low, high = np.log(config.contrast[0]), np.log(config.contrast[1])
        mean = float(out.mean())
        out = (out - mean) * float(np.exp(rng.uniform(low, high))) + mean
    if config.exposure and rng.random() < 0.5:
        # grey levels are gamma-encoded light; what exceeds the range is lost, as in a sensor
        stops = rng.uniform(-config.exposure, config.exposure)
        out = np.clip(out * np.float32(2 ** (stops / 2.2)), 0, 255)
    elif rng.random() < p:
        out += rng.uniform(-config.brightness, config.brightness)
    if config.gamma > 1 and rng.random() < p:
        exponent = float(np.exp(rng.uniform(-np.log(config.gamma), np.log(config.gamma))))
        out = cv2.pow(np.clip(out, 0, 255) / np.float32(255), exponent) * np.float32(255)
    if config.motion > 1 and rng.random() < p / 3:
        out = cv2.filter2D(out, -1, motion_kernel(rng, config.motion), borderType=cv2.BORDER_REFLECT)
    elif config.blur > 0 and rng.random() < p:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.2, config.blur)))
    if config.noise > 0 and rng.random() < p:
        out += rng.standard_normal(out.shape, dtype=np.float32) * np.float32(rng.uniform(0, config.noise))
    result: GrayImage = np.clip(np.rint(out), 0, 255).astype(np.uint8)
    if config.jpeg and rng.random() < p / 2:
        quality = int(rng.integers(config.jpeg, 96))
        _, encoded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])
        result = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)
    return result
