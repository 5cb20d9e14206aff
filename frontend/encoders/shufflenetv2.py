"""ShuffleNet V2: cheap by memory access rather than by operation count (Ma et al. 2018, arXiv:1807.11164)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frontend.encoders.base import ENCODERS, ConvBlock, Encoder, Norm
from frontend.errors import ConfigError, ShapeError

# table 5: channels of stages 2, 3 and 4 by width, and units in each
CHANNELS = {0.5: (48, 96, 192), 1.0: (116, 232, 464), 1.5: (176, 352, 704), 2.0: (244, 488, 976)}
UNITS = (4, 8, 4)
STEM_CHANNELS = 24


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of groups, so that the next split takes from each (Zhang et al. 2018, arXiv:1707.01083).

    Args:
        x: (B, C, H, W); group g holds the channels from g * C / groups on.
        groups: that C is a multiple of.

    Returns:
        (B, C, H, W); channel i * groups + g is the i-th of group g.

    Raises:
        ShapeError: the channels do not divide into the groups.
    """
    batch, channels, height, width = x.shape
    if channels % groups:
        raise ShapeError(f"channel shuffle got {channels} channels; expected a multiple of {groups}")
    grouped = x.reshape(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(batch, channels, height, width)


def _separable(in_channels: int, out_channels: int, stride: int, dilation: int, norm: Norm) -> nn.Sequential:
    """1 x 1 convolution, depthwise 3 x 3 without a ReLU, 1 x 1 convolution."""
    return nn.Sequential(
        ConvBlock(in_channels, out_channels, 1, norm=norm),
        _depthwise(out_channels, stride, dilation, norm),
        ConvBlock(out_channels, out_channels, 1, norm=norm),
    )


def _depthwise(channels: int, stride: int, dilation: int, norm: Norm) -> ConvBlock:
    return ConvBlock(channels, channels, stride=stride, norm=norm, relu=False, groups=channels, dilation=dilation)


class BasicUnit(nn.Module):
    """Half of the channels pass, half are convolved; they are concatenated and shuffled (figure 3 c).

    Args:
        channels: C, even.
        dilation: of the depthwise convolution.
        norm: see :class:`ConvBlock`.
    """

    def __init__(self, channels: int, dilation: int = 1, norm: Norm = "bn") -> None:
        super().__init__()
        self.right = _separable(channels // 2, channels // 2, 1, dilation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C, h, w)."""
        passed, convolved = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat([passed, self.right(convolved)], dim=1), 2)


class DownsamplingUnit(nn.Module):
    """Both branches see all channels, so their number can grow and their grid shrink (figure 3 d).

    Args:
        in_channels: channels of the input.
        out_channels: O, even; half of them from each branch.
        stride: 2 as in the paper, or 1 where dilation stands in for it.
        dilation: of the depthwise convolutions.
        norm: see :class:`ConvBlock`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 2, dilation: int = 1, norm: Norm = "bn"
    ) -> None:
        super().__init__()
        self.left = nn.Sequential(
            _depthwise(in_channels, stride, dilation, norm), ConvBlock(in_channels, out_channels // 2, 1, norm=norm)
        )
        self.right = _separable(in_channels, out_channels // 2, stride, dilation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, O, ceil(h / stride), ceil(w / stride))."""
        return channel_shuffle(torch.cat([self.left(x), self.right(x)], dim=1), 2)


@ENCODERS.register("shufflenetv2")
class ShuffleNetV2(Encoder):
    """ShuffleNet V2 at an eighth of the image: its stem, then stages whose later strides are dilations.

    The stem and stage 2 have the paper's strides, which make 8. Stages 3 and 4 keep the grid and see as far as with
    their strides: their depthwise convolutions have dilations 2 and 4. The last 1 x 1 convolution and the pooling of
    the classifier are left out.

    Args:
        width: 0.5, 1.0, 1.5 or 2.0; the paper's channels.
        stages: how many of the stages 2, 3 and 4 there are, 1 to 3.
        norm: see :class:`ConvBlock`.

    Raises:
        ConfigError: there is no such width or number of stages.
    """

    paper = "Ma et al. 2018, arXiv:1807.11164"

    def __init__(self, width: float = 0.5, stages: int = 3, norm: Norm = "bn") -> None:
        super().__init__()
        if width not in CHANNELS:
            raise ConfigError(f"shufflenetv2 got width {width}; expected one of: {', '.join(map(str, CHANNELS))}")
        if not 1 <= stages <= len(UNITS):
            raise ConfigError(f"shufflenetv2 got {stages} stages; expected 1 to {len(UNITS)}")
        self.stem = nn.Sequential(ConvBlock(1, STEM_CHANNELS, stride=2, norm=norm), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for i, (out_channels, units) in enumerate(zip(CHANNELS[width][:stages], UNITS, strict=False)):
            # the unit that loses its stride still works on the grid before it, so its dilation is the one before
            first = DownsamplingUnit(channels, out_channels, 1 if i else 2, max(1, 2**i // 2), norm)
            others = (BasicUnit(out_channels, 2**i, norm) for _ in range(units - 1))
            self.stages.append(nn.Sequential(first, *others))
            channels = out_channels
        self.out_channels = channels

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, out_channels, H/8, W/8)."""
        x: Tensor = self.stem(image)
        for stage in self.stages:
            x = stage(x)
        return x
