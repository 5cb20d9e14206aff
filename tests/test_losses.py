"""Losses against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frontend.training.losses import cell_centres, detector_loss, dual_softmax_loss, hinge_descriptor_loss


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
