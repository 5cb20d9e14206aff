"""Detector and descriptor heads: an encoder's features to logits and descriptors (DeTone et al. 2018, section 3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.device import exactly
from frontend.encoders import ConvBlock, Norm
from frontend.encoders.slim import SeparableBlock
from frontend.registry import Registry

CELL = 8
DUSTBIN = CELL * CELL


def _logits(out: nn.Module, features: Tensor) -> Tensor:
    """A detector's last layer, in float32: in half precision many neighbouring pixels would have equal scores."""
    with exactly(features):
        logits: Tensor = out(features.float() if features.dtype in (torch.bfloat16, torch.float16) else features)
    return logits


class PaperDetectorHead(nn.Module):
    """3 x 3 convolution to 256, 1 x 1 to 65 (section 3.2)."""

    def __init__(self, in_channels: int, hidden: int = 256, norm: Norm = "bn", eps: float = 1e-5) -> None:
        super().__init__()
        # the released networks with "relu_bn" have a batch norm behind the last layer too
        last: Norm = "relu_bn" if norm == "relu_bn" else "none"
        self.hidden = ConvBlock(in_channels, hidden, norm=norm, eps=eps)
        self.out = ConvBlock(hidden, DUSTBIN + 1, 1, norm=last, relu=False, eps=eps)

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """Maps (B, C, h, w) features to (B, 65, h, w) logits; the image is not looked at."""
        return _logits(self.out, self.hidden(features))


class PaperDescriptorHead(nn.Module):
    """3 x 3 convolution to 256, 1 x 1 to D (section 3.3)."""

    def __init__(
        self, in_channels: int, dim: int = 256, hidden: int = 256, norm: Norm = "bn", eps: float = 1e-5
    ) -> None:
        super().__init__()
        last: Norm = "relu_bn" if norm == "relu_bn" else "none"
        self.hidden = ConvBlock(in_channels, hidden, norm=norm, eps=eps)
        self.out = ConvBlock(hidden, dim, 1, norm=last, relu=False, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, C, h, w) features to (B, D, h, w)."""
        descriptors: Tensor = self.out(self.hidden(features))
        return descriptors


class DetailDetectorHead(nn.Module):
    """A detector head that sees the image's own pixels beside the features.

    The gray image, pixel-unshuffled by 8, gives each cell its 64 pixels as channels: exact positions at no cost
    in resolution, which a strided encoder cannot carry.

    A cell's logits come from features whose meaning depends on where in the cell a point lies. The fine branch adds
    a term that does not: a few convolutions over the image, pixel-unshuffled by 2, the same for every pixel. The
    coarse part says where a point is, the fine one which pixel it is. Its last layer starts at zero.

    Args:
        in_channels: of the features.
        hidden: channels before the logits.
        detail: channels of the unshuffled branch.
        fine: channels of the fine branch; 0 leaves it out.
        norm: see :class:`ConvBlock`.
    """

    def __init__(self, in_channels: int, hidden: int = 128, detail: int = 64, fine: int = 0, norm: Norm = "bn") -> None:
        super().__init__()
        self.detail = nn.Sequential(
            ConvBlock(CELL * CELL, detail, 1, norm=norm),
            ConvBlock(detail, detail, norm=norm),
        )
        self.hidden = ConvBlock(in_channels + detail, hidden, norm=norm)
        self.out = ConvBlock(hidden, DUSTBIN + 1, 1, norm="none", relu=False)
        self.fine: nn.Sequential | None = None
        if fine:
            self.fine = nn.Sequential(
                ConvBlock(4, fine, norm=norm),
                ConvBlock(fine, fine, norm=norm),
                ConvBlock(fine, fine, norm=norm),
                ConvBlock(fine, 4, norm="none", relu=False),
            )
            last = cast(ConvBlock, self.fine[-1]).conv
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast(Tensor, last.bias))

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """Maps (B, C, h, w) features and their (B, 1, 8h, 8w) image to (B, 65, h, w) logits."""
        detail = self.detail(functional.pixel_unshuffle(image, CELL))
        logits = _logits(self.out, self.hidden(torch.cat([features, detail], dim=1)))
        if self.fine is not None:
            pixels = functional.pixel_shuffle(self.fine(functional.pixel_unshuffle(image, 2)), 2)
            positions = logits[:, :DUSTBIN] + functional.pixel_unshuffle(pixels, CELL)
            logits = torch.cat([positions, logits[:, DUSTBIN:]], dim=1)
        return logits


class LightDetectorHead(nn.Module):
    """A detector head of 1 x 1 and separable convolutions.

    Args:
        in_channels: of the features.
        hidden: channels before the logits.
        norm: see :class:`ConvBlock`.
    """

    def __init__(self, in_channels: int, hidden: int = 64, norm: Norm = "bn") -> None:
        super().__init__()
        self.hidden = nn.Sequential(ConvBlock(in_channels, hidden, 1, norm=norm), SeparableBlock(hidden, norm=norm))
        self.out = ConvBlock(hidden, DUSTBIN + 1, 1, norm="none", relu=False)

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """Maps (B, C, h, w) features to (B, 65, h, w) logits; the image is not looked at."""
        return _logits(self.out, self.hidden(features))


class _ContextHead(nn.Module):
    """What descriptor heads with a second branch at half the resolution have in common."""

    context: nn.Module
    hidden: nn.Module
    out: nn.Module

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, C, h, w) features to (B, D, h, w)."""
        context = self.context(features)
        context = functional.interpolate(context, size=features.shape[-2:], mode="bilinear", align_corners=False)
        descriptors: Tensor = self.out(self.hidden(torch.cat([features, context], dim=1)))
        return descriptors


class ResidualBlock(nn.Module):
    """3 x 3 convolution added to the input, then ReLU (He et al. 2016, 1512.03385).

    Behind a ReLU it changes nothing at first: its batch norm starts at zero, so that a trained network can be continued
    with more of them.

    Args:
        channels: of input and output.
        norm: see :class:`ConvBlock`.
    """

    def __init__(self, channels: int, norm: Norm = "bn") -> None:
        super().__init__()
        self.conv = ConvBlock(channels, channels, relu=False, norm=norm)
        if isinstance(self.conv.norm, nn.BatchNorm2d):
            nn.init.zeros_(self.conv.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + cast(Tensor, self.conv(x)))


class LightDescriptorHead(_ContextHead):
    """:class:`ContextDescriptorHead` of separable convolutions, and of dense ones where they cost least.

    Args:
        in_channels: of the features.
        dim: D.
        hidden: channels before the descriptors.
        context: channels of the branch at half the resolution.
        blocks: separable blocks of that branch.
        dense: residual blocks behind them.
        norm: see :class:`ConvBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int = 96,
        hidden: int = 96,
        context: int = 64,
        blocks: int = 3,
        dense: int = 0,
        norm: Norm = "bn",
    ) -> None:
        super().__init__()
        self.context = nn.Sequential(
            ConvBlock(in_channels, context, stride=2, norm=norm),
            *(SeparableBlock(context, norm=norm) for _ in range(blocks)),
            *(ResidualBlock(context, norm=norm) for _ in range(dense)),
        )
        self.hidden = nn.Sequential(
            ConvBlock(in_channels + context, hidden, 1, norm=norm), SeparableBlock(hidden, norm=norm)
        )
        self.out = ConvBlock(hidden, dim, 1, norm="none", relu=False)


class ContextDescriptorHead(_ContextHead):
    """A descriptor head with a second branch at half the resolution, for a larger receptive field."""

    def __init__(
        self, in_channels: int, dim: int = 128, hidden: int = 160, context: int = 128, norm: Norm = "bn"
    ) -> None:
        super().__init__()
        self.context = nn.Sequential(
            ConvBlock(in_channels, context, stride=2, norm=norm),
            ConvBlock(context, context, norm=norm),
            ConvBlock(context, context, norm=norm),
        )
        self.hidden = ConvBlock(in_channels + context, hidden, norm=norm)
        self.out = ConvBlock(hidden, dim, 1, norm="none", relu=False)


DETECTOR_HEADS: Registry[type[nn.Module]] = Registry("detector head", "superpoint.detector_heads")
DETECTOR_HEADS.register("paper")(PaperDetectorHead)
DETECTOR_HEADS.register("detail")(DetailDetectorHead)
DETECTOR_HEADS.register("light")(LightDetectorHead)
DESCRIPTOR_HEADS: Registry[type[nn.Module]] = Registry("descriptor head", "superpoint.descriptor_heads")
DESCRIPTOR_HEADS.register("paper")(PaperDescriptorHead)
DESCRIPTOR_HEADS.register("context")(ContextDescriptorHead)
DESCRIPTOR_HEADS.register("light")(LightDescriptorHead)
