"""RepMLP: fully connected layers that are trained beside convolutions (Ding et al. 2021, arXiv:2105.01883)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.encoders.base import ENCODERS, ConvBlock, Encoder
from frontend.encoders.dbb import Kernel, batch_norm_affine
from frontend.errors import ConfigError


def partition(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a map into partitions ("Components of RepMLP").

    Args:
        x: (B, C, H, W), H and W multiples of h and w.
        size: h and w.

    Returns:
        (B * H/h * W/w, C, h, w), row by row.
    """
    batch, channels, height, width = x.shape
    h, w = size
    tiles = x.reshape(batch, channels, height // h, h, width // w, w)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, h, w)


def join(tiles: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put partitions together again; the inverse of :func:`partition`.

    Args:
        tiles: (B * rows * columns, C, h, w), row by row.
        grid: rows and columns.

    Returns:
        (B, C, rows * h, columns * w).
    """
    _, channels, h, w = tiles.shape
    rows, columns = grid
    x = tiles.reshape(-1, rows, columns, channels, h, w)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, rows * h, columns * w)


def convolution_as_fc(kernel: Kernel, size: tuple[int, int], groups: int) -> Kernel:
    """The fully connected kernel that does what a zero-padded convolution does to a partition.

    A linear map's matrix is what it makes of the identity: the convolution is applied to every map that is one at
    one pixel of one channel, and zero elsewhere ("Merging Conv into FC").

    Args:
        kernel: (O, C / groups, K, K), (O,); it pads by K // 2, K odd.
        size: h and w of the partition.
        groups: of the convolution, and of the result.

    Returns:
        (O * h * w, C / groups * h * w, 1, 1), (O * h * w,): a grouped 1 x 1 convolution over flattened partitions.
    """
    h, w = size
    outputs, channels, side, _ = kernel.weight.shape
    inputs = channels * h * w
    identity = torch.eye(inputs, dtype=kernel.weight.dtype, device=kernel.weight.device)
    # every group sees the same basis, so one pass gives each group's own columns
    basis = identity.reshape(inputs, channels, h, w).repeat(1, groups, 1, 1)
    responses = functional.conv2d(basis, kernel.weight, padding=side // 2, groups=groups)
    weight = responses.reshape(inputs, outputs * h * w).t()
    return Kernel(weight[:, :, None, None], kernel.bias.repeat_interleave(h * w))


class GlobalPerceptron(nn.Module):
    """Tells each partition of itself and of the others: average, batch norm, two-layer MLP, added to its pixels.

    The paper's MLP joins all partitions of a fixed grid. Here it takes the partition's average and the mean of all
    averages, and is the same for every partition, so that a grid of any size fits.

    Args:
        channels: C.
        size: h and w of the partition.
        hidden: channels between the layers.
    """

    def __init__(self, channels: int, size: tuple[int, int], hidden: int) -> None:
        super().__init__()
        self.average = nn.AvgPool2d(size)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.fc1 = nn.Conv2d(2 * channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), multiples of h and w, to (B, C, H/h, W/w): what to add to each partition."""
        own = self.norm(self.average(x))
        everywhere = own.mean(dim=(2, 3), keepdim=True).expand_as(own)
        out: Tensor = self.fc2(functional.relu(self.fc1(torch.cat([own, everywhere], dim=1))))
        return out

    @torch.no_grad()
    def fold(self) -> None:
        """Merge the batch norm into the first layer, in place."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        gain, shift = (term.double().repeat(2) for term in batch_norm_affine(self.norm))
        weight = self.fc1.weight.double()
        bias = cast(Tensor, self.fc1.bias)
        bias.copy_(bias + weight[:, :, 0, 0] @ shift)
        self.fc1.weight.copy_(weight * gain[:, None, None])
        self.norm = nn.Identity()


class RepMLP(nn.Module):
    """Fully connected over each partition of a map; convolutions train beside it and are merged into it.

    The partition perceptron is one grouped fully connected layer from all pixels and channels of a partition to all,
    and a batch norm. The local perceptron is a convolution with a batch norm for each kernel size, over the partition
    alone: zeros stand around it.

    The map is padded with zeros at the bottom and right to whole partitions, and the result is cropped. The averages
    of partitions at those sides count the zeros.

    Args:
        channels: C, of input and output; a multiple of groups.
        size: h and w of the partition.
        groups: of the fully connected layer and of the convolutions.
        kernels: sides of the convolutions, odd.
        reduction: channels over the hidden channels of the global perceptron.

    Raises:
        ConfigError: the channels do not divide into the groups, or a kernel is even.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int] = (5, 5),
        groups: int = 8,
        kernels: Sequence[int] = (1, 3, 5),
        reduction: int = 2,
    ) -> None:
        super().__init__()
        if channels % groups:
            raise ConfigError(f"repmlp got {channels} channels; expected a multiple of its {groups} groups")
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ConfigError(f"repmlp got kernels {list(kernels)}; expected odd ones")
        self.size, self.groups = size, groups
        self.global_perceptron = GlobalPerceptron(channels, size, max(1, channels // reduction))
        flat = channels * size[0] * size[1]
        self.fc3 = nn.Conv2d(flat, flat, 1, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.local = nn.ModuleList(
            ConvBlock(channels, channels, kernel, relu=False, groups=groups) for kernel in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), any size, to (B, C, H, W)."""
        height, width = x.shape[-2:]
        h, w = self.size
        x = functional.pad(x, (0, -width % w, 0, -height % h))
        grid = x.shape[-2] // h, x.shape[-1] // w
        added = self.global_perceptron(x)
        # (B, C, rows, columns) to one pixel for each partition
        tiles = partition(x, self.size) + partition(added, (1, 1))
        out: Tensor = self.norm(self.fc3(tiles.flatten(1)[:, :, None, None]).reshape(tiles.shape))
        for conv in self.local:
            out = out + conv(tiles)
        return join(out, grid)[:, :, :height, :width]

    @torch.no_grad()
    def fold(self) -> None:
        """Merge local perceptron and batch norms into the fully connected layers ("Converting RepMLP")."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        self.global_perceptron.fold()
        pixels = self.size[0] * self.size[1]
        gain, bias = (term.double().repeat_interleave(pixels) for term in batch_norm_affine(self.norm))
        weight = self.fc3.weight.double() * gain[:, None, None, None]
        for block in cast("list[ConvBlock]", self.local):
            block.fold()
            kernel = Kernel(block.conv.weight.double(), cast(Tensor, block.conv.bias).double())
            local = convolution_as_fc(kernel, self.size, self.groups)
            weight, bias = weight + local.weight, bias + local.bias
        self.fc3.weight.copy_(weight)
        self.fc3.bias = nn.Parameter(bias.to(self.fc3.weight.dtype))
        self.norm, self.local = nn.Identity(), nn.ModuleList()


class RepMLPBottleneck(nn.Module):
    """RepMLP between 3 x 3 convolutions at fewer channels, around which the input passes ("RepMLP-ResNet").

    Args:
        channels: C, of input and output.
        inner: channels of the RepMLP.
        size: h and w of its partition.
        groups: see :class:`RepMLP`.
        kernels: see :class:`RepMLP`.
    """

    def __init__(self, channels: int, inner: int, size: tuple[int, int], groups: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(channels, inner, 1),
            ConvBlock(inner, inner),
            RepMLP(inner, size, groups, kernels),
            nn.ReLU(inplace=True),
            ConvBlock(inner, inner),
            ConvBlock(inner, channels, 1, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W), at least 0."""
        return functional.relu(x + self.layers(x))


@ENCODERS.register("repmlp")
class RepMLPEncoder(Encoder):
    """Strided convolutions to an eighth of the image, then RepMLP bottlenecks.

    A partition of 5 x 5 cells is 40 x 40 pixels. What a cell gets depends on where in its partition it lies, unlike
    with a convolution.

    Args:
        channels: after the stem, which has a quarter and half of them before; a multiple of 4.
        inner: channels of the RepMLPs; a multiple of groups.
        blocks: bottlenecks.
        partition: side of a partition, in cells.
        groups: of the fully connected layers; more are fewer parameters.
        kernels: sides of the convolutions that are trained beside them, odd.

    Raises:
        ConfigError: channels, groups and kernels do not fit.
    """

    paper = "Ding et al. 2021, arXiv:2105.01883"

    def __init__(
        self,
        channels: int = 96,
        inner: int = 48,
        blocks: int = 2,
        partition: int = 5,
        groups: int = 8,
        kernels: Sequence[int] = (1, 3, 5),
    ) -> None:
        super().__init__()
        if channels % 4:
            raise ConfigError(f"repmlp got {channels} channels; expected a multiple of 4")
        self.out_channels = channels
        self.stem = nn.Sequential(
            ConvBlock(1, channels // 4, stride=2),
            ConvBlock(channels // 4, channels // 2, stride=2),
            ConvBlock(channels // 2, channels // 2),
            ConvBlock(channels // 2, channels, stride=2),
        )
        size = (partition, partition)
        self.blocks = nn.Sequential(*(RepMLPBottleneck(channels, inner, size, groups, kernels) for _ in range(blocks)))

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, channels, H/8, W/8)."""
        out: Tensor = self.blocks(self.stem(image))
        return out
