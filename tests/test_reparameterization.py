"""Branches that fold into one kernel: each transform against loops in float64, and trained against folded forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plain_layers import array, convolve, kernel, normalise, randomise
from torch import Tensor, nn

from frontend.encoders import ConvBlock, build_encoder
from frontend.encoders.dbb import (
    DBB,
    DiverseBranchBlock,
    Kernel,
    add_branches,
    average_pooling,
    concatenate,
    fuse_batch_norm,
    merge_sequence,
    pad_kernel,
)
from frontend.encoders.vgg import VGG
from frontend.errors import ConfigError, ShapeError
from frontend.model import ModelConfig, SuperPointNet, transfer
from frontend.weights import load_network, save_network

TOLERANCES = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(4, 6, 5))


def apply(x: np.ndarray, k: Kernel, groups: int = 1, border: np.ndarray | float = 0.0) -> np.ndarray:
    return convolve(x, array(k.weight), array(k.bias), groups=groups, border=border)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3).double().eval()
    randomise(norm)
    return norm


def test_a_batch_norm_fuses(image: np.ndarray) -> None:
    norm, k = batch_norm(3), kernel(3, 4, 3)
    np.testing.assert_allclose(apply(image, fuse_batch_norm(k, norm)), normalise(apply(image, k), norm), atol=1e-9)


def test_branches_add(image: np.ndarray) -> None:
    ks = [kernel(3, 4, 3, seed) for seed in range(3)]
    np.testing.assert_allclose(apply(image, add_branches(*ks)), sum(apply(image, k) for k in ks), atol=1e-9)
    with pytest.raises(ShapeError, match=r"branches to add have kernels of shapes .* expected one shape"):
        add_branches(kernel(3, 4, 3), kernel(3, 4, 1))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_sequence_merges_if_the_border_between_holds_the_bias(image: np.ndarray, groups: int) -> None:
    first, second = kernel(6, 4 // groups, 1), kernel(8, 6 // groups, 3, 1)
    merged = apply(image, merge_sequence(first, second, groups), groups)
    between = apply(image, first, groups)
    np.testing.assert_allclose(merged, apply(between, second, groups, border=array(first.bias)), atol=1e-9)
    zeros = apply(between, second, groups)
    np.testing.assert_allclose(merged[:, 1:-1, 1:-1], zeros[:, 1:-1, 1:-1], atol=1e-9)
    assert np.abs(merged - zeros)[:, 0].min() > 1e-3


def test_a_sequence_that_does_not_fit_is_refused() -> None:
    for first in (kernel(6, 4, 3), kernel(5, 4, 1)):
        with pytest.raises(ShapeError, match=r"sequence starts with a kernel .*; expected \(6, I, 1, 1\)"):
            merge_sequence(first, kernel(8, 6, 3))


def test_outputs_concatenate(image: np.ndarray) -> None:
    ks = [kernel(3, 4, 3), kernel(2, 4, 3, 1)]
    np.testing.assert_allclose(apply(image, concatenate(*ks)), np.concatenate([apply(image, k) for k in ks]), atol=1e-9)


def test_average_pooling_is_a_convolution(image: np.ndarray) -> None:
    padded = np.zeros((4, 10, 9))
    padded[:, 2:-2, 2:-2] = image
    expected = np.empty_like(image)
    for c, i, j in np.ndindex(*image.shape):
        expected[c, i, j] = padded[c, i : i + 5, j : j + 5].mean()
    found = average_pooling(4, 5, torch.zeros(0, dtype=torch.float64))
    np.testing.assert_allclose(apply(image, found), expected, atol=1e-9)


@pytest.mark.parametrize(("small", "large"), [(1, 3), (1, 5), (3, 5), (3, 3)])
def test_a_small_kernel_is_a_large_one(image: np.ndarray, small: int, large: int) -> None:
    k = kernel(3, 4, small)
    padded = pad_kernel(k, large)
    assert padded.weight.shape[2:] == (large, large)
    np.testing.assert_allclose(apply(image, padded), apply(image, k), atol=1e-9)


def test_a_kernel_without_a_middle_is_refused() -> None:
    for size in (1, 4):
        with pytest.raises(ShapeError, match=f"kernel of side 3 cannot be centred in one of side {size}"):
            pad_kernel(kernel(3, 4, 3), size)


def looped_block(x: np.ndarray, block: DiverseBranchBlock) -> np.ndarray:
    """The four branches; a zero-padded image goes through the first layer of each sequence, border and all."""
    square, point, sequence, average = block.square, block.point, block.sequence, block.average
    assert square is not None
    assert point is not None
    assert sequence is not None
    assert average is not None
    margin = block.size // 2
    wide = np.zeros((x.shape[0], x.shape[1] + 2 * margin, x.shape[2] + 2 * margin))
    wide[:, margin:-margin, margin:-margin] = x

    def inside(y: np.ndarray) -> np.ndarray:
        return y[:, margin:-margin, margin:-margin]

    total = normalise(convolve(x, array(square.conv.weight)), square.norm)
    total += normalise(convolve(x, array(point.conv.weight)), point.norm)
    between = normalise(convolve(wide, array(sequence.point.conv.weight)), sequence.point.norm)
    total += normalise(inside(convolve(between, array(sequence.conv.weight))), sequence.norm)
    between = normalise(convolve(wide, array(average.point.conv.weight)), average.point.norm)
    pooled = np.empty((len(between), *x.shape[1:]))
    for c, i, j in np.ndindex(*pooled.shape):
        pooled[c, i, j] = between[c, i : i + block.size, j : j + block.size].mean()
    return np.maximum(total + normalise(pooled, average.norm), 0)


@pytest.fixture(params=[3, 5])
def block(request: pytest.FixtureRequest) -> DiverseBranchBlock:
    torch.manual_seed(0)
    made = DiverseBranchBlock(4, 6, request.param).eval()
    randomise(made)
    return made


def test_a_block_is_its_four_branches(image: np.ndarray, block: DiverseBranchBlock) -> None:
    block.double()
    expected = looped_block(image, block)
    assert (expected > 0).mean() > 0.2
    x = torch.from_numpy(image)[None]
    np.testing.assert_allclose(array(block(x))[0], expected, atol=1e-9)
    np.testing.assert_allclose(np.maximum(apply(image, block.kernel()), 0), expected, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_a_block_folds_in_place(block: DiverseBranchBlock, dtype: torch.dtype, tolerance: float) -> None:
    block.to(dtype)
    x = torch.randn(2, 4, 7, 9, dtype=dtype)
    with torch.no_grad():
        before = block(x)
        block.fold()
        torch.testing.assert_close(block(x), before, rtol=0, atol=tolerance)
        once = block.state_dict()
        block.fold()
    assert [name for name, _ in block.named_parameters()] == ["conv.weight", "conv.bias"]
    assert {tensor.dtype for tensor in once.values()} == {dtype}
    assert all(torch.equal(once[name], tensor) for name, tensor in block.state_dict().items())


def test_the_sequence_starts_as_an_identity_and_keeps_its_channels() -> None:
    sequence = DiverseBranchBlock(4, 6).sequence
    assert sequence is not None
    torch.testing.assert_close(sequence.point.conv.weight[:, :, 0, 0], torch.eye(4), rtol=0, atol=0)


def test_a_block_of_an_even_kernel_is_refused() -> None:
    for size in (1, 4):
        with pytest.raises(ConfigError, match=f"got a kernel of side {size}; expected 3, 5"):
            DiverseBranchBlock(4, 6, size)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("folded", [False, True])
def test_dbb_becomes_a_plain_vgg(dtype: torch.dtype, tolerance: float, folded: bool) -> None:
    torch.manual_seed(0)
    encoder = DBB(channels=[16, 16, 32, 32], width=0.5).to(dtype).eval()
    randomise(encoder)
    x = torch.rand(2, 1, 40, 48, dtype=dtype)
    with torch.no_grad():
        before = encoder(x)
        if folded:
            for module in encoder.modules():
                if isinstance(module, DiverseBranchBlock):
                    module.fold()
        plain = encoder.reparameterize()
        assert (before > 0).double().mean() > 0.2
        torch.testing.assert_close(plain(x), before, rtol=0, atol=tolerance)
        torch.testing.assert_close(encoder(x), before, rtol=0, atol=tolerance if folded else 0)
    assert type(plain) is VGG
    expected = VGG(channels=[8, 8, 16, 16], norm="none").state_dict()
    found = plain.state_dict()
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    assert {t.dtype for t in found.values()} == {dtype}
    again, _ = build_encoder(str(encoder.reparameterized))
    again.load_state_dict(found, strict=True)


def _vgg_and_dbb() -> tuple[SuperPointNet, SuperPointNet]:
    torch.manual_seed(0)
    plain, branched = (
        SuperPointNet(ModelConfig(encoder=encoder, descriptor_dim=32)).double()
        for encoder in ("vgg(channels=[8, 8, 16, 16])", "dbb(width=0.125)")
    )
    randomise(plain)
    return plain, branched


@pytest.mark.parametrize("training", [False, True])
def test_dbb_begins_as_the_plain_encoder_that_it_takes_over(training: bool) -> None:
    plain, branched = _vgg_and_dbb()
    fresh = transfer(plain, branched)
    assert {name.split(".")[4] for name in fresh} == {"point", "sequence", "average"}
    x = torch.rand(2, 1, 40, 48, dtype=torch.float64)
    for a, b in zip(plain.train(training)(x), branched.train(training)(x), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9)


def test_what_dbb_takes_over_learns_in_all_its_branches() -> None:
    plain, branched = _vgg_and_dbb()
    transfer(plain, branched)
    begun = {name: value.clone() for name, value in branched.encoder.named_parameters()}
    optimiser = torch.optim.SGD(branched.encoder.parameters(), lr=0.01)
    x = torch.rand(2, 1, 40, 48, dtype=torch.float64)
    for _ in range(2):  # the first moves the gains of the branches, the second what is behind them
        optimiser.zero_grad()
        branched.train().encoder(x).square().mean().backward()
        optimiser.step()
    still = [name for name, value in branched.encoder.named_parameters() if torch.equal(begun[name], value)]
    assert still == []


def test_dbb_takes_over_nothing_else() -> None:
    for encoder in ("vgg(channels=[8, 8, 16, 8])", "vgg(channels=[8, 8, 16, 16], norm=none)", "compact(width=0.5)"):
        plain, branched = SuperPointNet(ModelConfig(encoder=encoder)), _vgg_and_dbb()[1]
        with pytest.raises(ConfigError, match=r"has no weights for a dbb\(width=0.125\) network"):
            transfer(plain, branched)
    block = DiverseBranchBlock(4, 6)
    for given, message in (
        (ConvBlock(4, 6, norm="none"), "was given a block without batch norm before its ReLU; expected one"),
        (ConvBlock(4, 6, norm="relu_bn"), "was given a block without batch norm before its ReLU; expected one"),
        (ConvBlock(4, 5), r"was given a kernel of shape \(5, 4, 3, 3\); expected \(6, 4, 3, 3\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            block.take_over(given)


def test_a_frozen_block_costs_one_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    block = DiverseBranchBlock(4, 6).double().eval()
    randomise(block)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64, requires_grad=True)
    expected = block(x)
    expected.square().sum().backward()
    before, x.grad = x.grad, None
    block.requires_grad_(False)
    merged = block.kernel()
    monkeypatch.setattr(block, "kernel", lambda: merged)
    monkeypatch.setattr(block, "_branches", lambda: pytest.fail("the branches were computed"))
    found = block(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    found.square().sum().backward()
    torch.testing.assert_close(x.grad, before, rtol=0, atol=1e-8)


def test_dbb_has_the_default_channels_of_vgg() -> None:
    assert DBB().channels == [64, 64, 128, 128]
    with pytest.raises(ConfigError, match="dbb got 2 channel widths; expected 4"):
        DBB(channels=[8, 8])


@pytest.mark.parametrize("encoder", ["dbb(channels=[8, 8, 16, 16])", "dbb(width=0.125)", "compact(width=0.5)"])
def test_a_network_is_reparameterized_saved_and_loaded(encoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SuperPointNet(ModelConfig(encoder=encoder, descriptor_dim=32, refiner="patch")).train()
    randomise(network)
    plain = network.reparameterize()
    expected = encoder if encoder.startswith("compact") else "vgg(channels=[8, 8, 16, 16], norm=none)"
    assert plain.config.encoder == expected
    assert network.training
    assert network.config.encoder == encoder
    assert not plain.training
    save_network(tmp_path / "plain.safetensors", plain)
    _, loaded = load_network(tmp_path / "plain.safetensors", fold=False)
    _, folded = load_network(tmp_path / "plain.safetensors")
    x = torch.rand(1, 1, 32, 40)
    shared = {t.data_ptr() for t in network.state_dict().values()} & {t.data_ptr() for t in plain.state_dict().values()}
    assert not shared
    with torch.no_grad():
        before = network.eval()(x)
        for again, tolerance in ((plain, 1e-4), (loaded, 1e-4), (folded, 1e-4)):
            for a, b in zip(before, again(x), strict=True):
                torch.testing.assert_close(b, a, rtol=0, atol=tolerance)


def test_context_modules_are_kept_by_reparameterizing(monkeypatch: pytest.MonkeyPatch) -> None:
    from frontend.encoders import CONTEXTS, Context

    class Scale(Context):
        def __init__(self, channels: int, by: float = 1.0) -> None:
            super().__init__()
            self.out_channels, self.by = channels, nn.Parameter(torch.tensor(by))

        def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
            return self.by * features, {}

    monkeypatch.setitem(CONTEXTS._items, "scale", Scale)
    network = SuperPointNet(ModelConfig(encoder="dbb(width=0.125)+scale(by=2.0)")).double().eval()
    network.contexts[0].by.data.fill_(3.0)  # type: ignore[union-attr, operator]
    plain = network.reparameterize()
    assert plain.config.encoder == "vgg(channels=[8, 8, 16, 16], norm=none)+scale(by=2.0)"
    x = torch.rand(1, 1, 24, 16, dtype=torch.float64)
    for a, b in zip(network(x), plain(x), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9)
