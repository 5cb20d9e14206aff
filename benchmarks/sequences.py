"""Recorded sequences through the service and in process, and beside OpenCV's KLT tracker.

A sequence is a folder of images: their names are stamps in seconds, or, with ``--fps``, their numbers or names give the
order. Other files are passed over. Each sequence is played
    - in process: :class:`frontend.tracking.Tracker` on features of :class:`frontend.SuperPoint`;
    - over HTTP, at camera rate (``--rate``, frames a second), through ``service.client.Client``;
    - over the WebSocket, at camera rate, at most two frames without their answer.
The service runs in a process of its own on this machine. The tracks of both must be those of the tracker in process:
the same ids, ages and model of the motion, keypoints to 0.01 px; the exit code tells.

KLT is goodFeaturesToTrack (as many corners, quality 0.01, 7 px apart), followed by calcOpticalFlowPyrLK (21 px, 4
levels) with a forward-backward check of 1 px, new corners where tracks leave room. Both trackers are judged in the same
way: F by USAC_MAGSAC at ``--threshold`` px over the tracks that two frames share; its inliers are the inlier share.
SuperPoint's tracks have passed the tracker's own verification before, as KLT's have the forward-backward check: the
share of raw matches that passed is given, too. A track's length is the number of frames that it was seen in; the mean
is over all tracks, and over those that were seen twice or more.

    python benchmarks/sequences.py DIR... [--fps 30] [--rate 10] [--camera fx,fy,cx,cy] [--json results.json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from frontend import SuperPoint, read_image
from frontend.camera import Camera
from frontend.extractor import ExtractorConfig
from frontend.geometry import estimate_fundamental
from frontend.tracking import Tracker, TrackerConfig
from frontend.types import TrackedFrame
from service.client import Client, Deadline, SequenceFrame

Frames = list[tuple[Path, int]]


def frames_of(folder: Path, fps: float | None) -> Frames:
    """Images and their stamps in nanoseconds."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    numbered = [(float(path.stem), path) for path in paths if re.fullmatch(r"\d+(\.\d+)?", path.stem)]
    if fps is None or len(numbered) > 1:
        ordered = sorted(numbered)
    else:
        ordered = [(float(n), path) for n, path in enumerate(sorted(paths))]
    if len(ordered) < 2:
        raise SystemExit(f"{folder}: {len(ordered)} images with a stamp as name; expected two or more, or --fps")
    if fps is not None:
        return [(path, int(n / fps * 1e9)) for n, (_, path) in enumerate(ordered)]
    return [(path, int(stamp * 1e9)) for stamp, path in ordered]


@contextmanager
def service(size: tuple[int, int], device: str) -> Iterator[str]:
    """The URL of a service of its own process, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "SUPERPOINT_WARMUP": f"{size[0]}x{size[1]}"}
    command = [sys.executable, "-m", "frontend.cli.main", "serve", "--port", str(port), "--device", device]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(300)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def in_process(frames: Frames, extractor: SuperPoint, camera: Camera | None) -> tuple[list[TrackedFrame], float]:
    """Tracked frames, and the median of milliseconds that a frame took."""
    tracker, found, times = Tracker(camera=camera), [], []
    for path, stamp in frames:
        image = read_image(path)
        began = time.perf_counter()
        found.append(tracker.update(extractor.extract(image), stamp))
        times.append(time.perf_counter() - began)
    return found, float(np.median(times) * 1e3)


def over_http(
    frames: Frames, url: str, settings: dict[str, Any], rate: float
) -> tuple[list[SequenceFrame], list[float]]:
    """Tracked frames, and the milliseconds until each answer."""
    found, times = [], []
    with Client(url) as client, client.sequence(**settings) as sequence:
        began = time.perf_counter()
        for n, (path, stamp) in enumerate(frames):
            time.sleep(max(began + n / rate - time.perf_counter(), 0))
            sent = time.perf_counter()
            found.append(sequence.track(path, stamp))
            times.append((time.perf_counter() - sent) * 1e3)
    return found, times


def over_websocket(
    frames: Frames, url: str, settings: dict[str, Any], rate: float
) -> tuple[list[SequenceFrame], list[float]]:
    """The same; a frame is held back while two have no answer, so that none is dropped."""
    found: list[SequenceFrame] = []
    sent: list[float] = []
    times: list[float] = []

    def receive(stream: Any, timeout_s: float | None = None) -> None:
        try:
            answer = stream.receive(timeout_s)
        except Deadline:
            if timeout_s is None:
                raise
            return
        times.append((time.perf_counter() - sent[len(times)]) * 1e3)
        if not isinstance(answer, SequenceFrame):
            raise SystemExit(f"a frame was not tracked: {answer}")
        found.append(answer)

    with Client(url) as client, client.sequence(**settings) as sequence, sequence.stream() as stream:
        began = time.perf_counter()
        for n, (path, stamp) in enumerate(frames):
            # answers are taken as they come until the next frame is due
            while (wait := began + n / rate - time.perf_counter()) > 0:
                if stream.pending:
                    receive(stream, wait)
                else:
                    time.sleep(wait)
            while stream.pending >= 2:
                receive(stream)
            sent.append(time.perf_counter())
            stream.send(path, stamp)
        while stream.pending:
            receive(stream)
    return found, times


def differences(got: list[SequenceFrame], expected: list[TrackedFrame]) -> list[str]:
    """What differs, in words."""
    found: list[str] = []
    for one, other in zip(got, expected, strict=True):
        names = ("track_ids", "ages", "new", "lost")
        unequal = [name for name in names if not np.array_equal(getattr(one, name), getattr(other, name))]
        found += [f"frame {other.index}: {name}" for name in unequal]
        if one.motion != other.motion or one.keyframe != other.keyframe:
            found.append(f"frame {other.index}: motion or keyframe")
        if (
            one.keypoints.shape != other.keypoints.shape
            or np.abs(one.keypoints - other.keypoints).max(initial=0) > 0.01
        ):
            found.append(f"frame {other.index}: keypoints")
    return found


class Tally:
    """Lengths of tracks and inlier shares, of any tracker.

    Args:
        threshold: of the verification, pixels.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._lengths: Counter[int] = Counter()
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self.shares: list[float] = []
        self.shared: list[int] = []

    def add(self, ids: np.ndarray, points: np.ndarray) -> None:
        """A frame: (N,) ids of tracks and their (N, 2) pixels."""
        self._lengths.update(ids.tolist())
        if self._before is not None:
            _, i, j = np.intersect1d(self._before[0], ids, return_indices=True)
            model = estimate_fundamental(self._before[1][i], points[j], threshold=self._threshold)
            self.shares.append(float(model.inliers.mean()) if len(i) else 0.0)
            self.shared.append(len(i))
        self._before = ids, points

    def row(self) -> dict[str, float]:
        """The figures."""
        lengths = np.array(list(self._lengths.values()))
        again = lengths[lengths > 1]
        return {
            "tracks": len(lengths),
            "mean_length": float(lengths.mean()),
            "mean_length_seen_twice": float(again.mean()) if len(again) else 0.0,
            "seen_twice": float((lengths > 1).mean()),
            "shared_with_frame_before": float(np.mean(self.shared)),
            "inlier_share": float(np.mean(self.shares)),
        }


def klt(frames: Frames, count: int, threshold: float) -> dict[str, float]:
    """OpenCV's tracker, see above."""
    tally, next_id = Tally(threshold), 0
    before: np.ndarray | None = None
    ids, points = np.zeros(0, np.int64), np.zeros((0, 2), np.float32)
    for path, _ in frames:
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if before is not None and len(points):
            settings = {"winSize": (21, 21), "maxLevel": 3}
            moved, ok, _ = cv2.calcOpticalFlowPyrLK(before, gray, points[:, None], None, **settings)
            back, back_ok, _ = cv2.calcOpticalFlowPyrLK(gray, before, moved, None, **settings)
            moved, back = moved.reshape(-1, 2), back.reshape(-1, 2)
            kept = (ok.ravel() > 0) & (back_ok.ravel() > 0) & (np.linalg.norm(back - points, axis=1) < 1)
            kept &= ((moved >= 0) & (moved <= np.array(gray.shape[::-1]) - 1)).all(axis=1)
            ids, points = ids[kept], moved[kept]
        room = np.full(gray.shape, 255, np.uint8)
        for x, y in np.rint(points).astype(int).tolist():
            cv2.circle(room, (x, y), 7, 0, -1)
        if len(points) < count:
            fresh = cv2.goodFeaturesToTrack(gray, count - len(points), 0.01, 7, mask=room)
            if fresh is not None:
                fresh = fresh.reshape(-1, 2)
                ids = np.concatenate([ids, np.arange(next_id, next_id + len(fresh))])
                points, next_id = np.concatenate([points, fresh]).astype(np.float32), next_id + len(fresh)
        tally.add(ids, points.astype(np.float64))
        before = gray
    return tally.row()


def superpoint(found: list[TrackedFrame], threshold: float) -> dict[str, float]:
    """The figures of tracked frames, and the share of matches that the tracker's own verification kept."""
    tally = Tally(threshold)
    for frame in found:
        tally.add(frame.track_ids, frame.keypoints.astype(np.float64))
    own = [frame.inlier_share for frame in found[1:]]
    return {**tally.row(), "inlier_share_of_matches": float(np.mean(own))}


def main(arguments: list[str] | None = None) -> int:
    """Play each sequence and print a table; 1 where tracks differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    parser.add_argument("--fps", type=float, help="of images whose names are no stamps in seconds")
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second that the camera sends (10)")
    parser.add_argument("--camera", type=Camera.parse, help="fx,fy,cx,cy[,k1,k2,p1,p2[,k3...]], for poses")
    parser.add_argument("--max-keypoints", type=int, default=1024)
    parser.add_argument("--threshold", type=float, default=TrackerConfig.threshold, help="of inliers, pixels (3)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(arguments)
    extractor = SuperPoint.from_pretrained(device=args.device)
    extractor = extractor.configured(ExtractorConfig(max_keypoints=args.max_keypoints))
    settings = {"camera": args.camera, "max_keypoints": args.max_keypoints}
    results, different = [], False
    for folder in args.folders:
        frames = frames_of(folder, args.fps)
        height, width = read_image(frames[0][0]).shape[:2]
        expected, frame_ms = in_process(frames, extractor, args.camera)
        result: dict[str, Any] = {"sequence": folder.name, "frames": len(frames), "in_process_ms": frame_ms}
        with service((width, height), args.device) as url:
            for name, play in (("http", over_http), ("websocket", over_websocket)):
                got, times = play(frames, url, settings, args.rate)
                wrong = differences(got, expected)
                different |= bool(wrong)
                result[name] = {
                    "same_tracks": not wrong,
                    "differences": wrong[:5],
                    "p50_ms": float(np.percentile(times, 50)),
                    "p99_ms": float(np.percentile(times, 99)),
                }
        result["superpoint"] = superpoint(expected, args.threshold)
        result["klt"] = klt(frames, args.max_keypoints, args.threshold)
        results.append(result)
        _show(result)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(different)


def _show(result: dict[str, Any]) -> None:
    print(f"{result['sequence']}: {result['frames']} frames, {result['in_process_ms']:.0f} ms a frame in process")
    for name in ("http", "websocket"):
        one = result[name]
        same = "same tracks as in process" if one["same_tracks"] else f"OTHER TRACKS: {'; '.join(one['differences'])}"
        print(f"  {name:<10} {same}; p50 {one['p50_ms']:.0f} ms, p99 {one['p99_ms']:.0f} ms")
    for name in ("superpoint", "klt"):
        one = result[name]
        own = one.get("inlier_share_of_matches")
        print(
            f"  {name:<10} {one['tracks']} tracks, mean length {one['mean_length']:.2f} "
            f"({one['mean_length_seen_twice']:.2f} of the {one['seen_twice']:.0%} seen twice), "
            f"{one['shared_with_frame_before']:.0f} shared with the frame before, F inliers {one['inlier_share']:.1%}"
            + ("" if own is None else f", {own:.1%} of raw matches fit the motion")
        )


if __name__ == "__main__":
    sys.exit(main())
