"""What the client sends and reads, without a service: images, cameras, documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import msgpack
import numpy as np
import pytest
from documents import features_document, frame_document

from frontend.camera import Camera
from frontend.errors import ConfigError, ImageError
from frontend.tracking import TrackerConfig
from frontend.types import Essential, Features, Fundamental, Homography, Status
from service.client import Dropped, Refused, SequenceLost, StoredFeatures, calls, results, sequence_calls
from service.client.calls import Context
from service.client.cameras import camera_document, camera_query
from service.client.images import encoded
from service.wire import JSON, MSGPACK, NPZ, decode, encode

K = np.array([[458.654, 0, 367.215], [0, 457.296, 248.375], [0, 0, 1.0]])
DISTORTION = (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)
CONTEXT = Context()


def over(document: dict[str, Any], kind: str) -> dict[str, Any]:
    """As it comes out at the other end of the wire."""
    return decode(encode(document, kind), kind)


def check_fields(found: Any, document: dict[str, Any], types: dict[str, type]) -> None:
    for name, kind in types.items():
        array = getattr(found, name)
        assert array.dtype == kind, name
        assert array.flags.writeable, name
        np.testing.assert_array_equal(array, document[name], err_msg=name)


@pytest.mark.parametrize("kind", [JSON, MSGPACK, NPZ])
def test_features_come_as_they_were_sent(kind: str) -> None:
    document = features_document()
    found = results.features(over(document, kind))
    check_fields(found, document, dict.fromkeys(("keypoints", "scores", "sigmas", "descriptors"), np.float32))
    assert isinstance(found, Features)
    assert (found.model, found.image_size, found.feature_id, found.expires_in_s) == ("edge", (64, 48), "abc", 60.0)


def test_descriptors_are_float32_however_they_were_sent() -> None:
    exact = features_document()["descriptors"]
    half = results.features(over(features_document(descriptors=exact.astype(np.float16)), MSGPACK)).descriptors
    small = np.rint(exact * 127).astype(np.int8)
    eighth = results.features(over(features_document(descriptors=small), MSGPACK)).descriptors
    assert half.dtype == eighth.dtype == np.float32
    np.testing.assert_allclose(half, exact, atol=1e-3)
    np.testing.assert_allclose(eighth, exact, atol=0.5 / 127)
    none = results.features(over(features_document(descriptors=None, sigmas=None), MSGPACK))
    assert none.descriptors.shape == (2, 0)
    assert none.sigmas is None


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_an_image_without_keypoints_is_a_result(kind: str) -> None:
    empty = np.zeros(0, np.float32)
    shapes = {"keypoints": (0, 2), "descriptors": (0, 256)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    found = results.features(over(features_document(**arrays, scores=empty, sigmas=empty), kind))
    assert found.keypoints.shape == (0, 2)
    assert len(found) == len(found.descriptors) == 0


@pytest.mark.parametrize("kind", [JSON, MSGPACK, NPZ])
def test_frames_come_as_they_were_sent(kind: str) -> None:
    document = frame_document()
    found = results.answer(over(document, kind))
    assert isinstance(found, results.SequenceFrame)
    integers = dict.fromkeys(("track_ids", "ages", "lost"), np.int64)
    floats = dict.fromkeys(("keypoints", "scores", "sigmas", "velocities", "descriptors"), np.float32)
    doubles = dict.fromkeys(("normalised", "matrix"), np.float64)
    check_fields(found, document, {**integers, **floats, **doubles, "new": np.bool_})
    check_fields(found.pose, document["pose"], {"R": np.float64, "t": np.float64})
    stereo = {"rows": np.int64, "keypoints": np.float32, "points": np.float64}
    check_fields(found.stereo, document["stereo"], stereo)
    plain = ("index", "stamp_ns", "keyframe", "motion", "inlier_share", "sequence_id", "camera_id", "frame_id")
    for name in (*plain, "timings_ms"):
        assert getattr(found, name) == document[name], name
    assert found.image_size == (64, 48)
    assert len({field.name for field in dataclasses.fields(found)} ^ set(document)) == 0


@pytest.mark.parametrize("kind", [JSON, MSGPACK, NPZ])
def test_points_beyond_the_distortion_s_inverse_are_not_numbers(kind: str) -> None:
    given = np.array(frame_document()["normalised"], np.float64)
    given[0] = np.nan
    found = results.frame(over(frame_document(normalised=given), kind))
    np.testing.assert_array_equal(found.normalised, given)


def test_a_frame_may_lack_what_needs_a_camera() -> None:
    missing = dict.fromkeys(("sigmas", "normalised", "matrix", "pose", "stereo", "descriptors", "camera_id"))
    found = results.frame(over(frame_document(**missing), MSGPACK))
    assert all(getattr(found, name) is None for name in missing)
    pair = {**frame_document()["stereo"], "points": None}
    found = results.frame(over(frame_document(stereo=pair), MSGPACK))
    assert found.stereo is not None
    assert found.stereo.points is None


def test_a_stream_tells_what_became_of_a_frame() -> None:
    assert results.answer({"stamp_ns": 5, "frame_id": "a", "dropped": True}) == Dropped(5, "a")
    problem = {"status": 404, "code": "sequence_not_found", "detail": "gone", "request_id": "r"}
    found = results.answer({"stamp_ns": 6, "frame_id": None, "problem": problem})
    assert isinstance(found, Refused)
    assert (found.stamp_ns, found.frame_id) == (6, None)
    assert isinstance(found.fault, SequenceLost)
    assert found.fault.detail == "gone"


@pytest.mark.parametrize(
    ("name", "kind"), [("homography", Homography), ("fundamental", Fundamental), ("essential", Essential)]
)
@pytest.mark.parametrize("there", [True, False])
def test_the_geometry_is_of_the_kind_that_was_asked_for(name: str, kind: type, there: bool) -> None:
    matrix = np.arange(9.0).reshape(3, 3) if there else None
    rigid = {"R": np.eye(3) * 2 if there else None, "t": np.arange(3.0) if there else None}
    document = {
        "image0": features_document(),
        "image1": features_document(model="other"),
        "matches": np.array([[0, 1], [1, 0]]),
        "match_scores": np.array([0.9, 0.8], np.float32),
        "inliers": np.array([True, False]),
        "status": "ok" if there else "no_model",
        name: matrix,
        **(rigid if name == "essential" else {}),
        "timings_ms": {"total": 3.0},
    }
    found = results.match(over(document, MSGPACK))
    assert type(found.geometry) is kind
    assert found.geometry.status is (Status.OK if there else Status.NO_MODEL)
    assert found.geometry.num_inliers == 1
    np.testing.assert_array_equal(found.geometry.matrix, matrix)
    if isinstance(found.geometry, Essential):
        np.testing.assert_array_equal(found.geometry.R, rigid["R"])
        np.testing.assert_array_equal(found.geometry.t, rigid["t"])
    check_fields(found.matches, document, {"matches": np.int64, "match_scores": np.float32})
    assert (found.features0.model, found.features1.model) == ("edge", "other")
    entry = {**{key: document[key] for key in document if "image" not in key}, "feature_id": "b"}
    many = results.many_matches(over({"image": features_document(), "results": [entry], "timings_ms": {}}, MSGPACK))
    assert [one.feature_id for one in many.results] == ["b"]
    assert type(many.results[0].geometry) is kind
    np.testing.assert_array_equal(many.results[0].matches.matches, document["matches"])


@pytest.mark.parametrize(
    "changes", [{"scores": np.zeros(3, np.float32)}, {"keypoints": np.zeros((2, 3), np.float32)}, {"image_size": [3]}]
)
def test_documents_of_wrong_shapes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        results.features(over(features_document(**changes), MSGPACK))


def test_pixels_become_an_image_without_loss(make_scene: Any) -> None:
    scene = make_scene(48, 64)
    alpha = np.dstack([scene, np.full((48, 64), 9, np.uint8)])
    deep = (scene[:, :, 0].astype(np.uint16) * 257).astype(">u2")
    for pixels, expected in [(scene, scene), (alpha, scene), (scene[:, ::-1], scene[:, ::-1]), (deep, deep)]:
        found = cv2.imdecode(np.frombuffer(encoded(pixels), np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
        np.testing.assert_array_equal(found, expected)
    small, large = (encoded(scene, quality) for quality in (30, 95))
    assert small[:2] == large[:2] == b"\xff\xd8"
    assert len(small) < len(large)


def test_images_are_bytes_paths_or_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"whatever it is")
    assert encoded(b"bytes") == b"bytes"
    assert encoded(tmp_path / "a.jpg") == b"whatever it is"
    wrong: Any
    for wrong, part in [
        (b"", "empty"),
        (tmp_path / "b.jpg", "b.jpg: cannot be read"),
        ("a.jpg", "is a str; expected bytes, a pathlib.Path"),
        (np.zeros((4, 4), np.float32), "float32; expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
    ]:
        with pytest.raises(ImageError, match=part):
            encoded(wrong)
    with pytest.raises(ImageError, match="uint16 and the quality 90"):
        encoded(np.zeros((4, 4), np.uint16), 90)
    with pytest.raises(ConfigError, match="quality is 101"):
        encoded(np.zeros((4, 4), np.uint8), 101)


def test_cameras_lose_nothing() -> None:
    numbers = [float(text) for text in camera_query(Camera(K, DISTORTION)).split(",")]
    assert numbers == [K[0, 0], K[1, 1], K[0, 2], K[1, 2], *DISTORTION]
    assert camera_query(K.tolist()) == "458.654,457.296,367.215,248.375"
    expected = {"K": K.tolist(), "distortion": list(DISTORTION)}
    assert camera_document(Camera(K, DISTORTION)) == camera_document(K, DISTORTION) == expected
    text = ",".join(str(number) for number in numbers)
    assert camera_document(text) == expected
    assert [float(number) for number in camera_query(text).split(",")] == numbers
    fisheye = Camera(K, (0.1, -0.2, 0.3, 0.0), "fisheye")
    assert camera_document(camera_query(fisheye)) == camera_document(fisheye)
    assert Camera.parse(camera_query(fisheye)).same_as(fisheye)
    assert camera_document(fisheye)["model"] == "fisheye"
    skewed = K.copy()
    skewed[0, 1] = 2
    wrong: Any
    for wrong, part in [
        (skewed, "skew of 2.0"),
        (np.eye(2), r"shape \(2, 2\)"),
        ("left", "camera is 'left'; expected fx,fy,cx,cy"),
    ]:
        with pytest.raises(ConfigError, match=part):
            camera_query(wrong)
    with pytest.raises(ConfigError, match="beside a camera that has its own"):
        camera_document(Camera(K, DISTORTION), DISTORTION)


def test_only_what_is_given_is_asked_for() -> None:
    assert calls.features(CONTEXT, b"a").query == (("descriptors", "float32"),)
    call = calls.features(CONTEXT, b"a", store=True, collection="map", max_keypoints=5, detection_threshold=0.1)
    assert dict(call.query) == {
        "max_keypoints": "5",
        "detection_threshold": "0.1",
        "descriptors": "float32",
        "store": "true",
        "collection": "map",
    }
    assert not call.repeatable
    call = calls.get_features(CONTEXT, "../models")
    assert call.path == "/v1/features/..%2Fmodels"


def test_few_matches_may_be_enough_for_a_homography() -> None:
    assert "min_inliers" not in dict(calls.homography(CONTEXT, [], []).query)
    assert dict(calls.homography(CONTEXT, [], [], min_inliers=5).query)["min_inliers"] == "5"


def test_stored_features_stand_for_images() -> None:
    stored = StoredFeatures(
        *[np.zeros(shape, np.float32) for shape in ((0, 2), (0,), (0, 0))], (8, 8), feature_id="id-1_x"
    )
    call = calls.match(CONTEXT, stored, b"image", camera0=K)
    assert dict(call.files) == {"image1": b"image"}
    assert ("features0", "id-1_x") in call.query
    assert "features1" not in dict(call.query)
    assert dict(calls.match(CONTEXT, "id0", "id1").files) == {}
    many = calls.match_many(CONTEXT, "id0", against=["id1", stored], limit=3)
    assert [pair for pair in many.query if pair[0] in ("features", "against", "limit")] == [
        ("features", "id0"),
        ("against", "id1"),
        ("against", "id-1_x"),
        ("limit", "3"),
    ]
    assert many.request().get("content") is None
    assert calls.match_many(CONTEXT, b"image").request()["content"] == b"image"
    with pytest.raises(ConfigError, match=r"'a\.jpg' is no feature id"):
        calls.match(CONTEXT, "a.jpg", b"")
    with pytest.raises(ConfigError, match="features are not stored"):
        calls.match(CONTEXT, dataclasses.replace(stored, feature_id=None), b"image")
    with pytest.raises(ConfigError, match="against has no features"):
        calls.match_many(CONTEXT, b"image", against=[])


def test_a_sequence_is_described_in_one_body() -> None:
    @dataclasses.dataclass
    class Rig:
        right: Camera
        R: np.ndarray
        t: np.ndarray

    rig = Rig(Camera(K), np.eye(3), np.array([-0.11, 0, 0]))
    policy = TrackerConfig(max_gap=1)
    call = sequence_calls.open_sequence(
        CONTEXT, camera_id="left", camera=K, distortion=DISTORTION, stereo=rig, policy=policy, ttl_s=5
    )
    assert decode(call.body, JSON) == {
        "camera_id": "left",
        "camera": {"K": K.tolist(), "distortion": list(DISTORTION)},
        "stereo": {"camera": {"K": K.tolist(), "distortion": []}, "R": np.eye(3).tolist(), "t": [-0.11, 0, 0]},
        "policy": dataclasses.asdict(policy),
        "ttl_s": 5,
    }
    assert decode(sequence_calls.open_sequence(CONTEXT).body, JSON) == {}
    assert decode(sequence_calls.open_sequence(CONTEXT, policy={"max_gap": 3}).body, JSON)["policy"] == {"max_gap": 3}
    text = sequence_calls.open_sequence(CONTEXT, camera="458.654,457.296,367.215,248.375")
    assert decode(text.body, JSON) == {"camera": {"K": K.tolist(), "distortion": []}}
    with pytest.raises(ConfigError, match="distortion is given without a camera"):
        sequence_calls.open_sequence(CONTEXT, distortion=DISTORTION)
    rig.t = np.eye(3)
    with pytest.raises(ConfigError, match=r"t \(3, 3\)"):
        sequence_calls.open_sequence(CONTEXT, camera=K, stereo=rig)


def test_frames_name_their_sequence() -> None:
    context = sequence_calls.within(CONTEXT, "a/b")
    call = sequence_calls.track(context, b"left", np.int64(5), frame_id="f")  # type: ignore[arg-type]
    assert (call.path, call.body, call.repeatable) == ("/v1/sequences/a%2Fb/frames", b"left", False)
    assert dict(call.query) == {"stamp_ns": "5", "frame_id": "f", "descriptors": "none"}
    assert dict(sequence_calls.track(context, b"left", 5, right=b"right").files) == {
        "image": b"left",
        "right": b"right",
    }
    wrong: Any
    for wrong in (1341847980.72, np.float64(5), "5"):
        for call_of in (sequence_calls.track, sequence_calls.stream_message):
            arguments: Any = (
                (context, b"left", wrong) if call_of is sequence_calls.track else (context, b"left", wrong, "f", None)
            )
            with pytest.raises(ConfigError, match=rf"^stamp_ns is {wrong}; expected nanoseconds, a whole number$"):
                call_of(*arguments)
    message = sequence_calls.stream_message(context, b"left", np.int64(5), "f", None)  # type: ignore[arg-type]
    assert msgpack.unpackb(message) == {"stamp_ns": 5, "frame_id": "f", "image": b"left", "right": None}
