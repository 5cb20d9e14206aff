"""The predictor and the pipeline, on networks whose answers are known or random."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from frontend.errors import ConfigError, ShapeError
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.model import MODEL_PRESETS, DenseMaps, SuperPointNet
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.types import Status


class DotNet(SuperPointNet):
    """Answers like a perfect detector of bright dots: the logits are the pixels, and so are the descriptors."""

    def forward(self, image: torch.Tensor, raster: torch.Tensor | None = None) -> DenseMaps:
        cells = torch.nn.functional.pixel_unshuffle(image, 8) * 12
        logits = torch.cat([cells, torch.full_like(cells[:, :1], 6.0)], dim=1)
        blurred = torch.nn.functional.avg_pool2d(image, 8)
        shifted = [blurred.roll((i, j), (2, 3)) for i in range(-5, 6) for j in range(-5, 6)]
        return DenseMaps(logits, torch.cat(shifted, dim=1) - blurred.mean())


def dots(points: np.ndarray, size: tuple[int, int], sigma: float = 1.2) -> np.ndarray:
    ys, xs = np.mgrid[: size[1], : size[0]]
    image = np.zeros((size[1], size[0]))
    for x, y in points:
        image = np.maximum(image, np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2)))
    return (image * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def extractor() -> SuperPoint:
    torch.manual_seed(0)
    return SuperPoint(SuperPointNet().fold(), name="random", device="cpu")


@pytest.fixture(scope="module")
def dot_extractor() -> SuperPoint:
    return SuperPoint(DotNet(), name="dots", device="cpu", config=ExtractorConfig(detection_threshold=0.3))


@pytest.fixture(scope="module")
def constellation() -> np.ndarray:
    rng = np.random.default_rng(5)
    kept: list[np.ndarray] = []
    while len(kept) < 150:
        p = rng.uniform(20, 236, 2)
        if all(np.abs(p - q).max() > 12 for q in kept):
            kept.append(p)
    return np.array(kept)


def test_keypoints_are_where_the_dots_are(dot_extractor: SuperPoint) -> None:
    truth = np.array([[20.0, 14.0], [50.3, 30.6], [77.0, 40.2]])
    features = dot_extractor.extract(dots(truth, (99, 61)))
    assert features.image_size == (99, 61)
    assert len(features) == 3
    found = features.keypoints[np.argsort(features.keypoints[:, 0])]
    assert np.abs(found - truth).max() < 0.8
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    assert (np.diff(features.scores) <= 0).all()


@pytest.mark.parametrize("resize", [None, 131, 512])
def test_keypoints_of_a_resized_image_have_no_bias(constellation: np.ndarray, resize: int | None) -> None:
    """A wrong half-pixel rule would shift all of them by 0.25 pixel (twice the size) or 0.48 (half of it)."""
    config = ExtractorConfig(detection_threshold=0.02, resize=resize, max_keypoints=150, nms_radius=3)
    extractor = SuperPoint(DotNet(), device="cpu", config=config)
    features = extractor.extract(dots(constellation, (256, 256), sigma=1.6))
    offsets = features.keypoints[:, None] - constellation
    nearest = np.abs(offsets).max(axis=2).argmin(axis=1)
    error = offsets[np.arange(len(features)), nearest]
    assert len(set(nearest.tolist())) > 100
    error = error[np.abs(error).max(axis=1) < 2]
    assert len(error) > 100
    assert np.abs(error.mean(axis=0)).max() < 0.15


def test_batch_of_mixed_sizes_equals_single_images(extractor: SuperPoint) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in [(60, 81), (64, 88, 3), (33, 40), (64, 88)]]
    config = dataclasses.replace(extractor.config, detection_threshold=0.0, max_keypoints=50)
    extractor = SuperPoint(extractor.network, config=config, device="cpu")
    for image, together in zip(images, extractor.extract_batch(images), strict=True):
        alone = extractor.extract(image)
        assert together.image_size == (image.shape[1], image.shape[0])
        assert len(alone) == len(together) > 0
        np.testing.assert_allclose(alone.scores, together.scores, rtol=1e-3)
        np.testing.assert_allclose(alone.keypoints, together.keypoints, atol=0.01)
        np.testing.assert_allclose(alone.descriptors, together.descriptors, atol=1e-3)


def test_no_keypoint_is_in_the_border_or_the_padding(extractor: SuperPoint) -> None:
    image = np.random.default_rng(1).integers(0, 256, (61, 83), dtype=np.uint8)
    config = ExtractorConfig(detection_threshold=0.0, subpixel=False, border=5)
    keypoints = SuperPoint(extractor.network, config=config, device="cpu").extract(image).keypoints
    assert len(keypoints) > 20
    assert (keypoints >= 5).all()
    assert (keypoints <= [83 - 6, 61 - 6]).all()


def test_stages_compose_to_extract(extractor: SuperPoint) -> None:
    image = np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8)
    batch = extractor.preprocess([image])
    assert batch.images.shape == (1, 1, 64, 64)
    found = extractor.postprocess(extractor.forward(batch), batch)
    (features,) = extractor.collect(found, batch)
    np.testing.assert_array_equal(features.keypoints, extractor.extract(image).keypoints)
    assert found.keypoints.keypoints.shape == (1, 1024, 2)


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (8, 8)])
def test_small_and_black_images_give_features_or_none(extractor: SuperPoint, shape: tuple[int, int]) -> None:
    for image in (np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
        features = extractor.extract(image)
        assert features.keypoints.shape == (len(features), 2)
        assert features.descriptors.shape == (len(features), extractor.descriptor_dim)


def test_unusable_arrays_and_settings_are_refused(extractor: SuperPoint) -> None:
    with pytest.raises(ShapeError):
        extractor.extract(np.zeros((4, 4, 7), np.uint8))
    with pytest.raises(ConfigError, match="one size"):
        extractor.preprocess([np.zeros((16, 16), np.uint8), np.zeros((32, 16), np.uint8)])
    with pytest.raises(ConfigError, match="max_keypoints is 0"):
        ExtractorConfig(max_keypoints=0)
    wrong: list[tuple[str, Any, str]] = [
        *((name, 9.5, r"9\.5; expected a whole number") for name in ("max_keypoints", "nms_radius", "border")),
        *((name, "900", "'900'; expected a whole number") for name in ("max_keypoints", "resize", "white")),
        ("max_keypoints", None, "None; expected a whole number"),
        ("subpixel", "no", "'no'; expected True or False"),
        ("detection_threshold", "0.5", r"'0\.5'; expected a number"),
    ]
    for name, value, told in wrong:
        with pytest.raises(ConfigError, match=f"^{name} is {told}$"):
            ExtractorConfig(**{name: value})
    taken = ExtractorConfig(max_keypoints=np.int32(9), detection_threshold=np.float32(0.5), resize=np.uint16(90))  # type: ignore[arg-type]
    assert taken == ExtractorConfig(max_keypoints=9, detection_threshold=0.5, resize=90)
    with pytest.raises(ConfigError, match=r"detection_threshold is 1\.5"):
        ExtractorConfig(detection_threshold=1.5)
    with pytest.raises(ConfigError, match="device is 'gpu'"):
        SuperPoint(extractor.network, device="gpu")
    with pytest.raises(ConfigError, match="geometry is 'affine'"):
        PipelineConfig(geometry="affine")
    with pytest.raises(ConfigError, match="rotations is 2"):
        PipelineConfig(rotations=2)


def test_settings_of_another_type_are_refused_before_anything_is_loaded(extractor: SuperPoint) -> None:
    wrong: Any = {"max_keypoints": 5}
    said = "^config is a dict; expected an ExtractorConfig$"
    with pytest.raises(ConfigError, match=said):
        SuperPoint.from_pretrained("no such model", config=wrong)
    with pytest.raises(ConfigError, match=said):
        SuperPoint(extractor.network, config=wrong)
    with pytest.raises(ConfigError, match=said):
        extractor.configured(wrong)
    with pytest.raises(ConfigError, match=r"^config is a dict; expected a PipelineConfig$"):
        MatchPipeline(extractor, wrong)
    device: Any
    for device in (None, 0):
        with pytest.raises(ConfigError, match=f"^device is {device}; expected auto, cpu, cuda or cuda:N$"):
            SuperPoint.from_pretrained(device=device)


def test_pipeline_finds_a_shift(dot_extractor: SuperPoint, constellation: np.ndarray) -> None:
    image0 = dots(constellation, (256, 256))
    image1 = np.roll(image0, (8, 16), (0, 1))
    result = MatchPipeline(dot_extractor).match(image0, image1)
    assert result.geometry.status is Status.OK
    H = result.geometry.H
    assert H is not None
    np.testing.assert_allclose(H, [[1, 0, 16], [0, 1, 8], [0, 0, 1]], atol=0.3)
    assert set(result.timings_ms) == {"preprocess", "network", "keypoints", "matching", "geometry"}
    assert len(result.geometry.inliers) == len(result.matches)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_four_rotations_find_a_turned_image(dot_extractor: SuperPoint, constellation: np.ndarray, turn: int) -> None:
    image0 = dots(constellation, (256, 240))
    image1 = np.ascontiguousarray(np.rot90(image0, turn))
    result = MatchPipeline(dot_extractor, PipelineConfig(rotations=4)).match(image0, image1)
    assert result.features1.image_size == (image1.shape[1], image1.shape[0])
    H = result.geometry.H
    assert H is not None
    w, h = 256, 240
    truth = {
        0: [[1, 0, 0], [0, 1, 0]],
        1: [[0, 1, 0], [-1, 0, w - 1]],
        2: [[-1, 0, w - 1], [0, -1, h - 1]],
        3: [[0, -1, h - 1], [1, 0, 0]],
    }[turn]
    np.testing.assert_allclose(H[:2], truth, atol=0.5)


@pytest.mark.parametrize("geometry", ["homography", "fundamental", "none"])
def test_nothing_to_match_is_a_result(dot_extractor: SuperPoint, geometry: str) -> None:
    black = np.zeros((64, 64), np.uint8)
    result = MatchPipeline(dot_extractor, PipelineConfig(geometry=geometry)).match(black, black)
    assert len(result.matches) == 0
    assert result.geometry.inliers.shape == (0,)
    expected = Status.NOT_REQUESTED if geometry == "none" else Status.TOO_FEW_MATCHES
    assert result.geometry.status is expected


def test_every_preset_extracts_from_colour(dot_extractor: SuperPoint) -> None:
    image = cv2.cvtColor(dots(np.array([[20.0, 20]]), (48, 40)), cv2.COLOR_GRAY2BGR)
    for preset in MODEL_PRESETS.values():
        features = SuperPoint(SuperPointNet(preset).fold(), device="cpu").extract(image)
        assert features.descriptors.shape[1] == preset.descriptor_dim


class SeesTheRaster(torch.nn.Module):
    """A context module that keeps what it was given."""

    out_channels = 96

    def forward(
        self, features: torch.Tensor, raster: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.seen = raster
        return features, {}


@pytest.mark.parametrize(("context", "runtime"), [("", "torch"), ("+strip_pooling", "torch"), ("", "onnxruntime")])
def test_a_raster_that_nothing_looks_at_is_refused(context: str, runtime: str) -> None:
    pytest.importorskip(runtime)
    network = SuperPointNet(dataclasses.replace(MODEL_PRESETS["edge-dense"], encoder=f"compact{context}"))
    extractor = SuperPoint(network.fold(), device="cpu", runtime=runtime)
    said = rf"^got a raster for encoder 'compact{re.escape(context)}' in {runtime}; expected none, or an encoder with"
    with pytest.raises(ConfigError, match=said):
        extractor.extract(np.zeros((64, 64), np.uint8), np.full((7, 64, 64), np.nan))


def test_a_raster_reaches_the_network_at_the_size_of_its_input() -> None:
    network = SuperPointNet(MODEL_PRESETS["edge-dense"]).eval()
    context = SeesTheRaster()
    network.contexts.append(context)
    image = np.random.default_rng(0).integers(0, 256, (60, 100), dtype=np.uint8)
    raster = np.zeros((2, 60, 100))
    raster[1, :, 50:] = 1
    extractor = SuperPoint(network, config=ExtractorConfig(resize=50), device="cpu")
    extractor.extract_batch([image, image], rasters=[raster, raster])
    assert context.seen is not None
    assert context.seen.shape == (2, 2, 32, 56)
    expected = torch.zeros(32, 56)
    expected[:, 25:] = 1
    torch.testing.assert_close(context.seen[1, 1], expected)
    extractor.extract(image)
    assert context.seen is None
    with pytest.raises(ShapeError, match=r"raster has shape \(2, 100, 60\); expected \(M, 60, 100\)"):
        extractor.extract(image, raster.transpose(0, 2, 1))
    for wrong, said in (
        ([[1]], "raster is a list"),
        (np.zeros((0, 60, 100)), r"raster is \(0, 60, 100\) float64"),
        (np.zeros((1, 60, 100), complex), r"raster is \(1, 60, 100\) complex128"),
    ):
        with pytest.raises(ShapeError, match=rf"^{said}; expected \(M, 60, 100\) real numbers"):
            extractor.extract(image, wrong)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"^mask is a list; expected \(60, 100\) bool or uint8$"):
        extractor.extract(image, mask=[[1]])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="got 1 rasters for 2 images"):
        extractor.extract_batch([image, image], rasters=[raster])
