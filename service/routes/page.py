"""The page at ``/`` with its files, and the bundled pair of images.

All files are read when the application is made and are served by name from memory: no path of a request ever reaches
the file system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

import frontend
from service.errors import NotFoundError
from service.settings import Settings

_STATIC = Path(__file__).resolve().parent.parent / "static"
_SAMPLES = Path(frontend.__file__).resolve().parent / "samples"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
_REVALIDATE = "no-cache"
_DAY = "public, max-age=86400"
_FOR_EVER = "public, max-age=31536000, immutable"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy of the page: nothing from elsewhere, and nothing inline."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is served.

    Attributes:
        content: its bytes.
        media_type: of the answer.
        etag: strong, of the content.
    """

    content: bytes
    media_type: str
    etag: str


def _asset(content: bytes, suffix: str) -> Asset:
    return Asset(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:24]}"')


def _folder(path: Path) -> dict[str, Asset]:
    """The files of a folder whose types are served, by name."""
    files = sorted(found for found in path.iterdir() if found.suffix in _TYPES)
    return {found.name: _asset(found.read_bytes(), found.suffix) for found in files}


def _version(assets: Mapping[str, Asset]) -> str:
    """A name for the content of all files together: its URLs may be cached for ever."""
    return hashlib.sha256("".join(name + asset.etag for name, asset in assets.items()).encode()).hexdigest()[:12]


def _index(template: bytes, settings: Settings, version: str) -> Asset:
    """The page with the place of its files, and the limits that it keeps to."""
    values = {
        "version": version,
        "max_body": int(settings.max_body_mb * 1e6),
        "max_pixels": int(settings.max_pixels_mp * 1e6),
        "max_keypoints": settings.max_keypoints,
    }
    text = template.decode()
    for name, value in values.items():
        text = text.replace(f"{{{{{name}}}}}", str(value))
    return _asset(text.encode(), ".html")


def _answer(request: Request, asset: Asset, cached: str) -> Response:
    headers = {**_HEADERS, "Cache-Control": cached, "ETag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


def page_router(settings: Settings) -> APIRouter:
    """The routes of the page.

    Args:
        settings: whose limits the page is told.
    """
    static, samples = _folder(_STATIC), _folder(_SAMPLES)
    template = static.pop("index.html").content
    version = _version(static)
    index = _index(template, settings, version)
    router = APIRouter(include_in_schema=False)
    methods = ["GET", "HEAD"]

    @router.api_route("/", methods=methods)
    async def page(request: Request) -> Response:
        return _answer(request, index, _REVALIDATE)

    @router.api_route("/static/{name}", methods=methods)
    async def current(request: Request, name: str) -> Response:
        return _answer(request, _found(static, name), _REVALIDATE)

    @router.api_route("/static/{given}/{name}", methods=methods)
    async def versioned(request: Request, given: str, name: str) -> Response:
        # a page of another version, still open after an update, gets what there is, and does not keep it
        return _answer(request, _found(static, name), _FOR_EVER if given == version else _REVALIDATE)

    @router.api_route("/samples/{name}", methods=methods)
    async def sample(request: Request, name: str) -> Response:
        return _answer(request, _found(samples, name), _DAY)

    return router


def _found(assets: Mapping[str, Asset], name: str) -> Asset:
    if name not in assets:
        raise NotFoundError(f"there is no file {name[:64]!r} here")
    return assets[name]
