"""Documents of the service as the dataclasses of ``frontend.types``.

Every function here takes a document as ``service.wire.decode`` gives it, and raises KeyError, TypeError or ValueError
where it is none; ``service.client.calls.result_of`` makes one fault of these. Arrays are copies, so that they can be
written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from frontend.types import (
    Essential,
    Features,
    Float32Array,
    Fundamental,
    Homography,
    Matches,
    MatchResult,
    Pose,
    Status,
    StereoPoints,
    TrackedFrame,
)
from service.client.faults import ServiceFault, fault_of_problem

Document = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class StoredFeatures(Features):
    """Features, and where the service keeps them.

    Attributes:
        feature_id: under which other calls may name them; None where they are not stored.
        expires_in_s: seconds until the service forgets them; None where they are not stored.
    """

    feature_id: str | None = None
    expires_in_s: float | None = None


@dataclass(frozen=True, eq=False)
class StoredMatch:
    """Stored features that an image was matched with.

    Attributes:
        feature_id: of the stored features, image 1 of the match.
        matches: see there.
        geometry: the model fitted to them.
    """

    feature_id: str
    matches: Matches
    geometry: Homography | Fundamental | Essential


@dataclass(frozen=True, eq=False)
class ManyMatches:
    """An image matched with many.

    Attributes:
        features: of the image, image 0 of every match.
        results: best first.
        timings_ms: milliseconds of each stage, by name.
    """

    features: Features
    results: list[StoredMatch]
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model that the service has loaded.

    Attributes:
        name: what requests call it.
        encoder: its specification.
        descriptor_dim: length of a descriptor.
        sigmas: whether it knows how precise its keypoints are.
        device: where it runs.
        default: whether it is meant where a request names none.
        matchers: that calls may name for it.
        version: of its weights, such as "0.4"; None where they are a file of the service's own, or it does not tell.
    """

    name: str
    encoder: str
    descriptor_dim: int
    sigmas: bool
    device: str
    default: bool
    matchers: tuple[str, ...] = ("mnn",)
    version: str | None = None


@dataclass(frozen=True)
class SequenceStatus:
    """A sequence of the service.

    Attributes:
        id: random, for other calls.
        camera_id: as it was given.
        model: that extracts its features.
        frames: that it has had.
        tracks: that it has seen.
        mean_track_length: frames of a track.
        last_stamp_ns: of the last frame, nanoseconds; None before the first.
        bytes: that its state takes.
        expires_in_s: seconds until it is forgotten, unless another frame comes.
    """

    id: str
    camera_id: str | None
    model: str
    frames: int
    tracks: int
    mean_track_length: float
    last_stamp_ns: int | None
    bytes: int
    expires_in_s: float


@dataclass(frozen=True, eq=False)
class SequenceFrame(TrackedFrame):
    """A tracked frame, as the service tells it.

    Attributes:
        sequence_id: of its sequence.
        camera_id: of its sequence.
        frame_id: as it was given with the frame.
        descriptors: (N, D) float32; None unless they were asked for.
        timings_ms: milliseconds of each stage, by name.
    """

    sequence_id: str = ""
    camera_id: str | None = None
    frame_id: str | None = None
    descriptors: Float32Array | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A frame of a stream that was dropped, because a newer one came while the device was busy.

    Attributes:
        stamp_ns: of the frame.
        frame_id: of the frame.
    """

    stamp_ns: int
    frame_id: str | None


@dataclass(frozen=True)
class Refused:
    """A frame of a stream that was refused; the stream goes on.

    Attributes:
        stamp_ns: of the frame; None where the service could not read it.
        frame_id: of the frame.
        fault: why; not raised.
    """

    stamp_ns: int | None
    frame_id: str | None
    fault: ServiceFault


Answer = SequenceFrame | Dropped | Refused


def _array(value: Any, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
    """A copy; -1 in the shape is any length. An empty list of JSON has lost its further axes."""
    array = np.array(value, dtype)
    if array.size == 0:
        array = array.reshape([max(0, length) for length in shape] if array.ndim != len(shape) else array.shape)
    if array.ndim != len(shape) or any(want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)):
        raise ValueError(f"array has shape {array.shape}, expected {shape}")
    return array


def _maybe(value: Any, dtype: DTypeLike, *shape: int) -> NDArray[Any] | None:
    return None if value is None else _array(value, dtype, *shape)


def _descriptors(value: Any) -> Float32Array | None:
    """Of any type they were sent in; int8 is 127 times their value."""
    if value is None:
        return None
    scale = 127.0 if isinstance(value, np.ndarray) and value.dtype == np.int8 else 1.0
    return np.asarray(_array(value, np.float32, -1, -1) / np.float32(scale), np.float32)


def _size(document: Document) -> tuple[int, int]:
    width, height = document["image_size"]
    return int(width), int(height)


def _timings(document: Document) -> dict[str, float]:
    return {str(name): float(value) for name, value in (document.get("timings_ms") or {}).items()}


def features(document: Document) -> StoredFeatures:
    """Of ``POST /v1/features`` and ``GET /v1/features/{id}``; descriptors that were not asked for are (N, 0)."""
    keypoints = _array(document["keypoints"], np.float32, -1, 2)
    descriptors = _descriptors(document["descriptors"])
    return StoredFeatures(
        keypoints=keypoints,
        scores=_array(document["scores"], np.float32, len(keypoints)),
        descriptors=np.zeros((len(keypoints), 0), np.float32) if descriptors is None else descriptors,
        image_size=_size(document),
        model=str(document["model"]),
        sigmas=_maybe(document["sigmas"], np.float32, len(keypoints)),
        feature_id=document.get("feature_id"),
        expires_in_s=document.get("expires_in_s"),
    )


def _matches(document: Document) -> Matches:
    matches = _array(document["matches"], np.int64, -1, 2)
    return Matches(matches, _array(document["match_scores"], np.float32, len(matches)))


def geometry(document: Document) -> Homography | Fundamental | Essential:
    """The model of the motion, which the name of its matrix tells."""
    inliers = _array(document["inliers"], np.bool_, -1)
    status = Status(document["status"])
    if "essential" in document:
        E, R = (_maybe(document[name], np.float64, 3, 3) for name in ("essential", "R"))
        return Essential(E, R, _maybe(document["t"], np.float64, 3), inliers, status)
    if "fundamental" in document:
        return Fundamental(_maybe(document["fundamental"], np.float64, 3, 3), inliers, status)
    return homography(document)


def homography(document: Document) -> Homography:
    """Of ``POST /v1/homography``."""
    return Homography(
        _maybe(document["homography"], np.float64, 3, 3),
        _array(document["inliers"], np.bool_, -1),
        Status(document["status"]),
    )


def match(document: Document) -> MatchResult:
    """Of ``POST /v1/match``."""
    return MatchResult(
        features(document["image0"]),
        features(document["image1"]),
        _matches(document),
        geometry(document),
        _timings(document),
    )


def many_matches(document: Document) -> ManyMatches:
    """Of ``POST /v1/match/many``."""
    results = [StoredMatch(str(found["feature_id"]), _matches(found), geometry(found)) for found in document["results"]]
    return ManyMatches(features(document["image"]), results, _timings(document))


def models(document: Document) -> list[Model]:
    """Of ``GET /v1/models``."""
    names = ("name", "encoder", "descriptor_dim", "sigmas", "device")
    return [
        Model(
            **{name: found[name] for name in names},
            default=found["name"] == document["default"],
            matchers=tuple(map(str, found.get("matchers", ["mnn"]))),  # older services do not tell
            version=found.get("version"),
        )
        for found in document["models"]
    ]


def sequence_status(document: Document) -> SequenceStatus:
    """Of ``GET /v1/sequences/{id}``."""
    return SequenceStatus(**{name: document[name] for name in SequenceStatus.__dataclass_fields__})


def sequence_statuses(document: Document) -> list[SequenceStatus]:
    """Of ``GET /v1/sequences``."""
    return [sequence_status(found) for found in document["sequences"]]


def frame(document: Document) -> SequenceFrame:
    """Of ``POST /v1/sequences/{id}/frames`` and of the stream."""
    keypoints = _array(document["keypoints"], np.float32, -1, 2)
    count = len(keypoints)
    pose, stereo = document["pose"], document["stereo"]
    return SequenceFrame(
        index=int(document["index"]),
        stamp_ns=int(document["stamp_ns"]),
        image_size=_size(document),
        track_ids=_array(document["track_ids"], np.int64, count),
        ages=_array(document["ages"], np.int64, count),
        keypoints=keypoints,
        scores=_array(document["scores"], np.float32, count),
        sigmas=_maybe(document["sigmas"], np.float32, count),
        normalised=_maybe(document["normalised"], np.float64, count, 2),
        velocities=_array(document["velocities"], np.float32, count, 2),
        new=_array(document["new"], np.bool_, count),
        lost=_array(document["lost"], np.int64, -1),
        keyframe=bool(document["keyframe"]),
        motion=str(document["motion"]),
        matrix=_maybe(document["matrix"], np.float64, 3, 3),
        inlier_share=float(document["inlier_share"]),
        pose=pose and Pose(_array(pose["R"], np.float64, 3, 3), _array(pose["t"], np.float64, 3)),
        stereo=stereo and _stereo(stereo),
        sequence_id=str(document["sequence_id"]),
        camera_id=document["camera_id"],
        frame_id=document["frame_id"],
        descriptors=_descriptors(document["descriptors"]),
        timings_ms=_timings(document),
    )


def _stereo(document: Document) -> StereoPoints:
    rows = _array(document["rows"], np.int64, -1)
    keypoints = _array(document["keypoints"], np.float32, len(rows), 2)
    return StereoPoints(rows, keypoints, _maybe(document["points"], np.float64, len(rows), 3))


def answer(document: Document) -> Answer:
    """Of the stream: a tracked frame, or what became of it."""
    if document.get("dropped"):
        return Dropped(int(document["stamp_ns"]), document["frame_id"])
    if "problem" in document:
        return Refused(document.get("stamp_ns"), document.get("frame_id"), fault_of_problem(document["problem"]))
    return frame(document)
