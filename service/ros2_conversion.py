"""ROS 2 messages as arrays, and tracked frames as messages.

Nothing of ROS is imported here: messages are read and made by their field names.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontend.camera import Camera
from frontend.errors import ConfigError, ImageError
from frontend.types import Float32Array, Float64Array, IntArray, TrackedFrame

# bytes of a channel, channels, and which of them are gray or blue, green, red
_ENCODINGS: dict[str, tuple[int, int, list[int]]] = {
    "mono8": (1, 1, [0]),
    "mono16": (2, 1, [0]),
    "bgr8": (1, 3, [0, 1, 2]),
    "rgb8": (1, 3, [2, 1, 0]),
    "bgra8": (1, 4, [0, 1, 2]),
    "rgba8": (1, 4, [2, 1, 0]),
    # OpenCV's names of types, which some drivers send
    "8UC1": (1, 1, [0]),
    "8UC3": (1, 3, [0, 1, 2]),
    "8UC4": (1, 4, [0, 1, 2]),
    "16UC1": (2, 1, [0]),
}
_DISTORTIONS = {
    "plumb_bob": (0, 4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
    "fisheye": (4,),
    # a rectified or simulated camera
    "none": (0,),
    "": (0,),
}
_FISHEYE = ("equidistant", "fisheye")
_EXACT_IDS = 1 << 24
"""Channels are float32, in which integers are exact below 2^24; ids start again there."""
LAYOUTS = {
    "vins_mono": ("id", "u", "v", "velocity_x", "velocity_y"),
    # beyond five channels VINS-Fusion reads ground truth from the seventh to the ninth
    "vins_fusion": ("id", "camera_id", "u", "v", "velocity_x", "velocity_y", "gt_x", "gt_y", "gt_z"),
}
"""Names of a cloud's channels, by whose ``feature_callback`` reads them; it reads them by their order."""


@dataclass(frozen=True)
class MessageTypes:
    """Classes of ROS 2 messages, or of what stands in for them.

    Attributes:
        Image: of sensor_msgs.
        CameraInfo: of sensor_msgs.
        PointCloud: of sensor_msgs.
        ChannelFloat32: of sensor_msgs.
        Point32: of geometry_msgs.
    """

    Image: Any
    CameraInfo: Any
    PointCloud: Any
    ChannelFloat32: Any
    Point32: Any


def stamp_of(message: Any) -> int:
    """The stamp of a message with a header, nanoseconds."""
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def pixels_of(message: Any) -> NDArray[Any]:
    """The pixels of a sensor_msgs/Image.

    Args:
        message: mono8, mono16, bgr8, rgb8, bgra8, rgba8, or OpenCV's names of their types; rows may be padded, and
            mono16 may be big-endian.

    Returns:
        (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR; alpha is dropped.

    Raises:
        ImageError: another encoding, or fewer bytes than the header states.
    """
    if message.encoding not in _ENCODINGS:
        raise ImageError(f"encoding is '{message.encoding}'; expected one of: {', '.join(_ENCODINGS)}")
    item, channels, order = _ENCODINGS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * channels * item
    data = np.frombuffer(message.data, np.uint8)
    # the last row may come without its padding
    if not height or not row or step < row or len(data) < (height - 1) * step + row:
        raise ImageError(
            f"image of {width} x {height} {message.encoding} has {len(data)} bytes in steps of {step}; "
            f"expected steps of at least {row}, and as many as rows"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    packed = np.ascontiguousarray(rows)
    if item == 2:
        return packed.view(">u2" if message.is_bigendian else "<u2").astype(np.uint16)
    pixels = packed.reshape(height, width, channels)[:, :, order]
    return np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels)


def camera_of(message: Any) -> Camera:
    """The camera of a sensor_msgs/CameraInfo.

    Args:
        message: of an image that is not rectified, with the model plumb_bob, rational_polynomial or equidistant (some
            drivers say fisheye), whose parameters are in OpenCV's order; or without distortion. Where the image is a
            region of the sensor, or binned, so is the camera, as image_geometry has it.

    Raises:
        ConfigError: another model, or it is not calibrated (K[0, 0] is 0).
    """
    model, distortion = message.distortion_model, tuple(float(value) for value in message.d)
    if model not in _DISTORTIONS:
        raise ConfigError(f"distortion model is '{model}'; expected one of: {', '.join(_DISTORTIONS)}")
    if len(distortion) not in _DISTORTIONS[model]:
        raise ConfigError(f"{model} has {len(distortion)} parameters; expected one of {_DISTORTIONS[model]}")
    matrix = np.array(message.k, np.float64).reshape(3, 3)
    matrix[:2, 2] -= message.roi.x_offset, message.roi.y_offset
    matrix[:2] /= [[message.binning_x or 1], [message.binning_y or 1]]  # 0 is none, too
    return Camera(matrix, distortion, "fisheye" if model in _FISHEYE else "opencv")


def image_size_of(message: Any) -> tuple[int, int] | None:
    """(width, height) of the images that a sensor_msgs/CameraInfo is of, pixels; None where it does not say."""
    region = message.roi
    width, height = (region.width, region.height) if region.width and region.height else (message.width, message.height)
    if not width or not height:
        return None
    return int(width) // int(message.binning_x or 1), int(height) // int(message.binning_y or 1)


class NormalisedVelocities:
    """Velocities of tracks in normalised coordinates, which VINS expects, from where they were last seen."""

    def __init__(self) -> None:
        self._ids: IntArray = np.zeros(0, np.int64)
        self._points: Float64Array = np.zeros((0, 2))
        self._stamps: IntArray = np.zeros(0, np.int64)

    def update(self, frame: TrackedFrame) -> Float64Array:
        """Velocities of a frame's tracks.

        Args:
            frame: with normalised points.

        Returns:
            (N, 2) float64, 1/s; 0 for tracks that are new, or had no normalised point.

        Raises:
            ConfigError: the frame is of a sequence without a camera.
        """
        points = _normalised(frame)
        velocities = np.zeros_like(points)
        _, now, before = np.intersect1d(frame.track_ids, self._ids, assume_unique=True, return_indices=True)
        seconds = (frame.stamp_ns - self._stamps[before]) * 1e-9
        velocities[now] = np.nan_to_num((points[now] - self._points[before]) / seconds[:, None])
        kept = ~np.isin(self._ids, np.concatenate([frame.track_ids, frame.lost]))
        self._ids = np.concatenate([self._ids[kept], frame.track_ids])
        self._points = np.concatenate([self._points[kept], points])
        self._stamps = np.concatenate([self._stamps[kept], np.full(len(points), frame.stamp_ns)])
        return velocities


def _normalised(frame: TrackedFrame) -> Float64Array:
    if frame.normalised is None:
        raise ConfigError("frame has no normalised points; expected one of a sequence with a camera")
    return frame.normalised


def cloud_of(
    frame: TrackedFrame,
    frame_id: str,
    velocities: NDArray[Any],
    types: MessageTypes,
    *,
    min_age: int = 1,
    first_id: int = 0,
    layout: str = "vins_mono",
) -> Any:
    """A tracked frame as sensor_msgs/PointCloud, laid out as VINS-Mono or VINS-Fusion takes it.

    Points are (x, y, 1), undistorted and normalised; the channels are the id, u and v (pixels), the velocity of x and y
    (1/s), and 0 for what is not known: the camera, of which there is one, and true positions.

    Args:
        frame: with normalised points.
        frame_id: of the header.
        velocities: (N, 2), see :class:`NormalisedVelocities`.
        types: of the messages.
        min_age: tracks seen in fewer frames are left out, and those without a normalised point.
        first_id: added to track ids, so that those of another sequence differ.
        layout: a name of ``LAYOUTS``.

    Raises:
        ConfigError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is '{layout}'; expected one of: {', '.join(LAYOUTS)}")
    points = _normalised(frame)
    rows = (frame.ages >= min_age) & np.isfinite(points).all(axis=1)
    ids = (frame.track_ids[rows] + first_id) % _EXACT_IDS
    u, v = frame.keypoints[rows].T
    known = {"id": ids, "u": u, "v": v, "velocity_x": velocities[rows, 0], "velocity_y": velocities[rows, 1]}
    columns: list[Float32Array] = [
        np.asarray(known.get(name, np.zeros(len(ids))), np.float32) for name in LAYOUTS[layout]
    ]
    cloud = types.PointCloud()
    cloud.header.stamp.sec, cloud.header.stamp.nanosec = divmod(frame.stamp_ns, 1_000_000_000)
    cloud.header.frame_id = frame_id
    cloud.points = [types.Point32(x=x, y=y, z=1.0) for x, y in points[rows].tolist()]
    cloud.channels = [
        types.ChannelFloat32(name=name, values=array("f", column.tobytes()))
        for name, column in zip(LAYOUTS[layout], columns, strict=True)
    ]
    return cloud
