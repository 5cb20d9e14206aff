"""Methods behind one interface: unit descriptors, best first, within the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from frontend.errors import ConfigError, RegistryError
from frontend.evaluation.methods import (
    METHODS,
    MethodConfig,
    computed_by,
    create_method,
    root_descriptors,
    unit_binary,
    unit_rows,
)
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.model import ModelConfig, SuperPointNet
from frontend.weights import save_network

Scene = Callable[..., np.ndarray]


@pytest.mark.parametrize("name", list(METHODS))
def test_features_keep_the_contract(name: str, make_scene: Scene) -> None:
    features = create_method(name, MethodConfig(max_keypoints=100))(make_scene())
    assert 50 < len(features) <= 100
    assert features.image_size == (320, 240)
    assert {features.keypoints.dtype, features.scores.dtype, features.descriptors.dtype} == {np.dtype(np.float32)}
    assert features.keypoints.shape == (len(features), 2)
    assert (features.keypoints >= 0).all()
    assert (features.keypoints < [320, 240]).all()
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1.0, atol=1e-5)
    assert (np.diff(features.scores) <= 0).all()
    assert (features.scores > 0).all()
    assert features.scores[0] == 1.0


@pytest.mark.parametrize("name", list(METHODS))
def test_nothing_in_the_image_is_no_error(name: str) -> None:
    features = create_method(name)(np.zeros((64, 64, 3), np.uint8))
    assert len(features) == 0
    assert features.descriptors.shape[0] == 0
    assert features.descriptors.shape[1] in (128, 256)


def test_the_budget_keeps_the_strongest(make_scene: Scene) -> None:
    scene = make_scene()
    many = create_method("sift", MethodConfig(max_keypoints=400))(scene)
    few = create_method("sift", MethodConfig(max_keypoints=50))(scene)
    strongest = {tuple(point) for point in np.round(many.keypoints[:60], 2)}
    assert len({tuple(point) for point in np.round(few.keypoints, 2)} - strongest) <= 2


def test_root_descriptors_equal_loops(rng: np.random.Generator) -> None:
    raw = rng.integers(0, 256, (5, 128)).astype(np.float32)
    raw[3] = 0
    found = root_descriptors(raw)
    for row, given in zip(found, raw, strict=True):
        total = sum(float(value) for value in given) or 1.0
        np.testing.assert_allclose(row, [(float(value) / total) ** 0.5 for value in given], atol=1e-6)
    assert not unit_rows(raw)[3].any()


def test_dot_products_of_binary_descriptors_are_hamming_distances(rng: np.random.Generator) -> None:
    packed = rng.integers(0, 256, (40, 32), dtype=np.uint8)
    unit = unit_binary(packed)
    dots = unit @ unit.T
    for i in range(0, 40, 7):
        for j in range(40):
            assert dots[i, j] == 1 - 2 * cv2.norm(packed[i], packed[j], cv2.NORM_HAMMING) / 256


def test_orb_matches_equal_opencv_brute_force(make_scene: Scene) -> None:
    scene = make_scene()
    turned = cv2.warpAffine(scene, cv2.getRotationMatrix2D((160, 120), 12, 1.0), (320, 240))
    orb = cv2.ORB.create(nfeatures=200)
    _, raw0 = orb.detectAndCompute(cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY), None)
    _, raw1 = orb.detectAndCompute(cv2.cvtColor(turned, cv2.COLOR_BGR2GRAY), None)
    expected = {(m.queryIdx, m.trainIdx) for m in cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(raw0, raw1)}
    similarity = unit_binary(raw0) @ unit_binary(raw1).T
    forth, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    found = {(i, int(j)) for i, j in enumerate(forth) if back[j] == i}
    # equal distances may be broken otherwise, at a few points
    assert len(found & expected) >= 0.9 * len(expected)
    assert len(expected) > 40


@pytest.mark.parametrize("name", ["sift", "sift-filled", "orb"])
def test_keypoints_are_not_drawn_to_a_side(name: str, make_scene: Scene) -> None:
    """What a mirrored image shows lies mirrored; a bias would be doubled. By size, since coarser levels have more."""
    image = cv2.resize(make_scene(), (640, 480), interpolation=cv2.INTER_CUBIC)
    extract = create_method(name, MethodConfig(max_keypoints=1000))
    found, mirrored = extract(image).keypoints, extract(np.ascontiguousarray(image[:, ::-1])).keypoints
    mirrored = np.c_[639 - mirrored[:, 0], mirrored[:, 1]]
    distances = np.linalg.norm(found[:, None] - mirrored[None], axis=2)
    nearest = distances.argmin(axis=1)
    close = (distances.min(axis=1) < 3) & (distances[:, nearest].argmin(axis=0) == np.arange(len(found)))
    assert close.sum() > 100
    assert abs(float((found - mirrored[nearest])[close, 0].mean())) < 0.08


def test_sift_fills_its_budget_where_asked_to(make_scene: Scene) -> None:
    image = (0.2 * make_scene()).astype(np.uint8)  # of little contrast
    plain, filled = (create_method(name, MethodConfig(max_keypoints=60))(image) for name in ("sift", "sift-filled"))
    assert len(plain) < len(filled) == 60


def test_a_weight_file_is_a_method(make_scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "random.safetensors"
    network = SuperPointNet(ModelConfig())
    save_network(path, network)
    method = create_method(str(path), MethodConfig(max_keypoints=30, device="cpu"))
    found = method(make_scene(96, 128))
    settings = ExtractorConfig(max_keypoints=30)
    expected = SuperPoint.from_pretrained(path, device="cpu", config=settings).extract(make_scene(96, 128))
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    assert 0 < len(found) <= 30


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_what_computes_a_network_can_be_chosen_and_is_reported(tmp_path: Path, runtime: str) -> None:
    path = tmp_path / "random.safetensors"
    save_network(path, SuperPointNet(ModelConfig()))
    config = MethodConfig(device="cpu", runtime=runtime, precision="float32")
    methods = {name: create_method(name, config) for name in ("sift", str(path))}
    assert computed_by(methods) == {str(path): f"{runtime} float32"}
    with pytest.raises(ConfigError, match="precision is 'fp8'"):
        create_method(str(path), MethodConfig(device="cpu", precision="fp8"))


def test_refusals() -> None:
    with pytest.raises(RegistryError, match=r"unknown method 'surf'; expected .*orb, rootsift, sift"):
        create_method("surf")
    with pytest.raises(ConfigError, match="max_keypoints is 0"):
        MethodConfig(max_keypoints=0)
