"""Losses against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frontend.model import heatmap
from frontend.training.losses import (
    cell_centres,
    detector_loss,
    dual_softmax_loss,
    hinge_descriptor_loss,
    peak_loss,
    position_loss,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_detector_loss_equals_a_loop() -> None:
    logits = torch.randn(2, 65, 3, 4, generator=seeded())
    labels = torch.randint(0, 65, (2, 3, 4), generator=seeded(1))
    mask = torch.rand(2, 3, 4, generator=seeded(2)) > 0.3
    total, count = 0.0, 0
    for b, y, x in np.ndindex(2, 3, 4):
        if mask[b, y, x]:
            values = logits[b, :, y, x].double().numpy()
            total += math.log(np.exp(values).sum()) - values[labels[b, y, x]]
            count += 1
    assert float(detector_loss(logits, labels, mask)) == pytest.approx(total / count, rel=1e-5)
    assert float(detector_loss(logits, labels, torch.zeros_like(mask))) == 0


def test_cell_centres() -> None:
    expected = [[3.5 + 8 * x, 3.5 + 8 * y] for y in range(2) for x in range(3)]
    np.testing.assert_allclose(cell_centres(2, 3, torch.device("cpu")), expected)


def test_hinge_loss_equals_equations_4_to_6_in_a_loop() -> None:
    d0, d1 = (torch.randn(2, 5, 3, 4, generator=seeded(s)) for s in (3, 4))
    H = torch.tensor([[[1, 0, 5.0], [0, 1, -3.0], [0, 0, 1]], [[0.9, 0.1, 2], [-0.1, 1.1, 3], [1e-3, 0, 1]]])
    mask0, mask1 = (torch.rand(2, 3, 4, generator=seeded(s)) > 0.2 for s in (5, 6))
    total, pairs, positives = 0.0, 0, 0
    for b in range(2):
        for y, x in np.ndindex(3, 4):
            p = H[b].double().numpy() @ [8 * x + 3.5, 8 * y + 3.5, 1]
            for v, u in np.ndindex(3, 4):
                if not (mask0[b, y, x] and mask1[b, v, u]):
                    continue
                a, c = (t.double().numpy() for t in (d0[b, :, y, x], d1[b, :, v, u]))
                cosine = a @ c / np.linalg.norm(a) / np.linalg.norm(c)
                near = np.hypot(p[0] / p[2] - 8 * u - 3.5, p[1] / p[2] - 8 * v - 3.5) <= 8
                total += 250 * max(0, 1 - cosine) if near else max(0, cosine - 0.2)
                pairs += 1
                positives += int(near)
    assert positives > 5
    got = hinge_descriptor_loss(d0, d1, H, mask0, mask1)
    assert float(got) == pytest.approx(total / pairs, rel=1e-4)


def test_dual_softmax_equals_a_loop() -> None:
    generator = seeded(7)
    d0, d1 = (torch.nn.functional.normalize(torch.randn(2, 9, 6, generator=generator), dim=-1) for _ in range(2))
    p0, p1 = (torch.rand(2, 9, 2, generator=generator) * 30 for _ in range(2))
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, 7:] = False
    losses, right = [], []
    for b in range(2):
        n = int(valid[b].sum())
        similarity = d0[b, :n].double().numpy() @ d1[b, :n].double().numpy().T / 0.05
        for i, j in np.ndindex(n, n):
            close = min(float(torch.dist(p0[b, i], p0[b, j])), float(torch.dist(p1[b, i], p1[b, j]))) < 6
            if i != j and close:
                similarity[i, j] = -np.inf
        for i in range(n):
            row = math.log(np.exp(similarity[i] - similarity[i, i]).sum())
            column = math.log(np.exp(similarity[:, i] - similarity[i, i]).sum())
            losses.append((row + column) / 2)
            right.append(similarity[i].argmax() == i)
    loss, accuracy = dual_softmax_loss(d0, d1, p0, p1, valid)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(accuracy) == pytest.approx(np.mean(right))


def test_dual_softmax_without_a_correspondence_is_zero_with_finite_gradients() -> None:
    d = torch.randn(1, 4, 3, requires_grad=True)
    points = torch.zeros(1, 4, 2)
    loss, _ = dual_softmax_loss(d, d, points, points, torch.zeros(1, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert d.grad is not None
    assert torch.isfinite(d.grad).all()


@pytest.mark.parametrize("kind", ["hinge", "dual_softmax"])
def test_losses_prefer_the_right_correspondence(kind: str) -> None:
    maps = torch.nn.functional.normalize(torch.randn(1, 32, 6, 8, generator=seeded(8)), dim=1)
    wrong = maps.roll(3, dims=3)
    if kind == "hinge":
        ones = torch.ones(1, 6, 8, dtype=torch.bool)
        good, bad = (hinge_descriptor_loss(maps, other, torch.eye(3)[None], ones, ones) for other in (maps, wrong))
    else:
        points = cell_centres(6, 8, torch.device("cpu"))[None]
        ones = torch.ones(1, 48, dtype=torch.bool)
        flat = [m.flatten(2).transpose(1, 2) for m in (maps, wrong)]
        good, bad = (dual_softmax_loss(flat[0], other, points, points, ones)[0] for other in flat)
    assert float(good) < 0.85 * float(bad)


def test_position_loss_is_the_distance_of_the_centres_of_mass() -> None:
    """Blobs at known places: the loss is how far H misses, in pixels, both ways."""
    ys, xs = np.mgrid[:48, :64]

    def blob(x: float, y: float) -> np.ndarray:
        return np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 0.7**2))

    H = np.array([[1.0, 0, 10.0], [0, 1.0, 5.0], [0, 0, 1]])
    points = torch.tensor([[[[20.0, 20.0], [30.0, 12.0]], [[30.0, 25.0], [40.0, 17.0]]]])
    heat = np.stack([blob(20, 20), blob(30.6, 25.8)]).astype(np.float32)
    valid = torch.tensor([[True, False]])
    got = position_loss(torch.from_numpy(heat)[None], points, valid, torch.from_numpy(H).float()[None])
    assert got.item() == pytest.approx(1.0 - 0.1, abs=0.08)
    exact = np.stack([blob(20.3, 20.2), blob(30.3, 25.2)]).astype(np.float32)
    got = position_loss(torch.from_numpy(exact)[None], points, valid, torch.from_numpy(H).float()[None])
    assert got.item() < 0.01


def test_position_loss_moves_the_peaks_together() -> None:
    logits = torch.randn(2, 65, 3, 3, generator=seeded(9), requires_grad=True)
    points = torch.full((1, 2, 1, 2), 11.5)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    losses = []
    for _ in range(30):
        heat = heatmap(logits)[None]
        loss = position_loss(heat, points, torch.ones(1, 1, dtype=torch.bool), torch.eye(3)[None])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.05
    assert losses[-1] < 0.2 * losses[0]


def test_peak_loss_is_the_expected_distance_in_a_loop() -> None:
    heat = torch.rand(2, 20, 24, generator=seeded(11))
    points = torch.rand(2, 6, 2, generator=seeded(12)) * torch.tensor([23.0, 19.0])
    points[0, 0] = torch.tensor([0.2, 0.4])  # its window leaves the image
    valid = torch.rand(2, 6, generator=seeded(13)) > 0.3
    valid[0, 0] = True
    means = []
    for b, n in np.argwhere(valid.numpy()):
        px, py = points[b, n].double().tolist()
        total = weights = 0.0
        for y in range(20):
            for x in range(24):
                if abs(x - round(px)) <= 2 and abs(y - round(py)) <= 2:
                    total += float(heat[b, y, x]) * math.hypot(x - px, y - py)
                    weights += float(heat[b, y, x])
        means.append(total / weights)
    assert float(peak_loss(heat, points, valid)) == pytest.approx(np.mean(means), rel=1e-5)
    assert float(peak_loss(heat, points, torch.zeros_like(valid))) == 0


def test_peak_loss_sharpens_the_heat_map_where_the_label_is() -> None:
    logits = torch.zeros(1, 65, 3, 3, requires_grad=True)
    points, valid = torch.tensor([[[12.0, 11.0]]]), torch.ones(1, 1, dtype=torch.bool)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for _ in range(60):
        loss = peak_loss(heatmap(logits), points, valid)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    heat = heatmap(logits)[0].detach()
    assert divmod(int(heat.argmax()), 24) == (11, 12)
    assert float(heat[11, 12]) > 10 * float(heat[11, 13])
