"""``superpoint make-views``: features of several views of made scenes and of photographs, to train a matcher on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from frontend.weights import DEFAULT_MODEL

_ABOUT = """\
A group holds the features of several views of one made scene, by cameras that moved through it, or of one photograph
under homographies; and where each keypoint is in the other views. 'superpoint train lightglue' learns from them. What
is there is kept: the same command goes on after an interruption. Groups of several models do not mix.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``make-views`` to the command line."""
    parser = subparsers.add_parser(
        "make-views", help="make features of views to train a matcher on", description=_ABOUT
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the groups, made if missing")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME|PATH", help=f"whose features (default: {DEFAULT_MODEL})"
    )
    parser.add_argument("--scenes", type=int, default=0, metavar="N", help="made scenes (default: 0)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of photographs (default: none)")
    parser.add_argument("--views", type=int, default=4, metavar="V", help="of each (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of scenes and warps (default: 0)")
    parser.add_argument("--max-keypoints", type=int, default=768, metavar="N", help="of a view (default: 768)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that make images (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from frontend.extractor import ExtractorConfig, SuperPoint
    from frontend.folders import check_settings
    from frontend.training.view_groups import APART_PX, MATCHED_PX, check_request, make_groups
    from frontend.weights import resolve, sha256_of

    request = {
        "scenes": args.scenes,
        "photos": args.images,
        "views": args.views,
        "seed": args.seed,
        "workers": args.workers,
    }
    check_request(**request)
    config = ExtractorConfig(max_keypoints=args.max_keypoints)
    extractor = SuperPoint.from_pretrained(args.model, config=config, device=args.device, precision="float32")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": extractor.name,
        "weights_sha256": sha256_of(resolve(args.model)[1]),
        "max_keypoints": args.max_keypoints,
        "matched_px": MATCHED_PX,
        "apart_px": APART_PX,
    }
    check_settings(args.out, settings, "groups of views")
    report = make_groups(args.out, extractor.extract, **request)
    print(f"made {report.made} groups, {report.kept} were there, {len(report.skipped)} images skipped")
    return 0
