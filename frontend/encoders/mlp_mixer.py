"""MLP-Mixer: perceptrons over the positions and over the channels in turn (Tolstikhin et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frontend.encoders.base import ENCODERS, TokenEncoder
from frontend.encoders.token_grid import MLP, check_grid, resample, to_map, to_sequence


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a layer norm and with a skip around it (equation 1).

    U = X + W2 gelu(W1 norm(X)) over the positions, Y = U + W4 gelu(W3 norm(U)) over the channels.

    Args:
        dim: C, channels of a token.
        grid: rows and columns of the native grid, N0 = rows * columns.
        token_hidden: D_S, hidden units of token mixing.
        channel_hidden: D_C, hidden units of channel mixing.
    """

    def __init__(self, dim: int, grid: tuple[int, int], token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.grid = grid
        self.token_norm = nn.LayerNorm(dim)
        # A bias for each position would be the same in all channels, and every layer norm that reads it takes it out.
        self.token_mixing = MLP(grid[0] * grid[1], token_hidden, last_bias=False)
        self.channel_norm = nn.LayerNorm(dim)
        self.channel_mixing = MLP(dim, channel_hidden)

    def mix_tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The token-mixing branch: (B, h * w, C) to (B, h * w, C); size is (h, w)."""
        native = to_sequence(resample(to_map(x, size), self.grid))  # (B, N0, C)
        mixed = self.token_mixing(self.token_norm(native).transpose(1, 2))  # (B, C, N0)
        return to_sequence(resample(mixed.unflatten(2, self.grid), size))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (B, h * w, C) to (B, h * w, C); size is (h, w)."""
        x = x + self.mix_tokens(x, size)
        out: Tensor = x + self.channel_mixing(self.channel_norm(x))
        return out


@ENCODERS.register("mlp_mixer")
class MLPMixer(TokenEncoder):
    """MLP-Mixer: a linear map of each 8 x 8 patch, then perceptrons over positions and over channels in turn.

    On the native grid it is the paper's network up to the pooling. On another grid the input of token mixing is
    brought to the native one and its output back, by :func:`frontend.encoders.token_grid.resample`. As both are
    linear, this is token mixing with resampled weights: those of the first layer spread over the cells of the new
    grid with their sums kept, those of the second interpolated between the cells of the native one. The layer norm
    is of the resampled tokens, so that the perceptron sees them at the scale it has learned. Token mixing then costs
    the same on any grid, and what it mixes is as fine as the native grid; channels are mixed on the full one.

    Args:
        dim: C, channels.
        depth: blocks.
        grid: rows and columns of the native grid; [15, 20] is a 120 x 160 image.
        token_hidden: D_S; the paper's is half of C.
        channel_hidden: D_C; the paper's is four times C.
    """

    paper = "Tolstikhin et al. 2021, arXiv:2105.01601"

    def __init__(
        self,
        dim: int = 128,
        depth: int = 6,
        grid: Sequence[int] = (15, 20),
        token_hidden: int = 64,
        channel_hidden: int = 512,
    ) -> None:
        super().__init__()
        native = check_grid("mlp_mixer", grid)
        self.out_channels = dim
        self.patches = nn.Conv2d(1, dim, self.stride, self.stride)
        self.blocks = nn.ModuleList(MixerBlock(dim, native, token_hidden, channel_hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, dim, H/8, W/8) tokens, a linear map of each patch."""
        tokens: Tensor = self.patches(image)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, dim, h, w) tokens to (B, dim, h, w) features, layer-normalised."""
        size = (tokens.shape[2], tokens.shape[3])
        x = to_sequence(tokens)
        for block in self.blocks:
            x = block(x, size)
        return to_map(self.norm(x), size)
