"""Encoders and context modules, by specification: ``build_encoder("vgg+strip_pooling")``."""

from frontend.encoders import (  # noqa: F401  (registers them)
    compact,
    dbb,
    external_attention,
    feed_forward,
    lv_vit,
    map_fusion,
    mlp_mixer,
    ocr,
    repmlp,
    shufflenetv2,
    slim,
    strip_pooling,
    vgg,
)
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
