"""A vision transformer with feed-forward layers in place of attention (Melas-Kyriazi 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frontend.encoders.base import ENCODERS, TokenEncoder
from frontend.encoders.token_grid import MLP, check_grid, resample, to_map, to_sequence


class FeedForwardBlock(nn.Module):
    """A feed-forward layer over the channels, then one over the tokens, each behind a norm and with a skip around it.

    The norm before the second is over the tokens, separately for each channel, as the layer itself is.

    Args:
        dim: C, channels of a token.
        grid: rows and columns of the native grid, N0 = rows * columns; there are N0 + 1 tokens, the class token first.
        ratio: hidden units of the layer over the channels, in multiples of C.
        token_ratio: hidden units of the layer over the tokens, in multiples of N0 + 1.
    """

    def __init__(self, dim: int, grid: tuple[int, int], ratio: float, token_ratio: float) -> None:
        super().__init__()
        self.grid = grid
        tokens = grid[0] * grid[1] + 1
        self.channel_norm = nn.LayerNorm(dim)
        self.over_channels = MLP(dim, int(dim * ratio))
        self.token_norm = nn.LayerNorm(tokens)
        self.over_tokens = MLP(tokens, int(tokens * token_ratio))

    def mix_tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The branch over the tokens: (B, 1 + h * w, C) to (B, 1 + h * w, C); size is (h, w)."""
        native = to_sequence(resample(to_map(x[:, 1:], size), self.grid))
        across = torch.cat([x[:, :1], native], dim=1).transpose(1, 2)  # (B, C, 1 + N0)
        mixed = self.over_tokens(self.token_norm(across))
        patches = to_sequence(resample(mixed[..., 1:].unflatten(2, self.grid), size))
        return torch.cat([mixed[..., :1].transpose(1, 2), patches], dim=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (B, 1 + h * w, C) to (B, 1 + h * w, C); size is (h, w)."""
        x = x + self.over_channels(self.channel_norm(x))
        return x + self.mix_tokens(x, size)


@ENCODERS.register("feed_forward")
class FeedForward(TokenEncoder):
    """A vision transformer whose attention is a feed-forward layer over the tokens.

    The same as MLP-Mixer: a linear map of each patch; perceptrons of two layers with a GELU over the positions, which
    all channels share, and over the channels, which all positions share; skips; a last layer norm; no attention.
    Different: the channels come first and the positions second; the norm before the positions is over them and not
    over the channels; the positions' perceptron expands (in Mixer it contracts); and what a transformer has is kept,
    a learned position embedding and a class token, which here no classifier reads: it carries the whole image's
    state from block to block.

    On another grid than the native one the patch tokens are brought to it before the layer over the tokens, and the
    result is brought back, by :func:`frontend.encoders.token_grid.resample`; position embeddings are brought to the
    other grid. See :class:`frontend.encoders.mlp_mixer.MLPMixer` for what this means for the weights.

    Args:
        dim: C, channels.
        depth: blocks.
        grid: rows and columns of the native grid; [15, 20] is a 120 x 160 image.
        ratio: expansion of the channels; the paper's is 4.
        token_ratio: expansion of the tokens; the paper's is 4, which on this grid makes 0.7 million weights a block.
    """

    paper = "Melas-Kyriazi 2021, arXiv:2105.02723"

    def __init__(
        self,
        dim: int = 128,
        depth: int = 4,
        grid: Sequence[int] = (15, 20),
        ratio: float = 4.0,
        token_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        native = check_grid("feed_forward", grid)
        self.out_channels = dim
        self.patches = nn.Conv2d(1, dim, self.stride, self.stride)
        self.position = nn.Parameter(0.02 * torch.randn(1, dim, *native))
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(FeedForwardBlock(dim, native, ratio, token_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, dim, H/8, W/8) tokens, a linear map of each patch."""
        tokens: Tensor = self.patches(image)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, dim, h, w) tokens to (B, dim, h, w) features, layer-normalised; positions are added here."""
        size = (tokens.shape[2], tokens.shape[3])
        x = to_sequence(tokens + resample(self.position, size))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, size)
        return to_map(self.norm(x[:, 1:]), size)
