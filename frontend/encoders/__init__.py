"""Encoders, by name: ``ENCODERS.get("vgg")``."""

from frontend.encoders import compact, vgg  # noqa: F401  (registers them)
from frontend.encoders.base import ENCODERS, ConvBlock, Encoder, Norm

__all__ = ["ENCODERS", "ConvBlock", "Encoder", "Norm"]
