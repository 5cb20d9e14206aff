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
    Option("precision", "auto", "of the arithmetic; auto is bf16 where it is fast", ("auto", "bf16", "fp32")),
    Option("seed", 0, "of the homographies"),
    Option("device", "auto", "auto, cpu, cuda or cuda:N"),
    Option("heatmaps", False, "store the aggregated heat maps too, for training with soft labels"),
    Option("rounds", 0, "rounds of labelling and training, see above; 0 labels once and trains nothing"),
)
_ROUNDS = """\
With --rounds N, labelling and training alternate N times: each round labels the photographs with the newest network
(--model in the first) and trains on from that network with the labels, as 'superpoint train superpoint' with the
settings of --train-config. Round n lies in OUT/round<n>/labels and OUT/round<n>/train; the result is
OUT/round<N>/train/superpoint.safetensors. The same command goes on after an interruption: finished rounds are skipped,
the unfinished one is resumed. A larger N adds rounds.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``label`` to the command line."""
    parser = subparsers.add_parser(
        "label", help="step 2: label photographs by homographic adaptation", description=_ROUNDS
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the labels; what is there is kept")
    parser.add_argument("--model", required=True, metavar="NAME|PATH", help="detector, such as a trained magicpoint")
    parser.add_argument(
        "--refiner", metavar="NAME|PATH", help="points are moved to where the refiner of these weights leaves them"
    )
    parser.add_argument("--train-config", type=Path, metavar="FILE.toml", help="settings of the training of --rounds")
    add_options(parser, LABEL_OPTIONS)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from frontend.cli.rounds import run_rounds
    from frontend.device import pick_device
    from frontend.errors import ConfigError
    from frontend.training.adaptation import AdaptationConfig, label_folder
    from frontend.weights import load_network

    values = resolve_options(args, LABEL_OPTIONS)
    device = pick_device(values.pop("device"))
    rounds = values.pop("rounds")
    config = AdaptationConfig(**values)
    if rounds < 0 or (rounds > 0) != (args.train_config is not None):
        raise ConfigError(f"--rounds is {rounds}, --train-config {args.train_config}; expected both, or neither")
    if rounds and args.refiner is not None:
        raise ConfigError(f"--refiner is {args.refiner} and --rounds {rounds}; expected one of them")
    if rounds:
        run_rounds(args.images, args.out, args.model, rounds, config, device, args.train_config)
        return 0
    name, network = load_network(args.model)
    refiner = None if args.refiner is None else load_network(args.refiner)[1]
    report = label_folder(network, name, args.images, args.out, config, device, refiner)
    print(report.summary())
    return 0
