"""Masks: where keypoints may be."""

from __future__ import annotations

import numpy as np
import pytest
from runtime_networks import network

from frontend.errors import ShapeError
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.runtime.parity import scene
from frontend.torch_backend import TorchBackend

SIZE = (150, 200)


@pytest.fixture(params=["onnxruntime", "torch", "reference"])
def extractor(request: pytest.FixtureRequest) -> SuperPoint:
    config = ExtractorConfig(max_keypoints=120, detection_threshold=0.0, border=0)
    if request.param == "reference":
        return SuperPoint.of(TorchBackend(network("edge-twice"), "cpu"), config=config)
    return SuperPoint(network("edge-twice"), config=config, device="cpu", runtime=request.param)


def image(seed: int = 0) -> np.ndarray:
    return (255 * scene(*SIZE, seed)).astype(np.uint8)


def disc(radius: float = 45) -> np.ndarray:
    """False within a circle."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.asarray((x - 90) ** 2 + (y - 70) ** 2 > radius**2)


def looked_up(mask: np.ndarray, keypoints: np.ndarray) -> list[bool]:
    return [bool(mask[round(float(y)), round(float(x))]) for x, y in keypoints]


def test_no_keypoint_is_where_the_mask_says_no_and_all_are_spent_elsewhere(extractor: SuperPoint) -> None:
    mask = disc()
    free = extractor.extract(image())
    assert 10 < looked_up(mask, free.keypoints).count(False) < 110
    masked = extractor.extract(image(), mask=mask)
    assert all(looked_up(mask, masked.keypoints))
    # but for those that the refiner has moved across the edge
    assert 100 < len(masked) <= 120
    assert masked.sigmas is not None
    assert len(masked.scores) == len(masked.descriptors) == len(masked.sigmas) == len(masked)
    assert (np.diff(masked.scores) <= 0).all()
    bytes_too = extractor.extract(image(), mask=mask.astype(np.uint8) * 255)
    np.testing.assert_array_equal(bytes_too.keypoints, masked.keypoints)


def test_what_the_mask_allows_everywhere_changes_nothing(extractor: SuperPoint) -> None:
    free = extractor.extract(image())
    for mask in (np.ones(SIZE, np.bool_), None):
        again = extractor.extract(image(), mask=mask)
        np.testing.assert_array_equal(again.keypoints, free.keypoints)
        np.testing.assert_array_equal(again.descriptors, free.descriptors)


def test_each_image_of_a_batch_has_its_own_mask(extractor: SuperPoint) -> None:
    images, masks = [image(n) for n in range(3)], [disc(), None, ~disc()]
    together = extractor.extract_batch(images, masks=masks)
    for one, picture, mask in zip(together, images, masks, strict=True):
        alone = extractor.extract(picture, mask=mask)
        assert len(one) == len(alone)
        np.testing.assert_allclose(one.keypoints, alone.keypoints, atol=1e-3)


def test_images_and_masks_may_be_stacked(extractor: SuperPoint) -> None:
    images, masks = [image(n) for n in range(2)], [disc(), ~disc()]
    listed = extractor.extract_batch(images, masks=masks)
    stacked = extractor.extract_batch(np.stack(images), masks=np.stack(masks))
    for one, other in zip(listed, stacked, strict=True):
        np.testing.assert_array_equal(one.keypoints, other.keypoints)


def test_masks_are_of_the_image_as_it_is_given(extractor: SuperPoint) -> None:
    smaller = extractor.configured(ExtractorConfig(max_keypoints=60, detection_threshold=0.0, resize=96))
    found = smaller.extract(image(), mask=disc())
    assert len(found) > 40
    assert all(looked_up(disc(), found.keypoints))
    assert found.keypoints[:, 0].max() > 120


def test_nothing_is_found_where_nothing_is_allowed(extractor: SuperPoint) -> None:
    found = extractor.extract(image(), mask=np.zeros(SIZE, np.uint8))
    assert len(found) == 0
    assert found.descriptors.shape == (0, 128)


@pytest.mark.parametrize("rotations", [1, 4])
def test_pairs_have_a_mask_for_each_image(extractor: SuperPoint, rotations: int) -> None:
    pipeline = MatchPipeline(extractor, PipelineConfig(geometry="none", rotations=rotations))
    turned = np.ascontiguousarray(np.rot90(image()))
    found = pipeline.match(image(), turned, mask0=disc(), mask1=np.rot90(disc(30)))
    assert all(looked_up(disc(), found.features0.keypoints))
    assert all(looked_up(np.rot90(disc(30)), found.features1.keypoints))
    assert len(found.features1) > 90
    again = pipeline.match(image(), turned, found.features0, mask1=np.rot90(disc(30)))
    np.testing.assert_array_equal(again.matches.matches, found.matches.matches)


@pytest.mark.parametrize(
    "mask", [np.ones((200, 150), np.uint8), np.ones((*SIZE, 3), np.uint8), np.ones(SIZE, np.float32)]
)
def test_masks_of_another_shape_or_type_are_refused(extractor: SuperPoint, mask: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"mask is \(.*\) (uint8|float32); expected \(150, 200\) bool or uint8"):
        extractor.extract(image(), mask=mask)
    with pytest.raises(ShapeError, match="got 1 masks for 2 images"):
        extractor.extract_batch([image(), image()], masks=[None])
