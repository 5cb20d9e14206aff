"""Calls of sequences, and messages of their streams; see ``service.client.calls``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import msgpack
import numpy as np

from frontend.errors import ConfigError, whole_nanoseconds
from service.client import results
from service.client.calls import Call, Context, Encoding, nothing, pairs, v1, with_image
from service.client.cameras import Calibration, StereoLike, camera_document, stereo_document
from service.client.images import Image, encoded, encoded_mask
from service.client.results import SequenceFrame, SequenceStatus
from service.wire import JSON

Side = Literal["left", "right"]


class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def _plain(value: Any) -> Any:
    """A number of NumPy as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value of JSON; expected numbers, strings, lists and mappings")


def open_sequence(
    context: Context,
    *,
    mask: Image | None = None,
    right_mask: Image | None = None,
    camera_id: str | None = None,
    camera: Calibration | None = None,
    distortion: Sequence[float] = (),
    stereo: StereoLike | None = None,
    policy: Mapping[str, Any] | Dataclass | None = None,
    model: str | None = None,
    max_keypoints: int | None = None,
    detection_threshold: float | None = None,
    nms_radius: int | None = None,
    resize: int | None = None,
    white: int | None = None,
    ttl_s: float | None = None,
) -> Call[str]:
    """A sequence of frames of one camera, tracked by the service.

    Args:
        mask: of all frames, see :func:`set_mask`.
        right_mask: of their right images.
        camera_id: echoed with each frame.
        camera: a camera with K and distortion, K alone, or text as ``Camera.parse`` reads it, "fx,fy,cx,cy"; without
            one there are no normalised points and no pose.
        distortion: with K.
        stereo: the right camera and its place, for frames with a right image.
        policy: fields of ``frontend.tracking.TrackerConfig`` by name, or one of these.
        model: see :func:`features`, and the following.
        max_keypoints: of a frame.
        detection_threshold: see there.
        nms_radius: see there.
        resize: see there.
        white: see there.
        ttl_s: seconds without a frame after which the service forgets it.
    """
    if camera is None and len(distortion):
        raise ConfigError("distortion is given without a camera; expected K with it")
    settings: Any = policy
    fields = dataclasses.asdict(settings) if dataclasses.is_dataclass(policy) else settings
    document = {
        "camera_id": camera_id,
        "camera": None if camera is None else camera_document(camera, distortion),
        "stereo": None if stereo is None else stereo_document(stereo),
        "policy": None if fields is None else dict(fields),
        "model": model,
        "max_keypoints": max_keypoints,
        "detection_threshold": detection_threshold,
        "nms_radius": nms_radius,
        "resize": resize,
        "white": white,
        "ttl_s": ttl_s,
    }
    given = {name: value for name, value in document.items() if value is not None}
    body = json.dumps(given, allow_nan=False, default=_plain).encode()
    masks: dict[Side, Image | None] = {"left": mask, "right": right_mask}
    then = tuple(partial(_masked, context, side, image) for side, image in masks.items() if image is not None)
    return Call("POST", "/v1/sequences", _opened, body=body, content_type=JSON, then=then)


def _masked(context: Context, side: Side, mask: Image, sequence_id: str) -> Call[None]:
    return set_mask(within(context, sequence_id), mask, camera=side)


def _opened(document: Mapping[str, Any]) -> str:
    return str(document["id"])


def set_mask(context: Context, mask: Image | None, *, camera: Side = "left") -> Call[None]:
    """Say where keypoints of the sequence's frames may be, from the next one on: over streams, too.

    Args:
        mask: they lie where it is not black, an image of the frames' size; pixels may be bool. Anywhere where None.
        camera: whose images it is of, "left", the only one, too, or "right"; the other's mask stays.
    """
    path = v1("sequences", context.sequence_id, "mask")
    query = pairs(camera=None if camera == "left" else camera)
    if mask is None:
        return Call("DELETE", path, nothing, query, repeatable=True)
    body, kind = encoded_mask(mask), "application/octet-stream"
    return Call("PUT", path, nothing, query, body, kind, repeatable=True)


def sequences(_: Context) -> Call[list[SequenceStatus]]:
    """The sequences that are open."""
    return Call("GET", "/v1/sequences", results.sequence_statuses, repeatable=True)


def sequence_status(context: Context) -> Call[SequenceStatus]:
    """The sequence as the service sees it; SequenceLost where it is gone."""
    return Call("GET", v1("sequences", context.sequence_id), results.sequence_status, repeatable=True)


def close_sequence(context: Context) -> Call[None]:
    """Have the service forget the sequence."""
    return Call("DELETE", v1("sequences", context.sequence_id), nothing)


def track(
    context: Context,
    image: Image,
    stamp_ns: int,
    *,
    frame_id: str | None = None,
    right: Image | None = None,
    mask: Image | None = None,
    descriptors: Encoding = "none",
) -> Call[SequenceFrame]:
    """The tracks of the next frame.

    It is sent again only where the service cannot have seen it (no connection, 429, 503): a frame that is tracked twice
    is two frames. After another fault with ``maybe_processed`` send the next one.

    Args:
        image: of the camera, the left one of a pair.
        stamp_ns: nanoseconds, a whole number, later than the frame's before; OutOfOrder otherwise.
        frame_id: echoed.
        right: the right image of a pair.
        mask: of this frame's ``image`` alone, beside the sequence's; see :func:`set_mask`.
        descriptors: how they are sent.
    """
    path = v1("sequences", context.sequence_id, "frames")
    query = pairs(stamp_ns=whole_nanoseconds(stamp_ns, ConfigError), frame_id=frame_id, descriptors=descriptors)
    others = {} if right is None else {"right": encoded(right, context.quality)}
    return with_image(Call("POST", path, results.frame, query), encoded(image, context.quality), mask, **others)


def within(context: Context, sequence_id: str) -> Context:
    """The context of calls of a sequence.

    Args:
        context: of the client.
        sequence_id: that the service gave.
    """
    return dataclasses.replace(context, sequence_id=sequence_id)


def stream_path(context: Context, descriptors: Encoding) -> str:
    """The WebSocket of a sequence."""
    return v1("sequences", context.sequence_id, "stream") + f"?format=msgpack&descriptors={descriptors}"


def stream_message(context: Context, image: Image, stamp_ns: int, frame_id: str | None, right: Image | None) -> bytes:
    """A frame as a message of the stream; see :func:`track`."""
    message = {
        "stamp_ns": whole_nanoseconds(stamp_ns, ConfigError),
        "frame_id": frame_id,
        "image": encoded(image, context.quality),
        "right": None if right is None else encoded(right, context.quality),
    }
    return bytes(msgpack.packb(message))
