"""Token labelling and MixToken against loops in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from token_encoder import register
from torch import Tensor

from frontend.encoders import ENCODERS
from frontend.errors import ConfigError, DataError
from frontend.model import MODEL_PRESETS, ModelConfig, SuperPointNet
from frontend.training.datasets import Sample, WarpedPairs
from frontend.training.losses import detector_loss
from frontend.training.mixtoken import Pasting, cell_targets, clear_of_pasted, paste, pasting, rectangle, without_pasted
from frontend.training.tasks import SuperPointTask
from frontend.training.token_labelling import TokenLabelling, soft_cross_entropy

H = np.array([[0.71, 0.12, -3.0], [-0.08, 0.66, 4.0], [4e-4, -2e-4, 1]])


@pytest.fixture(autouse=True)
def tiny_tokens() -> Iterator[str]:
    """The encoder is known to these tests and not to those over the registry."""
    yield register()
    del ENCODERS._items["tiny_tokens"]


def test_soft_cross_entropy_is_the_loop() -> None:
    generator = np.random.default_rng(3)
    logits, mask = generator.normal(0, 3, (2, 65, 3, 4)), generator.random((2, 3, 4)) > 0.3
    soft = generator.random((2, 65, 3, 4)) ** 8
    soft /= soft.sum(axis=1, keepdims=True)
    losses = []
    for b, j, i in np.ndindex(2, 3, 4):
        if mask[b, j, i]:
            log_sum = np.log(sum(np.exp(logits[b, c, j, i]) for c in range(65)))
            losses.append(sum(soft[b, c, j, i] * (log_sum - logits[b, c, j, i]) for c in range(65)))
    found = soft_cross_entropy(torch.from_numpy(logits), torch.from_numpy(soft), torch.from_numpy(mask))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-12)
    # with the label of one class alone it is the ordinary one
    labels = torch.from_numpy(generator.integers(0, 65, (2, 3, 4)))
    one = torch.nn.functional.one_hot(labels, 65).permute(0, 3, 1, 2).float()
    hard = detector_loss(torch.from_numpy(logits).float(), labels, torch.from_numpy(mask))
    torch.testing.assert_close(soft_cross_entropy(torch.from_numpy(logits).float(), one, torch.from_numpy(mask)), hard)


def test_rectangles_are_those_of_cutmix() -> None:
    shares = []
    for seed in range(3000):
        cells = rectangle(np.random.default_rng(seed), (32, 24), 1.0)
        ys, xs = np.nonzero(cells)
        if len(ys):
            assert cells[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
        shares.append(cells.mean())
    # the same by the formula, uncut by the grid of cells: share kept uniform, centre uniform, clipped
    generator, expected = np.random.default_rng(0), []
    for _ in range(20000):
        side, x, y = np.sqrt(generator.random()), generator.random(), generator.random()
        extent = [min(c + side / 2, 1) - max(c - side / 2, 0) for c in (x, y)]
        expected.append(extent[0] * extent[1])
    assert np.mean(shares) == pytest.approx(np.mean(expected), abs=0.015)
    np.testing.assert_allclose(
        np.quantile(shares, [0.25, 0.5, 0.75]), np.quantile(expected, [0.25, 0.5, 0.75]), atol=0.03
    )
    assert not rectangle(np.random.default_rng(0), (32, 24), 0.0).any()
    mixed = [rectangle(np.random.default_rng(seed), (32, 24), 0.3).any() for seed in range(2000)]
    assert np.mean(mixed) == pytest.approx(0.3, abs=0.04)


@pytest.fixture
def batch() -> Sample:
    """Three pairs of 40 x 32 pixels, mixed."""
    generator = np.random.default_rng(4)
    pasted = np.stack([rectangle(generator, (5, 4), 0.8) for _ in range(6)]).reshape(3, 2, 4, 5)
    pasted[0] = pasted[2] = False
    pasted[0, 0, 1:3, 1:4] = pasted[0, 1, 0, :2] = pasted[2, 1, :2, 2:] = pasted[2, 0, 2, :2] = True
    points = generator.uniform(-0.4, [39.4, 31.4], (3, 2, 30, 2))
    values: dict[str, np.ndarray] = {
        "image": generator.integers(0, 256, (3, 2, 32, 40), dtype=np.uint8),
        "labels": generator.integers(0, 65, (3, 2, 4, 5), dtype=np.uint8),
        "mask": generator.random((3, 2, 4, 5)) > 0.2,
        "soft": generator.dirichlet(np.ones(65), (3, 2, 4, 5)).transpose(0, 1, 4, 2, 3).astype(np.float32),
        "points": points.astype(np.float32),
        "valid": generator.random((3, 30)) > 0.2,
        "labelled": np.broadcast_to(np.arange(30) < 20, (3, 30)).copy(),
        "H": np.stack([H, np.eye(3), np.linalg.inv(H)]).astype(np.float32),
        "pasted": pasted,
        "partner": generator.integers(1 << 31, size=(3, 2)),
    }
    assert 20 < pasted.sum() < 100
    return {name: torch.from_numpy(value) for name, value in values.items()}


def mixed_of(batch: Sample) -> Pasting:
    mixed = pasting(batch)
    assert mixed is not None
    return mixed


def test_another_image_takes_the_place_of_pasted_cells(batch: Sample) -> None:
    mixed = mixed_of(batch)
    partners = batch["partner"].flatten().tolist()
    assert mixed.source.tolist() == [[*range(i + 1, 6), *range(i)][partners[i] % 5] for i in range(6)]
    tokens = torch.randn(6, 7, 4, 5, dtype=torch.float64)
    image = batch["image"].flatten(0, 1)[:, None]
    new_tokens, new_image = paste(tokens, mixed), paste(image, mixed)
    targets = cell_targets(batch, mixed)
    labels, mask, soft = (batch[name].flatten(0, 1) for name in ("labels", "mask", "soft"))
    assert targets.soft is not None
    for n, j, i in np.ndindex(6, 4, 5):
        k = int(mixed.source[n]) if batch["pasted"].flatten(0, 1)[n, j, i] else n
        assert torch.equal(new_tokens[n, :, j, i], tokens[k, :, j, i])
        window = np.s_[0, 8 * j : 8 * j + 8, 8 * i : 8 * i + 8]
        assert torch.equal(new_image[n][window], image[k][window])
        assert int(targets.labels[n, j, i]) == int(labels[k, j, i])
        assert bool(targets.mask[n, j, i]) == bool(mask[k, j, i])
        assert torch.equal(targets.soft[n, :, j, i], soft[k, :, j, i])
    plain = {name: value for name, value in batch.items() if name not in ("pasted", "partner", "soft")}
    assert pasting(plain) is None
    assert cell_targets(plain, None).soft is None
    assert torch.equal(cell_targets(plain, None).labels, labels.long())


def covered(batch: Sample, pair: int, view: int, xy: np.ndarray) -> bool:
    """Whether a point lies on a pasted cell of a view: cells are the pixels 8 n to 8 n + 7."""
    i, j = (int(np.floor((float(value) + 0.5) / 8)) for value in xy)
    return 0 <= i < 5 and 0 <= j < 4 and bool(batch["pasted"][pair, view, j, i])


def test_correspondences_on_pasted_cells_are_left_out(batch: Sample) -> None:
    found = without_pasted(batch, mixed_of(batch))
    points = batch["points"].double().numpy()
    for b, n in np.ndindex(3, 30):
        hidden = covered(batch, b, 0, points[b, 0, n]) or covered(batch, b, 1, points[b, 1, n])
        assert bool(found["valid"][b, n]) == (bool(batch["valid"][b, n]) and not hidden)
    assert 5 < int(found["valid"].sum()) < int(batch["valid"].sum()) - 5
    for b, v, j, i in np.ndindex(3, 2, 4, 5):
        assert bool(found["mask"][b, v, j, i]) == (
            bool(batch["mask"][b, v, j, i]) and not bool(batch["pasted"][b, v, j, i])
        )


def test_keypoints_count_where_both_views_show_their_own_image(batch: Sample) -> None:
    keypoints = batch["points"].flatten(0, 1)
    found = clear_of_pasted(keypoints, batch["H"], mixed_of(batch))
    transforms = batch["H"].double().numpy()
    by_other = np.zeros((3, 2), int)
    for n, k in np.ndindex(6, 30):
        b, view = divmod(n, 2)
        transform = transforms[b] if view == 0 else np.linalg.inv(transforms[b])
        here = keypoints[n, k].double().numpy()
        x, y, w = transform @ [*here, 1]
        own, other = covered(batch, b, view, here), covered(batch, b, 1 - view, np.array([x / w, y / w]))
        assert bool(found[n, k]) == (not own and not other)
        by_other[b, view] += other and not own
    # both directions of a homography that is not its own inverse
    assert by_other[0, 1] > 2
    assert by_other[2, 0] > 2


def network_of(**changes: object) -> SuperPointNet:
    torch.manual_seed(0)
    config = ModelConfig(encoder="tiny_tokens", descriptor_dim=16, detector_options={"fine": 4})
    return SuperPointNet(dataclasses.replace(config, **changes))  # type: ignore[arg-type]


def test_mixed_tokens_and_the_image_go_to_the_heads_together(batch: Sample) -> None:
    """Where the encoder looks at each token alone, mixing tokens and image is mixing images."""
    network = network_of().eval()
    labelling = TokenLabelling(network, token_weight=1.0, mix_tokens=0.5)
    image = batch["image"].reshape(-1, 1, 32, 40).float() / 255
    mixed = paste(image, mixed_of(batch))
    with torch.inference_mode():
        maps, seen, (tokens,) = labelling(network, image, batch)
        expected = network(mixed)
        features, _ = network.encode(mixed)
        assert labelling.head is not None
        torch.testing.assert_close(tokens, labelling.head(features))
    assert torch.equal(seen, mixed)
    assert tokens.shape == (6, 65, 4, 5)
    torch.testing.assert_close(maps.logits, expected.logits)
    torch.testing.assert_close(maps.descriptors, expected.descriptors)
    assert not torch.allclose(maps.logits, network(image).logits)


@pytest.mark.parametrize("refiner", ["", "patch"])
def test_the_loss_is_the_sum_that_it_says(batch: Sample, refiner: str) -> None:
    network = network_of(refiner=refiner)
    task = SuperPointTask(WarpedPairs.__new__(WarpedPairs), weight=0.5, refined_points=20)
    task.auxiliary = TokenLabelling(network, token_weight=0.7, soft_weight=0.3, mix_tokens=0.5)
    outputs = task.forward(network, batch)
    total, logged = task.loss(outputs, batch)
    labels, mask, soft = cell_targets(batch, mixed_of(batch))
    assert soft is not None
    hard = detector_loss(outputs[0], labels, mask)
    detector = 0.7 * hard + 0.3 * soft_cross_entropy(outputs[0], soft, mask)
    beside = soft_cross_entropy(outputs[-1], soft, mask)
    torch.testing.assert_close(logged["loss/detector"], detector.detach())
    torch.testing.assert_close(logged["loss/tokens"], beside.detach())
    rest: Tensor = 0.5 * logged["loss/descriptor"]
    if refiner:
        rest = rest + logged["loss/offset"] + logged["loss/repetition"] + 0.5 * logged["loss/matching"]
    torch.testing.assert_close(total, detector + 0.7 * beside + rest)
    total.backward()
    assert task.auxiliary.head is not None
    assert task.auxiliary.head.weight.grad is not None
    assert float(task.auxiliary.head.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("loss", ["dual_softmax", "hinge"])
def test_pasted_cells_teach_the_descriptor_nothing(batch: Sample, loss: str) -> None:
    """What the descriptors of pasted cells are does not matter, as long as no point is sampled across their edge."""
    batch["pasted"][:] = False
    batch["pasted"][:, :, :, 3:] = True
    # samples at x < 20 lie between the centres of the first three columns
    batch["points"][..., 0] = batch["points"][..., 0].where(batch["points"][..., 0] > 24, 8)
    batch["points"][..., 0] = batch["points"][..., 0].clamp_max(39)
    network = network_of()
    task = SuperPointTask(WarpedPairs.__new__(WarpedPairs), loss, token_labelling=TokenLabelling(network))
    logits, descriptors = torch.randn(6, 65, 4, 5), torch.randn(6, 16, 4, 5)
    descriptors.requires_grad_()
    batch["mask"][:] = True
    _, logged = task.loss((logits, descriptors), batch)
    changed = descriptors.detach().clone()
    changed[..., 3:] += torch.randn(6, 16, 4, 2)
    _, again = task.loss((logits, changed), batch)
    torch.testing.assert_close(logged["loss/descriptor"], again["loss/descriptor"], rtol=0, atol=0)
    changed[..., :3] += torch.randn(6, 16, 4, 3)
    _, other = task.loss((logits, changed), batch)
    assert not torch.allclose(logged["loss/descriptor"], other["loss/descriptor"])


def test_detected_keypoints_on_pasted_cells_teach_the_refiner_nothing(batch: Sample) -> None:
    network = network_of(refiner="patch")
    names = ("loss/offset", "loss/repetition", "loss/matching")
    batch["H"][:] = torch.eye(3)
    batch["image"][:, 1] = batch["image"][:, 0]
    task = SuperPointTask(WarpedPairs.__new__(WarpedPairs), refined_points=20, token_labelling=TokenLabelling(network))
    for value, nothing in ((False, False), (True, True)):
        batch["pasted"][:] = value
        _, logged = task.loss(task.forward(network, batch), batch)
        assert [bool(logged[name] == 0) for name in names] == [nothing] * 3


def test_what_does_not_fit_is_refused(batch: Sample) -> None:
    compact = SuperPointNet(MODEL_PRESETS["edge-dense"])
    with pytest.raises(ConfigError, match=r"mix_tokens is 0\.5; encoder 'compact' has no tokens to mix"):
        TokenLabelling(compact, mix_tokens=0.5)
    with pytest.raises(ConfigError, match="token_weight is -1; expected 0 or more"):
        TokenLabelling(compact, token_weight=-1)
    for name in ("soft_weight", "mix_tokens"):
        with pytest.raises(ConfigError, match=rf"{name} is 1\.5; expected a share"):
            TokenLabelling(compact, **{name: 1.5})
    del batch["soft"]
    labelling = TokenLabelling(compact, token_weight=1.0)
    with pytest.raises(DataError, match="have no soft labels"):
        labelling.loss(torch.randn(6, 65, 4, 5), cell_targets(batch, None).soft, batch["mask"])
    assert TokenLabelling(compact, soft_weight=0.5).head is None
