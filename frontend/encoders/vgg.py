"""The encoder of SuperPoint: VGG-style, three max-pools (DeTone et al. 2018, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frontend.encoders.base import ENCODERS, ConvBlock, Encoder, Norm
from frontend.errors import ConfigError


@ENCODERS.register("vgg")
class VGG(Encoder):
    """Four stages of two 3 x 3 convolutions, with 2 x 2 max-pooling between them.

    Args:
        channels: of the four stages; the paper's are 64, 64, 128, 128.
        norm: "none" is the paper's released network; see :class:`ConvBlock`.
        eps: of the batch norms.
    """

    paper = "DeTone et al. 2018, arXiv:1712.07629"

    def __init__(self, channels: Sequence[int] = (64, 64, 128, 128), norm: Norm = "bn", eps: float = 1e-5) -> None:
        super().__init__()
        if len(channels) != 4:
            raise ConfigError(f"vgg got {len(channels)} channel widths; expected 4")
        self.channels, self.norm = list(channels), norm
        self.out_channels = channels[-1]
        widths = [1, *channels]
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvBlock(widths[i], widths[i + 1], norm=norm, eps=eps),
                ConvBlock(widths[i + 1], widths[i + 1], norm=norm, eps=eps),
            )
            for i in range(4)
        )
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, channels[-1], H/8, W/8)."""
        x = image
        for i, stage in enumerate(self.stages):
            x = stage(self.pool(x) if i else x)
        return x
