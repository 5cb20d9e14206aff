"""``superpoint serve``: the REST service."""

from __future__ import annotations

import argparse
import os
from typing import Any

_MISSING = "the service needs: pip install 'superpoint-frontend[service]'"


class _Help(argparse.Action):
    """Prints the help with the service's settings, which are looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            from service.settings import described

            parser.epilog = f"environment variables (lists with commas; flags win over them):\n{described()}"
        except ImportError:
            parser.epilog = _MISSING
        parser.print_help()
        parser.exit()


def add_parser(subparsers: Any) -> None:
    """Add ``serve`` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve features, matches and homographies over REST",
        description="Serve over REST.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="show this help message and exit")
    parser.add_argument("--host", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (default: 8000)")
    parser.add_argument("--model", help="released model or weight file")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--no-auth", action="store_true", default=None, help="no API key, though others reach the port")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from frontend.errors import ConfigError
    from frontend.weights import resolve

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ConfigError(_MISSING)
    from pydantic import ValidationError

    from service.access import is_local
    from service.settings import Settings, refusal

    flags = ("host", "port", "model", "device", "no_auth")
    given = {name: value for name in flags if (value := getattr(args, name)) is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise ConfigError(refusal(error, given)) from None
    # OpenCV reads it when it is loaded, below: its decoders then keep the limit as well, whatever a header claims
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(int(settings.max_pixels_mp * 1e6)))
    for name in (settings.model, *settings.models):
        resolve(name)  # weights that are missing or wrong show before a port is opened
    if not is_local(settings.host) and not settings.api_keys and not settings.no_auth:
        raise ConfigError(f"host '{settings.host}' is open to others; expected SUPERPOINT_API_KEYS, or --no-auth")
    from service.server import run

    return run(settings)
