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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from frontend import __version__
from frontend.cli.report import Report, Row, summary, table, to_json
from frontend.errors import ConfigError, FrontendError, ImageError, is_lack_of_memory

if TYPE_CHECKING:
    from frontend.pipeline import MatchPipeline
    from frontend.types import Features

PROG = "superpoint-match"
MATCHED, BAD_INPUT, NO_MATCH, INTERRUPTED = 0, 2, 3, 130

_EPILOG = """\
exit codes: 0 matched, 2 bad input (one line says which and why), 3 no geometry found (with --geometry none: no
match). With many images 0 means that at least one matched; those that cannot be read are reported and skipped.
"""


class _Parser(argparse.ArgumentParser):
    """Refuses in one line; argparse would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


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
    parser = _Parser(
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
    add("--detection-threshold", metavar="T", type=unit, default=0.005, help="lowest keypoint score [%(default)s]")
    radius = _number(int, 0, 100, "a whole number of pixels from 0 to 100")
    add("--nms-radius", metavar="R", type=radius, default=3, help="pixels kept free around a keypoint [%(default)s]")
    side = _number(int, 8, 10**5, "a whole number of pixels, at least 8")
    add("--resize", metavar="LONG_SIDE", type=side, help="bring the longest side to this many pixels [as given]")
    matcher = "mnn: mutual nearest neighbours; lightglue: the model's learned matcher, or its weight file [%(default)s]"
    add("--matcher", metavar="NAME|PATH", default="mnn", help=matcher)
    white = _number(int, 255, 2**32 - 1, "a whole number from 255 on")
    add("--white", metavar="VALUE", type=white, help="white of images of 16 bits, such as 4095 [by the image]")
    kinds = ("homography", "fundamental", "essential", "none")
    add("--geometry", choices=kinds, default="homography", help="[%(default)s]")
    camera = "fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]] (or fisheye:fx,fy,cx,cy,k1,k2,k3,k4)"
    add("--camera0", metavar="CAMERA", help=f"camera of IMG0, {camera} in pixels; --geometry essential needs it")
    add("--camera1", metavar="CAMERA", help="camera of IMG1 [that of IMG0]")
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
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
        if args.warp and args.geometry != "homography":
            parser.error(f"argument --warp: needs --geometry homography, not {args.geometry}")
        if args.geometry == "essential" and args.camera0 is None:
            parser.error("argument --geometry: essential needs --camera0")
        if args.geometry != "essential" and (args.camera0 is not None or args.camera1 is not None):
            parser.error(f"argument --camera0, --camera1: need --geometry essential, not {args.geometry}")
        return _run(args)
    except FrontendError as error:
        return _refuse(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}")
    except Exception as error:
        if is_lack_of_memory(error):
            return _refuse("out of memory; a smaller --resize needs less")
        raise
    except KeyboardInterrupt:
        _refuse("interrupted")
        return INTERRUPTED


def _refuse(reason: str) -> int:
    _emit(sys.stderr, f"{PROG}: {' '.join(reason.split())}\n")
    return BAD_INPUT


def _emit(stream: TextIO, text: str) -> None:
    """Write and flush; a reader that has gone away (``| head``) is no error and ends no work."""
    try:
        # names need not be of the locale's encoding
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again, loudly, when Python closes the stream at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(args: argparse.Namespace) -> int:
    watch = _Stopwatch()
    paths, many = _targets(args.image0, args.image1)
    _check_outputs(args, [args.image0, *paths], many)
    return _run_many(args, paths) if many else _run_pair(args, paths[0], watch)


def _targets(image0: str, images1: list[str]) -> tuple[list[str], bool]:
    """Resolve IMG1 to files, and say whether it was a directory, a glob, or several names."""
    from frontend.image import is_image_name

    many = len(images1) > 1
    paths: list[str] = []
    for name in images1:
        if Path(name).is_dir():
            many = True
            found = sorted(str(path) for path in Path(name).iterdir() if path.is_file() and is_image_name(path))
            if not found:
                raise ImageError(f"{name}: is a directory without images")
        elif glob.has_magic(name) and not Path(name).exists():
            many = True
            found = sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())
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


def _check_outputs(args: argparse.Namespace, inputs: list[str], many: bool) -> None:
    """Refuse outputs that cannot be written, before any work is done for them.

    Raises:
        ConfigError: with the file and the reason.
    """
    import cv2

    taken = {os.path.realpath(path) for path in inputs}
    for option, name in (("-o", args.output), ("--warp", args.warp), ("--json", args.json)):
        if not name or (option == "--json" and name == "-"):
            continue
        path = Path(name)
        outputs = [name]
        if many and option != "--json":
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{name}: is a file; {option} is a directory where many images are matched")
            outputs = list(_picture_paths(name, inputs[1:], option == "--warp").values())
        elif path.is_dir():
            raise ConfigError(f"{name}: is a directory, expected a file name for {option}")
        # of the ending alone: OpenCV does not survive a name that is no UTF-8
        elif option != "--json" and not (path.suffix and cv2.haveImageWriter(f"picture{path.suffix}")):
            raise ConfigError(f"{name}: OpenCV writes no images with the ending '{path.suffix}'")
        for output in outputs:
            if os.path.realpath(output) in taken:
                raise ConfigError(f"{output}: {option} would overwrite an input or another output")
            taken.add(os.path.realpath(output))


def _read(path: str, white: int | None) -> Any:
    from frontend.image import quiet_decoders, read_image

    with quiet_decoders() as damage:
        image = read_image(path, white=white)
    if damage:
        print(f"{PROG}: {path}: parts of it are damaged ({damage[0]})", file=sys.stderr)
    return image


def _load(args: argparse.Namespace, brief: bool) -> MatchPipeline:
    """Load the model; torch too, unless an exported graph and a runtime for it are there.

    Raises:
        ConfigError: the device or the runtime is not there.
        WeightsError: the model or its learned matcher is unknown, or the file is bad.
        RegistryError: the matcher is unknown.
    """
    from frontend.camera import Camera
    from frontend.extractor import ExtractorConfig, SuperPoint
    from frontend.matching import load_matcher_of
    from frontend.pipeline import MatchPipeline, PipelineConfig

    cameras = None
    if args.camera0 is not None:
        camera0 = Camera.parse(args.camera0)
        cameras = (camera0, camera0 if args.camera1 is None else Camera.parse(args.camera1))
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
    load_matcher_of(extractor.name, extractor.descriptor_dim, matcher=args.matcher, device=device, brief=brief)
    config = PipelineConfig(
        matcher=args.matcher,
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
    result = pipeline.match(image0, image1)
    report = Report(args.image0, path1, result, pipeline.extractor.name, args.matcher, {**timings, **result.timings_ms})
    written = []
    if args.output:
        written.append(_draw_matches(args.output, image0, image1, report))
    if args.warp:
        written += _draw_warp(args.warp, image0, image1, report)
    if args.json:
        written += _write_json(args.json, to_json(report))
    text = summary(report) + "".join(f"wrote      {name}\n" for name in written)
    _emit(_human(args), text)
    return MATCHED if report.matched else NO_MATCH


def _run_many(args: argparse.Namespace, paths: list[str]) -> int:
    from frontend.progress import Progress

    image0 = _read(args.image0, args.white)
    pipeline = _load(args, brief=False)
    features0 = pipeline.extractor.extract(image0)
    pictures, warps = (_picture_paths(args.output or "", paths), _picture_paths(args.warp or "", paths, warped=True))
    rows: list[tuple[Row, Any]] = []
    with Progress(len(paths), "matching", unit="image") as progress:
        for path in paths:
            try:
                report, image1 = _match_one(args, pipeline, image0, features0, path)
            except ImageError as error:
                progress.write(f"{PROG}: skipped {error}")
                progress.update()
                continue
            if args.output:
                _draw_matches(pictures[path], image0, image1, report)
            if args.warp:
                _draw_warp(warps[path], image0, image1, report)
            rows.append((Row.of(report), to_json(report) if args.json else None))
            progress.update()
    if not rows:
        raise ImageError(f"none of the {len(paths)} images could be read")
    rows.sort(key=lambda pair: pair[0].rank)
    if args.json:
        _write_json(args.json, [document for _, document in rows])
    _emit(_human(args), table([row for row, _ in rows]))
    found = any(row.status == "ok" or (row.status == "not_requested" and row.matches) for row, _ in rows)
    return MATCHED if found else NO_MATCH


def _match_one(
    args: argparse.Namespace, pipeline: MatchPipeline, image0: Any, features0: Features, path: str
) -> tuple[Report, Any]:
    watch = _Stopwatch()
    image1 = _read(path, args.white)
    read_ms = watch.lap()
    result = pipeline.match(image0, image1, features0)
    timings = {"read": read_ms, **result.timings_ms}
    return Report(args.image0, path, result, pipeline.extractor.name, args.matcher, timings), image1


def _picture_paths(folder: str, paths: list[str], warped: bool = False) -> dict[str, str]:
    """Where the picture of each image goes: by its stem, with what it takes to tell two apart."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for path in paths:
        stem = Path(path).stem
        name, tries = stem, 1
        while name in used:
            tries += 1
            name = f"{stem}_{tries}"
        used.add(name)
        names[path] = str(Path(folder) / f"{name}{'_warp' if warped else ''}.png")
    return names


def _human(args: argparse.Namespace) -> TextIO:
    """Where the text for people goes: stdout, unless JSON does."""
    return sys.stderr if args.json == "-" else sys.stdout


def _draw_matches(name: str, image0: Any, image1: Any, report: Report) -> str:
    from frontend.viz import draw_matches

    return _write_picture(name, draw_matches(image0, image1, report.result))


def _draw_warp(name: str, image0: Any, image1: Any, report: Report) -> list[str]:
    from frontend.types import Homography
    from frontend.viz import warp_overlay

    geometry = report.result.geometry
    if not isinstance(geometry, Homography) or geometry.H is None:
        return []
    return [_write_picture(name, warp_overlay(image0, image1, geometry.H))]


def _write_picture(name: str, picture: Any) -> str:
    import cv2

    encoded, data = cv2.imencode(Path(name).suffix, picture)
    if not encoded:
        raise ConfigError(f"{name}: OpenCV could not encode a picture of {picture.shape[1]} x {picture.shape[0]}")
    _save(name, data.tobytes())
    return name


def _save(name: str, data: bytes | str) -> None:
    from frontend.atomic import atomic_write

    try:
        atomic_write(name, data)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be written ({error.strerror or error})") from None


def _write_json(name: str, document: Any) -> list[str]:
    text = json.dumps(document, allow_nan=False) + "\n"
    if name == "-":
        _emit(sys.stdout, text)
        return []
    _save(name, text)
    return [name]


class _Stopwatch:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return (self._last - last) * 1e3


if __name__ == "__main__":
    sys.exit(main())
