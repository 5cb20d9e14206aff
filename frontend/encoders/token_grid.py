"""What the token encoders share: sequences and maps of tokens, resampling from grid to grid, a two-layer perceptron.

A token is the feature vector of one 8 x 8 cell. Layers with weights for each position have a native grid; tokens on
another grid are brought to it, or what was learned on it is brought to theirs, by :func:`resample`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frontend.errors import ConfigError


def check_grid(name: str, grid: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a native grid as a tuple.

    Args:
        name: of the encoder, for the message.
        grid: rows and columns.

    Raises:
        ConfigError: they are not two positive whole numbers.
    """
    if len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ConfigError(f"{name} got grid {list(grid)}; expected rows and columns, two positive whole numbers")
    return grid[0], grid[1]


def to_sequence(tokens: Tensor) -> Tensor:
    """(B, C, h, w) tokens to (B, h * w, C), row by row."""
    return tokens.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h * w, C) tokens to (B, C, h, w); size is (h, w)."""
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, channels, *size)


def interpolation_matrix(source: int, target: int, like: Tensor) -> Tensor:
    """Linear interpolation along one axis, low-passed where the target is coarser.

    Cells of both grids divide the same extent. A target cell is the weighted mean of the source cells under a
    triangle about its centre, which reaches one spacing of the coarser grid to either side.

    Args:
        source: cells that there are.
        target: cells that are wanted.
        like: a tensor with the device and the floating type of the result.

    Returns:
        (target, source) weights in [0, 1]; every row sums to 1.
    """
    spacing = source / target
    dtype = torch.promote_types(like.dtype, torch.float32)
    centres = (torch.arange(target, dtype=dtype, device=like.device) + 0.5) * spacing - 0.5
    cells = torch.arange(source, dtype=dtype, device=like.device)
    weights = (1 - (centres[:, None] - cells).abs() / max(spacing, 1.0)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map from its grid to another over the same extent, by :func:`interpolation_matrix` along both axes.

    Two matrix products, so that it exports as such. Constants stay what they are; the same grid changes nothing.

    Args:
        x: (B, C, h, w) float.
        size: rows and columns that are wanted.

    Returns:
        (B, C, *size).
    """
    height, width = x.shape[2:]
    if (height, width) == size:
        return x
    return interpolation_matrix(height, size[0], x) @ x @ interpolation_matrix(width, size[1], x).T


class MLP(nn.Module):
    """Linear, GELU, linear, over the last axis.

    Args:
        features: length of the last axis, before and after.
        hidden: units between.
        last_bias: whether the second layer has a bias.
    """

    def __init__(self, features: int, hidden: int, last_bias: bool = True) -> None:
        super().__init__()
        self.expand = nn.Linear(features, hidden)
        self.activation = nn.GELU()
        self.contract = nn.Linear(hidden, features, bias=last_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., features) to (..., features)."""
        out: Tensor = self.contract(self.activation(self.expand(x)))
        return out
