"""``superpoint extract``: features of a folder of images, a file each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.cli.options import Option, add_options, resolve_options

if TYPE_CHECKING:
    from frontend.extractor import ExtractorConfig, SuperPoint

EXTRACT_OPTIONS = (
    Option("max_keypoints", 1024, "keypoints of an image"),
    Option("detection_threshold", 0.005, "least probability in the detector's heat map"),
    Option("nms_radius", 3, "pixels kept free around a keypoint"),
    Option("resize", 0, "longest side that images are brought to, pixels; 0 leaves them as they are"),
    Option("white", 0, "value of white in images of 16 bits, such as 4095; 0: see docs/command-line.md"),
    Option(
        "stored_orientation", False, "images and masks as they are stored, not turned as EXIF says: for map builders"
    ),
    Option("half", False, "store descriptors in float16"),
    Option("batch", 1, "images of one size that go through the network together; more helps a GPU"),
    Option("device", "auto", "auto, cpu, cuda or cuda:N"),
    Option("runtime", "auto", "on a CPU: auto, torch, onnxruntime, openvino, ncnn"),
    Option("precision", "auto", "auto, float32, bf16, fp16, int8"),
)
_FILES = """\
a.jpg becomes OUT/a.jpg.npz: keypoints (N, 2) float32 pixels of the image, scores (N,), descriptors (N, D) of unit norm,
sigmas (N,) where the model knows how exact its keypoints are, image_size (width, height), model. Images that have a
file are left alone, so the command goes on where it was stopped, by --precision auto in the precision that it began
with. frontend.feature_files reads the files.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``extract`` to the command line."""
    parser = subparsers.add_parser("extract", help="features of a folder of images", description=_FILES)
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the feature files; what is there is kept")
    parser.add_argument(
        "--model",
        default="superpoint-edge",
        metavar="NAME|PATH",
        help="model name or weight file (default: superpoint-edge)",
    )
    masks = "no keypoints where this image is black; or a folder of such images, a.jpg.png (or a.png) for a.jpg"
    parser.add_argument("--masks", type=Path, metavar="IMAGE|FOLDER", help=masks)
    add_options(parser, EXTRACT_OPTIONS)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from frontend.extractor import ExtractorConfig
    from frontend.feature_files import extract_folder
    from frontend.weights import resolve, sha256_of

    values = resolve_options(args, EXTRACT_OPTIONS)
    batch, half, resize, white = (values.pop(name) for name in ("batch", "half", "resize", "white"))
    oriented = not values.pop("stored_orientation")
    where = {name: values.pop(name) for name in ("device", "runtime", "precision")}
    config = ExtractorConfig(**values, resize=resize or None, white=white or None)
    digest = sha256_of(resolve(args.model)[1])  # before it is loaded: a file that is replaced then is not named wrongly
    extractor = _extractor(args, config, where)
    given = {"batch": batch, "half": half, "weights_sha256": digest, "masks": args.masks, "oriented": oriented}
    report = extract_folder(extractor, args.images, args.out, **given)
    print(report.summary())
    return 0 if report.extracted or report.kept else 2


def _extractor(args: argparse.Namespace, config: ExtractorConfig, where: dict[str, Any]) -> SuperPoint:
    """The extractor; of a folder that was begun with a precision, "auto" is that: timed anew it may be another.

    Raises:
        ConfigError: there is no such device or runtime, or it has no such precision.
        WeightsError: there are no such weights, or they cannot be used.
        DataError: the folder's record cannot be read.
    """
    from frontend.errors import ConfigError
    from frontend.extractor import SuperPoint
    from frontend.folders import recorded_settings

    recorded = recorded_settings(args.out).get("precision") if where["precision"] == "auto" else None
    if recorded is None:
        return SuperPoint.from_pretrained(args.model, config=config, **where)
    try:
        return SuperPoint.from_pretrained(args.model, config=config, **{**where, "precision": recorded})
    except ConfigError as error:
        raise ConfigError(
            f"{error} ({args.out} holds features made with precision = {recorded}; give another --out where that is "
            "not to be had)"
        ) from None
