"""SuperPoint feature-matching front-end: detect, describe, match, and fit the geometry.

from frontend import MatchPipeline, SuperPoint, read_image

pipeline = MatchPipeline(SuperPoint.from_pretrained())
result = pipeline.match(read_image("a.jpg"), read_image("b.jpg"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from frontend.blas import settle_blas

if TYPE_CHECKING:
    from frontend.errors import FrontendError
    from frontend.extractor import ExtractorConfig, SuperPoint
    from frontend.image import read_image
    from frontend.pipeline import MatchPipeline, PipelineConfig
    from frontend.types import Features, Fundamental, Homography, Matches, MatchResult, Status

__version__ = "0.1.0"

settle_blas()

# loaded on first use, so that `--help` does not wait for torch
_HOMES = {
    "ExtractorConfig": "extractor",
    "Features": "types",
    "FrontendError": "errors",
    "Fundamental": "types",
    "Homography": "types",
    "MatchPipeline": "pipeline",
    "MatchResult": "types",
    "Matches": "types",
    "PipelineConfig": "pipeline",
    "Status": "types",
    "SuperPoint": "extractor",
    "read_image": "image",
}

__all__ = [
    "ExtractorConfig",
    "Features",
    "FrontendError",
    "Fundamental",
    "Homography",
    "MatchPipeline",
    "MatchResult",
    "Matches",
    "PipelineConfig",
    "Status",
    "SuperPoint",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'frontend' has no attribute '{name}'")
    return getattr(import_module(f"frontend.{_HOMES[name]}"), name)
