"""``superpoint make-scenes``: photographs' stand-ins, made by a program."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_ABOUT = """\
Gray images of textured, lit, three-dimensional scenes, each a function of the seed and its number. 'superpoint label'
and 'superpoint train superpoint' take them as they take photographs; nobody has rights in them. What is there is kept:
the same command goes on after an interruption, a larger count adds images.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``make-scenes`` to the command line."""
    parser = subparsers.add_parser(
        "make-scenes", help="make images to train on without photographs", description=_ABOUT
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the images, made if missing")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="images (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the whole set (default: 0)")
    parser.add_argument("--width", type=int, default=640, metavar="PX", help="64 or more (default: 640)")
    parser.add_argument("--height", type=int, default=480, metavar="PX", help="64 or more (default: 480)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from frontend.training.scenes import make_scenes

    made, kept = make_scenes(args.out, args.count, args.seed, (args.width, args.height), args.workers)
    print(f"made {made} images, {kept} were there")
    return 0
