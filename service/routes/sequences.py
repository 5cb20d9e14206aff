"""Sequences of frames of one camera, tracked by the service: frame by frame over REST, or over a WebSocket."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response, WebSocket

from service.bodies import read_images
from service.errors import (
    BadRequestError,
    OutOfOrderError,
    SequenceNotFoundError,
    SequencesFullError,
    ServiceError,
    UpgradeRequiredError,
)
from service.gate import deny
from service.routes.common import IMAGE_PROBLEMS, Descriptors, accepted, answer, core_of
from service.schemas import images_body, problems, result
from service.sequence_documents import (
    OpenSequence,
    SequenceDocument,
    SequencesDocument,
    TrackedFrameDocument,
)
from service.sequence_work import open_session, status_document, track_frame
from service.streams import serve_stream, stream_options

router = APIRouter(prefix="/v1", tags=["sequences"])


@router.get(
    "/sequences/{sequence_id}/stream",
    operation_id="stream_frames",
    summary="WebSocket: frames in, tracks out, at camera rate",
    status_code=426,
    response_class=Response,
    responses=problems(UpgradeRequiredError),
)
async def stream_frames(request: Request, sequence_id: str) -> Response:
    """A WebSocket (`ws://` or `wss://`, RFC 6455) at this path; a plain request gets 426.

    **Query**: `format=msgpack` (default: answers are binary messages) or `json` (text messages);
    `descriptors=none` (default), `float32`, `float16` or `int8`.

    **Key**: in the header `X-API-Key`. A browser cannot set it, and offers two subprotocols instead:
    `new WebSocket(url, ["superpoint", "key." + base64url(key)])`, base64url without padding; the server selects
    `superpoint`. A page of another origin has to be in `SUPERPOINT_CORS_ORIGINS`.

    **Refusals** to open are HTTP answers with a problem document: 401, 403, 404 `sequence_not_found`, 503.

    **A frame** is either
    - one binary message, MessagePack: `{"stamp_ns": int, "frame_id": str or nil, "image": bytes, "right": bytes or
      nil}`, where image and right are encoded (JPEG, PNG, ...) and `right` is the right image of a stereo pair; or
    - one text message, JSON: `{"stamp_ns": integer or its decimals as a string, "frame_id": string or null, "right":
      true or false}`, then the image as a binary message, then, with `"right": true`, the right image as another.

    Stamps are nanoseconds, and rise from frame to frame.

    **Each frame gets one answer**, in the order of the frames, with its `stamp_ns` and `frame_id`:
    - the tracked frame, the document that `POST /v1/sequences/{sequence_id}/frames` gives;
    - `{"stamp_ns", "frame_id", "dropped": true}`: newer frames came while it was waiting, and the oldest waiting
      frame is given up first;
    - `{"stamp_ns", "frame_id", "problem": {...}}`: it was refused, and the stream goes on: `bad_image`,
      `out_of_order`, `overloaded`, `too_large`, `bad_request` (with nulls where the frame could not be read), ...

    In JavaScript a number holds no stamp of today to the nanosecond: name frames by `frame_id`.

    **The server closes** with 1012 where it shuts down, after the answers to what it had; 1009 for a message over the
    limit of bodies; 4404 where the sequence has expired or was deleted; 4409 where another stream of the same
    sequence was opened, which takes its place; 1008 where answers are not read.
    """
    raise UpgradeRequiredError("this is a WebSocket; expected the header Upgrade: websocket")
