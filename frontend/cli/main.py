"""The ``superpoint`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from frontend import __version__
from frontend.cli import bench, encoders, export, extract, label, scenes, serve, state, train, views
from frontend.cli import eval as eval_command
from frontend.errors import FrontendError


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="superpoint",
        description="SuperPoint front-end: extract, make images, label, train, evaluate, measure, export, serve.",
    )
    parser.add_argument("--version", action="version", version=f"superpoint-frontend {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (extract, scenes, views, label, train, state, eval_command, bench, encoders, export, serve):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: arguments; those of the process where None.

    Returns:
        The exit code: 0 done, 2 bad input (one line says which), 130 interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except FrontendError as error:
        print(f"superpoint {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"superpoint {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output has gone; keep the interpreter from flushing into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"superpoint {args.command}: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
