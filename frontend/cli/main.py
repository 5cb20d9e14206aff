"""The ``superpoint`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from frontend import __version__
from frontend.cli import (
    align,
    bench,
    encoders,
    export,
    extract,
    label,
    map_export,
    models,
    scenes,
    serve,
    state,
    track,
    train,
    views,
)
from frontend.cli import eval as eval_command
from frontend.cli.console import open_streams, run_command
from frontend.cli.options import Parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands; imports nothing heavy."""
    parser = Parser(
        prog="superpoint",
        description="SuperPoint front-end: extract, match, track, make images, label, train, evaluate, measure, "
        "export, serve.",
    )
    parser.add_argument("--version", action="version", version=f"superpoint-frontend {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    making = (extract, map_export, track, scenes, views, label, train, align, state)
    for command in (*making, eval_command, bench, models, encoders, export, serve):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: arguments; those of the process where None.

    Returns:
        The exit code: 0 done, 2 bad input (one line says which), 130 interrupted, 141 without a reader of the output.
    """
    open_streams()
    parser = build_parser()
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["match"]:
        parser.error(
            "'match' is a command of its own: superpoint-match IMG0 IMG1; of folders superpoint match-features"
        )
    args = parser.parse_args(given)
    # the service has a log of its own
    return run_command(f"superpoint {args.command}", lambda: args.run(args), notices=args.command != "serve")


if __name__ == "__main__":
    sys.exit(main())
