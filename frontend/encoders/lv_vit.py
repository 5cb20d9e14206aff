"""LV-ViT: a vision transformer with a convolutional stem and scaled residuals (Jiang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend.encoders.base import ENCODERS, ConvBlock, TokenEncoder
from frontend.encoders.token_grid import MLP, check_grid, resample, to_map, to_sequence
from frontend.errors import ConfigError


class SelfAttention(nn.Module):
    """Multi-head softmax self-attention, softmax(Q K^T / sqrt(d)) V, d = dim / heads (Vaswani et al. 2017).

    Args:
        dim: channels of a token.
        heads: divides dim.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, dim) to (B, N, dim)."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d)
        out = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        projected: Tensor = self.project(out.transpose(1, 2).flatten(2))
        return projected


class ScaledResidualBlock(nn.Module):
    """Attention, then a perceptron, both behind a layer norm: x + F(norm(x)) / alpha.

    Args:
        dim: channels of a token.
        heads: of the attention.
        mlp_ratio: hidden units of the perceptron, in multiples of dim.
        alpha: what the branches are divided by.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, dim) to (B, N, dim)."""
        x = x + self.attention(self.attention_norm(x)) / self.alpha
        out: Tensor = x + self.mlp(self.mlp_norm(x)) / self.alpha
        return out


@ENCODERS.register("lv_vit")
class LVViT(TokenEncoder):
    """LV-ViT: patches embedded by four convolutions, then transformer blocks with scaled residuals.

    The stem is a 7 x 7 convolution with stride 2, two of 3 x 3, and the projection of 4 x 4 patches of their output,
    which makes 8 x 8 in the image (the paper's are 16 x 16). There is no class token: every token is a feature.
    Position embeddings belong to the native grid and are brought to others by
    :func:`frontend.encoders.token_grid.resample`. Self-attention takes time in the square of the number of tokens.

    Args:
        dim: channels.
        depth: blocks.
        heads: of the attention; divides dim.
        mlp_ratio: hidden units of the perceptrons, in multiples of dim; the paper's is 3.
        alpha: what the branches are divided by; the paper's is 2.
        grid: rows and columns of the native grid; [15, 20] is a 120 x 160 image.
        stem: channels of the first three convolutions; the paper's are 64.
    """

    paper = "Jiang et al. 2021, arXiv:2104.10858"

    def __init__(
        self,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 3.0,
        alpha: float = 2.0,
        grid: Sequence[int] = (15, 20),
        stem: int = 24,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ConfigError(f"lv_vit got {heads} heads; expected a divisor of the {dim} channels")
        if alpha <= 0:
            raise ConfigError(f"lv_vit got alpha {alpha}; expected a positive number")
        native = check_grid("lv_vit", grid)
        self.out_channels = dim
        self.stem = nn.Sequential(ConvBlock(1, stem, 7, stride=2), ConvBlock(stem, stem), ConvBlock(stem, stem))
        self.patches = nn.Conv2d(stem, dim, self.stride // 2, self.stride // 2)
        self.position = nn.Parameter(0.02 * torch.randn(1, dim, *native))
        self.blocks = nn.ModuleList(ScaledResidualBlock(dim, heads, mlp_ratio, alpha) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, dim, H/8, W/8) tokens."""
        tokens: Tensor = self.patches(self.stem(image))
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, dim, h, w) tokens to (B, dim, h, w) features, layer-normalised; positions are added here."""
        size = (tokens.shape[2], tokens.shape[3])
        x = to_sequence(tokens + resample(self.position, size))
        for block in self.blocks:
            x = block(x)
        return to_map(self.norm(x), size)
