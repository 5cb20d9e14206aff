"""The losses on detected keypoints against loops in float64, and what they teach."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from frontend.errors import ConfigError
from frontend.model import MODEL_PRESETS, SuperPointNet
from frontend.refinement import PatchRefiner
from frontend.training.datasets import WarpedPairs
from frontend.training.labels import LabelledPhoto
from frontend.training.refinement import (
    Correspondence,
    correspond,
    matching_loss,
    near_miss_loss,
    position_nll,
    repetition_loss,
)
from frontend.training.tasks import SuperPointTask

SIZE = (64, 48)
TRANSFORMS = torch.tensor(
    [[[1.05, 0.02, 1.5], [-0.03, 0.97, -2.0], [1e-4, 0, 1]], [[0.9, -0.1, 6], [0.1, 0.9, 1], [0, 0, 1]]]
)


def project(H: Tensor, p: Tensor) -> np.ndarray:
    x, y, w = H.double().numpy() @ [float(p[0]), float(p[1]), 1]
    return np.array([x / w, y / w])


@pytest.fixture
def scene() -> tuple[Tensor, Tensor]:
    """Keypoints (2, 2, 12, 2), view 1's being view 0's displaced by some pixels and shuffled; which are real."""
    generator = np.random.default_rng(0)
    first = generator.uniform([4, 4], [60, 44], (2, 12, 2))
    second = np.stack([[project(TRANSFORMS[b], torch.from_numpy(p)) for p in first[b]] for b in range(2)])
    second += generator.normal(0, 1.8, second.shape)
    second = np.stack([second[b][generator.permutation(12)] for b in range(2)])
    valid = generator.random((2, 2, 12)) > 0.15
    return torch.from_numpy(np.stack([first, second], axis=1)).float(), torch.from_numpy(valid)


def looped(points: Tensor, valid: Tensor) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Distances (2, 12, 12) in the worse view, and mutual nearest (item, keypoint 0, keypoint 1) nearer than 4."""
    distances = np.full((2, 12, 12), 1e4)
    pairs = []
    for b in range(2):
        back = torch.linalg.inv(TRANSFORMS[b].double())
        for i, j in np.ndindex(12, 12):
            if valid[b, 0, i] and valid[b, 1, j]:
                there = np.linalg.norm(project(TRANSFORMS[b], points[b, 0, i]) - points[b, 1, j].numpy())
                here = np.linalg.norm(project(back, points[b, 1, j]) - points[b, 0, i].numpy())
                distances[b, i, j] = max(there, here)
        for i in range(12):
            j = int(distances[b, i].argmin())
            if distances[b, i, j] < 4 and int(distances[b, :, j].argmin()) == i:
                pairs.append((b, i, j))
    return distances, pairs


def test_correspondence_equals_a_loop(scene: tuple[Tensor, Tensor]) -> None:
    points, valid = scene
    distances, pairs = looped(points, valid)
    found = correspond(points, valid, TRANSFORMS)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-3, atol=1e-2)
    assert [(int(b), int(i), int(found.partner[b, i])) for b, i in found.mutual.nonzero()] == pairs
    assert 8 <= len(pairs) < 24


def test_position_nll_equals_a_loop(scene: tuple[Tensor, Tensor]) -> None:
    points, valid = scene
    log_sigmas = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(0)) / 2
    terms = []
    for b, i, j in looped(points, valid)[1]:
        back = torch.linalg.inv(TRANSFORMS[b].double())
        there = np.linalg.norm(project(TRANSFORMS[b], points[b, 0, i]) - points[b, 1, j].numpy())
        here = np.linalg.norm(project(back, points[b, 1, j]) - points[b, 0, i].numpy())
        s = math.sqrt((math.exp(2 * log_sigmas[b, 0, i]) + math.exp(2 * log_sigmas[b, 1, j])) / 3)
        terms.append((there + here) / 2 / s + 2 * math.log(s))
    got = position_nll(points, log_sigmas, TRANSFORMS, correspond(points, valid, TRANSFORMS))
    assert float(got) == pytest.approx(np.mean(terms), rel=2e-3)


def test_the_likeliest_sigma_is_the_standard_deviation_along_an_axis() -> None:
    # displacements of the two-dimensional Laplace density: a radius of Gamma(2, s), any direction
    generator = np.random.default_rng(0)
    sigma, count = 0.8, 20000
    both = sigma * math.sqrt(2)
    radius = generator.gamma(2, both / math.sqrt(3), count)
    angle = generator.uniform(0, 2 * np.pi, count)
    moved = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    assert moved.std() == pytest.approx(both, rel=0.02)
    points = torch.from_numpy(np.stack([np.zeros_like(moved), moved])[None]).float()
    everyone = Correspondence(torch.zeros(1), torch.arange(count)[None], torch.ones(1, count, dtype=torch.bool))
    log_sigma = torch.tensor(math.log(sigma), requires_grad=True)
    position_nll(points, log_sigma.expand(1, 2, count), torch.eye(3)[None], everyone).backward()
    assert log_sigma.grad is not None
    assert abs(float(log_sigma.grad)) < 0.03
    low = position_nll(points, log_sigma.detach().expand(1, 2, count) - 0.5, torch.eye(3)[None], everyone)
    best = position_nll(points, log_sigma.detach().expand(1, 2, count), torch.eye(3)[None], everyone)
    assert low > best + 0.1


def test_repetition_loss_equals_a_loop(scene: tuple[Tensor, Tensor]) -> None:
    points, valid = scene
    logits = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(1))
    distances, _ = looped(points, valid)
    terms, repeats = [], 0
    for b, view, k in np.ndindex(2, 2, 12):
        H = TRANSFORMS[b].double() if view == 0 else torch.linalg.inv(TRANSFORMS[b].double())
        x, y = project(H, points[b, view, k])
        if not valid[b, view, k] or not (4 <= x <= 59 and 4 <= y <= 43):
            continue
        again = (distances[b, k] if view == 0 else distances[b, :, k]).min() < 2
        probability = 1 / (1 + math.exp(-logits[b, view, k]))
        terms.append(-math.log(probability if again else 1 - probability))
        repeats += again
    assert 4 < repeats < len(terms) - 4
    found = correspond(points, valid, TRANSFORMS)
    assert float(repetition_loss(logits, points, valid, TRANSFORMS, found, SIZE, 4)) == pytest.approx(
        np.mean(terms), rel=1e-4
    )


def test_matching_loss_equals_a_loop(scene: tuple[Tensor, Tensor]) -> None:
    points, valid = scene
    generator = torch.Generator().manual_seed(2)
    descriptors = torch.nn.functional.normalize(torch.randn(2, 2, 12, 5, generator=generator), dim=-1)
    distances, pairs = looped(points, valid)
    losses, right = [], []
    for b, i, j in pairs:
        if distances[b, i, j] >= 2:
            continue
        similarity = descriptors[b, 0].double().numpy() @ descriptors[b, 1].double().numpy().T / 0.1
        rows = [c for c in range(12) if valid[b, 1, c] and (c == j or distances[b, i, c] >= 4)]
        columns = [r for r in range(12) if valid[b, 0, r] and (r == i or distances[b, r, j] >= 4)]
        row = similarity[i, j] - math.log(np.exp(similarity[i, rows]).sum())
        column = similarity[i, j] - math.log(np.exp(similarity[columns, j]).sum())
        losses.append(-(row + column) / 2)
        right.append(similarity[i, j] == similarity[i, rows].max())
    assert len(losses) > 4
    loss, accuracy = matching_loss(descriptors, valid, correspond(points, valid, TRANSFORMS), 0.1)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(accuracy) == pytest.approx(np.mean(right))
    # a pair beyond REPEATED and a keypoint near the partner must have been met for this test to mean anything
    assert any(distances[b, i, j] >= 2 for b, i, j in pairs)


def test_near_miss_loss_equals_a_loop(scene: tuple[Tensor, Tensor]) -> None:
    points, valid = scene
    points[0, 1, :2] = points[0, 1, 2:4] + torch.tensor([3.0, 4.0])
    generator = torch.Generator().manual_seed(2)
    descriptors = torch.nn.functional.normalize(torch.randn(2, 2, 12, 3, generator=generator), dim=-1)
    distances, _ = looped(points, valid)
    over = [
        max(float(descriptors[b, 0, i].double() @ descriptors[b, 1, j].double()) - 0.3, 0)
        for b, i, j in np.ndindex(2, 12, 12)
        if 4 <= distances[b, i, j] < 9
    ]
    assert min(over) == 0 < max(over)
    loss = near_miss_loss(descriptors, valid, correspond(points, valid, TRANSFORMS))
    assert float(loss) == pytest.approx(sum(over) / (float(valid.sum()) / 2), rel=1e-4)


def test_nothing_detected_costs_nothing() -> None:
    points, valid = torch.zeros(1, 2, 5, 2), torch.zeros(1, 2, 5, dtype=torch.bool)
    found = correspond(points, valid, torch.eye(3)[None])
    assert not found.mutual.any()
    assert float(position_nll(points, torch.zeros(1, 2, 5), torch.eye(3)[None], found)) == 0
    assert float(repetition_loss(torch.zeros(1, 2, 5), points, valid, torch.eye(3)[None], found, SIZE, 4)) == 0
    assert float(matching_loss(torch.zeros(1, 2, 5, 3), valid, found, 0.1)[0]) == 0
    assert float(near_miss_loss(torch.zeros(1, 2, 5, 3), valid, found)) == 0


def test_the_refiner_learns_where_a_corner_is() -> None:
    """Squares seen at random sub-pixel shifts: the offsets must undo the rounding of the keypoints."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    refiner = PatchRefiner(dim=4, channels=(8, 8, 16, 16))
    optimiser = torch.optim.Adam(refiner.parameters(), 3e-3)

    def view(corner: np.ndarray) -> Tensor:
        x = np.clip(np.arange(32) - corner[0] + 0.5, 0, 1)
        y = np.clip(np.arange(32) - corner[1] + 0.5, 0, 1)
        return torch.from_numpy(y[:, None] * x[None] + generator.normal(0, 0.01, (32, 32))).float()[None]

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        first = generator.uniform(13, 18, (32, 2))
        second = generator.uniform(13, 18, (32, 2))
        images = torch.stack([view(c) for pair in zip(first, second, strict=True) for c in pair])
        H = torch.eye(3).repeat(32, 1, 1)
        H[:, :2, 2] = torch.from_numpy(second - first).float()
        return images, torch.from_numpy(np.stack([first, second], 1)).float(), H

    def distance(points: Tensor, H: Tensor) -> Tensor:
        return (points[:, 0, 0] + H[:, :2, 2] - points[:, 1, 0]).norm(dim=-1)

    for _ in range(150):
        images, truth, H = batch()
        # integer keypoints about the corner, up to a pixel and a half beside it
        start = (truth.reshape(64, 1, 2) + torch.from_numpy(generator.uniform(-1, 1, (64, 1, 2))).float()).round()
        refined = refiner(images, start, torch.full((64, 1), 0.5))
        points = (start + refined.offsets).reshape(32, 2, 1, 2)
        valid = torch.ones(32, 2, 1, dtype=torch.bool)
        found = correspond(points.detach(), valid, H)
        loss = position_nll(points, refined.log_sigmas.reshape(32, 2, 1), H, found)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    before = distance(start.reshape(32, 2, 1, 2), H).median()
    after = distance(points.detach(), H).median()
    assert before > 0.6
    assert after < 0.3 * before
    assert refined.log_sigmas.mean() < math.log(0.4)


def test_a_training_step_reaches_the_refiner() -> None:
    generator = np.random.default_rng(0)
    image = np.kron(generator.integers(0, 256, (30, 40)), np.ones((8, 8))).astype(np.uint8)
    corners = np.stack(np.meshgrid(np.arange(8, 312, 8) - 0.5, np.arange(8, 232, 8) - 0.5), axis=-1).reshape(-1, 2)
    photo = LabelledPhoto(image, corners, np.ones(len(corners), np.float32))
    task = SuperPointTask(WarpedPairs(0, photos=[photo]), refined_points=150)
    torch.manual_seed(0)
    network = SuperPointNet(MODEL_PRESETS["edge"]).train()
    batch = {key: value[None] for key, value in task.data[0].items()}
    outputs = task.forward(network, batch)
    loss, logged = task.loss(tuple(output.float() for output in outputs), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert {"loss/offset", "loss/repetition", "loss/matching", "detected_accuracy"} <= set(logged)
    assert isinstance(network.refiner, PatchRefiner)
    for layer in (network.refiner.local, network.refiner.position_out):
        assert layer.weight.grad is not None
        assert layer.weight.grad.any()


def test_a_refiner_that_is_to_learn_from_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="refined_points is 0; expected 1 to 4096"):
        SuperPointTask(WarpedPairs.__new__(WarpedPairs), refined_points=0)
