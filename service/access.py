"""Who may ask: API keys, which paths ask for none, and pages of which origins."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from service.errors import ForbiddenError, UnauthorizedError
from service.settings import Settings

_OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json", "/favicon.ico"})
_OPEN_BELOW = ("/static/", "/samples/")


def is_open(path: str, settings: Settings) -> bool:
    """Whether a path asks for no key: health, the page and its files, the interface's description."""
    return path in _OPEN or path.startswith(_OPEN_BELOW) or (path == "/metrics" and settings.metrics_open)


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1, as a socket of both families reports it
    return (mapped or address).is_loopback


def check_key(settings: Settings, given: str | None) -> None:
    """Compare a key with those that are configured, in constant time.

    Args:
        settings: with the keys; where there are none, everything passes.
        given: the key of the client; None where it sent none.

    Raises:
        UnauthorizedError: keys are configured, and it is none of them.
    """
    if not settings.api_keys:
        return
    sent = (given or "").encode()
    # all are compared, so that the time does not tell which one was near
    found = [secrets.compare_digest(sent, key.get_secret_value().encode()) for key in settings.api_keys]
    if not any(found):
        raise UnauthorizedError("X-API-Key is missing or unknown")


def check_client(settings: Settings, client: tuple[str, int] | None) -> None:
    """Refuse strangers while no keys are configured: the application cannot know what address it is bound to.

    Args:
        settings: see ``no_auth``.
        client: (address, port) of the ASGI scope; None where the server does not know, as on a Unix socket.

    Raises:
        UnauthorizedError: there are no keys, nobody said that none are wanted, and the client is not on this machine.
    """
    if settings.api_keys or settings.no_auth or (client is not None and is_local(client[0])):
        return
    raise UnauthorizedError("open to this machine alone; expected SUPERPOINT_API_KEYS, or SUPERPOINT_NO_AUTH=true")


def check_origin(settings: Settings, headers: Mapping[str, str]) -> None:
    """Refuse pages of other origins: browsers let any page open a WebSocket or post a form, and say which one it is.

    Args:
        settings: see ``cors_origins``.
        headers: of the request, by names in any case. Clients that are no browsers send no Origin.

    Raises:
        ForbiddenError: the page's origin is neither this host nor one of the settings.
    """
    origin, allowed = headers.get("origin"), settings.cors_origins
    if origin is None or origin in allowed or "*" in allowed:
        return
    try:
        host = urlsplit(origin).netloc
    except ValueError:  # it is no address, and so not ours
        host = None
    if host is None or host != headers.get("host"):
        raise ForbiddenError(f"origin {origin[:128]!r} may not ask; expected this host, or one of CORS_ORIGINS")
