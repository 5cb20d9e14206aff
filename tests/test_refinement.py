"""The refiner: patches, what it may and may not depend on, and what the extractor does with its answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from frontend.errors import ConfigError
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.keypoints import BatchedKeypoints, reorder
from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet
from frontend.refinement import REFINERS, PatchRefiner, Refinement, add_local, gather_patches


def random_refiner(seed: int = 0) -> PatchRefiner:
    """A refiner whose last layers are not zero."""
    torch.manual_seed(seed)
    refiner = PatchRefiner(dim=8).eval()
    for layer in (refiner.position_out, refiner.local):
        torch.nn.init.normal_(layer.weight, std=3.0)
    return refiner


def test_patches_are_cut_as_numpy_cuts_them_from_the_edge_padded_image() -> None:
    images = np.random.default_rng(0).random((2, 1, 20, 30), np.float32)
    keypoints = np.array([[[0, 0], [29, 19], [7, 11]], [[1, 18], [15, 3], [28, 0]]], np.float32)
    patches = gather_patches(torch.from_numpy(images), torch.from_numpy(keypoints), 5).reshape(2, 3, 5, 5)
    for i in range(2):
        padded = np.pad(images[i, 0], 2, mode="edge")
        for k, (x, y) in enumerate(keypoints[i].astype(int)):
            np.testing.assert_array_equal(patches[i, k].numpy(), padded[y : y + 5, x : x + 5])


def test_a_new_refiner_leaves_positions_scores_and_descriptors_alone() -> None:
    scores = torch.tensor([[0.2, 0.7]])
    refined = PatchRefiner(dim=8).eval()(torch.rand(1, 1, 40, 40), torch.tensor([[[9.0, 9], [20, 30]]]), scores)
    assert not refined.offsets.any()
    assert not refined.descriptors.any()
    torch.testing.assert_close(refined.logits.sigmoid(), scores)


def test_what_the_refiner_says_moves_with_the_image_and_not_with_contrast() -> None:
    refiner = random_refiner()
    image = torch.rand(1, 1, 64, 64)
    keypoints, scores = torch.tensor([[[30.0, 30], [24, 40]]]), torch.full((1, 2), 0.3)
    with torch.inference_mode():
        first = refiner(image, keypoints, scores)
        moved = refiner(image.roll((5, 3), (2, 3)), keypoints + torch.tensor([3.0, 5]), scores)
        dimmer = refiner(image * 0.7 + 0.1, keypoints, scores)
    assert (first.offsets[0, 0] - first.offsets[0, 1]).abs().max() > 0.02
    assert first.descriptors.std() > 0.1
    for a, b in zip(first, moved, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(first, dimmer, strict=True):
        # not quite: the floor of the contrast weighs a little more in the dimmer image
        assert (a - b).abs().max() < 0.1 * a.abs().max()


def test_offsets_stay_within_reach_and_sigmas_within_e3() -> None:
    refiner = random_refiner()
    with torch.inference_mode():
        refiner.position_out.weight.mul_(1e4)
        refined = refiner(torch.rand(1, 1, 40, 40), torch.full((1, 9, 2), 20.0), torch.full((1, 9), 0.5))
    assert refined.offsets.abs().max() <= 3
    assert refined.log_sigmas.abs().max() <= 3


def test_flat_patches_give_finite_answers() -> None:
    refined = random_refiner()(torch.full((1, 1, 40, 40), 0.5), torch.full((1, 3, 2), 20.0), torch.zeros(1, 3))
    assert all(torch.isfinite(values).all() for values in refined)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [8, 8]}, "expected as many of each"),
        ({"size": 16}, "an odd size"),
        ({"size": 7}, "need a larger patch than 7 pixels"),
    ],
)
def test_layers_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SuperPointNet(ModelConfig(refiner="patch", refiner_options=options))


def test_the_layers_are_those_of_the_options() -> None:
    torch.manual_seed(0)
    refiner = PatchRefiner(dim=8, size=15, channels=[4, 6], kernels=[5, 3], strides=[2, 2]).eval()
    torch.nn.init.normal_(refiner.local.weight)
    image, x, y = torch.rand(1, 1, 40, 40), 21, 17
    patch = image[:, :, y - 7 : y + 8, x - 7 : x + 8].double()
    values = (patch - patch.mean()) / (patch.std(correction=0) + 0.02)
    for block, stride in zip(refiner.layers, (2, 2), strict=True):
        values = torch.nn.functional.conv2d(values, block.conv.weight.double(), stride=stride)
        values = (values / (1 + 1e-5) ** 0.5).clamp(min=0)  # a batch norm that has seen nothing
    assert values.shape == (1, 6, 2, 2)
    expected = values.flatten() @ refiner.local.weight.double().T
    with torch.inference_mode():
        refined = refiner(image, torch.tensor([[[float(x), float(y)]]]), torch.full((1, 1), 0.5))
    torch.testing.assert_close(refined.descriptors[0, 0].double(), expected, rtol=1e-4, atol=1e-5)


def test_reorder_sorts_by_score_with_the_invalid_last() -> None:
    found = BatchedKeypoints(
        torch.arange(10.0).reshape(1, 5, 2),
        torch.tensor([[0.2, 0.0, 0.9, 0.9, 0.0]]),
        torch.tensor([[True, False, True, True, True]]),
    )
    ordered, order = reorder(found)
    assert order.tolist() == [[2, 3, 0, 4, 1]]
    assert ordered.valid.tolist() == [[True, True, True, True, False]]
    torch.testing.assert_close(ordered.keypoints[0], found.keypoints[0, order[0]])
    assert ordered.scores[0].tolist() == pytest.approx([0.9, 0.9, 0.2, 0, 0])


class KnownRefiner(torch.nn.Module):
    """Answers that a test can foresee: everything follows from the keypoint's own place."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: Tensor, keypoints: Tensor, scores: Tensor) -> Refinement:
        local = torch.zeros(*keypoints.shape[:2], self.dim)
        local[..., 0] = 100.0
        local[..., 1] = keypoints[..., 0]
        return Refinement(
            torch.tensor([0.25, -0.5]).expand_as(keypoints),
            torch.log(keypoints[..., 1] / 10),
            # the further right, the better
            keypoints[..., 0] / 100 - 1,
            local,
        )


@pytest.fixture
def known() -> SuperPointNet:
    torch.manual_seed(0)
    network = SuperPointNet(MODEL_PRESETS["edge-dense"]).eval()
    network.refiner = KnownRefiner(network.config.descriptor_dim)
    return network


def test_the_extractor_uses_what_the_refiner_says(known: SuperPointNet) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8)
    config = ExtractorConfig(max_keypoints=50, detection_threshold=0.0)
    features = SuperPoint(known, config=config, device="cpu").extract(image)
    whole = features.keypoints - [0.25, -0.5]
    np.testing.assert_allclose(whole, whole.round(), atol=1e-5)
    assert len(features) == 50
    assert (np.diff(features.keypoints[:, 0]) <= 0).all()
    np.testing.assert_allclose(features.scores, 1 / (1 + np.exp(1 - whole[:, 0] / 100)), rtol=1e-5)
    assert features.sigmas is not None
    np.testing.assert_allclose(features.sigmas, whole[:, 1] / 10, rtol=1e-5)
    # each keypoint kept its own descriptor through the sorting
    ratio = features.descriptors[:, 1] / features.descriptors[:, 0]
    np.testing.assert_allclose(ratio, whole[:, 0] / 100, atol=0.03)
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)


def test_sigmas_are_in_pixels_of_the_original_image(known: SuperPointNet) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8)
    features = SuperPoint(known, config=ExtractorConfig(resize=80), device="cpu").extract(image)
    assert features.sigmas is not None
    # the known refiner says a tenth of the row in the network's input, which is half as high
    rows = ((features.keypoints[:, 1] + 0.5) / 2 - 0.5 + 0.5).round()
    np.testing.assert_allclose(features.sigmas, rows / 10 * 2, rtol=1e-4)


def test_without_subpixel_positions_stay_whole_and_scores_are_refined(known: SuperPointNet) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160), dtype=np.uint8)
    features = SuperPoint(known, config=ExtractorConfig(subpixel=False), device="cpu").extract(image)
    np.testing.assert_array_equal(features.keypoints, features.keypoints.round())
    np.testing.assert_allclose(features.scores, 1 / (1 + np.exp(1 - features.keypoints[:, 0] / 100)), rtol=1e-5)


def test_without_a_refiner_there_are_no_sigmas() -> None:
    network = SuperPointNet(MODEL_PRESETS["edge-dense"]).eval()
    assert network.refine(torch.rand(1, 1, 16, 16), torch.zeros(1, 1, 2), torch.zeros(1, 1)) is None
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    assert SuperPoint(network, device="cpu").extract(image).sigmas is None


def test_add_local_gives_unit_vectors() -> None:
    dense, local = torch.tensor([[[1.0, 0], [0, 1]]]), torch.tensor([[[0.0, 1], [0, 0]]])
    torch.testing.assert_close(add_local(dense, local), torch.tensor([[[0.5**0.5, 0.5**0.5], [0, 1]]]))


def test_refiners_are_in_a_registry() -> None:
    assert REFINERS.get("patch") is PatchRefiner
