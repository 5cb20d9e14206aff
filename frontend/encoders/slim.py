"""The smallest encoder: nothing runs at more than a quarter of the image's resolution."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from frontend.encoders.base import ENCODERS, ConvBlock, Encoder, Norm
from frontend.errors import ConfigError


class SeparableBlock(nn.Module):
    """Depthwise 3 x 3, then 1 x 1 convolution (Howard et al. 2017, 1704.04861), added to the input.

    Args:
        channels: of input and output.
        norm: see :class:`ConvBlock`.
    """

    def __init__(self, channels: int, norm: Norm = "bn") -> None:
        super().__init__()
        self.depthwise = ConvBlock(channels, channels, groups=channels, relu=False, norm=norm)
        self.pointwise = ConvBlock(channels, channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.pointwise(self.depthwise(x)))


@ENCODERS.register("slim")
class Slim(Encoder):
    """Three dense convolutions down to the cells, then separable ones; the detail that they lose goes past them.

    The first convolution takes overlapping 8 x 8 squares of pixels to a quarter of the image's sides. The third ends at
    the cells: some of its channels go through the separable blocks, the others straight to the output, for the detector
    to tell the pixels of a cell apart.

    Args:
        stem: channels at a quarter of the image's sides.
        channels: that go through the blocks.
        detail: that go past them.
        dense: 3 x 3 convolutions before the blocks.
        blocks: separable blocks.
        norm: see :class:`ConvBlock`.
    """

    paper = "this project"

    def __init__(
        self,
        stem: int = 24,
        channels: int = 64,
        detail: int = 32,
        dense: int = 0,
        blocks: int = 5,
        norm: Norm = "bn",
    ) -> None:
        super().__init__()
        if min(stem, channels, detail) < 1 or min(dense, blocks) < 0:
            raise ConfigError(f"slim has sizes {(stem, channels, detail, dense, blocks)}; expected positive ones")
        self.sizes = (detail, channels)
        self.out_channels = detail + channels
        self.stem = nn.Sequential(
            ConvBlock(1, 16, 8, stride=4, padding=2, norm=norm),
            ConvBlock(16, stem, norm=norm),
            ConvBlock(stem, self.out_channels, stride=2, norm=norm),
        )
        self.blocks = nn.Sequential(
            *(ConvBlock(channels, channels, norm=norm) for _ in range(dense)),
            *(SeparableBlock(channels, norm=norm) for _ in range(blocks)),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, out_channels, H/8, W/8)."""
        detail, cells = self.stem(image).split(self.sizes, dim=1)
        return torch.cat([detail, self.blocks(cells)], dim=1)
