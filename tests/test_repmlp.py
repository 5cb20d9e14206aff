"""RepMLP: partitions, convolutions as fully connected layers, and its trained against its folded form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_layers import array, convolve, kernel, normalise, randomise
from torch import nn

from frontend.encoders import ConvBlock
from frontend.encoders.repmlp import GlobalPerceptron, RepMLP, RepMLPEncoder, convolution_as_fc, join, partition
from frontend.errors import ConfigError


def test_partitions_are_cut_row_by_row_and_joined(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 6, 4))
    tiles = partition(torch.from_numpy(x), (3, 2))
    expected = [x[b, :, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2] for b, i, j in np.ndindex(2, 2, 2)]
    np.testing.assert_array_equal(tiles.numpy(), np.array(expected))
    np.testing.assert_array_equal(join(tiles, (2, 2)).numpy(), x)


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_fully_connected_layer(rng: np.random.Generator, side: int, groups: int) -> None:
    x, k = rng.normal(size=(4, 3, 4)), kernel(6, 4 // groups, side)
    found = convolution_as_fc(k, (3, 4), groups)
    weight, bias = array(found.weight)[:, :, 0, 0], array(found.bias)
    assert weight.shape == (6 * 12, 4 // groups * 12)
    flat = x.reshape(groups, -1)
    rows = weight.reshape(groups, -1, weight.shape[1])
    out = np.concatenate([rows[g] @ flat[g] for g in range(groups)]) + bias
    np.testing.assert_allclose(
        out.reshape(6, 3, 4), convolve(x, array(k.weight), array(k.bias), groups=groups), atol=1e-9
    )


def looped_repmlp(x: np.ndarray, block: RepMLP) -> np.ndarray:
    """(C, H, W) through the three perceptrons, one partition after the other."""
    (h, w), (channels, height, width) = block.size, x.shape
    rows, columns = -(-height // h), -(-width // w)
    padded = np.zeros((channels, rows * h, columns * w))
    padded[:, :height, :width] = x
    globally = block.global_perceptron
    averages = np.empty((channels, rows, columns))
    for c, i, j in np.ndindex(*averages.shape):
        averages[c, i, j] = padded[c, i * h : i * h + h, j * w : j * w + w].mean()
    averages = normalise(averages, globally.norm)
    fc1, fc2 = array(globally.fc1.weight)[:, :, 0, 0], array(globally.fc2.weight)[:, :, 0, 0]
    fc3 = array(block.fc3.weight)[:, :, 0, 0]
    out = np.empty_like(padded)
    for i, j in np.ndindex(rows, columns):
        pixel = np.concatenate([averages[:, i, j], averages.mean((1, 2))])
        added = fc2 @ np.maximum(fc1 @ pixel + array(globally.fc1.bias), 0) + array(globally.fc2.bias)
        tile = padded[:, i * h : i * h + h, j * w : j * w + w] + added[:, None, None]
        flat, each = tile.reshape(-1), tile.size // block.groups
        full = np.array([row @ flat[n // each * each : (n // each + 1) * each] for n, row in enumerate(fc3)])
        result = normalise(full.reshape(tile.shape), block.norm)
        for local in block.local:
            assert isinstance(local, ConvBlock)
            result += normalise(convolve(tile, array(local.conv.weight), groups=block.groups), local.norm)
        out[:, i * h : i * h + h, j * w : j * w + w] = result
    return out[:, :height, :width]


@pytest.fixture
def repmlp() -> RepMLP:
    torch.manual_seed(0)
    made = RepMLP(8, size=(3, 4), groups=4, kernels=(1, 3)).eval()
    randomise(made)
    return made


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (2, 2)])
def test_repmlp_equals_loops(rng: np.random.Generator, repmlp: RepMLP, size: tuple[int, int]) -> None:
    x = rng.normal(size=(2, 8, *size))
    repmlp.double()
    expected = np.array([looped_repmlp(image, repmlp) for image in x])
    np.testing.assert_allclose(array(repmlp(torch.from_numpy(x))), expected, atol=1e-9)
    repmlp.fold()
    np.testing.assert_allclose(array(repmlp(torch.from_numpy(x))), expected, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("inner_first", [False, True])
def test_repmlp_folds_to_fully_connected_layers(dtype: torch.dtype, tolerance: float, inner_first: bool) -> None:
    torch.manual_seed(0)
    encoder = RepMLPEncoder(channels=32, inner=16, blocks=2, groups=4).to(dtype).eval()
    randomise(encoder)
    x = torch.rand(2, 1, 56, 104, dtype=dtype)
    with torch.no_grad():
        before = encoder(x)
        modules = list(encoder.modules())
        for _ in range(2):
            for module in reversed(modules) if inner_first else modules:
                if isinstance(module, (ConvBlock, GlobalPerceptron, RepMLP)):
                    module.fold()
        torch.testing.assert_close(encoder(x), before, rtol=0, atol=tolerance)
    assert before.std() > 0.1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    for module in encoder.modules():
        if isinstance(module, RepMLP):
            layers = [name for name, _ in module.named_parameters()]
            assert sorted({name.split(".")[-2] for name in layers}) == ["fc1", "fc2", "fc3"]
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {dtype}


def test_repmlp_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="repmlp got 10 channels; expected a multiple of its 4 groups"):
        RepMLP(10, groups=4)
    with pytest.raises(ConfigError, match=r"repmlp got kernels \[1, 2\]; expected odd ones"):
        RepMLP(8, kernels=(1, 2))
    with pytest.raises(ConfigError, match="repmlp got 30 channels; expected a multiple of 4"):
        RepMLPEncoder(channels=30)
