"""Sequences of frames of one camera, tracked by the service: frame by frame over REST, or over a WebSocket."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response, WebSocket

from service.bodies import json_alone, read_images, split_masks
from service.errors import (
    BadImageError,
    BadRequestError,
    NotFoundError,
    OutOfOrderError,
    SequenceNotFoundError,
    SequencesFullError,
    TooLargeError,
    UnavailableError,
    UpgradeRequiredError,
)
from service.masks import ImageName
from service.routes.common import (
    IMAGE_PROBLEMS,
    WORK_PROBLEMS,
    Descriptors,
    accepted,
    answer,
    core_of,
    parameters_known,
)
from service.schemas import images_body, problems, result
from service.sequence_documents import (
    OpenedDocument,
    OpenSequence,
    SequenceDocument,
    SequencesDocument,
    TrackedFrameDocument,
)
from service.sequence_work import Given, mask_session, open_session, opened_document, status_document, track_frame
from service.streams import serve_stream

router = APIRouter(prefix="/v1", tags=["sequences"])

MAX_STAMP = 2**63 - 1
Stamp = Annotated[
    int,
    Query(
        ge=0, le=MAX_STAMP, description="Nanoseconds, later than the frame's before.", examples=[1403636579763555584]
    ),
]
MaskCamera = Annotated[
    Literal["left", "right"],
    Query(description="Whose images the mask is of: the left camera's, or the only one's, or the right one's."),
]
StreamFormat = Annotated[
    Literal["msgpack", "json"], Query(description="Answers are binary messages of MessagePack, or text ones of JSON.")
]
FrameId = Annotated[str | None, Query(max_length=256, description="Echoed.", examples=["cam0/000017"])]
_IMAGES: dict[str, ImageName] = {"left": "image", "right": "right"}


@router.post(
    "/sequences",
    operation_id="open_sequence",
    summary="Open a sequence",
    status_code=201,
    dependencies=[Depends(accepted), Depends(json_alone)],
    responses={
        201: result(OpenedDocument)[200],
        **problems(BadRequestError, NotFoundError, TooLargeError, SequencesFullError, UnavailableError),
    },
)
async def open_sequence(request: Request, document: OpenSequence | None = None) -> Response:
    """A sequence of frames of one camera. It is forgotten after a time without a frame, and by a restart.

    Its tracks may come to `policy.max_tracks` times the size of a descriptor; so much memory is set aside for it. A
    table without room refuses (429, `sequences_full`); nothing that is open is pushed out.
    """
    core = core_of(request)
    core.require_ready()
    return answer(request, opened_document(open_session(core, document or OpenSequence())), 201)


@router.get(
    "/sequences",
    operation_id="list_sequences",
    summary="Open sequences",
    dependencies=[Depends(accepted)],
    responses={**result(SequencesDocument), **problems(BadRequestError)},
)
async def list_sequences(request: Request) -> Response:
    """All that are open, the oldest first."""
    every = core_of(request).sessions.all()
    return answer(request, {"sequences": [status_document(session) for session in every]})


@router.get(
    "/sequences/{sequence_id}",
    operation_id="get_sequence",
    summary="A sequence",
    dependencies=[Depends(accepted)],
    responses={**result(SequenceDocument), **problems(BadRequestError, SequenceNotFoundError)},
)
async def get_sequence(request: Request, sequence_id: str) -> Response:
    """How far it is. Asking does not keep it from expiring."""
    return answer(request, status_document(core_of(request).sessions.get(sequence_id)))


@router.delete(
    "/sequences/{sequence_id}",
    operation_id="close_sequence",
    summary="Close a sequence",
    status_code=204,
    response_class=Response,
    dependencies=[Depends(parameters_known)],
    responses={204: {"description": "It is gone."}, **problems(BadRequestError, SequenceNotFoundError)},
)
async def close_sequence(request: Request, sequence_id: str) -> Response:
    """Free its memory before it expires."""
    core_of(request).sessions.close(sequence_id)
    return Response(status_code=204)


@router.put(
    "/sequences/{sequence_id}/mask",
    operation_id="set_sequence_mask",
    summary="Say where keypoints of a sequence's frames may be",
    status_code=204,
    response_class=Response,
    dependencies=[Depends(parameters_known)],
    responses={
        204: {"description": "Frames that come from now on have it."},
        **problems(*WORK_PROBLEMS, BadImageError, SequenceNotFoundError, SequencesFullError),
    },
    openapi_extra=images_body("mask", raw=True),
)
async def set_mask(request: Request, sequence_id: str, camera: MaskCamera = "left") -> Response:
    """A mask of what never changes, such as the robot's own parts: an image of the frames' size, as the body or as
    `mask` of a form. Keypoints of frames, over REST and over the stream, lie where it is not black. Right images of
    stereo pairs have one of their own, with `camera=right`, and none without.

    It stays until another takes its place, and counts in the sequence's bytes, an eighth of one for each pixel. It is
    no frame: the sequence expires as if it had not come.
    """
    core = core_of(request)
    core.require_ready()
    core.sessions.get(sequence_id)
    ((_, data),) = await read_images(request, ("mask",), int(core.settings.max_body_mb * 1e6))
    await mask_session(core, sequence_id, data, _IMAGES[camera])
    return Response(status_code=204)


@router.delete(
    "/sequences/{sequence_id}/mask",
    operation_id="delete_sequence_mask",
    summary="Let keypoints of a sequence's frames be anywhere",
    status_code=204,
    response_class=Response,
    dependencies=[Depends(parameters_known)],
    responses={204: {"description": "The camera has no mask."}, **problems(BadRequestError, SequenceNotFoundError)},
)
async def delete_mask(request: Request, sequence_id: str, camera: MaskCamera = "left") -> Response:
    """Images of that camera that come from now on have no mask but their own."""
    sessions = core_of(request).sessions
    sessions.set_mask(sessions.get(sequence_id), None, _IMAGES[camera])
    return Response(status_code=204)


@router.post(
    "/sequences/{sequence_id}/frames",
    operation_id="track_frame",
    summary="The tracks of the next frame",
    dependencies=[Depends(accepted)],
    responses={**result(TrackedFrameDocument), **problems(*IMAGE_PROBLEMS, SequenceNotFoundError, OutOfOrderError)},
    openapi_extra=images_body("image", raw=True, optional=("right", "mask")),
)
async def track(
    request: Request,
    sequence_id: str,
    stamp_ns: Stamp,
    frame_id: FrameId = None,
    descriptors: Descriptors = "none",
) -> Response:
    """Tracks of an image, or of a stereo pair: a form with `image`, the left one, and `right`.

    With a `mask` in the form, keypoints of `image` lie where neither that nor the sequence's mask is black.

    Frames are tracked in the order of their stamps. One whose stamp is not later than that of a frame that has been
    tracked is refused (409, `out_of_order`), and so is one of another size than those before (422, `bad_image`). A
    sequence that has expired, was deleted or was lost by a restart is 404, `sequence_not_found`: open another. A frame
    that is refused leaves the sequence as it was.
    """
    core = core_of(request)
    core.sessions.get(sequence_id)
    core.require_places(1)
    limit = int(core.settings.max_body_mb * 1e6)
    images, masks = split_masks(await read_images(request, ("image",), limit, optional=("right", "mask")))
    session = core.sessions.get(sequence_id)  # it may have gone while the body came
    return answer(request, await track_frame(core, session, Given(stamp_ns, frame_id, images, masks), descriptors))


@router.get(
    "/sequences/{sequence_id}/stream",
    operation_id="stream_frames",
    summary="WebSocket: frames in, tracks out, at camera rate",
    status_code=426,
    response_class=Response,
    dependencies=[Depends(parameters_known)],
    responses=problems(BadRequestError, UpgradeRequiredError),
)
async def stream_frames(
    request: Request, sequence_id: str, format: StreamFormat = "msgpack", descriptors: Descriptors = "none"
) -> Response:
    """A WebSocket (`ws://` or `wss://`, RFC 6455) at this path; a plain request gets 426.

    **Key**: in the header `X-API-Key`. A browser cannot set it, and offers two subprotocols instead:
    `new WebSocket(url, ["superpoint", "key." + base64url(key)])`, base64url without padding; the server selects
    `superpoint`. A page of another origin has to be in `SUPERPOINT_CORS_ORIGINS`.

    **Refusals** to open are HTTP answers with a problem document: 400, 401, 403, 404 `sequence_not_found`, 503.

    **A frame** is either
    - one binary message, MessagePack: `{"stamp_ns": int, "frame_id": str or nil, "image": bytes, "right": bytes or
      nil}`, where image and right are encoded (JPEG, PNG, ...) and `right` is the right image of a stereo pair; or
    - one text message, JSON: `{"stamp_ns": integer or its decimals as a string, "frame_id": string or null, "right":
      true or false}`, then the image as a binary message, then, with `"right": true`, the right image as another.

    Stamps are nanoseconds, and rise from frame to frame. The sequence's masks hold; frames have none of their own
    here.

    **Each frame gets one answer**, in the order of the frames, with its `stamp_ns` and `frame_id`:
    - the tracked frame, the document that `POST /v1/sequences/{sequence_id}/frames` gives;
    - `{"stamp_ns", "frame_id", "dropped": true}`: newer frames came while it was waiting, and the oldest waiting
      frame is given up first;
    - `{"stamp_ns", "frame_id", "problem": {...}}`: it was refused, and the stream goes on: `bad_image`,
      `out_of_order`, `overloaded`, `too_large`, `bad_request` (with null for what of the two could not be read), ...

    In JavaScript a number holds no stamp of today to the nanosecond: name frames by `frame_id`.

    **The server closes** with 1012 where it shuts down, after the answers to what it had; 1009 for a message over the
    limit of bodies; 4404 where the sequence has expired or was deleted; 4409 where another stream of the same
    sequence was opened, which takes its place; 1008 where answers are not read.
    """
    raise UpgradeRequiredError("this is a WebSocket; expected the header Upgrade: websocket")


@router.websocket("/sequences/{sequence_id}/stream")
async def stream(websocket: WebSocket, sequence_id: str) -> None:
    """See :func:`stream_frames`."""
    await serve_stream(websocket.app.state.core, websocket, sequence_id)
