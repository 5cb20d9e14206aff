"""Sequences without vision, which lose frames, sequences and connections when they are told to."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
from documents import frame_document
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.wire import MSGPACK, encode

BUSY, BROKEN, RESTART, FORGOTTEN, GARBAGE = b"busy", b"broken", b"restart", b"forgotten", b"garbage"
"""Images: their frame is dropped, refused, closes the stream, finds its sequence gone, has an unreadable answer."""


def problem(status: int, code: str) -> dict[str, Any]:
    return {"status": status, "code": code, "detail": f"{code} it is", "request_id": "r"}


class StubSequences:
    """See above.

    Args:
        key: that WebSockets are asked for.

    Attributes:
        app: for a server.
        opened: documents of the sequences, in the order they came.
        masks: bodies, by sequence id.
        frames: (sequence id, stamp in ns, frame id, image, right image) of all.
        alive: ids.
        connections: streams that were opened.
        restarting: whether the next frame of a stream closes it.
    """

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.opened: list[dict[str, Any]] = []
        self.frames: list[tuple[str, int, str | None, bytes, bytes | None]] = []
        self.masks: dict[str, bytes] = {}
        self.alive: set[str] = set()
        self.connections = 0
        self.restarting = False
        self.app = Starlette(
            routes=[
                Route("/v1/sequences", self._open, methods=["POST"]),
                Route("/v1/sequences/{id}", self._status, methods=["GET", "DELETE"]),
                Route("/v1/sequences/{id}/mask", self._mask, methods=["PUT"]),
                Route("/v1/sequences/{id}/frames", self._frame, methods=["POST"]),
                WebSocketRoute("/v1/sequences/{id}/stream", self._stream),
            ]
        )

    async def _open(self, request: Request) -> Response:
        self.opened.append(json.loads(await request.body()))
        self.alive.add(name := f"s{len(self.opened) - 1}")
        return JSONResponse({"id": name, "camera_id": None, "model": "edge", "expires_in_s": 60, "policy": {}}, 201)

    async def _status(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name not in self.alive:
            return JSONResponse(problem(404, "sequence_not_found"), 404)
        if request.method == "DELETE":
            self.alive.discard(name)
            return Response(status_code=204)
        numbers = {"frames": 2, "tracks": 5, "mean_track_length": 1.5, "bytes": 1000, "expires_in_s": 59.5}
        return JSONResponse({"id": name, "camera_id": "left", "model": "edge", "last_stamp_ns": 7, **numbers})

    async def _mask(self, request: Request) -> Response:
        self.masks[request.path_params["id"]] = await request.body()
        return Response(status_code=204)

    async def _frame(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name not in self.alive:
            return JSONResponse(problem(404, "sequence_not_found"), 404)
        stamp_ns = int(request.query_params["stamp_ns"])
        self.frames.append((name, stamp_ns, request.query_params.get("frame_id"), await request.body(), None))
        return Response(self._document(), media_type=MSGPACK)

    def _document(self) -> bytes:
        """Of the last frame: track 0 moves to the right, 1/s, and one more track is new."""
        name, stamp_ns, frame_id, *_ = self.frames[-1]
        index = len([frame for frame in self.frames if frame[0] == name]) - 1
        return encode(
            frame_document(
                sequence_id=name,
                frame_id=frame_id,
                index=index,
                stamp_ns=stamp_ns,
                track_ids=np.array([0, index + 1]),
                ages=np.array([index + 1, 1]),
                normalised=np.array([[stamp_ns % 1_000_000_000 * 1e-9, 0.5], [0.25, 0.75]]),
                lost=np.zeros(0, np.int64),
                descriptors=None,
            ),
            MSGPACK,
        )

    async def _stream(self, websocket: WebSocket) -> None:
        name = websocket.path_params["id"]
        refusal = problem(404, "sequence_not_found") if name not in self.alive else None
        if self.key and websocket.headers.get("x-api-key") != self.key:
            refusal = problem(401, "unauthorized")
        if refusal:
            await websocket.send_denial_response(JSONResponse(refusal, refusal["status"]))
            return
        await websocket.accept()
        self.connections += 1
        try:
            while True:
                frame = msgpack.unpackb(await websocket.receive_bytes())
                echo = {"stamp_ns": frame["stamp_ns"], "frame_id": frame["frame_id"]}
                self.frames.append((name, *echo.values(), frame["image"], frame["right"]))
                if frame["image"] == BUSY:
                    await websocket.send_bytes(msgpack.packb({**echo, "dropped": True}))
                elif frame["image"] == BROKEN:
                    await websocket.send_bytes(msgpack.packb({**echo, "problem": problem(422, "bad_image")}))
                elif frame["image"] == FORGOTTEN or name not in self.alive:
                    self.alive.discard(name)
                    await websocket.send_bytes(msgpack.packb({**echo, "problem": problem(404, "sequence_not_found")}))
                elif self.restarting or frame["image"] == RESTART:
                    self.restarting = False
                    await websocket.close(1012, "restarting")
                    return
                elif frame["image"] == GARBAGE:
                    await websocket.send_bytes(b"\xc1")
                else:
                    await websocket.send_bytes(self._document())
        except WebSocketDisconnect:
            pass
