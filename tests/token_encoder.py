"""A small encoder with tokens, for tests, and the ``superpoint`` command with it registered."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from frontend.encoders import ENCODERS, TokenEncoder


class Tiny(TokenEncoder):
    """Patches of 8 x 8 pixels, embedded linearly, and one layer for each token by itself."""

    paper = "none"

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.out_channels = channels
        self.patch = nn.Conv2d(1, channels, 8, 8)
        self.layer = nn.Conv2d(channels, channels, 1)

    def embed(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.patch(image)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        return torch.relu(self.layer(tokens))


def register() -> str:
    """Make the encoder known, once; returns its name."""
    if "tiny_tokens" not in ENCODERS:
        ENCODERS.register("tiny_tokens")(Tiny)
    return "tiny_tokens"


if __name__ == "__main__":
    from frontend.cli.main import main

    register()
    sys.exit(main())
