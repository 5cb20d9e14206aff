"""``superpoint eval homography``: methods side by side on pairs with a known homography.

``superpoint eval uncertainty`` compares the stated standard deviations of keypoints with the measured ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from frontend.cli import eval_pose, eval_zoo
from frontend.cli.options import add_network_options

DEFAULT_METHODS = "superpoint-edge,sift,rootsift,orb"


def add_parser(subparsers: Any) -> None:
    """Add ``eval`` and its benchmarks to the command line."""
    parser = subparsers.add_parser("eval", help="measure methods on image pairs with ground truth")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    add_homography_parser(benchmarks)
    eval_pose.add_pose_parser(benchmarks)
    add_uncertainty_parser(benchmarks)
    eval_zoo.add_zoo_parser(benchmarks)


def add_homography_parser(benchmarks: Any) -> None:
    """Add ``eval homography``."""
    parser = benchmarks.add_parser(
        "homography",
        help="HPatches, Oxford affine covariant regions, or any folder of photographs",
        description="Repeatability, localisation error, NN mAP, matching score, MMA and homography accuracy. From "
        "a folder of photographs one viewpoint and one illumination pair are made of each, by seeded changes.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder")
    parser.add_argument(
        "--kind", choices=("auto", "hpatches", "oxford", "photos"), default="auto", help="its layout (default: auto)"
    )
    parser.add_argument(
        "--methods",
        default=DEFAULT_METHODS,
        metavar="A,B,...",
        help="sift, rootsift, orb, released models or weight files; MODEL+lightglue matches with the learned matcher, "
        f"MODEL+FILE with that of a file (default: {DEFAULT_METHODS})",
    )
    parser.add_argument("--max-keypoints", type=int, default=1024, metavar="N", help="budget of each (default: 1024)")
    parser.add_argument(
        "--resize",
        type=int,
        default=640,
        metavar="PX",
        help="reduce longer images to this side; 0 never (default: 640)",
    )
    parser.add_argument("--pairs", choices=("viewpoint", "illumination", "both"), help="which pairs (default: both)")
    parser.add_argument(
        "--rotations",
        metavar="DEG,DEG,...",
        help="from photographs, pairs turned by each of these angles with a change of scale, instead of --pairs; "
        "such as 0,15,30,45,60,90,180",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs made from photographs (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photographs or sequences")
    add_network_options(parser)
    parser.add_argument(
        "--geometry-method",
        choices=("opencv", "ransac"),
        default="opencv",
        help="homography estimator (default: opencv)",
    )
    parser.add_argument("--threshold", type=float, default=3.0, metavar="PX", help="of the estimator (default: 3)")
    parser.add_argument("--json", metavar="FILE|-", help="protocol, figures and pairs; - for stdout, table to stderr")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="MMA and accuracy curves (needs matplotlib)")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="draw each method's N worst pairs")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="folder of the drawn pairs: matches within 3 px of the truth in green, others in red",
    )
    parser.set_defaults(run=run)


def add_uncertainty_parser(benchmarks: Any) -> None:
    """Add ``eval uncertainty``."""
    parser = benchmarks.add_parser(
        "uncertainty",
        help="stated against measured standard deviations of keypoints",
        description="Keypoints of two views that are each other's nearest within 4 px, sorted by the standard "
        "deviation that the model states for their difference along an axis, and cut in five equal parts.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder, as for 'eval homography'")
    parser.add_argument(
        "--model",
        default="superpoint-edge",
        help="released model or weight file with a refiner (default: superpoint-edge)",
    )
    parser.add_argument("--resize", type=int, default=640, metavar="PX", help="longest side; 0 as it is (default: 640)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs made from photographs (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photographs or sequences")
    add_network_options(parser)
    parser.set_defaults(run=run_uncertainty)


def run_uncertainty(args: argparse.Namespace) -> int:
    """Run the comparison.

    Raises:
        FrontendError: bad input; the caller says so in one line and exits with 2.
    """
    from frontend.device import pick_device
    from frontend.evaluation.datasets import open_dataset
    from frontend.evaluation.methods import MethodConfig, create_method
    from frontend.evaluation.uncertainty import run_calibration

    config = MethodConfig(device=str(pick_device(args.device)), runtime=args.runtime, precision=args.precision)
    method = create_method(args.model, config)
    dataset = open_dataset(args.dataset, seed=args.seed, resize=args.resize or None, limit=args.limit)
    for kind, bins in run_calibration(dataset, method).items():
        print(kind)
        print(f"{'pairs':>8}  {'stated px':>9}  {'measured px':>11}")
        for part in bins:
            print(f"{part.pairs:>8}  {part.stated:>9.2f}  {part.measured:>11.2f}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Run the benchmark.

    Returns:
        0.

    Raises:
        FrontendError: bad input; the caller says so in one line and exits with 2.
    """
    from frontend.atomic import atomic_write
    from frontend.device import pick_device
    from frontend.errors import ConfigError
    from frontend.evaluation.datasets import open_dataset
    from frontend.evaluation.homography import BenchmarkConfig, run_benchmark
    from frontend.evaluation.methods import MethodConfig, create_method, matchers_of
    from frontend.evaluation.report import format_rotations, format_table, to_json
    from frontend.evaluation.rotations import parse_angles, rotation_dataset
    from frontend.evaluation.worst import draw_worst

    names = method_names(args.methods)
    device = str(pick_device(args.device))
    config = BenchmarkConfig(args.threshold, args.geometry_method, args.seed)
    resize = None if args.resize == 0 else args.resize
    if args.worst < 0 or (args.worst > 0) != (args.pictures is not None):
        raise ConfigError(f"--worst is {args.worst}, --pictures {args.pictures}; expected both, or neither")
    if args.rotations is not None:
        if args.plot is not None:
            raise ConfigError(f"--plot {args.plot} was given with --rotations; expected one of them")
        if args.pairs is not None:
            raise ConfigError(f"--pairs {args.pairs} was given with --rotations; expected one of them")
        if args.kind not in ("auto", "photos"):
            raise ConfigError(
                f"--kind {args.kind} was given with --rotations, which takes photographs; expected photos"
            )
        angles = parse_angles(args.rotations)
        dataset = rotation_dataset(args.dataset, angles, seed=args.seed, resize=resize, limit=args.limit)
    else:
        dataset = open_dataset(
            args.dataset, kind=args.kind, pairs=args.pairs or "both", seed=args.seed, resize=resize, limit=args.limit
        )
    for option, target in (("--json", None if args.json == "-" else args.json), ("--plot", args.plot)):
        if target is not None:
            check_writable(option, Path(target))
    if args.plot is not None:
        from frontend.evaluation.plot import check_plot_path, require_matplotlib

        require_matplotlib()
        check_plot_path(args.plot)
    method_config = MethodConfig(args.max_keypoints, device, args.runtime, args.precision)
    methods = {name: create_method(name, method_config) for name in names}
    matchers = matchers_of(names)
    result = run_benchmark(dataset, methods, config, max_keypoints=args.max_keypoints, matchers=matchers)
    table = format_table(result) if args.rotations is None else format_rotations(result)
    print(table, end="", file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json is not None:
        document = to_json(result)
        if args.json == "-":
            print(document)
        else:
            atomic_write(args.json, document + "\n")
    if args.plot is not None:
        from frontend.evaluation.plot import save_plot

        save_plot(result, args.plot)
    if args.worst:
        draw_worst(result, methods, args.worst, args.pictures)
    return 0


def method_names(text: str) -> list[str]:
    """Names between commas, each once.

    Raises:
        ConfigError: there are none.
    """
    from frontend.errors import ConfigError

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError("--methods is empty; expected names such as superpoint-edge,sift")
    return names


def check_writable(option: str, path: Path) -> None:
    """Refuse before minutes of work what could not be written after them."""
    from frontend.errors import ConfigError

    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {path}: expected a file in an existing folder that can be written")
