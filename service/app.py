"""The application: ``create_app`` for any ASGI server, ``superpoint serve`` for uvicorn."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.bodies import LimitBody
from service.core import Core
from service.errors import PROBLEM_TYPE, BadRequestError, ServiceError, UnauthorizedError
from service.routes import features, homography, match, system
from service.schemas import document_components
from service.settings import Settings

_LOG = logging.getLogger("superpoint")
_OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; the models are loaded when it starts.

    Args:
        settings: those of the environment where None.
    """
    settings = settings or Settings()
    core = Core(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # in a thread: health is answered while the models warm up
        starting = asyncio.create_task(asyncio.to_thread(core.start))
        starting.add_done_callback(_report)
        yield
        await asyncio.wait([starting])
        await asyncio.to_thread(core.stop)

    app = FastAPI(
        title="superpoint-frontend", version="1", summary="Features, matches and geometry of images.", lifespan=lifespan
    )
    app.state.core = core
    for module in (features, match, homography, system):
        app.include_router(module.router)
    document_components(app)
    app.add_exception_handler(ServiceError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(LimitBody, limit=int(settings.max_body_mb * 1e6))
    app.middleware("http")(_observed)
    return app


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _LOG.error("start failed: %s", task.exception())


async def _observed(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Ids, keys, log and metrics of each request; no content of images is logged."""
    core: Core = request.app.state.core
    given = request.headers.get("x-request-id", "")
    request_id = given if given.isascii() and given.isprintable() and 0 < len(given) <= 128 else secrets.token_hex(8)
    request.state.request_id = request_id
    began = time.perf_counter()
    try:
        _check_key(request, core.settings)
        response = await call_next(request)
    except ServiceError as error:
        response = _problem(request, error)
    seconds = time.perf_counter() - began
    route = getattr(request.scope.get("route"), "path", "unknown")
    core.metrics.requests.labels(route, str(response.status_code)).inc()
    core.metrics.seconds.labels(route).observe(seconds)
    response.headers["X-Request-Id"] = request_id
    line = {"id": request_id, "method": request.method, "path": request.url.path, "status": response.status_code}
    _LOG.info("%s", json.dumps({**line, "ms": round(seconds * 1e3, 1)}))
    return response


def _check_key(request: Request, settings: Settings) -> None:
    if not settings.api_keys or request.url.path in _OPEN:
        return
    given = request.headers.get("x-api-key", "").encode()
    # all are compared, so that the time does not tell which one was near
    found = [secrets.compare_digest(given, key.get_secret_value().encode()) for key in settings.api_keys]
    if not any(found):
        raise UnauthorizedError("X-API-Key is missing or unknown")


def _problem(request: Request, error: ServiceError) -> Response:
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": error.status.phrase,
        "status": int(error.status),
        "code": error.code,
        "detail": error.detail,
        "instance": request.url.path,
        "request_id": getattr(request.state, "request_id", ""),
    }
    headers = {} if error.retry_after is None else {"Retry-After": f"{error.retry_after:.0f}"}
    return Response(json.dumps(document), int(error.status), headers, media_type=PROBLEM_TYPE)


async def _refused(request: Request, error: ServiceError) -> Response:
    return _problem(request, error)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _problem(request, BadRequestError(f"{where}: {first['msg']}"))


async def _http(request: Request, error: HTTPException) -> Response:
    refusal = ServiceError(str(error.detail))
    refusal.status = HTTPStatus(error.status_code)
    refusal.code = refusal.status.name.lower()
    return _problem(request, refusal)


async def _broken(request: Request, error: Exception) -> Response:
    _LOG.error("request %s failed", getattr(request.state, "request_id", ""), exc_info=error)
    return _problem(request, ServiceError("the request failed; the log has the reason under its id"))
