"""Context from strips: pooling along whole rows and columns (Hou et al. 2020, arXiv:2003.13328)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.encoders.base import CONTEXTS, Context, ConvBlock
from frontend.errors import ConfigError


class StripConv(ConvBlock):
    """A convolution of three taps along a strip, with batch norm and no ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        vertical: the taps lie in a column; otherwise in a row.
    """

    def __init__(self, in_channels: int, out_channels: int, vertical: bool) -> None:
        super().__init__(in_channels, out_channels, 1, relu=False)
        kernel, around = ((3, 1), (1, 0)) if vertical else ((1, 3), (0, 1))
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=around, bias=False)


class Strips(nn.Module):
    """The mean of each row and of each column, convolved along the strip, expanded and added (section 3.1).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.vertical = StripConv(in_channels, out_channels, vertical=True)
        self.horizontal = StripConv(in_channels, out_channels, vertical=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, out_channels, h, w)."""
        rows: Tensor = self.vertical(x.mean(dim=3, keepdim=True))
        columns: Tensor = self.horizontal(x.mean(dim=2, keepdim=True))
        return rows + columns


@CONTEXTS.register("strip_pooling")
class StripPooling(Context):
    """Strip pooling module (SPM): a gate for each cell, from the means of its row and of its column (section 3.1).

    The output is x * 2 sigmoid(f(y)), y the expanded strips (:class:`Strips`), f a 1 x 1 convolution. The paper's
    gate has no factor 2. With it, and with f starting at zero, the gate starts at exactly 1, so the module can be put
    into a trained network without changing what it computes. The next layer could hold the factor as well: what can
    be expressed stays the same.

    Args:
        channels: of the input, and of the output.
        reduction: the strips have channels // reduction channels; 1 is the paper's.

    Raises:
        ConfigError: reduction is no positive integer.
    """

    paper = "Hou et al. 2020, arXiv:2003.13328"
    takes_raster = False

    def __init__(self, channels: int, reduction: int = 1) -> None:
        super().__init__()
        self.out_channels = channels
        hidden = _reduced(channels, reduction)
        self.strips = Strips(channels, hidden)
        self.gate = ConvBlock(hidden, channels, 1, norm="none", relu=False)
        for parameter in self.gate.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps (B, C, h, w) to (B, C, h, w); the raster is not looked at."""
        return features * (2 * torch.sigmoid(self.gate(self.strips(features)))), {}


@CONTEXTS.register("mixed_pooling")
class MixedPooling(Context):
    """Mixed pooling module (MPM): means over squares for what is near, over strips for what is far (section 3.2).

    The pyramid branch is a 3 x 3 convolution of the features and of their adaptive means at two sizes; the strip
    branch is :class:`Strips`. Each ends in a 3 x 3 convolution and works on channels // reduction channels. A 1 x 1
    convolution of both is added to the input. Its batch norm's weight starts at zero, and no ReLU follows the sum,
    unlike in the authors' code: so the module starts as the identity, also on features that are negative, and can be
    put into a trained network.

    Args:
        channels: of the input, and of the output.
        reduction: the branches have channels // reduction channels; 4 is the paper's.
        sizes: of the adaptive means, in cells; 20 and 12 are the paper's. Along an axis with fewer cells than that,
            the mean is the features themselves.

    Raises:
        ConfigError: reduction or a size is no positive integer.
    """

    paper = "Hou et al. 2020, arXiv:2003.13328"
    takes_raster = False

    def __init__(self, channels: int, reduction: int = 4, sizes: Sequence[int] = (20, 12)) -> None:
        super().__init__()
        self.out_channels = channels
        hidden = _reduced(channels, reduction)
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ConfigError(f"mixed pooling got sizes {list(sizes)}; expected integers of at least 1")
        self.sizes = tuple(sizes)
        self.square_in = ConvBlock(channels, hidden, 1)
        self.square_full = ConvBlock(hidden, hidden, relu=False)
        self.square_pooled = nn.ModuleList(ConvBlock(hidden, hidden, relu=False) for _ in self.sizes)
        self.square_out = ConvBlock(hidden, hidden)
        self.strip_in = ConvBlock(channels, hidden, 1)
        self.strips = Strips(hidden, hidden)
        self.strip_out = ConvBlock(hidden, hidden)
        self.out = ConvBlock(2 * hidden, channels, 1, relu=False)
        nn.init.zeros_(self.out.norm.weight)  # type: ignore[arg-type]

    def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps (B, C, h, w) to (B, C, h, w); the raster is not looked at."""
        height, width = features.shape[-2:]
        x = self.square_in(features)
        squares: Tensor = self.square_full(x)
        for size, conv in zip(self.sizes, self.square_pooled, strict=True):
            pooled = conv(adaptive_mean(x, min(size, height), min(size, width)))
            # bins are centred like the cells of a coarser grid
            squares = squares + functional.interpolate(pooled, (height, width), mode="bilinear", align_corners=False)
        strips = self.strips(self.strip_in(features))
        both = torch.cat([self.square_out(squares.relu()), self.strip_out(strips.relu())], dim=1)
        return features + self.out(both), {}


def adaptive_mean(x: Tensor, height: int, width: int) -> Tensor:
    """Means over bins that cover a map evenly, as ``adaptive_avg_pool2d`` does.

    Two matrix products: where the bins are of unequal sizes, the ONNX form of ``adaptive_avg_pool2d`` is a chain of
    gathers, and its gradient on CUDA depends on the order of additions.

    Args:
        x: (B, C, h, w) float.
        height: bins along the y axis, at most h.
        width: bins along the x axis, at most w.

    Returns:
        (B, C, height, width); bin i of n along an axis of m cells is the mean of cells floor(i m / n) to
        ceil((i + 1) m / n) - 1.
    """
    return _bins(x, x.shape[2], height) @ x @ _bins(x, x.shape[3], width).T


def _bins(like: Tensor, cells: int, bins: int) -> Tensor:
    """(bins, cells) matrix of weights, each row's sum 1, of the type and on the device of ``like``."""
    cell = torch.arange(cells, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    # in integers: index * cells // bins <= cell, and cell < ceil((index + 1) * cells / bins)
    inside = ((cell + 1) * bins > index * cells) & (cell * bins < (index + 1) * cells)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


def _reduced(channels: int, reduction: int) -> int:
    if not isinstance(reduction, int) or reduction < 1:
        raise ConfigError(f"a pooling module got reduction {reduction}; expected an integer of at least 1")
    return max(1, channels // reduction)
