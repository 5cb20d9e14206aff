"""Messages of a stream as frames; see :func:`service.routes.sequences.stream_frames`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from service.bodies import refuse_members
from service.errors import BadRequestError
from service.sequence_work import Given
from service.wire import unpack

MAX_STAMP = 2**63 - 1
_MAX_ID = 256
_MAX_HEADER = 4096  # characters; a frame_id has up to 12 for each of its own, where they are escaped
_MAX_MEMBERS = 16  # of a message, and of all in it; more than there are, so that one too many is named
_NAMES = frozenset({"stamp_ns", "frame_id", "image", "right"})


def _stamp(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    # numbers of JavaScript are written as floats where they are large
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_STAMP:
        raise BadRequestError("stamp_ns is missing, or no whole number of nanoseconds from 0 to 2^63 - 1")
    return value


def _frame_id(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and len(value) <= _MAX_ID):
        raise BadRequestError(f"frame_id is a {type(value).__name__} or too long; expected up to {_MAX_ID} characters")
    return value


def _or_none(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except BadRequestError:
        return None


class BadFrameError(BadRequestError):
    """A message that can be read is no frame.

    Args:
        detail: see :class:`service.errors.ServiceError`.
        document: what the message says.

    Attributes:
        echo: stamp_ns and frame_id of the document, by these names; None for what is missing or none of these.
    """

    def __init__(self, detail: str, document: Mapping[Any, Any]) -> None:
        super().__init__(detail)
        readers = {"stamp_ns": _stamp, "frame_id": _frame_id}
        self.echo = {name: _or_none(read, document.get(name)) for name, read in readers.items()}


@contextmanager
def _echoing(document: Mapping[Any, Any]) -> Iterator[None]:
    """Have refusals say which frame they are of."""
    try:
        yield
    except BadRequestError as error:
        raise BadFrameError(error.detail, document) from None


@dataclass(frozen=True)
class Header:
    """A text message, which the images follow.

    Attributes:
        stamp_ns: nanoseconds.
        frame_id: echoed.
        right: whether the image of the right camera follows, too.
    """

    stamp_ns: int
    frame_id: str | None
    right: bool

    @classmethod
    def parse(cls, text: str) -> Header:
        """Read a text message.

        Raises:
            BadRequestError: it is no header; BadFrameError where it is an object all the same.
        """
        if len(text) > _MAX_HEADER:  # it is parsed on the event loop
            raise BadRequestError(f"text message has {len(text)} characters; expected at most {_MAX_HEADER}")
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise BadRequestError("text message is not JSON; expected stamp_ns, frame_id and right") from None
        if not isinstance(document, dict):
            raise BadRequestError("text message is no object; expected stamp_ns, frame_id and right")
        with _echoing(document):
            refuse_members("message", document, _NAMES - {"image"})
            right = document.get("right", False)
            if not isinstance(right, bool):
                raise BadRequestError("right is neither true nor false")
            return cls(_stamp(document.get("stamp_ns")), _frame_id(document.get("frame_id")), right)


def may_be_frame(message: bytes) -> bool:
    """Whether a binary message begins as a map of MessagePack with a frame's few members; no image does."""
    return message[:1] in (b"\x81", b"\x82", b"\x83", b"\x84", b"\xde", b"\xdf")


def frame_of_header(header: Header, images: list[bytes | str]) -> Given:
    """The frame of a header and its images.

    Raises:
        BadRequestError: a text message is where an image should be.
    """
    found: list[tuple[str, bytes]] = []
    for name, image in zip(("image", "right"), images, strict=False):
        if isinstance(image, str):
            raise BadRequestError(f"text message follows a header; expected {name} as a binary message")
        found.append((name, image))
    return Given(header.stamp_ns, header.frame_id, found)


def frame_of_message(data: bytes) -> Given:
    """The frame of a binary message.

    Raises:
        BadRequestError: it is none; BadFrameError where it is a map all the same.
    """
    try:
        document = unpack(data, _MAX_MEMBERS)
    except Exception:  # whatever the parser raises, the message is at fault
        document = None
    if not isinstance(document, dict):
        raise BadRequestError("message is no flat map of MessagePack; expected stamp_ns, frame_id, image and right")
    with _echoing(document):
        refuse_members("message", document, _NAMES)
        images = [(name, document.get(name)) for name in ("image", "right")]
        found = [(name, data) for name, data in images if isinstance(data, bytes)]
        others = [data for _, data in images if data is not None and not isinstance(data, bytes)]
        if not found or found[0][0] != "image" or others:
            raise BadRequestError("image is missing, or image or right is no binary data")
        return Given(_stamp(document.get("stamp_ns")), _frame_id(document.get("frame_id")), found)
