"""``superpoint bench``: how long everything takes on this machine, beside other projects in the same run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

QUICK_SECONDS = 50.0


def add_parser(subparsers: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="time, memory and growth on this machine, beside other projects",
        description="Times every stage for runtimes, precisions, sizes, numbers of keypoints and batches, cold start "
        "and resident memory, beside OpenCV's SIFT and ORB, the usual SuperPoint in eager PyTorch, and kornia's, "
        "LightGlue's and hloc's where they are installed (with random weights). Cases run in turns, so that drift "
        "cancels.",
    )
    parser.add_argument("--quick", action="store_true", help="briefly, as many sections as go: ends within a minute")
    parser.add_argument("--json", metavar="FILE|-", help="machine, commit and all rows; - for stdout, tables to stderr")
    parser.add_argument(
        "--models",
        metavar="A,B,...",
        help="released names, weight files, or presets that get random weights (default: the released ones, and vgg)",
    )
    parser.add_argument("--runtimes", metavar="A,B,...", help="of torch, onnxruntime, openvino, ncnn (all installed)")
    parser.add_argument("--precisions", metavar="A,B,...", help="float32, bf16, fp16, int8 (default: all fast ones)")
    parser.add_argument("--sections", metavar="A,B,...", help="only these; an unknown one lists them")
    parser.add_argument("--peers", metavar="A,B,...", help="sift, orb, xfeat, aliked, disk; none (default: all)")
    parser.add_argument("--keypoints", type=int, default=1024, metavar="N", help="where not varied (default: 1024)")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--image", type=Path, metavar="FILE", help="to make all images from (default: a bundled one)")
    images.add_argument("--images", type=Path, metavar="FOLDER", help="the same, from the first 16 of a folder")
    parser.add_argument("--memory-images", type=int, metavar="N", help="images that memory is measured over (500; 24)")
    parser.add_argument("--seconds", type=float, metavar="S", help="spent on a case at most (10; 1.5 with --quick)")
    parser.add_argument(
        "--limit", type=float, metavar="S", help=f"end of the run (none; {QUICK_SECONDS:.0f} with --quick)"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")
    parser.set_defaults(run=run)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def run(args: argparse.Namespace) -> int:
    """Run the benchmark.

    Returns:
        0, whether or not what must hold does.

    Raises:
        FrontendError: bad input; the caller says so in one line and exits with 2.
    """
    from frontend.atomic import atomic_write
    from frontend.cli.eval import check_writable
    from frontend.device import pick_device
    from frontend.evaluation import latency_peers
    from frontend.evaluation.latency import Effort
    from frontend.evaluation.latency_models import ImageSource, default_models, runtimes_for
    from frontend.evaluation.latency_process import commit, machine, scratch
    from frontend.evaluation.latency_report import format_report, to_json
    from frontend.evaluation.latency_suite import SECTIONS, Suite, SuiteConfig

    if args.json not in (None, "-"):
        check_writable("--json", Path(args.json))
    device = str(pick_device(args.device))
    quick = args.quick
    # deformable convolutions and full-resolution networks take seconds a call on a CPU
    brief = tuple(name for name in latency_peers.EXTRACTORS if name not in ("aliked", "disk"))
    peers = brief if quick else tuple(latency_peers.EXTRACTORS)
    if args.peers is not None:
        peers = () if args.peers == "none" else _names(args.peers)
    effort = Effort(rounds=15, seconds=1.5, least=3) if quick else Effort()
    if args.seconds is not None:
        effort = Effort(effort.rounds if quick else 200, args.seconds, effort.least)
    config = SuiteConfig(
        models=_names(args.models) or tuple(default_models(distinct=quick)),
        device=device,
        pairs=tuple(runtimes_for(device, _names(args.runtimes), _names(args.precisions), brief=quick)),
        sections=_names(args.sections) or SECTIONS,
        keypoints=args.keypoints,
        peers=peers,
        matchers=() if args.peers == "none" else tuple(latency_peers.MATCHERS),
        batches=(1, 4) if quick else (1, 2, 4, 8, 16) if device == "cpu" else (1, 4, 16, 32),
        effort=effort,
        seconds=args.limit if args.limit is not None else QUICK_SECONDS if quick else None,
        memory_images=args.memory_images or (24 if quick else 500),
        empty_caches=0 if quick else 2,
    )
    described = machine()
    images = ImageSource.of(args.image or args.images)
    with scratch() as folder:
        suite = Suite(config, images, Path(folder))
        suite.run()
    source = commit()
    print(format_report(suite, described, source), end="", file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json is not None:
        document = to_json(suite, described, source, ["superpoint", "bench", *sys.argv[2:]])
        if args.json == "-":
            print(document)
        else:
            atomic_write(args.json, document + "\n")
    return 0
