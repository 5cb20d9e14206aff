"""Context from the regions that a pixel's own belongs to (Yuan et al. 2020, arXiv:1909.11065)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from frontend.encoders.base import CONTEXTS, Context, ConvBlock
from frontend.errors import ConfigError


@CONTEXTS.register("ocr")
class OCR(Context):
    """Object-contextual representations (OCRNet): each cell is told what the regions it is akin to look like.

    With features x_i of cell i and logits m_ki of region k (soft object regions), section 3.2:

    - region representation: f_k, the mean of x_i weighted by the softmax of m_k over the cells;
    - pixel-region relation: w_ik, the softmax over k of phi(x_i) . psi(f_k) / sqrt(dim) (the division is the authors'
      code's);
    - object-contextual representation: y_i = rho(sum over k of w_ik delta(f_k));
    - augmented representation: z_i = x_i + g([x_i, y_i]).

    phi, psi, delta and rho are 1 x 1 convolutions with batch norm and ReLU. g is a 1 x 1 convolution with batch norm;
    the paper's z_i is g alone, with a ReLU. Here g is added to the input and its batch norm's weight starts at zero,
    so the module starts as the identity and can be put into a trained network.

    The auxiliary output "ocr/regions", (B, regions, h, w), holds m: the paper trains it as a coarse segmentation.

    Args:
        channels: of the input, and of the output.
        regions: K.
        dim: channels of phi, psi, delta and rho.

    Raises:
        ConfigError: regions or dim is no positive integer.
    """

    paper = "Yuan et al. 2020, arXiv:1909.11065"
    takes_raster = False
    auxiliary = True

    def __init__(self, channels: int, regions: int = 10, dim: int = 64) -> None:
        super().__init__()
        for name, value in {"regions": regions, "dim": dim}.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"ocr got {name} {value}; expected an integer of at least 1")
        self.out_channels = channels
        self.classes = regions
        self.regions = ConvBlock(channels, regions, 1, norm="none", relu=False)
        self.query = ConvBlock(channels, dim, 1)
        self.key = ConvBlock(channels, dim, 1)
        self.value = ConvBlock(channels, dim, 1)
        self.up = ConvBlock(dim, dim, 1)
        self.out = ConvBlock(channels + dim, channels, 1, relu=False)
        nn.init.zeros_(self.out.norm.weight)  # type: ignore[arg-type]

    def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Maps (B, C, h, w) to (B, C, h, w) and "ocr/regions"; the raster is not looked at."""
        logits: Tensor = self.regions(features)
        objects = region_representations(features, logits).unsqueeze(-1)  # (B, C, K, 1): regions as pixels
        relation = pixel_region_relation(self.query(features).flatten(2), self.key(objects).flatten(2))
        context = self.value(objects).flatten(2) @ relation.transpose(1, 2)  # (B, dim, h * w)
        context = self.up(context.unflatten(2, features.shape[-2:]))
        return features + self.out(torch.cat([features, context], dim=1)), {"ocr/regions": logits}


def region_representations(features: Tensor, logits: Tensor) -> Tensor:
    """Mean of the features over each soft region (section 3.2).

    Args:
        features: (B, C, h, w) float.
        logits: (B, K, h, w) of the regions; each region's softmax over the cells is its weight.

    Returns:
        (B, C, K).
    """
    weights = logits.flatten(2).softmax(dim=2)  # (B, K, h * w)
    return features.flatten(2) @ weights.transpose(1, 2)


def pixel_region_relation(query: Tensor, key: Tensor) -> Tensor:
    """How much each cell has to do with each region (section 3.2).

    Args:
        query: (B, D, N) of the cells.
        key: (B, D, K) of the regions.

    Returns:
        (B, N, K) in [0, 1]: softmax over the regions of the products divided by sqrt(D).
    """
    products = query.transpose(1, 2) @ key  # (B, N, K)
    return (products / math.sqrt(query.shape[1])).softmax(dim=2)
