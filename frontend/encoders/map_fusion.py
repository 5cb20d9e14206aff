"""Features of a map fused with those of the image (Fang et al. 2021, arXiv:2103.05929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frontend.encoders.base import CONTEXTS, Context, ConvBlock, Encoder
from frontend.errors import ConfigError, ShapeError


@CONTEXTS.register("map_fusion")
class MapFusion(Context):
    """Map fusion (MapFusion): a raster map in the image's frame, gated into the features where there is one.

    FeatureAgg: with image features x (B, C, h, w) and map features m = encoder(raster), the output is

        x + sigmoid(gate([x, m])) * project(m)

    and x itself where the raster is None: no map features, no gate. A raster of zeros is not that; it says that the
    map holds nothing there. The gate and the sum with x are this project's form of the paper's aggregation, so that one
    network serves with and without a map. ``project`` is a 1 x 1 convolution that starts at
    zero: the module starts as the identity and can be put into a trained network.

    MapSeg: a head that predicts the raster from the image features alone, to teach them what the map knows. Its
    logits are the auxiliary output "map_fusion/layers", (B, layers, h, w), in training mode only.

    Args:
        channels: of the input, and of the output.
        layers: M, layers of the raster.
        dim: channels of the map features and of MapSeg; a multiple of 4.

    Raises:
        ConfigError: layers or dim is out of range.
    """

    paper = "Fang et al. 2021, arXiv:2103.05929"
    auxiliary = True

    def __init__(self, channels: int, layers: int = 1, dim: int = 64) -> None:
        super().__init__()
        if not isinstance(layers, int) or layers < 1:
            raise ConfigError(f"map_fusion got layers {layers}; expected an integer of at least 1")
        if not isinstance(dim, int) or dim < 4 or dim % 4:
            raise ConfigError(f"map_fusion got dim {dim}; expected a positive multiple of 4")
        self.out_channels = channels
        self.layers = layers
        # half the channels at twice the size: each convolution costs about the same
        self.encoder = nn.Sequential(
            ConvBlock(layers, dim // 4, stride=2),
            ConvBlock(dim // 4, dim // 2, stride=2),
            ConvBlock(dim // 2, dim, stride=2),
        )
        self.gate = ConvBlock(channels + dim, channels, norm="none", relu=False)
        self.project = ConvBlock(dim, channels, 1, norm="none", relu=False)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)
        self.segment = nn.Sequential(ConvBlock(channels, dim), ConvBlock(dim, layers, 1, norm="none", relu=False))

    def forward(self, features: Tensor, raster: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Fuse the features with a map.

        Args:
            features: (B, C, h, w).
            raster: (B, layers, 8h, 8w) float, best in [0, 1]; None is no map.

        Returns:
            (B, C, h, w), and in training mode "map_fusion/layers".

        Raises:
            ShapeError: the raster has another shape.
        """
        auxiliary = {"map_fusion/layers": self.segment(features)} if self.training else {}
        if raster is None:
            return features, auxiliary
        batch, _, height, width = features.shape
        expected = (batch, self.layers, Encoder.stride * height, Encoder.stride * width)
        if tuple(raster.shape) != expected:
            raise ShapeError(f"raster has shape {tuple(raster.shape)}, expected {expected}")
        layers = self.encoder(raster.to(features.dtype))
        gate = torch.sigmoid(self.gate(torch.cat([features, layers], dim=1)))
        return features + gate * self.project(layers), auxiliary
