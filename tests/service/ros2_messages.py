"""Messages of ROS 2 for the tests of the node and of its conversions."""

from __future__ import annotations

from array import array
from typing import Any

from ros2_standins import message_class

from service.ros2_conversion import MessageTypes

Image, CameraInfo, PointCloud, ChannelFloat32 = (
    message_class(f"sensor_msgs/msg/{name}") for name in ("Image", "CameraInfo", "PointCloud", "ChannelFloat32")
)
Point32 = message_class("geometry_msgs/msg/Point32")
TYPES = MessageTypes(Image, CameraInfo, PointCloud, ChannelFloat32, Point32)
SECOND = 1_000_000_000
K = [300.0, 0, 16, 0, 310, 12, 0, 0, 1]


def image(encoding: str, rows: list[bytes], width: int, big: bool = False, stamp_ns: int = 0) -> Any:
    """A message; its data is an array, as in rclpy."""
    data = array("B", b"".join(rows))
    message = Image(
        encoding=encoding, height=len(rows), width=width, step=len(rows[0]), is_bigendian=int(big), data=data
    )
    message.header.frame_id = "cam0"
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, SECOND)
    return message


def gray(stamp_ns: int) -> Any:
    return image("mono8", [bytes(range(row, row + 32)) for row in range(24)], 32, stamp_ns=stamp_ns)


def info(model: str = "plumb_bob", d: list[float] | None = None, k: list[float] = K) -> Any:
    return CameraInfo(distortion_model=model, d=[0.1, 0.2, 0.3, 0.4, 0.5] if d is None else d, k=k)
