"""ROS 2 messages as arrays and cameras, and tracked frames as messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from documents import frame_document
from ros2_messages import SECOND, TYPES, K, image, info
from ros2_standins import STORE, as_defined

from frontend.errors import ConfigError, ImageError
from service.client import results
from service.ros2_conversion import NormalisedVelocities, camera_of, cloud_of, image_size_of, pixels_of


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
        (info(k=[0.0] * 9), "not calibrated"),
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
