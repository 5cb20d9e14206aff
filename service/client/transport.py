"""What both transports share: settings of connections, limits of time, and faults of what went wrong on the way."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from frontend import __version__
from frontend.errors import ConfigError
from service.client.faults import BadAnswer, Deadline, ServiceFault, Unavailable, fault_of_answer

USER_AGENT = f"superpoint-frontend/{__version__}"
CONNECT_S = 5.0
"""Longest time for a connection: a robot's network loses packets, and another attempt is better than a long wait."""
# Shorter than the 5 s after which uvicorn closes idle connections: who closes first never sends into a closed one.
_IDLE_S = 4.0
_MAX_MESSAGE = 64 << 20
STREAM_CLOSED = "stream_closed"
_NORMAL = (1000, 1005)


def headers_of(api_key: str | None) -> dict[str, str]:
    """Headers of every request."""
    return {"user-agent": USER_AGENT, **({} if api_key is None else {"x-api-key": api_key})}


def http_settings(url: str, api_key: str | None, max_connections: int) -> dict[str, Any]:
    """Arguments of ``httpx.Client``.

    Raises:
        ConfigError: the URL is not one of HTTP.
    """
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"url is '{url}'; expected http://HOST:PORT or https://HOST:PORT")
    limits = httpx.Limits(
        max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=_IDLE_S
    )
    return {"base_url": parsed, "headers": headers_of(api_key), "limits": limits}


def http_timeout(remaining_s: float) -> httpx.Timeout:
    """Limits of one attempt: each wait by itself may take all that is left, but for connecting."""
    return httpx.Timeout(remaining_s, connect=min(remaining_s, CONNECT_S))


def fault_of_http(error: httpx.HTTPError) -> ServiceFault:
    """The fault of a request without an answer."""
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    # the request has not been sent
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
        return Unavailable(None, "no_connection", reason)
    if isinstance(error, httpx.TimeoutException):
        return late(reason)
    if isinstance(error, httpx.TransportError):
        return Unavailable(None, "connection_lost", reason, maybe_processed=True)
    return BadAnswer(None, "bad_answer", reason, maybe_processed=True)


def late(reason: str = "no answer within the client's time") -> Deadline:
    """The fault of a result that did not come within the client's time."""
    return Deadline(None, "client_timeout", reason, maybe_processed=True)


def stream_url(url: str, path: str) -> str:
    """The address of a WebSocket beside those of HTTP."""
    base = httpx.URL(url)
    target = base.copy_with(scheme="wss" if base.scheme == "https" else "ws", path=base.path.rstrip("/") + "/")
    return str(target).rstrip("/") + path


def stream_settings(headers: Mapping[str, str], remaining_s: float, tls: ssl.SSLContext | None) -> dict[str, Any]:
    """Arguments of ``websockets.connect``, of threads and of asyncio. Images do not get smaller by compression."""
    return {
        "additional_headers": {name: value for name, value in headers.items() if name != "user-agent"},
        "user_agent_header": USER_AGENT,
        "compression": None,
        "open_timeout": min(remaining_s, CONNECT_S),
        "close_timeout": CONNECT_S,
        "max_size": _MAX_MESSAGE,
        **({} if tls is None else {"ssl": tls}),
    }


def fault_of_connecting(error: InvalidHandshake | OSError) -> ServiceFault:
    """The fault of a WebSocket that was not opened; TimeoutError is an OSError."""
    if isinstance(error, InvalidStatus):
        response = error.response
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        return fault_of_answer(response.status_code, headers, bytes(response.body or b""))
    return Unavailable(None, "no_connection", f"{type(error).__name__}: {error}".rstrip(": "))


def fault_of_closing(error: ConnectionClosed) -> ServiceFault:
    """The fault of a WebSocket that is closed, with the code "stream_closed" where that was on purpose."""
    frame = error.rcvd
    if frame is not None and frame.code in _NORMAL:
        return Unavailable(None, STREAM_CLOSED, "the stream is closed", maybe_processed=True)
    reason = "without a word" if frame is None else f"with {frame.code} {frame.reason}".rstrip()
    return Unavailable(None, "connection_lost", f"the stream was closed {reason}", maybe_processed=True)
