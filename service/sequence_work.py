"""What the routes of sequences and their streams share: opening, tracking, and documents."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from frontend.camera import Camera
from frontend.errors import FrontendError, SequenceError
from frontend.stereo import StereoRig
from frontend.tracking import Tracker, TrackerConfig
from frontend.types import Features, TrackedFrame
from service.admission import Slot
from service.core import Core
from service.errors import BadImageError, BadRequestError
from service.masks import Encoded, ImageName, Mask, mask_name
from service.routes.common import Encoding, encoded_descriptors
from service.sequence_documents import CameraDocument, OpenSequence
from service.sessions import Session, Turn


@dataclass(frozen=True)
class Given:
    """A frame as a client sends it.

    Attributes:
        stamp_ns: nanoseconds.
        frame_id: echoed.
        images: (name, bytes) of the image and, of a stereo pair, of the right one.
        masks: of the images by their names, beside the sequence's.
    """

    stamp_ns: int
    frame_id: str | None
    images: list[Encoded]
    masks: Mapping[str, Sequence[Mask]] = field(default_factory=dict)


def _camera(document: CameraDocument) -> Camera:
    return Camera(np.array(document.K, np.float64), tuple(document.distortion), document.model)


def open_session(core: Core, document: OpenSequence) -> Session:
    """Open a sequence.

    Raises:
        BadRequestError: a camera, the policy or a parameter of the extraction is none.
        NotFoundError: no such model is served.
        TooLargeError: see :meth:`service.sessions.Sessions.open`.
        SequencesFullError: there is no room.
    """
    extractor = core.extractor(
        document.model,
        max_keypoints=document.max_keypoints,
        detection_threshold=document.detection_threshold,
        nms_radius=document.nms_radius,
        resize=document.resize,
        white=document.white,
    )
    if document.stereo is not None and document.camera is None:
        raise BadRequestError("stereo is given without camera, the left one; expected both")
    try:
        camera = None if document.camera is None else _camera(document.camera)
        rig = None
        if document.stereo is not None and camera is not None:
            right = _camera(document.stereo.camera)
            rig = StereoRig(camera, right, np.array(document.stereo.R), np.array(document.stereo.t))
        policy = {} if document.policy is None else document.policy.model_dump(exclude_none=True)
        tracker = Tracker(TrackerConfig(**policy), camera, rig)
    except FrontendError as error:
        raise BadRequestError(str(error)) from None
    return core.sessions.open(tracker, extractor, camera_id=document.camera_id, ttl_s=document.ttl_s)


def opened_document(session: Session) -> dict[str, Any]:
    """See :class:`service.sequence_documents.OpenedDocument`."""
    return {
        "id": session.id,
        "camera_id": session.camera_id,
        "model": session.extractor.name,
        "expires_in_s": round(session.expires_in_s, 3),
        "policy": dataclasses.asdict(session.tracker.config),
    }


def status_document(session: Session) -> dict[str, Any]:
    """See :class:`service.sequence_documents.SequenceDocument`."""
    return {
        "id": session.id,
        "camera_id": session.camera_id,
        "model": session.extractor.name,
        "frames": session.frames,
        "tracks": session.tracks,
        "mean_track_length": session.mean_track_length,
        "last_stamp_ns": session.last_stamp_ns,
        "bytes": session.nbytes,
        "expires_in_s": round(max(session.expires_in_s, 0.0), 3),
    }


async def mask_session(core: Core, sequence_id: str, data: bytes, of: ImageName) -> None:
    """Give a sequence a mask, see :meth:`service.sessions.Sessions.set_mask`; frames that come from then on have it.

    Args:
        core: of the application.
        sequence_id: of the sequence.
        data: an encoded image.
        of: the images that it is of.

    Raises:
        ServiceError: see there, and :meth:`service.core.Core.mask`.
    """
    mask = await core.mask(core.sessions.get(sequence_id).extractor, data, mask_name(of), core.deadline())
    core.sessions.set_mask(core.sessions.get(sequence_id), mask, of)  # it may have gone meanwhile


async def track_frame(core: Core, session: Session, given: Given, descriptors: Encoding) -> dict[str, Any]:
    """Extract the features of a frame, and track it when its turn has come.

    Features of several frames of a sequence may be extracted at the same time; tracks are made in the order of the
    stamps. A frame that fails leaves the sequence as it was.

    Args:
        core: of the application.
        session: that the frame continues.
        given: the frame.
        descriptors: their type in the answer.

    Returns:
        See :class:`service.sequence_documents.TrackedFrameDocument`.

    Raises:
        OutOfOrderError: a frame with this stamp or a later one has been tracked.
        BadImageError: the image has another size than those of the frames before.
        ServiceError: see :meth:`service.core.Core.features` and :meth:`service.core.Core.reserve`.
    """
    began, deadline = time.perf_counter(), core.deadline()
    slots: list[Slot] = []
    turn: Turn | None = None
    try:
        turn = session.queue(given.stamp_ns)
        slots = core.reserve(len(given.images), accepted=True)
        masks: dict[str, list[Mask]] = {name: list(found) for name, found in given.masks.items()}
        for of, mask in session.masks.items():
            masks.setdefault(of, []).insert(0, mask)
        features = await core.features(session.extractor, given.images, deadline, slots, masks)
        extracted = time.perf_counter()
        await core.in_time(turn.come(), deadline)
        begun = time.perf_counter()
        right = features[1] if len(features) > 1 else None
        running, turn = turn, None  # released when the thread is done, even if nobody waits for it

        def done(future: asyncio.Future[TrackedFrame]) -> None:
            running.release()
            if not future.cancelled() and future.exception() is None:
                session.tracked(future.result(), None if right is None else right.image_size)
                core.sessions.tell()

        update = partial(session.tracker.update, features[0], given.stamp_ns, right)
        frame = await core.in_thread(update, deadline, done, tracking=True)
    except SequenceError as error:  # of another size
        raise BadImageError(str(error)) from None
    finally:
        if turn is not None:
            turn.release()
        for slot in slots:
            slot.release()
    ended = time.perf_counter()
    core.metrics.stage.labels("tracking").observe(ended - begun)
    spans = {
        "features": extracted - began,
        "turn": begun - extracted,
        "tracking": ended - begun,
        "total": ended - began,
    }
    timings = {name: round(seconds * 1e3, 3) for name, seconds in spans.items()}
    return _frame_document(session, frame, given.frame_id, features[0], descriptors, timings)


def _frame_document(
    session: Session,
    frame: TrackedFrame,
    frame_id: str | None,
    features: Features,
    descriptors: Encoding,
    timings_ms: dict[str, float],
) -> dict[str, Any]:
    document: dict[str, Any] = {"sequence_id": session.id, "camera_id": session.camera_id, "frame_id": frame_id}
    document |= {field.name: getattr(frame, field.name) for field in dataclasses.fields(frame)}
    pose, stereo = frame.pose, frame.stereo
    document["image_size"] = list(frame.image_size)
    document["pose"] = None if pose is None else {"R": pose.R, "t": pose.t}
    document["stereo"] = stereo and {"rows": stereo.rows, "keypoints": stereo.keypoints, "points": stereo.points}
    document["descriptors"] = encoded_descriptors(features, descriptors)
    document["timings_ms"] = timings_ms
    return document
