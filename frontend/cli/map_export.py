"""``superpoint match-features``: features of a folder, matched and written for a map builder."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from frontend.cli.options import Option, add_options, resolve_options

MATCH_OPTIONS = (
    Option("format", "auto", "auto: colmap where OUT ends in .db, else hloc", choices=("auto", "colmap", "hloc")),
    Option("matcher", "mnn", "mnn: mutual nearest neighbours; lightglue: the model's learned matcher, or its file"),
    Option(
        "min_similarity",
        -1.0,
        "of a match: with mnn its cosine, with lightglue its probability (0.1 without); -1 is none",
    ),
    Option("ratio", 1.0, "of mnn: largest ratio of the distances to the nearest and the second; 1 is no limit"),
    Option(
        "geometry",
        "auto",
        "model that inliers fit; auto: for colmap essential where the camera is known, else fundamental, for hloc none",
        choices=("auto", "fundamental", "essential", "homography", "none"),
    ),
    Option("threshold", 3.0, "largest error of an inlier, pixels of the images as given"),
    Option(
        "camera",
        "",
        "of all images: fx,fy,cx,cy[,k1,k2,p1,p2] or fisheye:fx,fy,cx,cy,k1,k2,k3,k4, pixels; or a .yaml or .json file",
    ),
    Option("single_camera", False, "for colmap: one camera took all images, as --camera says, too"),
    Option("device", "auto", "auto, cpu, cuda or cuda:N; auto is the CPU for mnn"),
)
_ABOUT = """\
FEATURES is a folder of 'superpoint extract'. OUT.db is a database of COLMAP, from which 'colmap mapper' builds a map;
a folder OUT gets hloc's features.h5, matches.h5 and pairs.txt. Pairs that are there are left alone: the command goes
on where it was stopped, and adds the pairs of another choice.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``match-features`` to the command line."""
    parser = subparsers.add_parser(
        "match-features", help="match the features of a folder, for a map builder", description=_ABOUT
    )
    parser.add_argument("features", type=Path, metavar="FEATURES", help="folder of feature files")
    parser.add_argument(
        "--out", type=Path, required=True, help="database (OUT.db) or folder to write, or to go on with"
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="for colmap: the photographs, for their focal lengths by EXIF"
    )
    pairs = parser.add_mutually_exclusive_group()
    pairs.add_argument("--pairs", type=Path, metavar="FILE", help="two names of images on each line, as hloc has it")
    pairs.add_argument("--exhaustive", action="store_true", help="all pairs; of up to 300 images the default")
    pairs.add_argument("--sequential", type=int, metavar="N", help="each image with the next N in the order of names")
    add_options(parser, MATCH_OPTIONS)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from frontend.blas import THREADS

    values = resolve_options(args, MATCH_OPTIONS)
    if values["matcher"] == "mnn" and "numpy" not in sys.modules:
        # pairs have a thread each: several for each matrix product, too, take three times as much of the CPU
        os.environ[THREADS] = "1"

    from frontend.calibration import read_camera
    from frontend.device import pick_name
    from frontend.errors import ConfigError, DataError
    from frontend.io.exif import read_focals
    from frontend.io.feature_folder import FeatureFolder
    from frontend.io.match_folder import match_folder, open_store
    from frontend.io.matched_pair import MatchConfig
    from frontend.io.pairs import choose_pairs

    layout, device = values["format"], values["device"]
    if layout == "auto":
        layout = "colmap" if args.out.suffix.lower() == ".db" else "hloc"
    calibrated = read_camera(values["camera"]) if values["camera"] else None
    camera = None if calibrated is None else calibrated.camera
    geometry = values["geometry"]
    if geometry == "auto":
        known = "fundamental" if camera is None else "essential"
        geometry = "none" if layout == "hloc" else known
    if layout == "hloc" and (values["single_camera"] or (camera is not None and geometry != "essential")):
        raise ConfigError("hloc's files hold no camera; expected --camera with --geometry essential alone, or a .db")
    if args.images is not None and layout == "hloc":
        raise ConfigError("hloc's files hold no camera; expected --images with a .db alone")
    if args.images is not None and camera is not None:
        raise ConfigError("got --camera and --images; expected one of them: the camera says the focal length")
    config = MatchConfig(
        matcher=values["matcher"],
        ratio=values["ratio"] if values["ratio"] != 1 else None,
        min_similarity=values["min_similarity"] if values["min_similarity"] != -1 else None,
        geometry=geometry,
        threshold=values["threshold"],
        camera=camera,
        device="cpu" if device == "auto" and values["matcher"] == "mnn" else str(pick_name(device)),
    )
    folder = FeatureFolder(args.features)
    pairs = choose_pairs(folder.names, listed=args.pairs, exhaustive=args.exhaustive, sequential=args.sequential)
    held = folder.read(0).image_size
    if calibrated is not None and calibrated.size not in (None, held):
        size, name = calibrated.size or (0, 0), folder.names[0]
        raise DataError(f"{name} has {held[0]} x {held[1]} pixels; expected {size[0]} x {size[1]}, as the camera has")
    focals = None if args.images is None else read_focals(args.images, folder.names)
    store = open_store(layout, args.out, folder, config, single_camera=values["single_camera"], focals=focals)
    try:
        report = match_folder(folder, store, pairs, config)
    finally:
        store.close()
    said = "" if focals is None else f"; EXIF says the focal lengths of {len(focals)} of {report.images} images"
    print(report.summary(geometry) + said)
    return 0
