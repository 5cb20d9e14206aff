"""``superpoint-match``: match two images, or one against many.

Nothing heavy is imported before the arguments are known to be good, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from frontend import __version__
from frontend.cli.console import open_streams, run_command, tell
from frontend.cli.match_outputs import (
    check_outputs,
    names_folder,
    picture_paths,
    write_json,
    write_matches,
    write_overlay,
)
from frontend.cli.match_reader import Candidate, read_candidate, read_candidates, read_mask_for
from frontend.cli.options import Parser
from frontend.cli.report import Report, Row, summary, table, to_json
from frontend.errors import ConfigError, FrontendError, ImageError, is_lack_of_memory
from frontend.terminal import emit

if TYPE_CHECKING:
    from frontend.pipeline import MatchPipeline
    from frontend.types import Features

PROG = "superpoint-match"
MATCHED, NO_MATCH = 0, 3
_LESS_MEMORY = "a smaller --resize needs less"

_EPILOG = """\
One IMG1 that is given as a file is a pair: OUT.png is a file, the JSON one document. Several, a directory, a glob, or
an OUT that is a directory or ends in '/' make it many, whatever their number: OUT is a directory of pictures, the JSON
a list.

exit codes: 0 matched, 2 bad input (one line says which and why), 3 no geometry found (with --geometry none: no
match). With many images 0 means that at least one matched; those that cannot be read are reported and skipped.
"""


def _number(kind: Callable[[str], float], low: float, high: float, expected: str) -> Callable[[str], Any]:
    """An argparse type: a number in [low, high]."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' given, expected {expected}")
        return value

    return convert


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"'{text}' given, expected auto, cpu, cuda or cuda:N")
    return text


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        prog=PROG,
        description="Match two images, or one against many, and find the geometry between them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"superpoint-frontend {__version__}")
    add("image0", metavar="IMG0", help="the first image; anything OpenCV reads")
    add("image1", metavar="IMG1", nargs="+", help="the second image; a directory or a glob: match IMG0 against each")
    add("-o", "--output", metavar="OUT.png", help="draw the matches to this file (many images: into this directory)")
    add("--json", metavar="OUT.json", help="write the result as JSON (many images: a list); '-' for stdout")
    add("--model", metavar="NAME|PATH", default="superpoint-edge", help="model name or weight file [%(default)s]")
    count = _number(int, 1, 10**6, "a whole number from 1 to 1000000")
    add("--max-keypoints", metavar="N", type=count, default=1024, help="keep the N best keypoints [%(default)s]")
    unit = _number(float, 0, 1, "a number from 0 to 1")
    add(
        "--detection-threshold", metavar="T", type=unit, default=0.005, help="lowest detector probability [%(default)s]"
    )
    radius = _number(int, 0, 100, "a whole number of pixels from 0 to 100")
    add("--nms-radius", metavar="R", type=radius, default=3, help="pixels kept free around a keypoint [%(default)s]")
    side = _number(int, 8, 10**5, "a whole number of pixels, at least 8")
    add("--resize", metavar="LONG_SIDE", type=side, help="bring the longest side to this many pixels [as given]")
    matcher = "mnn: mutual nearest neighbours; lightglue: the model's learned matcher, or its weight file [%(default)s]"
    add("--matcher", metavar="NAME|PATH", default="mnn", help=matcher)
    ratio = "of mnn: largest ratio of the distances to the nearest and the second; 1 is no limit [%(default)s]"
    share = _number(float, math.ulp(0), 1, "a number above 0, at most 1")
    add("--ratio", metavar="R", type=share, default=1.0, help=ratio)
    cosine = _number(float, -1, 1, "a number from -1 to 1")
    least = "of a match: with mnn its cosine, with lightglue its probability (0.1 without); -1 is none [%(default)s]"
    add("--min-similarity", metavar="S", type=cosine, default=-1.0, help=least)
    white = _number(int, 255, 2**32 - 1, "a whole number from 255 on")
    mask = "no keypoints where this image is black, in"
    add("--mask0", metavar="IMAGE", help=f"{mask} IMG0")
    add("--mask1", metavar="IMAGE", help=f"{mask} IMG1 (many images: in each)")
    add("--white", metavar="VALUE", type=white, help="white of images of 16 bits, such as 4095 [by the image]")
    kinds = ("homography", "fundamental", "essential", "none")
    add("--geometry", choices=kinds, default="homography", help="[%(default)s]")
    camera = "fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]] (or fisheye:fx,fy,cx,cy,k1,k2,k3,k4)"
    file = "or a file (.yaml, .yml, .json) of EuRoC, ROS or Kalibr, or JSON as the service takes it"
    needed = "--geometry essential needs it"
    add("--camera0", metavar="CAMERA|FILE", help=f"camera of IMG0, {camera} in pixels, {file}; {needed}")
    add("--camera1", metavar="CAMERA|FILE", help="camera of IMG1 [that of IMG0]")
    pixels = _number(float, 1e-3, 1e4, "a number of pixels above 0")
    add("--ransac-threshold", metavar="PX", type=pixels, default=3.0, help="inlier distance, pixels [%(default)s]")
    add("--device", metavar="auto|cpu|cuda|cuda:N", type=_device, default="auto", help="[%(default)s]")
    add(
        "--runtime",
        metavar="NAME",
        default="auto",
        help="on a CPU: auto, torch, onnxruntime, openvino, ncnn [%(default)s]",
    )
    add("--precision", metavar="NAME", default="auto", help="auto, float32, bf16, fp16, int8 [%(default)s]")
    add("--rotations", type=int, choices=(1, 4), default=1, help="4: try IMG1 at 0, 90, 180, 270 degrees [%(default)s]")
    add("--warp", metavar="OUT.png", help="lay IMG0, warped by the homography, over IMG1 (many: into this directory)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; ``sys.argv`` by default.

    Returns:
        The exit code: 0 matched, 2 bad input, 3 no match, 130 interrupted.
    """
    open_streams()
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.warp and args.geometry != "homography":
        parser.error(f"argument --warp: needs --geometry homography, not {args.geometry}")
    if args.geometry == "essential" and args.camera0 is None:
        parser.error("argument --geometry: essential needs --camera0")
    if args.geometry != "essential" and (args.camera0 is not None or args.camera1 is not None):
        parser.error(f"argument --camera0, --camera1: need --geometry essential, not {args.geometry}")
    return run_command(PROG, lambda: _run(args), less_memory=_LESS_MEMORY)


def _run(args: argparse.Namespace) -> int:
    watch = _Stopwatch()
    paths, many = _targets(args)
    check_outputs(args, [args.image0, *paths], many)
    if args.json and os.path.realpath(args.json) in {os.path.realpath(c) for c in (args.camera0, args.camera1) if c}:
        raise ConfigError(f"{args.json}: --json would overwrite an input")
    return _run_many(args, paths) if many else _run_pair(args, paths[0], watch)


def _targets(args: argparse.Namespace) -> tuple[list[str], bool]:
    """Resolve IMG1 to files, and say whether it was a directory, a glob, or several names, or its picture needs one.

    How many files a pattern finds, the shell's included, need not decide what the outputs are.
    """
    from frontend.folders import is_file_or_dangling
    from frontend.image import is_image_name

    image0, images1 = args.image0, args.image1
    many = len(images1) > 1 or names_folder(args.output) or names_folder(args.warp)
    paths: list[str] = []
    for name in images1:
        if Path(name).is_dir():
            many = True
            found = sorted(
                str(path) for path in Path(name).iterdir() if is_file_or_dangling(path) and is_image_name(path)
            )
            if not found:
                raise ImageError(f"{name}: is a directory without images")
        elif glob.has_magic(name) and not Path(name).exists():
            many = True
            found = sorted(path for path in glob.glob(name, recursive=True) if is_file_or_dangling(Path(path)))
            if not found:
                raise ImageError(f"{name}: no file matches this pattern")
        else:
            found = [name]
        paths += found
    if many and os.path.exists(image0):
        # An image against itself always wins, and says nothing.
        others = [path for path in paths if not (os.path.exists(path) and os.path.samefile(path, image0))]
        if not others:
            raise ImageError(f"{', '.join(images1)}: holds no image but {image0} itself")
        paths = others
    return list(dict.fromkeys(paths)), many


def _say(line: str) -> None:
    emit(sys.stderr, line + "\n")


def _damaged(path: str, damage: str) -> str:
    return f"{PROG}: {path}: parts of it are damaged ({damage})"


def _read(path: str, white: int | None) -> Any:
    from frontend.folders import read_quietly

    image, damage = read_quietly(path, white=white)
    if damage:
        _say(_damaged(path, damage))
    return image


def _load(args: argparse.Namespace, brief: bool) -> MatchPipeline:
    """Load the model; torch too, unless an exported graph and a runtime for it are there.

    Raises:
        ConfigError: the device or the runtime is not there; the matcher has no such limits.
        WeightsError: the model or its learned matcher is unknown, or the file is bad.
        RegistryError: the matcher is unknown.
    """
    from frontend.calibration import read_camera
    from frontend.extractor import ExtractorConfig, SuperPoint
    from frontend.matching import load_matcher_of
    from frontend.pipeline import MatchPipeline, PipelineConfig

    cameras = None
    if args.camera0 is not None:
        camera0 = read_camera(args.camera0).camera
        cameras = (camera0, camera0 if args.camera1 is None else read_camera(args.camera1).camera)
    extractor = SuperPoint.from_pretrained(
        args.model,
        device=args.device,
        runtime=args.runtime,
        precision=args.precision,
        brief=brief,
        config=ExtractorConfig(
            max_keypoints=args.max_keypoints,
            detection_threshold=args.detection_threshold,
            nms_radius=args.nms_radius,
            resize=args.resize,
            white=args.white,
        ),
    )
    # refused before anything is extracted, and counted as loading
    device = str(extractor.device)
    ratio = args.ratio if args.ratio != 1 else None
    least = args.min_similarity if args.min_similarity != -1 else None
    load_matcher_of(
        extractor.name,
        extractor.descriptor_dim,
        matcher=args.matcher,
        ratio=ratio,
        min_similarity=least,
        device=device,
        brief=brief,
    )
    config = PipelineConfig(
        matcher=args.matcher,
        ratio=ratio,
        min_similarity=least,
        geometry=args.geometry,
        ransac_threshold=args.ransac_threshold,
        rotations=args.rotations,
    )
    return MatchPipeline(extractor, config, cameras)


def _run_pair(args: argparse.Namespace, path1: str, watch: _Stopwatch) -> int:
    load_ms = watch.lap()  # libraries so far, torch and the weights below
    image0, image1 = _read(args.image0, args.white), _read(path1, args.white)
    read_ms = watch.lap()
    pipeline = _load(args, brief=True)
    timings = {"load": load_ms + watch.lap(), "read": read_ms}
    mask0, mask1 = read_mask_for(image0, args.image0, args.mask0), read_mask_for(image1, path1, args.mask1)
    result = pipeline.match(image0, image1, mask0=mask0, mask1=mask1)
    report = Report(args.image0, path1, result, pipeline.extractor.name, args.matcher, {**timings, **result.timings_ms})
    lines = []
    if args.output:
        lines.append(f"wrote      {write_matches(args.output, image0, image1, report)}\n")
    if args.warp:
        drawn = write_overlay(args.warp, image0, image1, report)
        lines.append(f"wrote      {args.warp}\n" if drawn else "no overlay: no homography\n")
    if args.json:
        lines += [f"wrote      {name}\n" for name in write_json(args.json, [_document(report)], many=False)]
    emit(_human(args), summary(report) + "".join(lines))
    return MATCHED if report.matched else NO_MATCH


def _run_many(args: argparse.Namespace, paths: list[str]) -> int:
    image0 = _read(args.image0, args.white)
    pipeline = _load(args, brief=False)
    features0 = pipeline.extractor.extract(image0, mask=read_mask_for(image0, args.image0, args.mask0))
    rows: list[tuple[Row, str]] = []
    ended: BaseException | None = None
    try:
        _match_all(args, pipeline, image0, features0, paths, rows)
    except (KeyboardInterrupt, FrontendError, OSError) as error:
        ended = error  # after what has been done by then is written
    if not rows:
        raise ended or ImageError(f"none of the {len(paths)} images could be read")
    rows.sort(key=lambda pair: pair[0].rank)
    try:
        if args.json:
            write_json(args.json, [document for _, document in rows], many=True)
    finally:
        emit(_human(args), table([row for row, _ in rows]))
    flat = sum(row.status != "ok" for row, _ in rows)
    if args.warp and flat:
        tell(PROG, f"no overlay of {flat} of {len(rows)} images: no homography")
    if ended is not None:
        raise ended
    found = any(row.status == "ok" or (row.status == "not_requested" and row.matches) for row, _ in rows)
    return MATCHED if found else NO_MATCH


def _match_all(
    args: argparse.Namespace,
    pipeline: MatchPipeline,
    image0: Any,
    features0: Features,
    paths: list[str],
    rows: list[tuple[Row, str]],
) -> None:
    """Match image 0 against each, and draw what was asked for; those that cannot be read are said and left out.

    Args:
        args: of the command.
        pipeline: matches.
        image0: the first image.
        features0: its features.
        paths: of the others.
        rows: a row of the table is added for each, and its JSON where it was asked for.
    """
    from frontend.progress import Progress
    from frontend.terminal import own_stderr

    pictures, warps = (picture_paths(args.output or "", paths), picture_paths(args.warp or "", paths, warped=True))
    candidates = read_candidates(paths, args.white, args.mask1)
    # closed within: while it reads, nothing else is seen of what is written to stderr
    with own_stderr(), Progress(len(paths), "matching", unit="image") as progress, closing(candidates):
        for path, found in candidates:
            try:
                candidate = found or read_candidate(path, args.white, args.mask1)
                report = _match_one(args, pipeline, image0, features0, path, candidate, progress.write)
                if args.output:
                    write_matches(pictures[path], image0, candidate.image, report)
                if args.warp:
                    write_overlay(warps[path], image0, candidate.image, report)
                rows.append((Row.of(report), _document(report) if args.json else ""))
            except ImageError as error:
                progress.write(f"{PROG}: skipped {error}")
            except Exception as error:
                if not is_lack_of_memory(error):
                    raise
                progress.write(f"{PROG}: skipped {path}: out of memory; {_LESS_MEMORY}")
            progress.update()


def _match_one(
    args: argparse.Namespace,
    pipeline: MatchPipeline,
    image0: Any,
    features0: Features,
    path: str,
    candidate: Candidate,
    say: Callable[[str], None],
) -> Report:
    if candidate.damage:
        say(_damaged(path, candidate.damage))
    if candidate.problem is not None:
        raise candidate.problem
    result = pipeline.match(image0, candidate.image, features0, mask1=candidate.mask)
    timings = {"read": candidate.read_ms, **result.timings_ms}
    return Report(args.image0, path, result, pipeline.extractor.name, args.matcher, timings)


def _human(args: argparse.Namespace) -> TextIO:
    """Where the text for people goes: stdout, unless JSON does."""
    return sys.stderr if args.json == "-" else sys.stdout


def _document(report: Report) -> str:
    """The JSON of a pair; as text it takes a seventh of the memory."""
    return json.dumps(to_json(report), allow_nan=False)


class _Stopwatch:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return (self._last - last) * 1e3


if __name__ == "__main__":
    sys.exit(main())
