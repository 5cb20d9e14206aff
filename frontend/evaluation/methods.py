"""The methods that benchmarks compare: image in, features out, all within one budget of keypoints.

Every method returns unit descriptors, so that one matcher serves all: the largest dot product is the smallest
Euclidean distance, and for binary descriptors the smallest Hamming distance (see :func:`unit_binary`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frontend.errors import ConfigError, RegistryError, WeightsError
from frontend.matching import check_matcher
from frontend.registry import Registry
from frontend.types import Features, Float32Array

Method = Callable[[NDArray[np.uint8]], Features]
"""(H, W, 3) uint8 BGR to features, at most ``max_keypoints`` of them."""


@dataclass(frozen=True)
class MethodConfig:
    """What all methods of a comparison share.

    Attributes:
        max_keypoints: budget, the strongest responses first; >= 1.
        device: of networks: "auto", "cpu", "cuda" or "cuda:N".
        runtime: of networks, see :meth:`frontend.SuperPoint.from_pretrained`.
        precision: the same.
    """

    max_keypoints: int = 1024
    device: str = "auto"
    runtime: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.max_keypoints < 1:
            raise ConfigError(f"max_keypoints is {self.max_keypoints}; expected at least 1")


METHODS: Registry[Callable[[MethodConfig], Method]] = Registry("method", "superpoint.methods")
"""Factories of methods by name. Released models and weight files need no entry."""


def split_method(name: str) -> tuple[str, str]:
    """What makes the features of a method, and what matches them: "superpoint-edge+lightglue" names both.

    Args:
        name: as a user gives it: extractor and matcher with "+" between them; of an extractor alone the matcher is
            "mnn".
    """
    extractor, plus, matcher = name.rpartition("+")
    return (extractor, matcher) if plus and name not in METHODS and not Path(name).is_file() else (name, "mnn")


def matchers_of(names: Iterable[str]) -> dict[str, str]:
    """Of methods as a user gives them, those that have another matcher than "mnn"."""
    split = {name: split_method(name)[1] for name in names}
    return {name: matcher for name, matcher in split.items() if matcher != "mnn"}


def create_method(name: str, config: MethodConfig | None = None) -> Method:
    """Make a method by name.

    Args:
        name: a registered method, a released model, or the path of a weight file; perhaps with a matcher, see
            :func:`split_method`.
        config: budget and device.

    Raises:
        RegistryError: no method, model or file has this name.
        WeightsError: a weight file is corrupt, or not the released one.
        ConfigError: the runtime or the precision is not to be had here.
    """
    config = config or MethodConfig()
    name, matcher = split_method(name)
    check_matcher(matcher)
    if name in METHODS:
        return METHODS.get(name)(config)
    from frontend.extractor import ExtractorConfig, SuperPoint
    from frontend.weights import list_models, resolve

    try:
        resolve(name)
    except WeightsError as error:
        models = list_models()
        if name in models:
            raise
        known = ", ".join([*METHODS, *sorted(models)])
        raise RegistryError(f"unknown method '{name}'; expected a weight file or one of: {known}") from error
    settings = ExtractorConfig(max_keypoints=config.max_keypoints)
    return SuperPoint.from_pretrained(
        name, config=settings, device=config.device, runtime=config.runtime, precision=config.precision
    ).extract


def computed_by(methods: Mapping[str, Method]) -> dict[str, str]:
    """Runtime and precision of those methods that are networks, such as "openvino float32"; by name."""
    backends = {name: getattr(getattr(method, "__self__", None), "backend", None) for name, method in methods.items()}
    return {name: f"{b.runtime} {b.precision}" for name, b in backends.items() if b is not None}


def unit_binary(bits: NDArray[np.uint8]) -> Float32Array:
    """Binary descriptors as unit vectors: each of B bits becomes +-1/sqrt(B).

    The dot product is 1 - 2 h / B for the Hamming distance h. B = 256 (ORB) makes every term a power of two, so
    the products are exact in float32 and equal distances stay equal.

    Args:
        bits: (N, B / 8) uint8, packed.

    Returns:
        (N, B) float32.
    """
    unpacked = np.unpackbits(bits, axis=1).astype(np.float32)
    return np.asarray((2.0 * unpacked - 1.0) / np.sqrt(np.float32(unpacked.shape[1])), np.float32)


def unit_rows(descriptors: Float32Array) -> Float32Array:
    """Rows divided by their Euclidean length; rows of zeros stay zeros. (N, D) float32."""
    length = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return np.asarray(descriptors / np.where(length > 0, length, 1.0), np.float32)


def root_descriptors(descriptors: Float32Array) -> Float32Array:
    """RootSIFT: the square root of the L1-normalised descriptor (Arandjelovic & Zisserman 2012); of unit length.

    Args:
        descriptors: (N, D) float32, >= 0.

    Returns:
        (N, D) float32.
    """
    total = descriptors.sum(axis=1, keepdims=True)
    return np.asarray(np.sqrt(descriptors / np.where(total > 0, total, 1.0)), np.float32)


def _gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8) if image.ndim == 3 else image


def _opencv_method(
    detector: Any,
    dimension: int,
    convert: Callable[[NDArray[Any]], Float32Array],
    name: str,
    budget: int,
    place: Callable[[Any, tuple[int, int]], tuple[float, float]] = lambda point, _: point.pt,
) -> Method:
    """A method from an OpenCV Feature2D; the ``budget`` strongest responses, best first, each at its ``place``."""

    def extract(image: NDArray[np.uint8]) -> Features:
        size = (image.shape[1], image.shape[0])
        found, raw = detector.detectAndCompute(_gray(image), None)
        if raw is None or len(found) == 0:
            nothing = np.zeros((0, 2), np.float32)
            return Features(nothing, nothing[:, 0], np.zeros((0, dimension), np.float32), size, name)
        response = np.array([point.response for point in found], np.float32)
        best = np.argsort(-response, kind="stable")[:budget]
        points = np.array([place(found[i], size) for i in best], np.float32)
        # Scores of Features lie in (0, 1]; only their order matters here.
        scores = np.clip(response[best] / max(float(response.max()), 1e-12), 1e-12, 1.0).astype(np.float32)
        return Features(points, scores, convert(raw[best]), size, name)

    return extract


def _sift_detector(config: MethodConfig, contrast: float = 0.04) -> Any:
    # Precise upscaling removes a bias of OpenCV's localisation: the baseline at its best.
    return cv2.SIFT.create(
        nfeatures=config.max_keypoints,
        nOctaveLayers=3,
        contrastThreshold=contrast,
        edgeThreshold=10.0,
        sigma=1.6,
        enable_precise_upscale=True,
    )


@METHODS.register("sift")
def sift(config: MethodConfig) -> Method:
    """SIFT (Lowe 2004) by OpenCV, default thresholds."""
    return _opencv_method(_sift_detector(config), 128, unit_rows, "sift", config.max_keypoints)


@METHODS.register("sift-filled")
def sift_filled(config: MethodConfig) -> Method:
    """The same with no least contrast, so that it fills the budget where its default leaves a fifth of it unused."""
    return _opencv_method(_sift_detector(config, 0.0), 128, unit_rows, "sift-filled", config.max_keypoints)


@METHODS.register("rootsift")
def rootsift(config: MethodConfig) -> Method:
    """SIFT keypoints with RootSIFT descriptors."""
    return _opencv_method(_sift_detector(config), 128, root_descriptors, "rootsift", config.max_keypoints)


@METHODS.register("orb")
def orb(config: MethodConfig) -> Method:
    """ORB (Rublee et al. 2011) by OpenCV, default thresholds; matched by Hamming distance."""
    detector = cv2.ORB.create(nfeatures=config.max_keypoints)

    def place(point: Any, size: tuple[int, int]) -> tuple[float, float]:
        # OpenCV multiplies positions in a reduced image by the power of 1.2, as if pixels' corners were their centres
        # and its sides had not been rounded: 1.3 px off at the coarsest level; corrected, as SIFT's are
        nominal = detector.getScaleFactor() ** point.octave
        x, y = (
            (v / nominal + 0.5) * side / round(side / nominal) - 0.5 for v, side in zip(point.pt, size, strict=True)
        )
        return x, y

    return _opencv_method(detector, 256, unit_binary, "orb", config.max_keypoints, place)
