"""``superpoint serve``: the REST service."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``serve`` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve features, matches and homographies over REST",
        description="Serve over REST. Every other setting of the service is an environment variable SUPERPOINT_NAME, "
        "see service/settings.py; flags win over them.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    parser.add_argument("--model", help="released model or weight file")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--no-auth", action="store_true", help="no API key, though the address is not of this machine")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import logging
    from importlib.util import find_spec

    from frontend.errors import ConfigError
    from frontend.weights import resolve

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ConfigError("the service needs: pip install 'superpoint-frontend[service]'")
    import uvicorn
    from pydantic import ValidationError

    from service.access import is_local
    from service.app import create_app
    from service.settings import Settings

    given = {name: value for name in ("model", "device") if (value := getattr(args, name)) is not None}
    if args.no_auth:
        given["no_auth"] = True
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"SUPERPOINT_{'_'.join(map(str, first['loc'])).upper()}: {first['msg']}") from None
    for name in (settings.model, *settings.models):
        resolve(name)  # weights that are missing or wrong show before a port is opened
    if not is_local(args.host) and not settings.api_keys and not settings.no_auth:
        raise ConfigError(f"{args.host} is open to others; expected SUPERPOINT_API_KEYS, or --no-auth")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=args.host,
            port=args.port,
            access_log=False,
            timeout_graceful_shutdown=int(settings.shutdown_s),
        )
    )
    server.run()
    return 0 if server.started else 2
