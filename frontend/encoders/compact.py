"""A light encoder for edge devices: strided convolutions instead of full-resolution ones and max-pools."""

from __future__ import annotations

from torch import Tensor, nn

from frontend.encoders.base import ENCODERS, ConvBlock, Encoder, Norm


@ENCODERS.register("compact")
class Compact(Encoder):
    """Strided 3 x 3 convolutions, so that nothing runs at full resolution.

    The detail that the strided stem loses comes back to the detector through the pixel-unshuffle branch of
    :class:`frontend.heads.DetailDetectorHead`.

    Args:
        width: multiplies the channels 16, 32, 64 and 96.
        norm: see :class:`ConvBlock`.
    """

    paper = "this project"

    def __init__(self, width: float = 1.0, norm: Norm = "bn") -> None:
        super().__init__()
        a, b, c, d = (max(8, round(n * width / 8) * 8) for n in (16, 32, 64, 96))
        self.out_channels = d
        self.layers = nn.Sequential(
            ConvBlock(1, a, stride=2, norm=norm),
            ConvBlock(a, a, norm=norm),
            ConvBlock(a, b, stride=2, norm=norm),
            ConvBlock(b, b, norm=norm),
            ConvBlock(b, c, stride=2, norm=norm),
            ConvBlock(c, c, norm=norm),
            ConvBlock(c, c, norm=norm),
            ConvBlock(c, d, norm=norm),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 1, H, W) to (B, out_channels, H/8, W/8)."""
        out: Tensor = self.layers(image)
        return out
