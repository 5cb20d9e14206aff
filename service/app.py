"""The application: ``create_app`` for any ASGI server, ``superpoint serve`` for uvicorn."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service.core import Core
from service.errors import BadRequestError, ServiceError
from service.gate import Gate, problem
from service.invalid import told
from service.routes import features, homography, match, sequences, system
from service.routes.page import page_router
from service.schemas import document_components
from service.settings import Settings

_LOG = logging.getLogger("superpoint")


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
        starting = _in_daemon_thread(core.start)
        starting.add_done_callback(_report)
        watching = asyncio.create_task(core.watch())
        yield
        watching.cancel()
        if not starting.done():
            # it fails at its next step, instead of being waited for; there is nothing to report in that
            starting.remove_done_callback(_report)
            starting.add_done_callback(lambda future: future.cancelled() or future.exception())
            core.engine.stop(0)
            await asyncio.wait([starting], timeout=core.left_to_stop())
        await asyncio.to_thread(core.stop)

    app = FastAPI(
        title="superpoint-frontend", version="1", summary="Features, matches and geometry of images.", lifespan=lifespan
    )
    app.state.core = core
    routers = [*(module.router for module in (features, match, sequences, homography, system)), page_router(settings)]
    for router in routers:
        app.include_router(router)
    paths = dict.fromkeys(str(getattr(route, "path", "")) for router in routers for route in router.routes)
    document_components(app)
    app.add_exception_handler(ServiceError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_middleware(Gate, settings=settings, metrics=core.metrics, budget=core.bodies, routes=tuple(paths))
    if settings.cors_origins:
        # outside the gate: a browser asks for leave without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("X-API-Key", "X-Request-Id", "Content-Type"),
            expose_headers=("X-Request-Id", "Retry-After"),
        )
    app.openapi()  # made now, and not while the first request waits
    return app


def _in_daemon_thread(function: Callable[[], None]) -> asyncio.Future[None]:
    """Call a function in a thread that nothing waits for: the end of a loop waits for those of its executor."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def run() -> None:
        failure = None
        try:
            function()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="start", daemon=True).start()
    return future


def _report(started: asyncio.Future[None]) -> None:
    if not started.cancelled() and started.exception() is not None:
        _LOG.error("start failed: %s", started.exception())


async def _refused(request: Request, error: ServiceError) -> Response:
    return problem(request.scope, error)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(request.scope, BadRequestError(told(where, first)))


async def _http(request: Request, error: HTTPException) -> Response:
    if isinstance(error.__cause__, ServiceError):  # a body of JSON that the gate refused while it was read
        return problem(request.scope, error.__cause__)
    refusal = ServiceError(str(error.detail))
    refusal.status = HTTPStatus(error.status_code)
    refusal.code = refusal.status.name.lower()
    response = problem(request.scope, refusal)
    response.headers.update(error.headers or {})
    if refusal.status == HTTPStatus.METHOD_NOT_ALLOWED:
        # a path may have several routes, and each knows of its own methods alone
        path = getattr(request.scope.get("route"), "path", "")
        if methods := request.app.openapi()["paths"].get(path):
            response.headers["Allow"] = ", ".join(method.upper() for method in methods)
    return response
