"""A ROS 2 node: images in, tracks out, computed by a service that may be another machine.

python -m service.ros2_node --ros-args -p server_url:=http://gpu-box:8000 -r image:=/cam0/image_raw \
    -r camera_info:=/cam0/camera_info -r tracks:=/feature_tracker/feature

It subscribes to ``image`` (sensor_msgs/Image) and ``camera_info`` (sensor_msgs/CameraInfo, of the image that is not
rectified; nothing is sent before one has come), and publishes ``tracks``, with stamp and frame id of the image. Tracks
are sensor_msgs/PointCloud, not PointCloud2: that is what the back-ends of VINS-Mono and VINS-Fusion subscribe to, and a
few hundred points gain nothing from the newer type.

Only the newest image waits to be sent, and the service itself drops the oldest, so that tracks are never late by more
than a frame. A lost connection is opened again; if the service has forgotten the sequence meanwhile (it was restarted,
or the sequence expired), or stamps jump back (a bag plays again), another one is opened, and track ids go on.

rclpy is not on PyPI, only in a ROS 2 installation, which the tests do not need: they run this node with stand-ins for
rclpy's node, and with classes that have the field names of the messages; their clouds are checked against the message
definitions of ROS 2.

Parameters:
    server_url: of the service, http://127.0.0.1:8000.
    api_key: that of the environment variable SUPERPOINT_API_KEY, so that it need not be in a launch file.
    image_topic, camera_info_topic, tracks_topic: names, image, camera_info and tracks.
    camera_id: which the service shows for the sequence.
    model, max_keypoints: of the service; its defaults where "" and 0.
    white: value of white in mono16, such as 4095 for a camera of 12 bits; 0: of each image by its own values, so that
        frames may differ in brightness.
    max_rate_hz: images that come faster are left out; 0 sends all.
    jpeg_quality: 1 to 100; 0 sends PNG, which loses nothing but is larger.
    min_age: frames in which a track has been seen before it is published, 2 as in VINS.
    mask: path of an image, of the images' size: keypoints lie where it is not black. "": anywhere.
    layout: whose channels a cloud has, vins_mono or vins_fusion, see :data:`service.ros2_conversion.LAYOUTS`.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from frontend.camera import Camera
from frontend.errors import ConfigError, FrontendError, ImageError
from frontend.masks import read_mask
from frontend.types import TrackedFrame
from service.client import (
    Client,
    Deadline,
    Dropped,
    Refused,
    Sequence,
    SequenceFrame,
    SequenceLost,
    ServiceFault,
    Stream,
    Unavailable,
)
from service.client.images import encoded_mask
from service.ros2_conversion import (
    LAYOUTS,
    MessageTypes,
    NormalisedVelocities,
    camera_of,
    cloud_of,
    image_size_of,
    pixels_of,
    stamp_of,
)

_PARAMETERS: dict[str, Any] = {
    "server_url": "http://127.0.0.1:8000",
    "api_key": "",
    "image_topic": "image",
    "camera_info_topic": "camera_info",
    "tracks_topic": "tracks",
    "camera_id": "",
    "model": "",
    "max_keypoints": 0,
    "white": 0,
    "max_rate_hz": 0.0,
    "jpeg_quality": 0,
    "min_age": 2,
    "mask": "",
    "layout": "vins_mono",
}
_POLL_S = 0.2
_PAUSE_S = 1.0
_JUMP_NS = 1_000_000_000


class RatePolicy:
    """Which images are sent, by their stamps.

    Args:
        max_rate_hz: on average, at most; 0 for all.
    """

    def __init__(self, max_rate_hz: float) -> None:
        self._period_ns = round(1e9 / max_rate_hz) if max_rate_hz > 0 else 0
        self._due_ns: int | None = None

    def admits(self, stamp_ns: int) -> bool:
        """Whether an image is sent. One that is early by less than a tenth of the period is: cameras are not exact.

        Args:
            stamp_ns: later than the one before.
        """
        if self._due_ns is None:
            self._due_ns = stamp_ns
        if stamp_ns < self._due_ns - self._period_ns // 10:
            return False
        # from when it was due, not from when it came, so that the mean rate holds; but no credit for a pause
        paused = stamp_ns >= self._due_ns + self._period_ns
        self._due_ns = (stamp_ns if paused else self._due_ns) + self._period_ns
        return True


class Latest:
    """A place for one thing, between threads: what is put replaces what was not taken."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: Any = None

    def put(self, item: Any) -> None:
        """Put something that is not None."""
        with self._condition:
            self._item = item
            self._condition.notify()

    def take(self, timeout_s: float) -> Any:
        """What was put last; None where nothing is there in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._item is not None, timeout_s)
            item, self._item = self._item, None
            return item


class TrackNode:
    """What the node does; it works in a thread of its own until it is closed.

    Args:
        node: of rclpy.
        types: of the messages.
        qos: of the subscriptions.

    Raises:
        ConfigError: a parameter is none, such as a mask that cannot be read.
    """

    def __init__(self, node: Any, types: MessageTypes, qos: Any) -> None:
        self._settings = {name: node.declare_parameter(name, value).value for name, value in _PARAMETERS.items()}
        layout = self._settings["layout"]
        if layout not in LAYOUTS:
            raise ConfigError(f"layout is '{layout}'; expected one of: {', '.join(LAYOUTS)}")
        self._mask, self._mask_size = _mask_of(self._settings["mask"])
        self._log = node.get_logger()
        self._types = types
        self._images = Latest()
        self._camera: Camera | None = None
        self._image_size: tuple[int, int] | None = None  # that the camera is of
        self._refused: dict[str, str] = {}  # by what was refused: why
        self._rate = RatePolicy(self._settings["max_rate_hz"])
        self._last_ns: int | None = None
        self._epoch = 0  # counts what needs another sequence
        self._next_id = self._first_id = 0
        self._velocities = NormalisedVelocities()
        self._stopped = threading.Event()
        key = self._settings["api_key"] or os.environ.get("SUPERPOINT_API_KEY")
        quality = self._settings["jpeg_quality"] or None
        self._client = Client(self._settings["server_url"], api_key=key, quality=quality)
        self._publisher = node.create_publisher(types.PointCloud, self._settings["tracks_topic"], 10)
        node.create_subscription(types.CameraInfo, self._settings["camera_info_topic"], self.on_camera, qos)
        node.create_subscription(types.Image, self._settings["image_topic"], self.on_image, qos)
        self._worker = threading.Thread(target=self._work, name="superpoint-tracks")
        self._worker.start()

    def close(self) -> None:
        """End the thread and close the sequence."""
        self._stopped.set()
        self._worker.join()

    def on_camera(self, message: Any) -> None:
        """Take a CameraInfo; another calibration starts another sequence."""
        try:
            camera = camera_of(message)
        except FrontendError as error:
            self._refuse("CameraInfo", str(error))
            return
        known, size = self._camera, image_size_of(message)
        if known is None or not known.same_as(camera) or self._image_size != size:
            self._camera, self._image_size = camera, size
            self._epoch += 1

    def on_image(self, message: Any) -> None:
        """Take an image."""
        given = (int(message.width), int(message.height))
        # K, and the mask, would be of other pixels
        of = {"its CameraInfo says": self._image_size, f"the mask '{self._settings['mask']}' is": self._mask_size}
        for source, expected in of.items():
            if expected is not None and expected != given:
                sizes = [f"{width} x {height}" for width, height in (given, expected)]
                self._refuse("image", f"image is {sizes[0]}; expected {sizes[1]}, as {source}")
                return
        if self._camera is None and "CameraInfo" not in self._refused:
            self._refuse(
                "image", f"no CameraInfo has come on '{self._settings['camera_info_topic']}': images wait for one"
            )
        stamp_ns = stamp_of(message)
        if self._last_ns is not None and stamp_ns <= self._last_ns:
            if stamp_ns > self._last_ns - _JUMP_NS:
                return  # late or twice
            self._log.warning(f"stamps jump back by {(self._last_ns - stamp_ns) * 1e-9:.1f} s: another sequence")
            self._rate = RatePolicy(self._settings["max_rate_hz"])
            self._epoch += 1
        self._last_ns = stamp_ns
        if self._rate.admits(stamp_ns):
            self._images.put((self._epoch, message))

    def _refuse(self, what: str, reason: str) -> None:
        # a camera repeats itself; the log need not
        if reason != self._refused.get(what):
            self._log.error(reason)
            self._refused[what] = reason

    def _work(self) -> None:
        settings = self._settings
        with self._client as client:
            while not self._stopped.is_set():
                epoch, camera = self._epoch, self._camera
                if camera is None:
                    self._stopped.wait(_POLL_S)
                    continue
                opening = client.sequence(
                    mask=self._mask,
                    camera_id=settings["camera_id"] or None,
                    camera=camera,
                    model=settings["model"] or None,
                    max_keypoints=settings["max_keypoints"] or None,
                    white=settings["white"] or None,
                )
                try:
                    with opening as sequence:
                        self._log.info(f"sequence {sequence.id} of {settings['server_url']}")
                        self._first_id, self._velocities = self._next_id, NormalisedVelocities()
                        self._follow(sequence, epoch)
                except SequenceLost:
                    self._log.warning("the service has forgotten the sequence: another one")
                except ServiceFault as fault:
                    self._wait_after(fault)

    def _wait_after(self, fault: ServiceFault) -> None:
        self._log.warning(f"{fault}; trying again")
        self._stopped.wait(_PAUSE_S)

    def _wanted(self, epoch: int) -> bool:
        return not self._stopped.is_set() and self._epoch == epoch

    def _follow(self, sequence: Sequence, epoch: int) -> None:
        """Stream into a sequence, over as many connections as it takes."""
        while self._wanted(epoch):
            try:
                with sequence.stream() as stream:
                    self._stream(stream, epoch)
            except Unavailable as fault:  # the sequence may still be there  # noqa: PERF203
                self._wait_after(fault)

    def _stream(self, stream: Stream, epoch: int) -> None:
        ended: list[ServiceFault] = []
        done = threading.Event()
        receiver = threading.Thread(target=self._receive, args=(stream, done, ended), name="superpoint-answers")
        receiver.start()
        try:
            while self._wanted(epoch) and not ended:
                taken = self._images.take(_POLL_S)
                if taken is not None and taken[0] == epoch:
                    self._send(stream, taken[1])
        finally:
            done.set()
            receiver.join()
        if ended:
            raise ended[0]

    def _send(self, stream: Stream, message: Any) -> None:
        try:
            stream.send(pixels_of(message), stamp_of(message), frame_id=message.header.frame_id)
        except FrontendError as error:
            self._refuse("image", str(error))

    def _receive(self, stream: Stream, done: threading.Event, ended: list[ServiceFault]) -> None:
        """Publish what comes, in a thread; a fault is left in ``ended``."""
        while not done.is_set():
            try:
                answer = stream.receive(_POLL_S)
            except Deadline:
                continue
            except ServiceFault as fault:
                ended.append(fault)
                return
            if isinstance(answer, SequenceFrame):
                self._publish(answer, answer.frame_id or "")
            elif isinstance(answer, Refused) and isinstance(answer.fault, SequenceLost):
                ended.append(answer.fault)
                return
            elif isinstance(answer, Refused):
                self._refuse("frame", str(answer.fault))
            elif isinstance(answer, Dropped):
                self._log.debug(f"frame of {answer.stamp_ns} ns was dropped: the service is busy")

    def _publish(self, frame: TrackedFrame, frame_id: str) -> None:
        velocities = self._velocities.update(frame)
        first_id = self._first_id
        chosen = {name: self._settings[name] for name in ("min_age", "layout")}
        cloud = cloud_of(frame, frame_id, velocities, self._types, first_id=first_id, **chosen)
        self._next_id = max(self._next_id, first_id + int(frame.track_ids.max(initial=-1)) + 1)
        self._publisher.publish(cloud)


def _mask_of(path: str) -> tuple[bytes | None, tuple[int, int] | None]:
    """A mask as it is sent, and its (width, height) in pixels; None of both where there is none.

    Raises:
        ConfigError: it cannot be read, or is black everywhere.
    """
    if not path:
        return None, None
    try:
        mask = read_mask(Path(path))
    except ImageError as error:
        raise ConfigError(f"mask: {error}") from None
    return encoded_mask(mask), (mask.shape[1], mask.shape[0])


def main(args: list[str] | None = None) -> int:
    """Run the node until ROS shuts down.

    Args:
        args: of the command line; ROS takes its own.

    Returns:
        The exit status: 2 where there is no ROS 2 here.
    """
    try:
        import rclpy
        from geometry_msgs.msg import Point32
        from rclpy.executors import ExternalShutdownException
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo, ChannelFloat32, Image, PointCloud
    except ImportError as error:
        print(f"ros2_node: {error}; expected a sourced ROS 2 installation", file=sys.stderr)
        return 2
    rclpy.init(args=args)
    node = rclpy.create_node("superpoint_frontend")
    types = MessageTypes(Image, CameraInfo, PointCloud, ChannelFloat32, Point32)
    try:
        tracks = TrackNode(node, types, qos_profile_sensor_data)
    except ConfigError as error:
        print(f"ros2_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        tracks.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
