"""What ``superpoint track`` says at its end: a line, and JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from frontend.terminal import emit

if TYPE_CHECKING:
    from frontend.cli.track_outputs import TrackOutputs
    from frontend.cli.track_reader import FrameReader
    from frontend.extractor import SuperPoint


@dataclass(frozen=True)
class TrackReport:
    """A sequence that has been tracked, or a part of it.

    Attributes:
        source: as it was given.
        reader: of its frames.
        extractor: of their features.
        files: that were written.
        names: of these; without a video that was lost.
        seconds: from the first frame to the last.
        placed: whether poses were asked for.
        stereo: whether there was a right image.
        ended: "finished", "interrupted", or why it could not go on.
    """

    source: str
    reader: FrameReader
    extractor: SuperPoint
    files: TrackOutputs
    names: list[str]
    seconds: float
    placed: bool
    stereo: bool
    ended: str

    def line(self) -> str:
        """A summary."""
        counts, reader = self.files.statistics, self.reader
        width, height = reader.size or (0, 0)
        parts = [
            f"tracked {counts.frames} frames of {width} x {height} at {self._rate:.1f} frames/s: {counts.tracks} "
            f"tracks, median length {counts.median_length():g} ({counts.median_length(2):g} of those seen twice), "
            f"{counts.keyframes} keyframes, {counts.motion_share:.0%} of frames with a motion model",
            f"stamps by {reader.source.stamps}",
        ]
        if reader.skipped:
            parts.append(f"{reader.skipped} skipped as unreadable")
        if reader.alone:
            parts.append(f"{reader.alone} without a right image")
        if self.placed:
            lost = "" if self.files.lost is None else f", lost at frame {self.files.lost}"
            parts.append(f"{self.files.poses} poses{lost}")
        if self.names:
            parts.append(", ".join(self.names))
        return "; ".join(parts)

    def document(self) -> dict[str, Any]:
        """The same and more, of types that JSON has."""
        counts, reader, extractor = self.files.statistics, self.reader, self.extractor
        return {
            "source": self.source,
            "stamps": reader.source.stamps,
            "ended": self.ended,
            "outputs": self.names,
            "video_failure": self.files.video_failure,
            "model": extractor.name,
            "device": str(extractor.device),
            "runtime": extractor.runtime,
            "precision": extractor.precision,
            "image_size": list(reader.size or (0, 0)),
            "frames": counts.frames,
            "skipped": reader.skipped,
            "without_right": reader.alone if self.stereo else None,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self._rate, 3),
            "keypoints": counts.keypoints,
            "stereo_points": counts.stereo_points if self.stereo else None,
            "tracks": counts.tracks,
            "mean_track_length": round(counts.mean_length, 3),
            "median_track_length": counts.median_length(),
            "median_track_length_seen_twice": counts.median_length(2),
            "keyframes": counts.keyframes,
            "motions": dict(sorted(counts.motions.items())),
            "motion_share": round(counts.motion_share, 4),
            "poses": self.files.poses if self.placed else None,
            "lost_at_frame": self.files.lost,
        }

    def write(self, human: TextIO, json_name: str | None) -> None:
        """Print the summary, and write the JSON where it is wanted.

        Args:
            human: where the line goes.
            json_name: of the file; "-" for stdout.

        Raises:
            OSError: it cannot be written.
        """
        from frontend.atomic import atomic_write

        emit(human, self.line() + "\n")
        if json_name is None:
            return
        text = json.dumps(self.document(), indent=1, allow_nan=False) + "\n"
        if json_name == "-":
            emit(sys.stdout, text)
        else:
            atomic_write(json_name, text)

    @property
    def _rate(self) -> float:
        return self.files.statistics.frames / max(self.seconds, 1e-9)
