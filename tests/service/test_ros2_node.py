"""The ROS 2 node, without ROS 2: rclpy and its message classes are stood in for, see ros2_standins.py."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from ros2_messages import (
    SECOND,
    TYPES,
    CameraInfo,
    ChannelFloat32,
    Image,
    K,
    Point32,
    PointCloud,
    gray,
    image,
    info,
)
from ros2_standins import Node
from running import running
from stub_sequences import StubSequences

from frontend.errors import ConfigError
from service.ros2_conversion import pixels_of, stamp_of
from service.ros2_node import Latest, RatePolicy, TrackNode, main


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


@contextmanager
def starting(**parameters: Any) -> Iterator[Running]:
    stub = StubSequences(key="secret")
    with running(stub.app) as url:
        node = Node(server_url=url, api_key="secret", camera_id="front", min_age=1, **parameters)
        found = Running(stub, node)
        try:
            yield found
        finally:
            found.tracks.close()
    assert not stub.alive


@pytest.fixture
def started() -> Iterator[Running]:
    with starting() as found:
        yield found


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


def write_mask(path: Path, width: int = 32, height: int = 24) -> Path:
    """Gray in its left half."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 9
    assert cv2.imwrite(str(path), mask)
    return path


def test_every_sequence_has_the_mask(tmp_path: Path) -> None:
    with starting(mask=str(write_mask(tmp_path / "mask.png"))) as started:
        started.node.subscriptions["camera_info"](info())
        started.tracked()
        started.stub.alive.clear()
        started.tracked()
        assert list(started.stub.masks) == ["s0", "s1"]
    for data in started.stub.masks.values():
        sent = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert sent.shape == (24, 32)
        assert (sent[:, :16] == 255).all()
        assert not sent[:, 16:].any()


def test_images_of_another_size_than_the_mask_are_refused(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "mask.png", 30, 20)
    with starting(mask=str(path)) as started:
        for _ in range(3):
            started.show()
        started.node.subscriptions["camera_info"](info())
        for _ in range(3):
            started.show()
        time.sleep(0.2)
        assert not started.stub.frames
        errors = [text for level, text in started.node.log if level == "error"]
        assert errors == [f"image is 32 x 24; expected 30 x 20, as the mask '{path}' is"]


def test_a_mask_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros((24, 32), np.uint8))
    before = threading.active_count()
    for path, reason in ((black, "is black everywhere"), (tmp_path / "nowhere.png", r"nowhere\.png")):
        with pytest.raises(ConfigError, match=f"mask: .*{reason}") as raised:
            TrackNode(Node(mask=str(path)), TYPES, None)
        assert "\n" not in str(raised.value)
    assert threading.active_count() == before


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

    node = Node(mask="nowhere.png")
    capsys.readouterr()
    assert main([]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("ros2_node: mask: nowhere.png: ")
    assert printed.count("\n") == 1
    assert calls[3:] == [[], "shutdown"]
