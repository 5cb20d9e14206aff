"""The ROS 2 node, without ROS 2: rclpy and its message classes are stood in for, see ros2_standins.py."""

from __future__ import annotations

import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from documents import frame_document
from ros2_standins import STORE, Node, as_defined, message_class
from running import running
from stub_sequences import StubSequences

from frontend.errors import ConfigError, ImageError
from service.client import results
from service.ros2_conversion import (
    MessageTypes,
    NormalisedVelocities,
    camera_of,
    cloud_of,
    image_size_of,
    pixels_of,
    stamp_of,
)
from service.ros2_node import Latest, RatePolicy, TrackNode, main

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


def test_a_region_of_the_sensor_and_binning_move_the_camera() -> None:
    message = info()
    message.roi.x_offset, message.roi.y_offset, message.binning_x, message.binning_y = 4, 6, 2, 3
    found = camera_of(message).K
    np.testing.assert_allclose(found, [[150, 0, 6], [0, 310 / 3, 2], [0, 0, 1]])
    message.binning_x = message.binning_y = 0  # not stated
    np.testing.assert_allclose(camera_of(message).K, [[300, 0, 12], [0, 310, 6], [0, 0, 1]])


def test_the_size_of_images_follows_from_region_and_binning() -> None:
    message = info()
    message.width, message.height = 640, 480
    assert image_size_of(message) == (640, 480)
    message.binning_x, message.binning_y = 2, 4
    assert image_size_of(message) == (320, 120)
    message.roi.width, message.roi.height = 100, 80
    assert image_size_of(message) == (50, 20)
    message.width = message.roi.width = 0
    assert image_size_of(message) is None


@pytest.mark.parametrize(
    ("model", "count"), [("none", 0), ("", 0), ("rational_polynomial", 12), ("rational_polynomial", 14)]
)
def test_models_of_distortion_that_drivers_state(model: str, count: int) -> None:
    camera = camera_of(info(model, [0.001] * count))
    assert len(camera.distortion) == count
    assert np.isfinite(camera.normalise(np.array([[20.0, 10.0]]))).all()


@pytest.mark.parametrize(
    ("encoding", "same", "size"),
    [("8UC1", "mono8", 1), ("8UC3", "bgr8", 3), ("8UC4", "bgra8", 4), ("16UC1", "mono16", 2)],
)
def test_encodings_by_their_type(encoding: str, same: str, size: int) -> None:
    rows, width = [bytes(range(12 * y, 12 * y + 12)) for y in range(3)], 12 // size
    np.testing.assert_array_equal(pixels_of(image(encoding, rows, width)), pixels_of(image(same, rows, width)))


@pytest.mark.parametrize("encoding", ["mono8", "bgr8", "rgb8", "bgra8", "rgba8"])
@pytest.mark.parametrize("padding", [0, 3])
def test_pixels_are_gray_or_bgr(encoding: str, padding: int, rng: np.random.Generator) -> None:
    letters = "m" if encoding == "mono8" else encoding[:-1]
    values = rng.integers(0, 256, (5, 7, len(letters)), dtype=np.uint8)
    rows = [bytes(row.reshape(-1).tolist()) + b"\x63" * padding for row in values]
    found = pixels_of(image(encoding, rows, 7))
    wanted = "m" if encoding == "mono8" else "bgr"
    for y in range(5):
        for x in range(7):
            pixel = {letter: values[y, x, place] for place, letter in enumerate(letters)}
            assert np.atleast_1d(found[y, x]).tolist() == [pixel[letter] for letter in wanted]
    assert found.dtype == np.uint8
    assert found.ndim == (2 if wanted == "m" else 3)


@pytest.mark.parametrize("big", [False, True])
def test_mono16_has_an_order_of_bytes(big: bool) -> None:
    values = [[1, 256, 65535], [2, 3, 4096]]
    rows = [b"".join(value.to_bytes(2, "big" if big else "little") for value in row) + b"\0" for row in values]
    found = pixels_of(image("mono16", rows, 3, big))
    assert found.tolist() == values
    assert found.dtype == np.uint16


def test_the_last_row_may_lack_its_padding() -> None:
    message = image("mono8", [b"abc\0", b"def\0"], 3)
    message.data = message.data[:-1]
    assert pixels_of(message).tolist() == [list(b"abc"), list(b"def")]
    message.data = message.data[:-1]
    with pytest.raises(ImageError, match="image of 3 x 2 mono8 has 6 bytes in steps of 4"):
        pixels_of(message)
    message.step = 2
    with pytest.raises(ImageError, match="expected steps of at least 3"):
        pixels_of(message)
    with pytest.raises(ImageError, match="encoding is 'bayer_rggb8'; expected one of: mono8"):
        pixels_of(image("bayer_rggb8", [b"abc"], 3))
    with pytest.raises(ImageError, match="0 x 1"):
        pixels_of(image("mono8", [b"abc"], 0))


def test_cameras_have_models_of_opencv() -> None:
    camera = camera_of(info())
    assert camera.K.reshape(-1).tolist() == K
    assert camera.distortion == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert camera_of(info(d=[])).distortion == ()
    eight = [float(value) for value in range(8)]
    assert camera_of(info("rational_polynomial", eight)).distortion == tuple(eight)
    fisheye = camera_of(info("equidistant", [0.1, 0.2, 0.3, 0.4]))
    assert (fisheye.model, fisheye.distortion) == ("fisheye", (0.1, 0.2, 0.3, 0.4))
    for message, part in [
        (info("omnidirectional", [0.0] * 4), "'omnidirectional'; expected one of: plumb_bob, rational_polynomial"),
        (info("equidistant", [0.0] * 5), "equidistant has 5 parameters"),
        (info("rational_polynomial", [0.0] * 5), "rational_polynomial has 5 parameters"),
        (info(k=[0.0] * 9), "no positive focal lengths"),
    ]:
        with pytest.raises(ConfigError, match=part) as caught:
            camera_of(message)
        assert "\n" not in str(caught.value)


def frame(stamp_ns: int, tracks: dict[int, tuple[float, float]], lost: tuple[int, ...] = ()) -> Any:
    count = len(tracks)
    arrays = {
        "track_ids": np.array(list(tracks), np.int64),
        "ages": np.arange(1, count + 1),
        "keypoints": np.arange(2.0 * count, dtype=np.float32).reshape(count, 2),
        "scores": np.zeros(count, np.float32),
        "velocities": np.zeros((count, 2), np.float32),
        "new": np.zeros(count, bool),
        "lost": np.array(lost, np.int64),
        "normalised": np.array(list(tracks.values())).reshape(count, 2),
    }
    return results.frame(frame_document(**arrays, stamp_ns=stamp_ns, sigmas=None, descriptors=None, stereo=None))


def test_velocities_are_of_normalised_points_since_they_were_seen() -> None:
    velocities = NormalisedVelocities()
    assert velocities.update(frame(10 * SECOND, {3: (0.0, 0.0), 5: (0.1, 0.2)})).tolist() == [[0, 0], [0, 0]]
    found = velocities.update(frame(10 * SECOND + SECOND // 2, {7: (1, 1), 3: (0.1, -0.2)}))
    np.testing.assert_allclose(found, [[0, 0], [0.2, -0.4]])
    # 5 was not seen for one frame, 7 is lost
    found = velocities.update(frame(11 * SECOND, {5: (0.4, 0.2), 3: (0.1, -0.1)}, lost=(7,)))
    np.testing.assert_allclose(found, [[0.3, 0], [0, 0.2]], atol=1e-12)
    assert velocities.update(frame(12 * SECOND, {7: (5, 5)})).tolist() == [[0, 0]]
    assert velocities.update(frame(13 * SECOND, {})).shape == (0, 2)


def test_a_cloud_is_what_vins_takes() -> None:
    found = cloud_of(
        frame(1_403_636_579_763_555_584, {3: (0.25, -0.5), 4: (0.125, 2), (1 << 24) - 5: (1, 1)}),
        "cam0",
        np.array([[1, 2], [3, 4], [5, 6.0]]),
        TYPES,
        min_age=2,
        first_id=10,
    )
    # every field is of the type that the definition says
    data = STORE.serialize_cdr(as_defined(found), "sensor_msgs/msg/PointCloud")
    message = STORE.deserialize_cdr(data, "sensor_msgs/msg/PointCloud")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1403636579, 763555584)
    assert message.header.frame_id == "cam0"
    assert [(point.x, point.y, point.z) for point in message.points] == [(0.125, 2, 1), (1, 1, 1)]
    assert {channel.name: channel.values.tolist() for channel in message.channels} == {
        "id": [14, 5],
        "u": [2, 4],
        "v": [3, 5],
        "velocity_x": [3, 5],
        "velocity_y": [4, 6],
    }
    assert [channel.name for channel in message.channels] == ["id", "u", "v", "velocity_x", "velocity_y"]


def test_a_cloud_for_vins_fusion_has_what_it_reads_by_order() -> None:
    given = frame(SECOND, {3: (0.25, -0.5), 4: (0.125, 2)})
    found = cloud_of(given, "cam0", np.array([[1, 2], [3, 4.0]]), TYPES, layout="vins_fusion")
    channels = [list(channel.values) for channel in found.channels]
    # id, camera, u, v, velocity, and beyond the fifth channel three of ground truth
    assert channels == [[3, 4], [0, 0], *given.keypoints.T.tolist(), [1, 3], [2, 4], [0, 0], [0, 0], [0, 0]]
    with pytest.raises(ConfigError, match="layout is 'vins'; expected one of: vins_mono, vins_fusion"):
        cloud_of(given, "cam0", np.zeros((2, 2)), TYPES, layout="vins")


def test_a_sequence_without_a_camera_makes_no_cloud() -> None:
    bare = results.frame(frame_document(normalised=None))
    with pytest.raises(ConfigError, match="no normalised points"):
        NormalisedVelocities().update(bare)


def test_the_rate_holds_on_average() -> None:
    def sent(policy: RatePolicy, stamps: list[int]) -> list[int]:
        return [index for index, stamp in enumerate(stamps) if policy.admits(stamp)]

    at_30_hz = [round(index * SECOND / 30) for index in range(90)]
    assert len(sent(RatePolicy(0), at_30_hz)) == 90
    assert sent(RatePolicy(15), at_30_hz) == list(range(0, 90, 2))
    assert len(sent(RatePolicy(20), at_30_hz)) == pytest.approx(60, abs=1)
    jitter = np.random.default_rng(0).integers(-2_000_000, 2_000_000, 90)
    assert len(sent(RatePolicy(15), [int(a + b) for a, b in zip(at_30_hz, jitter, strict=True)])) == 45
    # a pause gives no credit for a burst
    burst = [5 * SECOND + index * SECOND // 100 for index in range(10)]
    assert sent(RatePolicy(10), [0, *burst]) == [0, 1, 10]


def test_only_the_latest_image_waits() -> None:
    latest = Latest()
    latest.put(1)
    latest.put(2)
    assert latest.take(0) == 2
    assert latest.take(0.01) is None
    timer = threading.Timer(0.1, latest.put, [3])
    began = time.monotonic()
    timer.start()
    assert latest.take(20) == 3
    assert 0.09 < time.monotonic() - began < 10
    timer.join()


class Running:
    """A node, with the stub of a service."""

    def __init__(self, stub: StubSequences, node: Node) -> None:
        self.stub = stub
        self.node = node
        self.tracks = TrackNode(node, TYPES, None)
        self.stamp_ns = 100 * SECOND

    def until(self, what: Callable[[], Any]) -> Any:
        limit = time.monotonic() + 20
        while not (found := what()):
            assert time.monotonic() < limit, (self.node.log, self.stub.frames)
            time.sleep(0.01)
        return found

    def show(self, step_ns: int = SECOND // 20) -> int:
        """An image; its stamp."""
        self.stamp_ns += step_ns
        self.node.subscriptions["image"](gray(self.stamp_ns))
        return self.stamp_ns

    def tracked(self) -> Any:
        """Show images until there is the cloud of the last one, with none on its way; that cloud."""

        def shown() -> Any:
            stamp, limit = self.show(), time.monotonic() + 1
            while time.monotonic() < limit:
                if self.node.published and stamp_of(self.node.published[-1][1]) == stamp:
                    return self.node.published[-1][1]
                time.sleep(0.005)
            return None

        return self.until(shown)


@pytest.fixture
def started() -> Iterator[Running]:
    stub = StubSequences(key="secret")
    with running(stub.app) as url:
        node = Node(server_url=url, api_key="secret", camera_id="front", min_age=1)
        found = Running(stub, node)
        try:
            yield found
        finally:
            found.tracks.close()
    assert not stub.alive


def test_images_go_in_and_tracks_come_out(started: Running) -> None:
    node, stub = started.node, started.stub
    assert node.types == {"image": Image, "camera_info": CameraInfo, "tracks": PointCloud}
    started.show()
    time.sleep(0.3)
    assert not stub.opened  # the camera is not known yet
    assert ("error", "no CameraInfo has come on 'camera_info': images wait for one") in node.log
    node.subscriptions["camera_info"](info())
    started.until(lambda: stub.connections)
    for count in (1, 2):
        stamp = started.show()
        started.until(lambda count=count: len(node.published) == count)
    topic, cloud = node.published[-1]
    assert topic == "tracks"
    assert (stamp_of(cloud), cloud.header.frame_id) == (stamp, "cam0")
    values = {channel.name: list(channel.values) for channel in cloud.channels}
    assert values["id"] == [0, 2]
    # the stub's track 0 moves by 1/s to the right
    np.testing.assert_allclose(values["velocity_x"], [1, 0], atol=1e-6)
    assert values["velocity_y"] == [0, 0]
    assert stub.opened[0]["camera_id"] == "front"
    assert stub.opened[0]["camera"] == {"K": np.reshape(K, (3, 3)).tolist(), "distortion": [0.1, 0.2, 0.3, 0.4, 0.5]}
    sent = cv2.imdecode(np.frombuffer(stub.frames[-1][3], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sent, pixels_of(gray(0)))


def test_a_lost_sequence_is_replaced_and_ids_go_on(started: Running) -> None:
    started.node.subscriptions["camera_info"](info())
    first = started.tracked()
    started.stub.alive.clear()
    second = started.tracked()
    assert len(started.stub.opened) == 2
    ids = [set(cloud.channels[0].values) for cloud in (first, second)]
    assert not ids[0] & ids[1]
    assert ("warning", "the service has forgotten the sequence: another one") in started.node.log


def test_a_lost_connection_is_opened_again(started: Running) -> None:
    started.node.subscriptions["camera_info"](info())
    started.tracked()
    started.stub.restarting = True
    started.until(lambda: started.show() and (time.sleep(0.05) or not started.stub.restarting))
    started.tracked()
    assert started.stub.connections == 2
    assert len(started.stub.opened) == 1
    assert any("1012 restarting" in text for _, text in started.node.log)


def test_another_calibration_or_a_jump_back_starts_another_sequence(started: Running) -> None:
    started.node.subscriptions["camera_info"](info())
    started.tracked()
    started.node.subscriptions["camera_info"](info())
    started.tracked()
    assert len(started.stub.opened) == 1
    started.node.subscriptions["camera_info"](info(d=[]))
    started.tracked()
    assert len(started.stub.opened) == 2
    started.show(-50 * SECOND)
    started.tracked()
    assert len(started.stub.opened) == 3
    count = len(started.stub.frames)
    started.show(-SECOND // 100)  # late, not a jump
    time.sleep(0.3)
    assert len(started.stub.frames) == count


def test_what_cannot_be_used_is_said_once(started: Running) -> None:
    node = started.node
    for _ in range(3):
        node.subscriptions["camera_info"](info("omnidirectional", [0.0] * 4))
    assert [level for level, text in node.log if "omnidirectional" in text] == ["error"]
    node.subscriptions["camera_info"](info())
    started.tracked()
    for step in (1, 2):
        message = image("bayer_rggb8", [b"abc"], 3, stamp_ns=started.stamp_ns + step * SECOND)
        node.subscriptions["image"](message)
        started.until(lambda: any("bayer" in text for _, text in node.log))
    started.stamp_ns += 3 * SECOND
    started.tracked()
    assert [level for level, text in node.log if "bayer" in text] == ["error"]


def test_a_camera_that_is_not_calibrated_is_said_once_and_images_say_nothing_of_it(started: Running) -> None:
    node = started.node
    for _ in range(5):
        node.subscriptions["camera_info"](info(k=[0.0] * 9))
        started.show()
    errors = [text for level, text in node.log if level == "error"]
    assert len(errors) == 1
    assert "is all zero, which means that it is not calibrated" in errors[0]


def test_images_of_another_size_than_their_camera_are_refused(started: Running) -> None:
    node, camera = started.node, info()
    camera.width, camera.height = 9, 9
    node.subscriptions["camera_info"](camera)
    for _ in range(3):
        started.show()
    time.sleep(0.2)
    assert not started.stub.frames
    errors = [text for level, text in node.log if level == "error"]
    assert len(errors) == 1
    assert errors[0].endswith("expected 9 x 9, as its CameraInfo says")
    # a camera of the images' size takes its place
    node.subscriptions["camera_info"](info())
    started.tracked()


def test_an_address_that_is_none_is_refused_before_anything_runs() -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError, match="gpu-box:8000"):
        TrackNode(Node(server_url="gpu-box:8000"), TYPES, None)
    assert threading.active_count() == before


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    return made


def test_it_runs_until_ros_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1

    node, calls = Node(), []

    def spin(_: Node) -> None:
        calls.append("spin")
        raise KeyboardInterrupt

    modules = [
        module("rclpy.qos", qos_profile_sensor_data="best effort"),
        module("rclpy.executors", ExternalShutdownException=type("ExternalShutdownException", (Exception,), {})),
        module("sensor_msgs"),
        module("geometry_msgs"),
        module("geometry_msgs.msg", Point32=Point32),
        module(
            "sensor_msgs.msg", Image=Image, CameraInfo=CameraInfo, PointCloud=PointCloud, ChannelFloat32=ChannelFloat32
        ),
        module(
            "rclpy",
            init=lambda args: calls.append(args),
            create_node=lambda name: node,
            spin=spin,
            try_shutdown=lambda: calls.append("shutdown"),
        ),
    ]
    for made in modules:
        monkeypatch.setitem(sys.modules, made.__name__, made)
    assert main(["--ros-args"]) == 0
    assert calls == [["--ros-args"], "spin", "shutdown"]
    assert node.destroyed
