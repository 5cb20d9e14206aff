"""Models, health and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse

from service.errors import BadRequestError, UnavailableError
from service.metrics import CONTENT_TYPE
from service.routes.common import core_of, parameters_known
from service.schemas import HealthDocument, ModelsDocument, problems

router = APIRouter(tags=["system"])


@router.get(
    "/v1/models",
    operation_id="list_models",
    response_model=ModelsDocument,
    dependencies=[Depends(parameters_known)],
    responses=problems(BadRequestError),
)
async def models(request: Request) -> dict[str, Any]:
    """The models that requests may name."""
    core = core_of(request)
    return {
        "default": core.settings.model,
        "models": [
            {
                "name": name,
                "version": core.versions.get(name),
                "encoder": extractor.encoder,
                "descriptor_dim": extractor.descriptor_dim,
                "sigmas": extractor.refines,
                "device": str(extractor.device),
                "matchers": core.matchers.of(name),
            }
            for name, extractor in core.models.items()
        ],
    }


@router.head("/healthz", operation_id="healthz_head", response_model=HealthDocument)
@router.get("/healthz", operation_id="healthz", response_model=HealthDocument)
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.head("/readyz", operation_id="readyz_head", response_model=HealthDocument, responses=problems(UnavailableError))
@router.get("/readyz", operation_id="readyz", response_model=HealthDocument, responses=problems(UnavailableError))
async def readyz(request: Request) -> dict[str, str]:
    """The models are warm and the device works; 503 otherwise."""
    reason = core_of(request).unready_because()
    if reason is not None:
        raise UnavailableError(reason)
    return {"status": "ready"}


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=PlainTextResponse,
    responses={200: {"description": "In the text format of Prometheus."}, **problems()},
)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    core = core_of(request)
    core.store.expire()
    core.metrics.depth.set(core.engine.depth)
    core.metrics.bodies.set(core.bodies.used)
    core.metrics.decoded.set(core.decoded.used)
    if devices := {str(model.device) for model in core.models.values() if model.device.type == "cuda"}:
        import torch

        core.metrics.memory.set(sum(torch.cuda.memory_allocated(device) for device in sorted(devices)))
    return Response(core.metrics.text(), media_type=CONTENT_TYPE)
