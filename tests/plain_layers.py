"""Layers as plain NumPy loops in float64, and random statistics for batch norms; shared by tests of encoders."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from frontend.encoders.dbb import Kernel


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().double().numpy()


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    border: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Convolution of (C, H, W) by (O, C / groups, K, K), pixel by pixel.

    The image is surrounded by as much as keeps its size at stride 1; ``border`` is what stands there, for each channel.
    """
    channels, height, width = x.shape
    outputs, inner, side, _ = weight.shape
    margin = dilation * (side // 2)
    padded = np.empty((channels, height + 2 * margin, width + 2 * margin))
    padded[:] = np.broadcast_to(border, channels)[:, None, None]
    padded[:, margin : margin + height, margin : margin + width] = x
    out = np.zeros((outputs, -(-height // stride), -(-width // stride)))
    for o, i, j in np.ndindex(*out.shape):
        first = o // (outputs // groups) * inner
        for dy, dx in np.ndindex(side, side):
            taps = padded[first : first + inner, i * stride + dy * dilation, j * stride + dx * dilation]
            out[o, i, j] += sum(weight[o, c, dy, dx] * taps[c] for c in range(inner))
        if bias is not None:
            out[o, i, j] += bias[o]
    return out


def normalise(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    """Batch norm of (C, H, W) with its running statistics."""
    assert isinstance(norm, nn.BatchNorm2d)
    gamma, beta = array(norm.weight), array(norm.bias)
    mean, variance = array(norm.running_mean), array(norm.running_var)
    out = np.empty_like(x)
    for c in range(len(x)):
        out[c] = gamma[c] * (x[c] - mean[c]) / np.sqrt(variance[c] + norm.eps) + beta[c]
    return out


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Random gains, shifts and running statistics, far from the initial ones, for every batch norm."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.weight.data, 0.5, 1.5),
                (norm.bias.data, -0.5, 0.5),
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.3, 2.0),
            ):
                assert tensor is not None
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))


def kernel(outputs: int, inputs: int, side: int, seed: int = 0) -> Kernel:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, side, side, generator=generator, dtype=torch.float64)
    return Kernel(weight, torch.randn(outputs, generator=generator, dtype=torch.float64))
