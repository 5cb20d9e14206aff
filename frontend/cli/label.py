"""``superpoint label``: interest points of photographs by homographic adaptation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from frontend.cli.options import Option, add_options, resolve_options

LABEL_OPTIONS = (
    Option("homographies", 24, "views of an image, the image itself included"),
    Option("side", 480, "longest side that an image is brought to, pixels"),
    Option("threshold", 0.004, "least mean probability of a point"),
    Option("max_points", 600, "points of an image"),
    Option("nms_radius", 4, "pixels"),
    Option("rotation", 1.2, "largest rotation of a view, radians"),
    Option("batch_size", 8, "views in a batch"),
    Option("precision", "bf16", "of the arithmetic", ("bf16", "fp32")),
    Option("seed", 0, "of the homographies"),
    Option("device", "auto", "auto, cpu, cuda or cuda:N"),
)


def add_parser(subparsers: Any) -> None:
    """Add ``label`` to the command line."""
    parser = subparsers.add_parser("label", help="step 2: label photographs by homographic adaptation")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the labels; what is there is kept")
    parser.add_argument("--model", required=True, metavar="NAME|PATH", help="detector, such as a trained magicpoint")
    add_options(parser, LABEL_OPTIONS)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from frontend.device import pick_device
    from frontend.training.adaptation import AdaptationConfig, label_folder
    from frontend.weights import load_network

    values = resolve_options(args, LABEL_OPTIONS)
    device = pick_device(values.pop("device"))
    name, network = load_network(args.model)
    report = label_folder(network, name, args.images, args.out, AdaptationConfig(**values), device)
    print(report.summary())
    return 0
