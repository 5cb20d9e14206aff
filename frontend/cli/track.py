"""``superpoint track``: tracks of a recorded sequence, and stereo odometry."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from frontend.cli.extract import EXTRACT_OPTIONS
from frontend.cli.options import Option, add_options, resolve_options

if TYPE_CHECKING:
    from frontend.calibration import Size
    from frontend.camera import Camera
    from frontend.cli.track_outputs import TrackOutputs
    from frontend.cli.track_reader import FrameReader
    from frontend.extractor import SuperPoint
    from frontend.stereo import StereoRig
    from frontend.tracking import Tracker

PROG = "superpoint track"

_POLICY = (
    Option("min_similarity", 0.5, "least cosine similarity of a keypoint to its track, and of a stereo match"),
    Option("search_radius", 0.2, "largest distance from where a track is expected, share of the image's longest side"),
    Option("max_gap", 2, "frames that a track may go unseen"),
    Option("max_tracks", 4096, "tracks that are remembered"),
    Option("threshold", 3.0, "largest error of an inlier of the motion, pixels"),
    Option("keyframe_share", 0.6, "a frame that sees less than this share of the last keyframe's tracks is a keyframe"),
    Option("keyframe_parallax", 0.1, "so is one where they moved by more on median, share of the longest side"),
)
_TAKEN = (
    Option("every", 1, "take one frame of so many"),
    Option("limit", 0, "frames at most; 0 takes all"),
    Option(
        "fps",
        None,
        "frames a second, instead of the stamps that a folder has or the rate of a video; without it these, or 30 "
        "where there are none",
    ),
)
_POSES = Option("poses_format", "tum", "of --poses; see below", ("tum", "kitti"))
_OF_FOLDERS = ("half", "batch", "stored_orientation")  # settings of superpoint extract alone
TRACK_OPTIONS = (_POSES, *_TAKEN, *(option for option in EXTRACT_OPTIONS if option.name not in _OF_FOLDERS), *_POLICY)

_DESCRIPTION = """\
Track keypoints through a folder of images or a video: the front-end of a SLAM system, its result in a CSV file.

SOURCE is a folder of EuRoC (mav0/cam0, with data.csv), TUM (with rgb.txt) or KITTI (with times.txt, or of its raw data:
the drive, image_00 or image_00/data), a folder of images whose names are stamps (nanoseconds of 18 or 19 digits, or
seconds with a point) or numbers, or a video file. Images that cannot be read are told and left out; the sequence goes
on without them.

Calibrations are numbers or files: EuRoC's sensor.yaml, ROS's camera_info (as a file, or a message as it is echoed),
Kalibr's camchain, or JSON as the service takes it. Images as the cameras took them need --rig, or --camera and
--right-camera with files that tell T_BS. --baseline is for rectified pairs: where ROS's files have a projection matrix
that is taken, without distortion; other cameras must have no distortion, and none may tell T_BS.
"""
_EPILOG = """\
the CSV file, a row for each keypoint of each frame, best score first:
  stamp_ns, frame   time of the frame, nanoseconds, and its number among those that were tracked
  track_id, age     of its track; in how many frames that has been seen
  x, y              pixels of the image, (0, 0) the centre of its top-left pixel
  xn, yn            undistorted normalised coordinates x/z, y/z; empty without --camera
  vx, vy            pixels a second since the track was last seen; 0 for new ones
  score, sigma      of the keypoint: the network's score; standard deviation of x and y, pixels, if it knows it
  new, keyframe     0 or 1: whether the track begins here, and whether the frame is a keyframe
  xr, yr            with --right: pixels in the right image; empty where it was not found there
  px, py, pz        with a calibrated pair: the point in the left camera's frame, metres
It is written under OUT's name with .PID.part in it, frame by frame, and gets its own name at the end. Ctrl-C ends with
the frame that is being worked on; what is done is kept.

--poses is odometry from frame to frame: each is placed by points in space of frames before it, in metres, the first one
at the origin. There is no map, no bundle adjustment and no loop closure, so drift is to be expected. It needs a stereo
rig: poses of one camera have translations without a length, which make no trajectory. Where too few points are seen
again the trajectory ends, as nothing tells how far the camera went meanwhile. TUM's format has a line for each frame
with a pose: stamp in seconds, position, quaternion. With --poses-format kitti there is a line for each frame that was
taken, the first three rows of the camera-to-world matrix: a frame without a pose, or that cannot be read, repeats the
line before it, or has the identity where there is none yet.

examples:
  superpoint track mav0/cam0 --right mav0/cam1 --camera mav0/cam0/sensor.yaml --right-camera mav0/cam1/sensor.yaml \\
      --out tracks.csv --poses poses.tum
  superpoint track kitti/00 --right kitti/00/image_1 --camera 718.856,718.856,607.1928,185.2157 --baseline 0.5372 \\
      --out tracks.csv --poses poses.tum
  superpoint track walk.mp4 --model superpoint-slim --resize 640 --out tracks.csv --video tracks.mp4

exit codes: 0 done, 2 bad input (one line says which and why), or a --video that cannot be written to its end (the other
files are there), 130 interrupted
"""


def add_parser(subparsers: Any) -> None:
    """Add ``track`` to the command line."""
    parser = subparsers.add_parser(
        "track",
        help="tracks of a sequence of images or a video, and stereo odometry",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder of images, or a video")
    add("--out", required=True, metavar="FILE.csv", help="tracks; compressed where it ends in .gz; - for stdout")
    add("--poses", metavar="FILE", help="poses of the left camera in the world; needs a stereo rig")
    add("--video", metavar="FILE.mp4", help="the frames with their tracks")
    add("--json", metavar="FILE|-", help="the summary as JSON")
    add("--model", default="superpoint-edge", metavar="NAME|PATH", help="model name or weight file [%(default)s]")
    add(
        "--camera",
        metavar="CAMERA|FILE",
        help="fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]] in pixels, fisheye:fx,fy,cx,cy,k1,k2,k3,k4, or a file (.yaml, "
        ".yml, .json)",
    )
    add("--right", type=Path, metavar="SOURCE", help="the right images of a stereo pair")
    add("--right-camera", metavar="CAMERA|FILE", help="as --camera [the left one]")
    add("--baseline", type=float, metavar="M", help="of a rectified pair, metres; see above")
    add("--rig", type=Path, metavar="FILE", help="both cameras: Kalibr's camchain, or JSON as POST /v1/sequences")
    add("--mask", type=Path, metavar="IMAGE", help="no keypoints where this image is black, in the (left) images")
    add("--right-mask", type=Path, metavar="IMAGE", help="the same, in the right images")
    add_options(parser, TRACK_OPTIONS)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from frontend.cli.console import BAD_INPUT, tell
    from frontend.cli.track_outputs import STDOUT, TrackOutputs, check_inputs, check_outputs
    from frontend.cli.track_reader import FrameReader
    from frontend.cli.track_report import TrackReport
    from frontend.errors import ConfigError, FrontendError
    from frontend.extractor import ExtractorConfig, SuperPoint
    from frontend.image import quiet_decoders
    from frontend.masks import read_mask
    from frontend.odometry import StereoOdometry
    from frontend.sequences import doubt_of_names, open_source
    from frontend.terminal import own_stderr
    from frontend.tracking import Tracker, TrackerConfig

    values = resolve_options(args, TRACK_OPTIONS)
    _check(args, values)
    policy = TrackerConfig(**{option.name: values.pop(option.name) for option in _POLICY})
    kitti = values.pop(_POSES.name) == "kitti"
    every, limit, fps = (values.pop(option.name) for option in _TAKEN)
    where = {name: values.pop(name) for name in ("device", "runtime", "precision")}
    for name in ("resize", "white"):
        values[name] = values[name] or None
    config = ExtractorConfig(**values)
    camera, rig, (size, right_size) = _calibration(args)
    if args.poses is not None and rig is None:
        raise ConfigError(
            "--poses is given without a stereo rig (--right, and --rig, --baseline or two camera files); expected one, "
            "as one camera's translations have no length"
        )
    outputs = [("--out", args.out), ("--poses", args.poses), ("--video", args.video), ("--json", args.json)]
    inputs = [args.camera, args.right_camera, args.rig, args.mask, args.source, args.right, args.config]
    inputs += [args.right_mask, *([args.model] if Path(args.model).is_file() else [])]
    check_outputs(outputs, [None if name is None else str(name) for name in inputs])
    # threads decode while others write, so that the descriptor cannot be turned away frame by frame
    with own_stderr(), quiet_decoders():
        source = open_source(args.source, fps=fps, white=config.white)
        if fps is None and (doubt := doubt_of_names(source)):
            tell(PROG, doubt)
        right = None if args.right is None else open_source(args.right, fps=fps, white=config.white)
        check_inputs(outputs, [*source.files, *([] if right is None else right.files)])
        reader = FrameReader(
            source,
            right,
            mask=None if args.mask is None else read_mask(args.mask),
            right_mask=None if args.right_mask is None else read_mask(args.right_mask),
            size=size,
            right_size=right_size,
            keep_images=args.video is not None,
        )
        extractor = SuperPoint.from_pretrained(args.model, config=config, **where)
        tracker = Tracker(policy, camera, rig)
        files = TrackOutputs(
            args.out,
            stereo=args.right is not None,
            poses=args.poses,
            kitti=kitti,
            odometry=None if rig is None else StereoOdometry(rig, policy.threshold),
            video=args.video,
            fps=1e9 / (reader.source.interval_ns * every),
        )
        began = time.perf_counter()
        failure: FrontendError | KeyboardInterrupt | None = None
        try:
            with _interruptible() as asked, files:
                _follow(reader, extractor, tracker, files, every, limit, asked)
        except (FrontendError, KeyboardInterrupt) as error:
            failure = error
            if not files.statistics.frames:
                raise
        seconds = time.perf_counter() - began
    if (lost := files.news()) is not None:
        tell(PROG, lost)
    written = [args.out, args.poses, args.video if files.video_failure is None else None]
    report = TrackReport(
        str(args.source),
        reader,
        extractor,
        files,
        [name for name in written if name not in (None, STDOUT)],
        seconds,
        placed=args.poses is not None,
        stereo=right is not None,
        ended="finished" if failure is None else str(failure) or "interrupted",
    )
    report.write(sys.stderr if STDOUT in (args.out, args.poses, args.json) else sys.stdout, args.json)
    if failure is not None:
        raise failure
    return 0 if files.video_failure is None else BAD_INPUT


def _check(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Refuse what is out of range.

    Raises:
        ConfigError: with the option and the range.
    """
    from frontend.errors import ConfigError
    from frontend.sequences import check_rate

    for name, least in (("every", 1), ("limit", 0)):
        if values[name] < least:
            raise ConfigError(f"--{name} is {values[name]}; expected {least} or more")
    if values["fps"] is not None:
        check_rate(values["fps"])
    if values[_POSES.name] != _POSES.default and args.poses is None:
        raise ConfigError(f"--poses-format is {values[_POSES.name]} without --poses; expected both or neither")
    if args.right_mask is not None and args.right is None:
        raise ConfigError("--right-mask is given without --right; expected the right images, too")
    if args.video is not None and not args.video.lower().endswith(".mp4"):
        raise ConfigError(f"{args.video}: is no name of a video; expected one that ends in .mp4")


def _calibration(args: argparse.Namespace) -> tuple[Camera | None, StereoRig | None, tuple[Size | None, Size | None]]:
    """The camera, the rig, and the sizes of the left and right images where files tell them.

    Raises:
        ConfigError: what is given does not go together, or is no camera.
    """
    from frontend.calibration import read_camera, read_rig, rig_of
    from frontend.errors import ConfigError

    pair = {"--right-camera": args.right_camera, "--baseline": args.baseline, "--rig": args.rig}
    given = [name for name, value in pair.items() if value is not None]
    if given and args.right is None:
        raise ConfigError(f"{given[0]} is given without --right; expected the right images, too")
    if args.rig is not None:
        if len(given) > 1 or args.camera is not None:
            raise ConfigError("--rig is given with another calibration; expected it alone, as it has both cameras")
        rig, sizes = read_rig(args.rig)
        return rig.left, rig, sizes
    if args.camera is None:
        if given:
            raise ConfigError(f"{given[0]} is given without --camera; expected both")
        return None, None, (None, None)
    left = read_camera(args.camera)
    if not given:
        return left.camera, None, (left.size, None)
    right = left if args.right_camera is None else read_camera(args.right_camera, single=True)
    rig = rig_of(left, right, args.baseline)
    return rig.left, rig, (left.size, right.size)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Have SIGINT and SIGTERM wait for the end of a frame; a second one does not wait.

    Yields:
        What is set when the process has been asked to end.
    """
    asked = threading.Event()

    def ask(_: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may have handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as of a job in the background
                before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(
    reader: FrameReader,
    extractor: SuperPoint,
    tracker: Tracker,
    files: TrackOutputs,
    every: int,
    limit: int,
    asked: threading.Event,
) -> None:
    """Track all frames.

    Raises:
        FrontendError: a frame does not continue the sequence, or none can be read.
        KeyboardInterrupt: the process has been asked to end.
    """
    from frontend.cli.track_reader import one_line
    from frontend.errors import DataError, FrontendError, ImageError
    from frontend.progress import Progress

    total = reader.total(every, limit)
    with Progress(total, "track", unit="frame") as progress, closing(reader.features(extractor, every, limit)) as found:
        for frame, extracted in found:
            if asked.is_set():
                raise KeyboardInterrupt
            if extracted is None:
                if total is not None and progress.done < 0.98 * total:
                    text = f"{PROG}: {reader.source.name} ends after {progress.done} of {total} frames"
                    progress.write(one_line(text))
                break
            if isinstance(extracted, ImageError):
                reader.skipped += 1
                files.skip()
                progress.write(one_line(f"{PROG}: skipped {extracted}"))
            elif isinstance(extracted, FrontendError):
                raise extracted
            else:
                if not files.statistics.frames:
                    for line in reader.doubts(tracker.camera, tracker.stereo):
                        progress.write(one_line(f"{PROG}: {line}"))
                if extracted.problem:
                    reader.alone += 1
                    progress.write(one_line(f"{PROG}: tracked without its right image: {extracted.problem}"))
                files.add(tracker.update(extracted.left, frame.stamp_ns, extracted.right), extracted.image)
                if (lost := files.news()) is not None:
                    progress.write(one_line(f"{PROG}: {lost}; goes on without the video"))
            progress.update()
    if not files.statistics.frames:
        raise DataError(f"{reader.source.name}: no frame of it can be read; expected one at least")
