"""The slim encoder and the light heads against plain convolutions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from frontend.encoders.slim import SeparableBlock, Slim
from frontend.errors import ConfigError
from frontend.heads import LightDescriptorHead, LightDetectorHead, ResidualBlock
from frontend.model import MODEL_PRESETS, SuperPointNet


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with batch norms that do something."""
    torch.manual_seed(seed)
    module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias.data):
                tensor.normal_(0, 0.2)
            for tensor in (part.running_var, part.weight.data):
                tensor.uniform_(0.5, 1.5)
    return module


def plain(block: nn.Module, x: np.ndarray, stride: int = 1, padding: int = 1, relu: bool = True) -> np.ndarray:
    """Convolution, batch norm and ReLU of one image, in loops over the output."""
    weight, groups = block.conv.weight.detach().numpy(), block.conv.groups
    out_channels, per_group, kernel, _ = weight.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    height, width = ((n - kernel) // stride + 1 for n in x.shape[1:])
    out = np.zeros((out_channels, height, width))
    for o in range(out_channels):
        first = o // (out_channels // groups) * per_group
        for i in range(height):
            for j in range(width):
                seen = x[first : first + per_group, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
                out[o, i, j] = (seen * weight[o]).sum()
    if block.conv.bias is not None:
        out += block.conv.bias.detach().numpy()[:, None, None]
    norm = block.norm
    if isinstance(norm, nn.BatchNorm2d):
        mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
        gain = norm.weight.detach().numpy() / np.sqrt(variance + norm.eps)
        out = (out - mean[:, None, None]) * gain[:, None, None] + norm.bias.detach().numpy()[:, None, None]
    return np.maximum(out, 0) if relu else out


def plain_separable(block: SeparableBlock, x: np.ndarray) -> np.ndarray:
    return x + plain(block.pointwise, plain(block.depthwise, x, relu=False), padding=0)


def test_the_encoder_is_its_convolutions() -> None:
    encoder = randomised(Slim(stem=5, channels=4, detail=3, dense=1, blocks=2))
    image = torch.rand(1, 1, 24, 32, dtype=torch.float64)
    x = plain(encoder.stem[0], image[0].numpy(), stride=4, padding=2)
    x = plain(encoder.stem[2], plain(encoder.stem[1], x), stride=2)
    detail, cells = x[:3], plain(encoder.blocks[0], x[3:])
    for block in list(encoder.blocks)[1:]:
        cells = plain_separable(block, cells)
    with torch.inference_mode():
        got = encoder(image)[0].numpy()
    np.testing.assert_allclose(got, np.concatenate([detail, cells]), rtol=1e-9, atol=1e-12)


def test_the_heads_are_their_convolutions() -> None:
    detector = randomised(LightDetectorHead(6, hidden=4))
    descriptor = randomised(LightDescriptorHead(6, dim=5, hidden=4, context=3, blocks=1, dense=1), 1)
    features = torch.rand(1, 6, 4, 6, dtype=torch.float64)
    x = features[0].numpy()
    logits = plain(
        detector.out, plain_separable(detector.hidden[1], plain(detector.hidden[0], x, padding=0)), 1, 0, False
    )
    context = plain_separable(descriptor.context[1], plain(descriptor.context[0], x, stride=2))
    context = np.maximum(context + plain(descriptor.context[2].conv, context, relu=False), 0)
    # bilinear by 2, cell centres: a quarter of the neighbour, at the edge the cell itself
    for axis in (1, 2):
        before = np.take(context, np.r_[0, : context.shape[axis] - 1], axis=axis)
        behind = np.take(context, np.r_[1 : context.shape[axis], context.shape[axis] - 1], axis=axis)
        doubled = np.stack([0.75 * context + 0.25 * before, 0.75 * context + 0.25 * behind], axis=axis + 1)
        shape = list(context.shape)
        shape[axis] *= 2
        context = doubled.reshape(shape)
    hidden = plain(descriptor.hidden[0], np.concatenate([x, context]), padding=0)
    described = plain(descriptor.out, plain_separable(descriptor.hidden[1], hidden), 1, 0, False)
    with torch.inference_mode():
        np.testing.assert_allclose(detector(features, torch.empty(0))[0].numpy(), logits, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(descriptor(features)[0].numpy(), described, rtol=1e-9, atol=1e-12)


def test_the_preset_is_small_and_folds() -> None:
    network = SuperPointNet(MODEL_PRESETS["slim"])
    assert sum(p.numel() for p in network.parameters()) < 280_000
    randomised(network)
    image = torch.rand(1, 1, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        before = network(image)
        after = network.fold()(image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for got, expected in zip(after, before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_residual_blocks_change_nothing_at_first() -> None:
    block = ResidualBlock(4).eval()
    x = torch.rand(1, 4, 5, 6)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    block(x).sum().backward()
    gain = block.conv.norm.weight.grad
    assert isinstance(gain, torch.Tensor)
    assert gain.abs().min() > 0  # it learns


@pytest.mark.parametrize("sizes", [{"stem": 0}, {"detail": 0}, {"blocks": -1}])
def test_sizes_that_are_none_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="slim has sizes"):
        Slim(**sizes)
