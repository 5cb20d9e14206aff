"""Wire formats: what goes in comes out, in few bytes, and garbage is refused."""

from __future__ import annotations

import io
import json

import msgpack
import numpy as np
import pytest

from service.wire import FORMATS, JSON, MSGPACK, NPZ, decode, encode, negotiate

RESULT = {
    "model": "superpoint-edge",
    "count": np.int64(3),
    "none": None,
    "size": [640, 480],
    "results": [{"id": "a", "matches": np.array([[0, 1]])}, {"id": "b", "matches": np.zeros((0, 2), np.int64)}],
    "features": {
        "keypoints": np.array([[1.1, 2.25], [3.3, 4.4]], np.float32),
        "descriptors": np.arange(8, dtype=np.float16).reshape(2, 4) / 3,
        "valid": np.array([True, False]),
        "big": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "empty": np.zeros((0, 2), np.float32),
    },
}


def plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("kind", [MSGPACK, NPZ])
def test_binary_formats_keep_every_bit(kind: str) -> None:
    found = decode(encode(RESULT, kind), kind)
    assert plain(found) == plain(RESULT)
    for name, array in RESULT["features"].items():  # type: ignore[attr-defined]
        assert found["features"][name].dtype == array.dtype.newbyteorder("=")
        assert found["features"][name].shape == array.shape


def test_json_has_the_shortest_decimals_of_the_arrays_precision() -> None:
    text = encode(RESULT, JSON).decode()
    assert '"keypoints":[[1.1,2.25],[3.3,4.4]]' in text
    found = decode(text.encode(), JSON)
    back = np.array(found["features"]["descriptors"], np.float16)
    np.testing.assert_array_equal(back, RESULT["features"]["descriptors"])  # type: ignore[index]


def test_the_binary_formats_are_what_they_say() -> None:
    packed = msgpack.unpackb(encode(RESULT, MSGPACK))
    big = packed["features"]["big"]
    assert (big["dtype"], big["shape"]) == ("<i4", [3, 2])
    assert big["data"] == np.arange(6, dtype="<i4").reshape(2, 3).T.tobytes()
    with np.load(io.BytesIO(encode(RESULT, NPZ))) as file:
        assert json.loads(file["meta"].tobytes())["model"] == "superpoint-edge"
        np.testing.assert_array_equal(file["features/big"], [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize("kind", [MSGPACK, NPZ])
def test_binary_is_under_1_05_of_the_arrays_bytes(kind: str) -> None:
    arrays = {
        "keypoints": np.random.default_rng(0).random((1024, 2), np.float32),
        "scores": np.zeros(1024, np.float32),
        "sigmas": np.zeros(1024, np.float32),
        "descriptors": np.zeros((1024, 128), np.float16),
    }
    raw = sum(array.nbytes for array in arrays.values())
    assert raw < len(encode({"model": "superpoint-edge", **arrays}, kind)) < 1.05 * raw


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("body", [b"", b"\x93\x01", b"PK\x03\x04 cut", b"[1, 2]", b"\xff" * 40])
def test_garbage_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(ValueError, match="body is not"):
        decode(body, kind)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (MSGPACK, MSGPACK),
        ("text/html, application/x-npz;q=0.5, application/msgpack;q=0.4", NPZ),
        ("application/json;q=0.1, application/msgpack", MSGPACK),
        ("application/msgpack;q=0", None),
        ("application/msgpack;q=nonsense", None),
        ("text/html", None),
        ("*/*, application/json;q=0", MSGPACK),
        ("application/json;q=0, application/msgpack;q=0, application/*", NPZ),
        # the closest range speaks for a format, and not the best
        ("application/json;q=0, application/msgpack;q=0.1, */*;q=0.5", NPZ),
        ("*/*;q=0.9, application/*;q=0.5, application/msgpack;q=0.6", MSGPACK),
        ("*/*;q=0, application/x-npz", NPZ),
        ("application/msgpack, */*", MSGPACK),
        ("application/x-npz, application/msgpack, application/json", NPZ),
    ],
)
def test_the_accept_header_chooses(accept: str | None, expected: str | None) -> None:
    assert negotiate(accept) == expected
