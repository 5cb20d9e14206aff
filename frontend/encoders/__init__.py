"""Encoders and context modules, by specification: ``build_encoder("vgg+strip_pooling")``."""

from frontend.encoders import compact, map_fusion, ocr, strip_pooling, vgg  # noqa: F401  (registers them)
from frontend.encoders.base import CONTEXTS, ENCODERS, Context, ConvBlock, Encoder, Norm, TokenEncoder
from frontend.encoders.spec import Part, build_encoder, parse_spec

__all__ = [
    "CONTEXTS",
    "ENCODERS",
    "Context",
    "ConvBlock",
    "Encoder",
    "Norm",
    "Part",
    "TokenEncoder",
    "build_encoder",
    "parse_spec",
]
