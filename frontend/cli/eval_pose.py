"""``superpoint eval pose``: methods side by side on pairs of calibrated images with a known motion."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from frontend.cli.options import add_network_options

DEFAULT_METHODS = "superpoint-edge,sift,rootsift,orb"


def add_pose_parser(benchmarks: Any) -> None:
    """Add ``eval pose``."""
    parser = benchmarks.add_parser(
        "pose",
        help="relative pose on pairs of calibrated images with a known motion (ScanNet, for instance)",
        description="AUC of the pose error at 5, 10 and 20 degrees, median errors, and the precision of the matches. "
        "FOLDER holds the images and pairs_with_gt.txt, with lines of name0 name1 rot0 rot1 K0(9) K1(9) T_0to1(16), "
        "matrices row by row.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder, or the file of pairs")
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
    parser.add_argument(
        "--estimators",
        metavar="A,B,...",
        help="opencv (USAC_MAGSAC), frontend (the same, refined and verified), poselib (default: all installed)",
    )
    parser.add_argument("--threshold", type=float, default=1.0, metavar="PX", help="of the estimators (default: 1)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="estimations of each pair (default: 5)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pairs")
    add_network_options(parser)
    parser.add_argument("--json", metavar="FILE|-", help="protocol, figures and pairs; - for stdout, table to stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark.

    Returns:
        0.

    Raises:
        FrontendError: bad input; the caller says so in one line and exits with 2.
    """
    from importlib.util import find_spec

    from frontend.atomic import atomic_write
    from frontend.cli.eval import check_writable, method_names
    from frontend.device import pick_device
    from frontend.errors import ConfigError
    from frontend.evaluation.methods import MethodConfig, computed_by, create_method, matchers_of
    from frontend.evaluation.pose import PoseConfig, read_pairs, run_pose_benchmark
    from frontend.evaluation.pose_estimators import ESTIMATORS
    from frontend.evaluation.pose_report import format_table, to_json

    names = method_names(args.methods)
    if args.estimators is None:
        estimators = [name for name in ESTIMATORS if name != "poselib" or find_spec("poselib") is not None]
    else:
        estimators = [name.strip() for name in args.estimators.split(",") if name.strip()]
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"limit is {args.limit}; expected at least 1")
    config = PoseConfig(tuple(estimators), args.threshold, args.seeds, args.resize or None)
    pairs = read_pairs(args.folder)[: args.limit]
    if args.json not in (None, "-"):
        check_writable("--json", Path(args.json))
    method_config = MethodConfig(args.max_keypoints, str(pick_device(args.device)), args.runtime, args.precision)
    methods = {name: create_method(name, method_config) for name in names}
    matchers = matchers_of(names)
    results = run_pose_benchmark(pairs, methods, config, matchers)
    folder = args.folder if args.folder.is_dir() else args.folder.parent
    table = format_table(folder, results, config, args.max_keypoints, matchers)
    print(table, end="", file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json is not None:
        document = to_json(folder, results, config, args.max_keypoints, computed_by(methods), matchers)
        if args.json == "-":
            print(document)
        else:
            atomic_write(args.json, document + "\n")
    return 0
