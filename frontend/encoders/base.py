"""The contracts of encoders and context modules, and the convolution block that the networks are built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from frontend.registry import Registry

Norm = Literal["none", "bn", "relu_bn"]


class Encoder(nn.Module):
    """Maps gray images to features at an eighth of their size.

    ``forward`` takes (B, 1, H, W) float in [0, 1], H and W multiples of 8 (any such size from 16 x 16), and returns
    (B, out_channels, H/8, W/8). The first line of the class's docstring says what it is in one sentence.

    A module in it that is trained in one form and used in another has a method ``fold()`` that brings it, in place,
    to the second; it is called in evaluation mode.

    Attributes:
        paper: authors, year and arXiv number of where it comes from.
        stride: input pixels per feature cell, along each axis.
        out_channels: channels of the output.
    """

    paper: str = ""
    stride: int = 8
    out_channels: int


class TokenEncoder(Encoder):
    """An encoder that turns the image into tokens, one for each 8 x 8 cell, and then works on those alone.

    ``forward(image)`` is ``encode(embed(image))``; between the two, training may mix the tokens of images.
    """

    def embed(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, C, H/8, W/8) tokens."""
        raise NotImplementedError

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, C, h, w) tokens to (B, out_channels, h, w) features."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, out_channels, H/8, W/8)."""
        return self.encode(self.embed(image))


class Context(nn.Module):
    """A module between the encoder and the heads.

    The constructor takes the channels of its input, then keyword options. ``forward`` takes features (B, C, h, w) of
    any size and a raster: (B, M, H, W) float, M layers of a map in the image's frame at the image's size, or None.
    It returns features (B, out_channels, h, w), and what only training looks at, by name (empty for most).

    Attributes:
        paper: authors, year and arXiv number of where it comes from.
        auxiliary: whether there is something that only training looks at.
        takes_raster: whether the raster may matter: one given to a network without such a module is refused.
        out_channels: channels of the output.
    """

    paper: str = ""
    auxiliary: bool = False
    takes_raster: bool = True
    out_channels: int

    def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Features and auxiliary outputs."""
        raise NotImplementedError


EncoderFactory = Callable[..., Encoder]
ContextFactory = Callable[..., Context]
ENCODERS: Registry[EncoderFactory] = Registry("encoder", "superpoint.encoders")
CONTEXTS: Registry[ContextFactory] = Registry("context module", "superpoint.contexts")


class ConvBlock(nn.Module):
    """Convolution with an optional ReLU and an optional batch norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the square kernel, odd.
        stride: of the convolution.
        padding: zeros around the input; dilation * (kernel // 2), which keeps the size, where it is not given.
        norm: "bn" is convolution, batch norm, ReLU; "relu_bn" is convolution, ReLU, batch norm; "none" has no
            batch norm and a bias.
        relu: whether there is a ReLU.
        eps: of the batch norm.
        groups: of the convolution; in_channels of them with as many outputs are a depthwise convolution.
        dilation: input pixels between the taps of the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        norm: Norm = "bn",
        relu: bool = True,
        eps: float = 1e-5,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        # before a batch norm a bias would be cancelled by the mean; behind a ReLU it would not
        bias = norm != "bn"
        around = dilation * (kernel // 2) if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, around, dilation, groups, bias=bias)
        self.norm: nn.Module = nn.Identity() if norm == "none" else nn.BatchNorm2d(out_channels, eps=eps)
        self.relu: nn.Module = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.norm_last = norm == "relu_bn"

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.norm(self.relu(x)) if self.norm_last else self.relu(self.norm(x))
        return x

    @torch.no_grad()
    def fold(self) -> None:
        """Merge the batch norm into the convolution where that is exact; otherwise leave it.

        A batch norm behind a ReLU stays: its shift cannot pass the zero padding of the next convolution.
        """
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d) or (self.norm_last and not isinstance(self.relu, nn.Identity)):
            return
        mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
        gain = norm.weight.double() / torch.sqrt(variance + norm.eps)
        bias = norm.bias.double() - mean * gain
        if self.conv.bias is not None:
            bias += self.conv.bias.double() * gain
        weight = self.conv.weight.double() * gain[:, None, None, None]
        self.conv.weight.copy_(weight)
        self.conv.bias = nn.Parameter(bias.to(self.conv.weight.dtype))
        self.norm = nn.Identity()
