"""``superpoint export``: networks and whole extractors for other runtimes."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from frontend.cli.options import Option, add_options, resolve_options

_WEIGHTS = ("weights-float16", "weights-int8")
EXPORT_OPTIONS = (
    Option(
        "format", "onnx", "of the file; see above", ("onnx", "openvino", "torch-export", "superpoint-v1", *_WEIGHTS)
    ),
    Option("size", "", "HxW of the images, multiples of 8; any size without"),
    Option("batch", 0, "images of a batch; any number with 0"),
    Option("with_postprocessing", False, "detection, top-K, refinement and descriptor sampling in the graph"),
    Option("with_matching", False, "two images and their matches in one graph; implies --with-postprocessing"),
    Option("with_size", False, "an input for the size before the padding, with post-processing"),
    Option("max_keypoints", 1024, "K, keypoints of an image, with post-processing"),
    Option("detection_threshold", 0.005, "lowest score of a keypoint, with post-processing"),
    Option("nms_radius", 3, "pixels kept free around a keypoint, with post-processing"),
    Option("border", 4, "pixels along the edge without keypoints, with post-processing"),
    Option("precision", "float32", "int8 needs --calibration; see above", ("float32", "int8")),
    Option("calibration", "", "folder of photographs like those to come, for int8; those in folders below, too"),
    Option("keep_float", "", "modules that stay in float32, for int8, comma-separated, such as encoder"),
    Option("tuning_steps", 300, "of learning to give in int8 what float32 gives; 0 leaves the weights as they are"),
    Option("refiner_passes", 0, "of the weight file, for weights-*: how often keypoints are refined; 0 as it was"),
    Option("average", "", "weights of the same network, for weights-*: the mean of both is written"),
    Option("average_share", 0.5, "of --average in that mean; --model has the rest"),
    Option("base", "", "a matcher's name or file, for weights-* of another one: only what differs is written"),
)
_SMALLER = ("refiner_passes", "average", "average_share", "base")  # options of weights-*
_INT8 = ("calibration", "keep_float", "tuning_steps")  # options of int8
_POST_PROCESSING = ("with_size", "max_keypoints", "detection_threshold", "nms_radius", "border")
_ABOUT = """\
Without --with-postprocessing the graph gives the heat map and the semi-dense descriptors, and a refiner, where the
network has one, lies beside it in NAME-refiner. With it, K keypoints of each image with scores (0 where there is none),
descriptors and sigmas. Images are padded to multiples of 8 by repeating the last row and column; with --with-size the
graph takes their width and height before that, too, and finds no keypoints in the padding. docs/runtimes.md has the
inputs and outputs of all graphs. --format superpoint-v1 writes no graph but a state dict (.pth) of the paper's network,
conv1a to convDb, for other implementations to load; it has no refiner. --format weights-float16 writes a weight file of
this project (.safetensors) in half the size, weights-int8 that of a matcher in a third, and sets what --refiner-passes
says; with --average it is the mean of two, such as of weights and of what they became when they were trained on.
--precision int8 quantises the dense part, tunes it on half of the photographs to give more of what it gives in float32
(superpoint-edge in a minute or two, larger networks longer), measures its homography accuracy on the others, and
refuses it where that drops by more than a point; on this machine it is then used where it is the fastest; --out writes
it to a file, too. With --keep-float encoder a network with a light detector head, such as superpoint-slim, finds
exactly the keypoints of float32.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``export`` to the command line."""
    parser = subparsers.add_parser(
        "export", help="write a network for ONNX Runtime, OpenVINO, TensorRT or torch.export", description=_ABOUT
    )
    parser.add_argument(
        "--model", default="superpoint-edge", metavar="NAME|PATH", help="model or weight file [%(default)s]"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="to write; its ending is that of the format")
    parser.add_argument(
        "--dynamic", action="store_true", help="any size and batch: what is done without --size, --batch"
    )
    add_options(parser, EXPORT_OPTIONS)
    parser.set_defaults(run=_run)


def parse_size(text: str) -> tuple[int, int] | None:
    """(height, width) of "HxW"; None of "".

    Raises:
        ConfigError: it is neither.
    """
    from frontend.errors import ConfigError

    if not text:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"export size is '{text}'; expected HEIGHTxWIDTH, such as 480x640")
    return int(height), int(width)


def _run(args: argparse.Namespace) -> int:
    from frontend.errors import ConfigError

    values = resolve_options(args, EXPORT_OPTIONS)
    size = parse_size(values["size"])
    if args.dynamic and (size is not None or values["batch"]):
        raise ConfigError("--dynamic with --size or --batch; expected one of them")
    if values["batch"] < 0:
        raise ConfigError(f"--batch is {values['batch']}; expected 1 or more, or 0 for any number")
    if args.dynamic and values["format"] in (*_WEIGHTS, "superpoint-v1"):
        raise ConfigError(f"--dynamic has no effect: --format {values['format']} has weights alone; expected none")
    if values["precision"] == "int8":
        _refuse_others(values, ("precision", *_INT8), "--precision int8 quantises the dense part for any size")
        return _quantise(args.model, args.out, **{name: values[name] for name in _INT8})
    _refuse_without("--precision int8", values, _INT8)
    if args.out is None:
        raise ConfigError("--out is missing; expected the file to write")
    if values["format"] in _WEIGHTS:
        _refuse_others(values, ("format", *_SMALLER), f"--format {values['format']} has weights alone")
        bits = 8 if values["format"] == "weights-int8" else 16
        return _write_small(args.model, args.out, bits, values)
    _refuse_without("--format weights-*", values, _SMALLER)
    if not (values["with_postprocessing"] or values["with_matching"]):
        others = [option.name for option in EXPORT_OPTIONS if option.name not in _POST_PROCESSING]
        _refuse_others(values, others, "without --with-postprocessing the graph ends with the dense maps")
    from frontend.export import ExportConfig, export_network
    from frontend.extraction import ExtractorConfig
    from frontend.weights import load_network

    extractor = ExtractorConfig(
        max_keypoints=values["max_keypoints"],
        detection_threshold=values["detection_threshold"],
        nms_radius=values["nms_radius"],
        border=values["border"],
    )
    config = ExportConfig(
        values["format"],
        size,
        values["batch"] or None,
        values["with_postprocessing"],
        values["with_matching"],
        extractor,
        values["with_size"],
    )
    name, network = load_network(args.model)
    for path in export_network(network, args.out, config, name):
        print(f"wrote {path}")
    return 0


def _refuse_others(values: Mapping[str, Any], wanted: Collection[str], why: str) -> None:
    """Refuse options that would have no effect.

    Raises:
        ConfigError: one of them has another value than its default.
    """
    from frontend.errors import ConfigError

    for option in EXPORT_OPTIONS:
        if option.name not in wanted and values[option.name] != option.default:
            raise ConfigError(f"--{option.name.replace('_', '-')} has no effect: {why}; expected none")


def _refuse_without(needed: str, values: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse options that mean something with another one only.

    Raises:
        ConfigError: one of them has another value than its default.
    """
    from frontend.errors import ConfigError

    for option in EXPORT_OPTIONS:
        if option.name in names and values[option.name] != option.default:
            raise ConfigError(f"--{option.name.replace('_', '-')} without {needed}; expected both or neither")


def _write_small(model: str, out: Path, bits: int, options: Mapping[str, Any]) -> int:
    from frontend.errors import ConfigError
    from frontend.weight_files import write_small

    if out.suffix != ".safetensors":
        raise ConfigError(f"--out is '{out}'; expected a name that ends in .safetensors")
    if options["refiner_passes"] < 0:
        raise ConfigError(f"--refiner-passes is {options['refiner_passes']}; expected 1 or more, or 0 to leave it")
    if options["average_share"] != 0.5 and not options["average"]:
        raise ConfigError("--average-share without --average; expected both or neither")
    named = {name: options[name] or None for name in ("average", "base")}
    write_small(
        model,
        out,
        bits,
        refiner_passes=options["refiner_passes"],
        average_share=options["average_share"],
        **named,
    )
    print(f"wrote {out}")
    return 0


def _quantise(model: str, out: Path | None, calibration: str, keep_float: str, tuning_steps: int) -> int:
    from frontend.errors import ConfigError

    if not calibration:
        raise ConfigError("--calibration is missing; expected a folder of photographs")
    from frontend.evaluation.quantisation import quantise_model

    kept = [name for name in map(str.strip, keep_float.split(",")) if name]
    print(quantise_model(model, Path(calibration), out=out, keep_float=kept, tuning_steps=tuning_steps).summary())
    return 0
