"""External attention: tokens attend to a small learned memory, at a cost linear in their number (Guo et al. 2021)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.encoders.base import CONTEXTS, ENCODERS, Context, ConvBlock, Encoder
from frontend.errors import ConfigError


def double_normalise(logits: Tensor) -> Tensor:
    """Softmax over the tokens, then division by the sum over the memory (section 3.2).

    Args:
        logits: (..., S, N) float, of S units of memory and N tokens.

    Returns:
        (..., S, N) in [0, 1]; the S weights of every token sum to 1.
    """
    # exp(a) / sum exp(a) is a softmax: no division by zero where the first normalisation underflows in all units
    return logits.log_softmax(dim=-1).softmax(dim=-2)


class ExternalAttention(nn.Module):
    """Attention to two memories, M_k and M_v, that belong to the network and not to the image (section 3.1).

    A = norm(F M_k^T), F_out = A M_v. With heads, the channels are split, and all heads share the memories
    (section 3.3).

    Args:
        dim: C, channels.
        memory: S, units of memory.
        heads: H, divides C; the memories are S x C / H.

    Raises:
        ConfigError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, memory: int = 64, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ConfigError(f"external_attention got {heads} heads; expected a divisor of the {dim} channels")
        if memory < 1:
            raise ConfigError(f"external_attention got {memory} units of memory; expected at least 1")
        self.heads = heads
        width = dim // heads
        # logits and outputs of about unit variance for such tokens
        self.keys = nn.Parameter(torch.randn(memory, width) / width**0.5)
        self.values = nn.Parameter(torch.randn(memory, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C, h, w)."""
        batch, channels = x.shape[:2]
        tokens = x.reshape(batch, self.heads, channels // self.heads, -1)  # (B, H, C / H, N)
        attention = double_normalise(self.keys @ tokens)  # (B, H, S, N)
        return (self.values.T @ attention).reshape(x.shape)


class ExternalAttentionBlock(nn.Module):
    """1 x 1 convolution, external attention, 1 x 1 convolution with batch norm, a skip around them, ReLU.

    Args:
        dim: channels.
        memory: see :class:`ExternalAttention`.
        heads: see :class:`ExternalAttention`.
        relu: whether there is a ReLU behind the sum.
    """

    def __init__(self, dim: int, memory: int = 64, heads: int = 1, relu: bool = True) -> None:
        super().__init__()
        # a bias would move all tokens alike, and the softmax over the tokens would take that out
        self.query = nn.Conv2d(dim, dim, 1, bias=False)
        self.attention = ExternalAttention(dim, memory, heads)
        self.out = ConvBlock(dim, dim, 1, relu=False)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, h, w) to (B, dim, h, w)."""
        x = x + self.out(self.attention(self.query(x)))
        return functional.relu(x) if self.relu else x


@ENCODERS.register("external_attention")
class ExternalAttentionEncoder(Encoder):
    """Convolutions to an eighth of the size, then blocks of external attention, of linear cost in the image's size.

    Args:
        dim: channels of the attention; the stem has an eighth, a quarter and half of it at halves of the size.
        memory: S, units of memory.
        heads: that share the memory; divides dim.
        depth: blocks of attention.
    """

    paper = "Guo et al. 2021, arXiv:2105.02358"

    def __init__(self, dim: int = 128, memory: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.out_channels = dim
        a, b, c = (max(8, dim // n) for n in (8, 4, 2))
        self.stem = nn.Sequential(
            ConvBlock(1, a, stride=2),
            ConvBlock(a, b, stride=2),
            ConvBlock(b, c),
            ConvBlock(c, dim, stride=2),
            ConvBlock(dim, dim),
        )
        self.blocks = nn.Sequential(*(ExternalAttentionBlock(dim, memory, heads) for _ in range(depth)))

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, dim, H/8, W/8)."""
        out: Tensor = self.blocks(self.stem(image))
        return out


@CONTEXTS.register("external_attention")
class ExternalAttentionContext(Context):
    """A block of external attention, which at the start passes its input on unchanged.

    The gain of its last batch norm starts at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1), and there is no
    ReLU behind the sum: features of some encoders are signed.

    Args:
        channels: of the features.
        memory: S, units of memory.
        heads: that share the memory; divides the channels.
    """

    paper = "Guo et al. 2021, arXiv:2105.02358"
    takes_raster = False

    def __init__(self, channels: int, memory: int = 64, heads: int = 1) -> None:
        super().__init__()
        self.out_channels = channels
        self.block = ExternalAttentionBlock(channels, memory, heads, relu=False)
        nn.init.zeros_(cast(nn.BatchNorm2d, self.block.out.norm).weight)

    def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps (B, C, h, w) to (B, C, h, w); the raster is not looked at."""
        return self.block(features), {}
