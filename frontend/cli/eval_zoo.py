"""``superpoint eval zoo``: all encoders, trained with one budget and measured in one way."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_zoo_parser(benchmarks: Any) -> None:
    """Add ``eval zoo``."""
    parser = benchmarks.add_parser(
        "zoo",
        help="train every encoder with one budget, and compare",
        description="Train every encoder for the same time, or on the same images (corners of synthetic shapes, then "
        "pairs of labelled photographs, with the same heads), and write a table and a plot: size, time, detector mAP "
        "on held-out shapes, repeatability and homography accuracy on other photographs. Started again, it goes on "
        "where it stopped.",
    )
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS", help="folder to train on")
    parser.add_argument("labels", type=Path, metavar="LABELS", help="folder that 'superpoint label' made from it")
    parser.add_argument("evaluation", type=Path, metavar="EVALUATION", help="folder of other photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--encoders",
        action="append",
        metavar="SPEC",
        help="a specification to compare, see 'superpoint encoders'; may be given again (default: a list of all)",
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="training time of each (default: 240)")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(0, 0),
        metavar=("N", "M"),
        help="optimiser steps on shapes and on pairs (default: 0 0, as many as --seconds gives)",
    )
    parser.add_argument("--heads", choices=("edge", "paper"), default="edge", help="of all networks (default: edge)")
    parser.add_argument("--pairs", type=int, default=50, help="photographs of the evaluation (default: 50)")
    parser.add_argument("--shapes", type=int, default=20, help="held-out images of each class (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of data and initial weights (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make the data (default: 1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the zoo; writes OUT/zoo.md, OUT/zoo.json and OUT/zoo.png.

    Raises:
        FrontendError: bad input; the caller says so in one line and exits with 2.
    """
    import json

    from frontend.atomic import atomic_write
    from frontend.device import pick_device
    from frontend.encoders import build_encoder
    from frontend.evaluation import zoo
    from frontend.evaluation.plot import require_matplotlib

    require_matplotlib()
    config = zoo.ZooConfig(
        seconds=args.seconds,
        steps=tuple(args.steps),
        heads=args.heads,
        pairs=args.pairs,
        shapes=args.shapes,
        seed=args.seed,
        device=str(pick_device(args.device)),
        workers=args.workers,
    )
    specs = args.encoders or list(zoo.ENTRIES)
    for spec in specs:
        build_encoder(spec)  # a name that is wrong shows before hours of work
    runner = zoo.Zoo(args.photographs, args.labels, args.evaluation, args.out, config)
    results = []
    for number, spec in enumerate(specs, start=1):
        print(f"zoo {number}/{len(specs)}: {spec}", file=sys.stderr)
        results.append(runner.run(spec))
        # written after each entry: an interrupted run leaves a table of what is done
        atomic_write(args.out / "zoo.md", zoo.table(results))
        atomic_write(args.out / "zoo.json", json.dumps(results, indent=1) + "\n")
        zoo.save_plot(results, args.out / "zoo.png")
    print(zoo.table(results), end="")
    return 0
