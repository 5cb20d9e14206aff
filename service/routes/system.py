"""Models, health and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.errors import UnavailableError
from service.metrics import CONTENT_TYPE
from service.routes.vision import core_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that requests may name."""
    core = core_of(request)
    return {
        "default": core.settings.model,
        "models": [
            {
                "name": name,
                "encoder": extractor.network.config.encoder,
                "descriptor_dim": extractor.descriptor_dim,
                "sigmas": extractor.network.refiner is not None,
                "device": str(extractor.device),
            }
            for name, extractor in core.models.items()
        ],
    }


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """The models are warm and the device works; 503 otherwise."""
    reason = core_of(request).unready_because()
    if reason is not None:
        raise UnavailableError(reason, retry_after=1)
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    import torch

    core = core_of(request)
    core.metrics.depth.set(core.engine.depth)
    if torch.cuda.is_available():
        core.metrics.memory.set(torch.cuda.memory_allocated())
    return Response(core.metrics.text(), media_type=CONTENT_TYPE)
